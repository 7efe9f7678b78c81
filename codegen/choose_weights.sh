#!/bin/sh
# Says where the weights of the engine in FOLDER come from: its pack.job, which the generator has
# written, or for FROM = random the file pack.seed. Make knows by these files when to pack again.
#
#     choose_weights.sh FOLDER FROM SEED
folder=$1
if [ "$2" != random ]; then
    rm -f "$folder/pack.seed"
    exit 0
fi
rm -f "$folder/pack.job" "$folder/tokenizer.bin"
[ "$(cat "$folder/pack.seed" 2>/dev/null)" = "$3" ] || echo "$3" >"$folder/pack.seed"
