// One decode step: five kernels a layer, all streams as columns of each product. Before
// wait_for_previous_kernel a kernel reads weights only.

// residual [columns, hidden] = the embedding of the token; for a decode step also the input of
// layer 0. Grid: tokens, streams.
extern "C" __global__ void __launch_bounds__(THREADS) embed(const struct gpu_task task) {
    wait_for_previous_kernel();
    int token = blockIdx.x, stream = blockIdx.y;
    int id = task.ids ? task.ids[token] : task.state->token;
    id = id < 0 ? 0 : id; // a step that was started before it was known that the CPU must choose
    if (threadIdx.x == 0 && stream == 0)
        task.history[task.ids ? task.position + token : task.state->position] = id;
    const float *weight = (const float *)(task.weights + LAYERS_OFFSET + INPUT_NORM_OFFSET);
    float *out = task.residual + (long long)(stream * task.tokens + token) * HIDDEN_SIZE;
    for (int first = 0; first < HIDDEN_SIZE; first += THREADS) {
        int i = first + threadIdx.x;
        float x = i < HIDDEN_SIZE ? embedding_weight(task, id, i) : 0.0f;
        float square = x * x;
        for (int distance = 4; distance > 0; distance /= 2)
            square += __shfl_xor_sync(0xffffffff, square, distance);
        if (i < HIDDEN_SIZE) {
            out[i] = x;
            if (!task.ids)
                store_normed(task, i, stream, x * weight[i]);
            if (!task.ids && i % 8 == 0)
                task.squares[i / 8 * TILE + stream] = square;
        }
    }
}

enum { // shared memory of the decode kernels, in bytes: ring, sums of finish_split, scales
    DECODE_SHARED = RING_BYTES + COLUMN_GROUPS * SPLIT_SUM_BYTES + TILE * 4,
};

// normed -> query, cache. Grid: rows of tiles. In layer 0 all streams have one input. With
// quantised weights it takes more registers than the compiler would give it, so one block is asked
// for; 0 leaves it to the compiler.
extern "C" __global__ void __launch_bounds__(THREADS, INPUT_TILES - 1)
    decode_qkv(const struct gpu_task task) {
    float *sums = (float *)(shared_memory() + RING_BYTES);
    float *scales = sums + COLUMN_GROUPS * SPLIT_SUM_BYTES / 4;
    const struct tile *row =
        matrix_row<layer_tiles>(layer_weights(task) + QKV_OFFSET, blockIdx.x, HIDDEN_COLUMN_TILES);
    struct stream<layer_tiles, STREAMS, 2> product = {
        split_run(row, HIDDEN_COLUMN_TILES),
            (const struct columns *)task.normed, HIDDEN_COLUMN_TILES
    };
    product.start();
    struct place at = split_place(threadIdx.x);
    int position = task.state->position; // of earlier steps, like the terms
    struct qkv_terms terms = find_terms(task, blockIdx.x, at.row, position);
    wait_for_previous_kernel();

    struct column_scales norm;
    float sum[COLUMN_GROUPS][4] = {};
    norm.begin(task);
    product.multiply_into(sum);
    norm.end(scales);
    share_sums(sums, sum);
    if (threadIdx.x < COLUMN_GROUPS * 64) {
        if (at.column < (task.layer == 0 ? 1 : STREAMS)) {
            float2 y = finish_split(sums, threadIdx.x);
            float scale = scales[at.column];
            store_qkv(task, blockIdx.x, at.row, 0, at.column, position, terms, y.x * scale,
                      y.y * scale);
        }
    }
}

