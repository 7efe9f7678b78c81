// After the last layer, for one token: the final norm of every stream, the aggregation network that
// weighs the streams, the output head and the greedy choice. Activations keep their low parts here:
// one column leaves room for them.

// Element k of one column, as high and low parts. tiles: 16s of the column.
static __device__ inline void store_parts(char *column, int k, int tiles, float value) {
    unsigned short *high = (unsigned short *)column;
    int at = column_index(1, k, 0);
    high[at] = bf16_bits(value);
    high[tiles * WARP * 4 + at] = bf16_bits(value - from_bf16(high[at]));
}

// residual -> final, mix_input; with one stream -> head_input. Grid: streams.
extern "C" __global__ void __launch_bounds__(THREADS) final_norm(const struct gpu_task task) {
    wait_for_previous_kernel();
    float *sums = (float *)shared_memory(); // [WARPS]
    int stream = blockIdx.x;
    if (stream == 0 && threadIdx.x == 0)
        *task.meetings = 0;
    const float *weight = (const float *)(task.weights + FINAL_NORM_OFFSET);
    const float *x = task.residual + (long long)(stream * task.tokens + task.token) * HIDDEN_SIZE;
    float sum = 0, total = 0;
    for (int i = threadIdx.x; i < HIDDEN_SIZE; i += THREADS)
        sum += x[i] * x[i];
    sum = warp_sum(sum);
    if (lane_id() == 0)
        sums[warp_id()] = sum;
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++)
        total += sums[warp];
    float scale = rsqrtf(total / HIDDEN_SIZE + RMS_NORM_EPS);
    for (int i = threadIdx.x; i < HIDDEN_SIZE; i += THREADS) {
        float y = x[i] * scale * weight[i];
        if (STREAMS == 1) {
            store_parts(task.head_input, i, HIDDEN_INPUT_TILES, y);
        } else {
            task.final[stream * HIDDEN_SIZE + i] = y;
            store_parts(task.mix_input, stream * HIDDEN_SIZE + i, STREAMS * HIDDEN_TILES, y);
        }
    }
    if (STREAMS == 1 && threadIdx.x == 0)
        task.stream_weights[newest_position(task) % 2] = 1.0f;
}

// One column times one row of tiles: sums [1, WARPS, WARP, 4] of finish_split in shared memory.
static __device__ __forceinline__ void
one_column(const char *matrix, int row_tile, int column_tiles, const char *input, float *sums) {
    struct stream<bf16_tiles, 1, 2> product = {
        split_run(matrix_row<bf16_tiles>(matrix, row_tile, column_tiles), column_tiles),
            (const struct columns *)input, column_tiles
    };
    product.start();
    wait_for_previous_kernel();
    float sum[1][4] = {};
    product.multiply_into(sum);
    share_sums(sums, sum);
}

// mixed = silu(aggregate_layer.0 z + bias). Grid: rows of tiles.
extern "C" __global__ void __launch_bounds__(THREADS) mix_streams(const struct gpu_task task) {
    float *sums = (float *)(shared_memory() + RING_BYTES);
    const float *bias = (const float *)(task.weights + MIX_BIAS_OFFSET) + blockIdx.x * TILE;
    one_column(task.weights + MIX_OFFSET, blockIdx.x, STREAMS * HIDDEN_TILES, task.mix_input, sums);
    struct place at = split_place(threadIdx.x);
    if (threadIdx.x < 64 && at.column == 0) {
        float2 y = finish_split(sums, threadIdx.x);
        float low = y.x + bias[at.row], high = y.y + bias[at.row + 8];
        int row = blockIdx.x * TILE + at.row;
        store_parts(task.mixed, row, HIDDEN_TILES, low / (1.0f + expf(-low)));
        store_parts(task.mixed, row + 8, HIDDEN_TILES, high / (1.0f + expf(-high)));
    }
}

