// One decode step: five kernels a layer, all streams as columns of each product. Before
// wait_for_previous_kernel a kernel reads weights only.

// residual [streams, hidden] = the embedding of the token. Grid: tokens x streams.
extern "C" __global__ void __launch_bounds__(THREADS) embed(const struct gpu_task task) {
    wait_for_previous_kernel();
    int token = blockIdx.x, stream = blockIdx.y;
    int id = task.ids ? task.ids[token] : task.state->token;
    const char *row = task.weights + EMBEDDING_OFFSET +
                      (long long)(id / TILE) * HIDDEN_TILES * WEIGHT_PLANES * TILE_BYTES;
    float *out = task.residual + (long long)(stream * task.tokens + token) * HIDDEN_SIZE;
    for (int i = threadIdx.x; i < HIDDEN_SIZE; i += THREADS) {
        float sum = 0;
        for (int plane = 0; plane < WEIGHT_PLANES; plane++)
            sum += from_bf16(((const unsigned short *)row)[(plane * HIDDEN_TILES + i / TILE) * TILE_ELEMENTS +
                                                           tile_index(id % TILE, i % TILE)]);
        out[i] = sum;
    }
}

enum { // shared memory of decode_qkv and decode_gate_up, in bytes
    NORM_BYTES = HIDDEN_TILES * COLUMN_GROUPS * COLUMN_BYTES, // one part, high or low
    SQUARES_BYTES = STREAMS * WARPS * 4,
    DECODE_QKV_SHARED = 2 * NORM_BYTES + COLUMN_GROUPS * SPLIT_SUM_BYTES + SQUARES_BYTES,
    DECODE_GATE_UP_SHARED = NORM_BYTES + SQUARES_BYTES,
    DECODE_SPLIT_SHARED = COLUMN_GROUPS * SPLIT_SUM_BYTES,
};

// residual -> query, cache. Grid: rows of tiles. In layer 0 all streams have one input.
extern "C" __global__ void __launch_bounds__(THREADS) decode_qkv(const struct gpu_task task) {
    struct columns *input = (struct columns *)shared_memory();
    float *sums = (float *)((char *)input + 2 * NORM_BYTES);
    float *squares = sums + COLUMN_GROUPS * SPLIT_SUM_BYTES / 4;
    const char *layer = layer_weights(task);
    struct run run = split_run(matrix_row(layer + QKV_OFFSET, blockIdx.x, HIDDEN_TILES), HIDDEN_TILES);
    struct tile even[CHUNK], odd[CHUNK];
    int first = run.next;
    read_chunk(even, run);
    read_chunk(odd, run);
    wait_for_previous_kernel();

    int count = task.layer == 0 ? 1 : STREAMS;
    weigh_columns<true>(task.residual, count, (const float *)(layer + INPUT_NORM_OFFSET), input, squares);
    struct activations<STREAMS, 2, false> x = {input, HIDDEN_TILES};
    float sum[COLUMN_GROUPS][4] = {};
    multiply_run(sum, even, odd, run, first, x);
    share_sums(sums, sum);
    if (threadIdx.x < COLUMN_GROUPS * 64) {
        struct place at = split_place(threadIdx.x);
        if (at.column < count) {
            float2 y = finish_split(sums, threadIdx.x);
            float scale = column_scale(squares, at.column);
            store_qkv(task, blockIdx.x, at.row, 0, at.column, task.state->position, y.x * scale,
                      y.y * scale);
        }
    }
}

// residual += W x, for o_proj and down_proj. Grid: rows of tiles.
static __device__ __forceinline__ void decode_residual(const struct gpu_task &task,
                                                       const char *matrix, int column_tiles,
                                                       const char *input) {
    float *sums = (float *)shared_memory();
    struct run run = split_run(matrix_row(matrix, blockIdx.x, column_tiles), column_tiles);
    struct tile even[CHUNK], odd[CHUNK];
    int first = run.next;
    read_chunk(even, run);
    read_chunk(odd, run);
    wait_for_previous_kernel();

    struct activations<STREAMS, 1, true> x = {(const struct columns *)input, column_tiles};
    float sum[COLUMN_GROUPS][4] = {};
    multiply_run(sum, even, odd, run, first, x);
    share_sums(sums, sum);
    if (threadIdx.x < COLUMN_GROUPS * 64) {
        struct place at = split_place(threadIdx.x);
        if (at.column < STREAMS) {
            float2 y = finish_split(sums, threadIdx.x);
            float *out = task.residual + (long long)at.column * HIDDEN_SIZE + blockIdx.x * TILE + at.row;
            out[0] += y.x;
            out[8] += y.y;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) decode_o(const struct gpu_task task) {
    decode_residual(task, layer_weights(task) + O_OFFSET, HEADS_TILES, task.input);
}

extern "C" __global__ void __launch_bounds__(THREADS) decode_down(const struct gpu_task task) {
    decode_residual(task, layer_weights(task) + DOWN_OFFSET, INTERMEDIATE_TILES, task.activation);
}

// silu(gate) * up; the fast functions' error is far below a bf16's.
static __device__ inline float swiglu(float gate, float up) {
    return fast_quotient(gate, 1.0f + power_of_two(-1.44269504f * gate)) * up;
}

// residual -> activation = silu(gate) * up. Grid: rows of tiles / WARPS, each warp one row: 8 gates
// and their 8 ups.
extern "C" __global__ void __launch_bounds__(THREADS) decode_gate_up(const struct gpu_task task) {
    struct columns *input = (struct columns *)shared_memory();
    float *squares = (float *)((char *)input + NORM_BYTES);
    const char *layer = layer_weights(task);
    int row_tile = blockIdx.x * WARPS + warp_id();
    bool valid = row_tile < GATE_UP_ROW_TILES;
    struct run run = {matrix_row(layer + GATE_UP_OFFSET, row_tile, HIDDEN_TILES), 0,
                      valid ? HIDDEN_TILES * WEIGHT_PLANES : 0};
    struct tile even[CHUNK], odd[CHUNK];
    read_chunk(even, run);
    read_chunk(odd, run);
    wait_for_previous_kernel();

    weigh_columns<false>(task.residual, STREAMS, (const float *)(layer + POST_NORM_OFFSET), input, squares);
    struct activations<STREAMS, 1, false> x = {input, HIDDEN_TILES};
    float sum[COLUMN_GROUPS][4] = {};
    multiply_run(sum, even, odd, run, 0, x);
    if (!valid)
        return;
    unsigned short *out = (unsigned short *)task.activation;
    int channel = row_tile * 8 + lane_id() / 4;
#pragma unroll
    for (int group = 0; group < COLUMN_GROUPS; group++) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int column = group * 8 + lane_id() % 4 * 2 + i;
            if (column < STREAMS) {
                float scale = column_scale(squares, column);
                out[column_index(COLUMN_GROUPS, channel, column)] =
                    bf16_bits(swiglu(sum[group][i] * scale, sum[group][i + 2] * scale));
            }
        }
    }
}
