#!/bin/sh
# Budgets of old skills through the program: what a breach leaves behind, and what is said of it.
. tests/cli/lib.sh
probe="keep.monitor.probes.0.name=old keep.monitor.probes.0.path=data/demo/stories-probe.jsonl keep.monitor.probes.0.limit=3"
short="model=$model data=data/demo/shakespeare-dev.txt train.steps=6 train.seq=64 train.batch=4 train.warmup_steps=0 train.lr=5e-3 train.checkpoint_every=0 threads=1
    eval.0.name=new eval.0.path=data/demo/shakespeare-dev.txt eval.0.limit=3"
# shellcheck disable=SC2086
value() { grep -o "\"name\": \"$2\".*" "$dir/$1/run.json" | grep -o "\"$3\": [0-9.]*" | head -1; }
# shellcheck disable=SC2086
expect "a breach goes on" 0 'probe old is .* worse than at the start at step .*, budget 1.00 %: going on' train $short $probe keep.monitor.probes.0.max_drop=1% out="$dir/warn"
# shellcheck disable=SC2086
expect "... or ends the run" 5 '^temper: probe old is .*: stopped$' train $short $probe keep.monitor.probes.0.max_drop=1% keep.monitor.on_breach=stop keep.average.kind=swa keep.average.every=2 out="$dir/stop"
# shellcheck disable=SC2086
expect "... or takes it back" 5 '^temper: probe old is .*: rolled back' train $short $probe keep.monitor.probes.0.max_drop=1% keep.monitor.on_breach=rollback out="$dir/back"
[ "$(value back new first)" != "" ] && [ "$(value back new first | cut -d' ' -f2)" = "$(value back new last | cut -d' ' -f2)" ]
result $? "what was taken back to the start is worth what the start was"
[ "$(value stop new first | cut -d' ' -f2)" != "$(value stop new last | cut -d' ' -f2)" ]
result $? "what was stopped is worth what it learned"
# shellcheck disable=SC2086
run sweep train.lr=5e-3,1e-4 $(echo "$short" | sed 's/train.lr=[^ ]*//') $probe keep.monitor.probes.0.max_drop=1% keep.monitor.on_breach=rollback --out "$dir/sweep"
[ "$status" -eq 0 ] && [ "$(tail -1 "$dir/out")" = "$dir/sweep/lr-1e-4" ]
result $? "a sweep does not choose what was rolled back for weights that were thrown away"
# shellcheck disable=SC2086
expect "a gate without a budget is said" 0 'on_breach: rollback, but no probe has a budget' train $short $probe keep.monitor.on_breach=rollback out="$dir/open"
# Settings that nothing switches on.
while read -r set key; do
    # shellcheck disable=SC2086
    expect "$set alone is said" 0 "is given, but not $key: without it nothing" train $short train.steps=1 "$set" out="$dir/$key"
done <<EOF
keep.replay.fraction=0.1 keep.replay.path
keep.generate.fraction=0.1 keep.generate.samples
keep.ewc.path=data/demo/stories-old.jsonl keep.ewc.lambda
keep.kl.on=[task] keep.kl.beta
keep.der.beta=1 keep.der.alpha
keep.average.every=2 keep.average.kind
keep.orthogonal.lambda=1 keep.orthogonal.previous
keep.monitor.on_breach=stop keep.monitor.probes
EOF
# shellcheck disable=SC2086
run train $short train.steps=1 keep.replay.path=data/demo/stories-old.jsonl keep.ewc.path=data/demo/stories-old.jsonl keep.ewc.lambda=0 keep.average.kind=none keep.average.every=2 out="$dir/off"
[ "$status" -eq 0 ] && ! grep -q 'is given' "$dir/err"
result $? "what is switched on, or off, is not"
exit $code
