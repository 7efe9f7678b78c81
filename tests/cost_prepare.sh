#!/bin/sh
# Prepares what tests/cost_measured.sh needs in FOLDER: for MODEL (a spec's name or path) an engine
# and its packer for each P, and for the larger models of one stream that lose as little.
#
#     cost_prepare.sh FOLDER MODEL
#
# Then, here or on another machine, to which FOLDER is copied: sh FOLDER/cost_measured.sh FOLDER
set -eu
folder=$1 model=$2
mkdir -p "$folder"
cp tests/cost_measured.sh tests/start_harness.c "$folder/"
lua5.4 codegen/cost_main.lua shapes --model "$model" --folder "$folder"
names=$(sed '1d;s/,.*//' "$folder/shapes.csv")
for name in $names; do
    lua5.4 codegen/main.lua --from random --spec "$folder/$name.lua" --out "$folder" >/dev/null
done
