#!/bin/sh
# Checks and measures the engines that tests/gpu_prepare.sh made, on this machine's GPU:
#     sh tests/gpu.sh RESULTS [PART...]        from the prepared folder
# Writes RESULTS/*.txt. Parts: golden sanitize random repeat speed; all if none is named.
set -u
results=$1
shift
parts=${*:-golden sanitize random repeat speed}
streams=${STREAMS:-1 2 4 8}
mkdir -p "$results"
wanted() {
    case " $parts " in *" $1 "*) return 0 ;; esac
    return 1
}
# library ENGINE_C HARNESS_C PROGRAM
build() {
    gcc -std=c11 -O2 -march=native -DPARSCALE_NO_MAIN -o "$3" "$2" "$1" -lm -pthread -ldl
}

nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv >"$results/device.txt"
for folder in golden/*/; do
    if wanted golden || wanted sanitize; then
        build "$folder/engine.c" tests/golden_harness.c "$folder/golden"
    fi
    if wanted golden; then
        echo "$(basename "$folder") $("$folder/golden" "$folder/model.psc" cuda \
            "$folder/expected" 2>&1)"
    fi
done >"$results/golden.txt"
if wanted sanitize; then
    folder=golden/p3-hd16-odd-bf16
    for tool in memcheck racecheck initcheck; do
        compute-sanitizer --tool $tool "$folder/golden" "$folder/model.psc" cuda \
            "$folder/expected" 2>&1 | tail -n 15
    done >"$results/sanitize.txt"
fi
for folder in random/*/; do
    [ -d "$folder" ] || continue
    name=$(basename "$folder")
    [ -x "$folder/pack" ] || gcc -O3 -march=native -o "$folder/pack" "$folder/pack.c" -lm -pthread
    [ -f "$folder/model.psc" ] || "$folder/pack" --random 1 "$folder/model.psc" >/dev/null
    [ -x "$folder/harness" ] || build "$folder/engine.c" tests/gpu_harness.c "$folder/harness"
    for part in random repeat speed; do
        wanted $part || continue
        for p in $streams; do
            case $part in
            random) "$folder/harness" compare "$folder/model.psc" "$p" 64 ;;
            repeat) "$folder/harness" repeat "$folder/model.psc" "$p" 1000 ;;
            speed)
                "$folder/harness" start "$folder/model.psc" "$p" nocache
                "$folder/harness" start "$folder/model.psc" "$p" cache
                "$folder/harness" speed "$folder/model.psc" "$p" 512 1984
                ;;
            esac
        done >"$results/$name-$part.txt" 2>&1
    done
done
