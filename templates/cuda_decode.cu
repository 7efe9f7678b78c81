// The layers of a decode step: all streams are columns of each product. The phases of a layer, q|k|v,
// attention, o, gate and up, down, follow each other; between two of them all blocks meet. Before it
// waits there, a block loads what no other block writes; its weights arrive all the time.

// What a block carries from phase to phase.
struct step {
    struct ring ring;
    struct meeting meeting;
};

// Item threadIdx.x + i * THREADS of a batch of rows of tiles, gridDim.x apart from `first` on: a
// thread finishes two rows of one column.
enum { FINISHES = SUM_ROWS * COLUMN_GROUPS * 64 / THREADS };

struct finish {
    int row_tile, thread; // thread: of finish_split
    struct place at;
    const float *sums;
    bool mine;

    __device__ __forceinline__ finish(int i, int first, int row_tiles) {
        const int each = COLUMN_GROUPS * 64;
        int n = threadIdx.x + i * THREADS;
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
typedef struct row_product<layer_tiles, DOWN_COLUMN_TILES, WEIGHT_PLANES, 1, INTERMEDIATE_TILES,
                           STREAMS>
    down_product;

// normed -> query, cache. In layer 0 all streams have one input.
static __device__ __forceinline__ void decode_qkv(const struct gpu_task &task, struct step &step) {
    const int columns = task.layer == 0 ? 1 : STREAMS, position = task.state->position;
    float *scales = workplace()->scales;
    int first = blockIdx.x;
    do {
        struct qkv_terms terms[FINISHES];
#pragma unroll
        for (int i = 0; i < FINISHES; i++) {
            struct finish f(i, first, QKV_ROW_TILES);
            terms[i] = find_terms(task, f.mine ? f.row_tile : 0, f.at.row, position);
        }
        if (first == blockIdx.x)
            step.meeting.wait();
        struct column_scales norm;
        norm.begin(task);
        qkv_product::multiply_rows(step.ring, task.normed, batch_rows(first, QKV_ROW_TILES));
        norm.end(scales);
        consumers_barrier();
#pragma unroll
        for (int i = 0; i < FINISHES; i++) {
            struct finish f(i, first, QKV_ROW_TILES);
            if (f.mine && f.at.column < columns) {
                float2 y = finish_split(f.sums, f.thread);
                float scale = scales[f.at.column];
                store_qkv(task, f.row_tile, f.at.row, 0, f.at.column, position, terms[i],
                          y.x * scale, y.y * scale);
            }
        }
        first += SUM_ROWS * gridDim.x;
        if (first < QKV_ROW_TILES)
            consumers_barrier();
    } while (first < QKV_ROW_TILES);
    step.meeting.arrive();
}

// residual += W x, for o_proj and down_proj, and the input of the next product, whose norm has the
// weights `norm`. A row of tiles has one owner, who alone reads and writes its residual.
template <typename PRODUCT>
static __device__ __forceinline__ void decode_residual(const struct gpu_task &task,
                                                       struct step &step, const char *input,
                                                       const float *norm) {
    int first = blockIdx.x;
    do {
        float2 before[FINISHES], weight[FINISHES];
#pragma unroll
        for (int i = 0; i < FINISHES; i++) {
            struct finish f(i, first, HIDDEN_TILES);
            if (f.mine) {
                const float *x = task.residual + f.at.column * HIDDEN_SIZE + f.row_tile * TILE;
                before[i] = make_float2(x[f.at.row], x[f.at.row + 8]);
                const float *w = norm + f.row_tile * TILE + f.at.row;
                weight[i] = make_float2(w[0], w[8]);
            }
        }
        if (first == blockIdx.x)
            step.meeting.wait();
        PRODUCT::multiply_rows(step.ring, input, batch_rows(first, HIDDEN_TILES));
        consumers_barrier();
#pragma unroll
        for (int i = 0; i < FINISHES; i++) {
            struct finish f(i, first, HIDDEN_TILES);
            float square = 0;
            if (f.mine) {
                int row = f.row_tile * TILE + f.at.row;
                float *out = task.residual + f.at.column * HIDDEN_SIZE + row;
                float2 y = finish_split(f.sums, f.thread);
                y = make_float2(before[i].x + y.x, before[i].y + y.y);
                out[0] = y.x;
                out[8] = y.y;
                store_normed(task, row, f.at.column, y.x * weight[i].x);
                store_normed(task, row + 8, f.at.column, y.y * weight[i].y);
                square = y.x * y.x + y.y * y.y;
            }
            // Each warp has 4 pairs of rows of 8 columns.
            square += __shfl_xor_sync(0xffffffff, square, 8);
            square += __shfl_xor_sync(0xffffffff, square, 16);
            if (lane_id() < 8 && f.mine)
                task.squares[(f.row_tile * 2 + warp_id() % 2) * TILE + f.at.column] = square;
        }
        first += SUM_ROWS * gridDim.x;
        if (first < HIDDEN_TILES)
            consumers_barrier();
    } while (first < HIDDEN_TILES);
    step.meeting.arrive();
}

// silu(gate) * up; the fast functions' error is far below a bf16's.
static __device__ inline float swiglu(float gate, float up) {
    return fast_quotient(gate, 1.0f + power_of_two(-1.44269504f * gate)) * up;
}

// normed -> activation = silu(gate) * up. A row of tiles is 8 gates and their 8 ups.
static __device__ __forceinline__ void decode_gate_up(const struct gpu_task &task,
                                                      struct step &step) {
    float *scales = workplace()->scales;
    unsigned short *out = (unsigned short *)task.activation;
    int first = blockIdx.x;
    step.meeting.wait();
    do {
        struct column_scales norm;
        norm.begin(task);
        gate_up_product::multiply_rows(step.ring, task.normed,
                                       batch_rows(first, GATE_UP_ROW_TILES));
        norm.end(scales);
        consumers_barrier();
#pragma unroll
        for (int i = 0; i < FINISHES; i++) {
            struct finish f(i, first, GATE_UP_ROW_TILES);
            if (f.mine) {
                float2 y = finish_split(f.sums, f.thread);
                float scale = scales[f.at.column];
                out[column_index(COLUMN_GROUPS, f.row_tile * 8 + f.at.row, f.at.column)] =
                    bf16_bits(swiglu(y.x * scale, y.y * scale));
            }
        }
        first += SUM_ROWS * gridDim.x;
        if (first < GATE_UP_ROW_TILES)
            consumers_barrier();
    } while (first < GATE_UP_ROW_TILES);
    step.meeting.arrive();
}

// Whether this block is the last of `count` that arrive; what they wrote before is then seen. One
// thread's fences are enough: barriers carry what they order to the other threads.
static __device__ inline bool last_to_arrive(unsigned *arrivals, unsigned count) {
    unsigned *before = &workplace()->word;
    consumers_barrier();
    if (threadIdx.x == 0) {
        __threadfence();
        *before = atomicInc(arrivals, count - 1);
        __threadfence();
    }
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
                                                        const struct attention_part &part,
                                                        int item, int splits) {
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
    const bool LOADED = HEAD_TILES <= 10; // registers allow to load values with their keys
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
        bool early = t < tiles - 1;
        if (early) {
            load_keys(keys, s, 0);
            if (LOADED)
                load_values(values, s, 0);
        }
        if (n == (int)blockIdx.x)
            step.meeting.wait();
        if (!valid)
            break;

        struct attention<1> a;
        int column = part.group * 8 + lane_id() / 4; // among the kv head's query heads
        int source = task.layer == 0 ? 0 : part.stream;
        const float *query =
            task.query + (source * HEADS + part.kv_head * GROUP_HEADS + column) * HEAD_DIM;
        load_query(a, 0, column < GROUP_HEADS ? query : (const float *)0);
        start_attention(a);
        const int seen[1][2] = {{positions, positions}};
        for (; t < tiles; t += splits * WARPS) {
            if (!early) {
                s = find_span(task, part.stream, part.kv_head, t);
                load_keys(keys, s, 0);
                if (LOADED)
                    load_values(values, s, 0);
            }
            early = false;
            attend_span<1, LOADED>(a, s, keys, values, seen);
        }
        store_result(a, work_floats() + warp_id() * ATTENTION_PARTIAL);
        finish_attention(task, part, n / splits, splits);
    }
    step.meeting.arrive();
}
