#!/bin/sh
# Measures what P streams add to memory and latency, and what a larger model of the same predicted
# loss adds: the engines that tests/cost_prepare.sh made in FOLDER, with random weights, on this
# machine, in alternating rounds. Needs cc and awk, and nvidia-smi for a GPU; no Lua.
#
#     cost_measured.sh FOLDER
#
# ROUNDS (3), THREADS (0: all), DEVICE (cpu or cuda), LENGTHS (64 128 256 512: input and output
# tokens of a request), TOKENS (16: decoded in the middle of a request's output to time it).
# Prints the medians; FOLDER/samples.csv has every sample.
set -eu
folder=$1
rounds=${ROUNDS:-3} threads=${THREADS:-0} device=${DEVICE:-cpu} tokens=${TOKENS:-16}
lengths=${LENGTHS:-64 128 256 512}
here=$(dirname "$0")
names=$(sed '1d;s/,.*//' "$folder/shapes.csv")
samples=$folder/samples.csv

# newer FILE SOURCE: whether FILE is there and was made after SOURCE.
newer() {
    [ -n "$(find "$1" -newer "$2" 2>/dev/null)" ]
}
for name in $names; do
    at=$folder/$name
    newer "$at/engine" "$at/engine.c" || cc -std=c11 -O3 -fno-trapping-math -o "$at/engine" \
        "$at/engine.c" -lm -pthread -ldl
    newer "$at/pack" "$at/pack.c" || cc -O3 -o "$at/pack" "$at/pack.c" -lm -pthread
    newer "$at/model.psc" "$at/pack.c" || "$at/pack" --random 1 "$at/model.psc" >&2
done
cc -std=c11 -O1 -D_GNU_SOURCE -o "$folder/start_harness" "$here/start_harness.c"

# MiB that the command takes at most: of this machine, or of its GPU.
peak_memory() {
    if [ "$device" = cpu ]; then
        "$folder/start_harness" 1 "$@" 2>/dev/null | sed 's/.*peak=//'
        return
    fi
    used() { nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1; }
    before=$(used) most=0
    "$@" >/dev/null 2>&1 &
    while kill -0 $! 2>/dev/null; do
        now=$(used)
        [ "$now" -le "$most" ] || most=$now
    done
    wait $!
    echo $((most - before))
}

# A request of the longest length.
longest=$(echo "$lengths" | tr ' ' '\n' | sort -n | tail -n 1)
ids=$(awk -v n="$longest" 'BEGIN { for (i = 0; i < n; i++) printf "%d ", i * 7919 % 40000 }')
echo "round,name,what,length,value" >"$samples"
for name in $names; do
    peak=$(peak_memory "$folder/$name/engine" generate --ids "$ids" -n "$longest" --temp 0 \
        --ignore-eos --print-ids -t "$threads" --device "$device")
    echo "0,$name,memory,0,$peak" >>"$samples"
done

# bench WHAT ARGUMENT...: a row of samples for each length; bench's own rows are in their order.
bench() {
    what=$1
    shift
    "$folder/$name/engine" bench "$@" -r 1 -o csv -t "$threads" --device "$device" 2>/dev/null |
        awk -F, -v round="$round" -v name="$name" -v what="$what" -v lengths="$lengths" '
            BEGIN { split(lengths, length_of, " ") }
            NR == 1 { for (i = 1; i <= NF; i++) if ($i == "ms_token") column = i }
            NR > 1 { print round "," name "," what "," length_of[NR - 1] "," $column }' >>"$samples"
}

prompts=$(echo "$lengths" | tr ' ' ',')
depths=$(for n in $lengths; do echo $((n + n / 2 - tokens / 2)); done | paste -s -d , -)
round=1
while [ "$round" -le "$rounds" ]; do
    echo "round $round of $rounds" >&2
    for name in $names; do
        bench prefill -p "$prompts" -n 0
        bench decode -p 0 -n "$tokens" -d "$depths"
    done
    round=$((round + 1))
done

awk -F, -v rounds="$rounds" -v lengths="$lengths" '
    function median(key,    i, j, list, n, x) {
        n = count[key]
        for (i = 1; i <= n; i++) {
            x = values[key, i]
            for (j = i - 1; j > 0 && list[j] > x; j--) list[j + 1] = list[j]
            list[j + 1] = x
        }
        spread = list[n] / list[1] > spread ? list[n] / list[1] : spread
        return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
    }
    # What streams and the larger model add to `one`, and the ratio if noise leaves one.
    function added(format, streams, grown, one) {
        return sprintf(format, streams - one, grown - one,
            streams > one ? sprintf("%.2f", (grown - one) / (streams - one)) : "-")
    }
    FILENAME ~ /shapes.csv$/ {
        if (FNR > 1) {
            names[++shapes] = $1; way[$1] = $2; P[$1] = $3; N[$1] = $4; h[$1] = $5; I[$1] = $6
            loss[$1] = $8
        }
        next
    }
    FNR > 1 { key = $2 "," $3 "," $4; values[key, ++count[key]] = $5 }
    END {
        lengths_count = split(lengths, length_of, " ")
        for (s = 1; s <= shapes; s++) {
            name = names[s]
            memory[name] = median(name ",memory,0")
            for (i = 1; i <= lengths_count; i++) {
                n = length_of[i]
                ms = median(name ",decode," n)
                decode[name] += ms / lengths_count
                request[name] += (median(name ",prefill," n) + ms) * n / 1000 / lengths_count
            }
        }
        printf "medians of %d rounds; requests of %s tokens in and as many out, averaged\n", rounds,
            lengths
        print "                     N/1e6 hidden inter.   loss  memory MiB  decode ms  request s"
        for (s = 1; s <= shapes; s++) {
            name = names[s]
            printf "%-9s P = %d %10.1f %6d %6d %.4f %11.1f %10.3f %10.3f\n",
                way[name] == "streams" ? "streams," : "grown for", P[name], N[name] / 1e6, h[name],
                I[name], loss[name], memory[name], decode[name], request[name]
        }
        one = "streams-1"
        print "\nadded to P = 1       memory MiB           decode ms           request s"
        print " P    streams   grown ratio  streams  grown ratio  streams  grown ratio"
        for (p = 2; p <= 8; p *= 2) {
            a = "streams-" p; b = "grown-" p
            printf " %d %s  %s  %s\n", p,
                added("%10.1f %7.1f %5s", memory[a], memory[b], memory[one]),
                added("%7.3f %6.3f %5s", decode[a], decode[b], decode[one]),
                added("%7.3f %6.3f %5s", request[a], request[b], request[one])
        }
        printf "\nlargest sample over smallest of the same thing: %.2f at most\n", spread
    }' "$folder/shapes.csv" "$samples"
