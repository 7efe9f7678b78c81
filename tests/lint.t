#!/bin/sh
# `make lint`, a test for each of its tools.
cd "$(dirname "$0")/.." || exit 1
count=0 failures=0
for tool in format tidy lua shell; do
    count=$((count + 1))
    if found=$(make --silent --no-print-directory "lint-$tool" 2>&1); then
        echo "ok $count - lint-$tool"
    else
        echo "$found" | sed 's/^/# /' >&2
        echo "not ok $count - lint-$tool"
        failures=1
    fi
done
echo "1..$count"
exit $failures
