#!/bin/sh
# The same ids and the same log-probabilities whatever the number of threads, run after run.
# ENGINE_DIR names a folder with engine and model.psc, made from SmolLM2.
if [ -z "$ENGINE_DIR" ]; then
    echo "1..0 # SKIP ENGINE_DIR is not set: no engine to test"
    exit 0
fi
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
failures=0 count=0
text=$(dirname "$0")/data/smollm2/heldout.py

# runs NAME ARGUMENT...: the first run's stdout is the one that all others must repeat.
runs() {
    name=$1
    shift
    for threads in 1 2 3; do
        for run in 1 2 3; do
            count=$((count + 1))
            out=$folder/$name.$threads.$run
            if "$ENGINE_DIR/engine" "$@" -t $threads >"$out" 2>"$folder/err" && [ -s "$out" ] &&
                cmp "$folder/$name.1.1" "$out"; then
                echo "ok $count - $name, $threads threads, run $run"
            else
                sed 's/^/# /' "$folder/err" >&2
                echo "not ok $count - $name, $threads threads, run $run"
                failures=1
            fi
        done
    done
}

head -c 600 "$text" >"$folder/text"
runs generate generate -p 'def area(radius):' -n 24 --temp 1 -s 5 --print-ids --ignore-eos
runs score score -f "$folder/text" --top 3
echo "1..$count"
exit $failures
