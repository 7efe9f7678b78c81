// Attention. Keys are tiles [positions, dimensions], values tiles [dimensions, positions]; queries
// are columns: scores = keys x queries, result = values x probabilities, both [16, 8] products. The
// query heads of a kv head are columns of one product, so keys and values are read once for all of
// them. Queries and probabilities keep their low parts: rounding these to bf16 costs more accuracy
// than anything else. The softmax runs along (Milakov & Gimelshein 2018), in powers of two.

enum {
    HEAD_GROUPS = (GROUP_HEADS + 7) / 8,              // a warp's queries are 8 columns
    PREFIX_TILES = (PREFIX_TOKENS + TILE - 1) / TILE, //
    PREFIX_BLOCK_TILES = PREFIX_TILES * HEAD_TILES,   // of one plane of keys or values
    PREFIX_SPAN_BYTES = 2 * HEAD_TILES * TILE_BYTES * WEIGHT_PLANES, // a row of keys and values
    RESULT_FLOATS = HEAD_TILES * WARP * 4,  // a warp's sums, as its lanes hold them
    ATTENTION_PARTIAL = RESULT_FLOATS + 16, // and of each pair of columns maxima, totals
};

// Instead of a maximum, where there is no score yet: a difference to itself is a number.
static constexpr float LOWEST_SCORE = -0x1.fp127f;

// 8 queries of a warp. Lane 4g + i: sum[d][0..1] are dimension 16 d + g of queries 2i, 2i+1,
// sum[d][2..3] dimension 16 d + g + 8.
struct attention {
    struct columns high[HEAD_TILES], low[HEAD_TILES]; // queries
    float sum[HEAD_TILES][4];
    float max[2], total[2]; // total: of this lane's rows only
};

static __device__ __forceinline__ void start_attention(struct attention &a) {
#pragma unroll
    for (int i = 0; i < 2; i++) {
        a.max[i] = LOWEST_SCORE;
        a.total[i] = 0;
    }
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            a.sum[d][i] = 0;
    }
}

// The largest of x over the lanes that hold the same columns.
static __device__ inline float column_max(float x) {
    for (int distance = 4; distance < WARP; distance *= 2)
        x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
    return x;
}

static __device__ inline float column_sum(float x) {
    for (int distance = 4; distance < WARP; distance *= 2)
        x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// Scores of 16 positions to probabilities, relative to the running maximum; the sums so far are
// scaled to it. At least one position must be visible to each column by now.
static __device__ __forceinline__ void soften(struct attention &a, float (&score)[4]) {
    float factors[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float max = fmaxf(a.max[i], column_max(fmaxf(score[i], score[i + 2])));
        float factor = power_of_two(a.max[i] - max);
        a.max[i] = max;
        score[i] = power_of_two(score[i] - max);
        score[i + 2] = power_of_two(score[i + 2] - max);
        a.total[i] = a.total[i] * factor + score[i] + score[i + 2];
        factors[i] = factor;
    }
    if (__any_sync(0xffffffff, factors[0] != 1.0f || factors[1] != 1.0f)) {
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                a.sum[d][i] *= factors[i % 2];
        }
    }
}

// Where the 16 positions of one row of key tiles lie, of the prefix or of the cache: in global
// memory, or copied to shared memory, keys, then values, plane by plane.
struct span {
    const struct tile *keys, *values;
    int value_stride;     // tiles from 16 dimensions of the values to the next
    int plane_stride;     // tiles from a plane to the next one
    int planes;           // that add up
    int positions;        // before this row of tiles
    bool causal;          // of the cache; else all PREFIX_TOKENS are visible
    struct cache_row row; // of the cache
};

// Row `t` of tiles, counted through prefix and cache of a stream and kv head.
static __device__ __forceinline__ struct span find_span(const struct gpu_task &task, int stream,
                                                        int kv_head, int t) {
    struct span s;
    s.causal = t >= PREFIX_TILES;
    s.planes = s.causal ? 1 : (int)WEIGHT_PLANES;
    s.plane_stride = PREFIX_BLOCK_TILES;
    s.row.newest = -1;
    if (s.causal) {
        t -= PREFIX_TILES;
        s.keys = (const struct tile *)cache_place(task, stream, kv_head, t);
        s.values = cache_row::values(s.keys);
        s.value_stride = 1;
    } else {
        long long block = ((long long)task.layer * STREAMS + stream) * KV_HEADS + kv_head;
        long long first = block * PREFIX_BLOCK_TILES * WEIGHT_PLANES * WARP;
        s.keys =
            (const struct tile *)(task.weights + PREFIX_K_OFFSET) + first + t * HEAD_TILES * WARP;
        s.values = (const struct tile *)(task.weights + PREFIX_V_OFFSET) + first + t * WARP;
        s.value_stride = PREFIX_TILES;
    }
    s.positions = t * TILE;
    return s;
}

