#!/bin/sh
# temper merge: the merged model computes what the adapter computed, whatever the kind of adapter.
. tests/cli/lib.sh
head -c 6000 data/demo/shakespeare-dev.txt > "$dir/data.txt"

# adapter NAME key=value ...: trains one
adapter()
{
    name=$1
    shift
    run train model=$model data="$dir/data.txt" train.steps=6 train.seq=64 train.batch=2 lora.r=4 train.lr=3e-3 train.warmup_steps=0 threads=1 out="$dir/$name" "$@"
    result $status "training $name"
}
# loss of a model [with an adapter]
loss()
{
    "$temper" eval --model "$1" ${2:+--adapter "$2"} --data "$dir/data.txt" --json train.seq=64 2>"$dir/err" | sed 's/.*"loss": \([0-9.]*\).*/\1/'
}
# near A B: equal to five digits, and there
near() { [ -n "$1" ] && [ -n "$2" ] && awk -v a="$1" -v b="$2" 'BEGIN { d = a - b; exit !(d < 2e-5 && d > -2e-5) }'; }

base=$(loss $model)
for kind in lora: dora:lora.use_dora=true rslora:lora.use_rslora=true head:lora.modules_to_save=[lm_head] both:lora.target_modules=[q_proj,lm_head] average:keep.average.kind=ema; do
    name=${kind%%:*}
    adapter "$name" ${kind#*:}
    expect "merging $name" 0 'logits against the model with the adapter on.* RMS [0-9.]*e-0[5-9]|RMS 0 ' merge --model $model --adapter "$dir/$name" --out "$dir/m-$name"
    on=$(loss $model "$dir/$name")
    near "$on" "$(loss "$dir/m-$name")" && ! near "$on" "$base"
    result $? "the merged model has the adapter's loss: $name"
done
grep -q '"tie_word_embeddings": false' "$dir/m-head/config.json"
result $? "a head of its own unties the model"
grep -q '"tie_word_embeddings": true' "$dir/m-lora/config.json"
result $? "the head stays tied otherwise"

run merge --model $model --adapter "$dir/dora:0" --adapter "$dir/lora:0.0" --out "$dir/zero"
cmp -s $model/model.safetensors "$dir/zero/model.safetensors"
result $? "scale 0 gives the base's bytes"
for name in lora dora; do
    run merge --model $model --adapter "$dir/$name:1.0" --out "$dir/one-$name"
    cmp -s "$dir/m-$name/model.safetensors" "$dir/one-$name/model.safetensors"
    result $? "scale 1 gives the bytes of no scale: $name"
done
run merge --model $model --adapter "$dir/lora" --adapter "$dir/lora:-1" --out "$dir/none"
cmp -s $model/model.safetensors "$dir/none/model.safetensors"
result $? "an adapter and its opposite give the base's bytes"
run merge --model $model --adapter "$dir/lora:0.25" --adapter "$dir/lora:0.75" --out "$dir/whole"
near "$(loss "$dir/whole")" "$(loss "$dir/m-lora")"
result $? "two shares make the whole"
expect "a scaled adapter is held against its logits" 0 'RMS [0-9.]*e-0[5-9]' merge --model $model --adapter "$dir/lora:-0.5" --out "$dir/half"
expect "what cannot be held against logits is said" 0 'not compared: a scale other than 1' merge --model $model --adapter "$dir/dora:0.5" --out "$dir/half-dora"

expect "a folder in use" 2 'is not empty' merge --model $model --adapter "$dir/lora" --out "$dir/half"
expect "ties" 0 'logits against .*/lora alone, 32 tokens' merge --model $model --adapter "$dir/lora" --adapter "$dir/rslora:0.5" --how ties --density 0.3 --out "$dir/ties"
expect "ties, by count" 0 'tensors changed' merge --model $model --adapter "$dir/lora" --adapter "$dir/dora" --how ties --sign frequency --out "$dir/ties-dora"
expect "dare" 0 'logits against the base' merge --model $model --adapter "$dir/lora" --adapter "$dir/rslora" --how dare --density 0.5 --seed 3 --out "$dir/dare"
run merge --model $model --adapter "$dir/lora" --adapter "$dir/rslora" --how dare --density 0.5 --seed 3 --threads 1 --out "$dir/dare-again"
cmp -s "$dir/dare/model.safetensors" "$dir/dare-again/model.safetensors"
result $? "dare: the same seed, the same bytes"
expect "several are held against their sum" 0 'adapters on, added, 32 tokens.* RMS [0-9.]*e-0[5-9]' merge --model $model --adapter "$dir/lora:0.5" --adapter "$dir/rslora:-0.25" --out "$dir/sum"
expect "density without a use" 2 'are for --how ties' merge --model $model --adapter "$dir/lora" --density 0.3 --out "$dir/x"
expect "a density beyond 1" 2 'density' merge --model $model --adapter "$dir/lora" --how ties --density 1.5 --out "$dir/x"
expect "an unknown way" 2 "found 'mean'" merge --model $model --adapter "$dir/lora" --how mean --out "$dir/x"
expect "a bad scale" 2 'DIR:SCALE' merge --model $model --adapter "$dir/lora:1x" --out "$dir/x"
expect "no adapter there" 3 'none' merge --model $model --adapter "$dir/none-there" --out "$dir/x"
run train model=$model method=full data="$dir/data.txt" train.steps=4 train.seq=64 train.batch=2 train.lr=1e-3 train.warmup_steps=0 threads=1 out="$dir/full"
result $status "training all weights"
expect "between two models" 0 'tensors changed' merge --model $model --tuned "$dir/full:0.5" --how wise --out "$dir/wise"
run train model=$model method=full data="$dir/data.txt" train.steps=4 train.seq=64 train.batch=2 train.lr=1e-3 train.warmup_steps=0 keep.wise.scale=0.5 threads=1 out="$dir/run-wise"
near "$(loss "$dir/wise")" "$(loss "$dir/run-wise")" && ! near "$(loss "$dir/wise")" "$(loss "$dir/full")"
result $? "it is what a run with keep.wise.scale gives"
run merge --model $model --tuned "$dir/full" --out "$dir/tuned"
cmp -s "$dir/full/model.safetensors" "$dir/tuned/model.safetensors"
result $? "scale 1 gives the tuned model's bytes"
expect "a model and an adapter" 0 'logits against .*/lora alone' merge --model $model --tuned "$dir/full:0.5" --adapter "$dir/lora:0.5" --out "$dir/mixed"
expect "wise is between two" 2 'one --tuned or --adapter' merge --model $model --tuned "$dir/full" --adapter "$dir/lora" --how wise --out "$dir/x"
expect "wise is between" 2 'SCALE from 0 to 1' merge --model $model --tuned "$dir/full:1.5" --how wise --out "$dir/x"
expect "no model there" 3 'none-there' merge --model $model --tuned "$dir/none-there" --out "$dir/x"
expect "missing arguments" 2 'needed' merge --model $model --out "$dir/x"
cp -r "$dir/lora" "$dir/bad"
sed -i 's/layers\.4\.mlp\.down_proj/layers.9.mlp.down_proj/g' "$dir/bad/adapter_model.safetensors"
expect "a module that the base lacks" 3 'layers.9.mlp.down_proj' merge --model $model --adapter "$dir/bad" --out "$dir/x"
rm -rf "$dir/bad" && cp -r "$dir/lora" "$dir/bad"
sed -i 's/"r": 4/"r": 8/' "$dir/bad/adapter_config.json"
expect "a rank other than the config's" 3 'rank 4, adapter_config.json says 8' merge --model $model --adapter "$dir/bad" --out "$dir/x"
rm -rf "$dir/bad" && cp -r "$dir/lora" "$dir/bad"
sed -i 's/base_model.model.model.layers.4.mlp.up_proj.lora_A.weight/base_model.model.model.layers.4.mlp.up_proj.lora_C.weight/' "$dir/bad/adapter_model.safetensors"
expect "a key that is none of LoRA" 3 'lora_C' merge --model $model --adapter "$dir/bad" --out "$dir/x"
[ ! -e "$dir/x" ] && [ ! -e "$dir/x.partial" ]
result $? "a refused merge leaves nothing"
expect "help" 0 'example: ' merge --help
exit $code
