#!/bin/sh
# temper sequence: whole, killed and gone on with, twice the same bytes; every arm; and files that are wrong.
. tests/cli/lib.sh
head -c 4000 data/demo/shakespeare-train.txt > "$dir/a.txt"
head -c 4000 data/demo/pushkin-train.txt > "$dir/b.txt"
head -c 700 data/demo/shakespeare-dev.txt > "$dir/a-test.txt"
head -c 700 data/demo/pushkin-dev.txt > "$dir/b-test.txt"
head -c 1400 data/demo/shakespeare-dev.txt | tail -c 700 > "$dir/a-valid.txt"
head -c 1400 data/demo/pushkin-dev.txt | tail -c 700 > "$dir/b-valid.txt"

# file ARMS [MORE]: a sequence of two tasks
file()
{
    cat > "$dir/s.yaml" <<EOF
recipe:
  model: $model
  method: lora
  lora: {r: 2, dropout: 0}
  train: {steps: 3, batch: 2, seq: 32, lr: 1e-2, checkpoint_every: 0, eval_every: 1000}
tasks:
  - {name: a, train: $dir/a.txt, test: $dir/a-test.txt, valid: $dir/a-valid.txt}
  - {name: b, train: {path: $dir/b.txt, format: text}, test: {path: $dir/b-test.txt, metric: accuracy}, valid: {path: $dir/b-valid.txt, metric: accuracy}}
probes: [{name: old, path: data/demo/stories-probe.jsonl, limit: 2}]
orders: 2
$2
arms:
$1
EOF
}

# get EXPRESSION: of results.json, as jq would; with what is surely here
get() { grep -oE "$1" "$dir/runs/results.json"; }

file '  - {name: naive}
  - {name: joint, joint: true}
  - {name: frozen, frozen: true}' 'seeds: 2'
expect "a sequence" 0 '^naive +\*? ' sequence "$dir/s.yaml" --out "$dir/runs" threads=1
[ "$(get '"R": \[\[[-0-9.e, ]*\], \[[-0-9.e, ]*\], \[[-0-9.e, ]*\]\]' | wc -l)" -eq 5 ]
result $? "four chains and the frozen one have whole matrices"
[ "$(get '"R": \[\[[-0-9.e, ]*\], \[null, null\]' | wc -l)" -eq 2 ]
result $? "a joint arm has no row between"
[ -s "$dir/runs/report.html" ] && grep -q '</html>' "$dir/runs/report.html" && ! grep -qE '(src|href)=' "$dir/runs/report.html"
result $? "the page is there and asks nothing of the network"
cp "$dir/runs/report.html" "$dir/first.html" && rm "$dir/runs/report.html"
run report "$dir/runs"
[ "$status" -eq 0 ] && cmp -s "$dir/runs/report.html" "$dir/first.html"
result $? "temper report writes it again"
[ -s "$dir/runs/naive/order-2/seed-2/2-a/run.json" ] && [ -s "$dir/runs/naive/order-2/seed-2/1-b/merged/model.safetensors" ] && [ -s "$dir/runs/joint/seed-1/joint/eval.json" ]
result $? "every training is a run folder"
run eval --model $model --data "$dir/a-test.txt" --json train.seq=32
grep -q "$(grep -o '"a": [0-9.]*' "$dir/runs/start/eval.json" | cut -d' ' -f2)" "$dir/out"
result $? "the start's score is what temper eval says"
cp "$dir/runs/results.json" "$dir/whole.json"

expect "again: nothing is done" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/runs" threads=1
cmp -s "$dir/runs/results.json" "$dir/whole.json"
result $? "and the results are the same bytes"
expect "elsewhere, with other threads" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/other" threads=2
cmp -s "$dir/other/results.json" "$dir/whole.json"
result $? "the same bytes too"

"$temper" sequence "$dir/s.yaml" --out "$dir/killed" threads=1 >/dev/null 2>&1 &
pid=$!
tries=0
while [ ! -e "$dir/killed/naive/order-1/seed-1/2-b/run.json" ] && [ $tries -lt 3000 ] && kill -0 $pid 2>/dev/null; do
    tries=$((tries + 1))
    sleep 0.01
