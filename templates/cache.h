// The KV cache as attention and the projections see it. cache_bf16.c and cache_int8.c are what is
// kept; an engine has one of the two.
#ifndef CACHE_H
#define CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include "model.h"

static const size_t HEAD_TILES = (HEAD_DIM + TILE - 1) / TILE;

// How a segment is multiplied: struct isa's pack and product, for its kind of tiles.
struct cache_product {
    size_t packed_bytes; // that 16 packed activations take
    size_t column_bytes; // and what a column has besides
    void (*pack)(const float *x, size_t n, void *packed);
    void (*product)(const void *row, size_t column_tiles, size_t apart, const void *x,
                    size_t x_stride, size_t columns, float *y, size_t y_stride);
};

// Keys and values of one stream and kv head: the learned prefix, or the cache. All distances in
// bytes. Tile (position tile t, dimension tile d) of the keys is at keys + t * apart + d * tile.
struct segment {
    const char *keys;   // [tiles of positions, head_dim]
    const char *values; // [head_dim, tiles of positions]
    const char *scales; // of an int8 cache: fp32 [16] of the keys, then of the values, `apart` too
    size_t tile;        // size of a tile
    size_t apart;       // keys of one tile of positions to the next
    size_t value_apart; // values of one tile of positions to the next
    size_t value_row;   // values of one tile of dimensions to the next
    size_t planes;      // a prefix has the weights' planes, the cache one
    size_t plane;       // one plane to the next
    size_t positions;   // valid ones, for the last token of the item
    bool causal;        // token t of the block sees positions up to its own
    struct cache_product by;
    char *queries; // packed for it
};

// Where a column's q, k and v go.
struct destination {
    size_t layer, stream, column, position;
    const float *rotary; // [2, head_dim / 2]: cosines and sines of the position
};

// Layer 0 is the same in all streams and kept once.
static inline size_t cache_slot(size_t layer, size_t stream) {
    return layer == 0 ? 0 : 1 + (layer - 1) * MAX_STREAMS + stream;
}

static inline size_t segment_stride(const struct segment *segment, size_t n) {
    return (n + TILE - 1) / TILE * segment->by.packed_bytes + segment->by.column_bytes;
}

#endif
