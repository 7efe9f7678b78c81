// Weights of layers, embedding and head as quantised tiles (templates/tile_quantized.h).
// cuda_weights_bf16.cu is the same for bf16 tiles.
//
// Decode makes f16 numbers of quants and activations: u alone in 16 bits is the f16 number u /
// 2^24. A tile's sums are multiplied in fp32 by its scales: weights are rounded nowhere.
//
//     int8: scale * (u x - 128 (ones x))
//     int4: scale * (u x) + minimum * (ones x)

#include "cuda_int8.cu"

enum {
    INT8_TILE_BYTES = 544,
    INT8_SCALES = 512,
    INT4_TILE_BYTES = 320,
    INT4_SCALES = 256,
    INT4_MINIMUMS = 288,
};

// A tile as the lanes of a warp take it: q of its two halves of 16 columns.
struct quants {
    struct tile halves[2];
};

// What belongs to rows g and g + 8 of a tile: a weight is scale * q + offset.
struct factors {
    float scale[2], offset[2];
};

// The two f16 of a word.
static __device__ __forceinline__ void pair_from_f16(float (&out)[2], unsigned word) {
    out[0] = from_f16(word & 0xffff);
    out[1] = from_f16(word >> 16);
}

// The low halves of bytes 0 and 2 as two bf16 numbers u + 16. 0x4180 is 16, its bits from the third
// on are units. `word` is shifted to the left by 3.
static __device__ __forceinline__ unsigned int4_pair(unsigned word) {
    return select_bits(word, 0x00780078, 0x41804180);
}

// A format: where in shared memory a chunk of 16 bytes of a tile is kept in a prefill, so that
// lanes reading words of several rows meet no bank twice, and what a lane makes of it: for a
// prefill q as bf16 numbers; for decode f16 numbers. summing: weights that make of activations what
// is added to a product, or, with OFFSETS, their sum.
template <int BYTES> struct quantized;

template <> struct quantized<INT8_TILE_BYTES> {
    enum { OFFSETS = 0 };

    static __device__ __forceinline__ int place(int chunk) {
        return chunk ^ chunk / 8 % 4 * 2;
    }

    // Lane 4g + i has rows g and g + 8 in a half of chunk 8i + 4w + g / 2, w = 0 and 1, for i >= 2
    // of the chunk 2 before or behind that: where it finds w = 0; w = 1 is 64 bytes away.
    template <bool PLACED> static __device__ __forceinline__ int words_place() {
        int g = lane_id() / 4, i = lane_id() % 4, chunk = 8 * i + (g / 2 ^ i / 2 * 2);
        return (PLACED ? place(chunk) : chunk) * 16 + g % 2 * 8;
    }

    template <bool PLACED>
    static __device__ __forceinline__ struct quants unpack_bf16(const char *tile) {
        int at = words_place<PLACED>();
        struct columns even = *(const struct columns *)(tile + at);
        struct columns odd = *(const struct columns *)(tile + (at ^ 64));
        return {{{int8_pair(even.x), int8_pair(odd.x), int8_pair(even.y), int8_pair(odd.y)},
                 {int8_pair(even.x >> 8), int8_pair(odd.x >> 8), int8_pair(even.y >> 8),
                  int8_pair(odd.y >> 8)}}};
    }

    // u. With odd i w = 1 comes first: no lanes meet in a bank.
    static __device__ __forceinline__ struct quants unpack_f16(const char *tile) {
        int at = words_place<false>() ^ lane_id() % 2 * 64;
        struct columns even = *(const struct columns *)(tile + at);
        struct columns odd = *(const struct columns *)(tile + (at ^ 64));
        return {{{even_bytes(even.x), even_bytes(odd.x), even_bytes(even.y), even_bytes(odd.y)},
                 {odd_bytes(even.x), odd_bytes(odd.x), odd_bytes(even.y), odd_bytes(odd.y)}}};
    }

    static __device__ __forceinline__ struct tile summing() { // -128
        return {0x80808080, 0x80808080, 0x80808080, 0x80808080};
    }

    // Activations, and those of the columns 8 further, for that.
    static __device__ __forceinline__ struct columns ordered(const struct columns &x) {
        return lane_id() % 2 ? columns{x.y, x.x} : x;
    }

    // For q as unpack_bf16 has them.
    static __device__ __forceinline__ struct factors bf16_factors(const char *tile) {
        return unpack_factors(tile);
    }

    static __device__ __forceinline__ struct factors unpack_factors(const char *tile) {
        struct factors f = {};
        pair_from_f16(f.scale, *(const unsigned *)(tile + INT8_SCALES + lane_id() / 4 * 4));
        return f;
    }
};

