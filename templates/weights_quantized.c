// The weights of layers, embedding and head as quantised tiles: products with them, and how their
// inputs are packed. weights_bf16.c is the same for bf16 tiles.
#include "model.h"
#include "quantized.h"
#include "quantized_plain.c"
#include "quantized_x86.c"
#include "quantized_neon.c"

enum {
    INPUT_GROUP = GROUP,     // activations that are packed together
    ROUNDED_QKV_STREAMS = 4, // the fewest whose inputs of q, k and v are rounded
};

// Activations of 8 bits cost a mean KL of 1e-3: less than weights of 4 bits do, more than those
// of 8.
#ifdef __x86_64__
static bool rounded_usable(void) {
    return LAYOUT.qkv.tile_bytes == INT4_TILE_BYTES;
}

static bool vnni_rounded_usable(void) {
    return rounded_usable() && vnni_usable();
}
#endif

// A path is the first one with its isa that is usable.
static const struct quantized_path QUANTIZED_PATHS[] = {
#ifdef __x86_64__
    {&ISA_AVX512BF16, vnni_rounded_usable, VNNI_ONE_PLANE, vnni_pack, vnni_product},
    {&ISA_AVX512BF16, vnni_usable, VNNI_TWO_PLANES, vnni_pack_exact, vnni_product_exact},
    {&ISA_AVX512, vnni_usable, VNNI_TWO_PLANES, vnni_pack_exact, vnni_product_exact},
    {&ISA_AVX512BF16, NULL, AVX2_WORDS, avx2_pack_words, avx2_product_words},
    {&ISA_AVX512, NULL, AVX2_WORDS, avx2_pack_words, avx2_product_words},
    {&ISA_AVX2, rounded_usable, AVX2_BYTES, avx2_pack_bytes, avx2_product_bytes},
    {&ISA_AVX2, NULL, AVX2_WORDS, avx2_pack_words, avx2_product_words},
    {&ISA_AVX2_EXACT, NULL, AVX2_WORDS, avx2_pack_words, avx2_product_words},
#endif
#ifdef __aarch64__
    {&ISA_NEON, NULL, GROUP * sizeof(float), pack_group_fp32, neon_quantized_product},
#endif
    {&ISA_PLAIN, NULL, GROUP * sizeof(float), pack_group_fp32, plain_quantized_product},
};

// The path for inputs that should not be rounded.
static const struct isa *exact_isa(const struct isa *isa) {
#ifdef __x86_64__
    if (isa == &ISA_AVX2)
        return &ISA_AVX2_EXACT;
#endif
    return isa->exact ? isa->exact : isa;
}

static const struct quantized_path *quantized_path(const struct isa *isa) {
    const struct quantized_path *path = QUANTIZED_PATHS;
    while (path->isa != isa || (path->usable && !path->usable()))
        path++;
    return path;
}

// The path of the products of q, k and v. Their inputs are rounded as others are where streams, on
// average, lose less by it than one stream does by the others'.
static const struct isa *qkv_isa(const struct parscale *model) {
    return model->adapter->streams < ROUNDED_QKV_STREAMS ? model->isa : model->bulk;
}

static size_t groups_for(size_t n) {
    return (n + GROUP - 1) / GROUP;
}

// Bytes of a packed input [n].
static size_t input_bytes(const struct isa *isa, size_t n) {
    return groups_for(n) * quantized_path(isa)->group_bytes;
}

// Packs x [n] as an input, with zeros up to the end of the last group.
static void pack_input(const struct isa *isa, const float *x, size_t n, char *packed) {
    const struct quantized_path *path = quantized_path(isa);
    for (; n >= GROUP; n -= GROUP, x += GROUP, packed += path->group_bytes)
        path->pack(x, packed);
    if (n > 0) {
        float group[GROUP] = {0};
        memcpy(group, x, n * sizeof(float));
        path->pack(group, packed);
    }
}

// Packs elements x [INPUT_GROUP], number `group` of their kind, of an input [n].
static void pack_input_group(const struct isa *isa, const float *x, size_t group, size_t n,
                             char *packed) {
    const struct quantized_path *path = quantized_path(isa);
    (void)n;
    path->pack(x, packed + group * path->group_bytes);
}

// Row of tiles `row_tile` of matrix W, at `base` + w->offset of the pack, times the packed inputs x
// [columns]: y[c * y_stride + r], r in 0..15.
static void multiply_row(const struct parscale *model, const struct isa *isa,
                         const struct matrix *w, size_t base, size_t row_tile, const char *x,
                         size_t columns, float *y, size_t y_stride) {
    size_t tiles = (size_t)w->column_tiles, tile_bytes = (size_t)w->tile_bytes;
    const char *row = pack_at(model, base + w->offset + row_tile * tiles * tile_bytes);
    quantized_path(isa)->product(row, tiles, tile_bytes == INT4_TILE_BYTES, x, columns, y,
                                 y_stride);
}

// Row `id` of the embedding, which is int8, gathered from its tiles: out [hidden].
static void embed(const struct parscale *model, int32_t id, float *out) {
    const struct matrix *w = &LAYOUT.embedding;
    size_t row_bytes = (size_t)w->column_tiles * INT8_TILE_BYTES;
    size_t lane = quantized_lane((size_t)id % TILE);
    const char *tile = pack_at(model, w->offset + (size_t)id / TILE * row_bytes);
    for (size_t first = 0; first < HIDDEN_SIZE; first += GROUP, tile += INT8_TILE_BYTES) {
        float scale = quantized_factor(tile + INT8_SCALES, lane);
        for (size_t k = 0; k < GROUP; k++) {
            size_t column = first + quantized_column(k / 4, k % 4);
            int quant = (unsigned char)tile[quantized_word(false, k / 4, lane) + k % 4] - 128;
            if (column < HIDDEN_SIZE)
                out[column] = scale * (float)quant;
        }
    }
}
