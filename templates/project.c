// The phases of the forward pass but attention: embedding, norms and projections. Every one takes a
// thread's number and does that thread's share.
#include <math.h>
#include "cache.h"
#include "model.h"

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
            rotary[i] = cosf(angle);
            rotary[half + i] = sinf(angle);
        }
    }
}

// residual -> input: normalised and packed for `isa`, this thread's share of `columns`.
static void normalize(struct parscale *model, const struct isa *isa, size_t weight_offset,
                      size_t columns, int thread, struct scratch *scratch) {
    const float *weight = pack_at(model, weight_offset);
    size_t stride = input_bytes(isa, HIDDEN_SIZE);
    for (struct work work = pool_work(model->pool, thread, columns); pool_next(&work);) {
        size_t c = work.item;
        rms_norm(model->buffers->residual + c * HIDDEN_SIZE, weight, scratch->row);
        pack_input(isa, scratch->row, HIDDEN_SIZE, model->buffers->input + c * stride);
    }
}

// The share of a row of tiles that is values: v [TILE] of one column, from value `first` on.
static void finish_values(const struct parscale *model, const struct destination *to, size_t first,
                          const float *v) {
    for (size_t done = 0; done < TILE && first + done < KV_HEADS * HEAD_DIM;) {
        size_t i = (first + done) % HEAD_DIM, left = TILE - done;
        size_t n = HEAD_DIM - i < left ? HEAD_DIM - i : left;
        cache_value(model, to, (first + done) / HEAD_DIM, i, n, v + done);
        done += n;
    }
}

// Turns n pairs: x and x + 8 to low and high, by the angles of cosines and cosines + half.
static void turn_pairs(const float *restrict x, const float *restrict cosines, size_t n,
                       float *restrict low, float *restrict high) {
    const float *sines = cosines + HEAD_DIM / 2;
    for (size_t j = 0; j < n; j++) {
        float first = x[j], second = x[j + 8];
        low[j] = first * cosines[j] - second * sines[j];
        high[j] = second * cosines[j] + first * sines[j];
    }
}

// The share that is queries and keys, from pair `first` on: rows r and r + 8 are dimensions i and
// i + head_dim/2 of a head, a rotary pair (rotate-half form), turned by the position's angle.
static void finish_pairs(const struct parscale *model, const struct destination *to, size_t first,
                         const float *y) {
    const size_t half = HEAD_DIM / 2;
    for (size_t done = 0; done < 8;) {
        size_t head = (first + done) / half, i = (first + done) % half;
        size_t n = half - i < 8 - done ? half - i : 8 - done;
        if (head < HEADS) {
            float *query = model->buffers->query + (to->column * HEADS + head) * HEAD_DIM + i;
            turn_pairs(y + done, to->rotary + i, n, query, query + half);
        } else if (head < HEADS + KV_HEADS) {
            float low[8], high[8];
            turn_pairs(y + done, to->rotary + i, n, low, high);
            cache_key(model, to, head - HEADS, i, n, low);
            cache_key(model, to, head - HEADS, i + half, n, high);
        }
        done += n;
    }
}

// One row of tiles of q|k|v, after the product: y [streams, tokens, TILE].
static void finish_qkv_row(const struct parscale *model, size_t layer, size_t row_tile,
                           size_t streams, float *y) {
    const struct block *block = &model->block;
    size_t base = LAYOUT.layers + layer * LAYOUT.layer_stride, row = row_tile * TILE;
    const float *bias = (const float *)pack_at(model, base + LAYOUT.qkv_bias) + row;
    struct destination to = {.layer = layer};
    for (to.stream = 0; to.stream < streams; to.stream++) {
        for (size_t token = 0; token < block->tokens; token++, to.column++, y += TILE) {
            to.position = block->position + token;
            to.rotary = model->buffers->rotary + token * HEAD_DIM;
            for (size_t r = 0; r < TILE; r++)
                y[r] += bias[r];
            if (row >= QKV_VALUE_ROW)
                finish_values(model, &to, row - QKV_VALUE_ROW, y);
            else
                finish_pairs(model, &to, row / 2, y);
        }
    }
}

// input -> query, cache
static void project_qkv(struct parscale *model, size_t layer, size_t streams, int thread,
                        struct scratch *scratch) {
    size_t columns = streams * model->block.tokens;
    size_t base = LAYOUT.layers + layer * LAYOUT.layer_stride;
    size_t rows = (size_t)LAYOUT.qkv.row_tiles;
    for (struct work work = pool_work(model->pool, thread, rows); pool_next(&work);) {
        size_t row = work.item;
        __builtin_prefetch((const char *)pack_at(model, base + LAYOUT.qkv_bias) +
                           row * TILE * sizeof(float));
        multiply_row(model, qkv_isa(model), &LAYOUT.qkv, base, row, model->buffers->input, columns,
                     scratch->product, TILE);
        finish_qkv_row(model, layer, row, streams, scratch->product);
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

// input -> activation = silu(gate) * up. A row of tiles holds 8 gates and their 8 ups; as many rows
// are multiplied together as make a group of channels that is packed together.
static void project_gate_up(struct parscale *model, size_t layer, size_t columns, int thread,
                            struct scratch *scratch) {
    const struct isa *isa = model->bulk;
    const size_t rows = 2 * INPUT_GROUP / TILE; // of tiles, in a group
    size_t base = LAYOUT.layers + layer * LAYOUT.layer_stride;
    size_t stride = input_bytes(isa, INTERMEDIATE_SIZE);
    size_t groups = (size_t)LAYOUT.gate_up.row_tiles / rows;
    for (struct work work = pool_work(model->pool, thread, groups); pool_next(&work);) {
        size_t i = work.item;
        for (size_t row = 0; row < rows; row++) {
            if (layer + 1 < LAYERS)
                fetch_keys(model, layer + 1, i * rows + row, groups * rows);
            multiply_row(model, isa, &LAYOUT.gate_up, base, rows * i + row, model->buffers->input,
                         columns, scratch->product + row * TILE, rows * TILE);
        }
        for (size_t c = 0; c < columns; c++) {
            float channels[INPUT_GROUP];
            isa->swiglu(scratch->product + c * rows * TILE, INPUT_GROUP, channels);
            pack_input_group(isa, channels, i, INTERMEDIATE_SIZE,
                             model->buffers->activation + c * stride);
        }
    }
}
