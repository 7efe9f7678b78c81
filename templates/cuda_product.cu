// Weights times a few columns of activations, in a kernel that stays for a whole decode step. Each
// block, one on a multiprocessor, has a ring of slots in shared memory. A warp of its own, the
// producer, fills it with the tiles that the block will multiply, in that order, through all phases
// and layers, and waits for nothing but room: so memory is read also while the other warps wait for
// what other blocks compute. A slot is up to SLOT_TILES tiles of one row of tiles; the warps take
// them in turn and their sums are added in one order. Activations come to registers, each warp only
// what its tiles need.

enum {
    WARPS = 8, // that multiply
    THREADS = WARPS * WARP,
    STEP_THREADS = THREADS + WARP, // of a decode step: the last warp is the producer
    WARP_SUM_FLOATS = WARP * 4,    // what a warp leaves of a row of tiles and 8 columns
    SPLIT_SUM_FLOATS = WARPS * WARP_SUM_FLOATS,
};

// A format of weights is a struct: the size of its tiles, how many 16s of activations one takes,
// and how one in shared memory is multiplied with activations x [parts, INPUTS, GROUPS] in
// registers. This is bf16; an engine with quantised weights has it for its adapters.
struct bf16_tiles {
    enum { BYTES = TILE_BYTES, INPUTS = 1 };

    template <int GROUPS, int PIECES>
    static __device__ __forceinline__ void multiply_tile(float (&sum)[GROUPS][4], const char *tile,
                                                         const struct columns (&x)[PIECES]) {
        struct tile weights = load_fragment((const struct tile *)tile);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
            multiply(sum[piece % GROUPS], weights, x[piece]);
    }
};

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

// The sum over the warps, in order, for the rows of split_place(thread): row, row + 8. sums:
// [groups of columns, WARPS, WARP, 4].
static __device__ inline float2 finish_split(const float *sums, int thread) {
    const float *first = sums + thread / (2 * WARP) * SPLIT_SUM_FLOATS;
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
            int column = c * WARPS + warp_id();
            float sum = 0;
            if (column < STREAMS) {
#pragma unroll
                for (int i = 0; i < PARTS; i++)
                    sum += squares[c][i];
                sum = warp_sum(sum);
                if (lane_id() == 0)
                    scales[column] = rsqrtf(sum / HIDDEN_SIZE + RMS_NORM_EPS);
            }
        }
    }
};
