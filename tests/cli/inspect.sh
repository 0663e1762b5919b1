#!/bin/sh
# temper inspect: of each kind of thing, what its files say; tokens never split a character.
. tests/cli/lib.sh
expect "a model: family, sizes, targets" 0 '^ +5 x q_proj \[64, 64\]$' inspect $model
grep -q '^parameters  260 thousand (260032) in 47 tensors' "$dir/out" && grep -q '^head        tied' "$dir/out" && grep -q 'BOS <s> (1)' "$dir/out"
result $? "a model: parameters, head, tokenizer"

printf '%s\n' '{"prompt": "Кто? 🦜", "completion": " Я\n你"}' > "$dir/data.jsonl"
expect "data: rows, tokens, targets" 0 '^rows        1, examples 1$' inspect "$dir/data.jsonl" --model $model --batch 5
line=$(grep -A3 '^example 0' "$dir/out" | tail -n +2 | tr -d '\n')
[ "$line" = '{<s>}{К}{т}{о}{?}{ }{🦜}[ ][ ][Я][\n][你][</s>]' ]
result $? "the prompt is masked, the completion trained on, characters are whole"
iconv -f UTF-8 -t UTF-8 "$dir/out" >/dev/null 2>&1
result $? "the output is UTF-8"
printf '%s\n' '{"input_ids": [5, 6, 7], "labels": [-100, 6, -100]}' > "$dir/tokens.jsonl"
expect "token rows need no model" 0 '^\{5\}\[6\]\{7\}$' inspect "$dir/tokens.jsonl" --batch 1 data.0.format=tokens
expect "data without a model: how it begins" 0 '^begins +\{"prompt": "Кто' inspect "$dir/data.jsonl"
expect "a recipe" 0 '^data +data/demo/shakespeare-train.txt$' inspect recipes/demo.yaml
expect "--batch without a tokenizer" 2 'needs --model' inspect "$dir/data.jsonl" --batch 1
echo '{' >> "$dir/tokens.jsonl"
expect "a damaged row" 3 'tokens.jsonl:2' inspect "$dir/tokens.jsonl" --batch 1 data.0.format=tokens

head -c 2000 data/demo/shakespeare-dev.txt > "$dir/data.txt"
run train model=$model data="$dir/data.txt" train.steps=2 train.seq=32 train.batch=2 lora.r=2 lora.target_modules=[q_proj,lm_head] train.lr=1e-3 train.warmup_steps=0 out="$dir/run"
expect "a run, and the adapter in it" 0 '^steps       2 of 2' inspect "$dir/run"
grep -q '^method      LoRA, r 2, alpha 32' "$dir/out" && grep -qE '^ +q_proj +lm_head|^ +lm_head +q_proj' "$dir/out" && grep -qE '^    - +[0-9.]+ +-$|^    - +- +[0-9.]+$' "$dir/out"
result $? "an adapter: norms by layer and module"
expect "--batch of a folder" 2 'is a folder' inspect "$dir/run" --batch 1
expect "a folder of something else" 3 'found none of' inspect src
expect "a file of tensors" 0 'F32   .512, 64.  model.embed_tokens.weight' inspect $model/model.safetensors
head -c 100000 $model/model.safetensors > "$dir/cut.safetensors"
expect "one that is cut short" 3 'cut.safetensors: tensor .*cut short' inspect "$dir/cut.safetensors"
cp -r $model "$dir/damaged" && cp "$dir/cut.safetensors" "$dir/damaged/model.safetensors"
expect "a model whose weights are damaged" 3 'damaged/model.safetensors' inspect "$dir/damaged"
expect "nothing there" 3 'no such file' inspect "$dir/none"
expect "no path" 2 'path is missing' inspect
expect "an unknown option" 2 'bath' inspect $model --bath 1
expect "help" 0 'example: ' inspect --help
exit $code
