#!/bin/sh
# temper export, and GGUF files as models of every other command: the same text, loss and adapter as the folder's.
. tests/cli/lib.sh
head -c 6000 data/demo/shakespeare-dev.txt > "$dir/data.txt"

for type in f32 f16 bf16 q8_0 q4_k_m; do
    expect "export --type $type" 0 'read back; logits against the source' export --model $model --gguf "$dir/$type.gguf" --type $type
    [ "$(cat "$dir/out")" = "$dir/$type.gguf" ]
    result $? "the path of the $type file is printed"
done
[ "$(ls -A "$dir" | grep -c 'unchecked\|partial\|merged')" -eq 0 ]
result $? "nothing is left beside the files"
[ "$(wc -c < "$dir/q4_k_m.gguf")" -lt "$(wc -c < "$dir/q8_0.gguf")" ] && [ "$(wc -c < "$dir/q8_0.gguf")" -lt "$(wc -c < "$dir/f16.gguf")" ]
result $? "fewer bits make a smaller file"

text() { "$temper" generate --model "$1" --prompt "Once upon a time" --max-tokens 60 --temperature 0 2>"$dir/err"; }
text $model > "$dir/expected"
for type in f32 f16; do
    text "$dir/$type.gguf" > "$dir/out"
    cmp -s "$dir/expected" "$dir/out"
    result $? "the $type file generates the folder's text"
done
text "$dir/q8_0.gguf" | grep -q 'there was a little girl'
result $? "the q8_0 file generates text"

echo '"There was  a caf\u00e9, in 1984. \u0416!"' > "$dir/texts.jsonl"
"$temper" tokenize --tokenizer $model --jsonl "$dir/texts.jsonl" --add-special > "$dir/expected"
run tokenize --tokenizer "$dir/q8_0.gguf" --jsonl "$dir/texts.jsonl" --add-special
cmp -s "$dir/expected" "$dir/out"
result $? "the tokenizer in the file gives the folder's tokens"

expect "inspect a GGUF file" 0 'family +llama' inspect "$dir/q4_k_m.gguf"
grep -q 'Q5_0' "$dir/out"
result $? "inspect says its block types"
expect "compare a folder and its GGUF file" 0 'relative|0' compare $model "$dir/f16.gguf"
expect "plan on a GGUF file" 0 '"fits": true' plan model="$dir/q8_0.gguf" data="$dir/data.txt" train.seq=64 --json

# lora OUT MODEL: a few steps
lora() { run train model="$2" data="$dir/data.txt" train.steps=4 train.seq=64 train.batch=2 lora.r=4 train.lr=3e-3 threads=1 out="$dir/$1"; }
lora on-folder $model
lora on-gguf "$dir/f32.gguf"
result $status "training on a GGUF base"
cmp -s "$dir/on-folder/adapter_model.safetensors" "$dir/on-gguf/adapter_model.safetensors"
result $? "the adapter has the bytes of the one trained on the folder"
loss() { "$temper" eval --model "$1" ${2:+--adapter "$2"} --data "$dir/data.txt" --json train.seq=64 2>"$dir/err" | sed 's/.*"loss": \([0-9.]*\).*/\1/'; }
a=$(loss "$dir/f32.gguf" "$dir/on-gguf") && [ -n "$a" ] && [ "$a" = "$(loss $model "$dir/on-folder")" ] && [ "$a" != "$(loss $model)" ]
result $? "eval of GGUF base and adapter"
expect "verify a run on a GGUF base" 0 'equal' verify "$dir/on-gguf"

expect "export with an adapter" 0 'read back' export --model $model --adapter "$dir/on-folder" --gguf "$dir/merged.gguf" --type f32
b=$(loss "$dir/merged.gguf") && awk -v a="$a" -v b="$b" 'BEGIN { d = a - b; exit !(b != "" && d < 2e-5 && d > -2e-5) }'
result $? "the merged file has the adapter's loss"
expect "merge into a GGUF base" 0 'tensors changed' merge --model "$dir/f32.gguf" --adapter "$dir/on-gguf" --out "$dir/merged"
[ -f "$dir/merged/tokenizer.json" ] && [ -f "$dir/merged/config.json" ] && c=$(loss "$dir/merged") && awk -v a="$a" -v b="$c" 'BEGIN { d = a - b; exit !(b != "" && d < 2e-5 && d > -2e-5) }'
result $? "the merged folder stands alone and has the adapter's loss"
expect "export --adapter-only" 0 'dW differs by' export --model $model --adapter "$dir/on-folder" --gguf "$dir/lora.gguf" --adapter-only
expect "inspect an adapter file" 0 'a GGUF LoRA for llama.cpp, alpha 32, r 4' inspect "$dir/lora.gguf"
expect "an adapter file is no model" 3 "general.type is 'adapter', expected a model" eval --model "$dir/lora.gguf" --data "$dir/data.txt"

expect "a type that is not there" 2 "found 'q3', expected" export --model $model --gguf "$dir/x.gguf" --type q3
expect "no file" 2 'are needed' export --model $model
expect "no model" 3 'config.json' export --model "$dir" --gguf "$dir/x.gguf"
head -c 5000 "$dir/q8_0.gguf" > "$dir/cut.gguf"
for command in inspect "generate --prompt a --model" "eval --data $dir/data.txt --model"; do
    expect "a file cut short: $command" 3 "cut.gguf: " $command "$dir/cut.gguf"
done
for file in tests/data/malformed/gguf/*.gguf; do
    run generate --prompt a --model "$file"
    [ "$status" -eq 3 ] && grep -q "$file: " "$dir/err" || break
done
[ "$status" -eq 3 ]
result $? "damaged files are refused by name"
exit $code
