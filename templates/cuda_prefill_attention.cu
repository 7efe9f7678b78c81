// Attention of a block of tokens. Queries are rows of an A operand, keys and values its columns: a
// lane's 16 bytes of a tile of the cache are B fragments of both halves of the tile, and scores
// become probabilities for the values where they are. Keys and values go through shared memory,
// once for all queries of the block, a few rows of tiles ahead. Queries are rounded to bf16 here:
// that costs up to 5e-5 nats on golden models, low parts would cost half as many products again.

enum {
    ATTENTION_WARPS = 4,
    ATTENTION_THREADS = ATTENTION_WARPS * WARP,
    // Blocks of a multiprocessor: as registers allow.
    ATTENTION_BLOCKS = HEAD_TILES <= 8 ? 3 : 2,
    HELD_TILES = HEAD_TILES <= 6 ? HEAD_TILES : 0, // of queries in registers, else in shared memory
    ATTENTION_QUERIES = ATTENTION_WARPS * TILE,    // of a block; one is a token and a head
    ATTENTION_ROWS = HEAD_TILES * WEIGHT_PLANES <= 8 ? 2 : 1, // rows of tiles of a step
    KEY_VALUE_TILES = 2 * HEAD_TILES,                         // keys, then values, of a plane
    ATTENTION_STEP_TILES = ATTENTION_ROWS * WEIGHT_PLANES * KEY_VALUE_TILES,
    ATTENTION_FIT = (48 << 10) / (ATTENTION_STEP_TILES * TILE_BYTES),
    ATTENTION_STAGES = ATTENTION_FIT < 2   ? 2
                       : ATTENTION_FIT < 4 ? ATTENTION_FIT
                                           : 4,
};

// 16 queries of a warp. Lane 4g + i has those of rows g and g + 8, as multiply.
struct prefill_queries {
    struct tile held[HELD_TILES ? HELD_TILES : 1];
    struct tile *kept;           // this lane's part of what is not held
    int seen[2];                 // positions of the cache that rows g, g + 8 see
    float sum[HEAD_TILES][2][4]; // 8 dimensions each
    float max[2], total[2];      // total: of this lane's positions only
};

// Tile `n` of keys and values of a row of tiles in a stage.
static __device__ __forceinline__ struct tile *stage_tile(char *stage, int row, int plane, int n) {
    return (struct tile *)stage + ((row * WEIGHT_PLANES + plane) * KEY_VALUE_TILES + n) * WARP +
           lane_id();
}

// Where a stage has the scales of a row of an int8 cache.
static __device__ __forceinline__ char *stage_scales(char *stage, int row) {
    return stage + ATTENTION_STEP_TILES * TILE_BYTES + row * cache_row::SCALE_BYTES;
}

// Row t of tiles, of the prefix or of the cache: tile `n` of a plane, which an int8 cache has one
// of.
static __device__ __forceinline__ struct tile read_tile(char *stage, int row, int plane, int n,
                                                        int t) {
    if (!cache_row::QUANTIZED || t < PREFIX_TILES)
        return *stage_tile(stage, row, plane, n);
    struct tile none = {0, 0, 0, 0};
    return plane ? none : cache_row::read((char *)(stage_tile(stage, row, 0, n) - lane_id()));
}

// Keys and values of a block: rows of tiles of the prefix, then of the cache.
struct attended_rows {
    int stream, kv_head;
    int tiles;                 // how many rows
    const struct tile *cached; // the cache's first
};

// Rows t, t + 1, ... of the cache, which lie there as in a stage.
static __device__ __forceinline__ void copy_cached(const struct attended_rows &rows, int t,
                                                   char *stage) {
    const int ROW_CHUNKS = KEY_VALUE_TILES * WARP, ALL = ATTENTION_ROWS * ROW_CHUNKS;
    const struct tile *from = rows.cached + (t - PREFIX_TILES) * ROW_CHUNKS + threadIdx.x;
    struct tile *to = (struct tile *)stage + threadIdx.x;
    int chunks = (rows.tiles - t) * ROW_CHUNKS - (int)threadIdx.x;
#pragma unroll
    for (int i = 0; i < ALL; i += ATTENTION_THREADS)
        if (ALL % ATTENTION_THREADS == 0 || i + (int)threadIdx.x < ALL)
            copy_async(to + i, from + i, i < chunks);
}

