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

// The f16 of 16 bits.
static __device__ inline float from_f16(unsigned bits) {
#ifdef EMULATOR
    return f16_to_float((unsigned short)bits);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
    return value;
#endif
}

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
    static __device__ __forceinline__ struct quants unpack(const char *tile) {
        int g = lane_id() / 4, i = lane_id() % 4, at = place(8 * i + g / 2) * 16 + g % 2 * 8;
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
    static __device__ __forceinline__ struct quants unpack(const char *tile) {
        int g = lane_id() / 4, i = lane_id() % 4, at = place(4 * i + g / 2) * 16 + g % 2 * 8;
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
                                                const float (&inputs)[4]) {
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

    // Where chunk n of tiles that follow each other is kept.
    static __device__ __forceinline__ int place(int n) {
        return n / CHUNKS * CHUNKS + quantized<BYTES>::place(n % CHUNKS);
    }

    template <typename STREAM>
    static __device__ __forceinline__ void copy(const STREAM &stream, int step) {
        int k = stream.run.first + step * STREAM::CHUNK;
#pragma unroll
        for (int first = 0; first < STREAM::CHUNK * CHUNKS; first += WARP) { // zeros behind the end
            int n = first + lane_id();
            if (n < STREAM::CHUNK * CHUNKS)
                copy_async(stream.tile_place(step, 0) + place(n),
                           stream.run.tiles + k * CHUNKS + first,
                           n < (stream.run.end - k) * CHUNKS);
        }
    }

    template <typename STREAM>
    static __device__ __forceinline__ void
    multiply_tile(const STREAM &stream, float (&sum)[STREAM::GROUPS][4], int step, int i) {
        const int GROUPS = STREAM::GROUPS;
        struct quants q = quantized<BYTES>::unpack((const char *)stream.tile_place(step, i));
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            float products[4] = {}, inputs[4] = {};
#pragma unroll
            for (int n = 0; n < INPUTS * STREAM::PARTS; n++) {
                struct columns x =
                    *stream.input_place(step, i, n % INPUTS * GROUPS + group, n / INPUTS);
                multiply(products, q.halves[n % INPUTS], x);
                if (quantized<BYTES>::OFFSETS)
                    multiply(inputs, ones(), x);
            }
            add_tile<BYTES>(sum[group], q, products, inputs);
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

// ---- A step of a block of columns: STEP_TILES 16s of K are one tile of weights. ----

enum {
    BLOCK_CHUNKS = BLOCK_TILES * layer_tiles::CHUNKS,
    ROW_COPIES = (BLOCK_CHUNKS + PRODUCT_THREADS - 1) / PRODUCT_THREADS,
    COPIES = BLOCK_TILES * STEP_TILES / PRODUCT_WARPS,
    WEIGHT_STAGE_BYTES = BLOCK_TILES * layer_tiles::BYTES,
    STAGE_BYTES = WEIGHT_STAGE_BYTES + INPUT_STAGE_BYTES,
};

// This thread's pieces of every step: 16 bytes each, of weights and of activations.
struct copies {
    unsigned rows[ROW_COPIES], column; // bytes from weights and input to them, at k = 0; of
                                       // activations those of the first column
};

// Bytes of 16 columns of activations.
static __device__ __forceinline__ unsigned column_bytes(const struct product &p) {
    return p.input_parts * p.column_tiles * TILE_BYTES;
}

static __device__ __forceinline__ struct copies plan_copies(const struct product &p) {
    struct copies c;
#pragma unroll
    for (int i = 0; i < ROW_COPIES; i++) {
        int n = i * PRODUCT_THREADS + threadIdx.x;
        int row = blockIdx.y * BLOCK_TILES + n / layer_tiles::CHUNKS;
        row = row < p.row_tiles ? row : p.row_tiles - 1; // behind the end: not used
        c.rows[i] = (unsigned)row * (p.column_tiles / INPUT_TILES * layer_tiles::BYTES) +
                    n % layer_tiles::CHUNKS * 16;
    }
    // Behind the last column there are buffers up to a whole block: not used.
    int column = blockIdx.x * BLOCK_TILES + warp_id() / STEP_TILES;
    c.column = (unsigned)column * column_bytes(p) + lane_id() * 16;
    return c;
}

// Starts copying step `step` of K to its stage: a tile of each row, then STEP_TILES of each column.
static __device__ __forceinline__ void copy_step(const struct product &p, const struct copies &c,
                                                 int step) {
    char *stage = shared_memory() + step % STAGES * STAGE_BYTES;
    int steps = p.column_tiles / STEP_TILES; // of one part of the activations
    const char *weights = p.weights + (step < steps ? step : step - steps) * layer_tiles::BYTES;
    const char *input = p.input + (step * STEP_TILES + warp_id() % STEP_TILES) * TILE_BYTES;
#pragma unroll
    for (int i = 0; i < ROW_COPIES; i++) {
        int n = i * PRODUCT_THREADS + threadIdx.x;
        if (n < BLOCK_CHUNKS)
            copy_async(stage + layer_tiles::place(n) * 16, weights + c.rows[i], true);
    }
#pragma unroll
    for (int i = 0; i < COPIES; i++)
        copy_async(stage + WEIGHT_STAGE_BYTES + (i * PRODUCT_THREADS + (int)threadIdx.x) * 16,
                   input + c.column + i * (PRODUCT_WARPS / STEP_TILES) * column_bytes(p), true);
}

// sum += what lies in a stage. The barriers keep the compiler from loading all of it at once: it
// would not fit the registers.
static __device__ __forceinline__ void
multiply_stage(const char *stage, int, float (&sum)[WARP_ROWS][2 * WARP_COLUMNS][4]) {
    const char *rows = stage + warp_id() / COLUMN_WARPS * WARP_ROWS * layer_tiles::BYTES;
    const struct tile *columns = (const struct tile *)(stage + WEIGHT_STAGE_BYTES) +
                                 warp_id() % COLUMN_WARPS * WARP_COLUMNS * STEP_TILES * WARP +
                                 lane_id();
#pragma unroll
    for (int first = 0; first < WARP_COLUMNS; first += 2) {
        __syncwarp();
        struct columns x[4][STEP_TILES];
        float inputs[4][4] = {};
#pragma unroll
        for (int n = 0; n < 4 * STEP_TILES; n++) {
            int j = n / STEP_TILES, k = n % STEP_TILES;
            struct tile t = columns[((first + j / 2) * STEP_TILES + k) * WARP];
            x[j][k].x = j % 2 ? t.z : t.x;
            x[j][k].y = j % 2 ? t.w : t.y;
            if (quantized<LAYER_TILE_BYTES>::OFFSETS)
                multiply(inputs[j], ones(), x[j][k]);
        }
#pragma unroll
        for (int i = 0; i < WARP_ROWS; i++) {
            __syncwarp();
            struct quants q = quantized<LAYER_TILE_BYTES>::unpack(rows + i * layer_tiles::BYTES);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                float products[4] = {};
#pragma unroll
                for (int k = 0; k < STEP_TILES; k++)
                    multiply(products, q.halves[k], x[j][k]);
                add_tile<LAYER_TILE_BYTES>(sum[i][2 * first + j], q, products, inputs[j]);
            }
        }
    }
}
