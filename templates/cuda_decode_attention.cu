// Attention of a decode step. An item is a group of up to 8 query heads of one kv head and stream.
// Its positions are divided among blocks, and in them among warps. What each warp finds is told;
// then all blocks add up, each some dimensions of some items.

enum {
    ATTENTION_ITEMS = KV_HEADS * HEAD_GROUPS * STREAMS,
    MOST_SPLITS = 16, // blocks that share an item
    MOST_PARTS = MOST_SPLITS * WARPS,
};

struct attention_item {
    int kv_head, group, stream;

    __device__ __forceinline__ attention_item(int n) {
        stream = n / (KV_HEADS * HEAD_GROUPS);
        kv_head = n / HEAD_GROUPS % KV_HEADS;
        group = n % HEAD_GROUPS;
    }
};

// How a step's attention is divided.
struct attention_split {
    int positions, tiles; // tiles: rows of tiles, of prefix and cache
    int splits, parts;    // blocks that share an item; warps

    __device__ __forceinline__ attention_split(int position) {
        const int most = (int)gridDim.x / ATTENTION_ITEMS;
        positions = position + 1;
        tiles = PREFIX_TILES + (positions + TILE - 1) / TILE;
        splits = (tiles + WARPS - 1) / WARPS;
        splits = splits < most ? splits : most;
        splits = splits < 1 ? 1 : splits < MOST_SPLITS ? splits : MOST_SPLITS;
        parts = splits * WARPS < tiles ? splits * WARPS : tiles;
    }
};

// The queries of an item, scaled for powers of two, to shared memory: a lane's fragments of 16
// dimensions side by side, their low parts behind them. Columns without a head are zeros.
static __device__ __forceinline__ void
await_queries(const struct gpu_task &task, const struct attention_item &item, unsigned round) {
    const float scale = rsqrtf((float)HEAD_DIM) * 1.44269504f;
    unsigned *to = (unsigned *)work_floats();
    enum { PAIRS = HEAD_TILES * TILE / 2, MINE = (8 * PAIRS + THREADS - 1) / THREADS };
    const float *queries = task.qkv + item.stream * QKV_FLOATS +
                           (item.kv_head * GROUP_HEADS + item.group * 8) * HEAD_DIM;
    float pairs[2 * MINE];
    unsigned missing;
    do
        missing = look_for_all(pairs, round, [queries, item, round](int i, float &value) {
            int n = i / 2 * THREADS + thread_id(), column = n / PAIRS, dim = n % PAIRS * 2 + i % 2;
            if (column < 8 && item.group * 8 + column < GROUP_HEADS && dim < HEAD_DIM)
                value = look(queries + column * HEAD_DIM + dim, round);
        });
    while (look_again_alone(missing));
    converge();
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        int n = i * THREADS + thread_id(), pair = n % PAIRS;
        int at = (pair / 8 * WARP + n / PAIRS * 4 + pair % 4) * 2 + pair % 8 / 4;
        float x = without_round(pairs[2 * i]) * scale, y = without_round(pairs[2 * i + 1]) * scale;
        unsigned high = to_bf16(x, y);
        if (n < 8 * PAIRS) {
            to[at] = high;
            to[HEAD_TILES * WARP * 2 + at] = low_parts(high, x, y);
        }
    }
}

static __device__ __forceinline__ void load_queries(struct attention &a) {
    const struct columns *from = (const struct columns *)work_floats() + lane_id();
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        a.high[d] = from[d * WARP];
        a.low[d] = from[(HEAD_TILES + d) * WARP];
    }
}

// Tells what a warp found: sums as its lanes have them, then of each pair of columns the maxima and
// the totals.
static __device__ __forceinline__ void tell_results(const struct attention &a, float *part,
                                                    unsigned round) {
    float4 *to = (float4 *)part + lane_id();
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++)
        tell(to + d * WARP, make_float4(a.sum[d][0], a.sum[d][1], a.sum[d][2], a.sum[d][3]), round);
    float2 total = make_float2(column_sum(a.total[0]), column_sum(a.total[1]));
    if (lane_id() < 4)
        tell(to + HEAD_TILES * WARP, make_float4(a.max[0], a.max[1], total.x, total.y), round);
}

static __device__ __forceinline__ float *attention_part(const struct gpu_task &task, int item,
                                                        int part) {
    return task.partial + ((long long)item * MOST_PARTS + part) * ATTENTION_PARTIAL;
}

// What is attended of a row of tiles by each lane: four sums of two dimensions, one behind the
// other, of two columns: x and z, y and w.
struct attended {
    float4 even, odd;
    float2 max, total;

