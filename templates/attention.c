// Attention of all streams, for one layer. Keys and values lie in tiles, so that scores are a
// product keys [positions, head_dim] x queries and the result is values [head_dim, positions] x
// probabilities: the same products as everywhere else. The query heads of a group are columns of
// one product, so keys and values are read once for all of them.
//
// A work item is one stream, one kv head, up to ATTENTION_TOKENS tokens and one part of the keys.
// It walks its keys in chunks with a running maximum (online softmax, Milakov & Gimelshein 2018)
// and leaves sums that `combine_splits` adds up.
#include <math.h>
#include "cache.h"
#include "model.h"

static const size_t GROUP_HEADS = HEADS / KV_HEADS;
static const size_t PARTIAL = HEAD_DIM + 2; // one head's result: sum [head_dim], max, total

struct item {
    size_t stream, kv_head;
    size_t token, tokens; // in the block
    size_t split, splits;
    size_t columns; // tokens * GROUP_HEADS; column = token * GROUP_HEADS + head
};

static struct segment prefix_segment(const struct parscale *model, size_t layer,
                                     const struct item *item) {
    const struct adapter *adapter = model->adapter;
    size_t block = (layer * (size_t)adapter->streams + item->stream) * KV_HEADS + item->kv_head;
    size_t offset = block * adapter->prefix_block;
    return (struct segment){
        .keys = pack_at(model, adapter->prefix_k + offset),
        .values = pack_at(model, adapter->prefix_v + offset),
        .tile = TILE_BYTES,
        .apart = HEAD_TILES * TILE_BYTES,
        .value_apart = TILE_BYTES,
        .value_row = tiles_for((size_t)adapter->prefix_tokens) * TILE_BYTES,
        .planes = WEIGHT_PLANES,
        .plane = adapter->prefix_block / WEIGHT_PLANES,
        .positions = (size_t)adapter->prefix_tokens,
        .by = {model->bulk->packed_bytes, 0, model->bulk->pack, model->bulk->product},
    };
}

// One row of tiles times packed columns, summed over the segment's planes.
static void segment_product(const struct segment *segment, const char *row, size_t column_tiles,
                            size_t apart, const char *x, size_t x_stride, size_t columns, float *y,
                            size_t y_stride, float *spare) {
    segment->by.product(row, column_tiles, apart, x, x_stride, columns, y, y_stride);
    for (size_t plane = 1; plane < segment->planes; plane++) {
        segment->by.product(row + plane * segment->plane, column_tiles, apart, x, x_stride, columns,
                            spare, TILE);
        for (size_t c = 0; c < columns; c++)
            for (size_t r = 0; r < TILE; r++)
                y[c * y_stride + r] += spare[c * TILE + r];
    }
}

// Queries of an item, scaled by 1/sqrt(head_dim) and packed for both segments: once, if these are
// multiplied in the same way.
static void gather_queries(const struct parscale *model, size_t layer, const struct item *item,
                           struct segment segments[2], struct scratch *scratch) {
    size_t strides[2] = {segment_stride(&segments[0], HEAD_DIM),
                         segment_stride(&segments[1], HEAD_DIM)};
    size_t kinds = segments[0].by.pack == segments[1].by.pack ? 1 : 2;
    segments[0].queries = scratch->query;
    segments[1].queries = scratch->query + (kinds - 1) * item->columns * strides[0];
    const float scale = 1.0f / sqrtf((float)HEAD_DIM);
    for (size_t c = 0; c < item->columns; c++) {
        size_t token = item->token + c / GROUP_HEADS;
        size_t column = (layer == 0 ? 0 : item->stream * model->block.tokens) + token;
        size_t head = item->kv_head * GROUP_HEADS + c % GROUP_HEADS;
        const float *query = model->buffers->query + (column * HEADS + head) * HEAD_DIM;
        for (size_t i = 0; i < HEAD_TILES * TILE; i++)
            scratch->row[i] = i < HEAD_DIM ? query[i] * scale : 0.0f;
        for (size_t s = 0; s < kinds; s++)
            segments[s].by.pack(scratch->row, HEAD_TILES * TILE,
                                segments[s].queries + c * strides[s]);
        scratch->running[2 * c] = -INFINITY;
        scratch->running[2 * c + 1] = 0;
    }
    memset(scratch->sums, 0, item->columns * HEAD_TILES * TILE * sizeof(float));
}

// Turns a column's scores of one chunk into exp(score - max) and updates its running maximum and
// total. Scores from `valid` on are masked. Returns the factor for the sums so far.
static float update_softmax(const struct isa *isa, float *scores, size_t valid, size_t chunk,
                            float *running) {
    float max = running[0], factor = 1.0f, total = 0.0f;
    for (size_t i = valid; i < chunk; i++)
        scores[i] = valid > 0 ? -INFINITY : 0.0f;
    if (valid > 0) {
        total = isa->exponentials(scores, chunk, &max);
        factor = running[0] == max ? 1.0f : expf(running[0] - max);
    }
    running[0] = max;
    running[1] = running[1] * factor + total;
    return factor;
}

