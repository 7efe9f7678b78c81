// Weights [rows, K] times a few columns of activations, for decoding: the weights are read once, by
// all warps, straight into registers, two chunks ahead of the tensor core.
//
// Two ways to share the work: where rows are many, a warp takes a row of tiles (row_product); where
// they are few, the warps of a block share the K of one row of tiles and add up in a fixed order
// (split_product, finish_split).

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    CHUNK = COLUMN_GROUPS == 1 ? 8 : 4,       // tiles, as registers allow
    SPLIT_SUM_BYTES = WARPS * WARP * 4 * 4,   // of one group of columns: what finish_split adds up
};

// A run of tiles of one row: [tile, end), this lane's part of each.
struct run {
    const struct tile *tiles;
    int next, end;
};

// Reads the next CHUNK tiles, zeros behind the end.
static __device__ __forceinline__ void read_chunk(struct tile (&chunk)[CHUNK], struct run &run) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        chunk[i] = load_once(run.tiles + (run.next + i) * WARP, run.next + i < run.end);
    run.next += CHUNK;
}

// Activations of a product: COLUMNS of them in groups of 8, as bf16, or as the sum of two bf16: PARTS
// of them, one behind the other. AHEAD: they lie in global memory and are loaded as early as the
// weights.
template <int COLUMNS, int PARTS, bool AHEAD> struct activations {
    enum { GROUPS = (COLUMNS + 7) / 8 };

    const struct columns *all; // [parts, column_tiles, groups, WARP]
    int column_tiles;          // K / 16; the second plane of the weights has the same activations

    __device__ __forceinline__ void load(struct columns (&x)[CHUNK][GROUPS][PARTS], int first,
                                         int end) const {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            int k = first + i < end ? first + i : end - 1; // behind the end the weights are zeros
            k = WEIGHT_PLANES > 1 && k >= column_tiles ? k - column_tiles : k;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++) {
                    struct columns zero = {0, 0};
                    int at = ((part * column_tiles + k) * GROUPS + group) * WARP + lane_id();
                    x[i][group][part] = group * 8 + lane_id() / 4 < COLUMNS ? all[at] : zero;
                }
            }
        }
    }
};

template <int GROUPS, int PARTS>
static __device__ __forceinline__ void multiply_chunk(float (&sum)[GROUPS][4],
                                                      const struct tile (&chunk)[CHUNK],
                                                      const struct columns (&x)[CHUNK][GROUPS][PARTS]) {
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                multiply(sum[group], chunk[i], x[i][group][part]);
        }
    }
}

// sum += the tiles of `run` from `first` on, x the activations. Two chunks of the tiles were read
// before: even, odd.
template <int COLUMNS, int PARTS, bool AHEAD>
static __device__ __forceinline__ void
multiply_run(float (&sum)[(COLUMNS + 7) / 8][4], struct tile (&even)[CHUNK],
             struct tile (&odd)[CHUNK], struct run &run, int first,
             const struct activations<COLUMNS, PARTS, AHEAD> &x) {
    struct columns x_even[CHUNK][(COLUMNS + 7) / 8][PARTS], x_odd[CHUNK][(COLUMNS + 7) / 8][PARTS];
    if (first >= run.end)
        return;
    if (AHEAD) {
        x.load(x_even, first, run.end);
        x.load(x_odd, first + CHUNK, run.end);
    }
    for (int k = first; k < run.end; k += 2 * CHUNK) {
        if (!AHEAD)
            x.load(x_even, k, run.end);
        multiply_chunk(sum, even, x_even);
        read_chunk(even, run);
        if (AHEAD)
            x.load(x_even, k + 2 * CHUNK, run.end);
        else
            x.load(x_odd, k + CHUNK, run.end);
        multiply_chunk(sum, odd, x_odd);
        read_chunk(odd, run);
        if (AHEAD)
            x.load(x_odd, k + 3 * CHUNK, run.end);
    }
}

