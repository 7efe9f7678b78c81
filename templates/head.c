// After the last layer: the final norm of every stream, the aggregation network that weighs the
// streams, and one output head for the weighted sum. Works on block.head_tokens tokens at a time.
#include <math.h>
#include "model.h"

// residual -> final [token, stream, hidden], and packed for the aggregation network: z holds the
// streams one after the other (the packer has reordered the network's columns accordingly).
static void final_norms(struct parscale *model, int thread) {
    const struct block *block = &model->block;
    struct buffers *buffers = model->buffers;
    size_t streams = block->streams, one = packed_bytes(model->isa, HIDDEN_SIZE);
    size_t items = block->head_tokens * streams;
    for (struct work work = pool_work(model->pool, thread, items); pool_next(&work);) {
        size_t i = work.item, token = i / streams, stream = i % streams;
        size_t column = stream * block->tokens + block->head_first + token;
        float *y = buffers->final + i * HIDDEN_SIZE;
        rms_norm(buffers->residual + column * HIDDEN_SIZE, pack_at(model, LAYOUT.final_norm), y);
        if (streams == 1) {
            pack_input(model->isa, y, HIDDEN_SIZE,
                       buffers->head_input + token * input_bytes(model->isa, HIDDEN_SIZE));
            buffers->weights[token] = 1.0f;
            continue;
        }
        for (size_t plane = 0; plane < WEIGHT_PLANES; plane++)
            model->isa->pack(y, HIDDEN_SIZE,
                             buffers->streams +
                                 ((token * WEIGHT_PLANES + plane) * streams + stream) * one);
    }
}

// mixed = silu(aggregate_layer.0 z + bias)
static void mix_streams(struct parscale *model, int thread, struct scratch *scratch) {
    const struct adapter *adapter = model->adapter;
    const float *bias = pack_at(model, adapter->mix_bias);
    size_t tokens = model->block.head_tokens;
    size_t rows = (size_t)adapter->mix.row_tiles;
    for (struct work work = pool_work(model->pool, thread, rows); pool_next(&work);) {
        size_t row = work.item;
        multiply_bf16(model, model->isa, &adapter->mix, 0, row, model->buffers->streams, tokens,
                      scratch->product, TILE);
        for (size_t t = 0; t < tokens; t++) {
            for (size_t r = 0; r < TILE; r++) {
                float u = scratch->product[t * TILE + r] + bias[row * TILE + r];
                model->buffers->mixed[t * HIDDEN_SIZE + row * TILE + r] = u / (1.0f + expf(-u));
            }
        }
    }
}

// w = softmax(aggregate_layer.2 mixed + bias) * (1 - s) + s / P; head_input = sum over p of w[p]
// y[p]
static void weigh_streams(struct parscale *model, size_t token, struct scratch *scratch) {
    const struct adapter *adapter = model->adapter;
    const float *bias = pack_at(model, adapter->weigh_bias);
    size_t streams = model->block.streams, stride = packed_stride(model->isa, HIDDEN_SIZE);
    char *mixed = model->buffers->streams + token * streams * stride; // its columns are used up
    float *weights = model->buffers->weights + token * streams;

    pack_column(model->isa, model->buffers->mixed + token * HIDDEN_SIZE, HIDDEN_SIZE, mixed);
    multiply_bf16(model, model->isa, &adapter->weigh, 0, 0, mixed, 1, scratch->product, TILE);
    float max = -INFINITY, total = 0;
    for (size_t p = 0; p < streams; p++) {
        weights[p] = scratch->product[p] + bias[p];
        max = weights[p] > max ? weights[p] : max;
    }
    for (size_t p = 0; p < streams; p++) {
        weights[p] = expf(weights[p] - max);
        total += weights[p];
    }
    for (size_t i = 0; i < HIDDEN_SIZE; i++)
        scratch->row[i] = 0;
    for (size_t p = 0; p < streams; p++) {
        weights[p] =
            weights[p] / total * (1.0f - STREAM_SMOOTHING) + STREAM_SMOOTHING / (float)streams;
        const float *y = model->buffers->final + (token * streams + p) * HIDDEN_SIZE;
        for (size_t i = 0; i < HIDDEN_SIZE; i++)
            scratch->row[i] += weights[p] * y[i];
    }
    pack_input(model->isa, scratch->row, HIDDEN_SIZE,
               model->buffers->head_input + token * input_bytes(model->isa, HIDDEN_SIZE));
}

static void project_logits(struct parscale *model, int thread, struct scratch *scratch) {
    size_t tokens = model->block.head_tokens;
    size_t row_tiles = (size_t)LAYOUT.head.row_tiles;
    for (struct work work = pool_work(model->pool, thread, row_tiles); pool_next(&work);) {
        size_t row = work.item;
        size_t rows = VOCAB_SIZE - row * TILE < TILE ? VOCAB_SIZE - row * TILE : TILE;
        multiply_row(model, model->isa, &LAYOUT.head, 0, row, model->buffers->head_input, tokens,
                     scratch->product, TILE);
        for (size_t t = 0; t < tokens; t++)
            memcpy(model->buffers->logits + t * VOCAB_SIZE + row * TILE,
                   scratch->product + t * TILE, rows * sizeof(float));
    }
}

// residual -> logits [head_tokens, vocab], weights [head_tokens, P]
static void head(struct parscale *model, int thread, struct scratch *scratch) {
    final_norms(model, thread);
    pool_barrier(model->pool);
    if (model->block.streams > 1) {
        mix_streams(model, thread, scratch);
        pool_barrier(model->pool);
        size_t tokens = model->block.head_tokens;
        for (struct work work = pool_work(model->pool, thread, tokens); pool_next(&work);)
            weigh_streams(model, work.item, scratch);
        pool_barrier(model->pool);
    }
    project_logits(model, thread, scratch);
    pool_barrier(model->pool);
}