// stream_weights = softmax(aggregate_layer.2 mixed + bias) * (1 - s) + s / P; head_input = sum over
// p of stream_weights[p] final[p]. Grid: 1.
extern "C" __global__ void __launch_bounds__(THREADS) weigh_streams(const struct gpu_task task) {
    float *sums = (float *)(shared_memory() + RING_BYTES);
    float *weights = sums + SPLIT_SUM_BYTES / 4; // [TILE]
    const float *bias = (const float *)(task.weights + WEIGH_BIAS_OFFSET);
    one_column(task.weights + WEIGH_OFFSET, 0, HIDDEN_TILES, task.mixed, sums);
    struct place at = split_place(threadIdx.x);
    if (threadIdx.x < 64 && at.column == 0) {
        float2 y = finish_split(sums, threadIdx.x);
        weights[at.row] = y.x + bias[at.row];
        weights[at.row + 8] = y.y + bias[at.row + 8];
    }
    __syncthreads();
    float max = weights[0], total = 0;
    for (int p = 1; p < STREAMS; p++)
        max = fmaxf(max, weights[p]);
    for (int p = 0; p < STREAMS; p++)
        total += expf(weights[p] - max);
    float factor = (1.0f - STREAM_SMOOTHING) / total, least = STREAM_SMOOTHING / STREAMS;
    for (int i = threadIdx.x; i < HIDDEN_SIZE; i += THREADS) {
        float y = 0;
        for (int p = 0; p < STREAMS; p++)
            y += (expf(weights[p] - max) * factor + least) * task.final[p * HIDDEN_SIZE + i];
        store_parts(task.head_input, i, HIDDEN_INPUT_TILES, y);
    }
    if (threadIdx.x < STREAMS)
        task.stream_weights[newest_position(task) % 2 * STREAMS + threadIdx.x] =
            expf(weights[threadIdx.x] - max) * factor + least;
}

// The larger logit, the lower id of equals; never a NaN, unless all are.
static __device__ inline struct gpu_best better(struct gpu_best a, struct gpu_best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
}

static __device__ inline struct gpu_best warp_best(struct gpu_best best) {
    for (int distance = 16; distance > 0; distance /= 2) {
        struct gpu_best other = {__shfl_xor_sync(0xffffffff, best.logit, distance),
                                 __shfl_xor_sync(0xffffffff, best.id, distance)};
        best = better(best, other);
    }
    return best;
}

// The best of the block; found: [WARPS] in shared memory, used for nothing else.
static __device__ inline struct gpu_best block_best(struct gpu_best best, struct gpu_best *found) {
    best = warp_best(best);
    if (lane_id() == 0)
        found[warp_id()] = best;
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++)
        best = better(best, found[warp]);
    return best;
}

// logits [vocab] and the best of each block. Grid: rows of tiles / WARPS, each warp one row.
extern "C" __global__ void __launch_bounds__(THREADS) head(const struct gpu_task task) {
    struct gpu_best *found = (struct gpu_best *)(shared_memory() + RING_BYTES);
    int row_tile = blockIdx.x * WARPS + warp_id();
    bool valid = row_tile < HEAD_ROW_TILES;
    struct stream<head_tiles, 1, 2> product = {
        {matrix_row<head_tiles>(task.weights + HEAD_OFFSET, row_tile, HIDDEN_COLUMN_TILES), 0,
         valid ? HIDDEN_COLUMN_TILES *WEIGHT_PLANES : 0},
            (const struct columns *)task.head_input, HIDDEN_COLUMN_TILES,
    };
    product.start();
    wait_for_previous_kernel();
    float sum[1][4] = {};
    product.multiply_into(sum);
    int slot = newest_position(task) % 2;
    float *logits = task.logits + (long long)slot * VOCAB_SIZE;
    struct gpu_best best = {negative_infinity(), VOCAB_SIZE};
    if (valid && lane_id() % 4 == 0) { // column 0
        for (int i = 0; i < 2; i++) {
            struct gpu_best one = {sum[0][2 * i], row_tile * TILE + lane_id() / 4 + 8 * i};
            if (one.id < VOCAB_SIZE) {
                logits[one.id] = one.logit;
                best = better(best, one);
            }
        }
    }
    best = block_best(best, found);
    if (threadIdx.x == 0)
        task.best[slot * HEAD_BLOCKS + blockIdx.x] = best;
}

// The next step's input; for the host too.
static __device__ inline void leave_choice(const struct gpu_task &task, int token) {
    int position = newest_position(task);
    struct gpu_state state = {token, task.ids ? task.position + task.tokens : position + 1};
    *task.state = state;
    task.chosen[position % 2] = state;
}

// state: the greedy choice, and the next position. Grid: 1.
extern "C" __global__ void __launch_bounds__(THREADS) choose(const struct gpu_task task) {
    wait_for_previous_kernel();
    struct gpu_best best = {negative_infinity(), VOCAB_SIZE};
    int slot = newest_position(task) % 2;
    for (int i = threadIdx.x; i < HEAD_BLOCKS; i += THREADS)
        best = better(best, task.best[slot * HEAD_BLOCKS + i]);
    best = block_best(best, (struct gpu_best *)shared_memory());
    if (threadIdx.x == 0)
        leave_choice(task, best.id < VOCAB_SIZE ? best.id : 0);
}