template <> struct quantized<INT4_TILE_BYTES> {
    enum { OFFSETS = 1 };

    static __device__ __forceinline__ int place(int chunk) {
        return chunk ^ chunk / 8 % 2 * 2;
    }

    // Lane 4g + i has rows g and g + 8 in a half of chunk 4i + g / 2.
    template <bool PLACED>
    static __device__ __forceinline__ struct columns words(const char *tile) {
        int g = lane_id() / 4, i = lane_id() % 4, chunk = 4 * i + g / 2;
        int at = (PLACED ? place(chunk) : chunk) * 16 + g % 2 * 8;
        return *(const struct columns *)(tile + at);
    }

    // q is u + 16 here.
    template <bool PLACED>
    static __device__ __forceinline__ struct quants unpack_bf16(const char *tile) {
        struct columns words = quantized::words<PLACED>(tile);
        unsigned x = words.x, y = words.y;
        return {{{int4_pair(x << 3), int4_pair(x >> 1), int4_pair(y << 3), int4_pair(y >> 1)},
                 {int4_pair(x >> 5), int4_pair(x >> 9), int4_pair(y >> 5), int4_pair(y >> 9)}}};
    }

    // A byte's low u, and the byte, which is 16 times its high u and the low one.
    static __device__ __forceinline__ struct quants unpack_f16(const char *tile) {
        const struct columns words = quantized::words<false>(tile);
        const unsigned low = 0x000f000f;
        const struct columns even = {even_bytes(words.x), even_bytes(words.y)},
                             odd = {odd_bytes(words.x), odd_bytes(words.y)};
        return {{{words.x & low, even.x, words.y & low, even.y},
                 {odd.x & low, odd.x, odd.y & low, odd.y}}};
    }

    // x u + y v = (x - y / 16) u + y / 16 (16 v + u).
    static __device__ __forceinline__ struct columns ordered(const struct columns &x) {
        return {f16_sum(x.y, 0xac00ac00, x.x), f16_sum(x.y, 0x2c002c00, 0x80008000)};
    }

    static __device__ __forceinline__ struct tile summing() { // 1 and 17
        return {0x00010001, 0x00110011, 0x00010001, 0x00110011};
    }

    static __device__ __forceinline__ struct factors bf16_factors(const char *tile) {
        struct factors f = unpack_factors(tile);
        f.offset[0] -= 16 * f.scale[0];
        f.offset[1] -= 16 * f.scale[1];
        return f;
    }

    static __device__ __forceinline__ struct factors unpack_factors(const char *tile) {
        struct factors f;
        pair_from_f16(f.scale, *(const unsigned *)(tile + INT4_SCALES + lane_id() / 4 * 4));
        pair_from_f16(f.offset, *(const unsigned *)(tile + INT4_MINIMUMS + lane_id() / 4 * 4));
        return f;
    }
};

