// Weights times a few columns of activations, in a kernel that stays for a whole decode step. Each
// block, one on a multiprocessor, has a ring of slots in shared memory. A warp of its own, the
// producer, fills it with the tiles that the block will multiply, in that order, through all phases
// and layers, and waits for nothing but room: so memory is read also while the other warps wait for
// what other blocks compute. A slot is up to SLOT_TILES tiles of one row of tiles; each warp has
// some that follow each other, and their sums are added in one order. Activations come to
// registers, each warp only what its tiles need.

enum {
    WARPS = 8, // that multiply
    THREADS = WARPS * WARP,
    // Of a decode step: the warp behind those is the producer. Where warpgroups can pass registers
    // on, there are three more, which only give theirs.
    STEP_THREADS = THREADS + (WARPGROUPS ? 4 : 1) * WARP,
};

// What the warps leave of a row of tiles and a group of 8 columns: sums [WARPS, 8, LEFT] of rows g
// and g + 8 of the columns that are used.
template <int COLUMNS> struct split_sums {
    enum {
        LEFT = COLUMNS > 4   ? 8
               : COLUMNS > 2 ? 4
                             : COLUMNS,
        WARP_SUMS = 8 * LEFT,
        FLOATS = WARPS * WARP_SUMS * 2,
        GROUPS = (COLUMNS + 7) / 8,
        ROW_FLOATS = GROUPS * FLOATS,   // of all columns of a row of tiles
        FINISHERS = GROUPS * WARP_SUMS, // threads that add up those of the warps, see finish_split
    };

    // By all lanes of a warp, g and i as in a product's results: `sum`, of columns 2i and 2i + 1.
    static __device__ __forceinline__ void leave(float *sums, int g, int i, const float4 &sum) {
        float2 *to = (float2 *)sums + warp_id() * WARP_SUMS + g * LEFT;
        if (LEFT == 1 && i == 0)
            *to = make_float2(sum.x, sum.z);
        if (2 * i < LEFT && LEFT > 1)
            *(float4 *)(to + 2 * i) = make_float4(sum.x, sum.z, sum.y, sum.w);
    }
};

// Up to four columns of activations leave most of a product's eight free. There stand those of the
// tiles that follow, EACH columns apart, if a format gains by it: a lane loads the activations of
// one of up to TILES tiles, the sums of these tiles are in columns of their own and take their
// scales together, and those are added up last.
template <typename FORMAT, int COLUMNS> struct side_by_side {
    enum { EACH = FORMAT::SCALES ? split_sums<COLUMNS>::LEFT : 8, TILES = 8 / EACH };

    // Which of the tiles is this lane's, and which lane has its activations where there is but one.
    static __device__ __forceinline__ int tile() {
        return lane_id() / 4 / EACH;
    }

    static __device__ __forceinline__ int lane() {
        return lane_id() % (4 * EACH);
    }

    // Of tiles side by side in a product's results: what lane_id() has there, as in one.
    static __device__ __forceinline__ float4 add_up(float4 sum) {
        if (EACH == 1)
            sum = make_float4(sum.x + sum.y, 0, sum.z + sum.w, 0);
#pragma unroll
        for (int distance = EACH / 2 > 0 ? EACH / 2 : 1; distance < 4; distance *= 2) {
            sum.x += __shfl_xor_sync(0xffffffff, sum.x, distance);
            sum.z += __shfl_xor_sync(0xffffffff, sum.z, distance);
            if (EACH > 1) {
                sum.y += __shfl_xor_sync(0xffffffff, sum.y, distance);
                sum.w += __shfl_xor_sync(0xffffffff, sum.w, distance);
            }
        }
        return sum;
    }
};

// Activations, or zeros: found once, not in every use.
static __device__ __forceinline__ struct columns only(const struct columns &x, bool mine) {
    return {opaque(mine ? x.x : 0), opaque(mine ? x.y : 0)};
}

// A format of weights is a struct: the size of its tiles, how many 16s of activations one takes,
// and how tiles in shared memory are multiplied with these in registers. This is bf16; an engine
// with quantised weights has it for its adapters.
struct bf16_tiles {
    enum { BYTES = TILE_BYTES, INPUTS = 1, SCALES = 0 };

    // Two activations of a column: the words of their bf16 numbers and of what these leave.
    static __device__ __forceinline__ struct columns pair(float even, float odd) {
        unsigned high = to_bf16(even, odd);
        return {high, low_parts(high, even, odd)};
    }

