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
    // Of a decode step: the warp behind those is the producer. Where warpgroups can pass registers
    // on, there are three more, which only give theirs.
    STEP_THREADS = THREADS + (WARPGROUPS ? 4 : 1) * WARP,
    WARP_SUM_FLOATS = WARP * 4, // what a warp leaves of a row of tiles and 8 columns
    SPLIT_SUM_FLOATS = WARPS * WARP_SUM_FLOATS,
};

// A format of weights is a struct: the size of its tiles, how many 16s of activations one takes,
// and how one in shared memory is multiplied with these in registers: x [parts, INPUTS, GROUPS] and
// what `complete` makes of it. This is bf16; an engine with quantised weights has it for its
// adapters.
struct bf16_tiles {
    enum { BYTES = TILE_BYTES, INPUTS = 1 };

    template <int GROUPS, int PIECES> struct input {
        struct columns x[PIECES];

        __device__ __forceinline__ void complete() {
        }
    };

    template <int GROUPS, int PIECES>
    static __device__ __forceinline__ void multiply_tile(float (&sum)[GROUPS][4], const char *tile,
                                                         const struct input<GROUPS, PIECES> &in) {
        struct tile weights = load_fragment((const struct tile *)tile);
#pragma unroll
        for (int piece = 0; piece < PIECES; piece++)
            multiply(sum[piece % GROUPS], weights, in.x[piece]);
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

static __device__ inline float4 add(const float4 &a, const float4 &b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// The same of two sums as a product of COLUMNS columns leaves them; with one, nobody reads the
// second of each pair.
template <int COLUMNS>
static __device__ __forceinline__ float4 add_sums(const float (&a)[4], const float (&b)[4]) {
    return make_float4(a[0] + b[0], COLUMNS > 1 ? a[1] + b[1] : 0, a[2] + b[2],
                       COLUMNS > 1 ? a[3] + b[3] : 0);
}

// The sum of x over the warp, the same in all lanes.
static __device__ inline float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// Tells two activations of a column, k and k + 1, k even: the words of their bf16 numbers and of
// what these leave, in 8 bytes. `to`: as column_index has them.
static __device__ inline void tell_pair(float *to, int groups, int k, int column, float even,
                                        float odd, unsigned round) {
    unsigned high = to_bf16(even, odd);
    tell((float2 *)(to + column_index(groups, k, column)),
         make_float2(__uint_as_float(high), __uint_as_float(low_parts(high, even, odd))), round);
}

// The input of the next product with all rows, told by those who have rows of the residual: that
// times the norm's weight, [hidden, STREAMS] pairs, and for every column the sums of squares of 8
// rows each, from which everyone makes the norm's scale: the product's results are multiplied by
// it.
enum { FOR_QKV, FOR_MLP, FOR_HEAD, TOLD_INPUTS };

struct told_input {
    enum {
        FLOATS = HIDDEN_TILES * COLUMN_GROUPS * WARP * 4,
        PARTS = 2 * HIDDEN_TILES, // sums of squares of a column
    };

    float *normed, *squares;
    unsigned round;

    __device__ __forceinline__ told_input(const struct gpu_task &task, int which, unsigned r) {
        normed = task.inputs + which * FLOATS;
        squares = task.inputs + TOLD_INPUTS * FLOATS + which * PARTS * STREAMS;
        round = r;
    }
};

// The norm's scales of all columns, by the first warps: `begin` looks while the product starts,
// `end` leaves them in shared memory [STREAMS]; a barrier must follow.
struct column_scales {
    enum {
        COLUMNS = (STREAMS + WARPS - 1) / WARPS,
        PARTS = (told_input::PARTS + WARP - 1) / WARP,
    };

    float squares[COLUMNS * PARTS];

    __device__ __forceinline__ void begin(const struct told_input &in) {
#pragma unroll
        for (int i = 0; i < COLUMNS * PARTS; i++) {
            int column = i / PARTS * WARPS + warp_id(), part = i % PARTS * WARP + lane_id();
            tell_nothing(squares[i], in.round);
            if (part < told_input::PARTS && column < STREAMS)
                squares[i] = look(in.squares + column * told_input::PARTS + part, in.round);
        }
    }

    __device__ __forceinline__ void end(const struct told_input &in, float *scales) {
        if (warp_id() >= STREAMS)
            return;
        while (look_again(strange(squares, in.round)))
            begin(in);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int column = c * WARPS + warp_id();
            float sum = 0;
            if (column < STREAMS) {
#pragma unroll
                for (int i = 0; i < PARTS; i++)
                    sum += without_round(squares[c * PARTS + i]);
                sum = warp_sum(sum);
                if (lane_id() == 0)
                    scales[column] = rsqrtf(sum * (1.0f / HIDDEN_SIZE) + RMS_NORM_EPS);
            }
        }
    }
};
