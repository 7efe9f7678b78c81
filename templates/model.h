// The engine's state: one pack, one cache, one block of columns being computed.
//
// A block is up to BLOCK_COLUMNS columns, tokens x streams; column c = stream * tokens + token. A
// decode step is the block of one token. Every projection multiplies all columns by each weight
// that is loaded: that is what makes P streams cheap.
#ifndef MODEL_H
#define MODEL_H

#include <stdint.h>
#include "engine_dims.h"
#include "cpu.h"
#include "error.h"
#include "gpu.h"
#include "pack_file.h"
#include "parscale.h"
#include "sample.h"
#include "threads.h"
#include "tile.h"
#include "tokenizer.h"

struct block {
    const int32_t *ids; // [tokens]
    size_t tokens;
    size_t streams;                 // P
    size_t position;                // of the first token
    size_t head_first, head_tokens; // logits are wanted for head_tokens tokens from head_first on
};

struct parscale {
    struct parscale_info info;
    struct error error;
    struct pack_file file;
    struct tokenizer tokenizer;
    char *system_prompt; // the tokenizer's default, terminated; NULL if it has none
    struct pool *pool;
    const struct isa *bulk;        // most products: activations may be rounded to bf16
    const struct isa *isa;         // fp32 activations: q, k, v, the head and the aggregation
    const struct adapter *adapter; // of the P in use
    struct buffers *buffers;       // the memory plan of dims.h
    struct scratch *scratch;       // [threads]: each thread's own part of it
    char *cache;                   // [CACHE_SLOTS, kv_heads, keys and values, tiles]
    struct gpu *gpu;               // NULL: the CPU computes
    bool needs_gpu;                // or fails
    char device_note[512];         //
    size_t position;               // ids in the cache
    struct block block;            // the work in hand
    size_t logits_row;             // row of buffers->logits that parscale_logits returns
};

static inline size_t tiles_for(size_t n) {
    return (n + TILE - 1) / TILE;
}

static inline const void *pack_at(const struct parscale *model, size_t offset) {
    return model->file.base + offset;
}

// Bytes of n packed activations for bf16 tiles, and of all their planes.
static inline size_t packed_bytes(const struct isa *isa, size_t n) {
    return tiles_for(n) * isa->packed_bytes;
}

static inline size_t packed_stride(const struct isa *isa, size_t n) {
    return WEIGHT_PLANES * packed_bytes(isa, n);
}

// Packs x [n] for a product with bf16 tiles: once for each of their planes. Elements of x from n up
// to the next multiple of 16 must be 0.
static inline void pack_column(const struct isa *isa, const float *x, size_t n, char *packed) {
    for (size_t plane = 0; plane < WEIGHT_PLANES; plane++)
        isa->pack(x, tiles_for(n) * TILE, packed + plane * packed_bytes(isa, n));
}

// Row of tiles `row_tile` of matrix W, bf16, at `base` + w->offset of the pack, times the packed
// columns x: y[c * y_stride + r], r in 0..15.
static inline void multiply_bf16(const struct parscale *model, const struct isa *isa,
                                 const struct matrix *w, size_t base, size_t row_tile,
                                 const char *x, size_t columns, float *y, size_t y_stride) {
    size_t tiles = (size_t)w->column_tiles * WEIGHT_PLANES;
    const char *row = pack_at(model, base + w->offset + row_tile * tiles * TILE_BYTES);
    isa->product(row, tiles, TILE_BYTES, x, tiles * isa->packed_bytes, columns, y, y_stride);
}

#endif
