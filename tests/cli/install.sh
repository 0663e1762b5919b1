#!/bin/sh
# `make install` gives a program, and a library that a stranger's C file builds against through
# pkg-config.
set -u
unset MAKEFLAGS MAKELEVEL MFLAGS
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
kind=$(basename "$(dirname "${TEMPER_BIN:-build/cpu/temper}")")
if ! make -s KIND="$kind" install DESTDIR="$dir" PREFIX=/opt/t >"$dir/log" 2>&1; then
    cat "$dir/log"
    echo "[  FAILED  ] make install"
    exit 1
fi
code=0
cat > "$dir/a.c" <<'END'
#include <stdio.h>
#include <temper.h>
int main(void) { printf("%s %d\n", TM_VERSION, tm_status_exit_code(TM_RETENTION)); return 0; }
END
version=$(sed -n 's/^#define TM_VERSION "\(.*\)"/\1/p' include/temper.h)
export PKG_CONFIG_PATH="$dir/opt/t/lib/pkgconfig" PKG_CONFIG_SYSROOT_DIR=
flags=$(pkg-config --define-variable=prefix="$dir/opt/t" --cflags --libs temper)
if cc -o "$dir/a" "$dir/a.c" $flags && [ "$("$dir/a")" = "$version 5" ] && [ "$(pkg-config --modversion temper)" = "$version" ]; then
    echo "[       OK ] a program builds against the installed library"
else
    echo "[  FAILED  ] a program builds against the installed library"
    code=1
fi
if [ -x "$dir/opt/t/bin/temper" ] && [ -f "$dir/opt/t/share/temper/models/stories260K/model.safetensors" ] &&
   [ -f "$dir/opt/t/share/temper/data/demo/pushkin-dev.txt" ]; then
    echo "[       OK ] program, model and data are in place"
else
    echo "[  FAILED  ] program, model and data are in place"
    code=1
fi
exit $code
