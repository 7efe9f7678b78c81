#!/bin/sh
# Checks and measures the engines that tests/gpu_prepare.sh made, on this machine's GPU:
#     sh tests/gpu.sh RESULTS [PART...]        from the prepared folder
# Parts: golden real sanitize random repeat fill start speed; all if none is named. STREAMS: the P
# that are measured. Prints TAP and leaves what the programs say in RESULTS/*.txt. Ends with 1 if a
# check failed; what is only measured, no check judges.
set -u
results=$1
shift
parts=${*:-golden real sanitize random repeat fill start speed}
streams=${STREAMS:-1 2 4 8}
count=0 failures=0
export CUDA_DEVICE_MAX_CONNECTIONS=1 # as the engine's program has it
export CUDA_CACHE_DISABLE=1           # NVRTC's: a first start is to compile
mkdir -p "$results"

wanted() {
    case " $parts " in *" $1 "*) return 0 ;; esac
    return 1
}

# check NAME FILE CONDITION: CONDITION, of awk, holds for the key=value pairs of every line with
# pairs in FILE, v["KEY"], and there is such a line.
check() {
    count=$((count + 1))
    if awk -F'[ =]' "{ delete v; for (i = 1; i < NF; i++) v[\$i] = \$(i + 1) + 0 }
        /=/ { n++; if (!($3)) bad = 1 }
        END { exit !(n && !bad) }" "$2"; then
        echo "ok $count - $1"
    else
        echo "not ok $count - $1"
        sed 's/^/# /' "$2"
        failures=1
    fi
    grep '=' "$2" | sed 's/^/# /'
}

# library ENGINE_C HARNESS_C PROGRAM
library() {
    [ -x "$3" ] || gcc -std=c11 -O2 -march=native -DPARSCALE_NO_MAIN -o "$3" "$2" \
        "$1" -lm -pthread -ldl
}

nvidia-smi --query-gpu=name,driver_version,memory.total,power.limit --format=csv |
    tee "$results/device.txt" | sed 's/^/# /'

for folder in golden/*/; do
    name=$(basename "$folder")
    if wanted golden || wanted sanitize; then
        library "$folder/engine.c" tests/golden_harness.c "$folder/golden"
    fi
    if wanted golden; then
        "$folder/golden" "$folder/model.psc" cuda "$folder/expected" \
            >"$results/golden-$name.txt" 2>&1
        check "$name: mean KL of prefill and decode" "$results/golden-$name.txt" \
            'v["kl"] <= 3e-4 && v["decodekl"] <= 3e-4 && ("decodekl" in v)'
    fi
done

if wanted real && [ -d real ]; then
    gcc -std=c11 -O3 -march=native -o real/pack real/pack.c -lm -pthread
    [ -f real/model.psc ] || real/pack real/pack.job real/model.psc >/dev/null
    library real/engine.c tests/real_harness.c real/real
    library real/engine.c tests/paths_harness.c real/paths
    for p in $streams; do
        real/real real/model.psc "$p" cuda <"real/prompts$p" >"$results/real-$p.txt" 2>&1
        check "real model, P = $p: the published log-probabilities, clear greedy choices" \
            "$results/real-$p.txt" 'v["sum"] <= 2e-2 * v["tokens"] && !v["wrong"] && v["tokens"]'
        bar=3e-4
        [ "$p" -eq 1 ] && bar=6e-4
        real/paths real/model.psc "$p" 64 "real/plain$p" cuda <real/ids \
            >"$results/paths-$p.txt" 2>&1
        check "real model, P = $p: KL to the plain path" "$results/paths-$p.txt" \
            "v[\"kl\"] <= $bar && v[\"decodekl\"] <= $bar && (\"decodekl\" in v)"
    done
fi

if wanted sanitize; then
    folder=golden/p3-hd16-odd-bf16
    sed -f tests/every_lane_tells.sed "$folder/engine.c" >"$folder/race.c"
    library "$folder/race.c" tests/golden_harness.c "$folder/race"
    for tool in memcheck racecheck initcheck; do
        count=$((count + 1))
        program=golden
        [ $tool = racecheck ] && program=race
        if timeout 300 compute-sanitizer --tool $tool --error-exitcode 9 "$folder/$program" \
            "$folder/model.psc" cuda "$folder/expected" >"$results/sanitize-$tool.txt" 2>&1; then
            echo "ok $count - compute-sanitizer $tool"
        else
            echo "not ok $count - compute-sanitizer $tool"
            tail -n 15 "$results/sanitize-$tool.txt" | sed 's/^/# /'
            failures=1
        fi
    done
fi

for folder in random/*/; do
    [ -d "$folder" ] || continue
    name=$(basename "$folder")
    for part in random repeat fill start speed; do
        wanted $part || continue
        if [ ! -f "$folder/model.psc" ]; then
            gcc -O3 -march=native -o "$folder/pack" "$folder/pack.c" -lm -pthread
            "$folder/pack" --random 1 "$folder/model.psc" >/dev/null
        fi
        library "$folder/engine.c" tests/gpu_harness.c "$folder/harness"
        pack=$folder/model.psc
        for p in $streams; do
            file=$results/$name-$part-$p.txt
            case $part in
            random) # the CPU's fast paths for int4 round more than the GPU
                isa=
                [ "${name##*-}" = int4 ] && isa=plain
                # shellcheck disable=SC2086  # none or one
                "$folder/harness" compare "$pack" "$p" 64 $isa >"$file" 2>&1
                check "$name, P = $p: 64 tokens against the CPU" "$file" \
                    'v["kl_prefill"] <= 5e-4 && v["kl_decode"] <= 5e-4 && ("kl_decode" in v)'
                ;;
            repeat)
                "$folder/harness" repeat "$pack" "$p" 1000 >"$file" 2>&1
                check "$name, P = $p: 1,000 tokens twice, bit for bit" "$file" 'v["equal"]'
                ;;
            fill)
                "$folder/harness" fill "$pack" "$p" 100 >"$file" 2>&1
                check "$name, P = $p: a prompt of context - 1 tokens" "$file" \
                    'v["kl"] <= 5e-4 && ("kl" in v)'
                ;;
            start)
                "$folder/harness" start "$pack" "$p" nocache >"$file" 2>&1
                "$folder/harness" start "$pack" "$p" cache >>"$file" 2>&1 # fills the cache
                "$folder/harness" start "$pack" "$p" cache >>"$file" 2>&1
                check "$name, P = $p: seconds to start, first and later" "$file" 'v["seconds"]'
                ;;
            speed)
                "$folder/harness" speed "$pack" "$p" 512 1984 >"$file" 2>&1
                check "$name, P = $p: speed; memory beside weights and caches" "$file" \
                    'v["decode_ms"] && v["gpu_activation_bytes"] <= 134217728'
                ;;
            esac
        done
    done
done
echo "1..$count"
exit $failures
