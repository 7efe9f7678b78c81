#!/bin/sh
# engine.c as a library: docs/example.c compiles with it and generates what the command line does.
# ENGINE_DIR names a folder with engine, engine.c and model.psc, made from SmolLM2.
here=$(dirname "$0")
if [ -z "$ENGINE_DIR" ]; then
    echo "1..0 # SKIP ENGINE_DIR is not set: no engine to test"
    exit 0
fi
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
failures=0 count=0

# check NAME COMMAND...: a test that passes if the command does.
check() {
    count=$((count + 1))
    name=$1
    shift
    if "$@"; then
        echo "ok $count - $name"
    else
        echo "not ok $count - $name"
        failures=1
    fi
}

example() {
    "$folder/example" "$@" >"$folder/out" 2>"$folder/err"
}

compile() {
    "${CC:-cc}" -std=c11 -O2 -Wall -Wextra -Werror -DPARSCALE_NO_MAIN "$ENGINE_DIR/engine.c" \
        "$here/../docs/example.c" -lm -pthread -o "$folder/example"
}

# The symbols that engine.c defines are those of the C API.
exports() {
    "${CC:-cc}" -std=c11 -O0 -DPARSCALE_NO_MAIN -c "$ENGINE_DIR/engine.c" -o "$folder/engine.o" &&
        ! nm -g --defined-only "$folder/engine.o" | grep -v ' parscale_'
}

refuses() {
    example /nonexistent "x"
    [ $? -eq 3 ] && [ "$(wc -l <"$folder/err")" -eq 1 ] && grep -q /nonexistent "$folder/err"
}

prompt='def fibonacci(n):'
"$ENGINE_DIR/engine" generate -p "$prompt" --temp 0 -n 32 >"$folder/expected" 2>/dev/null
check "the example compiles with engine.c" compile
check "engine.c exports the C API alone" exports
check "the example runs" example "$ENGINE_DIR/model.psc" "$prompt"
check "it generates what the command line does" cmp "$folder/expected" "$folder/out"
check "it writes more than nothing" test -s "$folder/out"
check "it tells that a pack is missing" refuses
echo "1..$count"
exit $failures
