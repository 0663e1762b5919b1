#!/bin/sh
# A run folder and the command that goes on with it: what may have changed since, and what may not.
. tests/cli/lib.sh
head -c 3000 data/demo/shakespeare-train.txt > "$dir/a.txt"
head -c 3000 data/demo/shakespeare-dev.txt > "$dir/dev.txt"
short="train model=$model data=$dir/a.txt eval.0.name=dev eval.0.path=$dir/dev.txt lora.r=4 train.steps=6 train.batch=2 train.seq=32 train.checkpoint_every=2"

# begun OUT ARGUMENTS: a run that died behind the checkpoint of step 4
begun()
{
    rm -rf "$1"
    run $short "out=$@"
    sed 's/"status": "done"/"status": "running"/' "$1/run.json" > "$dir/run.json" && mv "$dir/run.json" "$1/run.json"
    mv "$1/adapter_model.safetensors" "$dir/whole.safetensors"
}

begun "$dir/here"
expect "a run goes on" 0 'here' $short out="$dir/here"
cmp -s "$dir/here/adapter_model.safetensors" "$dir/whole.safetensors"
result $? "to the same bytes"
begun "$dir/here"
mv "$dir/here" "$dir/there"
expect "also where its folder was moved" 0 'there' $short out="$dir/there"
cmp -s "$dir/there/adapter_model.safetensors" "$dir/whole.safetensors"
result $? "to the same bytes there"
ln -s there "$dir/link"
expect "a finished run, by a link" 0 'finished already' $short out="$dir/link/"
begun "$dir/here"
printf 'more' >> "$dir/a.txt"
expect "not with other data" 2 "here holds another run: $dir/a.txt is not what it was when that run was begun; choose another out" $short out="$dir/here"
expect "nor are other data finished already" 2 "there holds another run: $dir/a.txt is not what it was" $short out="$dir/there"
head -c 3000 data/demo/shakespeare-train.txt > "$dir/a.txt"
rm "$dir/here/metrics.jsonl"
expect "a file of rows that is gone" 3 'here/metrics.jsonl: 0 bytes, and [0-9]+ when the checkpoint' $short out="$dir/here"
printf 'more' >> "$dir/dev.txt"
expect "not with another evaluation" 2 "$dir/dev.txt is not what it was" $short out="$dir/here"
head -c 3000 data/demo/shakespeare-dev.txt > "$dir/dev.txt"
expect "another recipe is named by its key" 2 'another run: eval.0.limit is 1, the run there has 0; choose' $short out="$dir/here" eval.0.limit=1
cp -r $model "$dir/model"
begun "$dir/own" model="$dir/model"
rm "$dir/model/model.safetensors" && cp $model/model.safetensors "$dir/model"
expect "the same weights, written again" 0 'own' $short model="$dir/model" out="$dir/own"
begun "$dir/own" model="$dir/model"
size=$(wc -c < $model/model.safetensors)
printf '\001\002' | dd of="$dir/model/model.safetensors" bs=1 seek=$((size - 2)) conv=notrunc 2>"$dir/err"
expect "not with other weights" 2 'own holds another run: the model \(weights or config.json of .*model\) is not what it was when' $short model="$dir/model" out="$dir/own"
cp $model/model.safetensors "$dir/model"
sed 's/"rms_norm_eps": 1e-0*5/"rms_norm_eps": 1e-04/' $model/config.json > "$dir/model/config.json"
expect "nor with another config.json" 2 'own holds another run: the model' $short model="$dir/model" out="$dir/own"
cp $model/config.json "$dir/model"
expect "but with the model of the start" 0 'own' $short model="$dir/model" out="$dir/own"
expect "a result does not go over its model" 2 'out: .*model/\. is the folder of the model' $short model="$dir/model" out="$dir/model/." method=full
cp -r "$dir/there" "$dir/first"
expect "nor over the adapter that it continues" 2 'first is the folder of the adapter that it starts from' $short lora.init="$dir/first" out="$dir/first"
exit $code
