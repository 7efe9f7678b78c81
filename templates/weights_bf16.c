// The weights of layers, embedding and head as bf16 tiles: products with them, and how their inputs
// are packed. weights_quantized.c is the same for quantised tiles.
#include "bf16.h"
#include "model.h"

enum { INPUT_GROUP = TILE }; // activations that are packed together

// The path for inputs that should not be rounded.
static const struct isa *exact_isa(const struct isa *isa) {
    return isa->exact ? isa->exact : isa;
}

// The path of the products of q, k and v.
static const struct isa *qkv_isa(const struct parscale *model) {
    return model->isa;
}

// Bytes of a packed input [n].
static size_t input_bytes(const struct isa *isa, size_t n) {
    return packed_stride(isa, n);
}

// Packs x [n] as an input. Elements from n up to the next multiple of 16 must be 0.
static void pack_input(const struct isa *isa, const float *x, size_t n, char *packed) {
    pack_column(isa, x, n, packed);
}

// Packs elements x [INPUT_GROUP], number `group` of their kind, of an input [n].
static void pack_input_group(const struct isa *isa, const float *x, size_t group, size_t n,
                             char *packed) {
    for (size_t plane = 0; plane < WEIGHT_PLANES; plane++)
        isa->pack(x, TILE, packed + plane * packed_bytes(isa, n) + group * isa->packed_bytes);
}

// Row of tiles `row_tile` of matrix W, at `base` + w->offset of the pack, times the packed inputs x
// [columns]: y[c * y_stride + r], r in 0..15.
static void multiply_row(const struct parscale *model, const struct isa *isa,
                         const struct matrix *w, size_t base, size_t row_tile, const char *x,
                         size_t columns, float *y, size_t y_stride) {
    multiply_bf16(model, isa, w, base, row_tile, x, columns, y, y_stride);
}

// Row `id` of the embedding, gathered from its tiles: out [hidden].
static void embed(const struct parscale *model, int32_t id, float *out) {
    const struct matrix *w = &LAYOUT.embedding;
    size_t row_bytes = (size_t)w->column_tiles * WEIGHT_PLANES * TILE_BYTES;
    const char *row = (const char *)pack_at(model, w->offset) + (size_t)id / TILE * row_bytes;
    const uint16_t *tiles = (const uint16_t *)row;
    for (size_t i = 0; i < HIDDEN_SIZE; i++) {
        size_t element = i / TILE * TILE_ELEMENTS + tile_index((size_t)id % TILE, i % TILE);
        out[i] = 0;
        for (size_t plane = 0; plane < WEIGHT_PLANES; plane++)
            out[i] +=
                bf16_to_float(tiles[plane * (size_t)w->column_tiles * TILE_ELEMENTS + element]);
    }
}
