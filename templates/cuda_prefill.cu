// A block of tokens x streams: the layers' kernels. See cuda_block.cu for the products and for
// where activations lie.

// Calls finish(slice, sum) for every slice of weights x input that this block of threads has.
template <enum number NUMBER, int ROW_TILES, typename FINISH>
static __device__ __forceinline__ void multiply_all(const struct product &p, const FINISH &finish) {
    wait_for_previous_kernel();
    if constexpr (WARPGROUPS)
        multiply_by_warpgroups<NUMBER, block_columns(ROW_TILES)>(p, finish);
    else
        multiply_by_warps<NUMBER>(p, finish);
}

// residual -> input, normalised. Each warp one column, all of it in registers.
template <enum number NUMBER>
static __device__ __forceinline__ void prefill_norm(const struct gpu_task &task,
                                                    long long weight_offset, int columns) {
    const int LOADS = (HIDDEN_SIZE + 4 * WARP - 1) / (4 * WARP);
    int column = blockIdx.x * WARPS + warp_id(), first = lane_id() * 4;
    const float *weight = (const float *)(layer_weights(task) + weight_offset);
    float4 values[LOADS], weights[LOADS];
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        int i = j * 4 * WARP + first;
        if (i < HIDDEN_SIZE)
            weights[j] = *(const float4 *)(weight + i);
    }
    wait_for_previous_kernel();
    if (column >= columns)
        return;
    const float *x = task.residual + (long long)column * HIDDEN_SIZE;
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        int i = j * 4 * WARP + first;
        values[j] = i < HIDDEN_SIZE ? *(const float4 *)(x + i) : make_float4(0, 0, 0, 0);
    }
    float sum = 0;
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        const float4 &v = values[j];
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    }
    float scale = rsqrtf(warp_sum(sum) / HIDDEN_SIZE + RMS_NORM_EPS);
#pragma unroll
    for (int j = 0; j < LOADS; j++) {
        int i = j * 4 * WARP + first;
        if (i < HIDDEN_SIZE) {
            const float4 &v = values[j], &w = weights[j];
            *(uint2 *)input_word(task.input, column, i) =
                make_uint2(to_numbers<NUMBER>(v.x * scale * w.x, v.y * scale * w.y),
                           to_numbers<NUMBER>(v.z * scale * w.z, v.w * scale * w.w));
        }
    }
    for (int i = HIDDEN_SIZE + first; i < HIDDEN_INPUT_TILES * TILE; i += 4 * WARP)
        *(uint2 *)input_word(task.input, column, i) = make_uint2(0, 0);
}