// Scores, or with `part` 1 probabilities, of n positions from tile `first_tile` on times the scales
// of the keys, or of the values.
static void apply_scales(const struct segment *segment, size_t first_tile, size_t part, size_t n,
                         float *scores) {
    const char *row = segment->scales + first_tile * segment->apart;
    for (size_t i = 0; i < n; i += TILE, row += segment->apart) {
        const float *scales = (const float *)row + part * TILE;
        if (n - i < TILE)
            for (size_t r = 0; r < n - i; r++)
                scores[i + r] *= scales[r];
        else
            for (size_t r = 0; r < TILE; r++)
                scores[i + r] *= scales[r];
    }
}

// Attends positions [first_tile * 16, (first_tile + tiles) * 16) of a segment.
static void attend_chunk(const struct parscale *model, const struct segment *segment,
                         const struct item *item, size_t first_tile, size_t tiles,
                         struct scratch *scratch) {
    const struct isa *isa = model->bulk;
    size_t query_stride = segment_stride(segment, HEAD_DIM);
    size_t chance_stride = segment_stride(segment, ATTENTION_CHUNK);
    size_t columns = item->columns;
    for (size_t t = 0; t < tiles; t++)
        segment_product(segment, segment->keys + (first_tile + t) * segment->apart, HEAD_TILES,
                        segment->tile, segment->queries, query_stride, columns,
                        scratch->scores + t * TILE, ATTENTION_CHUNK, scratch->product);
    for (size_t c = 0; c < columns; c++) {
        size_t behind = segment->causal ? item->tokens - 1 - c / GROUP_HEADS : 0;
        size_t visible = segment->positions - behind, start = first_tile * TILE;
        size_t valid = visible < start ? 0 : visible - start;
        valid = valid > tiles * TILE ? tiles * TILE : valid;
        float *scores = scratch->scores + c * ATTENTION_CHUNK;
        if (segment->scales)
            apply_scales(segment, first_tile, 0, valid, scores);
        float factor = update_softmax(isa, scores, valid, tiles * TILE, scratch->running + 2 * c);
        if (segment->scales)
            apply_scales(segment, first_tile, 1, valid, scores);
        segment->by.pack(scores, tiles * TILE, scratch->chances + c * chance_stride);
        float *sums = scratch->sums + c * HEAD_TILES * TILE;
        if (factor != 1.0f)
            for (size_t i = 0; i < HEAD_TILES * TILE; i++)
                sums[i] *= factor;
    }
    float *y = scratch->product, *spare = y + columns * TILE;
    for (size_t d = 0; d < HEAD_TILES; d++) {
        const char *row =
            segment->values + d * segment->value_row + first_tile * segment->value_apart;
        segment_product(segment, row, tiles, segment->value_apart, scratch->chances, chance_stride,
                        columns, y, TILE, spare);
        for (size_t c = 0; c < columns; c++)
            for (size_t r = 0; r < TILE; r++)
                scratch->sums[(c * HEAD_TILES + d) * TILE + r] += y[c * TILE + r];
    }
}

// The item's part of the chunks: those of the prefix first, then those of the cache.
static void attend_item(const struct parscale *model, size_t layer, const struct item *item,
                        struct scratch *scratch) {
    const size_t chunk_tiles = ATTENTION_CHUNK / TILE;
    struct segment segments[2] = {
        prefix_segment(model, layer, item),
        cache_segment(model, layer, item->stream, item->kv_head,
                      model->block.position + item->token + item->tokens)};
    size_t tiles[2] = {tiles_for(segments[0].positions), tiles_for(segments[1].positions)};
    size_t chunks[2];
    for (size_t s = 0; s < 2; s++)
        chunks[s] = (tiles[s] + chunk_tiles - 1) / chunk_tiles;
    size_t all = chunks[0] + chunks[1];
    size_t begin = all * item->split / item->splits, end = all * (item->split + 1) / item->splits;

    gather_queries(model, layer, item, segments, scratch);
    for (size_t i = begin; i < end; i++) {
        size_t s = i < chunks[0] ? 0 : 1;
        size_t first = (s ? i - chunks[0] : i) * chunk_tiles;
        size_t n = tiles[s] - first < chunk_tiles ? tiles[s] - first : chunk_tiles;
        attend_chunk(model, &segments[s], item, first, n, scratch);
    }
}

// Leaves an item's sums in buffers.partial.
static void store_partial(const struct parscale *model, const struct item *item,
                          const struct scratch *scratch) {
    size_t block_columns = model->block.tokens * model->block.streams;
    for (size_t c = 0; c < item->columns; c++) {
        size_t column = item->stream * model->block.tokens + item->token + c / GROUP_HEADS;
        size_t head = item->kv_head * GROUP_HEADS + c % GROUP_HEADS;
        float *partial = model->buffers->partial +
                         ((item->split * block_columns + column) * HEADS + head) * PARTIAL;
        memcpy(partial, scratch->sums + c * HEAD_TILES * TILE, HEAD_DIM * sizeof(float));
        partial[HEAD_DIM] = scratch->running[2 * c];
        partial[HEAD_DIM + 1] = scratch->running[2 * c + 1];
    }
}

