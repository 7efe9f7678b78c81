// Attention of a block of tokens. Queries are rows of an A operand, keys and values its columns,
// and scores become probabilities for the values where they are. All of them are f16: a bf16 of a
// query would cost more accuracy than anything else. So a kernel first gathers what is attended of
// a layer, learned prefix and cache, whatever format they have: as f16, in the order in which a
// step of attention finds it in shared memory. Queries of a block share each step.

enum {
    // Whether warpgroups multiply here too (cuda_warpgroup_attention.cu): as registers allow.
    WARPGROUPS_ATTEND = WARPGROUPS && HEAD_TILES <= 10,
    ATTENTION_WARPS = WARPGROUPS_ATTEND ? PRODUCT_WARPS : 4, // that attend
    ATTENTION_THREADS = WARPGROUPS_ATTEND ? PRODUCT_THREADS : ATTENTION_WARPS * WARP,
    // Blocks of a multiprocessor: as registers allow.
    ATTENTION_BLOCKS = WARPGROUPS_ATTEND ? 1
                       : HEAD_TILES <= 8 ? 3
                                         : 2,
    HELD_TILES = WARPGROUPS_ATTEND || HEAD_TILES <= 6
                     ? HEAD_TILES
                     : 0,                       // of queries in registers, else in shared memory
    ATTENTION_QUERIES = ATTENTION_WARPS * TILE, // of a block; one is a token and a head
    // Of a step: rows of tiles.
    ATTENTION_ROWS = WARPGROUPS_ATTEND ? 8
                     : HEAD_TILES <= 8 ? 2
                                       : 1,
    POSITIONS = ATTENTION_ROWS * TILE,
    // Keys [dimensions / 8, POSITIONS, 8], then values [POSITIONS / 8, dimensions, 8].
    KEYS_BYTES = POSITIONS * HEAD_TILES * TILE * 2,
    ATTENTION_STEP_BYTES = 2 * KEYS_BYTES,
    MATRIX_BYTES = 8 * 8 * 2,
    CONTEXT_STEPS =
        ((CONTEXT + TILE - 1) / TILE + PREFIX_TILES + ATTENTION_ROWS - 1) / ATTENTION_ROWS,
    ATTENTION_FIT = (48 << 10) / ATTENTION_STEP_BYTES,
    ATTENTION_STAGES = ATTENTION_FIT < 2   ? 2
                       : ATTENTION_FIT < 4 ? ATTENTION_FIT
                                           : 4,
};

// The rows of tiles, of prefix and cache, that queries up to one of this token see.
static __device__ __forceinline__ int rows_seen(const struct gpu_task &task, int token) {
    return PREFIX_TILES + (task.position + token) / TILE + 1;
}

// The first step of what is gathered of a stream and kv head.
static __device__ __forceinline__ char *gathered_steps(const struct gpu_task &task, int stream,
                                                       int kv_head) {
    return task.gathered +
           (long long)(stream * KV_HEADS + kv_head) * CONTEXT_STEPS * ATTENTION_STEP_BYTES;
}

// A plane of a row of tiles of keys, or of values.
static __device__ __forceinline__ void load_row(struct tile (&tiles)[HEAD_TILES], struct span &s,
                                                bool values, int plane) {
    if (values)
        load_values<false>(tiles, s, plane);
    else
        load_keys<false>(tiles, s, plane);
}

// All of them as f16.
static __device__ __forceinline__ void load_f16(struct tile (&tiles)[HEAD_TILES], struct span &s,
                                                bool values) {
    struct tile low[HEAD_TILES] = {};
    load_row(tiles, s, values, 0);
    if (cache_row::QUANTIZED && s.causal) {
        s.row.make_f16(tiles, s.keys, values);
        return;
    }
    if (WEIGHT_PLANES > 1 && s.planes > 1)
        load_row(low, s, values, 1);
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++)
        tiles[d] = WEIGHT_PLANES > 1 ? sum_to_f16(tiles[d], low[d]) : tile_to_f16(tiles[d]);
}

