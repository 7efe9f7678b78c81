// Weights [rows, K] times a few columns of activations, for decoding. Every weight is read once, by
// one lane, which copies it to its own place in shared memory some steps ahead and needs nobody's
// leave to read it there: no barrier in the loop. The first steps are copied before the wait for the
// previous kernel.
//
// Two ways to share the work: where rows are many, a warp takes a row of tiles; where they are few,
// the warps of a block share the K of one row of tiles and add up in a fixed order (split_run,
// finish_split).

enum {
    WARPS = 8,
    THREADS = WARPS * WARP,
    CHUNK = COLUMN_GROUPS == 1 ? 8 : 4,       // tiles of a step, as registers allow
    STEPS_AHEAD = RING_TILES / CHUNK,         // that are copied
    RING_BYTES = WARPS * RING_TILES * TILE_BYTES, // of shared memory, first in all these kernels
    SPLIT_SUM_BYTES = WARPS * WARP * 4 * 4,   // of one group of columns: what finish_split adds up
};

// A run of tiles of one row: [first, end), this lane's part of each.
struct run {
    const struct tile *tiles;
    int first, end;
};

// This lane's part of the warp's ring.
static __device__ inline struct tile *ring_tiles() {
    return (struct tile *)shared_memory() + warp_id() * RING_TILES * WARP + lane_id();
}

// Starts copying step `step` of a run, zeros behind the end.
static __device__ __forceinline__ void copy_chunk(const struct run &run, int step) {
    struct tile *slot = ring_tiles() + step % STEPS_AHEAD * CHUNK * WARP;
    const struct tile *from = run.tiles + (run.first + step * CHUNK) * WARP;
    int left = run.end - run.first - step * CHUNK;
#pragma unroll
    for (int i = 0; i < CHUNK; i++)
        copy_async(slot + i * WARP, from + i * WARP, i < left);
    commit_copies();
}

static __device__ __forceinline__ void start_run(const struct run &run) {
#pragma unroll
    for (int step = 0; step < STEPS_AHEAD; step++)
        copy_chunk(run, step);
}

// Activations of a product in global memory: COLUMNS of them in groups of 8, as bf16, or as the sum
// of two bf16: PARTS of them, one behind the other.
template <int COLUMNS, int PARTS> struct activations {
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

// sum += step `step` of a run, x its activations; then the step's place takes a later one.
template <int GROUPS, int PARTS>
static __device__ __forceinline__ void multiply_chunk(float (&sum)[GROUPS][4], const struct run &run,
                                                      int step,
                                                      const struct columns (&x)[CHUNK][GROUPS][PARTS]) {
    const struct tile *slot = ring_tiles() + step % STEPS_AHEAD * CHUNK * WARP;
    wait_copies<STEPS_AHEAD - 1>();
#pragma unroll
    for (int i = 0; i < CHUNK; i++) {
        struct tile weights = slot[i * WARP];
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
#pragma unroll
            for (int part = 0; part < PARTS; part++)
                multiply(sum[group], weights, x[i][group][part]);
        }
    }
    copy_chunk(run, step + STEPS_AHEAD);
}

// sum += the tiles of a run that was started x the activations. These are loaded one step ahead.
template <int COLUMNS, int PARTS>
static __device__ __forceinline__ void multiply_run(float (&sum)[(COLUMNS + 7) / 8][4],
                                                    const struct run &run,
                                                    const struct activations<COLUMNS, PARTS> &x) {
    struct columns even[CHUNK][(COLUMNS + 7) / 8][PARTS], odd[CHUNK][(COLUMNS + 7) / 8][PARTS];
    int steps = (run.end - run.first + CHUNK - 1) / CHUNK;
    if (steps > 0)
        x.load(even, run.first, run.end);
    for (int step = 0; step < steps; step += 2) {
        x.load(odd, run.first + (step + 1) * CHUNK, run.end);
        multiply_chunk(sum, run, step, even);
        if (step + 1 < steps) {
            x.load(even, run.first + (step + 2) * CHUNK, run.end);
            multiply_chunk(sum, run, step + 1, odd);
        }
    }
    wait_copies<0>();
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

// The residual's columns as the next product's input: times the norm's weight, in two parts
// (`normed`), and the sums of squares of every 8 rows (`squares` [HIDDEN_TILES, 2, TILE columns]). The
// norm's scale is one factor a column: the product's results are multiplied by it.
static __device__ inline void store_normed(const struct gpu_task &task, int row, int column,
                                           float value) {
    unsigned short *high = (unsigned short *)task.normed;
    int at = column_index(COLUMN_GROUPS, row, column);
    high[at] = bf16_bits(value);
    high[HIDDEN_TILES * COLUMN_GROUPS * WARP * 4 + at] = bf16_bits(value - from_bf16(high[at]));
}

// scales [STREAMS] in shared memory; a barrier must follow. Each warp some columns.
static __device__ __forceinline__ void column_scales(const struct gpu_task &task, float *scales) {
    for (int column = warp_id(); column < STREAMS; column += WARPS) {
        float sum = 0;
        for (int i = lane_id(); i < 2 * HIDDEN_TILES; i += WARP)
            sum += task.squares[i * TILE + column];
        sum = warp_sum(sum);
        if (lane_id() == 0)
            scales[column] = rsqrtf(sum / HIDDEN_SIZE + RMS_NORM_EPS);
    }
}
