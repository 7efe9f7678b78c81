// Attention of a decode step. An item is a group of up to 8 query heads of one kv head and stream.
// Its positions are divided among blocks, and in them among warps, whose results a block adds up.
// What blocks found is told and added once more, where an item has several.

enum {
    ATTENTION_ITEMS = KV_HEADS * HEAD_GROUPS * STREAMS,
    MOST_SPLITS = 32, // blocks that share an item
    // Lanes that share what these found. Many ask for much, which delays copies of many bytes.
    ADDERS = (int)layer_tiles::BYTES < (int)bf16_tiles::BYTES && STREAMS <= FEW_COLUMNS ? 4 : 2,
    SPLITS_AT_ONCE = ADDERS * (WARPGROUPS ? 5 : 3), // whose results are loaded together
};

struct attention_item {
    int kv_head, group, stream;

    __device__ __forceinline__ attention_item(int n) {
        stream = n / (KV_HEADS * HEAD_GROUPS);
        kv_head = n / HEAD_GROUPS % KV_HEADS;
        group = n % HEAD_GROUPS;
    }
};

// Rows of tiles, of prefix and cache.
static __device__ __forceinline__ int attended_tiles(int positions) {
    return PREFIX_TILES + (unsigned)(positions + TILE - 1) / TILE;
}

// If there are blocks enough, few warps of each attend: keys and values arrive block by block.
static __device__ inline struct attention_split divide_attention(int position) {
    const int most = (int)gridDim.x / ATTENTION_ITEMS, tiles = attended_tiles(position + 1);
    const int few = most < 1 ? 1 : most < SPLITS_AT_ONCE ? most : (int)SPLITS_AT_ONCE;
    int warps = quotient_up(tiles, few);
    warps = warps < HALF_WARPS ? (int)HALF_WARPS : warps;
    warps = warps < ATTENDING_WARPS ? warps : (int)ATTENDING_WARPS;
    int splits = quotient_up(tiles, warps);
    splits = splits < most ? splits : most;
    splits = splits < 1 ? 1 : splits < MOST_SPLITS ? splits : MOST_SPLITS;
    return {warps,
            splits,
            (tiles - 1) % (splits * warps),
            (int)blockIdx.x / splits,
            (int)blockIdx.x % splits,
            tiles > splits * warps};
}