// Prefix and cache -> gathered. Each warp keys or values of a row, zeros behind the last one up to
// a whole step. Grid: rows by fours, kv heads, streams.
extern "C" __global__ void __launch_bounds__(THREADS) prefill_gather(const struct gpu_task task) {
    wait_for_previous_kernel();
    const bool values = warp_id() % 2;
    const int stream = blockIdx.z, kv_head = blockIdx.y, rows = rows_seen(task, task.tokens - 1),
              t = blockIdx.x * (WARPS / 2) + warp_id() / 2, row = t % ATTENTION_ROWS;
    if (t - row >= rows)
        return;
    struct tile tiles[HEAD_TILES] = {};
    if (t < rows) {
        struct span s = find_span(task, stream, kv_head, t);
        load_f16(tiles, s, values);
    }
    // Each word of a tile is one of an 8 x 8 matrix.
    char *step = gathered_steps(task, stream, kv_head) + t / ATTENTION_ROWS * ATTENTION_STEP_BYTES;
    unsigned *to = (unsigned *)(step + values * KEYS_BYTES) + lane_id();
    const int across = values ? 2 * HEAD_TILES : 2 * ATTENTION_ROWS; // matrices to the next 8 k
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        const int chunk = 2 * (values ? row : d), first = 2 * (values ? d : row);
        unsigned *matrix = to + (chunk * across + first) * (MATRIX_BYTES / 4);
        matrix[0] = tiles[d].x;
        matrix[across * (MATRIX_BYTES / 4)] = tiles[d].y;
        matrix[MATRIX_BYTES / 4] = tiles[d].z;
        matrix[(across + 1) * (MATRIX_BYTES / 4)] = tiles[d].w;
    }
}

// What a block attends: queries of a stream and kv head, from `first` on, in so many steps.
struct attended_item {
    int stream, kv_head, first, steps;
};

static __device__ __forceinline__ int query_groups(const struct gpu_task &task) {
    return (task.tokens * GROUP_HEADS + ATTENTION_QUERIES - 1) / ATTENTION_QUERIES;
}

static __device__ __forceinline__ int count_items(const struct gpu_task &task) {
    return query_groups(task) * STREAMS * KV_HEADS;
}

// Later queries see more: they come first, so that none of the longest ends late.
static __device__ __forceinline__ struct attended_item find_item(const struct gpu_task &task,
                                                                 int n) {
    const int group = query_groups(task) - 1 - n / (STREAMS * KV_HEADS);
    const int first = group * ATTENTION_QUERIES, last = task.tokens - 1,
              token = (first + ATTENTION_QUERIES - 1) / GROUP_HEADS;
    const int rows = rows_seen(task, token < last ? token : last);
    return {n / KV_HEADS % STREAMS, n % KV_HEADS, first,
            (rows + ATTENTION_ROWS - 1) / ATTENTION_ROWS};
}

// 16 queries of a warp. Lane 4g + i has those of rows g and g + 8, as multiply.
struct prefill_queries {
    struct tile held[HELD_TILES ? HELD_TILES : 1];
    struct tile *kept;            // this lane's part of what is not held
    int seen[2];                  // positions of the cache that rows g, g + 8 see
    int sure;                     // rows of tiles that all of the warp's see
    float sum[2 * HEAD_TILES][4]; // 8 dimensions each
    float max[2], total[2];       // total: of this lane's positions only
};

// Scores of 16 queries and a step's positions, 8 of them each.
typedef float attention_scores[2 * ATTENTION_ROWS][4];

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
    return projected_head(task, column, head);
}

// This warp's queries of an item. kept: shared memory of this lane for what is not held.
static __device__ __forceinline__ void start_queries(struct prefill_queries &q,
                                                     const struct gpu_task &task,
                                                     const struct attended_item &item,
                                                     struct tile *kept) {
    const int first = item.first + warp_id() * TILE;
    const unsigned short *rows[2];
    q.kept = kept;
    q.sure = PREFIX_TILES + (task.position + first / GROUP_HEADS + 1) / TILE;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = first + half * 8 + lane_id() / 4;
        rows[half] = find_query(task, item.stream, item.kv_head, query);
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
            q.sum[2 * d + i / 4][i % 4] = 0;
    }
}

