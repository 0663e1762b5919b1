#!/bin/sh
# ./run on machines that are told to it by fakes: what is missing is installed once, nothing is
# installed when nothing is missing, and a machine without apt-get gets the list.
set -u
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
code=0

# A PATH with the tools every Debian has, and the fakes of "$@" that note how they were called.
machine()
{
    rm -rf "$dir/bin"
    mkdir "$dir/bin"
    : > "$dir/calls"
    for tool in sh dirname id tr mktemp cat rm env nproc; do
        ln -s "$(command -v $tool)" "$dir/bin/$tool"
    done
    for fake in "$@"; do
        printf '#!%s\necho "%s $*" >> "%s/calls"\n' "$(command -v sh)" "$fake" "$dir" > "$dir/bin/$fake"
        chmod +x "$dir/bin/$fake"
    done
}

check() # name, condition's status
{
    if [ "$2" -eq 0 ]; then
        echo "[       OK ] $1"
    else
        echo "[  FAILED  ] $1"
        cat "$dir/calls" "$dir/out"
        code=1
    fi
}

machine apt-get sudo make gcc pkg-config
PATH="$dir/bin" ./run test >"$dir/out" 2>&1
! grep -q 'apt-get\|sudo' "$dir/calls" && grep -q '^make .*test' "$dir/calls"
check "nothing missing: nothing installed" $?

machine apt-get make gcc
PATH="$dir/bin" ./run test >"$dir/out" 2>&1
if [ "$(id -u)" -eq 0 ]; then
    [ "$(grep -c '^apt-get update' "$dir/calls")" = 1 ] && grep -q '^apt-get install -y .*pkg-config.*libyaml-dev.*libcmocka-dev' "$dir/calls" &&
        ! grep -q '^apt-get install.* gcc' "$dir/calls" && grep -q '^make .*test' "$dir/calls"
    check "missing packages: one update, one install, then make" $?
else
    grep -q 'neither root nor sudo' "$dir/out" && ! grep -q make "$dir/calls"
    check "missing packages, no way to install: said" $?
fi

machine make gcc
PATH="$dir/bin" ./run test >"$dir/out" 2>&1
grep -q 'libutf8proc-dev' "$dir/out" && grep -q '^make' "$dir/calls"
check "no apt-get: the list, and on it goes" $?

machine apt-get make gcc
printf '#!%s\necho broken mirror; exit 100\n' "$(command -v sh)" > "$dir/bin/apt-get"
PATH="$dir/bin" ./run test >"$dir/out" 2>&1
status=$?
if [ "$(id -u)" -eq 0 ]; then
    [ $status -eq 1 ] && grep -q 'broken mirror' "$dir/out" && ! grep -q make "$dir/calls"
    check "apt-get fails: its words, and no build" $?
fi

./run nonsense >"$dir/out" 2>&1
[ $? -eq 2 ] && grep -q "unknown command 'nonsense'" "$dir/out"
check "an unknown command: exit 2" $?
./run help >"$dir/out" 2>&1
check "help: exit 0" $?
exit $code