// A single token's keys are split so that there is work for many threads; how they are split
// depends on nothing else.
static size_t attention_splits(const struct block *block) {
    size_t items = block->streams * KV_HEADS;
    return block->tokens > 1 || items >= DECODE_ITEMS ? 1 : (DECODE_ITEMS + items - 1) / items;
}

enum {
    FETCH_SHARES = 8, // in which the keys and values of a stream and kv head are fetched ahead
    FETCH_TILES = 4,  // of cached positions
};

// Fetches share `share` of [at, at + bytes) to the second-level cache. Inlined, as is its caller: a
// compiler may leave out calls of a function that does nothing else.
__attribute__((always_inline)) static inline void fetch_share(const char *at, size_t bytes,
                                                              size_t share) {
    const char *end = at + bytes * (share + 1) / FETCH_SHARES;
    for (at += bytes * share / FETCH_SHARES; at < end; at += 64)
        __builtin_prefetch(at, 0, 2);
}

// Fetches part `part` of `parts` of a layer's prefixes and newest keys and values, while products
// with many columns compute: attention would wait for memory, and so would storing the next ones.
__attribute__((always_inline)) static inline void
fetch_keys(const struct parscale *model, size_t layer, size_t part, size_t parts) {
    const struct block *block = &model->block;
    size_t shares = block->streams * KV_HEADS * FETCH_SHARES;
    for (size_t i = shares * part / parts; i < shares * (part + 1) / parts; i++) {
        size_t pair = i / FETCH_SHARES, share = i % FETCH_SHARES;
        struct item item = {.stream = pair / KV_HEADS, .kv_head = pair % KV_HEADS};
        struct segment prefix = prefix_segment(model, layer, &item);
        struct segment cache =
            cache_segment(model, layer, item.stream, item.kv_head, block->position + block->tokens);
        size_t tiles = tiles_for(cache.positions), n = tiles < FETCH_TILES ? tiles : FETCH_TILES;
        fetch_share(prefix.keys, tiles_for(prefix.positions) * prefix.apart, share);
        fetch_share(prefix.values, HEAD_TILES * prefix.value_row, share);
        fetch_share(cache.keys + (tiles - n) * cache.apart, n * cache.apart, share);
    }
}

// This thread's share of the layer's attention: query -> partial.
static void attend(const struct parscale *model, size_t layer, int thread,
                   struct scratch *scratch) {
    const struct block *block = &model->block;
    size_t token_groups = (block->tokens + ATTENTION_TOKENS - 1) / ATTENTION_TOKENS;
    size_t splits = attention_splits(block);
    size_t items = block->streams * KV_HEADS * token_groups * splits;
    for (struct work work = pool_work(model->pool, thread, items); pool_next(&work);) {
        struct item item = {.splits = splits, .split = work.item % splits};
        size_t rest = work.item / splits;
        item.kv_head = rest % KV_HEADS;
        rest /= KV_HEADS;
        item.stream = rest % block->streams;
        item.token = rest / block->streams * ATTENTION_TOKENS;
        item.tokens = block->tokens - item.token < ATTENTION_TOKENS ? block->tokens - item.token
                                                                    : ATTENTION_TOKENS;
        item.columns = item.tokens * GROUP_HEADS;
        attend_item(model, layer, &item, scratch);
        store_partial(model, &item, scratch);
    }
}

// Adds the splits of one column and packs all its heads: partial -> input. Splits are added in
// order, each scaled to the common maximum.
static void combine_splits(const struct parscale *model, size_t column, struct scratch *scratch) {
    size_t columns = model->block.tokens * model->block.streams;
    size_t splits = attention_splits(&model->block);
    float *out = scratch->row;
    for (size_t head = 0; head < HEADS; head++, out += HEAD_DIM) {
        const float *first = model->buffers->partial + (column * HEADS + head) * PARTIAL;
        size_t stride = columns * HEADS * PARTIAL;
        float max = -INFINITY, total = 0;
        for (size_t s = 0; s < splits; s++)
            max = first[s * stride + HEAD_DIM] > max ? first[s * stride + HEAD_DIM] : max;
        memset(out, 0, HEAD_DIM * sizeof(float));
        for (size_t s = 0; s < splits; s++) {
            const float *part = first + s * stride;
            if (part[HEAD_DIM + 1] == 0.0f)
                continue;
            float factor = expf(part[HEAD_DIM] - max);
            total += part[HEAD_DIM + 1] * factor;
            for (size_t i = 0; i < HEAD_DIM; i++)
                out[i] += part[i] * factor;
        }
        for (size_t i = 0; i < HEAD_DIM; i++)
            out[i] /= total;
    }
    for (size_t i = HEADS * HEAD_DIM; i < tiles_for(HEADS * HEAD_DIM) * TILE; i++)
        scratch->row[i] = 0.0f;
    size_t stride = input_bytes(model->bulk, HEADS * HEAD_DIM);
    pack_input(model->bulk, scratch->row, HEADS * HEAD_DIM,
               model->buffers->input + column * stride);
}
