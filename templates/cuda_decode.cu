// The layers of a decode step: all streams are columns of each product. The phases of a layer,
// q|k|v, attention, o, MLP and the sum of its parts, follow each other; between two of them all
// blocks meet. Before it waits there, a block loads what no other block writes; its weights arrive
// all the time.

// What a block carries from phase to phase.
struct step {
    struct ring ring;
    struct meeting meeting;
};

// What a thread finishes of a batch of rows of tiles, gridDim.x apart from `first` on: two rows of
// one column.
struct finish {
    int row_tile, thread; // thread: of finish_split
    struct place at;
    const float *sums;
    bool mine;

    __device__ __forceinline__ finish(int first, int row_tiles) {
        const int each = COLUMN_GROUPS * 64, n = threadIdx.x;
        row_tile = first + n / each * gridDim.x;
        thread = n % each;
        at = split_place(thread);
        sums = work_floats() + n / each * COLUMN_GROUPS * SPLIT_SUM_FLOATS;
        mine = row_tile < row_tiles && at.column < STREAMS;
    }
};

typedef struct row_product<layer_tiles, HIDDEN_COLUMN_TILES, WEIGHT_PLANES, 2, HIDDEN_INPUT_TILES,
                           STREAMS>
    qkv_product;
typedef struct row_product<layer_tiles, HIDDEN_COLUMN_TILES, WEIGHT_PLANES, 1, HIDDEN_INPUT_TILES,
                           STREAMS>
    gate_up_product;
typedef struct row_product<layer_tiles, O_COLUMN_TILES, WEIGHT_PLANES, 1, HEADS_TILES, STREAMS>
    o_product;

// normed -> query, cache. In layer 0 all streams have one input.
static __device__ __forceinline__ void decode_qkv(const struct gpu_task &task, struct step &step) {
    const int columns = task.layer == 0 ? 1 : STREAMS, position = task.state->position;
    float *scales = workplace()->scales;
    float4 *kept = workplace()->kept + threadIdx.x;
    int first = blockIdx.x;
    do {
        struct finish f(first, QKV_ROW_TILES);
        if (f.mine) { // kept in shared memory: registers are short
            struct qkv_terms terms = find_terms(task, f.row_tile, f.at.row, position);
            *kept = make_float4(terms.low, terms.high, terms.cosine, terms.sine);
        }
        if (first == blockIdx.x)
            step.meeting.wait();
        struct column_scales norm;
        norm.begin(task);
        qkv_product::multiply_rows(step.ring, task.normed, batch_rows(first, QKV_ROW_TILES));
        norm.end(scales);
        consumers_barrier();
        if (f.mine && f.at.column < columns) {
            struct qkv_terms terms = {kept->x, kept->y, kept->z, kept->w};
            float2 y = finish_split(f.sums, f.thread);
            float scale = scales[f.at.column];
            store_qkv(task, f.row_tile, f.at.row, 0, f.at.column, position, terms, y.x * scale,
                      y.y * scale);
        }
        first += SUM_ROWS * gridDim.x;
        if (first < QKV_ROW_TILES)
            consumers_barrier();
    } while (first < QKV_ROW_TILES);
    step.meeting.arrive();
}

// Leaves row `row` of a column of the residual, and of the input of the next product, whose norm
// has the weight `weight` there.
static __device__ __forceinline__ void store_residual(const struct gpu_task &task, int row,
                                                      int column, float y, float weight) {
    task.residual[column * HIDDEN_SIZE + row] = y;
    store_normed(task, row, column, y * weight);
}

