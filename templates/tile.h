// The tile: 16 x 16 elements in the order of an mma.sync m16n8k16 A fragment, the one layout of
// every matrix in the pack and of the KV cache.
//
// A tile is 8 groups of 16 32-bit words. Group g holds rows g and g + 8. Word w of a group is a
// pair of neighbouring columns: bit 0 of w chooses the row, bit 1 the columns 0-7 or 8-15, bits 2-3
// the pair among them:
//
//     w:        0      1      2      3      4      5     ...   15
//     row:      g    g+8      g    g+8      g    g+8          g+8
//     columns: 0,1   0,1    8,9    8,9    2,3    2,3         14,15
//
// On a GPU, lane 4g + i of a warp loads words 4i..4i+3 of group g as its 16-byte fragment. On a
// CPU, a group is one 512-bit register: two rows by eight pairs, multiplied lane by lane with 16
// activations that were packed in the same order, each pair twice (struct isa in cpu.h).
#ifndef TILE_H
#define TILE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum {
    TILE = 16,                      // rows, and columns
    TILE_ELEMENTS = TILE * TILE,    //
    TILE_GROUPS = 8,                // groups of two rows
    TILE_BYTES = TILE_ELEMENTS * 2, // bf16
};

static inline size_t tiles_for(size_t n) {
    return (n + TILE - 1) / TILE;
}

// Where element (row, column) of a tile lies, in elements. row, column: 0..15.
static inline size_t tile_index(size_t row, size_t column) {
    size_t pair = column / 2;
    size_t word = pair % 4 * 4 + pair / 4 * 2 + row / 8;
    return row % 8 * 32 + word * 2 + column % 2;
}

// The column pair that word 2i (and 2i + 1) of a group holds, i in 0..7.
static inline size_t tile_pair(size_t i) {
    return i / 2 + i % 2 * 4;
}

static inline float bf16_to_float(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// A word of a tile: the even column in its low half, the odd one in its high half.
static inline float word_even(uint32_t word) {
    uint32_t bits = word << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline float word_odd(uint32_t word) {
    uint32_t bits = word & 0xffff0000;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// Rounds to nearest, ties to even; a NaN stays a NaN.
static inline uint16_t float_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
