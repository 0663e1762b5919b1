#!/bin/sh
# Every format and container through the program: what inspect shows, training on each, the recipes, the cache.
. tests/cli/lib.sh
small="train.steps=2 train.batch=2 train.seq=128 lora.r=2 lora.target_modules=[q_proj] train.warmup_steps=0"

printf '%s\n' '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}' \
    '{"messages": [{"role": "human", "content": "so"}, {"role": "bot", "content": "да"}]}' > "$dir/messages.jsonl"
printf '%s\n' '{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}' > "$dir/sharegpt.jsonl"
printf '%s\n' '[{"instruction": "Say", "input": "x", "output": "y", "history": [["q", "a"]]},' '{"instruction": "Go", "output": "gone"}]' > "$dir/alpaca.json"
printf 'prompt;completion\r\n"a; ""b""\r\nc";d\r\ne;f\r\n' > "$dir/completion.csv"
printf '%s\n' '{"scene": "dog; runs", "text": "A dog runs."}' > "$dir/bridge.jsonl"
printf '%s\n' '{"input_ids": [5, 6, 7, 8], "labels": [-100, 6, -100, 8]}' > "$dir/tokens.jsonl"
printf '%s\n' '{"text": "A long story about a dog."}' '{"text": "And a cat."}' > "$dir/text.jsonl"
for f in messages.jsonl sharegpt.jsonl alpaca.json completion.csv bridge.jsonl tokens.jsonl text.jsonl; do
    template=
    case $f in messages*|sharegpt*) template=data.0.template=chatml ;; esac
    run train model=$model data.0.path="$dir/$f" $template $small out="$dir/run-$f"
    [ "$status" -eq 0 ] && [ -s "$dir/run-$f/adapter_model.safetensors" ]
    result $? "train on ${f%.*}"
    gzip -k "$dir/$f"
    run train model=$model data.0.path="$dir/$f.gz" $template $small out="$dir/run-$f.gz"
    [ "$status" -eq 0 ] && cmp -s "$dir/run-$f/adapter_model.safetensors" "$dir/run-$f.gz/adapter_model.safetensors"
    result $? "the same from ${f}.gz, to the byte"
done
run train model=$model data.0.path=tests/data/parquet/zstd-2.parquet data.0.format=tokens $small out="$dir/run-parquet"
grep -q 'zstd-2.parquet:[0-9]*: ' "$dir/err" && [ "$status" -eq 3 ]
result $? "a bad row of a Parquet file is named by its number"

expect "a dialogue: the assistant's words are learned" 0 '^rows        2, examples 2' inspect "$dir/messages.jsonl" --model $model --batch 1 data.0.template=chatml
grep -A9 '^example 0' "$dir/out" | tail -n +2 | tr -d '\n' | grep -q '{h}{i}.*\[y\]\[o\]'
result $? "... and the user's are not"
expect "a dialogue without a template" 2 'template' inspect "$dir/messages.jsonl" --model $model --batch 1
expect "template: none for a dialogue" 2 'template' inspect "$dir/messages.jsonl" --model $model --batch 1 data.0.template=none
expect "unknown rows: what was found, what was expected" 3 'found the keys: question, answer; expected tokens' inspect data/gsm8k.jsonl --model $model
mkdir "$dir/empty"
expect "a folder with nothing in it" 3 'no data in this folder' train model=$model data="$dir/empty" $small out="$dir/none"
mkdir "$dir/folder" && cp "$dir/text.jsonl" "$dir/folder/b.jsonl" && echo "One more." > "$dir/folder/a.txt"
expect "a folder of files" 0 '^rows        3, examples 1' inspect "$dir/folder" --model $model
expect "a pattern" 0 '^rows        2, examples 1' inspect "$dir/folder/*.jsonl" --model $model

# The cache: written, used, never in the way of the result; threads neither.
run train model=$model data=data/demo/shakespeare-dev.txt $small cache="$dir/cache" threads=1 out="$dir/c1"
grep -q '"cache": "written"' "$dir/c1/run.json"
result $? "the token cache is written"
run train model=$model data=data/demo/shakespeare-dev.txt $small cache="$dir/cache" threads=2 out="$dir/c2"
grep -q '"cache": "used"' "$dir/c2/run.json" && cmp -s "$dir/c1/adapter_model.safetensors" "$dir/c2/adapter_model.safetensors"
result $? "... and used, with the same result"
run train model=$model data=data/demo/shakespeare-dev.txt $small cache=none out="$dir/c3"
grep -q '"cache": "none"' "$dir/c3/run.json" && cmp -s "$dir/c1/adapter_model.safetensors" "$dir/c3/adapter_model.safetensors"
result $? "... or not there"

# Leaks and duplicates
head -5 data/gsm8k.jsonl > "$dir/dev.jsonl"; head -20 data/gsm8k.jsonl > "$dir/twice.jsonl"; head -3 data/gsm8k.jsonl >> "$dir/twice.jsonl"
qa='columns: {prompt: question, completion: answer}'
expect "evaluation rows in the training data are warned of" 0 "evaluation 'dev': 5 of 5 examples are in the training data .5 with all their words.*dev.jsonl:1 and .*twice.jsonl:1" \
    train model=$model "data=[{path: $dir/twice.jsonl, $qa}]" "eval=[{name: dev, path: $dir/dev.jsonl, $qa}]" $small train.seq=1024 out="$dir/leak"
grep -q '3 of 23 examples repeat another one to the token' "$dir/out" "$dir/err"
result $? "... and rows that come twice"
expect "dedup leaves them out" 0 '^duplicates  3 examples left out' inspect "$dir/twice.jsonl" --model $model data.0.dedup=true "data.0.columns={prompt: question, completion: answer}"

for recipe in style documents instruct-ru tools completion; do
    run train recipes/$recipe.yaml train.steps=2 train.decay_steps=1 train.batch=1 out="$dir/recipe-$recipe"
    [ "$status" -eq 0 ] && grep -q '"status": "done"' "$dir/recipe-$recipe/run.json"
    result $? "recipes/$recipe.yaml runs"
done
run train recipes/average.yaml train.steps=10 train.batch=1 out="$dir/recipe-average"
[ "$status" -eq 0 ] && grep -q '"r": 8' "$dir/recipe-average/adapter_config.json"
result $? "recipes/average.yaml runs"
exit $code
