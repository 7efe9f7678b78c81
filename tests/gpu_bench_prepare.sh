#!/bin/sh
# Makes what tests/gpu_bench.sh measures: engines of published sizes, or of a spec's file, with
# every P, for random weights, as FOLDER/bench/SIZE-DTYPE.
#
#     tests/gpu_bench_prepare.sh FOLDER "0.7B 1.8B 4.7B" "bf16 int8 int4"
set -eu
folder=$1
mkdir -p "$folder/bench" "$folder/tests" "$folder/runtime"
cp tests/gpu_bench.sh tests/gpu_profile.awk tests/gpu_harness.c tests/peer_torch.py "$folder/tests/"
cp runtime/parscale.h runtime/clock.h "$folder/runtime/"
for size in $2; do
    case $size in
    */*) spec=$size ;;
    *) spec=ParScale-$size-P8-Python ;;
    esac
    for dtype in $3; do
        echo "return { weight_dtype = \"$dtype\" }" >"$folder/dtype.lua"
        lua5.4 codegen/main.lua --from random --spec "$spec" --spec tests/gpu_streams.lua \
            --spec "$folder/dtype.lua" --name "$(basename "$size" .lua)-$dtype" \
            --out "$folder/bench" >/dev/null
    done
done
