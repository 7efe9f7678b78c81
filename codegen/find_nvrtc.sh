#!/bin/sh
# Prints the folder of NVRTC, NVIDIA's run-time compiler, for LD_LIBRARY_PATH: a CUDA toolkit's if
# there is one; else one below FOLDER, where it is put first, from its Python package, of which
# nothing is run (needs python3 with pip; 90 MB to fetch, 230 MB on the disk). NVRTC_PACKAGE names
# another version, which is then taken in any case: kernels for a driver of CUDA 12 need an NVRTC of
# CUDA 12.
#
#     find_nvrtc.sh FOLDER
set -e
package=${NVRTC_PACKAGE:-nvidia-cuda-nvrtc==13.0.88}
folder=$1/$package

if [ -z "$NVRTC_PACKAGE" ]; then
    for found in $(ldconfig -p 2>/dev/null | sed -n 's/.*=> \(.*\)\/libnvrtc\.so\.1[23]$/\1/p') \
        /usr/local/cuda/lib64; do
        if ls "$found"/libnvrtc.so.1[23] >/dev/null 2>&1; then
            echo "$found"
            exit 0
        fi
    done
fi
if [ ! -d "$folder" ]; then
    echo "fetching NVRTC: package $package, 90 MB" >&2
    mkdir -p "$1"
    part=$(mktemp -d -p "$1")
    trap 'rm -rf "$part"' EXIT INT TERM
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
        --dest "$part" "$package" >&2 || {
        echo "$package could not be downloaded: is the network there? Where it is not, install" \
            "the CUDA toolkit" >&2
        exit 1
    }
    python3 -m zipfile -e "$part"/*.whl "$part"
    mv "$part"/nvidia/*/lib "$folder"
fi
cd "$folder"
pwd
