#!/bin/sh
# temper compare: a thing is equal to itself; what is known of merged and scaled models comes out.
. tests/cli/lib.sh
head -c 4000 data/demo/shakespeare-dev.txt > "$dir/data.txt"
for seed in 1 2; do
    run train model=$model data="$dir/data.txt" train.steps=3 train.seq=64 train.batch=2 lora.r=$((seed * 2)) train.seed=$seed train.lr=3e-3 train.warmup_steps=0 \
        eval.0.path="$dir/data.txt" eval.0.name=own threads=1 out="$dir/run$seed"
    result $status "a run, seed $seed"
done
run merge --model $model --adapter "$dir/run1" --out "$dir/merged"
cp -r "$dir/run1" "$dir/double"
rm "$dir/double/run.json"
sed -i 's/"lora_alpha": 32/"lora_alpha": 64/' "$dir/double/adapter_config.json"

expect "an adapter and itself" 0 '^  all .* 0   1.00000$' compare "$dir/run1" "$dir/run1" --data "$dir/data.txt" train.seq=64
grep -q 'tokens: 100.00 % agree' "$dir/out" && grep -q 'flips: 0 right in A and wrong in B, 0 the other way' "$dir/out" && grep -q 'mean KL(A || B) 0 nats' "$dir/out"
result $? "predicts what it predicts"
expect "twice the scale: relative distance 1, cosine 1" 0 '^  all .* 1   1.00000$' compare "$dir/run1" "$dir/double"
expect "two adapters" 0 '^  4 +[0-9.]+ +[0-9.]+ +[0-9.]+ +-?0\.[0-9]+$' compare "$dir/run1" "$dir/run2"
grep -q '^  own loss: ' "$dir/out" && grep -q 'steps_done 3' "$dir/out"
result $? "runs: results are shown"
expect "models, tensor by tensor" 0 '47 tensors, 12 of them equal' compare $model "$dir/merged"
expect "adapter and merged model predict the same" 0 'tokens: (100|99\.[0-9]*)(\.00)? % agree' compare "$dir/run1" "$dir/merged" --data "$dir/data.txt" train.seq=64
run compare $model "$dir/run1" "$dir/run2" --data "$dir/data.txt" train.seq=64 --json
[ "$status" -eq 0 ] && [ "$(grep -c '"path"' "$dir/out")" -eq 3 ] && [ "$(grep -c '"agreement": 0\.' "$dir/out")" -eq 2 ]
result $? "--json of three"
run compare "$dir/run1" "$dir/run2" --json
grep -q '"layers": \[{"layer": 0, "norm_a": ' "$dir/out" && grep -q '{"name": "model.layers.0.mlp.down_proj", ' "$dir/out"
result $? "--json has layers and tensors"
sed -i 's|"base_model_name_or_path": "[^"]*"|"base_model_name_or_path": "nowhere/at-all"|' "$dir/double/adapter_config.json"
expect "a base that is elsewhere" 2 'nowhere/at-all is no model here' compare "$dir/double" "$dir/double" --data "$dir/data.txt"
expect "--model says where" 0 '100.00 % agree' compare "$dir/double" "$dir/double" --model $model --data "$dir/data.txt" train.seq=64
expect "an adapter and a model need data" 2 'compared with --data' compare $model "$dir/double"
expect "no such folder" 3 'none' compare $model "$dir/none"
expect "one folder" 2 'two or more' compare $model
expect "an unknown option" 2 '--jsn' compare $model $model --jsn
expect "help" 0 'example: ' compare --help
exit $code
