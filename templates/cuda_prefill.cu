// A block of tokens x streams, column = stream * tokens + token. Activations are tiles too, rows
// being columns of the products: [columns / 16, k / 16] tiles. Weights and activations stream
// through shared memory in asynchronous copies.

// sum [row tile of the warp][8 columns of the warp][.]: weights x input, this block's part.
static __device__ __forceinline__ void
multiply_block(const struct product &p, float (&sum)[WARP_ROWS][2 * WARP_COLUMNS][4]) {
    int all = WEIGHT_PLANES * p.input_parts * p.column_tiles;
    int steps = (all + STEP_TILES - 1) / STEP_TILES;
    struct copies c = plan_copies(p);
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps)
            copy_step(p, c, step);
        commit_copies();
    }
    for (int step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps)
            copy_step(p, c, step + STAGES - 1);
        commit_copies();
        multiply_stage(shared_memory() + step % STAGES * STAGE_BYTES, all - step * STEP_TILES, sum);
    }
}

// Row tile i of this warp, in the matrix; its first column of 8 columns j.
static __device__ inline int block_row_tile(int i) {
    return blockIdx.y * BLOCK_TILES + warp_id() / COLUMN_WARPS * WARP_ROWS + i;
}

static __device__ inline int block_column(int j) {
    return (blockIdx.x * BLOCK_TILES + warp_id() % COLUMN_WARPS * WARP_COLUMNS) * TILE + j * 8;
}

// One tile row of activations: word of elements k, k + 1 (k even) of `column`. stride: bytes from
// 16 columns to the next.
static __device__ inline unsigned *input_word(char *input, long long stride, int column, int k) {
    return (unsigned *)(input + column / TILE * stride + k / TILE * TILE_BYTES) +
           fragment_index(column % TILE, k % TILE) / 2;
}

// residual -> input, normalised; low parts too if `parts` is 2. Each warp one column.
static __device__ __forceinline__ void
prefill_norm(const struct gpu_task &task, long long weight_offset, int columns, int parts) {
    wait_for_previous_kernel();
    int column = blockIdx.x * WARPS + warp_id();
    if (column >= columns)
        return;
    const float *x = task.residual + (long long)column * HIDDEN_SIZE;
    const float *weight = (const float *)(layer_weights(task) + weight_offset);
    const int WIDTH = HIDDEN_INPUT_TILES * TILE;
    const long long stride = (long long)parts * HIDDEN_INPUT_TILES * TILE_BYTES;
    float sum = 0;
#pragma unroll 8
    for (int i = lane_id() * 2; i < HIDDEN_SIZE; i += 2 * WARP) {
        float2 v = *(const float2 *)(x + i);
        sum += v.x * v.x + v.y * v.y;
    }
    float scale = rsqrtf(warp_sum(sum) / HIDDEN_SIZE + RMS_NORM_EPS);
#pragma unroll 8
    for (int i = lane_id() * 2; i < HIDDEN_SIZE; i += 2 * WARP) {
        float2 v = *(const float2 *)(x + i), w = *(const float2 *)(weight + i);
        v = make_float2(v.x * scale * w.x, v.y * scale * w.y);
        unsigned high = to_bf16(v.x, v.y);
        *input_word(task.input, stride, column, i) = high;
        if (parts == 2)
            *input_word(task.input, stride, column, WIDTH + i) = low_parts(high, v.x, v.y);
    }
    for (int i = HIDDEN_SIZE + lane_id() * 2; i < WIDTH; i += 2 * WARP) {
        for (int part = 0; part < parts; part++)
            *input_word(task.input, stride, column, part * WIDTH + i) = 0;
    }
}

