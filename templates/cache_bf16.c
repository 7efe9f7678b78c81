// The KV cache in bf16 tiles, or in fp32 ones on the plain path.
#include "cache.h"
#include "round_bf16.h"

// Cache of one (layer, stream, kv head): for every tile of positions, its keys [16, head_dim] and
// its values [head_dim, 16], so that a token's entry is written to one place.
static char *cache_block(const struct parscale *model, size_t layer, size_t stream,
                         size_t kv_head) {
    size_t block_bytes = (size_t)CACHE_BLOCK_TILES * TILE_ELEMENTS * model->isa->cache_bytes;
    return model->cache + (cache_slot(layer, stream) * KV_HEADS + kv_head) * block_bytes;
}

static size_t cache_bytes(const struct isa *isa) {
    return (size_t)CACHE_SLOTS * KV_HEADS * CACHE_BLOCK_TILES * TILE_ELEMENTS * isa->cache_bytes;
}

// Bytes of one position, of one layer, stream and kv head.
static size_t cache_position_bytes(const struct parscale *model) {
    return 2 * HEAD_DIM * (model->gpu ? sizeof(uint16_t) : model->isa->cache_bytes);
}

// The first `positions` of a (layer, stream, kv head).
static struct segment cache_segment(const struct parscale *model, size_t layer, size_t stream,
                                    size_t kv_head, size_t positions) {
    size_t tile = TILE_ELEMENTS * model->bulk->cache_bytes;
    const char *keys = cache_block(model, layer, stream, kv_head);
    return (struct segment){
        .keys = keys,
        .values = keys + HEAD_TILES * tile,
        .tile = tile,
        .apart = 2 * HEAD_TILES * tile,
        .value_apart = 2 * HEAD_TILES * tile,
        .value_row = tile,
        .planes = 1,
        .positions = positions,
        .causal = true,
        .by = {model->bulk->packed_bytes, 0, model->bulk->pack, model->bulk->product_cache},
    };
}

static inline void store_cache(char *block, size_t element_bytes, size_t element, float value) {
    if (element_bytes == 2)
        ((uint16_t *)block)[element] = float_to_bf16(value);
    else
        ((float *)block)[element] = value;
}

// Stores values i..i+n-1 of one key, or of one value, in the cache of its stream and head. A tile
// of values is cleared when its first position comes: products read whole tiles, and what lies
// behind the last position must be finite.
static void cache_key(const struct parscale *model, const struct destination *to, size_t kv_head,
                      size_t i, size_t n, const float *values) {
    char *block = cache_block(model, to->layer, to->stream, kv_head);
    size_t first = to->position / TILE * 2 * HEAD_TILES;
    for (size_t j = i; j < i + n; j++)
        store_cache(block, model->isa->cache_bytes,
                    (first + j / TILE) * TILE_ELEMENTS + tile_index(to->position % TILE, j % TILE),
                    values[j - i]);
}

static void cache_value(const struct parscale *model, const struct destination *to, size_t kv_head,
                        size_t i, size_t n, const float *values) {
    char *block = cache_block(model, to->layer, to->stream, kv_head);
    size_t bytes = model->isa->cache_bytes, first = (to->position / TILE * 2 + 1) * HEAD_TILES;
    size_t column = to->position % TILE;
    for (size_t j = i; j < i + n; j++) {
        size_t tile = (first + j / TILE) * TILE_ELEMENTS;
        store_cache(block, bytes, tile + tile_index(j % TILE, column), values[j - i]);
        for (size_t later = 1; column == 0 && later < TILE; later++)
            store_cache(block, bytes, tile + tile_index(j % TILE, later), 0.0f);
    }
}

// cache_key and cache_value have stored everything.
static void finish_cache(const struct parscale *model, size_t layer, size_t streams, int thread) {
    (void)model, (void)layer, (void)streams, (void)thread;
}