// See bf16_tiles.
template <int TILE_BYTES> struct quantized_tiles {
    typedef struct quantized<TILE_BYTES> format;

    enum { BYTES = TILE_BYTES, INPUTS = 2, SCALES = 1, CHUNKS = BYTES / 16 };

    // Where chunk n of tiles that follow each other is kept, in a prefill.
    static __device__ __forceinline__ int place(int n) {
        return n / CHUNKS * CHUNKS + format::place(n % CHUNKS);
    }

    static __device__ __forceinline__ struct columns ordered(const struct columns &x) {
        return format::ordered(x);
    }

    // Activations a sixteenth as large: f16 numbers end at 65,504, `ordered` adds a sixteenth, and
    // where they lose accuracy, at 6e-5, they are too small to count.
    static __device__ __forceinline__ float bounded(float x) {
        const float most = 61440, unit = 1.0f / 16;
        return fmaxf(fminf(x * unit, most), -most);
    }

    static __device__ __forceinline__ struct columns pair(float even, float odd) {
        return {to_f16(bounded(even), bounded(odd)), 0};
    }

    // c has a bit less.
    static __device__ __forceinline__ struct columns four(float a, float b, float c, float d) {
        const unsigned rounded = (__float_as_uint(bounded(c)) + 0x2000) & ~0x3fffu;
        return {to_f16(bounded(a), bounded(b)), to_f16(__uint_as_float(rounded), bounded(d))};
    }

    static __device__ __forceinline__ struct columns from_four(float x, float y) {
        return pair_of(x, without_round(y));
    }

    static __device__ __forceinline__ float4 results(const float4 &sum) {
        const float unit = 0x1p28f; // of activations and quants
        return make_float4(sum.x * unit, sum.y * unit, sum.z * unit, sum.w * unit);
    }

    template <int GROUPS, int PIECES, int TILES>
    struct input : bf16_tiles::input<GROUPS, PIECES, TILES> {
        float total[GROUPS][2]; // of this lane's two columns of the products, see summing

        __device__ __forceinline__ void take(const struct columns (&mine)[PIECES], int tile) {
            bf16_tiles::input<GROUPS, PIECES, TILES>::take(mine, tile);
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                float all[4] = {};
#pragma unroll
                for (int n = 0; n < PIECES / GROUPS; n++)
                    multiply<F16>(all, format::summing(), mine[n * GROUPS + group]);
                total[group][0] = all[0]; // the same in all rows
                total[group][1] = all[1];
            }
        }
    };

    // What belongs to column `odd` of this lane's two of a product; zeros where no tile has it.
    template <int EACH, int TILES>
    static __device__ __forceinline__ struct factors column_factors(const char *tiles, int apart,
                                                                    int count, int odd) {
        const int tile = (lane_id() % 4 * 2 + odd) / EACH;
        struct factors f = {};
        if (tile < TILES && tile < count)
            f = format::unpack_factors(tiles + tile * apart);
        return f;
    }

    // As above, in each column with what belongs to its tile. Products of one row wait for each
    // other: those of several rows take turns.
    template <int EACH, int ROWS, int GROUPS, int PIECES, int TILES>
    static __device__ __forceinline__ void
    multiply_tiles(float (&sums)[ROWS][2][GROUPS][4], int n, const char *const (&tiles)[ROWS],
                   int apart, int count, const struct input<GROUPS, PIECES, TILES> &in) {
        enum { CHAINS = TILES > 1 ? 2 : 1 }; // shorter ones
        float products[ROWS][CHAINS][GROUPS][4] = {};
        if (!format::OFFSETS) {
#pragma unroll
            for (int i = 0; i < 4 * GROUPS * ROWS; i++)
                products[i / 4 / GROUPS][0][i / 4 % GROUPS][i % 4] =
                    in.total[i / 4 % GROUPS][i % 2];
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            if (t >= count)
                break;
            struct quants q[ROWS];
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                q[r] = format::unpack_f16(tiles[r] + t * apart);
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++)
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    multiply<F16>(products[r][piece / GROUPS % CHAINS][piece % GROUPS],
                                  q[r].halves[piece / GROUPS % INPUTS], in.x[t][piece]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const struct factors even = column_factors<EACH, TILES>(tiles[r], apart, count, 0);
            const struct factors odd =
                EACH == 1 ? column_factors<EACH, TILES>(tiles[r], apart, count, 1) : even;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const struct factors &f = i % 2 ? odd : even;
                    float &sum = sums[r][n % 2][group][i], product = products[r][0][group][i];
                    if (CHAINS > 1)
                        product += products[r][1][group][i];
                    sum += f.scale[i / 2] * product;
                    if (format::OFFSETS)
                        sum += f.offset[i / 2] * in.total[group][i % 2];
                }
            }
        }
    }
};

