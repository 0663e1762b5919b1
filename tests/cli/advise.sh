#!/bin/sh
# temper advise: what it sees of data, base and old skills, and a recipe that trains as it stands.
. tests/cli/lib.sh
export TEMPER_CALIBRATION="$dir/none.json"
head -c 4000 data/demo/shakespeare-dev.txt > "$dir/new.txt"
head -c 2000 data/demo/pushkin-dev.txt > "$dir/other.txt"
cp data/demo/stories-probe.jsonl "$dir/old.jsonl"
printf '{"prompt": "one and one?", "completion": " two"}\n{"prompt": "two and two?", "completion": " four"}\n' > "$dir/pairs.jsonl"

expect "documents of facts: retrieval" 0 'retrieval' advise --model $model --data "$dir/new.txt" train.seq=64 threads=1
expect "... is no answer to pairs" 0 'method: lora' advise --model $model --data "$dir/pairs.jsonl" train.seq=64 threads=1
! grep -q retrieval "$dir/out"
result $? "... where nothing is said of it"
expect "no old data: the answers are held near the base's" 0 'keep.kl.beta: 0.1' advise --model $model --data "$dir/new.txt" train.seq=64 threads=1
grep -q 'no probe watches' "$dir/out"
result $? "... and a probe is asked for"

cat > "$dir/r.yaml" <<END
model: $model
data: [{path: "$dir/new.txt"}]
train: {seq: 64, batch: 2}
keep:
  replay: {path: "$dir/old.jsonl"}
  monitor: {probes: [{name: old, path: "$dir/old.jsonl"}]}
threads: 1
END
expect "old data, and how far the new are from them" 0 'old skills [0-9.]+ nats' advise "$dir/r.yaml" --tasks 3
grep -q 'keep.replay.fraction: 0\.' "$dir/out" && grep -q '3 tasks one after another' "$dir/out" && grep -q 'replay of 25 % 0.57' "$dir/out"
result $? "replay, tasks in sequence, and what that rests on"
sed '1,/^---$/d' "$dir/out" > "$dir/snippet.yaml"
run train "$dir/snippet.yaml" train.seq=64 train.steps=2 train.batch=2 threads=1 out="$dir/run"
result $status "its recipe trains as it stands"
grep -q "path: \"$dir/old.jsonl\"" "$dir/snippet.yaml"
result $? "... and has the old data"

grep -q '^  ewc:$' "$dir/snippet.yaml" && grep -q 'lambda: 0.03' "$dir/snippet.yaml" && [ -s "$dir/run/importances.safetensors" ]
result $? "... and EWC, whose importances were measured on them"
sed "s|replay: {path: \"$dir/old.jsonl\"}|ewc: {path: \"$dir/old.jsonl\"}|" "$dir/r.yaml" > "$dir/ewc.yaml"
expect "old data of keep.ewc are old data" 0 '^old data   keep.ewc.path; probes' advise "$dir/ewc.yaml"
grep -q 'no old data' "$dir/out"
[ $? -ne 0 ] && sed '1,/^---$/d' "$dir/out" | cmp -s - "$dir/snippet.yaml"
result $? "... and give the same recipe"
expect "a model that starts at random" 2 'init: random' advise "$dir/r.yaml" init=random method=full
sed 's/"text"/"words"/' "$dir/old.jsonl" > "$dir/theirs.jsonl"
sed "s|replay: {path: \"$dir/old.jsonl\"}|replay: {path: \"$dir/theirs.jsonl\", format: text, columns: {text: words}}|" "$dir/r.yaml" > "$dir/columns.yaml"
run advise "$dir/columns.yaml"
sed '1,/^---$/d' "$dir/out" > "$dir/snippet.yaml"
run train "$dir/snippet.yaml" train.seq=64 train.steps=2 train.batch=2 threads=1 out="$dir/run2"
[ $status -eq 0 ] && [ "$(grep -c 'columns: {"text": "words"}' "$dir/snippet.yaml")" -eq 2 ] && cmp -s "$dir/run/trail.bin" "$dir/run2/trail.bin"
result $? "rows that are read otherwise are so in its recipe"
TEMPER_MEMORY_LIMIT=20000000 expect "no room for importances" 0 'EWC would keep more' advise "$dir/r.yaml" train.seq=16
expect "JSON" 0 '"shift": "(near|mild|strong)".*"old_data": true' advise "$dir/r.yaml" --json
expect "several bases: the largest that fits" 0 'town1M: .*the largest that fits' advise --data "$dir/new.txt" train.seq=64 threads=1 --base $model --base models/town1M
expect "no data" 2 'the recipe has no data' advise --model $model
expect "no model" 2 'key model is missing' advise --data "$dir/new.txt"
expect "--tasks must be a number" 2 'tasks' advise --model $model --data "$dir/new.txt" --tasks many
expect "--base without a folder" 2 'a folder is missing' advise --data "$dir/new.txt" --base
exit $code