// residual += o_proj x. A row of tiles has one owner, who alone reads and writes its residual.
static __device__ __forceinline__ void decode_o(const struct gpu_task &task, struct step &step) {
    const float *norm = (const float *)(layer_weights(task) + POST_NORM_OFFSET);
    float4 *kept = workplace()->kept + threadIdx.x;
    int first = blockIdx.x;
    do {
        struct finish f(first, HIDDEN_TILES);
        int row = f.row_tile * TILE + f.at.row;
        if (f.mine) {
            const float *x = task.residual + f.at.column * HIDDEN_SIZE + row;
            *kept = make_float4(x[0], x[8], norm[row], norm[row + 8]);
        }
        if (first == blockIdx.x)
            step.meeting.wait();
        o_product::multiply_rows(step.ring, task.input, batch_rows(first, HIDDEN_TILES));
        consumers_barrier();
        float square = 0;
        if (f.mine) {
            float2 y = finish_split(f.sums, f.thread);
            y = make_float2(kept->x + y.x, kept->y + y.y);
            store_residual(task, row, f.at.column, y.x, kept->z);
            store_residual(task, row + 8, f.at.column, y.y, kept->w);
            square = y.x * y.x + y.y * y.y;
        }
        // Each warp has 4 pairs of rows of 8 columns.
        square += __shfl_xor_sync(0xffffffff, square, 8);
        square += __shfl_xor_sync(0xffffffff, square, 16);
        if (lane_id() < 8 && f.mine)
            task.squares[(f.row_tile * 2 + warp_id() % 2) * TILE + f.at.column] = square;
        first += SUM_ROWS * gridDim.x;
        if (first < HIDDEN_TILES)
            consumers_barrier();
    } while (first < HIDDEN_TILES);
    step.meeting.arrive();
}

// Some channels of silu(gate) * up, `rows` rows of tiles, to shared memory. A row of tiles is 8
// gates and their 8 ups.
static __device__ __forceinline__ void inner_part(const struct gpu_task &task, struct step &step,
                                                  int rows) {
    unsigned *inner = (unsigned *)workplace()->inner;
    const float *scales = workplace()->scales;
    for (int first = 0; first < MLP_ROWS; first += SUM_ROWS) {
        int batch = rows - first < 0 ? 0 : rows - first < SUM_ROWS ? rows - first : SUM_ROWS;
        gate_up_product::multiply_rows(step.ring, task.normed, batch);
        consumers_barrier();
        int row = threadIdx.x / (COLUMN_GROUPS * 64), thread = threadIdx.x % (COLUMN_GROUPS * 64);
        struct place at = split_place(thread);
        float value = 0;
        if (row < batch && at.column < STREAMS) {
            float2 y = finish_split(work_floats() + row * gate_up_product::ROW_FLOATS, thread);
            value = swiglu(y.x * scales[at.column], y.y * scales[at.column]);
        }
        float next = __shfl_xor_sync(0xffffffff, value, 8); // of row at.row + 1, if that is odd
        int at_word = column_index(COLUMN_GROUPS, (first + row) * 8 + at.row, at.column) / 2;
        if (at.row % 2 == 0)
            inner[at_word] = to_bf16(value, next);
        consumers_barrier();
    }
}

// What those channels add to the residual: [columns, hidden] from `out` on, `more`: to what is
// there. Each warp has rows of its own.
static __device__ __forceinline__ void outer_part(struct step &step, float *out, int tiles,
                                                  bool more) {
    const struct columns *inner = workplace()->inner;
    struct columns x[MLP_TILES][layer_tiles::INPUTS * COLUMN_GROUPS];
#pragma unroll
    for (int i = 0; i < MLP_CHANNELS / TILE * COLUMN_GROUPS; i++)
        x[i / (layer_tiles::INPUTS * COLUMN_GROUPS)][i % (layer_tiles::INPUTS * COLUMN_GROUPS)] =
            inner[i * WARP + lane_id()];
    for (int first = 0; first < HIDDEN_TILES; first += SLOT_PIECES) {
        step.ring.wait();
        const char *slot = ring_slot(step.ring.slot);
#pragma unroll
        for (int i = 0; i < SLOT_PIECES / WARPS; i++) {
            int piece = i * WARPS + warp_id(), row = (first + piece) * TILE + lane_id() / 4;
            if (first + piece >= HIDDEN_TILES)
                break;
            float sum[COLUMN_GROUPS][4] = {};
#pragma unroll
            for (int t = 0; t < MLP_TILES; t++)
                if (t < tiles)
                    layer_tiles::multiply_tile(
                        sum, slot + piece * PIECE_BYTES + t * layer_tiles::BYTES, x[t]);
#pragma unroll
            for (int n = 0; n < COLUMN_GROUPS * 4; n++) {
                int column = n / 4 * 8 + lane_id() % 4 * 2 + n % 2;
                float *to = out + column * HIDDEN_SIZE + row + n / 2 % 2 * 8;
                if (column < STREAMS)
                    *to = more ? *to + sum[n / 4][n % 4] : sum[n / 4][n % 4];
            }
        }
        step.ring.leave();
    }
}

