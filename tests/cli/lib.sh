# What the tests of commands share; to be sourced: . tests/cli/lib.sh
temper=${TEMPER_BIN:-build/cpu/temper}
model=models/stories260K
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
code=0

# result STATUS NAME: one case; 0 is success
result()
{
    if [ "$1" -eq 0 ]; then
        echo "[       OK ] $2"
    else
        echo "[  FAILED  ] $2"
        code=1
        for f in "$dir/out" "$dir/err"; do [ -s "$f" ] && sed 's/^/    /' "$f" | head -20; done
    fi
}

# run ARGUMENTS: output in $dir/out, complaints in $dir/err, exit code in $status
run()
{
    "$temper" "$@" >"$dir/out" 2>"$dir/err"
    status=$?
}

# expect NAME EXIT PATTERN ARGUMENTS: the exit code, and the pattern (extended, of grep) in what was printed
expect()
{
    expect_name=$1 expect_status=$2 expect_text=$3
    shift 3
    run "$@"
    [ "$status" -eq "$expect_status" ] && cat "$dir/out" "$dir/err" | grep -qE -- "$expect_text"
    result $? "$expect_name"
}
