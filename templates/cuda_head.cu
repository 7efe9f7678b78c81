// After the last layer, for one token: the aggregation network that weighs the streams, the output
// head and the greedy choice. Inputs keep their low parts here. They are the residual times the
// weight of the final norm; the norm's scale is one factor for each stream.

typedef struct row_product<bf16_tiles, adapter_told, HIDDEN_TILES, 1, HIDDEN_TILES, STREAMS>
    mix_product;
typedef struct row_product<bf16_tiles, adapter_told, HIDDEN_TILES, WEIGHT_PLANES, HIDDEN_TILES, 1>
    weigh_product;
typedef struct row_product<head_tiles, told_exactly, HIDDEN_COLUMN_TILES, WEIGHT_PLANES,
                           HIDDEN_TILES, 1>
    head_product;

// mixed = silu(aggregate_layer.0 z + bias), z being the streams' hidden states one behind the
// other. The part of a row of tiles that belongs to a stream is multiplied with all of them, as
// they are columns anyway, and the column of that stream counts. Threads 16 g + c add rows g and g
// + 8 of column c.
static __device__ __forceinline__ void decode_mix(const struct gpu_task &task, struct step &step) {
    const float *bias = (const float *)(task.weights + MIX_BIAS_OFFSET);
    float *scales = workplace()->scales;
    const int g = thread_id() / 16, stream = thread_id() % 16;
    const bool mine = g < 8 && stream < STREAMS;
    const int thread = split_thread<STREAMS>(g, stream);
    const unsigned round = launch_round(task);
    const struct told_input in(task, FOR_HEAD, round);
    mix_product product;
    if (block_id() < HIDDEN_TILES)
        product.await(in.normed, in.round);
    struct column_scales norm;
    norm.begin(in);
    norm.end(in, scales); // read behind a barrier
    for (int row_tile = block_id(); row_tile < HIDDEN_TILES; row_tile += gridDim.x) {
        float2 sum = make_float2(0.0f, 0.0f);
        for (int first = 0; first < MIX_ROWS; first += SUM_ROWS) {
            int rows = MIX_ROWS - first < SUM_ROWS ? MIX_ROWS - first : SUM_ROWS;
            product.multiply_rows(step.ring, in.normed, rows, in.round);
            consumers_barrier();
#pragma unroll 1
            for (int row = 0; row < rows; row++) {
                if (mine && (first + row) % STREAMS == stream) {
                    float2 y = finish_split<STREAMS>(work_floats() + row * mix_product::ROW_FLOATS,
                                                     thread);
                    sum.x += y.x * scales[stream];
                    sum.y += y.y * scales[stream];
                }
            }
            consumers_barrier();
        }
        for (int distance = 8; distance > 0; distance /= 2) {
            sum.x += __shfl_xor_sync(0xffffffff, sum.x, distance);
            sum.y += __shfl_xor_sync(0xffffffff, sum.y, distance);
        }
        int row = row_tile * TILE + g % 8;
        float low = sum.x + bias[row], high = sum.y + bias[row + 8];
        low /= 1.0f + expf(-low);
        high /= 1.0f + expf(-high);
        float next_low = __shfl_xor_sync(0xffffffff, low, 16); // of row + 1, for even rows
        float next_high = __shfl_xor_sync(0xffffffff, high, 16);
        if (g < 8 && g % 2 == 0 && stream == 0)
            adapter_told::tell_four(task.mixed, 1, row, 0,
                                    make_float4(low, next_low, high, next_high), round);
    }
}

