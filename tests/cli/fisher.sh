#!/bin/sh
# temper fisher: what it writes is used by keep.ewc, whose run measures the same by itself.
. tests/cli/lib.sh
head -c 6000 data/demo/shakespeare-dev.txt > "$dir/new.txt"
base="model=$model train.seq=64 threads=1 keep.ewc.samples=6 keep.ewc.path=data/demo/stories-old.jsonl"
run_keys="$base data=$dir/new.txt train.steps=3 train.batch=2 train.warmup_steps=0 train.lr=1e-3 lora.r=2 keep.ewc.lambda=5"

expect "importances of a whole model" 0 '^47 tensors, 260032 importances, mean 1' fisher $base method=full --out "$dir/full.st"
grep -q '^measuring .* 6/6' "$dir/err" && ! grep -q training "$dir/err"
result $? "it says that it measures"
expect "of the matrices under LoRA" 0 'fisher .labels sampled, space delta. of 6 examples' fisher $base method=lora --out="$dir/lora.st"
"$temper" fisher $base method=lora --out "$dir/again.st" > /dev/null 2>&1
cmp -s "$dir/lora.st" "$dir/again.st"
result $? "twice the same bytes"
early() { ! grep -q measuring "$dir/err"; result $? "... before anything is measured"; }
expect "older ones that are not there" 3 'cannot open' fisher $base method=lora --out "$dir/two.st" --add "$dir/none.st"
early
expect "older ones of other parameters" 3 'importances add up only where' fisher $base method=full --out "$dir/two.st" --add "$dir/lora.st"
early
expect "a folder that is not there" 2 'there is no folder .*/none' fisher $base method=lora --out "$dir/none/two.st"
early
expect "added to older ones" 0 '2 tasks, gamma 1, weight 2' fisher $base method=lora --out "$dir/two.st" --add "$dir/lora.st" keep.ewc.path="$dir/new.txt"
expect "path integrals" 0 'path .labels empirical' fisher $base method=lora --out "$dir/path.st" keep.ewc.importance=path

expect "a run that measures" 0 'own' train $run_keys out="$dir/own"
cmp -s "$dir/own/importances.safetensors" "$dir/lora.st"
result $? "... measures what the command does"
grep -q "\"importances\": \"$(sha256sum "$dir/lora.st" | cut -d ' ' -f 1)\"" "$dir/own/run.json"
result $? "... and run.json has its hash"
expect "a run with the file" 0 'given' train $run_keys keep.ewc.importances="$dir/lora.st" out="$dir/given"
cmp -s "$dir/own/adapter_model.safetensors" "$dir/given/adapter_model.safetensors" && cmp -s "$dir/own/trail.bin" "$dir/given/trail.bin"
result $? "... is the same run"
expect "the whole model's serve LoRA too" 0 'whole' train $run_keys keep.ewc.importances="$dir/full.st" out="$dir/whole"
expect "verify measures again" 0 'identical|equal|same' verify "$dir/own"
expect "plan counts it" 0 'keep' plan $run_keys
expect "inspect shows the recipe" 0 '.' inspect recipes/ewc.yaml
expect "the recipe" 0 'ewc' train recipes/ewc.yaml train.steps=2 keep.ewc.samples=2 train.batch=1 out="$dir/recipe-ewc"

# The same conversations under other names of columns and roles, with the system message in the recipe: the same importances.
cat > "$dir/ours.jsonl" <<'END'
{"messages": [{"role": "system", "content": "Short."}, {"role": "user", "content": "What is a cat?"}, {"role": "assistant", "content": "An animal."}]}
{"messages": [{"role": "system", "content": "Short."}, {"role": "user", "content": "And a tree?"}, {"role": "assistant", "content": "A plant."}]}
END
sed 's/{"role": "system", "content": "Short."}, //; s/"messages"/"talk"/; s/"role"/"who"/g; s/"content"/"says"/g; s/"user"/"me"/g; s/"assistant"/"you"/g' "$dir/ours.jsonl" > "$dir/theirs.jsonl"
names='{messages: talk, role: who, content: says}'
run fisher model=$model train.seq=256 threads=1 method=lora keep.ewc.path="$dir/ours.jsonl" keep.ewc.template=chatml --out "$dir/ours.st"
run fisher model=$model train.seq=256 threads=1 method=lora keep.ewc.path="$dir/theirs.jsonl" keep.ewc.format=messages keep.ewc.columns="$names" keep.ewc.roles='{user: me, assistant: you}' \
    keep.ewc.system=Short. keep.ewc.template=chatml --out "$dir/theirs.st"
[ -s "$dir/ours.st" ] && [ "$(tail -c 4096 "$dir/ours.st" | cksum)" = "$(tail -c 4096 "$dir/theirs.st" | cksum)" ]
result $? "columns, roles, system and template of old data"
run fisher model=$model train.seq=256 threads=1 method=lora keep.ewc.path="$dir/ours.jsonl" keep.ewc.template=chatml keep.ewc.loss=all --out "$dir/all.st"
[ -s "$dir/all.st" ] && [ -s "$dir/ours.st" ] && [ "$(tail -c 4096 "$dir/ours.st" | cksum)" != "$(tail -c 4096 "$dir/all.st" | cksum)" ]
result $? "another loss is another measurement"
expect "a column that is none" 2 'keep.ewc.columns' fisher $base keep.ewc.columns='{words: text}' --out "$dir/x.st"
expect "roles of what has none" 2 'roles are for messages' fisher $base keep.ewc.roles='{user: me}' --out "$dir/x.st"
expect "no file to write" 2 '--out FILE is needed' fisher $base
expect "a value is missing" 2 'a value is missing' fisher $base --out
expect "importances of another recipe" 3 'same parameters' fisher $base method=full --out "$dir/x.st" --add "$dir/lora.st"
expect "what is no such file" 3 'no file of importances' fisher $base method=full --out "$dir/x.st" --add $model/model.safetensors
expect "old data are needed" 2 'keep.ewc.path' train model=$model data="$dir/new.txt" train.seq=64 keep.ewc.lambda=1 out="$dir/none"
expect "no data at all" 2 'keep.ewc.path' fisher model=$model method=full --out "$dir/x.st"
expect "nothing is trained" 2 'method: none' fisher $base method=none --out "$dir/x.st"
expect "help shows an example" 0 'example: ' fisher --help
"$temper" fisher --help | sed -n '/^example: /,$p' | sed 's/^example: //; s/^ *//; s|/tmp/|'"$dir"'/|g' > "$dir/example"
( temper() { "$example_of" "$@"; }; example_of=$temper; . "$dir/example" ) > "$dir/out" 2> "$dir/err"
[ $? -eq 0 ] && [ -s "$dir/out" ]
result $? "the example of --help"
exit $code