done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
[ ! -e "$dir/killed/results.json" ]
result $? "killed on its way"
expect "and gone on with" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/killed" threads=1
cmp -s "$dir/killed/results.json" "$dir/whole.json"
result $? "ends with the same bytes"

# Side by side, killed, interrupted, failing, with nothing kept: the same bytes.
expect "four chains at a time" 0 'at a time|^naive' sequence "$dir/s.yaml" --out "$dir/many" --jobs 4
cmp -s "$dir/many/results.json" "$dir/whole.json"
result $? "the same bytes side by side"
grep -q '7 chains, 4 at a time with 1 thread each' "$dir/err" && grep -q 'trainings .*10/10' "$dir/err"
result $? "how many at a time, and how many trainings, are said"
cp "$dir/s.yaml" "$dir/keep.yaml"
sed -i 's/^orders: 2/orders: 2\nruns: drop/' "$dir/s.yaml"
"$temper" sequence "$dir/s.yaml" --out "$dir/dropped" --jobs 2 >/dev/null 2>&1 &
pid=$!
tries=0
while [ ! -e "$dir/dropped/naive/order-1/seed-1/chain.json" ] && [ $tries -lt 3000 ] && kill -0 $pid 2>/dev/null; do
    tries=$((tries + 1))
    sleep 0.01
done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
[ ! -e "$dir/dropped/results.json" ]
result $? "killed with several on their way"
echo mine > "$dir/dropped/naive/order-1/seed-1/note"
expect "and gone on with" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/dropped" --jobs 3
cmp -s "$dir/dropped/results.json" "$dir/whole.json"
result $? "the same bytes without a run kept"
[ -z "$(find "$dir/dropped" -name '*.safetensors' -o -name run.json -o -name merged)" ] && [ -s "$dir/dropped/naive/order-1/seed-1/note" ] && [ "$(find "$dir/dropped" -name chain.json | wc -l)" -eq 6 ]
result $? "nothing is left of the runs but a file a chain"
expect "again: the files are read" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/dropped"
cmp -s "$dir/dropped/results.json" "$dir/whole.json" && [ ! -e "$dir/dropped/naive/order-1/seed-1/1-a" ]
result $? "and nothing is trained"
expect "what is gone is not made anew by another sequence" 2 'chain.json: is of another sequence' sequence "$dir/s.yaml" --out "$dir/dropped" train.steps=2
sed -i 's/^runs: drop/runs: last/' "$dir/s.yaml"
expect "only the last is kept" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/last" --jobs 2
[ ! -e "$dir/last/naive/order-1/seed-1/1-a/adapter_model.safetensors" ] && [ -s "$dir/last/naive/order-1/seed-1/1-a/merged/model.safetensors" ] &&
    [ -s "$dir/last/naive/order-1/seed-1/2-b/adapter_model.safetensors" ] && cmp -s "$dir/last/results.json" "$dir/whole.json"
result $? "with what its adapter is on"
run eval --model "$dir/last/naive/order-1/seed-1/1-a/merged" --adapter "$dir/last/naive/order-1/seed-1/2-b" --data "$dir/a-test.txt" --json train.seq=32
grep -q "$(grep -o '"a": [0-9.]*' "$dir/last/naive/order-1/seed-1/2-b/eval.json" | cut -d' ' -f2)" "$dir/out"
result $? "and can be used"
cp "$dir/keep.yaml" "$dir/s.yaml"
"$temper" sequence "$dir/s.yaml" --out "$dir/stopped" --jobs 2 train.steps=2000 >/dev/null 2>"$dir/err" &
pid=$!
tries=0
while [ "$(grep -ls '"step"' "$dir"/stopped/naive/order-*/seed-*/*/metrics.jsonl 2>/dev/null | wc -l)" -lt 2 ] && [ $tries -lt 3000 ] && kill -0 $pid 2>/dev/null; do
    tries=$((tries + 1))
    sleep 0.01
