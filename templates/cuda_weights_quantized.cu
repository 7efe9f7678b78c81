// Weights of layers, embedding and head as quantised tiles (templates/tile_quantized.h).
// cuda_weights_bf16.cu is the same for bf16 tiles.
//
// Quants become bf16 exactly, and a tile's product with activations is a sum of its own in fp32,
// which its scales then multiply: weights are rounded nowhere.
//
//     int8: scale * (q x)               q = u - 128
//     int4: scale * (q x) + offset * (ones x)     q = u + 16, offset = minimum - 16 * scale

#include "cuda_int8.cu"

enum {
    INT8_TILE_BYTES = 544,
    INT8_SCALES = 512,
    INT4_TILE_BYTES = 320,
    INT4_SCALES = 256,
    INT4_MINIMUMS = 288,
};

// A tile as the lanes of a warp take it: q of its two halves of 16 columns, and what belongs to
// rows g and g + 8.
struct quants {
    struct tile halves[2];
    float scale[2], offset[2];
};

// The two f16 of a word.
static __device__ __forceinline__ void unpack_factors(float (&out)[2], unsigned word) {
    out[0] = from_f16(word & 0xffff);
    out[1] = from_f16(word >> 16);
}

// The low halves of bytes 0 and 2 as two bf16 numbers u + 16. 0x4180 is 16, its bits from the third
// on are units. `word` is shifted to the left by 3.
static __device__ __forceinline__ unsigned int4_pair(unsigned word) {
    return select_bits(word, 0x00780078, 0x41804180);
}

// A format: where in shared memory a chunk of 16 bytes of a tile is kept, so that lanes reading
// words of several rows meet no bank twice, and what a lane makes of it.
template <int BYTES> struct quantized;

template <> struct quantized<INT8_TILE_BYTES> {
    enum { OFFSETS = 0 };

    static __device__ __forceinline__ int place(int chunk) {
        return chunk ^ chunk / 8 % 4 * 2;
    }

    // Lane 4g + i has rows g and g + 8 in a half of chunk 8i + 4w + g / 2, w = 0 and 1.
    template <bool PLACED>
    static __device__ __forceinline__ struct quants unpack(const char *tile) {
        int g = lane_id() / 4, i = lane_id() % 4, chunk = 8 * i + g / 2;
        int at = (PLACED ? place(chunk) : chunk) * 16 + g % 2 * 8;
        struct columns even = *(const struct columns *)(tile + at);
        struct columns odd = *(const struct columns *)(tile + (at ^ 64));
        struct quants q = {
            {{int8_pair(even.x), int8_pair(odd.x), int8_pair(even.y), int8_pair(odd.y)},
             {int8_pair(even.x >> 8), int8_pair(odd.x >> 8), int8_pair(even.y >> 8),
              int8_pair(odd.y >> 8)}}};
        unpack_factors(q.scale, *(const unsigned *)(tile + INT8_SCALES + 4 * g));
        return q;
    }
};

template <> struct quantized<INT4_TILE_BYTES> {
    enum { OFFSETS = 1 };

    static __device__ __forceinline__ int place(int chunk) {
        return chunk ^ chunk / 8 % 2 * 2;
    }

    // Lane 4g + i has rows g and g + 8 in a half of chunk 4i + g / 2.
    template <bool PLACED>
    static __device__ __forceinline__ struct quants unpack(const char *tile) {
        int g = lane_id() / 4, i = lane_id() % 4, chunk = 4 * i + g / 2;
        int at = (PLACED ? place(chunk) : chunk) * 16 + g % 2 * 8;
        struct columns words = *(const struct columns *)(tile + at);
        unsigned x = words.x, y = words.y;
        struct quants q = {
            {{int4_pair(x << 3), int4_pair(x >> 1), int4_pair(y << 3), int4_pair(y >> 1)},
             {int4_pair(x >> 5), int4_pair(x >> 9), int4_pair(y >> 5), int4_pair(y >> 9)}}};
        unpack_factors(q.scale, *(const unsigned *)(tile + INT4_SCALES + 4 * g));
        unpack_factors(q.offset, *(const unsigned *)(tile + INT4_MINIMUMS + 4 * g));
        q.offset[0] -= 16 * q.scale[0];
        q.offset[1] -= 16 * q.scale[1];
        return q;
    }
};