#if MODULES & 4
// residual [columns, hidden] = the embedding of the token. Grid: tokens, streams.
extern "C" __global__ void __launch_bounds__(THREADS) embed(const struct gpu_task task) {
    wait_for_previous_kernel();
    int token = blockIdx.x, stream = blockIdx.y, id = task.ids[token];
    if (threadIdx.x == 0 && stream == 0)
        task.history[task.position + token] = id;
    float *out = task.residual + (long long)(stream * task.tokens + token) * HIDDEN_SIZE;
    for (int i = threadIdx.x; i < HIDDEN_SIZE; i += THREADS)
        out[i] = embedding_weight(task, id, i);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    prefill_input_norm(const struct gpu_task task) {
    prefill_norm<F16>(task, INPUT_NORM_OFFSET, prefill_columns(task).count);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    prefill_post_norm(const struct gpu_task task) {
    prefill_norm<BF16>(task, POST_NORM_OFFSET, task.tokens * STREAMS);
}

#endif

#if MODULES & 16
// Where in projected_head's order element n of the first or second 8 rows of a row of tiles of
// q|k|v belongs; -1: nowhere. Rows r, r + 8 of queries and keys are a rotary pair.
static __device__ __forceinline__ int projected_place(int row_tile, int n, int half) {
    const int value = row_tile * TILE - QKV_VALUE_ROW, pair = row_tile * PAIRS_A_ROW + n;
    if (value >= 0)
        return value + half * 8 + n < KV_HEADS * HEAD_DIM
                   ? (HEADS + KV_HEADS) * HEAD_DIM + value + half * 8 + n
                   : -1;
    return pair < (HEADS + KV_HEADS) * HALF_HEAD
               ? pair / HALF_HEAD * HEAD_DIM + half * HALF_HEAD + pair % HALF_HEAD
               : -1;
}

// A slice of q|k|v -> projected. Lane 4g + i has rows g, g + 8 of columns 2i, 2i + 1 of each 8;
// when transposed, rows 2i, 2i + 1 of column g, which are stored together unless they are of two
// heads.
static __device__ __forceinline__ void finish_qkv(const struct prefill_columns &columns,
                                                  const struct slice &slice,
                                                  const float (*sum)[4]) {
    const int TOGETHER = HALF_HEAD % 2 ? 1 : 2;
    const int row = lane_id() / 4, pair = slice.row_tile * PAIRS_A_ROW + row,
              first = slice.column + lane_id() % 4 * 2, stored = slice.column + lane_id() / 4;
    const bool turned = slice.row_tile * TILE < QKV_VALUE_ROW;
    const float scale = pair < QUERY_PAIRS ? query_scale() : 1.0f;
    const float *bias = (const float *)(layer_weights(columns.task) + QKV_BIAS_OFFSET) +
                        slice.row_tile * TILE + row;
    const float low_bias = bias[0], high_bias = bias[8];
    const float2 *angles = (const float2 *)columns.task.rotary + pair % HALF_HEAD;
    float2 angle[8][2];
#pragma unroll
    for (int i = 0; i < 16; i++) {
        angle[i / 2][i % 2] = make_float2(1, 0);
        if (turned)
            angle[i / 2][i % 2] = angles[columns.position(first + i / 2 * 8 + i % 2) * HALF_HEAD];
    }
    unsigned short *to = columns.task.projected + stored * QKV_FLOATS;
    int place[2][2];
#pragma unroll
    for (int n = 0; n < 4; n++)
        place[n / 2][n % 2] = projected_place(slice.row_tile, lane_id() % 4 * 2 + n % 2, n / 2);
#pragma unroll
    for (int j = 0; j < 8; j++) {
        float turn[2][2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float low = sum[j][i] + low_bias, high = sum[j][i + 2] + high_bias;
            turn[0][i] = (low * angle[j][i].x - high * angle[j][i].y) * scale;
            turn[1][i] = (high * angle[j][i].x + low * angle[j][i].y) * scale;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const unsigned word = transpose(to_f16(turn[half][0], turn[half][1]));
            const bool wanted = stored + j * 8 < columns.count;
#pragma unroll
            for (int n = 0; n < 2; n += TOGETHER) {
                unsigned short *at = to + j * 8 * QKV_FLOATS + place[half][n];
                if (wanted && place[half][n] >= 0 && TOGETHER == 2)
                    *(unsigned *)at = word;
                else if (wanted && place[half][n] >= 0)
                    *at = (unsigned short)(word >> 16 * n);
            }
        }
    }
}

// input -> projected. Grid of all products: see prefill_product in gpu.c. Input and results are
// f16: what bf16 loses of queries costs more accuracy than anything else.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, PRODUCT_BLOCKS)
    prefill_qkv(const struct gpu_task task) {
    const struct prefill_columns columns(task);
    struct product p = {layer_weights(task) + QKV_OFFSET, task.input, QKV_ROW_TILES,
                        HIDDEN_INPUT_TILES, columns.count};
    multiply_all<F16, QKV_ROW_TILES>(p, [&](const struct slice &slice, const float(*sum)[4]) {
        if (slice.row_tile < p.row_tiles)
            finish_qkv(columns, slice, sum);
    });
}
#endif

#if MODULES & 8
// residual += W x
template <int ROW_TILES>
static __device__ __forceinline__ void prefill_residual(const struct gpu_task &task,
                                                        const struct product &p) {
    multiply_all<BF16, ROW_TILES>(p, [&](const struct slice &slice, const float(*sum)[4]) {
        int first = slice.column + lane_id() % 4 * 2;
        int columns = slice.row_tile < p.row_tiles ? p.columns - first : 0;
        float *rows =
            task.residual + (long long)first * HIDDEN_SIZE + slice.row_tile * TILE + lane_id() / 4;
#pragma unroll
        for (int j = 0; j < 16; j++) {
            int column = j / 2 * 8 + j % 2;
            if (column < columns) {
                add_float(rows + column * HIDDEN_SIZE, sum[j / 2][j % 2]);
                add_float(rows + column * HIDDEN_SIZE + 8, sum[j / 2][j % 2 + 2]);
            }
        }
    });
}

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, PRODUCT_BLOCKS)
    prefill_o(const struct gpu_task task) {
    struct product p = {layer_weights(task) + O_OFFSET, task.input, HIDDEN_TILES, HEADS_TILES,
                        task.tokens * STREAMS};
    prefill_residual<HIDDEN_TILES>(task, p);
}

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, PRODUCT_BLOCKS)
    prefill_down(const struct gpu_task task) {
    struct product p = {layer_weights(task) + DOWN_OFFSET, task.activation, HIDDEN_TILES,
                        INTERMEDIATE_TILES, task.tokens * STREAMS};
    prefill_residual<HIDDEN_TILES>(task, p);
}

// input -> activation = silu(gate) * up: a row of tiles holds 8 gates and their 8 ups.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, PRODUCT_BLOCKS)
    prefill_gate_up(const struct gpu_task task) {
    struct product p = {layer_weights(task) + GATE_UP_OFFSET, task.input, GATE_UP_ROW_TILES,
                        HIDDEN_INPUT_TILES, task.tokens * STREAMS};
    multiply_all<BF16, GATE_UP_ROW_TILES>(p, [&](const struct slice &slice, const float(*sum)[4]) {
        int first = slice.column + lane_id() / 4;
        int columns = slice.row_tile < p.row_tiles ? p.columns - first : 0;
        unsigned *to = input_word(task.activation, first, slice.row_tile * 8 + lane_id() % 4 * 2);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            const float gate[] = {sum[j][0], sum[j][1]}, up[] = {sum[j][2], sum[j][3]};
            unsigned word = transpose(swiglu_pair(gate, up));
            if (j * 8 < columns)
                to[j * INPUT_BLOCK_BYTES / 4] = word;
        }
    });
}
#endif