// Rows t, t + 1, ... of any kind. Half of the warps copy keys, the others values.
static __device__ __forceinline__ void
copy_tiles(const struct gpu_task &task, const struct attended_rows &rows, int t, char *stage) {
    const int COPIERS = ATTENTION_WARPS / 2;
    bool copies_values = warp_id() / COPIERS;
#pragma unroll
    for (int row = 0; row < ATTENTION_ROWS; row++) {
        bool wanted = t + row < rows.tiles;
        struct span s =
            find_span(task, rows.stream, rows.kv_head, wanted ? t + row : rows.tiles - 1);
        const struct tile *from = copies_values ? s.values : s.keys;
        int stride = copies_values ? s.value_stride * WARP : WARP;
        if (cache_row::QUANTIZED && s.causal) {
            for (int d = warp_id() % COPIERS; d < HEAD_TILES; d += COPIERS)
                cache_row::copy(
                    (char *)(stage_tile(stage, row, 0, copies_values * HEAD_TILES + d) - lane_id()),
                    from, d, wanted);
            if (warp_id() == 0)
                cache_row::copy_scales(stage_scales(stage, row), s.keys, wanted);
            continue;
        }
#pragma unroll
        for (int d = warp_id() % COPIERS; d < HEAD_TILES; d += COPIERS) {
#pragma unroll
            for (int plane = 0; plane < WEIGHT_PLANES; plane++)
                copy_async(stage_tile(stage, row, plane, copies_values * HEAD_TILES + d),
                           from + d * stride + plane * PREFIX_BLOCK_TILES * WARP,
                           wanted && plane < s.planes);
        }
    }
}

// Starts copying a step, rows t, t + 1, ...; zeros behind the last.
static __device__ __forceinline__ void
copy_rows(const struct gpu_task &task, const struct attended_rows &rows, int t, char *stage) {
    if (t < rows.tiles) {
        if (!cache_row::QUANTIZED && WEIGHT_PLANES == 1 && t >= PREFIX_TILES)
            copy_cached(rows, t, stage);
        else
            copy_tiles(task, rows, t, stage);
    }
    commit_copies();
}

// Dimensions `dim`, dim + 1 of a query [head_dim] (or NULL).
static __device__ __forceinline__ unsigned query_pair(const unsigned short *query, int dim) {
    return query && dim < HEAD_DIM ? *(const unsigned *)(query + dim) : 0;
}

// A query [head_dim] of a kv head, NULL behind the last one.
static __device__ __forceinline__ const unsigned short *
find_query(const struct gpu_task &task, int stream, int kv_head, int query) {
    if (query >= task.tokens * GROUP_HEADS)
        return (const unsigned short *)0;
    int column = (task.layer == 0 ? 0 : stream * task.tokens) + query / GROUP_HEADS;
    int head = kv_head * GROUP_HEADS + query % GROUP_HEADS;
    return task.query + (column * HEADS + head) * HEAD_DIM;
}

// Queries from `first` on. kept: shared memory of this lane for what is not held.
static __device__ __forceinline__ void start_queries(struct prefill_queries &q,
                                                     const struct gpu_task &task, int stream,
                                                     int kv_head, int first, struct tile *kept) {
    q.kept = kept;
    const unsigned short *rows[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = first + half * 8 + lane_id() / 4;
        rows[half] = find_query(task, stream, kv_head, query);
        int last = task.tokens - 1, token = query / GROUP_HEADS;
        q.seen[half] = task.position + (token < last ? token : last) + 1;
        q.max[half] = negative_infinity();
        q.total[half] = 0;
    }
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        int dim = d * TILE + lane_id() % 4 * 2;
        struct tile t = {query_pair(rows[0], dim), query_pair(rows[0], dim + 8),
                         query_pair(rows[1], dim), query_pair(rows[1], dim + 8)};
        if (d < HELD_TILES)
            q.held[d] = t;
        else
            kept[d * WARP] = t;
#pragma unroll
        for (int i = 0; i < 8; i++)
            q.sum[d][i / 4][i % 4] = 0;
    }
}

