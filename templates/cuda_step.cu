// A whole step, one kernel with a block on every multiprocessor: token and position of `state` ->
// logits; or, behind a prefill, only what follows the layers.

// What the first product reads: residual, its product with the norm's weight, its squares. Of the
// embedding of the token, or of what the prefill left.
static __device__ __forceinline__ void decode_start(const struct gpu_task &task,
                                                    struct step &step) {
    int id = task.ids ? 0 : task.state->token, stream = threadIdx.x / TILE;
    id = id < 0 ? 0 : id; // a step that was started before it was known that the CPU must choose
    if (!task.ids && blockIdx.x == 0 && threadIdx.x == 0)
        task.history[task.state->position] = id;
    const float *weight =
        (const float *)(task.weights +
                        (task.ids ? FINAL_NORM_OFFSET : LAYERS_OFFSET + INPUT_NORM_OFFSET));
    for (int row_tile = blockIdx.x; row_tile < HIDDEN_TILES; row_tile += gridDim.x) {
        int i = row_tile * TILE + threadIdx.x % TILE;
        float x = 0;
        if (stream < STREAMS)
            x = task.ids ? newest_residual(task, stream)[i] : embedding_weight(task, id, i);
        float square = x * x;
        for (int distance = 4; distance > 0; distance /= 2)
            square += __shfl_xor_sync(0xffffffff, square, distance);
        if (stream < STREAMS) {
            if (!task.ids)
                task.residual[stream * HIDDEN_SIZE + i] = x;
            store_normed(task, i, stream, x * weight[i]);
            if (i % 8 == 0)
                task.squares[i / 8 * TILE + stream] = square;
        }
    }
    step.meeting.arrive();
}

static __device__ __forceinline__ void decode_layers(struct gpu_task &task, struct step &step) {
#pragma unroll 1
    for (task.layer = 0; task.layer < LAYERS; task.layer++) {
        const char *weights = layer_weights(task);
        const char *next = task.layer + 1 < LAYERS ? weights + LAYER_STRIDE + INPUT_NORM_OFFSET
                                                   : task.weights + FINAL_NORM_OFFSET;
        decode_qkv(task, step);
        decode_attention(task, step);
        decode_o(task, step);
        decode_mlp(task, step);
        decode_add(task, step, (const float *)next);
    }
}

// Grid: multiprocessors, all blocks at once.
extern "C" __global__ void __launch_bounds__(STEP_THREADS, 1)
    decode_step(const struct gpu_task given) {
    struct workplace *w = workplace();
    if (threadIdx.x == 0) {
        for (int i = 0; i < RING_SLOTS; i++) {
            init_barrier(&w->full[i], COPY_ARRIVALS);
            init_barrier(&w->empty[i], WARPS);
        }
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x >= THREADS) {
        fill_ring(given);
        return;
    }
    struct gpu_task task = given;
    struct step step = {{}, {task.meetings, 0}};
    decode_start(task, step);
    if (!task.ids)
        decode_layers(task, step);
    if (STREAMS > 1) {
        decode_mix(task, step);
        decode_weigh(task, step);
    }
    decode_head(task, step);
}