// normed -> what this block's channels of the MLP add to the residual: its part of task.added
// [blocks, columns, hidden]. Gate, up and down are one phase, as no other block is asked.
static __device__ __forceinline__ void decode_mlp(const struct gpu_task &task, struct step &step) {
    float *added = task.added + (long long)blockIdx.x * STREAMS * HIDDEN_SIZE;
    const struct share share;
    store_newest(task); // attention is over: all blocks met since
    step.meeting.wait();
    struct column_scales norm;
    norm.begin(task);
    norm.end(workplace()->scales); // read behind a barrier
    for (int first = share.first; first < share.end; first += MLP_TILES) {
        int tiles = share.part_tiles(first);
        inner_part(task, step, inner_rows(first, tiles));
        for (int plane = 0; plane < WEIGHT_PLANES; plane++)
            outer_part(step, added, tiles, first > share.first || plane > 0);
        consumers_barrier(); // before others' channels take the place
    }
    step.meeting.arrive();
}

// residual += what all blocks' channels add, in a fixed order. ADD_SLICES threads share 8 rows of
// one column: each adds up some blocks' parts, and then finishes one row.
enum {
    ADD_COLUMNS = STREAMS > 8   ? 16
                  : STREAMS > 4 ? 8
                  : STREAMS > 2 ? 4
                                : STREAMS,
    ADD_SLICES = ADD_COLUMNS > 4 ? THREADS / 2 / ADD_COLUMNS : WARP,
};

static __device__ __forceinline__ float add_slices(const float *from, int slice, int blocks) {
    const int TOGETHER = 12; // loads under way
    float4 low = make_float4(0, 0, 0, 0), high = low;
    for (int first = slice; first < blocks; first += TOGETHER * ADD_SLICES) {
        float4 a[TOGETHER], b[TOGETHER];
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            long long block = first + i * ADD_SLICES;
            const float4 *part = (const float4 *)(from + block * STREAMS * HIDDEN_SIZE);
            a[i] = block < blocks ? part[0] : make_float4(0, 0, 0, 0);
            b[i] = block < blocks ? part[1] : make_float4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < TOGETHER; i++) {
            low = make_float4(low.x + a[i].x, low.y + a[i].y, low.z + a[i].z, low.w + a[i].w);
            high = make_float4(high.x + b[i].x, high.y + b[i].y, high.z + b[i].z, high.w + b[i].w);
        }
    }
    float sums[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}, mine = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        for (int distance = ADD_SLICES / 2; distance > 0; distance /= 2)
            sums[i] += __shfl_xor_sync(0xffffffff, sums[i], distance);
        mine = i == slice ? sums[i] : mine;
    }
    return mine;
}

