#!/bin/sh
# Prepares what tests/gpu.sh needs on a machine that has a GPU, CUDA and gcc, but no Lua:
#     tests/gpu_prepare.sh FOLDER [SPEC...]
# Engines and packs of the golden folders, an engine and its packer for each spec (random weights;
# it says backends = "cpu+cuda").
set -eu
folder=$1
shift
mkdir -p "$folder/tests" "$folder/runtime" "$folder/golden" "$folder/random"
cp tests/gpu.sh tests/gpu_harness.c tests/golden_harness.c tests/compare.h "$folder/tests/"
echo 'return { backends = "cpu+cuda" }' >"$folder/cuda.lua"
cp runtime/parscale.h "$folder/runtime/"
for golden in tests/data/golden/*/; do
    name=$(basename "$golden")
    out=$(lua5.4 codegen/main.lua --from "$golden" --spec "$folder/cuda.lua" \
        --out "$folder/golden")
    cc -O2 -o "$out/pack" "$out/pack.c" -lm -pthread
    "$out/pack" "$out/pack.job"
    lua5.4 tests/gpu_expected.lua "$golden" >"$out/expected"
    rm -f "$out/pack" "$out/pack.c" "$out/pack.job" "$out/engine.cu" "$out/report.md"
done
for spec in "$@"; do
    lua5.4 codegen/main.lua --from random --spec "$spec" --out "$folder/random" >/dev/null
done
