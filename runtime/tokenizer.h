// Byte-level BPE: text to ids and back, over a blob in the mapped pack. Relies on unicode.h.
//
// Text -> ids, as the tokenizers library does it:
//   1. Added tokens in the text become their ids, the leftmost first, of those the longest. Those
//      flagged special (<|im_start|>) only on request; the others (<tool_call>) are ordinary text
//      that happens to be one token, and always.
//   2. What lies between is brought into normalization form C, if the tokenizer has it,
//   3. split into pieces by one of two rules,
//        qwen2:  (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}
//                | ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
//        smollm: every \p{N} is a piece, and the text between them is split by
//                's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
//   4. and the bytes of each piece are merged, the pair of lowest rank first, then the leftmost. A
//      byte that is no token (SmolLM2 lacks some control characters) is dropped, as there.
//
// The blob, made by codegen/tokenizer.lua; all numbers are 32-bit little-endian, NO_ID is
// 0xffffffff. A header of sixteen numbers, then the sections, each right after the one before:
//   magic            "tok2"
//   rule             enum tokenizer_rule
//   nfc              0 or 1
//   ids              1 + the largest id; at most the model's vocab_size
//   merges           number of merges
//   added            number of added tokens
//   stops            number of stop ids
//   piece_bytes      bytes of all tokens
//   system_bytes     bytes of the default system prompt
//   chat             1: the chat template is ChatML; 0: there is none
//   im_start         id of <|im_start|>, NO_ID without chat
//   im_end           id of <|im_end|>, NO_ID without chat
//   classes, combining, decompositions, compositions
//                    lengths of the Unicode tables; without nfc all but the first are 0
//   piece_start      [ids + 1]  where the bytes of an id start; an id that is unused has none
//   byte_id          [256]      the token of a single byte, or NO_ID
//   merge_first      [ids + 1]  where the merges with this left id start
//   merge_right      [merges]   right id, ascending for the same left one
//   merge_rank       [merges]   rank, 0 is merged first
//   merge_result     [merges]   by rank: the id that the pair becomes
//   added            [added]    id << 1 | special, in the order of their bytes
//   stop             [stops]    ids that end generation
//   class_start      [classes]              these five are described in unicode.h
//   combining_start  [combining]
//   decomposed       [decompositions]
//   decomposition    [decompositions][4]
//   composition      [compositions][3]
//   pieces           [piece_bytes]          bytes
//   system           [system_bytes]         bytes
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "error.h"
#include "unicode.h"

enum tokenizer_rule {
    TOKENIZER_QWEN2 = 1,
    TOKENIZER_SMOLLM = 2,
};

// ChatML. A turn is im_start, the ids of "ROLE\nTEXT" as one text, im_end, the ids of "\n"; the
// answer follows im_start and the ids of "assistant\n". A conversation without a system turn starts
// with one that holds the default prompt, if there is one.
struct tokenizer_chat {
    bool chatml;
    int32_t im_start, im_end;
    const char *system; // default system prompt, not terminated
    size_t system_bytes;
};

struct tokenizer {
    uint32_t rule, nfc, ids, merges, added_tokens, stops;
    struct tokenizer_chat chat;
    const uint32_t *piece_start, *byte_id;
    const uint32_t *merge_first, *merge_right, *merge_rank, *merge_result;
    const uint32_t *added, *stop;
    struct unicode_tables unicode;
    const char *pieces;
};

// Sets *t to a view of the blob, which must stay where it is and be aligned to 4 bytes. Every
// offset and id in it is checked. EXIT_PACK if one is out of range.
static int tokenizer_open(struct tokenizer *t, const void *blob, size_t bytes, struct error *error);

// Text, which may hold NUL, to ids. *ids is malloc'ed and the caller's to free; on failure it is
// NULL. EXIT_INPUT: the text is not UTF-8, or longer than 1 GiB. EXIT_MEMORY.
static int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool special,
                            int32_t **ids, size_t *n, struct error *error);

// The bytes of one id, not terminated; NULL if there are none. They may end inside a character.
static const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *bytes);

// Whether generation ends at id.
static bool tokenizer_is_stop(const struct tokenizer *t, int32_t id);

#endif
