#!/bin/sh
# temper bench forgetting: the data, the sequence it would run, and the short form with its verdict.
. tests/cli/lib.sh
run bench forgetting --data "$dir/data"
[ "$status" -eq 0 ] && [ -s "$dir/data/old/replay.jsonl" ] && [ -s "$dir/data/conflict/test.jsonl" ]
result $? "the data are written"
run eval --model models/town1M --data "$dir/data/old/people-test.jsonl" --metric exact --json eval.0.format=completion
[ "$status" -eq 0 ] && grep -o '"exact": *[0-9.]*' "$dir/out" | sed 's/.*: *//' | awk '{ exit !($1 > 0.95) }'
result $? "the model knows its people in words it has not seen with them"
run bench forgetting --recipe --tasks 3 --seeds 7
[ "$status" -eq 0 ] && grep -q '^seeds: 7$' "$dir/out" && [ "$(grep -c '^  - name: ' "$dir/out")" -eq 3 ] && grep -q 'name: ewc,.*grid: ' "$dir/out"
result $? "the sequence is printed"
run bench forgetting --recipe --tasks 2
[ "$status" -eq 0 ] && grep -q '^orders: 2$' "$dir/out"
result $? "no more orders than the tasks have"
run bench forgetting --recipe --fixed
[ "$status" -eq 0 ] && ! grep -q grid "$dir/out"
result $? "without a search when asked"
run bench forgetting --quick --out "$dir/quick"
[ "$status" -eq 0 ] && grep -q 'joint >= replay >= naive holds' "$dir/out"
result $? "joint >= replay >= naive in what is left of the old"
cp "$dir/quick/results.json" "$dir/first.json"
run bench forgetting --quick --out "$dir/quick" --json
[ "$status" -eq 0 ] && cmp -s "$dir/out" "$dir/first.json"
result $? "a second call does nothing again, and says the same"
expect "an unknown argument" 2 'unknown argument --odd' bench forgetting --odd
expect "too many tasks" 2 '--tasks' bench forgetting --tasks 6
expect "a folder that YAML would not take" 2 'quotes' bench forgetting --out 'a"b'
exit $code
