// The forward pass of a ParScale model: this page is what the engine computes (Chen et al. 2025,
// arXiv 2505.10475, a Qwen2 decoder run as P streams). `forward` runs on all threads; between two
// barriers each thread does its share of one phase, and every value is computed by one thread in
// one fixed order.
#include "model.h"

static void forward(void *argument, int thread) {
    struct parscale *model = argument;
    struct scratch *scratch = &model->scratch[thread];
    const struct block *block = &model->block;
    struct buffers *buffers = model->buffers;
    size_t columns = block->tokens * block->streams;

    begin_block(model, thread);
    pool_barrier(model->pool);
    for (size_t layer = 0; layer < LAYERS; layer++) {
        size_t base = LAYOUT.layers + layer * LAYOUT.layer_stride;
        // The input of layer 0 is the same in all streams: its q, k and v are computed once.
        size_t distinct = layer == 0 ? 1 : block->streams;

        normalize(model, qkv_isa(model), base + LAYOUT.input_norm, distinct * block->tokens, thread,
                  scratch);
        pool_barrier(model->pool);
        project_qkv(model, layer, distinct, thread, scratch);
        pool_barrier(model->pool);
        finish_cache(model, layer, distinct, thread);
        attend(model, layer, thread, scratch);
        pool_barrier(model->pool);
        for (struct work work = pool_work(model->pool, thread, columns); pool_next(&work);)
            combine_splits(model, work.item, scratch);
        pool_barrier(model->pool);
        project_residual(model, &LAYOUT.o, layer, buffers->input, columns, thread, scratch);
        pool_barrier(model->pool);

        normalize(model, model->bulk, base + LAYOUT.post_norm, columns, thread, scratch);
        pool_barrier(model->pool);
        project_gate_up(model, layer, columns, thread, scratch);
        pool_barrier(model->pool);
        project_residual(model, &LAYOUT.down, layer, buffers->activation, columns, thread, scratch);
        pool_barrier(model->pool);
    }
    if (block->head_tokens)
        head(model, thread, scratch);
}
