// The tile: 16 x 16 elements, the one layout of every matrix in the pack and of the KV cache.
//
// A tile is 32 chunks of 16 bytes. Chunk 8i + g (i in 0..3, g in 0..7) holds four pairs of
// neighbouring columns, each one 32-bit word:
//
//     word:         0                1                2                3
//     row:          g                g              g + 8            g + 8
//     columns:  2i, 2i + 1    2i + 8, 2i + 9      2i, 2i + 1    2i + 8, 2i + 9
//
// On a GPU, a chunk is what lane 4g + i of a warp holds of the A fragment of mma.sync m16n8k16
// (registers 0, 2, 1, 3). On a CPU, four chunks are one 512-bit register: eight rows by two pairs,
// multiplied word by word with two activation words, repeated; 16 rows of one column are then two
// accumulators. Activations are packed in the order of those words (struct isa in cpu.h).
#ifndef TILE_H
#define TILE_H

#include <stddef.h>
#include <stdint.h>

enum {
    TILE = 16,                      // rows, and columns
    TILE_ELEMENTS = TILE * TILE,    //
    TILE_GROUPS = 8,                // groups of two rows
    TILE_BYTES = TILE_ELEMENTS * 2, // bf16
};

// Where element (row, column) of a tile lies, in elements. row, column: 0..15.
static inline size_t tile_index(size_t row, size_t column) {
    size_t pair = column / 2, chunk = pair % 4 * 8 + row % 8, word = row / 8 * 2 + pair / 4;
    return (chunk * 4 + word) * 2 + column % 2;
}

#endif