// Takes the scores of what is not visible away. t: the step's first row of tiles.
static __device__ __forceinline__ void hide_scores(attention_scores &score,
                                                   const struct prefill_queries &q, int t) {
    if (t >= PREFIX_TILES && t + ATTENTION_ROWS <= q.sure)
        return;
#pragma unroll
    for (int n = 0; n < 4 * ATTENTION_ROWS; n++) { // column n % 2 of score[n / 2]
        int position = t * TILE + n / 2 * 8 + lane_id() % 4 * 2 + n % 2;
        bool prefix = position < PREFIX_TILES * TILE;
        position -= prefix ? 0 : PREFIX_TILES * TILE;
#pragma unroll
        for (int half = 0; half < 2; half++)
            if (position >= (prefix ? PREFIX_TOKENS : q.seen[half]))
                score[n / 2][half * 2 + n % 2] = negative_infinity();
    }
}

// Raises the running maximum, rounded up to an integer: so it changes less often, and the sums so
// far are scaled to it exactly. At least one position must be visible to each query by now.
static __device__ __forceinline__ void raise_maximum(struct prefill_queries &q,
                                                     const attention_scores &score) {
    float factors[2];
    bool changed = false;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most[4] = {q.max[half], q.max[half], q.max[half], q.max[half]}; // shorter chains
#pragma unroll
        for (int i = 0; i < ATTENTION_ROWS * 4; i++)
            most[i % 4] = fmaxf(most[i % 4], score[i / 2][half * 2 + i % 2]);
        float max = fmaxf(fmaxf(most[0], most[1]), fmaxf(most[2], most[3]));
        max = fmaxf(max, __shfl_xor_sync(0xffffffff, max, 1));
        max = ceilf(fmaxf(max, __shfl_xor_sync(0xffffffff, max, 2)));
        factors[half] = power_of_two(q.max[half] - max);
        changed = changed || max != q.max[half];
        q.max[half] = max;
        q.total[half] *= factors[half];
    }
    if (__any_sync(0xffffffff, changed)) {
#pragma unroll
        for (int i = 0; i < HEAD_TILES * 8; i++)
            q.sum[i / 4][i % 4] *= factors[i / 2 % 2];
    }
}

// A row's scores become probabilities, relative to that maximum: the other operand.
static __device__ __forceinline__ struct tile soften_row(struct prefill_queries &q,
                                                         const attention_scores &score, int row) {
    float p[2][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int half = i / 2 % 2;
        p[i / 4][i % 4] = power_of_two(score[2 * row + i / 4][i % 4] - q.max[half]);
        q.total[half] += p[i / 4][i % 4];
    }
    return {to_f16(p[0][0], p[0][1]), to_f16(p[1][0], p[1][1]), to_f16(p[0][2], p[0][3]),
            to_f16(p[1][2], p[1][3])};
}

// Results -> input of o_proj.
static __device__ __forceinline__ void store_attention(const struct gpu_task &task,
                                                       const struct prefill_queries &q,
                                                       const struct attended_item &item) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int query = item.first + warp_id() * TILE + half * 8 + lane_id() / 4;
        float total = q.total[half];
        total += __shfl_xor_sync(0xffffffff, total, 1);
        total += __shfl_xor_sync(0xffffffff, total, 2);
        float scale = 1.0f / total;
        if (query >= task.tokens * GROUP_HEADS)
            continue;
        int column = item.stream * task.tokens + query / GROUP_HEADS;
        int head = item.kv_head * GROUP_HEADS + query % GROUP_HEADS;
