// A block of tokens x streams: the layers' kernels. See cuda_block.cu for the products and for
// where activations lie.

// Calls finish(slice, sum) for every slice of weights x input that this block of threads has.
template <int ROW_TILES, typename FINISH>
static __device__ __forceinline__ void multiply_all(const struct product &p, const FINISH &finish) {
    wait_for_previous_kernel();
    if constexpr (WARPGROUPS)
        multiply_by_warpgroups<block_columns(ROW_TILES)>(p, finish);
    else
        multiply_by_warps(p, finish);
}

// residual -> input, normalised; low parts too if `parts` is 2. Each warp one column, all of it in
// registers.
static __device__ __forceinline__ void
prefill_norm(const struct gpu_task &task, long long weight_offset, int columns, int parts) {
    const int LOADS = (HIDDEN_SIZE + 4 * WARP - 1) / (4 * WARP);
    const int LOW = input_rows(HIDDEN_INPUT_TILES) * INPUT_K;
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
            float4 v = values[j];
            const float4 &w = weights[j];
            v = make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z,
                            v.w * scale * w.w);
            uint2 high = make_uint2(to_bf16(v.x, v.y), to_bf16(v.z, v.w));
            *(uint2 *)input_word(task.input, column, i) = high;
            if (parts == 2)
                *(uint2 *)input_word(task.input, column, LOW + i) =
                    make_uint2(low_parts(high.x, v.x, v.y), low_parts(high.y, v.z, v.w));
        }
    }
    for (int i = HIDDEN_SIZE + first; i < HIDDEN_INPUT_TILES * TILE; i += 4 * WARP) {
        for (int part = 0; part < parts; part++)
            *(uint2 *)input_word(task.input, column, part * LOW + i) = make_uint2(0, 0);
    }
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
    prefill_norm(task, INPUT_NORM_OFFSET, prefill_columns(task).count, 2);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    prefill_post_norm(const struct gpu_task task) {
    prefill_norm(task, POST_NORM_OFFSET, task.tokens * STREAMS, 1);
}

#endif

#if MODULES & 16
// Rotary pairs: lane 4g + i has number `pair` + g of columns `column` + 2i and + 1.
static __device__ __forceinline__ void finish_pairs(const struct prefill_columns &columns,
                                                    int column, int pair, const float2 (&angle)[2],
                                                    const float (&low)[2], const float (&high)[2]) {
    float first[2], second[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        first[i] = low[i] * angle[i].x - high[i] * angle[i].y;
        second[i] = high[i] * angle[i].x + low[i] * angle[i].y;
    }
    if (pair + PAIRS_A_ROW > QUERY_PAIRS)
        store_keys(columns, column, pair - QUERY_PAIRS, first, second);
    if (pair >= QUERY_PAIRS)
        return;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        first[i] *= query_scale();
        second[i] *= query_scale();
    }
    store_pairs(columns, column, pair, HEADS, first, second, [&](int column, int head, int dim) {
        return columns.task.query + (column * HEADS + head) * HEAD_DIM + dim;
    });
}

// A slice of q|k|v. It is long, so it is a loop: some columns at a time, so that their loads
// overlap; then those behind them move to their place.
static __device__ __forceinline__ void finish_qkv(const struct prefill_columns &columns,
                                                  const struct slice &slice,
                                                  const float (&sum)[8][4]) {
    const int AT_ONCE = 4;
    const int row = lane_id() / 4, pair = slice.row_tile * PAIRS_A_ROW,
              pair_column = lane_id() % 4 * 2;
    const int value = slice.row_tile * TILE - QKV_VALUE_ROW; // the first one's row, if it is one
    const float *bias = (const float *)(layer_weights(columns.task) + QKV_BIAS_OFFSET) +
                        slice.row_tile * TILE + row;
    const float low_bias = bias[0], high_bias = bias[8];
    const float2 *angles = (const float2 *)columns.task.rotary + (pair + row) % HALF_HEAD;
    float rest[8][4];
#pragma unroll
    for (int i = 0; i < SLICE_FLOATS; i++)
        rest[i / 4][i % 4] = sum[i / 4][i % 4];
    int column = slice.column;
#pragma unroll 1
    for (int n = 0; n < 8; n += AT_ONCE) {
        float2 angle[AT_ONCE][2];
#pragma unroll
        for (int i = 0; i < 2 * AT_ONCE; i++) {
            int position = columns.position(column + i / 2 * 8 + pair_column + i % 2);
            angle[i / 2][i % 2] = angles[position * HALF_HEAD];
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const float low[] = {rest[i][0] + low_bias, rest[i][1] + low_bias},
                        high[] = {rest[i][2] + high_bias, rest[i][3] + high_bias};
            if (value < 0) {
                finish_pairs(columns, column + i * 8, pair, angle[i], low, high);
            } else {
                store_values(columns, column + i * 8 + pair_column, value + row, low);
                store_values(columns, column + i * 8 + pair_column, value + row + 8, high);
            }
        }
        column += AT_ONCE * 8;
#pragma unroll
        for (int i = 0; i < (8 - AT_ONCE) * 4; i++)
            rest[i / 4][i % 4] = rest[i / 4 + AT_ONCE][i % 4];
    }
}

// input -> query, cache. Grid of all products: see prefill_product in gpu.c. Queries are what
// attention multiplies: scaled, bf16.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, PRODUCT_BLOCKS)
    prefill_qkv(const struct gpu_task task) {
    const struct prefill_columns columns(task);
    struct product p = {layer_weights(task) + QKV_OFFSET,
                        task.input,
                        QKV_ROW_TILES,
                        HIDDEN_INPUT_TILES,
                        2,
                        columns.count};
    multiply_all<QKV_ROW_TILES>(p, [&](const struct slice &slice, const float(&sum)[8][4]) {
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
    multiply_all<ROW_TILES>(p, [&](const struct slice &slice, const float(&sum)[8][4]) {
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
    struct product p = {layer_weights(task) + O_OFFSET, task.input, HIDDEN_TILES, HEADS_TILES, 1,
                        task.tokens * STREAMS};
    prefill_residual<HIDDEN_TILES>(task, p);
}

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, PRODUCT_BLOCKS)
    prefill_down(const struct gpu_task task) {
    struct product p = {layer_weights(task) + DOWN_OFFSET,
                        task.activation,
                        HIDDEN_TILES,
                        INTERMEDIATE_TILES,
                        1,
                        task.tokens * STREAMS};
    prefill_residual<HIDDEN_TILES>(task, p);
}

// input -> activation = silu(gate) * up: a row of tiles holds 8 gates and their 8 ups.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, PRODUCT_BLOCKS)
    prefill_gate_up(const struct gpu_task task) {
    struct product p = {layer_weights(task) + GATE_UP_OFFSET,
                        task.input,
                        GATE_UP_ROW_TILES,
                        HIDDEN_INPUT_TILES,
                        1,
                        task.tokens * STREAMS};
    multiply_all<GATE_UP_ROW_TILES>(p, [&](const struct slice &slice, const float(&sum)[8][4]) {
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
