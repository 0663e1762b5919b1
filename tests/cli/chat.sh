#!/bin/sh
# temper chat: one line in, one answer out; what is kept between turns changes nothing.
. tests/cli/lib.sh
printf '%s' '{{ bos_token }}{% for m in messages %}{{ m.content ~ " " }}{% endfor %}' > "$dir/t.jinja"
run chat --model $model --template "$dir/t.jinja" --max-tokens 16 < /dev/null
[ "$status" -eq 0 ] && [ ! -s "$dir/out" ]
result $? "no line, no answer"
printf 'Once upon a time\n\nThe cat\n' | "$temper" chat --model $model --template "$dir/t.jinja" --max-tokens 16 > "$dir/out" 2> "$dir/err"
[ $? -eq 0 ] && [ "$(wc -l < "$dir/out")" -ge 2 ]
result $? "two lines, two answers"
first=$(head -n 1 "$dir/out")
second=$(tail -n +2 "$dir/out")
"$temper" generate --model $model --prompt "Once upon a time " --max-tokens 16 > "$dir/fresh"
[ "$(sed 's/^ *//' "$dir/fresh")" = "$first" ]
result $? "the first answer is what generate gives"
"$temper" generate --model $model --prompt "Once upon a time $first The cat " --max-tokens 16 > "$dir/fresh"
[ "$(sed '1s/^ *//' "$dir/fresh")" = "$second" ]
result $? "the second too: kept keys and values change nothing"
printf 'Once upon a time\n/reset\nOnce upon a time\n/quit\nThe end\n' | "$temper" chat --model $model --template "$dir/t.jinja" --max-tokens 8 > "$dir/out" 2> "$dir/err"
[ $? -eq 0 ] && [ "$(head -n 1 "$dir/out")" = "$(tail -n 1 "$dir/out")" ] && [ "$(wc -l < "$dir/out")" -eq 2 ]
result $? "/reset starts anew, /quit ends"
printf '/system Lily was sad.\nThe dog\n' | "$temper" chat --model $model --template "$dir/t.jinja" --max-tokens 8 > "$dir/a" 2> "$dir/err"
printf 'The dog\n' | "$temper" chat --model $model --template "$dir/t.jinja" --system "Lily was sad." --max-tokens 8 > "$dir/out" 2>> "$dir/err"
[ -s "$dir/a" ] && cmp -s "$dir/a" "$dir/out"
result $? "/system is --system"
printf '/what\n' | "$temper" chat --model $model --template "$dir/t.jinja" 2>&1 | grep -q '/reset'
result $? "an unknown command says which there are"
printf 'Once upon a time there was a little girl who had a dog and a cat\n' > "$dir/long"
run chat --model $model --template "$dir/t.jinja" --context 8 < "$dir/long"
[ "$status" -eq 1 ] && grep -q 'room for 8' "$dir/err"
result $? "a conversation longer than the context"
expect "a model without a template says what to do" 2 'chatml' chat --model $model
expect "a missing model" 3 'none' chat --model "$dir/none"
expect "an unknown argument" 2 '--bos' chat --model $model --bos
expect "help shows an example" 0 'example: ' chat --help
"$temper" chat --help | sed -n '/^example: /,$p' | sed 's/^example: //; s/^ *//; s|/tmp/|'"$dir"'/|g' > "$dir/example"
( temper() { "$example_of" "$@"; }; example_of=$temper; . "$dir/example" ) > "$dir/out" 2> "$dir/err"
[ $? -eq 0 ] && [ -s "$dir/out" ] && [ ! -s "$dir/err" ]
result $? "the example of --help"
exit $code
