#!/bin/sh
# temper init: what it writes is a recipe that runs. temper bench: rates above nothing.
. tests/cli/lib.sh
head -c 4000 data/demo/shakespeare-dev.txt > "$dir/data file.txt"
expect "a recipe is written" 0 'temper.yaml$' init --model $model --data "$dir/data file.txt" --out "$dir/temper.yaml"
grep -q '^method: lora ' "$dir/temper.yaml" && grep -q '^  seq: 512 ' "$dir/temper.yaml" && grep -q '^# It has [0-9]* optimiser steps' "$dir/temper.yaml"
result $? "with the model's length, and a comment to every key"
expect "a file that is there stays" 2 'exists already' init --model $model --out "$dir/temper.yaml"
expect "it can be planned" 0 'peak' plan "$dir/temper.yaml"
expect "it can be trained" 0 'run$' train "$dir/temper.yaml" train.steps=2 out="$dir/run"
expect "nothing given: what is to be filled in" 0 '^# Still to be filled in: model, data' init --out -
export TEMPER_MEMORY_LIMIT=1000000
expect "a machine too small" 4 'more than there is' init --model $model --out -
export TEMPER_MEMORY_LIMIT=
expect "no such model" 3 "none/config.json" init --model "$dir/none" --out -
expect "an unknown argument" 2 '--modle' init --modle x
expect "help" 0 'example: ' init --help

expect "bench: a table" 0 'product 1024.3, forward +[0-9]+\.[0-9] GFLOP/s' bench --threads 1 --tokenizer $model --text "$dir/data file.txt"
run bench --json
grep -qE '^\{"device": .*"limit_gflops": [0-9]*[1-9]' "$dir/out" && ! grep -q tokenizer "$dir/out"
result $? "bench: JSON"
expect "bench: a tokenizer needs a text" 2 'go together' bench --tokenizer $model
expect "bench: what was measured is kept" 0 'kept for plan and train' bench --calibrate
expect "bench: no such text" 3 'none' bench --tokenizer $model --text "$dir/none"
expect "bench: help" 0 'example: ' bench --help
exit $code
