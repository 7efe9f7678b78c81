// The phases of the forward pass but attention: embedding, norms and projections. Every one takes a
// thread's number and does that thread's share.
#include <math.h>
#include "model.h"

// Rows of tiles [share.begin, share.end) of matrix W times the packed columns x: the product of one
// row of tiles lands in scratch->product [columns, TILE].
static void multiply_row(const struct parscale *model, const struct isa *isa,
                         const struct matrix *w, size_t base, size_t row_tile, const char *x,
                         size_t columns, float *y, size_t y_stride) {
    size_t row_bytes = (size_t)w->column_tiles * WEIGHT_PLANES * TILE_BYTES;
    const char *row = (const char *)pack_at(model, base + w->offset) + row_tile * row_bytes;
    size_t x_stride = (size_t)w->column_tiles * WEIGHT_PLANES * isa->packed_bytes;
    isa->product(row, (size_t)w->column_tiles * WEIGHT_PLANES, x, x_stride, columns, y, y_stride);
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

// out = x / sqrt(mean(x^2) + eps) * weight, all [hidden]. Sixteen partial sums in a fixed order.
static void rms_norm(const float *x, const float *weight, float *out) {
    float sums[16] = {0};
    for (size_t i = 0; i < HIDDEN_SIZE; i += 16)
        for (size_t j = 0; j < 16; j++)
            sums[j] += x[i + j] * x[i + j];
    float sum = 0;
    for (size_t j = 0; j < 16; j++)
        sum += sums[j];
    float scale = 1.0f / sqrtf(sum / HIDDEN_SIZE + RMS_NORM_EPS);
    for (size_t i = 0; i < HIDDEN_SIZE; i++)
        out[i] = x[i] * scale * weight[i];
}

// residual = embedding, the same in all streams; rotary = cosines and sines of the block's
// positions.
static void begin_block(struct parscale *model, int thread) {
    const struct block *block = &model->block;
    size_t half = HEAD_DIM / 2;
    for (struct work work = pool_work(model->pool, thread, block->tokens); pool_next(&work);) {
        size_t t = work.item;
        float *first = model->buffers->residual + t * HIDDEN_SIZE;
        embed(model, block->ids[t], first);
        for (size_t p = 1; p < block->streams; p++)
            memcpy(first + p * block->tokens * HIDDEN_SIZE, first, HIDDEN_SIZE * sizeof(float));
        float *rotary = model->buffers->rotary + t * HEAD_DIM;
        for (size_t i = 0; i < half; i++) {
            float angle = (float)(block->position + t) * model->buffers->frequencies[i];
            rotary[2 * i] = cosf(angle);
            rotary[2 * i + 1] = sinf(angle);
        }
    }
}

// residual -> input: normalised and packed for `isa`, this thread's share of `columns`.
static void normalize(struct parscale *model, const struct isa *isa, size_t weight_offset,
                      size_t columns, int thread, struct scratch *scratch) {
    const float *weight = pack_at(model, weight_offset);
    size_t stride = packed_stride(isa, HIDDEN_SIZE);
    for (struct work work = pool_work(model->pool, thread, columns); pool_next(&work);) {
        size_t c = work.item;
        rms_norm(model->buffers->residual + c * HIDDEN_SIZE, weight, scratch->row);
        pack_column(isa, scratch->row, HIDDEN_SIZE, model->buffers->input + c * stride);
    }
}

static void store_cache(const struct parscale *model, char *block, size_t tile, size_t element,
                        float value) {
    if (model->isa->cache_bytes == 2)
        ((uint16_t *)block)[tile * TILE_ELEMENTS + element] = float_to_bf16(value);
    else
        ((float *)block)[tile * TILE_ELEMENTS + element] = value;
}

// Stores dimension i of a key or a value in the cache. Positions behind the last one in its tile
// hold zeros or what a rewound sequence left: finite values, because a new tile is cleared first.
static void cache_key(const struct parscale *model, size_t layer, size_t stream, size_t kv_head,
                      size_t position, size_t i, float value) {
    char *keys = cache_block(model, layer, stream, kv_head);
    store_cache(model, keys, position / TILE * HEAD_TILES + i / TILE,
                tile_index(position % TILE, i % TILE), value);
}

static void cache_value(const struct parscale *model, size_t layer, size_t stream, size_t kv_head,
                        size_t position, size_t i, float value) {
    char *keys = cache_block(model, layer, stream, kv_head);
    char *values = keys + (size_t)CACHE_BLOCK_TILES * TILE_ELEMENTS * model->isa->cache_bytes;
    size_t tile = i / TILE * CONTEXT_TILES + position / TILE;
    store_cache(model, values, tile, tile_index(i % TILE, position % TILE), value);
    if (position % TILE == 0)
        for (size_t later = 1; later < TILE; later++)
            store_cache(model, values, tile, tile_index(i % TILE, later), 0.0f);
}

// One row of tiles of q|k|v, after the product: y [columns, TILE]. In a tile of q or k, rows r and
// r + 8 are dimensions i and i + head_dim/2 of a head: a rotary pair (rotate-half form).
static void finish_qkv_row(const struct parscale *model, size_t layer, size_t row_tile,
                           size_t columns, float *y) {
    const struct block *block = &model->block;
    const float *bias =
        pack_at(model, LAYOUT.layers + layer * LAYOUT.layer_stride + LAYOUT.qkv_bias);
    for (size_t c = 0; c < columns; c++) {
        size_t token = c % block->tokens, stream = c / block->tokens;
        size_t position = block->position + token;
        float *out = y + c * TILE;
        for (size_t r = 0; r < TILE; r++)
            out[r] += bias[row_tile * TILE + r];
        if (row_tile * TILE >= QKV_VALUE_ROW) {
            size_t first = row_tile * TILE - QKV_VALUE_ROW;
            for (size_t v = first; v < first + TILE && v < KV_HEADS * HEAD_DIM; v++)
                cache_value(model, layer, stream, v / HEAD_DIM, position, v % HEAD_DIM,
                            out[v - first]);
            continue;
        }
        const float *rotary = model->buffers->rotary + token * HEAD_DIM;
        const size_t half = HEAD_DIM / 2;
        for (size_t r = 0; r < TILE / 2; r++) {
            size_t pair = row_tile * (TILE / 2) + r, head = pair / half, i = pair % half;
            float cosine = rotary[2 * i], sine = rotary[2 * i + 1];
            float low = out[r] * cosine - out[r + 8] * sine;
            float high = out[r + 8] * cosine + out[r] * sine;
            if (head < HEADS) {
                float *query = model->buffers->query + (c * HEADS + head) * HEAD_DIM;
                query[i] = low;
                query[i + half] = high;
            } else if (head < HEADS + KV_HEADS) {
                cache_key(model, layer, stream, head - HEADS, position, i, low);
                cache_key(model, layer, stream, head - HEADS, position, i + half, high);
            }
        }
    }
}

// input -> query, cache
static void project_qkv(struct parscale *model, size_t layer, size_t columns, int thread,
                        struct scratch *scratch) {
    size_t base = LAYOUT.layers + layer * LAYOUT.layer_stride;
    size_t rows = (size_t)LAYOUT.qkv.row_tiles;
    for (struct work work = pool_work(model->pool, thread, rows); pool_next(&work);) {
        size_t row = work.item;
        multiply_row(model, model->isa, &LAYOUT.qkv, base, row, model->buffers->input, columns,
                     scratch->product, TILE);
        finish_qkv_row(model, layer, row, columns, scratch->product);
    }
}

// residual += W x, for o_proj and down_proj
static void project_residual(struct parscale *model, const struct matrix *w, size_t layer,
                             const char *x, size_t columns, int thread, struct scratch *scratch) {
    size_t base = LAYOUT.layers + layer * LAYOUT.layer_stride;
    size_t rows = (size_t)w->row_tiles;
    for (struct work work = pool_work(model->pool, thread, rows); pool_next(&work);) {
        size_t row = work.item;
        multiply_row(model, model->bulk, w, base, row, x, columns, scratch->product, TILE);
        for (size_t c = 0; c < columns; c++)
            for (size_t r = 0; r < TILE; r++)
                model->buffers->residual[c * HIDDEN_SIZE + row * TILE + r] +=
                    scratch->product[c * TILE + r];
    }
}

// input -> activation = silu(gate) * up. A row of tiles holds 8 gates and their 8 ups; two rows
// make the 16 channels that are packed together.
static void project_gate_up(struct parscale *model, size_t layer, size_t columns, int thread,
                            struct scratch *scratch) {
    const struct isa *isa = model->bulk;
    size_t base = LAYOUT.layers + layer * LAYOUT.layer_stride;
    size_t stride = packed_stride(isa, INTERMEDIATE_SIZE);
    size_t row_pairs = (size_t)LAYOUT.gate_up.row_tiles / 2;
    for (struct work work = pool_work(model->pool, thread, row_pairs); pool_next(&work);) {
        size_t i = work.item;
        for (size_t half = 0; half < 2; half++)
            multiply_row(model, isa, &LAYOUT.gate_up, base, 2 * i + half, model->buffers->input,
                         columns, scratch->product + half * TILE, 2 * TILE);
        for (size_t c = 0; c < columns; c++) {
            float channels[TILE];
            isa->swiglu(scratch->product + c * 2 * TILE, TILE, channels);
            char *out = model->buffers->activation + c * stride + i * isa->packed_bytes;
            for (size_t plane = 0; plane < WEIGHT_PLANES; plane++)
                isa->pack(channels, TILE, out + plane * packed_bytes(isa, INTERMEDIATE_SIZE));
        }
    }
}