// stream_weights = softmax(aggregate_layer.2 mixed + bias) * (1 - s) + s / P; head_input = sum over
// p of stream_weights[p] times stream p's hidden state. Every block that has rows of it computes
// the weights for itself.
static __device__ __forceinline__ void decode_weigh(const struct gpu_task &task,
                                                    struct step &step) {
    const float *bias = (const float *)(task.weights + WEIGH_BIAS_OFFSET);
    const float *norm = (const float *)(task.weights + FINAL_NORM_OFFSET);
    const unsigned round = launch_round(task);
    float *weights = workplace()->weights;
    const float *scales = workplace()->scales;
    if (block_id() < HIDDEN_TILES) {
        weigh_product product;
        product.await(task.mixed, round);
        product.multiply_rows(step.ring, task.mixed, 1, round);
        consumers_barrier();
        const int row = thread_id();
        if (row < 8) {
            float2 y = finish_split<1>(work_floats(), row);
            weights[row] = y.x + bias[row];
            weights[row + 8] = y.y + bias[row + 8];
        }
        consumers_barrier();
        float max = weights[0], total = 0;
#pragma unroll 1
        for (int p = 1; p < STREAMS; p++)
            max = fmaxf(max, weights[p]);
#pragma unroll 1
        for (int p = 0; p < STREAMS; p++)
            total += expf(weights[p] - max);
        float factor = (1.0f - STREAM_SMOOTHING) / total, least = STREAM_SMOOTHING / STREAMS;
        for (int row_tile = block_id(); row_tile < HIDDEN_TILES; row_tile += gridDim.x) {
            if (thread_id() < WARP) { // rows twice
                int i = row_tile * TILE + thread_id() % TILE;
                float y = 0;
#pragma unroll 1
                for (int p = 0; p < STREAMS; p++)
                    y += (expf(weights[p] - max) * factor + least) * scales[p] *
                         newest_residual(task, p)[i];
                y *= norm[i];
                const float4 four = four_rows(y);
                if (thread_id() < 8 && i % 2 == 0)
                    told_exactly::tell_four(task.head_input, 1, i, 0, four, round);
            }
        }
        if (block_id() == 0 && thread_id() < STREAMS)
            task.stream_weights[newest_position(task) % 2 * STREAMS + thread_id()] =
                expf(weights[thread_id()] - max) * factor + least;
    }
    consumers_barrier(); // before others take the place of the sums
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

static __device__ inline struct gpu_best best_of_warps(const struct gpu_best *found) {
    struct gpu_best best = found[0];
    for (int warp = 1; warp < WARPS; warp++)
        best = better(best, found[warp]);
    return best;
}

// Each block's best, by odd and even positions.
static __device__ inline struct gpu_best *blocks_best(const struct gpu_task &task) {
    return task.best + newest_position(task) % 2 * task.blocks;
}

enum { HEAD_ROWS = 8 }; // of tiles together: as many sums of one column always fit

// logits [vocab] and the best of each block. Thread 8 j + g finishes rows g and g + 8 of row of
// tiles j of a batch.
static __device__ __forceinline__ void decode_head(const struct gpu_task &task, struct step &step) {
    float *logits = task.logits + (long long)(newest_position(task) % 2) * VOCAB_SIZE;
    float *scales = workplace()->scales, scale = 1;
    struct gpu_best best = {negative_infinity(), VOCAB_SIZE}, *found = workplace()->best;
    const unsigned round = launch_round(task);
    const struct told_input in(task, FOR_HEAD, round);
    const float *input = STREAMS == 1 ? in.normed : task.head_input;
    head_product product;
    product.await(input, round);
    struct column_scales norm;
    if (STREAMS == 1) {
        norm.begin(in);
        norm.end(in, scales); // read behind a barrier
    }
    for (int first = block_id(); first < HEAD_ROW_TILES; first += HEAD_ROWS * gridDim.x) {
        int rows = batch_rows<HEAD_ROWS>(first, HEAD_ROW_TILES);
        product.multiply_rows(step.ring, input, rows, round);
        consumers_barrier();
        if (STREAMS == 1)
            scale = scales[0];
        const int row = thread_id() / 8, g = thread_id() % 8;
        if (row < rows) {
            float2 y = finish_split<1>(work_floats() + row * head_product::ROW_FLOATS, g);
            int id = (first + row * (int)gridDim.x) * TILE + g;
            for (int i = 0; i < 2; i++) {
                struct gpu_best one = {(i ? y.y : y.x) * scale, id + 8 * i};
                if (one.id < VOCAB_SIZE) {
                    logits[one.id] = one.logit;
                    best = better(best, one);
                }
            }
        }
        consumers_barrier();
    }
    best = warp_best(best);
    if (lane_id() == 0)
        found[warp_id()] = best;
    consumers_barrier();
    if (thread_id() == 0) {
        blocks_best(task)[block_id()] = best_of_warps(found);
        if (STREAMS == 1 && block_id() == 0)
            task.stream_weights[newest_position(task) % 2] = 1.0f;
    }
}

// state: the greedy choice, and the next position. Grid: 1.
extern "C" __global__ void __launch_bounds__(THREADS) choose(const struct gpu_task task) {
    wait_for_previous_kernel();
    struct gpu_best best = {negative_infinity(), VOCAB_SIZE};
    for (int i = threadIdx.x; i < task.blocks; i += THREADS)
        best = better(best, blocks_best(task)[i]);
    best = warp_best(best);
    struct gpu_best *found = (struct gpu_best *)shared_memory(); // [WARPS]
    if (lane_id() == 0)
        found[warp_id()] = best;
    __syncthreads();
    best = best_of_warps(found);
    if (threadIdx.x == 0)
        leave_choice(task, best.id < VOCAB_SIZE ? best.id : 0);
}
