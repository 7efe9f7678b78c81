#!/bin/sh
# Builds llama.cpp's measuring programs, for `make bench LLAMA=1`, from the source package of
# llama-cpp-python. Does nothing if they are there.
#
#     build_llama.sh FOLDER
set -e
folder=$1
package=llama-cpp-python==0.3.36
[ -x "$folder/bin/llama-quantize" ] && exit 0
rm -rf "$folder"
mkdir -p "$folder"
echo "fetching $package"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary :all: \
    --dest "$folder" "$package" || {
    echo "$package could not be downloaded: is the network there?" >&2
    exit 1
}
tar xzf "$folder"/*.tar.gz -C "$folder" --strip-components 1
echo "building llama.cpp, which takes minutes"
{
    cmake -S "$folder/vendor/llama.cpp" -B "$folder/build" -DCMAKE_BUILD_TYPE=Release \
        -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF &&
        cmake --build "$folder/build" --parallel "$(nproc)" --target llama-bench \
            llama-batched-bench llama-quantize
} >"$folder/log" 2>&1 || {
    tail -n 5 "$folder/log" >&2
    echo "llama.cpp could not be built: see $folder/log" >&2
    exit 1
}
ln -s build/bin "$folder/bin"