// The queries of an item, scaled for powers of two, to shared memory: a lane's fragments of 16
// dimensions side by side, their low parts behind them. Columns without a head are zeros. With the
// newest key and value, for the warp that attends these: all is asked for at once.
static __device__ __forceinline__ void await_queries(const struct gpu_task &task,
                                                     const struct attention_item &item,
                                                     bool with_newest, unsigned round) {
    const float scale = query_scale();
    unsigned *to = (unsigned *)work_floats();
    enum {
        PAIRS = HEAD_TILES * TILE / 2,
        MINE = (8 * PAIRS + THREADS - 1) / THREADS,
        NUMBERS = cache_row::NUMBERS,
    };
    const float *queries = task.qkv + item.stream * QKV_FLOATS +
                           (item.kv_head * GROUP_HEADS + item.group * 8) * HEAD_DIM;
    const float *newest = task.qkv + item.stream * QKV_FLOATS + (HEADS + item.kv_head) * HEAD_DIM;
    const unsigned columns =
        GROUP_HEADS - item.group * 8 < 8 ? GROUP_HEADS - item.group * 8 : 8; // that are queries
    float found[NUMBERS + 2 * MINE];
    await_all(found, round, [=, &found](int i, float &value) {
        if (i < NUMBERS) {
            int place = cache_row::number_place(i);
            if (with_newest && place >= 0)
                value = look(newest + place, round);
            return;
        }
        const unsigned n = (i - NUMBERS) / 2 * THREADS + thread_id(), dim = n % PAIRS * 2,
                       place = 2 * n - n / PAIRS * (2 * PAIRS - HEAD_DIM);
        if ((i - NUMBERS) % 2 == 0 && n < columns * PAIRS && dim < HEAD_DIM) {
            const float2 pair = look_twice(queries + place, round);
            value = pair.x;
            found[i + 1] = pair.y;
        }
    });
#pragma unroll
    for (int i = 0; i < NUMBERS + 2 * MINE; i++)
        found[i] = without_round(found[i]);
    if (with_newest)
        cache_row::leave_newest(newest_entries(), found);
    const float *pairs = found + NUMBERS;
#pragma unroll
    for (int i = 0; i < MINE; i++) {
        const unsigned n = i * THREADS + thread_id(), pair = n % PAIRS,
                       at = (pair / 8 * WARP + n / PAIRS * 4 + pair % 4) * 2 + pair % 8 / 4;
        float x = pairs[2 * i] * scale, y = pairs[2 * i + 1] * scale;
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

// A result: sums [HEAD_TILES, 4, 8, 4] of pairs of columns i and rows g, as lane 4g + i has them,
// and of each pair maxima and totals [4, 4].
static __device__ __forceinline__ float4 *attention_result(const struct gpu_task &task, int item,
                                                           int split) {
    return (float4 *)(task.partial + ((long long)item * MOST_SPLITS + split) * ATTENTION_PARTIAL);
}

// Which float4 of a result float4 n of the lanes' is. Then the 16 dimensions of a head that o_proj
// takes together are those of 8 float4 side by side, which one warp adds up and tells: of numbers
// in a line of memory that several blocks write while many look for them each takes longer.
static __device__ __forceinline__ int result_place(int n) {
    return n / WARP * WARP + n % 4 * 8 + n % WARP / 4;
}

// Its pair of columns, and what it begins with: a head of the kv head, a dimension.
static __device__ __forceinline__ int result_pair(int place) {
    return place % WARP / 8;
}

static __device__ __forceinline__ int result_head(const struct attention_item &item, int place) {
    return item.group * 8 + result_pair(place) * 2;
}

static __device__ __forceinline__ int result_dim(int place) {
    return place / WARP * TILE + place % 8;
}

// Whether 16 activations of o_proj's input are of one head. Else only pairs are together.
enum { WHOLE_TILES = HEAD_DIM % TILE == 0 };
template <bool WHOLE> struct attended_told : told_fours<layer_tiles> {};
template <> struct attended_told<false> : told_pairs<layer_tiles, 1> {};
typedef struct attended_told<WHOLE_TILES> told_attended;

// Float4 `place` of an item's sums over all positions, and the maxima and totals of its columns: to
// the input of o_proj. By all threads of a warp, 8 or more in turn; told by those that are `mine`.
static __device__ __forceinline__ void tell_attended(const struct gpu_task &task,
                                                     const struct attention_item &item, int place,
                                                     const float4 &sum, const float4 &column,
                                                     bool mine, unsigned round) {
    const float first = 1.0f / column.z, second = 1.0f / column.w;
    const float4 x = make_float4(sum.x * first, sum.y * second, sum.z * first, sum.w * second);
    // Two lanes have two pairs of dimensions of two heads: each tells one head's.
    const int odd = place % 2, channel = item.kv_head * GROUP_HEADS * HEAD_DIM;
    const float low = __shfl_xor_sync(0xffffffff, odd ? x.x : x.y, 1),
                high = __shfl_xor_sync(0xffffffff, odd ? x.z : x.w, 1);
    const int head = result_head(item, place) + odd;
    if (head >= GROUP_HEADS || !mine)
        return;
    if constexpr (WHOLE_TILES) {
        told_attended::tell_four(
            task.attended, COLUMN_GROUPS, channel + head * HEAD_DIM + result_dim(place) - odd,
            item.stream, odd ? make_float4(low, x.y, high, x.w) : make_float4(x.x, low, x.z, high),
            round);
    } else {
        typedef attended_told<false> pairs;
        const int dim = result_dim(place) - odd, k = channel + head * HEAD_DIM + dim;
        if (dim < HEAD_DIM)
            pairs::tell_pair(task.attended, COLUMN_GROUPS, k, item.stream, odd ? low : x.x,
                             odd ? x.y : low, round);
        if (dim + 8 < HEAD_DIM)
            pairs::tell_pair(task.attended, COLUMN_GROUPS, k + 8, item.stream, odd ? high : x.z,
                             odd ? x.w : high, round);
    }
}

// What a pair of columns of a result, with these maxima, is multiplied with when they become
// `most`.
static __device__ __forceinline__ float2 factors(float first, float second, float2 most) {
    return make_float2(power_of_two(first - most.x), power_of_two(second - most.y));
}

static __device__ __forceinline__ void add_scaled(float4 &sum, const float4 &x, float2 factor) {
    sum = make_float4(sum.x + x.x * factor.x, sum.y + x.y * factor.y, sum.z + x.z * factor.x,
                      sum.w + x.w * factor.y);
}

// Maxima and totals of a pair of columns, of COUNT results together and of `all` before.
template <int COUNT>
static __device__ __forceinline__ float4 all_columns(const float4 &all,
                                                     const float4 (&columns)[COUNT]) {
    float2 most = make_float2(all.x, all.y);
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        most = make_float2(fmaxf(most.x, columns[i].x), fmaxf(most.y, columns[i].y));
    const float2 old = factors(all.x, all.y, most);
    float2 total = make_float2(all.z * old.x, all.w * old.y);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        const float2 factor = factors(columns[i].x, columns[i].y, most);
        total = make_float2(total.x + columns[i].z * factor.x, total.y + columns[i].w * factor.y);
    }
    return make_float4(most.x, most.y, total.x, total.y);
}

// The same of nothing.
static __device__ __forceinline__ float4 no_columns() {
    return make_float4(LOWEST_SCORE, LOWEST_SCORE, 0, 0);
}

// Adds COUNT results to `sum`, and to `all` the maxima and totals of their columns.
template <int COUNT>
static __device__ __forceinline__ void add_results(float4 &sum, float4 &all,
                                                   const float4 (&found)[COUNT],
                                                   const float4 (&columns)[COUNT]) {
    const float4 old = all;
    all = all_columns(old, columns);
    const float2 most = make_float2(all.x, all.y);
    float4 scaled = make_float4(0, 0, 0, 0);
    add_scaled(scaled, sum, factors(old.x, old.y, most));
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        add_scaled(scaled, found[i], factors(columns[i].x, columns[i].y, most));
    sum = scaled;
}

// The round of results. How many there are grows with the position, so in a launch each is told an
// even number of times, and the rounds of every launch are the same.
static __device__ __forceinline__ unsigned results_round(const struct gpu_task &task) {
    return (unsigned)task.layer + 1;
}

// What half of a block's warps leave in shared memory: sums as in a result behind the queries,
// which not every warp has loaded by then; maxima and totals [HALF_WARPS, 4].
static __device__ __forceinline__ float4 *warps_sums() {
    return (float4 *)((char *)work_floats() + ATTENTION_BYTES);
}

static __device__ __forceinline__ void leave_sums(const struct attention &a, const float4 &column) {
    const int place = warp_id() % HALF_WARPS;
    float4 *to = warps_sums() + place * (HEAD_TILES * WARP) + lane_id();
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++)
        to[d * WARP] = make_float4(a.sum[d][0], a.sum[d][1], a.sum[d][2], a.sum[d][3]);
    if (lane_id() < 4)
        workplace()->columns[place * 4 + lane_id()] = column;
}