// In layer 0 all streams have one input: columns are the tokens.
static __device__ inline int distinct_columns(const struct gpu_task &task) {
    return task.layer == 0 ? task.tokens : task.tokens * STREAMS;
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
    prefill_norm(task, INPUT_NORM_OFFSET, distinct_columns(task), 2);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    prefill_post_norm(const struct gpu_task task) {
    prefill_norm(task, POST_NORM_OFFSET, task.tokens * STREAMS, 1);
}

// input -> query, cache. Grid of all products: columns / 128, rows of tiles / BLOCK_TILES.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 2)
    prefill_qkv(const struct gpu_task task) {
    wait_for_previous_kernel();
    struct product p = {layer_weights(task) + QKV_OFFSET,
                        task.input,
                        QKV_ROW_TILES,
                        HIDDEN_INPUT_TILES,
                        2,
                        distinct_columns(task)};
    float sum[WARP_ROWS][2 * WARP_COLUMNS][4] = {};
    multiply_block(p, sum);
    // Through shared memory, each thread its own: what follows is long, so it is a loop.
    float *mine = (float *)shared_memory() + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < WARP_ROWS * 2 * WARP_COLUMNS * 4; i++)
        mine[i * PRODUCT_THREADS] =
            sum[i / 4 / (2 * WARP_COLUMNS)][i / 4 % (2 * WARP_COLUMNS)][i % 4];
#pragma unroll 1
    for (int n = 0; n < WARP_ROWS * 4 * WARP_COLUMNS; n++) {
        int i = n / (4 * WARP_COLUMNS), j = n % (4 * WARP_COLUMNS);
        int row_tile = block_row_tile(i), column = block_column(j / 2) + lane_id() % 4 * 2 + j % 2;
        if (row_tile < p.row_tiles && column < p.columns) {
            int token = column % task.tokens, stream = column / task.tokens;
            const float *y = mine + (n / 2 * 4 + n % 2) * PRODUCT_THREADS;
            struct qkv_terms terms =
                find_terms(task, row_tile, lane_id() / 4, task.position + token);
            store_qkv(task, row_tile, lane_id() / 4, token, stream, task.position + token, terms,
                      y[0], y[2 * PRODUCT_THREADS]);
        }
    }
}
#endif

#if MODULES & 8
// residual += W x
static __device__ __forceinline__ void prefill_residual(const struct gpu_task &task,
                                                        const struct product &p) {
    wait_for_previous_kernel();
    float sum[WARP_ROWS][2 * WARP_COLUMNS][4] = {};
    multiply_block(p, sum);
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i++) {
        int row_tile = block_row_tile(i);
        float *rows = task.residual + row_tile * TILE + lane_id() / 4;
        if (row_tile < p.row_tiles) {
            float before[4 * WARP_COLUMNS][2]; // all loads first, so that they overlap
#pragma unroll
            for (int j = 0; j < 4 * WARP_COLUMNS; j++) {
                int column = block_column(j / 2) + lane_id() % 4 * 2 + j % 2;
                const float *from = rows + (long long)column * HIDDEN_SIZE;
                before[j][0] = column < p.columns ? from[0] : 0.0f;
                before[j][1] = column < p.columns ? from[8] : 0.0f;
            }
#pragma unroll
            for (int j = 0; j < 4 * WARP_COLUMNS; j++) {
                int column = block_column(j / 2) + lane_id() % 4 * 2 + j % 2;
                float *to = rows + (long long)column * HIDDEN_SIZE;
                if (column < p.columns) {
                    to[0] = before[j][0] + sum[i][j / 2][j % 2];
                    to[8] = before[j][1] + sum[i][j / 2][j % 2 + 2];
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 2)
    prefill_o(const struct gpu_task task) {
    struct product p = {layer_weights(task) + O_OFFSET, task.input, HIDDEN_TILES, HEADS_TILES, 1,
                        task.tokens * STREAMS};
    prefill_residual(task, p);
}

extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 2)
    prefill_down(const struct gpu_task task) {
    struct product p = {layer_weights(task) + DOWN_OFFSET,
                        task.activation,
                        HIDDEN_TILES,
                        INTERMEDIATE_TILES,
                        1,
                        task.tokens * STREAMS};
    prefill_residual(task, p);
}

// input -> activation = silu(gate) * up: a row of tiles holds 8 gates and their 8 ups, two rows
// make the 16 channels of a tile of activations.
extern "C" __global__ void __launch_bounds__(PRODUCT_THREADS, 2)
    prefill_gate_up(const struct gpu_task task) {
    wait_for_previous_kernel();
    struct product p = {layer_weights(task) + GATE_UP_OFFSET,
                        task.input,
                        GATE_UP_ROW_TILES,
                        HIDDEN_INPUT_TILES,
                        1,
                        task.tokens * STREAMS};
    float sum[WARP_ROWS][2 * WARP_COLUMNS][4] = {};
    multiply_block(p, sum);
    int columns_tiles = (p.columns + TILE - 1) / TILE;
#pragma unroll
    for (int i = 0; i < WARP_ROWS; i += 2) {
#pragma unroll
        for (int j = 0; j < WARP_COLUMNS; j++) {
            unsigned words[4]; // channels 0-7, 8-15 of columns 0-7, then of columns 8-15
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const float(&s)[4] = sum[i + w % 2][2 * j + w / 2];
                words[w] = transpose(to_bf16(swiglu(s[0], s[2]), swiglu(s[1], s[3])));
            }
            struct tile out = {words[0], words[1], words[2], words[3]};
            int column_tile = block_column(2 * j) / TILE, channel_tile = block_row_tile(i) / 2;
            if (column_tile < columns_tiles && channel_tile < INTERMEDIATE_TILES)
                ((struct tile *)
                     task.activation)[(column_tile * INTERMEDIATE_TILES + channel_tile) * WARP +
                                      lane_id()] = out;
        }
    }
}

#endif

#if MODULES & 4
enum {
    ATTENTION_GROUPS = HEAD_TILES <= 8 ? 2 : 1, // groups of 8 queries of a warp: as registers allow
    ATTENTION_THREADS = 4 * WARP,               //
    ATTENTION_QUERIES = 4 * ATTENTION_GROUPS * 8, // of a block; a query is a token and a head
};

// query, cache -> input of o_proj. Grid: groups of ATTENTION_QUERIES queries (the last first: they
// see most), kv heads, streams.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    prefill_attention(const struct gpu_task task) {
    wait_for_previous_kernel();
    int kv_head = blockIdx.y, stream = blockIdx.z, queries = task.tokens * GROUP_HEADS;
    int first = (gridDim.x - 1 - blockIdx.x) * ATTENTION_QUERIES + warp_id() * ATTENTION_GROUPS * 8;
    if (first >= queries)
        return;
    struct attention<ATTENTION_GROUPS> a;
    int positions[ATTENTION_GROUPS][2], most = 0;
#pragma unroll
    for (int group = 0; group < ATTENTION_GROUPS; group++) {
        int query = first + group * 8 + lane_id() / 4;
        int column = (task.layer == 0 ? 0 : stream * task.tokens) + query / GROUP_HEADS;
        int head = kv_head * GROUP_HEADS + query % GROUP_HEADS;
        load_query(a, group,
                   query < queries ? task.query + ((long long)column * HEADS + head) * HEAD_DIM
                                   : (const float *)0);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int last = first + group * 8 + lane_id() % 4 * 2 + i;
            last = last < queries ? last : queries - 1;
            positions[group][i] = task.position + last / GROUP_HEADS + 1;
        }
    }
    int last = first + ATTENTION_GROUPS * 8 - 1;
    most = task.position + (last < queries ? last : queries - 1) / GROUP_HEADS + 1;
    start_attention(a);
    int tiles = PREFIX_TILES + (most + TILE - 1) / TILE;
    for (int t = 0; t < tiles; t++) {
        struct tile keys[HEAD_TILES], values[HEAD_TILES];
        struct span s = find_span(task, stream, kv_head, t);
        load_keys(keys, s, 0);
        attend_span<ATTENTION_GROUPS, false>(a, s, keys, values, positions);
    }