    // Two words of numbers without their low parts, the lowest bit of the second word free: of a
    // magnitude between 2^-63 and 2^64 bits 29 and 30 differ, one of them says enough.
    static __device__ __forceinline__ struct columns four(float a, float b, float c, float d) {
        const float magnitude = fminf(fmaxf(fabsf(d), 0x1p-63f), 0x1.fep63f);
        unsigned word = to_bf16(c, copysignf(magnitude, d));
        return {to_bf16(a, b), word << 3 | word >> 29};
    }

    static __device__ __forceinline__ struct columns from_four(float x, float y) {
        const unsigned bit = 1u << 29, told = __float_as_uint(y), word = told >> 3 | told << 29;
        struct columns words = pair_of(x, y);
        words.y = (word & ~bit) | (~(word >> 1) & bit);
        return words;
    }

    // What a product's sums are.
    static __device__ __forceinline__ float4 results(const float4 &sum) {
        return sum;
    }

    // How a lane takes the activations of two pairs of columns.
    static __device__ __forceinline__ struct columns ordered(const struct columns &x) {
        return x;
    }

    // Activations of tiles side by side: x [TILES, parts, INPUTS, GROUPS], zeros in other tiles'
    // columns.
    template <int GROUPS, int PIECES, int TILES> struct input {
        struct columns x[TILES][PIECES];

        // mine: of tile `tile`, this lane's.
        __device__ __forceinline__ void take(const struct columns (&mine)[PIECES], int tile) {
#pragma unroll
            for (int t = 0; t < TILES; t++) {
#pragma unroll
                for (int i = 0; i < PIECES; i++)
                    x[t][i] = TILES == 1 ? mine[i] : only(mine[i], t == tile);
            }
        }
    };

    // sums += `count` tiles of each of ROWS rows, `apart` bytes from each other; the first one is
    // tile n of several.
    template <int EACH, int ROWS, int GROUPS, int PIECES, int TILES>
    static __device__ __forceinline__ void
    multiply_tiles(float (&sums)[ROWS][2][GROUPS][4], int n, const char *const (&tiles)[ROWS],
                   int apart, int count, const struct input<GROUPS, PIECES, TILES> &in) {
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (t >= count)
                break;
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                struct tile weights = load_fragment((const struct tile *)(tiles[r] + t * apart));
#pragma unroll
                for (int piece = 0; piece < PIECES; piece++)
                    multiply(sums[r][(n + t) % 2][piece % GROUPS], weights, in.x[t][piece]);
            }
        }
    }
};

// Of which rows and column of a row of tiles a thread below FINISHERS adds up the warps' sums.
struct place {
    unsigned row;    // 0..7; the other one is row + 8
    unsigned column; //
};

template <int COLUMNS> static __device__ inline struct place split_place(unsigned thread) {
    enum { LEFT = split_sums<COLUMNS>::LEFT };
    struct place place = {thread / LEFT % 8, thread / (8 * LEFT) * 8 + thread % LEFT};
    return place;
}

// Which thread that is.
template <int COLUMNS> static __device__ inline int split_thread(int row, int column) {
    typedef struct split_sums<COLUMNS> split;
    return column / 8 * split::WARP_SUMS + row * split::LEFT + column % 8;
}

// That sum, in order, for the rows of split_place(thread): row, row + 8. sums: [groups of columns,
// split_sums].
template <int COLUMNS>
static __device__ inline float2 finish_split(const float *sums, unsigned thread) {
    typedef struct split_sums<COLUMNS> split;
    const float2 *mine =
        (const float2 *)sums +
        opaque(thread / split::WARP_SUMS * WARPS * split::WARP_SUMS + thread % split::WARP_SUMS);
    float2 total = make_float2(0.0f, 0.0f);
    for (int warp = 0; warp < WARPS; warp++) {
        const float2 sum = mine[warp * split::WARP_SUMS];
        total = make_float2(total.x + sum.x, total.y + sum.y);
    }
    return total;
}

static __device__ inline float4 add(const float4 &a, const float4 &b) {
    return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
}

// The same of two sums as a product leaves them.
static __device__ __forceinline__ float4 add(const float (&a)[4], const float (&b)[4]) {
    return make_float4(a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]);
}

static __device__ __forceinline__ float4 shuffle(const float4 &x, int distance) {
    return make_float4(
        __shfl_xor_sync(0xffffffff, x.x, distance), __shfl_xor_sync(0xffffffff, x.y, distance),
        __shfl_xor_sync(0xffffffff, x.z, distance), __shfl_xor_sync(0xffffffff, x.w, distance));
}

// The sum of x over the warp, the same in all lanes.
static __device__ inline float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// Of x of every lane, a row each of 16: this one's, the next one's, and those of the rows 8
// further.
static __device__ __forceinline__ float4 four_rows(float x) {
    const float next = __shfl_xor_sync(0xffffffff, x, 1);
    return make_float4(x, next, __shfl_xor_sync(0xffffffff, x, 8),
                       __shfl_xor_sync(0xffffffff, next, 8));
}