// Adds to a warp's sums and to `column` what another one left.
static __device__ __forceinline__ void take_sums(struct attention &a, float4 &column) {
    const int place = warp_id() % HALF_WARPS;
    const float4 *from = warps_sums() + place * (HEAD_TILES * WARP) + lane_id();
    const float4 other[1] = {workplace()->columns[place * 4 + lane_id() % 4]}, old = column;
    column = all_columns(old, other);
    const float2 most = make_float2(column.x, column.y), mine = factors(old.x, old.y, most),
                 its = factors(other[0].x, other[0].y, most);
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        const float4 x = from[d * WARP];
        float(&sum)[4] = a.sum[d];
        sum[0] = sum[0] * mine.x + x.x * its.x;
        sum[1] = sum[1] * mine.y + x.y * its.y;
        sum[2] = sum[2] * mine.x + x.z * its.x;
        sum[3] = sum[3] * mine.y + x.w * its.y;
    }
}

// Adds up what the warps of a block found: if more than half of them attend, half leave what the
// others add; then these leave theirs, which all threads add.
static __device__ __forceinline__ void add_warps(const struct gpu_task &task,
                                                 const struct attention_split &split, int item,
                                                 struct attention &a) {
    float4 column = make_float4(a.max[0], a.max[1], column_sum(a.total[0]), column_sum(a.total[1]));
    const bool first_half = warp_id() < HALF_WARPS;
    if (split.warps > HALF_WARPS) {
        if (!first_half)
            leave_sums(a, column);
        consumers_barrier();
        if (first_half)
            take_sums(a, column);
        __syncwarp(); // all lanes have read before any writes there
    }
    if (first_half)
        leave_sums(a, column);
    consumers_barrier();
    float4 columns[HALF_WARPS];
#pragma unroll
    for (int i = 0; i < HALF_WARPS; i++)
        columns[i] = workplace()->columns[i * 4 + thread_id() % 4];
    const float4 all = all_columns(no_columns(), columns);
    const float2 most = make_float2(all.x, all.y);
    float4 *to = attention_result(task, item, split.number);
#pragma unroll
    for (int n = thread_id(); n < HEAD_TILES * WARP; n += THREADS) {
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (int i = 0; i < HALF_WARPS; i++)
            add_scaled(sum, warps_sums()[i * (HEAD_TILES * WARP) + n],
                       factors(columns[i].x, columns[i].y, most));
        tell(to + result_place(n), sum, results_round(task));
    }
    if (thread_id() < 4)
        tell(to + HEAD_TILES * WARP + thread_id(), all, results_round(task));
}