static __device__ __forceinline__ void decode_add(const struct gpu_task &task, struct step &step,
                                                  const float *norm) {
    int slice = threadIdx.x % ADD_SLICES, half = threadIdx.x / ADD_SLICES % 2;
    int column = threadIdx.x / ADD_SLICES / 2;
    bool mine = column < STREAMS;
    for (int row_tile = blockIdx.x; row_tile < (int)blockIdx.x + 1 || row_tile < HIDDEN_TILES;
         row_tile += gridDim.x) {
        int rows = row_tile * TILE + half * 8, row = rows + slice;
        bool finishes = mine && slice < 8 && row_tile < HIDDEN_TILES;
        float before = finishes ? task.residual[column * HIDDEN_SIZE + row] : 0.0f;
        float weight = finishes ? norm[row] : 0.0f;
        if (row_tile == (int)blockIdx.x)
            step.meeting.wait();
        if (row_tile >= HIDDEN_TILES)
            break;
        float y = before + add_slices(task.added + (mine ? column : 0) * HIDDEN_SIZE + rows, slice,
                                      share::blocks());
        float square = y * y;
        for (int distance = 4; distance > 0; distance /= 2)
            square += __shfl_xor_sync(0xffffffff, square, distance);
        if (finishes) {
            store_residual(task, row, column, y, weight);
            if (slice == 0)
                task.squares[(row_tile * 2 + half) * TILE + column] = square;
        }
    }
    step.meeting.arrive();
}

// Whether this block is the last of `count` that arrive; what they wrote before is then seen. It is
// enough that one thread asks: barriers carry what that orders to the other threads.
static __device__ inline bool last_to_arrive(unsigned *arrivals, unsigned count) {
    unsigned *before = &workplace()->word;
    consumers_barrier();
    if (threadIdx.x == 0)
        *before = arrive_and_count(arrivals, count - 1);
    consumers_barrier();
    return *before == count - 1;
}

// Attention of a group of query heads of one kv head and stream: that is an item; a block takes a
// part of its positions, every `splits`th run of WARPS rows of tiles, each warp one.
enum {
    ATTENTION_ITEMS = KV_HEADS * HEAD_GROUPS * STREAMS,
    MOST_SPLITS = 16, // of an item
    SPLIT_TILES = 1,  // rows of tiles of a warp, from which on an item is split
};

struct attention_part {
    int kv_head, group, stream, split;

    __device__ __forceinline__ attention_part(int n, int splits) {
        int item = n / splits;
        split = n % splits;
        stream = item / (KV_HEADS * HEAD_GROUPS);
        kv_head = item / HEAD_GROUPS % KV_HEADS;
        group = item % HEAD_GROUPS;
    }
};

// Sums of all positions, added: to the input of o_proj. Four floats from 4 * n on.
static __device__ __forceinline__ void store_attention(const struct gpu_task &task,
                                                       const struct attention_part &part, int n,
                                                       const struct merged &all) {
    unsigned short *out = (unsigned short *)task.input;
    const float values[4] = {all.sum.x / all.total.x, all.sum.y / all.total.y,
                             all.sum.z / all.total.x, all.sum.w / all.total.y};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int head = part.group * 8 + n % 4 * 2 + i % 2;
        int dim = n / WARP * TILE + n / 4 % 8 + i / 2 * 8;
        if (head < GROUP_HEADS && dim < HEAD_DIM) {
            int k = (part.kv_head * GROUP_HEADS + head) * HEAD_DIM + dim;
            out[column_index(COLUMN_GROUPS, k, part.stream)] = bf16_bits(values[i]);
        }
    }
}