// residual += W x, for o_proj and down_proj, and the input of the next product, whose norm has the
// weights `norm`. Grid: rows of tiles.
static __device__ __forceinline__ void decode_residual(const struct gpu_task &task,
                                                       const char *matrix, int column_tiles,
                                                       const char *input, const float *norm) {
    float *sums = (float *)(shared_memory() + RING_BYTES);
    const struct tile *tiles = matrix_row<layer_tiles>(matrix, blockIdx.x, column_tiles);
    struct stream<layer_tiles, STREAMS, 1> product = {
        split_run(tiles, column_tiles), (const struct columns *)input, column_tiles
    };
    product.start();
    struct place at = split_place(threadIdx.x);
    int row = blockIdx.x * TILE + at.row;
    float2 weight = make_float2(norm[row], norm[row + 8]);
    bool mine = threadIdx.x < COLUMN_GROUPS * 64 && at.column < STREAMS;
    wait_for_previous_kernel();

    float *out = task.residual + (long long)(mine ? at.column : 0) * HIDDEN_SIZE + row;
    float2 before = make_float2(out[0], out[8]); // loaded while the product runs
    float sum[COLUMN_GROUPS][4] = {};
    product.multiply_into(sum);
    share_sums(sums, sum);
    if (threadIdx.x >= COLUMN_GROUPS * 64)
        return;
    float square = 0;
    if (mine) {
        float2 y = finish_split(sums, threadIdx.x);
        y = make_float2(before.x + y.x, before.y + y.y);
        out[0] = y.x;
        out[8] = y.y;
        store_normed(task, row, at.column, y.x * weight.x);
        store_normed(task, row + 8, at.column, y.y * weight.y);
        square = y.x * y.x + y.y * y.y;
    }
    // Each warp has 4 pairs of rows of 8 columns.
    square += __shfl_xor_sync(0xffffffff, square, 8);
    square += __shfl_xor_sync(0xffffffff, square, 16);
    if (lane_id() < 8 && at.column < STREAMS)
        task.squares[(blockIdx.x * 2 + warp_id() % 2) * TILE + at.column] = square;
}

extern "C" __global__ void __launch_bounds__(THREADS) decode_o(const struct gpu_task task) {
    const char *layer = layer_weights(task);
    decode_residual(task, layer + O_OFFSET, O_COLUMN_TILES, task.input,
                    (const float *)(layer + POST_NORM_OFFSET));
}

extern "C" __global__ void __launch_bounds__(THREADS) decode_down(const struct gpu_task task) {
    const char *layer = layer_weights(task);
    const char *next = task.layer + 1 < LAYERS ? layer + LAYER_STRIDE + INPUT_NORM_OFFSET
                                               : task.weights + FINAL_NORM_OFFSET;
    decode_residual(task, layer + DOWN_OFFSET, DOWN_COLUMN_TILES, task.activation,
                    (const float *)next);
}

// silu(gate) * up; the fast functions' error is far below a bf16's.
static __device__ inline float swiglu(float gate, float up) {
    return fast_quotient(gate, 1.0f + power_of_two(-1.44269504f * gate)) * up;
}

// normed -> activation = silu(gate) * up. Grid: rows of tiles / WARPS, each warp one row: 8 gates
// and their 8 ups.
extern "C" __global__ void __launch_bounds__(THREADS) decode_gate_up(const struct gpu_task task) {
    float *scales = (float *)(shared_memory() + RING_BYTES);
    int row_tile = blockIdx.x * WARPS + warp_id();
    bool valid = row_tile < GATE_UP_ROW_TILES;
    struct stream<layer_tiles, STREAMS, 1> product = {
        {matrix_row<layer_tiles>(layer_weights(task) + GATE_UP_OFFSET, row_tile,
                                 HIDDEN_COLUMN_TILES),
         0, valid ? HIDDEN_COLUMN_TILES *WEIGHT_PLANES : 0},
            (const struct columns *)task.normed, HIDDEN_COLUMN_TILES,
    };
    product.start();
    store_newest(task); // attention is over: o, which still runs, waited for it
    wait_for_previous_kernel();

    struct column_scales norm;
    float sum[COLUMN_GROUPS][4] = {};
    norm.begin(task);
    product.multiply_into(sum);
    norm.end(scales);
    __syncthreads();
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
                float scale = scales[column];
                out[column_index(COLUMN_GROUPS, channel, column)] =
                    bf16_bits(swiglu(sum[group][i] * scale, sum[group][i + 2] * scale));
            }
        }
    }
}
