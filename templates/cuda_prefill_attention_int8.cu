// Attention of a block of tokens with a cache of integers, which become bf16 in the registers of
// each warp: queries are columns, as in decode. cuda_prefill_attention_bf16.cu is the same for a
// bf16 cache, whose tiles go through shared memory as they are.

enum {
    ATTENTION_GROUPS = HEAD_TILES <= 8 ? 2 : 1, // groups of 8 queries of a warp: as registers allow
    ATTENTION_THREADS = 4 * WARP,               //
    ATTENTION_QUERIES = 4 * ATTENTION_GROUPS * 8, // of a block; a query is a token and a head
};

// Queries of a warp from `first` on, and how many positions of the cache each column sees. Returns
// how many the last one does.
static __device__ __forceinline__ int
start_queries(struct attention<ATTENTION_GROUPS> &a, int (&positions)[ATTENTION_GROUPS][2],
              const struct gpu_task &task, int stream, int kv_head, int first) {
    int queries = task.tokens * GROUP_HEADS;
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
    start_attention(a);
    int last = first + ATTENTION_GROUPS * 8 - 1;
    return task.position + (last < queries ? last : queries - 1) / GROUP_HEADS + 1;
}

// Results of queries from `first` on -> input of o_proj.
static __device__ __forceinline__ void store_attention(const struct gpu_task &task,
                                                       const struct attention<ATTENTION_GROUPS> &a,
                                                       int stream, int kv_head, int first) {
#pragma unroll
    for (int group = 0; group < ATTENTION_GROUPS; group++) {
        float even = 1.0f / column_sum(a.total[group][0]);
        float odd = 1.0f / column_sum(a.total[group][1]);
        int query = first + group * 8 + lane_id() / 4, pair = lane_id() % 4 * 2;
        bool wanted = query < task.tokens * GROUP_HEADS;
        int column = stream * task.tokens + query / GROUP_HEADS;
        int head = kv_head * GROUP_HEADS + query % GROUP_HEADS;
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
            const float(&s)[4] = a.sum[d][group];
            unsigned upper = transpose(to_bf16(s[0] * even, s[1] * odd));
            unsigned lower = transpose(to_bf16(s[2] * even, s[3] * odd));
            int dim = d * TILE + pair;
            if (wanted && dim < HEAD_DIM)
                *input_word(task.input, column, head * HEAD_DIM + dim) = upper;
            if (wanted && dim + 8 < HEAD_DIM)
                *input_word(task.input, column, head * HEAD_DIM + dim + 8) = lower;
        }
        if (INPUT_TILES > 1 && wanted && head == HEADS - 1) { // zeros up to a whole tile of weights
            for (int k = HEADS * HEAD_DIM + pair; k < HEADS_TILES * TILE; k += 8)
                *input_word(task.input, column, k) = 0;
        }
    }
}

// query, cache -> input of o_proj. Grid: groups of ATTENTION_QUERIES queries (the last first: they
// see most), kv heads, streams.
extern "C" __global__ void __launch_bounds__(ATTENTION_THREADS)
    prefill_attention(const struct gpu_task task) {
    wait_for_previous_kernel();
    int kv_head = blockIdx.y, stream = blockIdx.z, group = gridDim.x - 1 - blockIdx.x;
    int first = group * ATTENTION_QUERIES + warp_id() * ATTENTION_GROUPS * 8;
    if (first >= task.tokens * GROUP_HEADS)
        return;
    struct attention<ATTENTION_GROUPS> a;
    int positions[ATTENTION_GROUPS][2];
    int most = start_queries(a, positions, task, stream, kv_head, first);
    int tiles = PREFIX_TILES + (most + TILE - 1) / TILE;
    for (int t = 0; t < tiles; t++) {
        struct tile keys[HEAD_TILES], values[HEAD_TILES];
        struct span s = find_span(task, stream, kv_head, t);
        load_keys(keys, s, 0);
        attend_span<ATTENTION_GROUPS, false>(a, s, keys, values, positions);
    }
    store_attention(task, a, stream, kv_head, first);
}
