#!/bin/sh
# tools/check_layers finds what it promises to find: a small tree with one fault each must fail, with
# the file and line named; the same tree without the fault must pass.
set -u
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
checker=tools/check_layers
code=0

fresh()
{
    rm -rf "${dir:?}/src" "$dir/include"
    mkdir -p "$dir/src/base" "$dir/src/io" "$dir/src/device/cuda" "$dir/src/model" "$dir/src/cli" "$dir/include"
    cat > "$dir/ARCHITECTURE.md" <<'TABLE'
| folder | job | may include |
|---|---|---|
| `include/temper.h` | public | libc |
| `src/base/` | base | libc, libraries |
| `src/io/` | io | base |
| `src/device/` | device | base |
| `src/model/` | model | io |
| `src/cli/` | cli | `temper.h`, base |
TABLE
    echo '#include <stdio.h>' > "$dir/include/temper.h"
    printf '/* getenv("X"); */\n#include "temper.h"\nchar *e(void) { return getenv("X"); }\n' > "$dir/src/base/env.c"
    printf '#include "base/b.h"\nint log2_exit(int);\nconst char *s = "exit(1)"; // abort()\nint x = log2_exit(1);\n' > "$dir/src/io/a.c"
    printf '#include <cuda_runtime.h>\n' > "$dir/src/device/cuda/k.cu"
    printf '#include "io/a.h"\n#include "base/b.h"\n#include "near.h"\nint snprintf(char *);\n' > "$dir/src/model/m.c"
    : > "$dir/src/model/near.h"
    printf '#include "temper.h"\nint main(void) { printf("x"); exit(0); }\n' > "$dir/src/cli/main.c"
}

# case name, expected text ("" = must pass)
check()
{
    found=$("$checker" "$dir" 2>&1)
    status=$?
    if { [ -z "$2" ] && [ $status -eq 0 ]; } ||
       { [ -n "$2" ] && [ $status -eq 1 ] && printf '%s' "$found" | grep -qF -- "$2"; }; then
        echo "[       OK ] $1"
    else
        echo "[  FAILED  ] $1: status $status, expected '${2:-no finding}', found: $found"
        code=1
    fi
}

# case name, file, line to append, expected text
fault()
{
    fresh
    printf '%s\n' "$3" >> "$dir/$2"
    check "$1" "$4"
}

fresh
check "a clean tree passes" ""
fault "an include that climbs" src/base/env.c '#include "io/a.h"' 'src/base/env.c:4: src/base includes "io/a.h"'
fault "an include beside the row" src/io/a.c '#include "device/device.h"' 'src/io/a.c:5: src/io includes "device/device.h"'
fault "an include past a row's reach" src/cli/main.c '# include "io/a.h"' 'src/cli includes "io/a.h"'
fault "a folder outside the table" src/io/a.c '#include "misc/a.h"' 'is in no folder of the table'
fault "a public header that reaches in" include/temper.h '#include "base/b.h"' 'the public header includes'
fault "getenv outside base" src/io/a.c 'char *v = getenv("HOME");' 'src/io/a.c:5: getenv'
fault "exit in the library" src/io/a.c 'void f(void) { exit(1); }' 'src/io/a.c:5: the library calls exit'
fault "abort in the library" src/base/env.c ' abort();' 'the library calls abort'
fault "printf in the library" src/model/m.c '    printf("hello\n");' 'src/model/m.c:5: the library calls printf'
fault "fprintf to stderr in the library" src/model/m.c '    fprintf(stderr, "hello\n");' 'src/model/m.c:5: the library prints'
fault "a CUDA header in model" src/model/m.c '#include <cublasLt.h>' 'CUDA header <cublasLt.h>'
fault "a fault after a comment that spans lines" src/model/m.c "$(printf '/* one\n two */ abort();')" 'src/model/m.c:6: the library calls abort'
fresh
sed 's/| base | libc, libraries |/| base | model |/' "$dir/ARCHITECTURE.md" > "$dir/A" && mv "$dir/A" "$dir/ARCHITECTURE.md"
check "a table whose row names what stands below" "names model, which does not stand above it"
fresh
mkdir -p "$dir/src/misc" && : > "$dir/src/misc/x.c"
check "a source folder without a row" "src/misc is not in the table"
fresh
: > "$dir/ARCHITECTURE.md"
check "a missing table" "no folder table found"
exit $code