// sum += a x b^T: the rows of tile b are columns of the product.
static __device__ __forceinline__ void multiply_rows(float (&sum)[2][4], const struct tile &a,
                                                     const struct tile &b) {
    struct columns even = {b.x, b.y}, odd = {b.z, b.w};
    multiply(sum[0], a, even);
    multiply(sum[1], a, odd);
}

typedef float attention_scores[ATTENTION_ROWS][2][4];

static __device__ __forceinline__ void
score_keys(attention_scores &score, const struct prefill_queries &q, char *stage, int t) {
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        struct tile query = d < HELD_TILES ? q.held[d] : q.kept[d * WARP];
#pragma unroll
        for (int row = 0; row < ATTENTION_ROWS; row++) {
#pragma unroll
            for (int plane = 0; plane < WEIGHT_PLANES; plane++)
                multiply_rows(score[row], query, read_tile(stage, row, plane, d, t + row));
        }
    }
}

// Takes the scores of what is not visible away. Rows t, ... of tiles.
static __device__ __forceinline__ void hide_scores(attention_scores &score,
                                                   const struct prefill_queries &q, int t) {
#pragma unroll
    for (int row = 0; row < ATTENTION_ROWS; row++) {
        bool prefix = t + row < PREFIX_TILES;
        int position = (prefix ? t + row : t + row - PREFIX_TILES) * TILE + lane_id() % 4 * 2;
#pragma unroll
        for (int i = 0; i < 8; i++) { // columns 8 (i / 4) + i % 2 of row g + 8 (i / 2 % 2)
            int visible = prefix ? PREFIX_TOKENS : q.seen[i / 2 % 2];
            if (position + i / 4 * 8 + i % 2 >= visible)
                score[row][i / 4][i % 4] = negative_infinity();
        }
    }
}

// Scores to probabilities, relative to the running maximum; the sums so far are scaled to it. At
// least one position must be visible to each query by now.
static __device__ __forceinline__ void soften_scores(attention_scores &score,
                                                     struct prefill_queries &q) {
    float factors[2];
    bool changed = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float max = q.max[half];
#pragma unroll
        for (int i = 0; i < ATTENTION_ROWS * 4; i++)
            max = fmaxf(max, score[i / 4][i / 2 % 2][half * 2 + i % 2]);
        max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 1));
        max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 2));
        float total = 0;
#pragma unroll
        for (int i = 0; i < ATTENTION_ROWS * 4; i++) {
            float &p = score[i / 4][i / 2 % 2][half * 2 + i % 2];
            p = power_of_two(p - max);
            total += p;
        }
        factors[half] = power_of_two(q.max[half] - max);
        changed = changed || max != q.max[half];
        q.max[half] = max;
        q.total[half] = q.total[half] * factors[half] + total;
    }
    if (__any_sync(0xffffffff, changed)) {
#pragma unroll
        for (int i = 0; i < HEAD_TILES * 8; i++)
            q.sum[i / 8][i / 4 % 2][i % 4] *= factors[i / 2 % 2];
    }
}

static __device__ __forceinline__ void
add_values(struct prefill_queries &q, const attention_scores &score, char *stage, int t) {
#pragma unroll
    for (int row = 0; row < ATTENTION_ROWS; row++) {
        const float(&p)[2][4] = score[row];
        struct tile probabilities = {to_bf16(p[0][0], p[0][1]), to_bf16(p[1][0], p[1][1]),
                                     to_bf16(p[0][2], p[0][3]), to_bf16(p[1][2], p[1][3])};
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
#pragma unroll
            for (int plane = 0; plane < WEIGHT_PLANES; plane++)
                multiply_rows(q.sum[d], probabilities,
                              read_tile(stage, row, plane, HEAD_TILES + d, t + row));
        }
    }
}

// The scores of an int8 cache's rows times the scales of their keys (0), or values (1).
static __device__ __forceinline__ void apply_scales(attention_scores &score, char *stage, int t,
                                                    int values) {
#pragma unroll
    for (int row = 0; row < ATTENTION_ROWS; row++)
        if (t + row >= PREFIX_TILES)
            cache_row::scale_columns(score[row], stage_scales(stage, row), values);
}

