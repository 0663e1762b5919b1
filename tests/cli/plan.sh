#!/bin/sh
# temper plan: for this machine, for GPUs that are not here, and what would fit.
. tests/cli/lib.sh
export TEMPER_CALIBRATION="$dir/none.json"
big=tests/data/configs/qwen2.5-7b

expect "a folder with config.json alone is enough" 0 'taken to be BF16' plan --model "$big" method=lora train.seq=512 train.batch=1 --gpu h200
expect "the plan by kind and by layer" 0 'weights +[0-9]+ .* [0-9]+$' plan --model "$big" train.seq=512 --gpu "RTX PRO 6000"
expect "a row for every card" 0 'RTX 5090 .* fits' plan --model $model train.seq=128
expect "names of cards: short" 0 '^RTX 4090: bf16' plan --model $model train.seq=128 --gpu 4090
expect "names of cards: any case" 0 '^RTX 4090: bf16' plan --model $model train.seq=128 --gpu "RTX 4090"
expect "a card without bf16" 0 '^T4: f16' plan --model $model train.seq=128 --gpu t4
expect "an unknown card lists the known" 2 "found 'z80', expected one of: .*H200" plan --model $model train.seq=128 --gpu z80
expect "a recipe for a GPU, planned where there is none" 0 '^RTX 4090: bf16' plan --model $model train.seq=128 device=cuda:1 --gpu 4090
expect "--gpu without a name" 2 'a value is missing' plan --model $model --gpu
expect "--tokens must be a number" 2 'tokens' plan --model $model --tokens many
expect "--tokens as numbers are written" 0 '"tokens": 1000000000[,.]' plan --model $model train.seq=128 --tokens 1e9 --json
expect "--tokens must be whole" 2 "found '1e-3'" plan --model $model --tokens 1e-3
expect "no rates, no time" 0 'not estimated' plan --model $model train.seq=128

# What does not fit names what would; that fits then.
expect "all weights of 7B on a 24 GB card" 4 'would fit: method: lora' plan --model "$big" method=full train.seq=2048 --gpu 3090
expect "... with LoRA it does" 0 'peak' plan --model "$big" method=lora train.seq=2048 --gpu 3090
expect "14B does not fit there at all" 4 'largest part is weights' plan --model tests/data/configs/qwen2.5-14b method=lora --gpu 3090
expect "micro-batches that are too large" 4 'would fit: train.micro_tokens: [0-9]+ \(.*train.recompute: auto' plan --model "$big" method=lora train.seq=1024 train.batch=64 train.micro_tokens=16384 train.recompute=none --gpu 3090
micro=$(sed -n 's/.*would fit: train.micro_tokens: \([0-9]*\).*/\1/p' "$dir/err")
expect "... fit as advised" 0 "micro-batches of $micro tokens, no recomputation" plan --model "$big" method=lora train.seq=1024 train.batch=64 train.micro_tokens="$micro" train.recompute=none --gpu 3090
expect "... or with blocks computed again" 0 'of 28 blocks not kept' plan --model "$big" method=lora train.seq=1024 train.batch=64 train.micro_tokens=16384 --gpu 3090
long="--model tests/data/configs/qwen2.5-14b train.seq=4096 --gpu 5090"
expect "long examples: activations in host memory, and how much" 0 'host memory +[0-9]{6}' plan $long
expect "... unless that is ruled out" 4 'would fit: train.offload: activations' plan $long train.offload=none
expect "... or asked for" 0 'host memory +[0-9]{6}' plan $long train.offload=activations
TEMPER_MEMORY_LIMIT=1000000 expect "this machine without memory" 4 'bytes|KiB|MiB' plan --model $model train.seq=128
expect "JSON" 0 '"reserve": "estimated", .*"tokens": 1000000.*"layers": \[\{' plan --model "$big" train.seq=512 --gpu l40s --tokens 1000000 --json
expect "JSON of what would fit" 4 '"instead": \[\{"set": \{"method": "lora"\}, "peak_bytes": [0-9]+' plan --model "$big" method=full --gpu 4090 --json

# Values that are allowed one by one and have no product: a step of them is more than any micro-batch holds.
huge="train.batch=1000000000 train.accumulate=1000000 train.seq=64 data=data/demo/shakespeare-dev.txt"
expect "a step beyond all numbers" 0 'micro-batches of 2048 tokens' plan --model $model $huge
expect "... with a prompt before its examples" 0 'micro-batches of 2048 tokens' plan --model $model $huge method=prompt prompt.tokens=1900
expect "... or steps" 2 'train.steps: a run of 1e\+27 examples; at most 2147483648' plan --model $model $huge train.steps=1000000000000
expect "passes beyond all numbers" 2 'train.epochs: a run of [0-9.e+]+ examples; at most 2147483648' plan --model $model $huge train.epochs=1e12
expect "micro-batches beyond the longest example that can be asked for" 2 'train.micro_tokens: expected a whole number from 1 to 16777216, or auto' plan --model $model train.micro_tokens=16777217
expect "more blocks computed again than there are" 0 'activations of 5 of 5 blocks' plan --model $model train.recompute=partial train.recompute_layers=9223372036854775807

# What comes before the training.
old="keep.ewc.path=data/demo/stories-old.jsonl keep.ewc.lambda=1"
expect "importances: time unknown here, memory known" 0 'importances of old data .keep.ewc. .* for [0-9]+ tokens, [0-9]+ bytes' plan --model $model train.seq=128 $old
expect "... and in JSON" 0 '"run_peak_bytes": [0-9]+, "before": \[\{"phase": "importances", "peak_bytes": [0-9]+, "tokens": [0-9]+' plan --model $model train.seq=128 $old --json
expect "a file of importances is nothing to wait for" 0 'peak' plan --model $model train.seq=128 keep.ewc.lambda=1 keep.ewc.importances=$model/config.json
! grep -q 'before the training' "$dir/out"
result $? "... and has no line"

# The page of the docs is what the planner says today.
if [ -x "$(dirname "$temper")/tools/what_fits" ]; then
    TEMPER_CALIBRATION="$dir/none.json" "$(dirname "$temper")/tools/what_fits" >"$dir/out" 2>"$dir/err"
    cmp "$dir/out" docs/what-fits.md >>"$dir/err" 2>&1
    result $? "docs/what-fits.md is current"
fi
exit $code