done
kill -INT $pid
wait $pid
[ $? -eq 1 ] && grep -q 'stopped/naive/order-.*interrupted' "$dir/err"
result $? "Ctrl-C ends all of them"
mkdir -p "$dir/locked/naive/order-2/seed-1/1-b"
: > "$dir/locked/naive/order-2/seed-1/1-b/run.json"
expect "an error names its chain and ends the others" 3 'locked/naive/order-2/seed-1: ' sequence "$dir/s.yaml" --out "$dir/locked" --jobs 2
[ ! -e "$dir/locked/results.json" ]
result $? "and there are no results"
expect "no jobs" 2 '--jobs' sequence "$dir/s.yaml" --jobs 0

expect "JSON" 0 '"baseline": "naive"' sequence "$dir/s.yaml" --out "$dir/runs" --json
expect "keys for all arms; a folder of another sequence is refused" 2 'runs/naive/order-[12]/seed-[12]/1-.*train.steps is 2, the run there has 3' sequence "$dir/s.yaml" --out "$dir/runs" train.steps=2

rm -rf "$dir/runs"
file '  - {name: naive, grid: {train.lr: [1e-2, 1e-3]}}
  - {name: replay, replay: previous, set: {keep: {replay: {fraction: 0.5}}}, grid: {train.lr: [1e-2, 1e-3]}}
  - {name: further, between: continue}
  - {name: apart, between: separate}
  - {name: whole, set: {method: full, train: {lr: 1e-3}}}'
expect "every way from task to task" 0 'arm further tries 1 configuration, another one 2' sequence "$dir/s.yaml" --out "$dir/runs" threads=1
get '"settings": \["train.lr=1e-2"\].*"chosen": true' >/dev/null && get '"settings": \["train.lr=1e-3"\].*"chosen": false' >/dev/null
result $? "the rate that learns is chosen"
[ -e "$dir/runs/naive/select-2/order-1/seed-1000001/2-b/valid.json" ] && [ ! -e "$dir/runs/naive/select-2/order-1/seed-1000001/2-b/eval.json" ]
result $? "on validation sets, with other seeds, and no look at the test"
grep -q "$dir/runs/previous/[0-9a-f]*.jsonl" "$dir/runs/replay/order-1/seed-1/2-b/run.json" &&
    ! grep -q '/runs/previous/' "$dir/runs/replay/order-1/seed-1/1-a/run.json"
result $? "replay: previous rehearses the task before"
[ -e "$dir/runs/apart/seed-1/a/run.json" ] && [ ! -e "$dir/runs/apart/order-1" ]
result $? "separate modules know no order"
grep -q '"init": "'"$dir"'/runs/further/order-1/seed-1/1-a"' "$dir/runs/further/order-1/seed-1/2-b/run.json"
result $? "continue goes on with the adapter"
[ ! -e "$dir/runs/further/order-1/seed-1/1-a/merged" ]
result $? "and merges nothing"

# A training that diverges: products of weights of 1e28 and more are beyond f32, whatever the gradients.
large='set: {train: {lr: 1e30, optimizer: sgd}}'
file "  - {name: naive, $large}
  - {name: apart, between: separate, $large}
  - {name: joint, joint: true, $large}
  - {name: chosen, set: {train: {optimizer: sgd}}, grid: {train.lr: [1e30, 1e-2]}}"
