// Weights [rows, K] times a few columns of activations, for decoding. Every weight is read once, by
// one warp, which copies it to its own part of shared memory some steps ahead and needs no other
// warp's leave to read it there: no barrier in the loop. Activations come the same way. The first
// weights are copied before the wait for the previous kernel.
//
// Two ways to share the work: where rows are many, a warp takes a row of tiles; where they are few,
// the warps of a block share the K of one row of tiles and add up in a fixed order (split_run,
// finish_split).

enum {
    WARPS = 8,
    WARP_RING_BYTES = SHARED_BYTES >= 160 << 10 ? 16384 : 8192, // what a warp copies ahead
    THREADS = WARPS * WARP,
    RING_BYTES = WARPS * WARP_RING_BYTES,   // of shared memory, first in all these kernels
    SPLIT_SUM_BYTES = WARPS * WARP * 4 * 4, // of one group of columns: what finish_split adds up
};

// A run of tiles of one row: [first, end); `tiles`: this lane's 16 bytes of the row's first ones.
struct run {
    const struct tile *tiles;
    int first, end;
};

// A format of weights is a struct: the size of its tiles, for a struct stream how the tiles of a
// step are copied and how one of them is multiplied, for a ring (cuda_ring.cu) how one is
// multiplied with activations in registers. This is bf16; an engine with quantised weights has it
// for its adapters.
struct bf16_tiles {
    enum { BYTES = TILE_BYTES, INPUTS = 1 }; // INPUTS: 16s of activations that a tile takes

    template <typename STREAM>
    static __device__ __forceinline__ void copy(const STREAM &stream, int step) {
        int k = stream.run.first + step * STREAM::CHUNK;
#pragma unroll
        for (int i = 0; i < STREAM::CHUNK; i++) // zeros behind the end
            copy_async(stream.tile_place(step, i) + chunk_place(lane_id()),
                       stream.run.tiles + (k + i) * WARP, k + i < stream.run.end);
    }

    template <typename STREAM>
    static __device__ __forceinline__ void
    multiply_tile(const STREAM &stream, float (&sum)[STREAM::GROUPS][4], int step, int i) {
        struct tile weights = stream.tile_place(step, i)[chunk_place(chunk_id())];
#pragma unroll
        for (int group = 0; group < STREAM::GROUPS; group++) {
#pragma unroll
            for (int part = 0; part < STREAM::PARTS; part++)
                multiply(sum[group], weights, *stream.input_place(step, i, group, part));
        }
    }

    // x: [parts, GROUPS]
    template <int GROUPS, int PIECES>
    static __device__ __forceinline__ void multiply_step(float (&sum)[GROUPS][4], const char *tile,
                                                         const struct columns (&x)[PIECES]) {
        struct tile weights = load_fragment((const struct tile *)tile);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
            multiply(sum[piece % GROUPS], weights, x[piece]);
    }
};

// Row `row_tile` of a matrix: this lane's 16 bytes of its first tiles.
template <typename FORMAT>
static __device__ inline const struct tile *matrix_row(const char *matrix, int row_tile,
                                                       int column_tiles) {
    const long long tiles = (long long)row_tile * column_tiles * WEIGHT_PLANES;
    return (const struct tile *)(matrix + tiles * FORMAT::BYTES) + lane_id();
}