// The results of the block's warps, and then of the blocks that share an item, added.
static __device__ __forceinline__ void finish_attention(const struct gpu_task &task,
                                                        const struct attention_part &part, int item,
                                                        int splits) {
    float *partial = task.partial + (long long)item * MOST_SPLITS * ATTENTION_PARTIAL;
    float *mine = partial + part.split * ATTENTION_PARTIAL;
    consumers_barrier();
    for (int n = threadIdx.x; n < RESULT_FLOATS / 4; n += THREADS) {
        const struct merged all = merge_results(work_floats(), WARPS, n);
        if (splits == 1) {
            store_attention(task, part, n, all);
        } else {
            *(float4 *)(mine + 4 * n) = all.sum;
            if (n < 4) {
                *(float2 *)(mine + RESULT_FLOATS + n * 2) = all.max;
                *(float2 *)(mine + RESULT_FLOATS + 8 + n * 2) = all.total;
            }
        }
    }
    if (splits > 1 && last_to_arrive(task.arrivals + item, splits))
        for (int n = threadIdx.x; n < RESULT_FLOATS / 4; n += THREADS)
            store_attention(task, part, n, merge_results(partial, splits, n));
    if (INPUT_TILES > 1 && part.kv_head == KV_HEADS - 1 && part.group == HEAD_GROUPS - 1) {
        unsigned short *out = (unsigned short *)task.input; // zeros up to a whole tile of weights
        for (int k = HEADS * HEAD_DIM + threadIdx.x; k < HEADS_TILES * TILE; k += THREADS)
            out[column_index(COLUMN_GROUPS, k, part.stream)] = 0;
    }
    consumers_barrier();
}

// query, cache -> input of o_proj. Parts of an item are added by the block that finishes last. All
// positions but the newest were stored in earlier steps: those need not wait.
static __device__ __forceinline__ void decode_attention(const struct gpu_task &task,
                                                        struct step &step) {
    // As registers allow: values are loaded with their keys; both before the wait. Where lanes
    // copy, below sm_90, there are too few.
    const bool LOADED = BULK_COPIES && HEAD_TILES <= 6, EARLY = BULK_COPIES && HEAD_TILES <= 8;
    const int positions = task.state->position + 1;
    const int tiles = PREFIX_TILES + (positions + TILE - 1) / TILE;
    int splits = (tiles + WARPS * SPLIT_TILES - 1) / (WARPS * SPLIT_TILES);
    int most = (int)gridDim.x / ATTENTION_ITEMS;
    most = most < 1 ? 1 : most < MOST_SPLITS ? most : MOST_SPLITS;
    splits = splits < most ? splits : most;
    for (int n = blockIdx.x; n < (int)blockIdx.x + 1 || n < ATTENTION_ITEMS * splits;
         n += gridDim.x) {
        struct attention_part part(n, splits);
        bool valid = n < ATTENTION_ITEMS * splits;
        int t = valid ? part.split * WARPS + warp_id() : tiles;
        struct tile keys[HEAD_TILES], values[HEAD_TILES];
        struct span s = find_span(task, valid ? part.stream : 0, part.kv_head % KV_HEADS,
                                  t < tiles ? t : tiles - 1);
        bool early = EARLY && t < tiles - 1;
        if (early) {
            load_keys(keys, s, 0);
            if (LOADED)
                load_values(values, s, 0);
        }
        if (n == (int)blockIdx.x)
            step.meeting.wait();
        if (!valid)
            break;

        struct attention a;
        int column = part.group * 8 + lane_id() / 4; // among the kv head's query heads
        int source = task.layer == 0 ? 0 : part.stream;
        const float *query =
            task.query + (source * HEADS + part.kv_head * GROUP_HEADS + column) * HEAD_DIM;
        load_query(a, column < GROUP_HEADS ? query : (const float *)0);
        start_attention(a);
        for (; t < tiles; t += splits * WARPS) {
            if (!early) {
                s = find_span(task, part.stream, part.kv_head, t);
                load_keys(keys, s, 0);
                if (LOADED)
                    load_values(values, s, 0);
            }
            if (cache_row::QUANTIZED && t == tiles - 1)
                s.row.add_newest(task, source, part.kv_head, positions - 1);
            early = false;
            attend_span<LOADED>(a, s, keys, values, positions);
        }
        store_result(a, work_floats() + warp_id() * ATTENTION_PARTIAL);
        finish_attention(task, part, n / splits, splits);
    }
    step.meeting.arrive();
}