// The same, copied to `row` in shared memory.
static __device__ __forceinline__ struct span copied_span(const char *row, int t) {
    struct span s;
    s.causal = t >= PREFIX_TILES;
    s.planes = s.causal ? 1 : (int)WEIGHT_PLANES;
    s.plane_stride = 2 * HEAD_TILES;
    s.row.newest = -1;
    s.keys = (const struct tile *)row;
    s.values = s.causal ? cache_row::values(s.keys) : s.keys + HEAD_TILES * WARP;
    s.value_stride = 1;
    s.positions = (s.causal ? t - PREFIX_TILES : t) * TILE;
    return s;
}

// This lane's part of a tile of the prefix, or of a bf16 cache.
template <bool SHARED>
static __device__ __forceinline__ struct tile span_tile(const struct tile *from, bool causal) {
    if (!SHARED)
        return load_tile(from + (causal ? lane_id() : chunk_id()));
    return causal ? from[lane_id()] : load_fragment(from);
}

template <bool SHARED>
static __device__ __forceinline__ void load_keys(struct tile (&keys)[HEAD_TILES], struct span &s,
                                                 int plane) {
    if (cache_row::QUANTIZED && s.causal) {
        s.row.template load_scales<SHARED>(s.keys);
        s.row.template load<SHARED>(keys, s.keys);
        return;
    }
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++)
        keys[d] = span_tile<SHARED>(s.keys + (plane * s.plane_stride + d) * WARP, s.causal);
}

template <bool SHARED>
static __device__ __forceinline__ void load_values(struct tile (&values)[HEAD_TILES],
                                                   const struct span &s, int plane) {
    if (cache_row::QUANTIZED && s.causal) {
        s.row.template load<SHARED>(values, s.values);
        return;
    }
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++)
        values[d] = span_tile<SHARED>(
            s.values + (plane * s.plane_stride + d * s.value_stride) * WARP, s.causal);
}

static __device__ __forceinline__ void add_scores(float (&score)[4], float (&low_score)[4],
                                                  const struct attention &a,
                                                  const struct tile (&keys)[HEAD_TILES]) {
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        multiply(score, keys[d], a.high[d]);
        multiply(low_score, keys[d], a.low[d]);
    }
}

static __device__ __forceinline__ void add_values(struct attention &a, const struct columns &high,
                                                  const struct columns &low,
                                                  const struct tile (&values)[HEAD_TILES]) {
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        multiply(a.sum[d], values[d], high);
        multiply(a.sum[d], values[d], low);
    }
}

// Attends a span in shared memory. positions: how many of the cache are seen.
static __device__ __forceinline__ void attend_span(struct attention &a, struct span &s,
                                                   int positions) {
    const bool quantized = cache_row::QUANTIZED && s.causal;
    struct tile keys[HEAD_TILES], values[HEAD_TILES];
    load_keys<true>(keys, s, 0);
    if (s.causal)
        s.row.complete_keys(keys);
    float p[4] = {}, low_score[4] = {}; // two sums: shorter chains
    add_scores(p, low_score, a, keys);
    if (WEIGHT_PLANES > 1 && s.planes > 1) {
        load_keys<true>(keys, s, 1);
        add_scores(p, low_score, a, keys);
    }
    if (quantized) {
        s.row.scale_scores(p);
        s.row.scale_scores(low_score);
    }
    int visible = (s.causal ? positions : PREFIX_TOKENS) - s.positions;
#pragma unroll
    for (int i = 0; i < 4; i++)
        p[i] = lane_id() / 4 + i / 2 * 8 < visible ? p[i] + low_score[i] : negative_infinity();
    soften(a, p);
    if (quantized)
        s.row.scale_chances(p);
    unsigned upper = to_bf16(p[0], p[1]), lower = to_bf16(p[2], p[3]);
    const struct columns high = {transpose(upper), transpose(lower)};
    const struct columns low = {transpose(low_parts(upper, p[0], p[1])),
                                transpose(low_parts(lower, p[2], p[3]))};
    load_values<true>(values, s, 0);
    if (s.causal)
        s.row.complete_values(values);
    add_values(a, high, low, values);
    if (WEIGHT_PLANES > 1 && s.planes > 1) {
        load_values<true>(values, s, 1);
        add_values(a, high, low, values);
    }
}
