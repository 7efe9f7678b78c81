#!/bin/sh
# Installs those of the Debian packages PACKAGE... that are missing, as root or through sudo. Does
# nothing and says nothing if none is.
#
#     install.sh PACKAGE...
if ! command -v dpkg-query >/dev/null; then
    echo "This is no Debian system: what these Debian packages hold has to be there: $*"
    exit 0
fi
# sed drops what is installed; a package that dpkg never heard of is in no line of its output.
installed=" $(dpkg-query -W -f='${db:Status-Status} ${Package}\n' "$@" 2>/dev/null |
    sed -n 's/^installed //p' | tr '\n' ' ')"
missing=
for package in "$@"; do
    case $installed in
    *" $package "*) ;;
    *) missing="$missing $package" ;;
    esac
done
[ -z "$missing" ] && exit 0

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null; then
    as_root=sudo
else
    echo "Missing packages, and this is neither root nor is there sudo. As root, run:" >&2
    echo "    apt-get install$missing" >&2
    exit 1
fi
echo "installing${as_root:+ through sudo}:$missing"
log=$(mktemp) || exit 1
# shellcheck disable=SC2086 # a list of words
if ! { $as_root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $as_root apt-get install \
    -y -qq --no-install-recommends $missing; } >"$log" 2>&1 </dev/null; then
    tail -n 5 "$log" >&2
    echo "The packages could not be installed. Is the network there, and room on the disk?" >&2
    echo "Then run this again; or, as root: apt-get install$missing" >&2
    rm -f "$log"
    exit 1
fi
rm -f "$log"