// Results of queries from `first` on -> input of o_proj.
static __device__ __forceinline__ void store_attention(const struct gpu_task &task,
                                                       const struct prefill_queries &q, int stream,
                                                       int kv_head, int first) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = first + half * 8 + lane_id() / 4;
        float total = q.total[half];
        total += __shfl_xor_sync(0xffffffff, total, 1);
        total += __shfl_xor_sync(0xffffffff, total, 2);
        float scale = 1.0f / total;
        if (query >= task.tokens * GROUP_HEADS)
            continue;
        int column = stream * task.tokens + query / GROUP_HEADS;
        int head = kv_head * GROUP_HEADS + query % GROUP_HEADS;
#pragma unroll
        for (int j = 0; j < HEAD_TILES * 2; j++) {
            const float(&s)[4] = q.sum[j / 2][j % 2];
            int dim = j * 8 + lane_id() % 4 * 2;
            if (dim < HEAD_DIM)
                *input_word(task.input, column, head * HEAD_DIM + dim) =
                    to_bf16(s[half * 2] * scale, s[half * 2 + 1] * scale);
        }
        if (INPUT_TILES > 1 && head == HEADS - 1) { // zeros up to a whole tile of weights
            for (int k = HEADS * HEAD_DIM + lane_id() % 4 * 2; k < HEADS_TILES * TILE; k += 8)
                *input_word(task.input, column, k) = 0;
        }
    }
}

// query, cache -> input of o_proj. Grid: groups of ATTENTION_QUERIES queries, kv heads, streams.
// Later queries see more: the last group comes first, so that none of the longest ends late, but
// the other way round for every second kv head, as both may run at once.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    prefill_attention(const struct gpu_task task) {
    const int STAGE_BYTES =
        ATTENTION_STEP_TILES * TILE_BYTES + ATTENTION_ROWS * cache_row::SCALE_BYTES;
    wait_for_previous_kernel();
    int kv_head = blockIdx.y, stream = blockIdx.z;
    bool ascending = (gridDim.y * gridDim.z - 1 - (blockIdx.z * gridDim.y + blockIdx.y)) % 2;
    int group = ascending ? blockIdx.x : gridDim.x - 1 - blockIdx.x;
    int first = group * ATTENTION_QUERIES, end = first + ATTENTION_QUERIES;
    int last_token = (end < task.tokens * GROUP_HEADS ? end : task.tokens * GROUP_HEADS) - 1;
    struct attended_rows rows = {
        stream, kv_head, PREFIX_TILES + (task.position + last_token / GROUP_HEADS) / TILE + 1,
        cache_row::keys(task, stream, kv_head, 0) - lane_id()};
    for (int i = 0; i < ATTENTION_STAGES - 1; i++)
        copy_rows(task, rows, i * ATTENTION_ROWS, shared_memory() + i * STAGE_BYTES);
    first += warp_id() * TILE;
    struct prefill_queries q;
    start_queries(q, task, stream, kv_head, first,
                  (struct tile *)(shared_memory() + ATTENTION_STAGES * STAGE_BYTES) +
                      warp_id() * HEAD_TILES * WARP + lane_id());
    int stage = 0, sure = PREFIX_TILES + (task.position + first / GROUP_HEADS + 1) / TILE;
    for (int t = 0; t < rows.tiles; t += ATTENTION_ROWS) {
        wait_copies<ATTENTION_STAGES - 2>();
        __syncthreads();
        int next = stage == 0 ? ATTENTION_STAGES - 1 : stage - 1; // what the last step had
        copy_rows(task, rows, t + (ATTENTION_STAGES - 1) * ATTENTION_ROWS,
                  shared_memory() + next * STAGE_BYTES);
        char *place = shared_memory() + stage * STAGE_BYTES;
        attention_scores score = {};
        score_keys(score, q, place, t);
        if (cache_row::QUANTIZED)
            apply_scales(score, place, t, 0);
        if (t < PREFIX_TILES || t + ATTENTION_ROWS > sure)
            hide_scores(score, q, t);
        soften_scores(score, q);
        if (cache_row::QUANTIZED)
            apply_scales(score, place, t, 1);
        add_values(q, score, place, t);
        stage = stage + 1 < ATTENTION_STAGES ? stage + 1 : 0;
    }
    store_attention(task, q, stream, kv_head, first);
}