#pragma unroll
        for (int j = 0; j < HEAD_TILES * 2; j++) {
            const float(&s)[4] = q.sum[j];
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

// ---- Where each warp multiplies by itself: a block has one item. ----

// sum += a x b^T: the rows of tile b are columns of the product.
static __device__ __forceinline__ void multiply_rows(float (*sum)[4], const struct tile &a,
                                                     const struct tile &b) {
    struct columns even = {b.x, b.y}, odd = {b.z, b.w};
    multiply<F16>(sum[0], a, even);
    multiply<F16>(sum[1], a, odd);
}

// A tile of a step: 16 k from `chunk` 8s on, 16 columns from `first` 8s on; across: how many 8s of
// columns there are.
static __device__ __forceinline__ struct tile read_tile(const char *matrices, int across, int chunk,
                                                        int first) {
    const int m = lane_id() / 8;
    return load_matrices(matrices + ((chunk + m % 2) * across + first + m / 2) * MATRIX_BYTES +
                         lane_id() % 8 * 16);
}

static __device__ __forceinline__ void
score_keys(attention_scores &score, const struct prefill_queries &q, const char *stage) {
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        struct tile query = d < HELD_TILES ? q.held[d] : q.kept[d * WARP];
#pragma unroll
        for (int row = 0; row < ATTENTION_ROWS; row++)
            multiply_rows(score + 2 * row, query,
                          read_tile(stage, 2 * ATTENTION_ROWS, 2 * d, 2 * row));
    }
}

static __device__ __forceinline__ void
add_values(struct prefill_queries &q, const attention_scores &score, const char *stage) {
#pragma unroll
    for (int row = 0; row < ATTENTION_ROWS; row++) {
        const struct tile chances = soften_row(q, score, row);
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++)
            multiply_rows(q.sum + 2 * d, chances,
                          read_tile(stage + KEYS_BYTES, 2 * HEAD_TILES, 2 * row, 2 * d));
    }
}

// Starts copying a step, if there is one.
static __device__ __forceinline__ void copy_attended(const char *steps, int step, int count) {
    const int CHUNKS = ATTENTION_STEP_BYTES / 16;
    const struct tile *from = (const struct tile *)(steps + (long long)step * ATTENTION_STEP_BYTES);
    struct tile *to =
        (struct tile *)(shared_memory() + step % ATTENTION_STAGES * ATTENTION_STEP_BYTES);
    for (int i = threadIdx.x; i < CHUNKS && step < count; i += ATTENTION_THREADS)
        copy_async(to + i, from + i, true);
    commit_copies();
}

static __device__ __forceinline__ void attend_by_warps(const struct gpu_task &task) {
    const struct attended_item item = find_item(task, blockIdx.x);
    const char *steps = gathered_steps(task, item.stream, item.kv_head);
    for (int step = 0; step < ATTENTION_STAGES - 1; step++)
        copy_attended(steps, step, item.steps);
    struct prefill_queries q;
    start_queries(q, task, item,
                  (struct tile *)(shared_memory() + ATTENTION_STAGES * ATTENTION_STEP_BYTES) +
                      warp_id() * HEAD_TILES * WARP + lane_id());
    for (int step = 0; step < item.steps; step++) {
        wait_copies<ATTENTION_STAGES - 2>();
        __syncthreads();
        copy_attended(steps, step + ATTENTION_STAGES - 1, item.steps);
        const char *stage = shared_memory() + step % ATTENTION_STAGES * ATTENTION_STEP_BYTES;
        attention_scores score = {};
        score_keys(score, q, stage);
        hide_scores(score, q, step * ATTENTION_ROWS);
        raise_maximum(q, score);
        add_values(q, score, stage);
    }
    store_attention(task, q, item);
}
#include "cuda_warpgroup_attention.cu"

// projected, gathered -> input of o_proj. Grid: see prefill_attention in gpu.c.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS, ATTENTION_BLOCKS)
    prefill_attention(const struct gpu_task task) {
    wait_for_previous_kernel();
    if constexpr (WARPGROUPS_ATTEND)
        attend_by_warpgroups<ATTENTION_ROWS>(task);
    else
        attend_by_warps(task);
}
