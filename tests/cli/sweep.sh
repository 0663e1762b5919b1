#!/bin/sh
# temper sweep: every combination is a run, the best comes first; it goes on where it was, also with more values.
. tests/cli/lib.sh
head -c 3000 data/demo/shakespeare-train.txt > "$dir/a.txt"
head -c 600 data/demo/shakespeare-dev.txt > "$dir/dev.txt"
cat > "$dir/r.yaml" <<EOF
model: $model
data: $dir/a.txt
eval: [{name: dev, path: $dir/dev.txt}, {name: hits, path: $dir/dev.txt, metric: accuracy}]
lora: {r: 2, dropout: 0}
train: {steps: 3, batch: 2, seq: 32, checkpoint_every: 0}
EOF
sweep() { run sweep "$dir/r.yaml" "$@" threads=1; }
sweep train.lr=1e-5,1e-2 lora.alpha=2,8 out="$dir/runs"
[ "$status" -eq 0 ] && [ "$(grep -c '^1e-' "$dir/out")" -eq 4 ] && sed -n 2p "$dir/out" | grep -qE '^1e-2 +8 +[0-9.]+ +[0-9.]+ +best$'
result $? "four runs, the best first"
[ "$(tail -1 "$dir/out")" = "$dir/runs/lr-1e-2,alpha-8" ] && [ -s "$dir/runs/lr-1e-2,alpha-8/adapter_model.safetensors" ]
result $? "its folder is named by its settings"
[ "$(grep -o '"last": [0-9.]*' "$dir/runs/sweep.json" | cut -d' ' -f2 | sort -g -c 2>&1)" = "" ] && [ "$(grep -c '"folder"' "$dir/runs/sweep.json")" -eq 4 ]
result $? "sweep.json is sorted"
cp "$dir/runs/sweep.json" "$dir/whole.json"
stamp=$(stat -c %y "$dir/runs/lr-1e-5,alpha-2/adapter_model.safetensors")
sweep train.lr=1e-5,1e-2 lora.alpha=2,8 --out "$dir/runs"
cmp -s "$dir/runs/sweep.json" "$dir/whole.json" && [ "$(stat -c %y "$dir/runs/lr-1e-5,alpha-2/adapter_model.safetensors")" = "$stamp" ]
result $? "again: nothing is done"
rm -r "$dir/runs/lr-1e-2,alpha-2"
sweep train.lr=1e-5,1e-2 lora.alpha=2,8 --out "$dir/runs"
cmp -s "$dir/runs/sweep.json" "$dir/whole.json"
result $? "what is missing is made again, with the same bytes"
sweep train.lr=1e-5,1e-2,1e-3 lora.alpha=2,8 --out "$dir/runs"
[ "$status" -eq 0 ] && [ "$(grep -c '^1e-' "$dir/out")" -eq 6 ] && [ "$(stat -c %y "$dir/runs/lr-1e-5,alpha-2/adapter_model.safetensors")" = "$stamp" ]
result $? "more values keep the runs that are there"
sweep train.lr=1e-5,1e-2 --metric hits --json --out "$dir/hits"
[ "$status" -eq 0 ] && grep -q '"eval": "hits"' "$dir/out" && grep -q '"better": "higher"' "$dir/out" && cmp -s "$dir/out" "$dir/hits/sweep.json"
result $? "another evaluation decides"
sweep train.schedule=constant,cosine train.seed=7 --out "$dir/words"
[ "$status" -eq 0 ] && [ -e "$dir/words/schedule-constant/run.json" ] && grep -q '"seed": 7' "$dir/words/schedule-cosine/run.json"
result $? "words as values, and a key of all runs"
# Rates of 1e29 and more: products of such weights are beyond f32, whatever the gradients.
sweep train.lr=1e30,1e-2,1e29 train.optimizer=sgd --jobs 2 --out "$dir/large"
[ "$status" -eq 0 ] && [ "$(tail -1 "$dir/out")" = "$dir/large/lr-1e-2" ] && [ "$(grep -cE '^1e(30|29) +- +[0-9.]+ +diverged$' "$dir/out")" -eq 2 ]
result $? "what diverges is shown, and not chosen"
cp "$dir/large/sweep.json" "$dir/large.json"
stamp=$(stat -c %y "$dir/large/lr-1e30/run.json")
sweep train.lr=1e30,1e-2,1e29 train.optimizer=sgd --out "$dir/large"
cmp -s "$dir/large/sweep.json" "$dir/large.json" && [ "$(stat -c %y "$dir/large/lr-1e30/run.json")" = "$stamp" ]
result $? "and not tried again"
expect "all of them diverge" 1 'large: training diverged with all of these settings' sweep "$dir/r.yaml" train.lr=1e30,1e29 train.optimizer=sgd --out "$dir/large" threads=1
expect "nothing to sweep" 2 'nothing to sweep' sweep "$dir/r.yaml" train.lr=1
expect "an unknown key" 2 'did you mean train.lr' sweep "$dir/r.yaml" train.lrr=1,2 --out "$dir/bad"
expect "a wrong value, before any run" 2 'train.lr=x' sweep "$dir/r.yaml" train.lr=1e-3,x --out "$dir/bad"
[ ! -e "$dir/bad" ]
result $? "and nothing was made"
expect "a value twice" 2 'there twice' sweep "$dir/r.yaml" train.lr=1,1 --out "$dir/bad"
expect "an empty value" 2 'expected values' sweep "$dir/r.yaml" train.lr=1,,2 --out "$dir/bad"
expect "an unknown evaluation, before any run" 2 'there is no evaluation none; expected one of: dev, hits$' sweep "$dir/r.yaml" train.lr=1e-5,1e-2 --metric none --out "$dir/bad" threads=1
[ ! -e "$dir/bad" ]
result $? "and nothing was made"
sweep 'lora.target_modules=[q_proj],[q_proj,v_proj]' train.betas=[0.9,0.99] --out "$dir/lists"
[ "$status" -eq 0 ] && grep -q '^\[q_proj\] ' "$dir/out" && grep -q '^\[q_proj,v_proj\] ' "$dir/out"
result $? "lists as values; one list is no grid"
expect "no evaluation" 2 'no evaluation to choose by' sweep --model $model --data "$dir/a.txt" train.lr=1,2 --out "$dir/bad"
: > "$dir/plain"
expect "an out that cannot be" 1 'plain' sweep "$dir/r.yaml" train.lr=1,2 --out "$dir/plain/x" threads=1
expect "no recipe" 2 'recipe is missing' sweep
expect "help" 0 'example: ' sweep --help
exit $code