#pragma unroll
    for (int group = 0; group < ATTENTION_GROUPS; group++) {
        float even = 1.0f / column_sum(a.total[group][0]),
              odd = 1.0f / column_sum(a.total[group][1]);
        int query = first + group * 8 + lane_id() / 4;
        int column = stream * task.tokens + query / GROUP_HEADS;
        int k = (kv_head * GROUP_HEADS + query % GROUP_HEADS) * HEAD_DIM + lane_id() % 4 * 2;
        long long stride = (long long)HEADS_TILES * TILE_BYTES;
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
            const float(&s)[4] = a.sum[d][group];
            unsigned upper = transpose(to_bf16(s[0] * even, s[1] * odd));
            unsigned lower = transpose(to_bf16(s[2] * even, s[3] * odd));
            if (query < queries && d * TILE + lane_id() % 4 * 2 < HEAD_DIM)
                *input_word(task.input, stride, column, k + d * TILE) = upper;
            if (query < queries && d * TILE + lane_id() % 4 * 2 + 8 < HEAD_DIM)
                *input_word(task.input, stride, column, k + d * TILE + 8) = lower;
        }
        bool last_head = kv_head == KV_HEADS - 1 && query % GROUP_HEADS == GROUP_HEADS - 1;
        if (INPUT_TILES > 1 && query < queries &&
            last_head) { // zeros up to a whole tile of weights
            for (k = HEADS * HEAD_DIM + lane_id() % 4 * 2; k < HEADS_TILES * TILE; k += 8)
                *input_word(task.input, stride, column, k) = 0;
        }
    }
}
#endif