// With an odd number of layers results are told once more, when all have read them.
static __device__ __forceinline__ void even_results(const struct gpu_task &task) {
    if (LAYERS % 2 == 0 || task.layer < LAYERS - 1)
        return;
    const struct attention_split split = workplace()->split;
    for (int item = split.item; item < ATTENTION_ITEMS; item += gridDim.x) {
        float4 *to = attention_result(task, item, split.number);
        for (int i = thread_id(); i < ATTENTION_PARTIAL / 4; i += THREADS)
            tell(to + i, make_float4(0, 0, 0, 0), results_round(task) + 1);
    }
}

// Adds up what blocks told: a warp takes some float4 of an item's result, ADDERS lanes each, which
// share the blocks. Of SPLITS_AT_ONCE blocks the loads are under way together. The last blocks
// first: they have the least to do.
static __device__ __forceinline__ void add_attention(const struct gpu_task &task, int splits,
                                                     unsigned round) {
    const unsigned told = results_round(task);
    enum { STRIDE = ATTENTION_PARTIAL / 4, EACH = SPLITS_AT_ONCE / ADDERS };
    const int jobs = ATTENTION_ITEMS * HEAD_TILES * ADDERS, adder = lane_id() / (WARP / ADDERS);
#pragma unroll 1
    for (int job = (warp_id() + 1) * gridDim.x - 1 - block_id(); job < jobs;
         job += WARPS * gridDim.x) {
        const int number = job / (HEAD_TILES * ADDERS),
                  place =
                      job % (HEAD_TILES * ADDERS) * (WARP / ADDERS) + lane_id() % (WARP / ADDERS);
        const struct attention_item item(number);
        const float4 *results = attention_result(task, number, adder) + place;
        const int pair = HEAD_TILES * WARP + result_pair(place) - place; // its columns'
        // Who tells nothing must not read, see even_results.
        const bool mine = result_head(item, place) < GROUP_HEADS && result_dim(place) < HEAD_DIM;
        float4 sum = make_float4(0, 0, 0, 0), all = no_columns();
#pragma unroll 1
        for (int first = 0; first < splits; first += SPLITS_AT_ONCE) {
            const int left = splits - first - adder;
            float4 both[2 * EACH], found[EACH], columns[EACH]; // sums; maxima and totals
            await_all(both, told, [=](int i, float4 &value) {
                if (mine && i % EACH * ADDERS < left)
                    value =
                        look(results + i % EACH * (ADDERS * STRIDE) + (i < EACH ? 0 : pair), told);
            });
            results += SPLITS_AT_ONCE * STRIDE;
#pragma unroll
            for (int i = 0; i < EACH; i++) {
                found[i] = without_round(both[i]);
                columns[i] = i * ADDERS < left ? without_round(both[EACH + i]) : no_columns();
            }
            add_results(sum, all, found, columns);
        }
        for (int distance = WARP / ADDERS; distance < WARP; distance *= 2) {
            const float4 other[1] = {shuffle(sum, distance)}, columns[1] = {shuffle(all, distance)};
            add_results(sum, all, other, columns);
        }
        tell_attended(task, item, place, sum, all, adder == 0, round);
    }
}

// Zeros that fill the input of o_proj to whole 16s.
static __device__ __forceinline__ void fill_attended(const struct gpu_task &task, unsigned round) {
    const int PAIRS = (TILE - HEADS * HEAD_DIM % TILE) % TILE / 2;
    if (PAIRS > 0 && block_id() == 0)
        for (int n = thread_id(); n < STREAMS * PAIRS; n += THREADS)
            attended_told<false>::tell_pair(task.attended, COLUMN_GROUPS,
                                            HEADS * HEAD_DIM + n / STREAMS * 2, n % STREAMS, 0.0f,
                                            0.0f, round);
}

