#!/bin/sh
# Prepares what tests/gpu.sh needs on a machine that has a GPU, CUDA and gcc, but no Lua:
#     tests/gpu_prepare.sh FOLDER REAL [SPEC[:WEIGHT_DTYPE[:CACHE_DTYPE]]...]
# Engines and packs of the golden folders; of the real model, whose engine is in the folder REAL
# (`make demo-model`; "" for none), the engine and what its pack is made from, 120 MB; an engine and its
# packer for each spec, for random weights, bf16 or as WEIGHT_DTYPE and CACHE_DTYPE say.
set -eu
folder=$1
real=$2
shift 2
mkdir -p "$folder/tests" "$folder/runtime" "$folder/golden" "$folder/random"
cp tests/gpu.sh tests/every_lane_tells.sed tests/gpu_harness.c tests/golden_harness.c tests/real_harness.c \
    tests/paths_harness.c tests/compare.h "$folder/tests/"
cp runtime/parscale.h runtime/clock.h "$folder/runtime/"
for golden in tests/data/golden/*/; do
    out=$(lua5.4 codegen/main.lua --from "$golden" --out "$folder/golden")
    cc -O2 -o "$out/pack" "$out/pack.c" -lm -pthread
    "$out/pack" "$out/pack.job"
    lua5.4 tests/gpu_expected.lua "$golden" >"$out/expected"
    rm -f "$out/pack" "$out/pack.c" "$out/pack.job" "$out/report.md"
done
for argument in "$@"; do
    spec=${argument%%:*}
    name=$(basename "$spec" .lua)
    dtype=bf16
    cache=bf16
    if [ "$spec" != "$argument" ]; then
        dtypes=${argument#*:}
        dtype=${dtypes%:*}
        name=$name-$dtype
        if [ "$dtype" != "$dtypes" ]; then
            cache=${dtypes#*:}
            name=$name-cache-$cache
        fi
    fi
    echo "return { weight_dtype = \"$dtype\", cache_dtype = \"$cache\" }" >"$folder/dtype.lua"
    lua5.4 codegen/main.lua --from random --spec "$spec" --spec tests/gpu_streams.lua \
        --spec "$folder/dtype.lua" --name "$name" --out "$folder/random" >/dev/null
done
if [ -n "$real" ]; then
    mkdir -p "$folder/real"
    cp "$real/engine.c" "$real/engine.cu" "$real/pack.c" "$real/tokenizer.bin" "$folder/real/"
    sed -n 's/^file [0-9]* //p' "$real/pack.job" | while read -r file; do
        cp "$file" "$folder/real/"
    done
    # The job names its files from the prepared folder on.
    sed -e 's#^\(file [0-9]* \).*/#\1real/#' -e 's#^\(tokenizer \).*/#\1real/#' \
        "$real/pack.job" >"$folder/real/pack.job"
    for p in 1 2 4 8; do
        lua5.4 tests/real_prompts.lua $p >"$folder/real/prompts$p"
    done
    "$real/engine" tokenize -f tests/data/smollm2/heldout.py >"$folder/real/ids"
fi