expect "what diverges is no end" 0 '^naive: training diverged in 2 of 2 chains' sequence "$dir/s.yaml" --out "$dir/large" --jobs 1
grep -q 'large/naive/order-1/seed-1/1-a: .*training diverged.*; the chain keeps the model it had' "$dir/err" && ! grep -q 'chosen/.*diverged' "$dir/err" && ! grep -q '^chosen: training' "$dir/out"
result $? "it is said where, and not of what was tried"
cp "$dir/large/results.json" "$dir/whole.json"
[ "$(grep -cE '"order": [12], "seed": 1, "diverged": \{"a": [0-9]+(, "b": [0-9]+)?\}|"order": [12], "seed": 1, "diverged": \{"b": [0-9]+\}' "$dir/whole.json")" -eq 5 ] && grep -q '2 of 2 chains diverged' "$dir/large/report.html" && grep -q '(1 diverged)' "$dir/large/report.html" && grep -q '"diverged": 1, "chosen": false' "$dir/whole.json"
result $? "it is in the results and on the page"
rm "$dir/large/apart/seed-1/chain.json" "$dir/large/naive/order-1/seed-1/chain.json"
stamp=$(stat -c %y "$dir/large/apart/seed-1/a/run.json")
expect "and gone on with" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/large" --jobs 2
cmp -s "$dir/large/results.json" "$dir/whole.json" && [ "$(stat -c %y "$dir/large/apart/seed-1/a/run.json")" = "$stamp" ]
result $? "it is not trained again"
sed -i 's/^orders: 2/orders: 2\nruns: drop/' "$dir/s.yaml"
"$temper" sequence "$dir/s.yaml" --out "$dir/large-killed" --jobs 2 >/dev/null 2>&1 &
pid=$!
tries=0
while [ -z "$(find "$dir/large-killed" -name chain.json 2>/dev/null)" ] && [ $tries -lt 3000 ] && kill -0 $pid 2>/dev/null; do
    tries=$((tries + 1))
    sleep 0.01
done
kill -9 $pid 2>/dev/null
wait $pid 2>/dev/null
expect "killed and gone on with, side by side, with nothing kept" 0 '^naive' sequence "$dir/s.yaml" --out "$dir/large-killed" --jobs 3
cmp -s "$dir/large-killed/results.json" "$dir/whole.json" && [ -z "$(find "$dir/large-killed" -name run.json)" ]
result $? "the same bytes"

# bad NAME PATTERN: the file as it is now is refused
bad() { expect "$1" 2 "$2" sequence "$dir/s.yaml" --out "$dir/bad"; }
file '  - {name: naive}' 'orders: [[a, bb]]'
sed -i '/^orders: 2/d' "$dir/s.yaml"
bad "an order with an unknown task" 's.yaml:10: orders: there is no task bb; did you mean b\?'
sed -i 's/\[\[a, bb\]\]/[[a, a]]/' "$dir/s.yaml"
bad "a task twice" 's.yaml:10: orders: a is there twice'
sed -i 's/\[\[a, a\]\]/[[a]]/' "$dir/s.yaml"
bad "a task left out" 's.yaml:10: orders: expected lists that name every task once'
sed -i 's/\[\[a\]\]/3/' "$dir/s.yaml"
bad "more orders than there are" 'orders: 2 tasks have 2 orders, 3 were asked for'
file '  - {name: naive}
  - {name: naive}'
bad "two arms of a name" 's.yaml:14: two arms are named naive \(the first in line 13\)'
file '  - {name: naive, set: {train: {lrr: 1}}}'
bad "an unknown key of an arm" 's.yaml:13: unknown key train.lrr; did you mean train.lr\?'
file '  - {name: naive, sett: {train: {lr: 1}}}'
bad "an unknown key of the file" 's.yaml:13: unknown key arms.sett; did you mean set\?'
file '  - {name: naive, set: {train: {lr: fast}}}'
bad "a wrong value" 's.yaml:13: train.lr: expected a number'
file '  - {name: naive, grid: {train.lr: [1, x]}}'
bad "a wrong value of a grid" 's.yaml:13: grid: argument train.lr=x'
file '  - {name: na/ive}'
bad "a name that is no folder" 's.yaml:13: arms.name: a name is 1 to 64 letters'
file '  - {name: naive, joint: true, frozen: true}'
bad "joint and frozen" 's.yaml:13: an arm is joint or frozen, not both'
file '  - {name: naive, between: sideways}'
bad "an unknown way" 's.yaml:13: arms.between: expected merge, continue, separate, found'
file '  - {name: naive, set: {method: bitfit}, between: merge}'
bad "what cannot be merged" 'only LoRA adapters can be merged'
file '  - {name: naive, set: {init: random}}'
bad "a start at random" 'a sequence starts from a model with weights'
file '  - {name: naive}' 'seeds: [1, 1]'
bad "a seed twice" 's.yaml:11: seeds: 1 is there twice'
file '  - {name: naive, grid: {train.lr: [1, 2]}}' 'seeds: [1000001]'
bad "a seed that chooses and tests" 'seed 1000001 is in seeds and in select_seeds'
{ echo "recipe: {model: $model}"; echo "tasks:"; for i in 1 2 3 4 5 6 7; do echo "  - {name: t$i, train: $dir/a.txt, test: $dir/a-test.txt}"; done
  printf 'orders: 1000\nseeds: 10000\narms:\n  - {name: naive}\n'; } > "$dir/s.yaml"
