#!/bin/sh
# Streams of Python, then the statistics. ENGINE is made from SmolLM2-135M with an adapter.
#
#     demo.sh ENGINE
prompt='def fibonacci(n):
    """Return the n-th Fibonacci number."""
'
printf '\n%s' "$prompt"
"$1" generate -p "$prompt" --temp 0 -n 120 || {
    echo "The engine failed: its line above says why" >&2
    exit 1
}