// One warp's product: a run of weights times COLUMNS activations in groups of 8, as bf16, or as the
// sum of two bf16: PARTS of them, one behind the other.
template <typename FORMAT, int COLUMNS, int INPUT_PARTS> struct stream {
    enum {
        PARTS = INPUT_PARTS,
        GROUPS = (COLUMNS + 7) / 8,
        INPUTS = FORMAT::INPUTS,
        SLOT_BYTES = FORMAT::BYTES + INPUTS * GROUPS * PARTS * COLUMN_BYTES, // with activations
        FIT = WARP_RING_BYTES / SLOT_BYTES,
        CHUNK = FIT >= 8   ? 4
                : FIT >= 4 ? 2
                           : 1, // tiles of a step
        AHEAD = FIT / CHUNK,    // steps that are under way
        SLOTS = AHEAD * CHUNK,
        EARLY = AHEAD < 2 ? AHEAD : 2, // steps whose weights are copied before the wait: more would
                                       // be in the way of the previous kernel's last loads
    };

    struct run run;
    const struct columns *input; // [parts, column_tiles, INPUTS, groups, WARP]
    int column_tiles;            // the second plane of the weights has the same activations

    // Where the warp keeps tile i of step `step`, and its activations.
    __device__ __forceinline__ struct tile *tile_place(int step, int i) const {
        return (struct tile *)(shared_memory() + warp_id() * WARP_RING_BYTES) +
               (step % AHEAD * CHUNK + i) * (FORMAT::BYTES / 16);
    }

    __device__ __forceinline__ struct columns *input_place(int step, int i, int n, int part) const {
        int slot = ((step % AHEAD * CHUNK + i) * INPUTS * GROUPS + n) * PARTS + part;
        return (struct columns *)(shared_memory() + warp_id() * WARP_RING_BYTES +
                                  SLOTS * FORMAT::BYTES) +
               slot * WARP + lane_id();
    }

    __device__ __forceinline__ void copy_input(int step) const {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            int k = run.first + step * CHUNK + i;
            bool wanted = k < run.end;
            k = WEIGHT_PLANES > 1 && k >= column_tiles ? k - column_tiles : k;
#pragma unroll
            for (int n = 0; n < INPUTS * GROUPS; n++) {
#pragma unroll
                for (int part = 0; part < PARTS; part++)
                    copy_columns(input_place(step, i, n, part),
                                 input + ((part * column_tiles + k) * INPUTS * GROUPS + n) * WARP +
                                     lane_id(),
                                 wanted && n % GROUPS * 8 + lane_id() / 4 < COLUMNS);
            }
        }
    }

    // Before the wait for the previous kernel. These copies are of the first step's group.
    __device__ __forceinline__ void start() const {
#pragma unroll
        for (int step = 0; step < EARLY; step++)
            FORMAT::copy(*this, step);
    }

    // sum += weights x activations
    __device__ __forceinline__ void multiply_into(float (&sum)[GROUPS][4]) const {
        int steps = (run.end - run.first + CHUNK - 1) / CHUNK;
#pragma unroll
        for (int step = 0; step < AHEAD; step++) {
            if (step >= EARLY)
                FORMAT::copy(*this, step);
            copy_input(step);
            commit_copies();
        }
        for (int step = 0; step < steps; step++) {
            wait_copies<AHEAD - 1>();
            __syncwarp();
#pragma unroll
            for (int i = 0; i < CHUNK; i++)
                FORMAT::multiply_tile(*this, sum, step, i);
            __syncwarp();
            FORMAT::copy(*this, step + AHEAD);
            copy_input(step + AHEAD);
            commit_copies();
        }
        wait_copies<0>();
    }
};

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
// (`normed`), and the sums of squares of every 8 rows (`squares` [HIDDEN_TILES, 2, TILE columns]).
// The norm's scale is one factor a column: the product's results are multiplied by it.
static __device__ inline void store_normed(const struct gpu_task &task, int row, int column,
                                           float value) {
    unsigned short *high = (unsigned short *)task.normed;
    int at = column_index(COLUMN_GROUPS, row, column);
    high[at] = bf16_bits(value);
    high[HIDDEN_INPUT_TILES * COLUMN_GROUPS * WARP * 4 + at] =
        bf16_bits(value - from_bf16(high[at]));
}

// The norm's scales of all columns, by the first warps: `begin` loads while the product starts,
// `end` leaves them in shared memory [STREAMS]; a barrier must follow.
struct column_scales {
    enum { COLUMNS = (STREAMS + WARPS - 1) / WARPS, PARTS = (2 * HIDDEN_TILES + WARP - 1) / WARP };

    float squares[COLUMNS][PARTS];

    __device__ __forceinline__ void begin(const struct gpu_task &task) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int i = 0; i < PARTS; i++) {
                int part = i * WARP + lane_id(), column = c * WARPS + warp_id();
                bool wanted = part < 2 * HIDDEN_TILES && column < STREAMS;
                squares[c][i] = wanted ? task.squares[part * TILE + column] : 0.0f;
            }
        }
    }

    __device__ __forceinline__ void end(float *scales) const {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            float sum = 0;
#pragma unroll
            for (int i = 0; i < PARTS; i++)
                sum += squares[c][i];
            sum = warp_sum(sum);
            if (lane_id() == 0 && c * WARPS + warp_id() < STREAMS)
                scales[c * WARPS + warp_id()] = rsqrtf(sum / HIDDEN_SIZE + RMS_NORM_EPS);
        }
    }
};
