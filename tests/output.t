#!/bin/sh
# Text on its way out: see output_harness.c.
here=$(dirname "$0")
folder=$(mktemp -d) || exit 1
trap 'rm -rf "$folder"' EXIT
"${CC:-cc}" -std=c11 -O1 -g -Wall -Wextra -Werror -fsanitize=address,undefined \
    -fno-sanitize-recover=undefined -D_GNU_SOURCE -I"$here/../runtime" "$here/output_harness.c" \
    -o "$folder/output" || exit 1
"$folder/output"
