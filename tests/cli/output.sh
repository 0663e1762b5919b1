#!/bin/sh
# What the program prints and what it tells people to type: nothing is lost in silence, and every example is of files that are there.
. tests/cli/lib.sh
commands=$("$temper" --help | sed -n 's/^  \([a-z]*\) .*/\1/p')
for c in $commands; do
    "$temper" "$c" --help > "$dir/out" 2> "$dir/err" && grep -q '^example: ' "$dir/out"
    result $? "$c --help has an example"
    for f in $(sed -n '/^example: /,$p' "$dir/out" | grep -oE '(data|models|recipes)/[A-Za-z0-9_./-]+'); do
        [ -e "$f" ]
        result $? "$f of its example is there"
    done
done
if [ -w /dev/full ]; then
    for text in "--help" "--version" "train --help" "generate --model $model --prompt Once --max-tokens 3" "inspect $model" "init --model $model --data data/demo/shakespeare-dev.txt --out $dir/r.yaml"; do
        # shellcheck disable=SC2086
        "$temper" $text > /dev/full 2> "$dir/err"
        status=$?
        [ $status -eq 1 ] && grep -q "writing the result: No space left" "$dir/err"
        result $? "a full disk behind: $text"
    done
else
    echo "skip: no /dev/full"
fi
exit $code
