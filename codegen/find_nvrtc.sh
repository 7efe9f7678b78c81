#!/bin/sh
# Prints the folder of NVRTC, NVIDIA's run-time compiler, for LD_LIBRARY_PATH: a CUDA toolkit's if
# there is one; else FOLDER/lib, where it is put first, from its Python package, of which nothing is
# run (needs python3 with pip; 90 MB to fetch, 230 MB on the disk).
#
#     find_nvrtc.sh FOLDER
set -e
folder=$1
package=nvidia-cuda-nvrtc==13.0.88

for found in $(ldconfig -p 2>/dev/null | sed -n 's/.*=> \(.*\)\/libnvrtc\.so\.1[23]$/\1/p') \
    /usr/local/cuda/lib64; do
    if ls "$found"/libnvrtc.so.1[23] >/dev/null 2>&1; then
        echo "$found"
        exit 0
    fi
done
if [ ! -d "$folder/lib" ]; then
    echo "fetching NVRTC: package $package, 90 MB" >&2
    mkdir -p "$folder"
    part=$(mktemp -d "$folder/fetch.XXXXXX")
    trap 'rm -rf "$part"' EXIT INT TERM
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$part" "$package" >&2 || {
        echo "$package could not be downloaded: is the network there? Where it is not, install" \
            "the CUDA toolkit" >&2
        exit 1
    }
    python3 -m zipfile -e "$part"/*.whl "$part"
    mv "$part"/nvidia/cu13/lib "$folder/lib"
fi
cd "$folder/lib"
pwd
