// A whole step, one kernel with a block on every multiprocessor: token and position of `state` ->
// logits; or, behind a prefill, only what follows the layers.

// What the first product needs. Of the embedding of the token, or of what the prefill left.
static __device__ __forceinline__ void decode_start(const struct gpu_task &task,
                                                    const struct told_input &out) {
    int id = task.ids ? 0 : task.state->token, stream = thread_id() / TILE;
    id = id < 0 ? 0 : id; // a step that was started before it was known that the CPU must choose
    if (!task.ids && block_id() == 0 && thread_id() == 0)
        task.history[task.state->position] = id;
    const float *weight =
        (const float *)(task.weights +
                        (task.ids ? FINAL_NORM_OFFSET : LAYERS_OFFSET + INPUT_NORM_OFFSET));
    for (int row_tile = block_id(); row_tile < HIDDEN_TILES; row_tile += gridDim.x) {
        int i = row_tile * TILE + thread_id() % TILE;
        float x = 0;
        if (stream < STREAMS)
            x = task.ids ? newest_residual(task, stream)[i] : embedding_weight(task, id, i);
        float square = x * x;
        for (int distance = 4; distance > 0; distance /= 2)
            square += __shfl_xor_sync(0xffffffff, square, distance);
        const float4 four = four_rows(x * weight[i]);
        if (stream < STREAMS) {
            if (!task.ids)
                task.residual[stream * HIDDEN_SIZE + i] = x;
            if (i % TILE < 8 && i % 2 == 0)
                tell_normed(out, i, stream, four);
            if (i % 8 == 0)
                tell(out.squares + stream * told_input::PARTS + i / 8, square, out.round);
        }
    }
    consumers_barrier(); // others read the residual
}

static __device__ __forceinline__ void decode_layers(struct gpu_task &task, struct step &step) {
#pragma unroll 1
    for (task.layer = 0; task.layer < LAYERS; task.layer++) {
        decode_qkv(task, step);
        decode_attention(task, step.ring, step.round);
        decode_o(task, step);
        decode_mlp(task, step);
        decode_add(task, step);
        step.round++;
    }
}

// The producer's whole work: all that this block multiplies.
static __device__ __forceinline__ void fill_ring(const struct gpu_task &task) {
    struct filling filling = {{}, {}, 0, FLYING, 0};
    const struct team &team = workplace()->team; // registers are few here
#pragma unroll 1
    for (int layer = task.ids ? LAYERS : 0; layer <= LAYERS; layer++) {
        const char *weights = task.weights + LAYERS_OFFSET + layer * LAYER_STRIDE;
        int first = layer == LAYERS && STREAMS == 1 ? 2 : 0;
        int end = layer == LAYERS ? 3 : 2 + 2 * team.parts();
#pragma unroll 1
        for (int n = first; n < end; n++) {
            if (layer < LAYERS && n < 2)
                filling.limit(CALM);
            if (n == 2)
                filling.limit(CALM_MLP, layer < LAYERS ? RING_SLOTS : 0);
            filling.copy(layer == LAYERS ? head_job(task, n) : layer_job(weights, team, n));
            if (n == 0 && layer < LAYERS)
                copy_attended(task, layer, filling);
        }
    }
    while (filling.flying > 0) // a block must not end before its copies
        filling.wait_for_oldest();
}

// Grid: multiprocessors, all blocks at once.
extern "C" __global__ void __launch_bounds__(STEP_THREADS, 1)
    decode_step(const struct gpu_task given) {
    struct workplace *w = workplace();
    if (threadIdx.x == 0) {
        w->position = given.state->position;
        w->split = divide_attention(w->position);
        w->team = team();
        for (int i = 0; i < RING_SLOTS; i++) {
            init_barrier(&w->full[i], COPY_ARRIVALS);
            init_barrier(&w->empty[i], WARPS);
        }
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x >= THREADS) {
        if (WARPGROUPS)
            give_registers<40>();
        if (warp_id() == WARPS)
            fill_ring(given);
        return;
    }
    if (WARPGROUPS) // what the third warpgroup gave
        take_registers<232>();
    struct gpu_task task = given;
    struct step step = {{}, task.rounds[2 * block_id()] + 1};
    const struct told_input first(task, task.ids ? FOR_HEAD : FOR_QKV,
                                  task.ids ? launch_round(task) : step.round);
    decode_start(task, first);
    if (!task.ids)
        decode_layers(task, step);
    if (STREAMS > 1) {
        decode_mix(task, step);
        decode_weigh(task, step);
    }
    decode_head(task, step);
    if (threadIdx.x == 0) { // all threads have read them: they met since
        task.rounds[2 * block_id()] = step.round - 1;
        task.rounds[2 * block_id() + 1]++;
    }
}