typedef struct quantized_tiles<LAYER_TILE_BYTES> layer_tiles;
typedef struct quantized_tiles<INT8_TILE_BYTES> head_tiles;
typedef struct told_fours<layer_tiles> told_exactly;

// Weight `i` of row `id` of the embedding.
static __device__ inline float embedding_weight(const struct gpu_task &task, int id, int i) {
    long long n = (long long)(id / TILE) * HIDDEN_COLUMN_TILES + i / TILE_COLUMNS;
    const char *tile = task.weights + EMBEDDING_OFFSET + n * INT8_TILE_BYTES;
    int lane = id % 8 * 2 + id % TILE / 8, word = i % 8 / 2 * 2 + i % TILE / 8;
    int byte = (word * TILE + (lane ^ word / 4 * 8)) * 4 + i % 2 * 2 + i % TILE_COLUMNS / TILE;
    float scale = from_f16(((const unsigned short *)(tile + INT8_SCALES))[lane]);
    return scale * ((int)((const unsigned char *)tile)[byte] - 128);
}

// ---- A step of a block of prefill. ----

enum {
    STEP_CHUNKS_A_ROW = STEP_TILES / INPUT_TILES * layer_tiles::CHUNKS,
    ROW_STEP_BYTES = STEP_CHUNKS_A_ROW * 16, // of a row of tiles
};

// Starts copying a step of all rows of tiles of a block of results; zeros behind the end of K.
static __device__ __forceinline__ void copy_weights(const struct product &p,
                                                    const struct product_step &step, int first_tile,
                                                    char *stage) {
    const int ALL = BLOCK_TILES * STEP_CHUNKS_A_ROW;
#pragma unroll
    for (int first = 0; first < ALL; first += PRODUCT_THREADS) {
        int n = first + threadIdx.x, row = n / STEP_CHUNKS_A_ROW, chunk = n % STEP_CHUNKS_A_ROW;
        int tile = first_tile + row < p.row_tiles ? first_tile + row : p.row_tiles - 1;
        unsigned at = (tile * p.column_tiles + step.weight_tile) / INPUT_TILES; // of tiles
        const char *from = p.weights + at * (unsigned)layer_tiles::BYTES + chunk * 16;
        if (n < ALL)
            copy_async(stage + row * ROW_STEP_BYTES + layer_tiles::place(chunk) * 16, from,
                       chunk / layer_tiles::CHUNKS * INPUT_TILES < step.tiles);
    }
}

// Quants become weights, rounded.
template <enum number NUMBER>
static __device__ __forceinline__ unsigned scaled_pair(unsigned q, float scale, float offset) {
    return to_numbers<NUMBER>(even_of(q) * scale + offset, odd_of(q) * scale + offset);
}

// This lane's part of 16s `k` of row `row` of the block.
template <enum number NUMBER>
static __device__ __forceinline__ struct tile load_weight(const char *stage, int row, int k) {
    const char *tile = stage + row * ROW_STEP_BYTES + k / INPUT_TILES * layer_tiles::BYTES;
    struct quants q = layer_tiles::format::unpack_bf16<!WARPGROUPS>(tile);
    struct factors f = layer_tiles::format::bf16_factors(tile);
    const struct tile &half = q.halves[k % INPUT_TILES];
    return {scaled_pair<NUMBER>(half.x, f.scale[0], f.offset[0]),
            scaled_pair<NUMBER>(half.y, f.scale[0], f.offset[0]),
            scaled_pair<NUMBER>(half.z, f.scale[1], f.offset[1]),
            scaled_pair<NUMBER>(half.w, f.scale[1], f.offset[1])};
}
