// Quantised tiles: 16 rows x 32 columns in 8 or 4 bits a weight. The 32 columns of a row are a
// group with a scale of its own, as in GGUF's Q8_0, Q4_0 and Q4_1, whose blocks fit as they are:
//
//     int8: weight = scale * (u - 128), u in 0..255     544 bytes a tile
//     int4: weight = scale * u + minimum, u in 0..15    320 bytes a tile
//
// A tile is its quants in 32-bit words, then a scale (int4: then a minimum) for each row, in f16.
// int8: words (i, w), i in 0..3, w in 0..1, for each row; byte b of a word is column
// 8w + {2i, 16 + 2i, 2i + 1, 17 + 2i}[b]. int4: words i for each row; the low half of byte b is the
// column of int8's word (i, 0), the high half that of word (i, 1).
//
// Rows lie in the order 0, 8, 1, 9, ..., 7, 15 wherever a tile has something for each row; but in
// int8's words of i = 2 and 3 the last eight of them come first.
//
// On a CPU, a 512-bit register is one word of each row: it is multiplied, four columns at a time,
// with one word of activations in the same order, and its sums are one accumulator, a lane a row.
// On a GPU, lane 4g + i of a warp finds the words of rows g and g + 8 side by side; bytes 0, 2 and
// bytes 1, 3 are the pairs of columns that registers w of the A fragments of two mma.sync m16n8k16
// take, so they come out of a mask and a shift. Half a warp reads at once: with half of the words
// in the other order, and lanes of an odd i reading w = 1 first, no two meet in a bank.
//
// Behind a matrix's last column weights are finite but not zero (int4 has no zero): activations
// there must be zero.
#ifndef TILE_QUANTIZED_H
#define TILE_QUANTIZED_H

#include <stdbool.h>
#include <stddef.h>
#include "tile.h"

enum {
    GROUP = 32,        // columns that share a scale, and columns of a tile
    GROUP_WORDS = 8,   // words of activations in a group
    INT8_SCALES = 512, // bytes from the start of a tile
    INT8_TILE_BYTES = 544,
    INT4_SCALES = 256,
    INT4_MINIMUMS = 288,
    INT4_TILE_BYTES = 320,
};

// Where row 0..15 stands among the rows.
static inline size_t quantized_lane(size_t row) {
    return row % 8 * 2 + row / 8;
}

// Where the word is that has word 2i + w of int8 for a row, in bytes; lane: as above.
static inline size_t quantized_word(bool int4, size_t word, size_t lane) {
    return int4 ? (word / 2 * TILE + lane) * 4 : (word * TILE + (lane ^ word / 4 * 8)) * 4;
}

// The column that byte b of word 2i + w holds.
static inline size_t quantized_column(size_t word, size_t b) {
    return word % 2 * 8 + word / 2 * 2 + b % 2 * 16 + b / 2;
}

#endif
