#!/bin/sh
# temper tokenizer train, and tokenize with every kind of tokenizer file.
. tests/cli/lib.sh
data=tests/data/tokenizers
run tokenizer train --data $data/train.txt --vocab 600 --out "$dir/tokenizer.json" --special "<s>,</s>" --min-frequency 2 --pattern qwen2 --threads 1
[ "$status" -eq 0 ] && grep -q '^600 tokens from ' "$dir/out"
result $? "a tokenizer is learned from text"
cp "$dir/tokenizer.json" "$dir/one.json"
run tokenizer train --data $data/train.txt --vocab 600 --out "$dir" --special "<s>" --special "</s>" --min-frequency=2 --pattern=qwen2 --threads 3
[ "$status" -eq 0 ] && cmp -s "$dir/tokenizer.json" "$dir/one.json"
result $? "the same file with more threads, and into a folder"
printf '%s\n' '"First Citizen: Привет <s> \u6f22"' > "$dir/texts"
run tokenize --tokenizer "$dir" --jsonl "$dir/texts"
cp "$dir/out" "$dir/ids"
run tokenize --tokenizer "$dir/tokenizer.json" --jsonl "$dir/ids" --decode
[ "$(cat "$dir/out")" = '"First Citizen: Привет <s> 漢"' ]
result $? "what was learned encodes and decodes"
expect "the example of the help runs" 0 '^1000 tokens ' tokenizer train --data README.md --vocab 1000 --out "$dir/example.json"
for kind in spm/bpe.model spm/unigram.model unigram; do
    printf '%s\n' '"Once more, Once"' > "$dir/texts"
    run tokenize --tokenizer $data/$kind --jsonl "$dir/texts"
    cp "$dir/out" "$dir/ids"
    run tokenize --tokenizer $data/$kind --jsonl "$dir/ids" --decode
    [ "$(cat "$dir/out")" = '"Once more, Once"' ]
    result $? "tokenize with $kind"
done
expect "help shows an example" 0 'example: ' tokenizer --help
expect "what to do is missing" 2 'train' tokenizer
expect "an unknown action" 2 'unknown action untrain' tokenizer untrain
expect "missing arguments" 2 'needed' tokenizer train --data $data/train.txt
expect "an unknown argument" 2 '--odd' tokenizer train --odd
expect "a small vocabulary" 2 '--vocab' tokenizer train --data $data/train.txt --vocab 20 --out "$dir/x"
expect "no room for the special tokens" 2 '256' tokenizer train --data $data/train.txt --vocab 256 --out "$dir/x"
expect "an unknown pattern" 2 'gpt2, qwen2 or llama3' tokenizer train --data $data/train.txt --vocab 300 --out "$dir/x" --pattern odd
expect "a missing file" 3 'nowhere.txt' tokenizer train --data nowhere.txt --vocab 300 --out "$dir/x"
[ ! -e "$dir/x" ]
result $? "nothing was written by what failed"
exit $code
