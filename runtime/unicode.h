// UTF-8, the three character classes of the splitting rules, and normalization form C (Unicode
// Standard Annex 15). The data of the latter two is in the tokenizer's part of the pack.
#ifndef UNICODE_H
#define UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "error.h"

enum unicode_class { // the values in class_start
    UNICODE_OTHER,
    UNICODE_LETTER, // \p{L}: Lu, Ll, Lt, Lm, Lo
    UNICODE_NUMBER, // \p{N}: Nd, Nl, No
    UNICODE_SPACE,  // \s: White_Space
};

enum { DECOMPOSITION_MAX = 4 };

// Unicode's data, made by codegen/unicode.lua; without form C all tables but the first are empty.
// Code points ascend in each. Hangul syllables, which are arithmetic, are not in the last three.
struct unicode_tables {
    uint32_t classes, combining, decompositions, compositions; // lengths of the tables
    const uint32_t *class_start;     // [classes] where it changes: code point << 2 | unicode_class
    const uint32_t *combining_start; // [combining] where it changes: point << 8 | combining class
    const uint32_t *decomposed;      // [decompositions] what has a canonical decomposition
    const uint32_t *decomposition;   // [decompositions][DECOMPOSITION_MAX] all of it, 0 behind it
    const uint32_t *composition;     // [compositions][3] first, second, what they compose to
};

// Checks all that the functions below rely on; form C's tables may be empty unless nfc. EXIT_PACK.
static int unicode_check(const struct unicode_tables *u, bool nfc, struct error *error);

static enum unicode_class unicode_class(const struct unicode_tables *u, uint32_t point);

// Reads the code point that starts at text, of which bytes > 0 are there. Returns its length, 1 to
// 4, or 0 if this is not UTF-8: stray or missing continuation bytes, overlong forms, surrogates,
// anything past U+10FFFF.
static size_t utf8_decode(const char *text, size_t bytes, uint32_t *point);

// How many of the first bytes are UTF-8: all of them, or those before the first that are not.
static size_t utf8_prefix(const char *text, size_t bytes);

// Writes a code point at text; returns its length, 1 to 4.
static size_t utf8_encode(char *text, uint32_t point);

// Whether text surely is in form C: it holds no code point from U+0300 on, where the first
// character lives that is not. (False does not mean that it is not in form C.)
static bool nfc_is_plain(const char *text, size_t bytes);

// A text of n bytes becomes at most 3 n bytes in form C (U+1D160 does, among others), and is at
// most 3 n / 2 code points when decomposed (U+0390: two bytes, three code points). unicode_check
// sees to it that damaged tables keep to these.
enum { NFC_BYTES_FACTOR = 3, NFC_POINTS_FACTOR = 2 };

// Writes the form C of text, valid UTF-8, to out [NFC_BYTES_FACTOR * bytes]; returns its length.
// points, spare: scratch, [NFC_POINTS_FACTOR * bytes] each. Time is linear, whatever the text.
static size_t nfc_normalize(const struct unicode_tables *u, const char *text, size_t bytes,
                            char *out, uint32_t *points, uint32_t *spare);

#endif
