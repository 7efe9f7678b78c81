#!/bin/sh
# Measures the engines that tests/gpu_bench_prepare.sh made, on this machine's GPU:
#     sh tests/gpu_bench.sh RESULTS [PART...]        from the prepared folder
# Parts: engine peer profile; all if none is named. engine and peer append rows to
# RESULTS/bench.csv, from which tests/gpu_tables.lua makes the tables; profile writes
# RESULTS/profile.md: what ncu says of every kernel of a decode step. Needs gcc, and for the last
# two PyTorch and ncu: without them they are left out.
#
# In the environment: STREAMS, CONTEXTS and PROMPT are what is measured, in STEPS steps at least;
# PEER_SIZES (compiling takes PyTorch minutes), PEER_MODE of torch.compile, PEER_SECONDS at most for
# each size; PROFILE_STREAMS, PROFILE_CONTEXT.
set -u
results=$1
shift
parts=${*:-engine peer profile}
streams=${STREAMS:-1 2 4 8}
contexts=${CONTEXTS:-512 2000}
prompt=${PROMPT:-1984}
csv=$results/bench.csv
failures=0
export CUDA_CACHE_DISABLE=1 # NVRTC's: a first start is to compile
mkdir -p "$results"
cache=$(cd "$results" && pwd)/cache

# The engine as its program starts: with one queue of work, and a cache of kernels of its own.
own() {
    CUDA_DEVICE_MAX_CONNECTIONS=1 XDG_CACHE_HOME=$cache "$@"
}

wanted() {
    case " $parts " in *" $1 "*) return 0 ;; esac
    return 1
}

# Engine, pack and harness of the folder $1. A pack is of random weights.
build() {
    if [ ! -f "$1/model.psc" ]; then
        gcc -O3 -march=native -o "$1/pack" "$1/pack.c" -lm -pthread &&
            "$1/pack" --random 1 "$1/model.psc" >/dev/null || return 1
    fi
    [ -x "$1/harness" ] || gcc -std=c11 -O2 -march=native -DPARSCALE_NO_MAIN -o "$1/harness" \
        tests/gpu_harness.c "$1/engine.c" -lm -pthread -ldl
}

# "A B C" as "A,B,C"
list() {
    echo "$1" | tr ' ' ','
}

# device,driver,power limit
device=$(nvidia-smi --query-gpu=name,driver_version,power.limit --format=csv,noheader,nounits |
    head -n 1 | sed 's/, */,/g')
columns=source,device,driver,power_limit_w,size,dtype,streams,what,context,value
[ -s "$csv" ] || echo $columns >"$csv"

for folder in bench/*/; do
    wanted engine || continue
    folder=${folder%/}
    name=$(basename "$folder")
    if ! build "$folder"; then
        failures=1
        continue
    fi
    label=parscale.c,$device,${name%-*},${name##*-}
    for p in $streams; do
        echo "$name, P = $p" >&2
        rm -rf "$cache"
        own "$folder/harness" first "$folder/model.psc" "$p" "$label" >>"$csv" || failures=1
        # shellcheck disable=SC2086  # a list of contexts
        own "$folder/harness" table "$folder/model.psc" "$p" "$label" "$prompt" "${STEPS:-200}" \
            $contexts >>"$csv" || failures=1
    done
done
rm -rf "$cache"

if wanted peer; then
    if python3 -c 'import torch; assert torch.cuda.is_available()' 2>"$results/peer.log"; then
        for size in ${PEER_SIZES:-1.8B}; do
            echo "PyTorch, $size" >&2
            timeout "${PEER_SECONDS:-400}" python3 tests/peer_torch.py --label "$device" \
                --size "$size" --streams "$(list "$streams")" --contexts "$(list "$contexts")" \
                --prompt "$prompt" --mode "${PEER_MODE:-max-autotune-no-cudagraphs}" \
                >>"$csv" 2>>"$results/peer.log" || failures=1
        done
    else
        echo "no PyTorch with a GPU here: no rows of the peer" >&2
    fi
fi

stall=smsp__average_warps_issue_stalled
metrics=gpu__time_duration.sum,dram__bytes_read.sum
metrics=$metrics,dram__throughput.avg.pct_of_peak_sustained_elapsed
metrics=$metrics,sm__warps_active.avg.pct_of_peak_sustained_active
for reason in long_scoreboard short_scoreboard barrier membar wait math_pipe_throttle \
    mio_throttle lg_throttle not_selected sleeping branch_resolving dispatch_stall; do
    metrics=$metrics,${stall}_${reason}_per_issue_active.ratio
done

# Every kernel alone, with cold caches. The first two launches are the prompt's: logits and choice.
profile() { # FOLDER STREAMS
    ncu --csv --page raw --print-units base --clock-control none --graph-profiling node \
        --kernel-name 'regex:^(decode_step|choose)$' --launch-skip 2 \
        --metrics "$metrics" "$1/harness" step "$1/model.psc" "$2" "${PROFILE_CONTEXT:-512}"
}

if wanted profile; then
    if command -v ncu >/dev/null; then
        : >"$results/profile.md"
        for folder in bench/*/; do
            folder=${folder%/}
            build "$folder" || continue
            for p in ${PROFILE_STREAMS:-1 8}; do
                name=$(basename "$folder")
                echo "ncu, $name, P = $p" >&2
                profile "$folder" "$p" >"$results/ncu-$name-$p.csv" 2>&1
                awk -v title="$name, P = $p" -f tests/gpu_profile.awk \
                    "$results/ncu-$name-$p.csv" >>"$results/profile.md" || failures=1
            done
        done
    else
        echo "no ncu here: no profile" >&2
    fi
fi
exit $failures