// sum += scale * products + offset * inputs: the sums of q x and of x over one tile's columns.
template <int BYTES>
static __device__ __forceinline__ void add_tile(float (&sum)[4], const struct quants &q,
                                                const float (&products)[4],
                                                const float (&inputs)[2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[i] += q.scale[i / 2] * products[i];
        if (quantized<BYTES>::OFFSETS)
            sum[i] += q.offset[i / 2] * inputs[i % 2]; // the same in both rows
    }
}

static __device__ __forceinline__ struct tile ones() {
    const struct tile result = {0x3f803f80, 0x3f803f80, 0x3f803f80, 0x3f803f80};
    return result;
}

// See bf16_tiles.
template <int TILE_BYTES> struct quantized_tiles {
    enum { BYTES = TILE_BYTES, INPUTS = 2, CHUNKS = BYTES / 16 };

    // Where chunk n of tiles that follow each other is kept, in a prefill.
    static __device__ __forceinline__ int place(int n) {
        return n / CHUNKS * CHUNKS + quantized<BYTES>::place(n % CHUNKS);
    }

    template <int GROUPS, int PIECES> struct input {
        struct columns x[PIECES];
        float sums[GROUPS][2]; // of x over a tile's columns, of this lane's two of the products'

        __device__ __forceinline__ void complete() {
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                float all[4] = {};
#pragma unroll
                for (int n = 0; n < PIECES / GROUPS; n++)
                    multiply(all, ones(), x[n * GROUPS + group]);
                sums[group][0] = all[0];
                sums[group][1] = all[1];
            }
        }
    };

    template <int GROUPS, int PIECES>
    static __device__ __forceinline__ void multiply_tile(float (&sum)[GROUPS][4], const char *tile,
                                                         const struct input<GROUPS, PIECES> &in) {
        struct quants q = quantized<BYTES>::template unpack<false>(tile);
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            float products[4] = {};
#pragma unroll
            for (int n = 0; n < PIECES / GROUPS; n++)
                multiply(products, q.halves[n % INPUTS], in.x[n * GROUPS + group]);
            add_tile<BYTES>(sum[group], q, products, in.sums[group]);
        }
    }
};

typedef struct quantized_tiles<LAYER_TILE_BYTES> layer_tiles;
typedef struct quantized_tiles<INT8_TILE_BYTES> head_tiles;

// Weight `i` of row `id` of the embedding.
static __device__ inline float embedding_weight(const struct gpu_task &task, int id, int i) {
    long long n = (long long)(id / TILE) * HIDDEN_COLUMN_TILES + i / TILE_COLUMNS;
    const char *tile = task.weights + EMBEDDING_OFFSET + n * INT8_TILE_BYTES;
    int lane = id % 8 * 2 + id % TILE / 8, word = i % 8 / 2 * 2 + i % TILE / 8;
    int byte = (word * TILE + lane) * 4 + i % 2 * 2 + i % TILE_COLUMNS / TILE;
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
    struct quants q = quantized<LAYER_TILE_BYTES>::template unpack<!WARPGROUPS>(
        stage + row * ROW_STEP_BYTES + k / INPUT_TILES * layer_tiles::BYTES);
    const struct tile &half = q.halves[k % INPUT_TILES];
    return {scaled_pair<NUMBER>(half.x, q.scale[0], q.offset[0]),
            scaled_pair<NUMBER>(half.y, q.scale[0], q.offset[0]),
            scaled_pair<NUMBER>(half.z, q.scale[1], q.offset[1]),
            scaled_pair<NUMBER>(half.w, q.scale[1], q.offset[1])};
}