// How activations are told: told_pairs, two of a column and what their numbers leave, of which a
// product takes PARTS parts; told_fours, those that a lane needs together, their numbers alone.
// `to`: as lane_place has it.
template <typename FORMAT, int OF_PARTS> struct told_pairs {
    typedef float4 number;
    enum { PARTS = OF_PARTS };

    static __device__ __forceinline__ void tell_pair(float *to, unsigned groups, unsigned k,
                                                     unsigned column, float even, float odd,
                                                     unsigned round) {
        const struct columns words = FORMAT::pair(even, odd);
        tell((float2 *)to + (lane_place(groups, k, column) * 2 + k % TILE / 8),
             make_float2(__uint_as_float(words.x), __uint_as_float(words.y)), round);
    }

    // Elements k, k + 1, k + 8, k + 9, k % 16 an even number below 8.
    static __device__ __forceinline__ void tell_four(float *to, unsigned groups, unsigned k,
                                                     unsigned column, const float4 &x,
                                                     unsigned round) {
        tell_pair(to, groups, k, column, x.x, x.y, round);
        tell_pair(to, groups, k + 8, column, x.z, x.w, round);
    }

    // Part n of what was told.
    static __device__ __forceinline__ struct columns part(const float4 &told, int n) {
        const float4 x = without_round(told);
        return n ? pair_of(x.y, x.w) : pair_of(x.x, x.z);
    }
};

template <typename FORMAT> struct told_fours {
    typedef float2 number;
    enum { PARTS = 1 };

    static __device__ __forceinline__ void tell_four(float *to, unsigned groups, unsigned k,
                                                     unsigned column, const float4 &x,
                                                     unsigned round) {
        const struct columns words = FORMAT::four(x.x, x.y, x.z, x.w);
        tell((float2 *)to + lane_place(groups, k, column),
             make_float2(__uint_as_float(words.x), __uint_as_float(words.y)), round);
    }

    static __device__ __forceinline__ struct columns part(const float2 &told, int) {
        return FORMAT::from_four(told.x, told.y);
    }
};

// An adapter's: bf16 in all engines, with the low parts.
typedef struct told_pairs<bf16_tiles, 2> adapter_told;

// The input of the next product with all rows, told by those who have rows of the residual: that
// times the norm's weight, [hidden, STREAMS], and for every column the sums of squares of 8
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
    int which;

    __device__ __forceinline__ told_input(const struct gpu_task &task, int product, unsigned r) {
        which = product;
        normed = task.inputs + which * FLOATS;
        squares = task.inputs + TOLD_INPUTS * FLOATS + which * PARTS * STREAMS;
        round = r;
    }
};

// The norm's scales of all columns, by the last warps, as the first one shares its scheduler with
// the producer: `begin` looks while the product starts, `end` leaves them in shared memory
// [STREAMS]; a barrier must follow.
struct column_scales {
    enum {
        COLUMNS = (STREAMS + WARPS - 1) / WARPS,
        // Numbers that a lane looks for together: with few bytes a weight two, as more is awaited
        // there than memory.
        TOGETHER = LAYER_TILE_BYTES == (int)TILE_BYTES ? 1 : 2,
        PARTS = (told_input::PARTS + TOGETHER * WARP - 1) / (TOGETHER * WARP) * TOGETHER,
    };

    float squares[COLUMNS * PARTS];

    static __device__ __forceinline__ int first_column() {
        return WARPS - 1 - warp_id();
    }

    __device__ __forceinline__ void begin(const struct told_input &in) {
        tell_nothing(squares, in.round);
#pragma unroll
        for (int i = 0; i < COLUMNS * PARTS; i += TOGETHER) {
            const int column = i / PARTS * WARPS + first_column(),
                      part = i % PARTS * WARP + lane_id() * TOGETHER;
            if (part < told_input::PARTS && column < STREAMS) {
                const float *from = in.squares + column * told_input::PARTS + part;
                if (TOGETHER == 1) {
                    squares[i] = look(from, in.round);
                } else {
                    const float2 two = look_twice(from, in.round);
                    squares[i] = two.x;
                    squares[i + TOGETHER - 1] = two.y;
                }
            }
        }
    }

    __device__ __forceinline__ void end(const struct told_input &in, float *scales) {
        if (first_column() >= STREAMS)
            return;
        while (look_again(strange(squares, in.round)))
            begin(in);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            int column = c * WARPS + first_column();
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
