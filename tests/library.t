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

# check STATUS NAME: a test that passes if the status is 0.
check() {
    count=$((count + 1))
    if [ "$1" -eq 0 ]; then
        echo "ok $count - $2"
    else
        echo "not ok $count - $2"
        failures=1
    fi
}

prompt='def fibonacci(n):'
"$ENGINE_DIR/engine" generate -p "$prompt" --temp 0 -n 32 >"$folder/expected" 2>/dev/null

"${CC:-cc}" -std=c11 -O2 -Wall -Wextra -Werror -DPARSCALE_NO_MAIN "$ENGINE_DIR/engine.c" \
    "$here/../docs/example.c" -lm -pthread -o "$folder/example"
check $? "the example compiles with engine.c"

"${CC:-cc}" -std=c11 -O0 -DPARSCALE_NO_MAIN -c "$ENGINE_DIR/engine.c" -o "$folder/engine.o" &&
    ! nm -g --defined-only "$folder/engine.o" | grep -v ' parscale_'
check $? "engine.c exports the C API alone"

"$folder/example" "$ENGINE_DIR/model.psc" "$prompt" >"$folder/out"
check $? "the example runs"
test -s "$folder/out" && cmp "$folder/expected" "$folder/out"
check $? "it generates what the command line does"

"$folder/example" /nonexistent x 2>"$folder/err"
[ $? -eq 3 ] && [ "$(wc -l <"$folder/err")" -eq 1 ] && grep -q /nonexistent "$folder/err"
check $? "it tells in one line that a pack is missing"
echo "1..$count"
exit $failures
