#!/bin/sh
# temper eval: every metric by name, items, and the recipe that scores answers while it trains.
. tests/cli/lib.sh
gsm='eval.0.columns={prompt: question, completion: answer}'
expect "loss and bits a byte" 0 '^bits a byte +[0-9]' eval --model $model --data data/demo/shakespeare-dev.txt train.seq=128
expect "bits_per_byte is named" 0 '"bits_per_byte": [0-9.]+' eval --model $model --data data/gsm8k-dev.jsonl --metric bits_per_byte --json "$gsm"
for m in extracted exact_match rouge_l sari; do
    expect "$m" 0 "^$m +[0-9.]+" eval --model $model --data data/gsm8k-dev.jsonl --metric $m --items "$dir/$m" "$gsm" eval.0.max_tokens=8 eval.0.limit=3
    [ "$(grep -c '"prediction": ' "$dir/$m")" -eq 3 ]
    result $? "three items of $m"
done
printf '%s\n' '{"q": "Once upon a", "options": ["time", "zzz"], "label": 0}' '{"q": "The sun is", "options": ["xq", "bright"], "label": "B"}' > "$dir/choice.jsonl"
expect "choices" 0 '"acc": [01].*"acc_norm": [01]' eval --model $model --data "$dir/choice.jsonl" --metric choice --json --items "$dir/items" 'eval.0.columns={prompt: q, choices: options, answer: label}'
grep -q '"log_likelihood": \[-[0-9.]*, -[0-9.]*\]' "$dir/items"
result $? "items have the likelihoods"
printf '%s\n' '{"scene": "cat: happy", "text": "The cat is happy."}' > "$dir/bridge.jsonl"
expect "a round trip" 0 '^loss to scene +[0-9.]+' eval --model $model --data "$dir/bridge.jsonl" --metric round_trip eval.0.max_tokens=8
expect "an unknown metric" 2 'did you mean rouge_l' eval --model $model --data data/gsm8k-dev.jsonl --metric rouge
expect "choices without choices" 3 'choices' eval --model $model --data data/gsm8k-dev.jsonl --metric choice "$gsm"
expect "items where they cannot be written" 1 'none/.x' eval --model $model --data "$dir/bridge.jsonl" --items "$dir/none/x"
expect "the recipe of GSM8K" 0 'gsm8k' train recipes/gsm8k.yaml train.steps=2 eval.0.limit=2 eval.0.max_tokens=8 train.seq=256 out="$dir/gsm8k"
grep -q '"eval": {"dev": {.*"extracted": 0, "answered": 0}' "$dir/gsm8k/metrics.jsonl"
result $? "its answers are scored while it trains"
grep -q 'answers right' "$dir/gsm8k/report.html"
result $? "and drawn"
# A table of 48 positions: texts end with it, also those that may be longer.
mkdir "$dir/gpt2" && cp $model/tokenizer*.json "$dir/gpt2/"
echo '{"model_type": "gpt2", "vocab_size": 512, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 48}' > "$dir/gpt2/config.json"
echo '{"prompt": "Once upon a time there was a little girl who", "completion": " slept."}' > "$dir/one.jsonl"
expect "answers end with a table of positions" 0 'runs|table' train model="$dir/gpt2" init=random method=full data="$dir/one.jsonl" eval.0.name=one eval.0.path="$dir/one.jsonl" \
    eval.0.metric=exact_match eval.0.max_tokens=100 train.steps=1 train.seq=40 out="$dir/table"
expect "a model that starts at random" 2 'init: a model that starts at random has no weights' eval --model $model --data "$dir/one.jsonl" init=random
expect "help" 0 'example: ' eval --help
exit $code
