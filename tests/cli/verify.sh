#!/bin/sh
# temper verify and report, on a run of some steps: equal when nothing was touched; what was touched is named.
. tests/cli/lib.sh
head -c 3000 data/demo/shakespeare-dev.txt > "$dir/data.txt"
cp -r $model "$dir/model"
head -c 300 data/demo/shakespeare-dev.txt > "$dir/held.txt"
head -c 200 data/demo/shakespeare-dev.txt > "$dir/old.txt"
run train model="$dir/model" data="$dir/data.txt" train.steps=4 train.seq=32 train.batch=2 lora.r=2 lora.use_dora=true train.lr=1e-3 threads=1 out="$dir/run" \
    eval="$dir/held.txt" keep.monitor.probes.0.path="$dir/old.txt"
result $status "a run to verify"
expect "an untouched run is equal" 0 'run: equal to the bit over 4 steps' verify "$dir/run"
grep -q '^products on .*: 10 of 10 keep the bits of a row' "$dir/out"
result $? "the run's products keep a row's bits"
[ -z "$(find "$dir" -name '.*.verify-*')" ]
result $? "nothing is left beside the run"

# flip FILE OFFSET: one bit of the byte there
flip()
{
    rm -rf "$dir/bad"
    cp -r "$dir/run" "$dir/bad"
    byte=$(od -An -tu1 -j "$2" -N 1 "$dir/bad/$1" | tr -d ' ')
    printf "\\$(printf %o $((byte ^ 1)))" | dd of="$dir/bad/$1" bs=1 seek="$2" conv=notrunc 2>/dev/null
}
# The trail's records: a first line, then 8 bytes a number, 1 + tensors of them a step.
head=$(head -n 1 "$dir/run/trail.bin" | wc -c)
tensors=$(head -n 1 "$dir/run/trail.bin" | tr ',' '\n' | grep -c model.layers)
third=$(head -n 1 "$dir/run/trail.bin" | tr ',' '\n' | grep -o 'model\.layers[^"]*' | sed -n 3p)
flip trail.bin $((head + 8 * (1 + tensors) + 8 * 3 + 5))
expect "a bit of the trail: step and tensor" 1 "bad/trail.bin: first difference after step 2 in tensor $third\$" verify "$dir/bad"
flip trail.bin $((head + 8 * 2 * (1 + tensors)))
expect "a bit of a step's number" 1 'bad/trail.bin: record 2 is of step 2' verify "$dir/bad"
flip trail.bin 3
expect "a bit of the trail's first line" 1 'bad/trail.bin' verify "$dir/bad"
last=$(wc -c < "$dir/run/adapter_model.safetensors")
flip adapter_model.safetensors $((last - 1))
expect "a bit of the adapter: the tensor" 1 'bad/adapter_model.safetensors: 1 of [0-9]* tensors differ, the first is base_model.model.model.layers.4' verify "$dir/bad"
flip adapter_model.safetensors 2
expect "a damaged header" 1 'bad/adapter_model.safetensors' verify "$dir/bad"
flip adapter_config.json 40
expect "a bit of the adapter's config" 1 'bad/adapter_config.json:[0-9]+: first difference' verify "$dir/bad"
rm -rf "$dir/bad" && cp -r "$dir/run" "$dir/bad" && sed -i '3s/"loss": ./"loss": 9/' "$dir/bad/metrics.jsonl"
expect "a changed row: its line" 1 'bad/metrics.jsonl:3: first difference' verify "$dir/bad"
rm "$dir/bad/metrics.jsonl"
expect "a missing file" 1 'bad/metrics.jsonl' verify "$dir/bad"
cp "$dir/data.txt" "$dir/saved" && printf x >> "$dir/data.txt"
expect "changed data are said" 1 'data.txt: the data has changed since the run' verify "$dir/run"
rm "$dir/data.txt"
expect "missing data are said" 1 'data of the run cannot be read' verify "$dir/run"
cp "$dir/saved" "$dir/data.txt"
for f in held:evaluation old:probe; do
    cp "$dir/${f%:*}.txt" "$dir/saved" && printf x >> "$dir/${f%:*}.txt"
    expect "changed ${f#*:} data are said" 1 "${f%:*}.txt: the ${f#*:} data has changed since the run" verify "$dir/run"
    cp "$dir/saved" "$dir/${f%:*}.txt"
done
sed -i 's/"rms_norm_eps": .*,/"rms_norm_eps": 0.001,/' "$dir/model/config.json"
expect "a changed model is said" 1 'model: the model has changed since the run' verify "$dir/run"
sed -i 's/"status": "done"/"status": "running"/' "$dir/bad/run.json"
expect "an unfinished run" 3 'not finished' verify "$dir/bad"
echo '{"status": "done"}' > "$dir/bad/run.json"
expect "a run.json of something else" 3 'status and recipe' verify "$dir/bad"
expect "no run" 3 'none' verify "$dir/none"
expect "no argument" 2 'missing' verify
expect "help" 0 'example: ' verify --help

run report "$dir/run"
[ "$status" -eq 0 ] && [ "$(cat "$dir/out")" = "$dir/run/report.html" ] && grep -q '</html>' "$dir/run/report.html"
result $? "report writes the page and prints its path"
expect "report of no run" 3 'none' report "$dir/none"
expect "report without a folder" 2 'missing' report
exit $code