// This warp's part of the K of a row of tiles.
static __device__ inline struct run split_run(const struct tile *row, int column_tiles) {
    int tiles = column_tiles * WEIGHT_PLANES, share = (tiles + WARPS - 1) / WARPS;
    int first = warp_id() * share, end = first + share;
    struct run run = {row, first < tiles ? first : tiles, end < tiles ? end : tiles};
    return run;
}

// Where a lane's rows and column lie in a product of one group of columns: for threads
// 0..16 * columns - 1 of finish_split.
struct place {
    int row;    // 0..7; the other one is row + 8
    int column; //
};

static __device__ inline struct place split_place(int thread) {
    int lane = thread / 2 % WARP;
    struct place place = {lane / 4, thread / (2 * WARP) * 8 + lane % 4 * 2 + thread % 2};
    return place;
}

// Leaves every warp's sums in shared memory: sums [groups, WARPS, WARP, 4].
template <int GROUPS>
static __device__ __forceinline__ void share_sums(float *sums, const float (&sum)[GROUPS][4]) {
#pragma unroll
    for (int group = 0; group < GROUPS; group++) {
#pragma unroll
        for (int i = 0; i < 4; i++)
            sums[((group * WARPS + warp_id()) * WARP + lane_id()) * 4 + i] = sum[group][i];
    }
    __syncthreads();
}

// The sum over the warps, in order, for the rows of split_place(thread): row, row + 8.
static __device__ inline float2 finish_split(const float *sums, int thread) {
    const float *first = sums + thread / (2 * WARP) * WARPS * WARP * 4;
    float2 total = make_float2(0.0f, 0.0f);
    for (int warp = 0; warp < WARPS; warp++) {
        const float *mine = first + (warp * WARP + thread / 2 % WARP) * 4 + thread % 2;
        total.x += mine[0];
        total.y += mine[2];
    }
    return total;
}

// The sum of x over the warp, the same in all lanes.
static __device__ inline float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// Columns x [STREAMS, hidden] times the norm's weight, as activations in shared memory, low parts
// too if LOW. The norm's scale is one factor a column: column_scale gives it, the caller multiplies
// its product by it. squares [STREAMS, WARPS]: partial sums of squares. Ends with a barrier.
template <bool LOW>
static __device__ __forceinline__ void weigh_columns(const float *x, int count, const float *weight,
                                                     struct columns *out, float *squares) {
    const int parts = STREAMS < WARPS ? WARPS / STREAMS : 1;
    for (int c = warp_id() / parts; c < count; c += WARPS / parts) {
        const int part = warp_id() % parts;
        const float *column = x + (long long)c * HIDDEN_SIZE;
        float sum = 0;
#pragma unroll 4
        for (int i = part * WARP + lane_id(); i < HIDDEN_SIZE / 4; i += parts * WARP) {
            int k = i / 4 * TILE + i % 4 * 2;
            float2 a = *(const float2 *)(column + k), b = *(const float2 *)(column + k + 8);
            float2 u = *(const float2 *)(weight + k), v = *(const float2 *)(weight + k + 8);
            sum += a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y;
            a = make_float2(a.x * u.x, a.y * u.y);
            b = make_float2(b.x * v.x, b.y * v.y);
            int at = (i / 4 * COLUMN_GROUPS + c / 8) * WARP + c % 8 * 4 + i % 4;
            struct columns high = {to_bf16(a.x, a.y), to_bf16(b.x, b.y)};
            out[at] = high;
            if (LOW) {
                struct columns low = {low_parts(high.x, a.x, a.y), low_parts(high.y, b.x, b.y)};
                out[HIDDEN_TILES * COLUMN_GROUPS * WARP + at] = low;
            }
        }
        sum = warp_sum(sum);
        if (lane_id() == 0)
            squares[c * WARPS + part] = sum;
    }
    __syncthreads();
}

static __device__ inline float column_scale(const float *squares, int column) {
    const int parts = STREAMS < WARPS ? WARPS / STREAMS : 1;
    float sum = 0;
    for (int part = 0; part < parts; part++)
        sum += squares[column * WARPS + part];
    return rsqrtf(sum / HIDDEN_SIZE + RMS_NORM_EPS);
}