// Copies a row of tiles for copied_span.
static __device__ __forceinline__ void copy_span(const struct span &s, char *to,
                                                 unsigned long long *full) {
    if (s.causal) {
        copy_part(to, s.keys, ROW_BYTES, full);
        return;
    }
#pragma unroll 1
    for (int plane = 0; plane < WEIGHT_PLANES; plane++) {
        copy_part(to, s.keys + plane * s.plane_stride * WARP, HEAD_TILES * TILE_BYTES, full);
        to += HEAD_TILES * TILE_BYTES;
#pragma unroll 1
        for (int d = 0; d < HEAD_TILES; d++) {
            copy_part(to, s.values + (plane * s.plane_stride + d * s.value_stride) * WARP,
                      TILE_BYTES, full);
            to += TILE_BYTES;
        }
    }
}

// How many rows of tiles the warps of a block attend together, from row `first` on of `tiles`.
static __device__ __forceinline__ int attended_rows(const struct attention_split &split, int first,
                                                    int tiles) {
    return tiles - first < split.warps ? tiles - first : split.warps;
}

// The producer's: all that this block attends of a layer, in the order of decode_attention. Rows of
// tiles that warps attend together lie side by side in slots, SLOT_SPANS in each.
static __device__ __forceinline__ void copy_attended(const struct gpu_task &task, int layer,
                                                     struct filling &filling) {
    const struct attention_split &split = workplace()->split;
    const int tiles = attended_tiles(workplace()->position + 1);
    struct gpu_task its = task;
    its.layer = layer;
    if (!layer_tiles::SCALES && split.again) // much is to come before the MLP
        filling.limit(FLYING);
#pragma unroll 1
    for (int n = split.item; n < ATTENTION_ITEMS; n += gridDim.x) {
        const struct attention_item item(n);
#pragma unroll 1
        for (int first = split.number * split.warps; first < tiles;
             first += split.splits * split.warps) {
            const int end = first + attended_rows(split, first, tiles);
#pragma unroll 1
            for (int t = first; t < end;) {
                const int last = t + SLOT_SPANS < end ? t + SLOT_SPANS : end,
                          learned = t >= PREFIX_TILES     ? 0
                                    : last < PREFIX_TILES ? last - t
                                                          : PREFIX_TILES - t;
                char *to = filling.take_slot();
                unsigned long long *full = &workplace()->full[filling.to.slot];
                begin_copies(full, learned * PREFIX_SPAN_BYTES + (last - t - learned) * ROW_BYTES);
#pragma unroll 1
                for (; t < last; t++, to += SPAN_BYTES)
                    copy_span(find_span(its, item.stream, item.kv_head, t), to, full);
                end_copies(full);
                filling.next_slot();
            }
        }
    }
}

// queries, keys, values and cache -> input of o_proj. All positions but the newest were stored in
// earlier steps: their keys and values come through the ring.
static __device__ __forceinline__ void decode_attention(const struct gpu_task &task,
                                                        struct ring &ring, unsigned round) {
    const struct attention_split split = workplace()->split;
    const int positions = workplace()->position + 1, tiles = attended_tiles(positions),
              start = split.number * split.warps;
#pragma unroll 1
    for (int n = split.item; n < ATTENTION_ITEMS; n += gridDim.x) {
        const struct attention_item item(n);
        await_queries(task, item, start + warp_id() == split.newest && warp_id() < split.warps,
                      round);
        consumers_barrier();
        struct attention a;
        load_queries(a);
        start_attention(a);
        int slots = 0; // of the rows before, which the producer has not back yet
#pragma unroll 1
        for (int first = start; first < tiles; first += split.splits * split.warps) {
            ring.leave_slots(slots);
            const int rows = attended_rows(split, first, tiles), t = first + warp_id();
            slots = quotient_up(rows, SLOT_SPANS);
            if (warp_id() < rows) {
                struct span s = copied_span(ring.wait_further(warp_id() / SLOT_SPANS) +
                                                warp_id() % SLOT_SPANS * SPAN_BYTES,
                                            t);
                if (t == tiles - 1)
                    s.row.add_newest(newest_entries(), positions - 1);
                attend_span(a, s, positions);
            }
        }
        add_warps(task, split, n, a);
        ring.leave_slots(slots); // behind what other blocks wait for
        consumers_barrier();     // before others take the place of the sums
    }
    add_attention(task, split.splits, round);
    fill_attended(task, round);
}
