#!/bin/sh
# Fetches the Python text that tests/quality.lua scores: the sources of meld (GPL-2+), a GTK program
# of Debian. Nothing of it is installed or run.
#
#     fetch_heldout.sh FOLDER
set -e
folder=$1
package=meld=3.22.0-2
hash=2ef6b402cb7fa5c7b16ea71dfe4633bfacc16e6e388c3b36d7ed969d950bffd6

fail() {
    echo "$1" >&2
    exit 1
}

mkdir -p "$(dirname "$folder")"
part=$(mktemp -d -p "$(dirname "$folder")")
trap 'rm -rf "$part"' EXIT INT TERM

echo "fetching the Python sources of $package, 0.5 MB"
download() {
    (cd "$part" && apt-get download -qq "$package" 2>/dev/null)
}
# A fresh system has no package lists.
download || { [ "$(id -u)" -eq 0 ] && apt-get update -qq && download; } ||
    fail "$package could not be downloaded: is the network there, and are Debian's package lists \
(apt-get update)?"
echo "$hash  $(echo "$part"/*.deb)" | sha256sum --check --quiet - ||
    fail "$package is another package than expected (SHA-256 $hash)"
dpkg-deb -x "$part"/*.deb "$part"
mv "$part/usr/lib/python3/dist-packages/meld" "$folder"
