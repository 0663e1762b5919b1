#!/bin/sh
# temper tokenize: lines in, lines out, both ways.
. tests/cli/lib.sh
printf '%s\n' '"Once upon a time"' '"a\u0000b\n\"é\" <s>"' '""' > "$dir/texts"
run tokenize --tokenizer $model --jsonl "$dir/texts"
[ "$status" -eq 0 ] && [ "$(head -n 1 "$dir/out")" = "[403, 407, 261, 378]" ] && [ "$(wc -l < "$dir/out")" -eq 3 ] && [ "$(tail -n 1 "$dir/out")" = "[]" ]
result $? "texts become ids, a line a line"
cp "$dir/out" "$dir/ids"
run tokenize --tokenizer $model/tokenizer.json --jsonl - --decode < "$dir/ids"
[ "$status" -eq 0 ] && cmp -s "$dir/out" "$dir/texts"
result $? "ids become the same texts"
run tokenize --tokenizer $model --jsonl "$dir/texts" --add-special
[ "$(head -n 1 "$dir/out")" = "[1, 403, 407, 261, 378]" ]
result $? "--add-special puts BOS in front"
cp "$dir/out" "$dir/ids"
run tokenize --tokenizer $model --jsonl "$dir/ids" --decode --skip-special
[ "$(head -n 1 "$dir/out")" = '"Once upon a time"' ]
result $? "--skip-special leaves BOS out"
printf '%s\n' '"a"' '[1]' > "$dir/bad"
expect "another JSON value is refused with its line" 3 'bad:2: found a list, expected a string' tokenize --tokenizer $model --jsonl "$dir/bad"
printf '%s\n' '[512]' > "$dir/bad"
expect "an id outside the vocabulary is refused" 3 'bad:1: .*512' tokenize --tokenizer $model --jsonl "$dir/bad" --decode
printf '%s\n' '[1, -1]' > "$dir/bad"
expect "a negative id is refused" 3 'bad:1: element 1 ' tokenize --tokenizer $model --jsonl "$dir/bad" --decode
printf '%s\n' '"a' > "$dir/bad"
expect "what is not JSON is refused" 3 'bad:1: ' tokenize --tokenizer $model --jsonl "$dir/bad"
expect "a missing file" 3 'none.jsonl' tokenize --tokenizer $model --jsonl "$dir/none.jsonl"
expect "a missing tokenizer" 3 'none' tokenize --tokenizer "$dir/none" --jsonl "$dir/texts"
expect "missing arguments" 2 'needed' tokenize --tokenizer $model
expect "an unknown argument" 2 '--bos' tokenize --tokenizer $model --jsonl - --bos
expect "help shows an example" 0 'example: ' tokenize --help
if [ -e /dev/full ]; then
    "$temper" tokenize --tokenizer $model --jsonl "$dir/texts" >/dev/full 2>"$dir/err"
    [ $? -eq 1 ] && grep -q 'writing the result' "$dir/err"
    result $? "a full disk is reported"
fi
exit $code
