#!/bin/sh
# Adapters that are no plain LoRA, through the program: the recipes run, what they write is used, continued and
# looked at, and what cannot be merged says why.
. tests/cli/lib.sh
head -c 6000 data/demo/shakespeare-dev.txt > "$dir/data.txt"
short="train.steps=4 train.seq=64 train.batch=2 train.lr=3e-3 train.warmup_steps=0 threads=1 train.checkpoint_every=2"

# loss [--adapter DIR]: of the shipped model
loss() { "$temper" eval --model $model "$@" --data "$dir/data.txt" --json train.seq=64 2>"$dir/err" | sed 's/.*"loss": \([0-9.]*\).*/\1/'; }
text() { "$temper" generate --model $model "$@" --prompt "The king" --max-tokens 12 2>"$dir/err"; }
below() { [ -n "$1" ] && [ -n "$2" ] && awk -v a="$1" -v b="$2" 'BEGIN { exit !(a < b) }'; }

base=$(loss)
for kind in adapter prompt embedding; do
    method=method=$kind
    [ $kind = embedding ] && method="method=lora lora.target_modules=[embed_tokens,v_proj]"
    run train model=$model data="$dir/data.txt" $short $method out="$dir/$kind"
    result $status "training: $kind"
    mine=$(loss --adapter "$dir/$kind")
    [ $kind = prompt ] || below "$mine" "$base"
    result $? "it has learned: $kind"
    [ -n "$(text --adapter "$dir/$kind")" ]
    result $? "generating: $kind"
    init=$kind.init
    [ $kind = embedding ] && init=lora.init
    run train model=$model data="$dir/data.txt" $short ${method%% *} $init="$dir/$kind" train.lr=0 out="$dir/$kind-again"
    [ "$status" -eq 0 ] && [ "$(loss --adapter "$dir/$kind-again")" = "$mine" ]
    result $? "continuing: $kind"
    expect "inspecting: $kind" 0 'parameters' inspect "$dir/$kind"
    expect "verifying: $kind" 0 'equal' verify "$dir/$kind"
done
expect "a prompt is not merged" 3 'changes no weight' merge --model $model --adapter "$dir/prompt" --out "$dir/no"
expect "layers are not merged" 3 'no place' merge --model $model --adapter "$dir/adapter" --out "$dir/no"
expect "LoRA on the embedding is merged" 0 'head has weights of its own' merge --model $model --adapter "$dir/embedding" --out "$dir/merged"

# The recipes, shortened.
for recipe in adapter prompt kl; do
    run train recipes/$recipe.yaml train.steps=2 train.batch=2 eval.0.limit=2 out="$dir/recipe-$recipe"
    result $status "recipes/$recipe.yaml"
done

# Registers: each helps its own text, and none of them is the base.
run train recipes/registers.yaml train.steps=40 train.batch=8 train.warmup_steps=2 train.eval_every=40 lora.router=true \
    eval.0.limit=6 eval.1.limit=6 eval.2.limit=6 eval.3.limit=6 eval.4.limit=6 eval.5.limit=6 out="$dir/bank"
result $status "recipes/registers.yaml"
at_end() { tail -1 "$dir/bank/metrics.jsonl" | sed "s/.*\"$1\": {\"loss\": \([0-9.]*\).*/\1/"; }
at_start() { grep '"step": 0' "$dir/bank/metrics.jsonl" | sed "s/.*\"$1\": {\"loss\": \([0-9.]*\).*/\1/"; }
for name in pushkin shakespeare; do
    other=shakespeare
    [ $name = shakespeare ] && other=pushkin
    below "$(at_end $name)" "$(at_start $name)" && below "$(at_end $name)" "$(at_end $name-as-$other)"
    result $? "register $name helps $name, $other helps it less"
    [ "$(at_end $name-off)" = "$(at_start $name-off)" ]
    result $? "all gates at 0: the base's loss on $name"
done
[ "$(text --adapter "$dir/bank")" = "$(text)" ]
result $? "no gate: the base's text"
[ "$(text --adapter "$dir/bank" --register shakespeare=1)" != "$(text)" ]
result $? "a gate changes the text"
[ "$(text --adapter "$dir/bank" --register shakespeare=1)" = "$(text --adapter "$dir/bank/shakespeare")" ]
result $? "a register alone is a PEFT adapter"
first=$("$temper" generate --model $model --adapter "$dir/bank" --prompt "<|register shakespeare=1|>The king" --max-tokens 12 2>"$dir/err")
[ "$first" != "" ] && [ "$first" != "$(text)" ]
result $? "a tag in the prompt"
expect "the router" 0 '.' generate --model $model --adapter "$dir/bank" --prompt "The king" --max-tokens 3 --register auto
expect "an unknown register" 2 "no register 'loud'" generate --model $model --adapter "$dir/bank" --register loud=1
expect "no bank" 2 "no register|is no bank|no router" generate --model $model --adapter "$dir/prompt" --register loud=1
expect "inspecting a bank" 0 'registers   pushkin shakespeare gsm8k' inspect "$dir/bank"
expect "merging a bank says how" 3 'merge one of its registers' merge --model $model --adapter "$dir/bank" --out "$dir/no"
expect "merging one register at a gate" 0 'tensors changed' merge --model $model --adapter "$dir/bank/pushkin:-0.5" --out "$dir/half"
# What a recipe says and nothing would come of.
short="train --model $model --data data/demo/shakespeare-dev.txt train.steps=1 train.batch=1 train.seq=16"
expect "a pattern of no module" 2 "lora.rank_pattern: 'q_prj' matches no module that is adapted" $short 'lora.rank_pattern={q_prj: 8}' out="$dir/pattern"
expect "patterns of some modules" 0 'pattern' $short 'lora.rank_pattern={q_proj: 8}' 'lora.alpha_pattern={"layers.[01].mlp.*": 3}' out="$dir/pattern"
expect "a rank beside an adapter that has its own" 0 'lora.r: 64 is not used: the adapter that lora.init continues has 16' $short lora.init="$dir/pattern" lora.r=64 out="$dir/on"
expect "method none trains nothing, whatever steps say" 0 'none' $short method=none train.steps=3 out="$dir/none"
exit $code
