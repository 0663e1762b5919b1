#!/bin/sh
# Methods that rewrite what is trained, through the program: replay, texts of the base, masked tokens, each and together.
. tests/cli/lib.sh
head -c 6000 data/demo/shakespeare-dev.txt > "$dir/data.txt"
head -c 6000 data/demo/shakespeare-train.txt > "$dir/old.txt"
short="train.steps=4 train.seq=64 train.batch=4 train.warmup_steps=0 threads=1 train.checkpoint_every=2 model=$model data=$dir/data.txt"
texts="keep.generate.samples=6 keep.generate.max_tokens=32 keep.generate.fraction=0.3"

expect "replay" 0 '' train $short keep.replay.path="$dir/old.txt" keep.replay.fraction=0.3 out="$dir/replay"
grep -q '"rehearsal": \[{.*"fraction": 0.3' "$dir/replay/run.json"
result $? "run.json says what was rehearsed"
expect "texts of the base" 0 'keep.generate: 6 texts kept, 0 repeats, 0 empty, 0 too long' train $short $texts out="$dir/texts"
grep -q '"begin": "bos"' "$dir/texts/rehearsal.json" && [ "$(wc -l < "$dir/texts/rehearsal.jsonl")" -eq 6 ]
result $? "the run folder has them, and where they come from"
expect "what cannot be is refused before the base writes" 2 'keep.osf: method adapter' train $short $texts method=adapter keep.osf.share=0.3 out="$dir/refused"
! grep -q 'the base writes' "$dir/err" && [ ! -e "$dir/refused" ]
result $? "... and leaves nothing"
TEMPER_MEMORY_LIMIT=1000000 expect "and so is what does not fit" 4 'would fit|largest part' train $short $texts method=full out="$dir/refused"
! grep -q 'the base writes' "$dir/err"
result $? "... before it writes"
expect "a mask of everything says what helps" 0 'keep.stm: 100.0 % .* nothing of the data is learned: a larger keep.stm.threshold' train $short keep.stm.threshold=0.5 out="$dir/allmasked"
expect "a mask" 0 'keep.stm: 20.0 % of the targets .* blocks new facts' train $short keep.stm.fraction=0.2 out="$dir/mask"
head -1 "$dir/mask/stm.bin" | grep -aq '"temper_stm": 1, "threshold": 0, "fraction": 0.2'
result $? "stm.bin says what it is"
expect "all together, the base chooses the buffer" 0 '' train $short $texts keep.replay.path="$dir/old.txt" keep.replay.buffer=5 \
    keep.replay.select=diverse keep.stm.threshold=20 out="$dir/all"
cmp -s "$dir/texts/rehearsal.jsonl" "$dir/all/rehearsal.jsonl"
result $? "the same texts"
expect "verifying" 0 'equal to the bit' verify "$dir/all"
expect "another run in the folder" 2 'holds another run: samples' train $short $texts keep.generate.samples=7 out="$dir/all"
expect "too much" 2 '1.2 of the tokens together' train $short $texts keep.generate.fraction=0.6 keep.replay.path="$dir/old.txt" keep.replay.fraction=0.6 out="$dir/much"
expect "no such file" 2 'keep.replay.path: no such file' train $short keep.replay.path="$dir/none" out="$dir/none-out"
# Rows under other names of columns, with the words before a prompt in the recipe: the same run.
sed 's/"/ /g; s/\\/ /g; s/^/{"prompt": "Say it: ", "completion": "/; s/$/"}/' "$dir/old.txt" | grep -v ": \"\"}" | head -40 > "$dir/ours.jsonl"
sed 's/"Say it: "/"it: "/; s/"prompt"/"q"/; s/"completion"/"a"/' "$dir/ours.jsonl" > "$dir/theirs.jsonl"
run train $short keep.replay.path="$dir/ours.jsonl" keep.replay.fraction=0.4 out="$dir/ours"
run train $short keep.replay.path="$dir/theirs.jsonl" keep.replay.fraction=0.4 keep.replay.format=completion keep.replay.columns='{prompt: q, completion: a}' \
    keep.replay.system="Say " out="$dir/theirs"
[ -s "$dir/ours/trail.bin" ] && cmp -s "$dir/ours/trail.bin" "$dir/theirs/trail.bin"
result $? "columns and system of old rows"
run train $short keep.replay.path="$dir/ours.jsonl" keep.replay.fraction=0.4 keep.replay.loss=all out="$dir/loss"
[ -s "$dir/loss/trail.bin" ] && ! cmp -s "$dir/ours/trail.bin" "$dir/loss/trail.bin"
result $? "another loss is another run"
chosen="keep.replay.fraction=0.4 keep.replay.buffer=3 keep.replay.select=loss keep.replay.path=$dir/theirs.jsonl keep.replay.format=completion"
expect "the base chooses among such rows" 0 '3 are kept' train $short $chosen keep.replay.columns='{prompt: q, completion: a}' out="$dir/chosen"
expect "rows that are read otherwise are another run" 2 'holds another run: rows' train $short $chosen keep.replay.columns='{prompt: q, completion: q}' out="$dir/chosen"
expect "a plan makes nothing" 0 'peak' plan $short $texts out="$dir/plan"
[ ! -e "$dir/plan" ]
result $? "and no folder"
run train recipes/replay.yaml train.steps=2 train.batch=2 keep.generate.samples=3 keep.generate.max_tokens=16 eval.0.limit=2 \
    keep.monitor.probes.0.limit=2 keep.monitor.probes.1.limit=2 out="$dir/recipe"
result $status "recipes/replay.yaml"
exit $code