    // Adds one whose maxima and totals are in `column`.
    __device__ __forceinline__ void add(const float4 &e, const float4 &o, const float4 &column) {
        float2 most = make_float2(fmaxf(max.x, column.x), fmaxf(max.y, column.y));
        float2 old = make_float2(power_of_two(max.x - most.x), power_of_two(max.y - most.y));
        float2 add = make_float2(power_of_two(column.x - most.x), power_of_two(column.y - most.y));
        even = make_float4(even.x * old.x + e.x * add.x, even.y * old.y + e.y * add.y,
                           even.z * old.x + e.z * add.x, even.w * old.y + e.w * add.y);
        odd = make_float4(odd.x * old.x + o.x * add.x, odd.y * old.y + o.y * add.y,
                          odd.z * old.x + o.z * add.x, odd.w * old.y + o.w * add.y);
        total = make_float2(total.x * old.x + column.z * add.x, total.y * old.y + column.w * add.y);
        max = most;
    }

    // Adds that of the lane `distance` apart.
    __device__ __forceinline__ void add_lane(int distance) {
        const unsigned all = 0xffffffff;
        float4 e = make_float4(
            __shfl_xor_sync(all, even.x, distance), __shfl_xor_sync(all, even.y, distance),
            __shfl_xor_sync(all, even.z, distance), __shfl_xor_sync(all, even.w, distance));
        float4 o = make_float4(
            __shfl_xor_sync(all, odd.x, distance), __shfl_xor_sync(all, odd.y, distance),
            __shfl_xor_sync(all, odd.z, distance), __shfl_xor_sync(all, odd.w, distance));
        float4 column = make_float4(
            __shfl_xor_sync(all, max.x, distance), __shfl_xor_sync(all, max.y, distance),
            __shfl_xor_sync(all, total.x, distance), __shfl_xor_sync(all, total.y, distance));
        add(e, o, column);
    }
};

// What the first number of float4 n of a result belongs to.
static __device__ __forceinline__ int result_head(const struct attention_item &item, int n) {
    return item.group * 8 + n % 4 * 2;
}

static __device__ __forceinline__ int result_dim(int n) {
    return n / WARP * TILE + n / 4 % 8;
}

// Sum i of all positions, of the four that begin with float4 n: to the input of o_proj.
static __device__ __forceinline__ void tell_attended(const struct gpu_task &task,
                                                     const struct attention_item &item, int n,
                                                     int i, const struct attended &all,
                                                     unsigned round) {
    float even = i / 2 ? (i % 2 ? all.even.w : all.even.z) : (i % 2 ? all.even.y : all.even.x);
    float odd = i / 2 ? (i % 2 ? all.odd.w : all.odd.z) : (i % 2 ? all.odd.y : all.odd.x);
    float inverse = 1.0f / (i % 2 ? all.total.y : all.total.x);
    int head = result_head(item, n) + i % 2, dim = result_dim(n) + i / 2 * 8;
    if (head < GROUP_HEADS && dim < HEAD_DIM)
        tell_pair(task.attended, COLUMN_GROUPS,
                  (item.kv_head * GROUP_HEADS + head) * HEAD_DIM + dim, item.stream, even * inverse,
                  odd * inverse, round);
}

// The round of results. How many there are grows with the position, so in a launch each is told an
// even number of times, and the rounds of every launch are the same.
static __device__ __forceinline__ unsigned results_round(const struct gpu_task &task) {
    return (unsigned)task.layer + 1;
}

// With an odd number of layers results are told once more, when all have read them.
static __device__ __forceinline__ void even_results(const struct gpu_task &task) {
    if (LAYERS % 2 == 0 || task.layer < LAYERS - 1)
        return;
    const struct attention_split split(task.state->position);
    for (int n = block_id(); n < ATTENTION_ITEMS * split.splits; n += gridDim.x) {
        int part = n % split.splits * WARPS + warp_id();
        float4 *to = (float4 *)attention_part(task, n / split.splits, part) + lane_id();
        if (part >= split.tiles)
            continue;
        for (int d = 0; d < HEAD_TILES; d++)
            tell(to + d * WARP, make_float4(0, 0, 0, 0), results_round(task) + 1);
        if (lane_id() < 4)
            tell(to + HEAD_TILES * WARP, make_float4(0, 0, 0, 0), results_round(task) + 1);
    }
}

