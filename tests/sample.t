#!/bin/sh
# The sampler and the log-probabilities, compiled with sanitizers: see sample_harness.c.
here=$(dirname "$0")
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
"${CC:-cc}" -std=c11 -O2 -g -Wall -Wextra -Werror -fsanitize=address,undefined \
    -fno-sanitize-recover=undefined -I"$here/../runtime" "$here/sample_harness.c" \
    -o "$folder/sample" -lm || exit 1
"$folder/sample"
