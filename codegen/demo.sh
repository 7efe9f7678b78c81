#!/bin/sh
# One engine, made from SmolLM2-135M and its adapters, writes Python with four streams; then the
# same prompt with one stream and with eight, and the time and memory of each.
#
#     demo.sh ENGINE
engine=$1
prompt='def fibonacci(n):
    """Return the n-th Fibonacci number."""
'
statistics=$(mktemp) || exit 1
trap 'rm -f "$statistics"' EXIT

# write STREAMS TOKENS: text as it comes, statistics into a file.
write() {
    printf '\n%s' "$prompt"
    if ! "$engine" generate --streams "$1" -p "$prompt" --temp 0 -n "$2" 2>"$statistics"; then
        cat "$statistics" >&2
        echo "The engine failed: its line above says why" >&2
        exit 1
    fi
    echo
}

# The figures of the last run in one line.
summary() {
    awk -v streams="$1" '
        /^decode:/ { for (i = 2; i <= NF; i++) { if ($i ~ /^tokens\/s/) rate = $(i - 1)
                                                 if ($i == "ms" && $(i + 1) == "a") step = $(i - 1) } }
        /^memory:/ { memory = $2 }
        END { printf("P = %s: %6s tokens/s, %7s ms a token, %6s MiB of memory\n", streams, rate,
                     step, memory) }' "$statistics"
}

echo 'Four streams write Python:'
write 4 120
cat "$statistics"
echo
echo 'The same engine and prompt, one stream:'
write 1 60
one=$(summary 1)
echo 'Eight streams:'
write 8 60
printf '%s\n%s\n' "$one" "$(summary 8)"