// Adds up what warps told. A warp takes two jobs, each 16 lanes: a job are two dimensions of two
// heads. The lanes take parts in turn, AT_ONCE so that their loads are under way together.
static __device__ __forceinline__ void
add_attention(const struct gpu_task &task, const struct attention_split &split, unsigned round) {
    const unsigned told = results_round(task);
    enum { LANES = 16, AT_ONCE = 3, ITEM_JOBS = RESULT_FLOATS / 8 };
#pragma unroll 1
    for (int pair = warp_id() * gridDim.x + block_id(); pair < ATTENTION_ITEMS * ITEM_JOBS / 2;
         pair += WARPS * gridDim.x) {
        int job = pair * 2 + lane_id() % 2, m = job % ITEM_JOBS, n = m / 4 * 8 + m % 4;
        const struct attention_item item(job / ITEM_JOBS);
        const float *parts = attention_part(task, job / ITEM_JOBS, 0);
        // Who tells nothing must not read, see even_results.
        int end = result_head(item, n) < GROUP_HEADS && result_dim(n) < HEAD_DIM ? split.parts : 0;
        const float nothing = -1e30f; // finite, for the differences of two lanes without parts
        struct attended all = {make_float4(0, 0, 0, 0), make_float4(0, 0, 0, 0),
                               make_float2(nothing, nothing), make_float2(0, 0)};
#pragma unroll 1
        for (int first = lane_id() / 2; first < end; first += AT_ONCE * LANES) {
            float4 found[3 * AT_ONCE]; // of each part two dimensions; maxima and totals
            unsigned missing;
            do
                missing = look_for_all(found, told, [=](int i, float4 &value) {
                    int part = first + i / 3 * LANES; // again the first one instead of none
                    part = part < end ? part : first;
                    const float4 *from = (const float4 *)(parts + part * ATTENTION_PARTIAL);
                    value =
                        look(from + (i % 3 < 2 ? n + i % 3 * 4 : RESULT_FLOATS / 4 + n % 4), told);
                });
            while (look_again_alone(missing));
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++)
                if (first + i * LANES < end)
                    all.add(without_round(found[3 * i]), without_round(found[3 * i + 1]),
                            without_round(found[3 * i + 2]));
        }
        converge();
#pragma unroll 1
        for (int distance = 2; distance < WARP; distance *= 2)
            all.add_lane(distance);
        if (lane_id() < 8) // all lanes of a job have its sums
            tell_attended(task, item, n, lane_id() / 2, all, round);
    }
    if (HEADS * HEAD_DIM % TILE && block_id() == 0) // zeros to fill 16
        for (int n = thread_id(); n < STREAMS * (TILE - HEADS * HEAD_DIM % TILE) / 2; n += THREADS)
            tell_pair(task.attended, COLUMN_GROUPS, HEADS * HEAD_DIM + n / STREAMS * 2, n % STREAMS,
                      0.0f, 0.0f, round);
}

// queries, keys, values and cache -> input of o_proj. All positions but the newest were stored in
// earlier steps: those are loaded before queries are told.
static __device__ __forceinline__ void decode_attention(const struct gpu_task &task,
                                                        unsigned round) {
    // As registers allow: values are loaded with their keys; both before the wait.
    const bool LOADED = WARPGROUPS && HEAD_TILES <= 6, EARLY = WARPGROUPS && HEAD_TILES <= 8;
    const struct attention_split split(task.state->position);
#pragma unroll 1
    for (int n = block_id(); n < ATTENTION_ITEMS * split.splits; n += gridDim.x) {
        const struct attention_item item(n / split.splits);
        const int part = n % split.splits * WARPS + warp_id();
        int t = part;
        struct tile keys[HEAD_TILES], values[HEAD_TILES];
        struct span s =
            find_span(task, item.stream, item.kv_head, t < split.tiles ? t : split.tiles - 1);
        bool loaded = EARLY;
        if (EARLY) {
            load_keys(keys, s, 0);
            if (LOADED)
                load_values(values, s, 0);
        }
        await_queries(task, item, round);
        consumers_barrier();
        struct attention a;
        load_queries(a);
        start_attention(a);
#pragma unroll 1
        for (; t < split.tiles; t += split.splits * WARPS) {
            if (!loaded) {
                s = find_span(task, item.stream, item.kv_head, t);
                load_keys(keys, s, 0);
                if (LOADED)
                    load_values(values, s, 0);
            }
            if (t == split.tiles - 1)
                s.row.add_newest(task.qkv + item.stream * QKV_FLOATS +
                                     (HEADS + item.kv_head) * HEAD_DIM,
                                 split.positions - 1, round, newest_row());
            loaded = false;
            attend_span<LOADED>(a, s, keys, values, split.positions);
        }
        if (part < split.tiles)
            tell_results(a, attention_part(task, n / split.splits, part), results_round(task));
        consumers_barrier(); // before others take the place of the queries
    }
    add_attention(task, split, round);
}
