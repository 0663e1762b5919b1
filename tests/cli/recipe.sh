#!/bin/sh
# What is wrong with a recipe or its data is said before training: with the exit code that scripts rely on, with
# file, line and what would be right, and nothing is left behind.
set -u
temper=${TEMPER_BIN:-build/cpu/temper}
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
failures=0

# name, expected exit code, expected text on stderr, arguments of temper ...
check()
{
    name=$1 want=$2 text=$3
    shift 3
    "$temper" "$@" >"$dir/stdout" 2>"$dir/stderr" </dev/null
    code=$?
    if [ $code -eq "$want" ] && grep -qF -- "$text" "$dir/stderr" && [ ! -e "$dir/out" ]; then
        echo "[       OK ] $name"
    else
        echo "[  FAILED  ] $name: exit $code, expected $want with: $text"
        sed 's/^/    /' "$dir/stderr"
        failures=1
    fi
}

base="model: models/stories260K
out: $dir/out
train: {steps: 1, batch: 1, seq: 16}
"
recipe() # text behind the base
{
    printf '%s%s\n' "$base" "$1" > "$dir/r.yaml"
}

recipe 'data: data/demo/shakespeare-dev.txt
lora: {rr: 4}'
check 'unknown key' 2 "temper: $dir/r.yaml:5: unknown key lora.rr; did you mean lora.r?" train "$dir/r.yaml"
recipe 'data: data/demo/shakespeare-dev.txt
lora: {r: four}'
check 'wrong type' 2 "$dir/r.yaml:5: lora.r: expected a whole number from 1 to 65536, found the string \"four\"" train "$dir/r.yaml"
recipe 'data: nowhere.jsonl'
check 'data that is not there' 2 "$dir/r.yaml:4: data.0.path: no such file or folder: nowhere.jsonl" train "$dir/r.yaml"
recipe 'data: [a'
check 'broken YAML' 2 "$dir/r.yaml:5: not valid YAML" train "$dir/r.yaml"
check 'no recipe there' 2 "nowhere.yaml" train nowhere.yaml
recipe 'data: data/demo/shakespeare-dev.txt'
check 'wrong argument' 2 "argument train.lrr=1: unknown key train.lrr; did you mean train.lr?" train "$dir/r.yaml" train.lrr=1
printf '{"model": "models/stories260K",\n "train": {"lr": true}}' > "$dir/r.json"
check 'wrong type in JSON' 2 "$dir/r.json:2: train.lr: expected a number of at least 0, or auto" train "$dir/r.json"
printf '{"text": "a b c"}\n{"text": 5}\n' > "$dir/rows.jsonl"
recipe "data: $dir/rows.jsonl"
check 'bad row' 3 "$dir/rows.jsonl:2: text: expected text, found a number" train "$dir/r.yaml"
printf '{"input_ids": [1, 2]}\n{"input_ids": [1, 512]}\n' > "$dir/rows.jsonl"
check 'id outside the vocabulary' 3 "$dir/rows.jsonl:2: input_ids[1]: 512 is outside the vocabulary of 512" train "$dir/r.yaml"
printf '{"input_ids": [1, 2], "labels": [-100, -100]}\n' > "$dir/rows.jsonl"
check 'row without a target' 3 "$dir/rows.jsonl:1: the row has no target" train "$dir/r.yaml"
recipe 'data: data/demo/shakespeare-dev.txt
eval: {name: dev, path: data/demo/shakespeare-dev.txt, limit: 2}'
check 'early stopping by a metric that is none' 2 'train.early_stop.metric: eval.dev.los is not measured; expected eval.dev.loss, or loss, accuracy, exact' plan "$dir/r.yaml" train.early_stop.metric=eval.dev.los
check 'early stopping by a metric of generated text' 2 'eval.dev.rouge_l is not measured' plan "$dir/r.yaml" train.early_stop.metric=eval.dev.rouge_l
check 'early stopping by bytes of a part' 2 'eval.dev.bits_per_byte is not measured' plan "$dir/r.yaml" train.early_stop.metric=eval.dev.bits_per_byte
# Patience 2: the best is the evaluation before step 1, or each is better than the one before by more than min_delta. A budget of 0 is kept by what stays.
while read -r steps settings; do
    rm -rf "$dir/early"
    # shellcheck disable=SC2086
    "$temper" train --model models/stories260K --data data/demo/shakespeare-dev.txt eval.0.name=dev eval.0.path=data/demo/shakespeare-dev.txt eval.0.limit=2 train.steps=6 train.batch=4 train.seq=64 \
        train.eval_every=1 train.warmup_steps=0 train.early_stop.patience=2 out="$dir/early" $settings > "$dir/stdout" 2> "$dir/stderr"
    if [ $? -eq 0 ] && grep -q "\"steps_done\": $steps," "$dir/early/run.json"; then
        echo "[       OK ] $steps steps with $settings"
    else
        echo "[  FAILED  ] $steps steps with $settings"
        grep steps_done "$dir/early/run.json"
        failures=1
    fi
done <<'END'
6 train.lr=3e-3 train.early_stop.metric=eval.dev.loss
2 train.lr=0 train.early_stop.metric=eval.dev.loss
2 train.lr=0 train.early_stop.metric=eval.dev.accuracy
2 train.lr=3e-3 train.early_stop.metric=eval.dev.loss train.early_stop.min_delta=100
6 train.lr=0 keep.monitor.on_breach=stop keep.monitor.probes.0.name=same keep.monitor.probes.0.path=data/demo/shakespeare-dev.txt keep.monitor.probes.0.limit=2 keep.monitor.probes.0.max_drop=0
END
exit $failures