bad "more chains than anybody waits for" 's.yaml:1: 1 arms in 1000 orders with 10000 seeds are 10000000 chains; expected at most 1000000'
file '  - {name: naive}' 'baseline: none'
bad "a baseline that is not there" 's.yaml:11: baseline: there is no arm none'
file '  - {name: naive}'
sed -i 's/b-test.txt, metric/b-tset.txt, metric/' "$dir/s.yaml"
bad "a missing file" 's.yaml:8: eval.1.path: no such file or folder: .*b-tset.txt'
file '  - {name: naive}'
sed -i 's/path: .*b.txt, format/path: nowhere.txt, format/' "$dir/s.yaml"
bad "missing data" 's.yaml:8: data.0.path: no such file or folder: nowhere.txt'
sed -i 's/name: b, /name: a, /' "$dir/s.yaml"
bad "two tasks of a name" 's.yaml:8: two tasks are named a \(the first in line 7\)'
file '  - {name: naive, grid: {train.lr: [1, 2]}}'
sed -i 's/, valid: .*b-valid.*accuracy}}/}/' "$dir/s.yaml"
bad "a grid without validation sets" 'every task needs valid'
: > "$dir/s.yaml"
bad "an empty file" 's.yaml:1: the file is empty'
printf 'tasks: [{name: a}]\n' > "$dir/s.yaml"
bad "a task without data" 's.yaml:1: a task needs train'
file '  - {name: naive}'
: > "$dir/plain"
expect "an out that cannot be" 1 'plain' sequence "$dir/s.yaml" --out "$dir/plain/x" threads=1
awk '/^```yaml/ {inside = 1; next} /^```/ {if (inside) exit} inside' docs/formats/sequence.md | sed "s|^out: .*|out: $dir/plain/x|" > "$dir/shown.yaml"
for part in law law-test law-dev code-test code-dev; do echo '{"prompt": "a b", "completion": " c d"}' > "$dir/$part.jsonl"; done
echo '{"instruction": "a b", "input": "", "output": "c d"}' > "$dir/code.jsonl"
echo '{"question": "a", "choices": ["b", "c"], "answer": 0}' > "$dir/general.jsonl"
ln -s "$PWD/recipes" "$PWD/models" "$PWD/data" "$dir/"
binary=$(realpath "$temper")
(cd "$dir" && "$binary" sequence shown.yaml >out 2>err)
grep -q "plain" "$dir/err" && ! grep -q 'shown.yaml:' "$dir/err"
result $? "the example of docs/formats/sequence.md is taken as printed: only its folder is refused here"
expect "a recipe in place of a sequence" 2 'unknown key model; keys of a recipe stand under recipe' sequence recipes/lora.yaml
expect "a sequence in place of a recipe" 2 'found a sequence of tasks; it is for: temper sequence' train recipes/sequence.yaml
expect "a file that is not there" 2 'none.yaml' sequence "$dir/none.yaml"
expect "no file" 2 'SEQUENCE.yaml is missing' sequence
expect "two files" 2 'two files' sequence a b
expect "help" 0 'example: ' sequence --help
exit $code
