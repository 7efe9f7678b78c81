// The KV cache in int8: a key, or a value, of one position and kv head is scale * (u - 128), u from
// 1 to 255, with scale = largest magnitude / 127 in fp32. cuda_cache_bf16.cu is the same for bf16.
//
// Products are those of the integers, which bf16 holds exactly: keys' scales multiply the scores,
// values' scales the probabilities. A scale needs the whole head, whose parts several blocks
// compute, so they leave it in task.new_keys and task.new_values, fp32 [columns, kv_heads,
// head_dim]. Prefill has a kernel that makes the cache of these. In decode the warp that attends
// the newest position makes the integers in its registers; they are stored when attention is over.
#include "cuda_int8.cu"

// Cache of one (layer, stream, kv head): rows of 16 positions, each its tiles of keys, its tiles of
// values, and the scales of positions g and g + 8: [8 g, keys' two, values' two]. A tile is 8 bytes
// a lane: those of rows g and g + 8, columns 2i, 2i + 8, 2i + 1, 2i + 9.
enum {
    BYTE_TILE = TILE_ELEMENTS,
    ROW_SCALES = 2 * HEAD_TILES * BYTE_TILE,
    ROW_BYTES = ROW_SCALES + 2 * TILE * 4,
    NEW_STRIDE = KV_HEADS * HEAD_DIM, // floats of new_keys, of new_values: one column to the next
};

static __device__ inline char *cache_place(const struct gpu_task &task, int stream, int kv_head,
                                           int row) {
    return task.cache + cache_number(task, stream, kv_head) * CACHE_BLOCK_BYTES +
           (long long)row * ROW_BYTES;
}

static __device__ inline void store_value(const struct gpu_task &task, int stream, int token,
                                          int kv_head, int, int dim, float value) {
    int column = stream * task.tokens + token;
    task.new_values[column * NEW_STRIDE + kv_head * HEAD_DIM + dim] = value;
}

static __device__ inline void store_key(const struct gpu_task &task, int stream, int token,
                                        int kv_head, int, int dim, float first, float second) {
    int column = stream * task.tokens + token;
    float *key = task.new_keys + column * NEW_STRIDE + kv_head * HEAD_DIM + dim;
    key[0] = first;
    key[HEAD_DIM / 2] = second;
}

// The largest magnitude of x [head_dim], found by the warp. As integers magnitudes have the same
// order, and a NaN is the largest: it is not lost.
static __device__ __forceinline__ float largest_magnitude(const float *x) {
    unsigned most = 0;
    for (int i = lane_id(); i < HEAD_DIM; i += WARP) {
        unsigned bits = __float_as_uint(x[i]) & 0x7fffffff;
        most = bits > most ? bits : most;
    }
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        unsigned other = __shfl_xor_sync(0xffffffff, most, distance);
        most = other > most ? other : most;
    }
    return __uint_as_float(most);
}

// u of x, to nearest: 1.5 * 2^23 + 128 leaves integers in a float's low bits.
static __device__ __forceinline__ unsigned quantize(float x, float inverse) {
    return __float_as_uint(fmaf(x, inverse, 12583040.0f)) & 255;
}

// A row of 16 positions, as a lane 4g + i has it. Positions first <= r < end of it are new: not in
// the cache, but keys[r * NEW_STRIDE] and values[r * NEW_STRIDE] are theirs.
struct cache_row {
    enum { QUANTIZED = 1 };

    float key_scale[2], value_scale[2]; // of positions g and g + 8
    const float *new_keys, *new_values; // of kv head, [head_dim]
    int first, end;
    float key_inverse[2];   // of positions g and g + 8, where these are new
    float value_inverse[4]; // of positions 2i, 2i + 8, 2i + 1, 2i + 9

    static __device__ __forceinline__ const struct tile *keys(const struct gpu_task &task,
                                                              int stream, int kv_head, int row) {
        return (const struct tile *)cache_place(task, stream, kv_head, row);
    }
    static __device__ __forceinline__ const struct tile *values(const struct tile *keys) {
        return (const struct tile *)((const char *)keys + HEAD_TILES * BYTE_TILE);
    }

    __device__ __forceinline__ void load_scales(const struct tile *keys) {
        const char *scales = (const char *)keys + ROW_SCALES;
        struct tile t = load_tile((const struct tile *)scales + lane_id() / 4);
        key_scale[0] = __uint_as_float(t.x);
        key_scale[1] = __uint_as_float(t.y);
        value_scale[0] = __uint_as_float(t.z);
        value_scale[1] = __uint_as_float(t.w);
        first = end = 0;
    }

    // Bytes of a row's keys, or values; widen_* makes numbers of them.
    __device__ __forceinline__ void load(struct tile (&tiles)[HEAD_TILES],
                                         const struct tile *from) const {
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
            struct columns bytes =
                load_columns((const struct columns *)from + d * WARP + lane_id());
            tiles[d].x = bytes.x;
            tiles[d].y = bytes.y;
        }
    }

    // keys, values: of the row's position 0.
    __device__ __forceinline__ void add_new(const float *keys, const float *values, int from,
                                            int to) {
        new_keys = keys;
        new_values = values;
        first = from;
        end = to;
        for (int r = first; r < end; r++) {
            float key = largest_magnitude(keys + r * NEW_STRIDE);
            float value = largest_magnitude(values + r * NEW_STRIDE);
            float key_factor = key > 1e-30f ? 127.0f / key : 0.0f;
            float value_factor = value > 1e-30f ? 127.0f / value : 0.0f;
#pragma unroll
            for (int n = 0; n < 2; n++) {
                if (r == lane_id() / 4 + n * 8) {
                    key_scale[n] = key / 127.0f;
                    value_scale[n] = value / 127.0f;
                    key_inverse[n] = key_factor;
                }
            }
#pragma unroll
            for (int n = 0; n < 4; n++) {
                if (r == byte_position(n))
                    value_inverse[n] = value_factor;
            }
        }
    }

    // Decode: the last position, of kv head `kv_head` of the distinct stream `stream`.
    __device__ __forceinline__ void add_newest(const struct gpu_task &task, int stream, int kv_head,
                                               int position) {
        int r = position % TILE;
        long long offset = (long long)(stream - r) * NEW_STRIDE + kv_head * HEAD_DIM;
        add_new(task.new_keys + offset, task.new_values + offset, r, r + 1);
    }

    // Which position byte n of a word of values is of.
    static __device__ __forceinline__ int byte_position(int n) {
        return lane_id() % 4 * 2 + n / 2 + n % 2 * 8;
    }

    // Word of position g + 8n in tile d of the keys: `word`, or made of the new key.
    __device__ __forceinline__ unsigned key_word(unsigned word, int n, int d) const {
        int r = lane_id() / 4 + n * 8, dim = d * TILE + lane_id() % 4 * 2;
        if (r < first || r >= end)
            return word;
        const float *key = new_keys + r * NEW_STRIDE + dim;
        float2 u = make_float2(0.0f, 0.0f), v = u;
        if (dim < HEAD_DIM)
            u = *(const float2 *)key;
        if (dim + 8 < HEAD_DIM)
            v = *(const float2 *)(key + 8);
        float inverse = key_inverse[n];
        return quantize(u.x, inverse) | quantize(v.x, inverse) << 8 | quantize(u.y, inverse) << 16 |
               quantize(v.y, inverse) << 24;
    }

    // Word of dimension 16 d + g + 8 half of the values, the same.
    __device__ __forceinline__ unsigned value_word(unsigned word, int half, int d) const {
        int dim = d * TILE + lane_id() / 4 + half * 8;
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int r = byte_position(n);
            if (r >= first && r < end) {
                float x = dim < HEAD_DIM ? new_values[r * NEW_STRIDE + dim] : 0.0f;
                word = (word & ~(255u << 8 * n)) | quantize(x, value_inverse[n]) << 8 * n;
            }
        }
        return word;
    }

    static __device__ __forceinline__ struct tile widen(unsigned x, unsigned y) {
        struct tile t = {int8_pair(x), int8_pair(x >> 8), int8_pair(y), int8_pair(y >> 8)};
        return t;
    }

    __device__ __forceinline__ void widen_keys(struct tile (&keys)[HEAD_TILES]) const {
        if (first < end) {
#pragma unroll
            for (int d = 0; d < HEAD_TILES; d++) {
                keys[d].x = key_word(keys[d].x, 0, d);
                keys[d].y = key_word(keys[d].y, 1, d);
            }
        }
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++)
            keys[d] = widen(keys[d].x, keys[d].y);
    }

    __device__ __forceinline__ void widen_values(struct tile (&values)[HEAD_TILES]) const {
        if (first < end) {
#pragma unroll
            for (int d = 0; d < HEAD_TILES; d++) {
                values[d].x = value_word(values[d].x, 0, d);
                values[d].y = value_word(values[d].y, 1, d);
            }
        }
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++)
            values[d] = widen(values[d].x, values[d].y);
    }

    // Scores and probabilities of positions g (0, 1) and g + 8 (2, 3).
    __device__ __forceinline__ void scale_scores(float (&p)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[i] *= key_scale[i / 2];
    }
    __device__ __forceinline__ void scale_chances(float (&p)[4]) const {
#pragma unroll
        for (int i = 0; i < 4; i++)
            p[i] *= value_scale[i / 2];
    }

    // Writes the new positions to the row at `place`.
    __device__ __forceinline__ void store(char *place) const {
        struct columns *keys = (struct columns *)place + lane_id();
        struct columns *values = keys + HEAD_TILES * WARP;
#pragma unroll 1
        for (int d = 0; d < HEAD_TILES; d++, keys += WARP, values += WARP) {
            struct columns key = *keys, value = *values;
            key.x = key_word(key.x, 0, d);
            key.y = key_word(key.y, 1, d);
            value.x = value_word(value.x, 0, d);
            value.y = value_word(value.y, 1, d);
            *keys = key;
            *values = value;
        }
        float *scales = (float *)(place + ROW_SCALES) + lane_id() / 4 * 4;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int r = lane_id() / 4 + n * 8;
            if (lane_id() % 4 == 0 && r >= first && r < end) {
                scales[n] = key_scale[n];
                scales[2 + n] = value_scale[n];
            }
        }
    }
};

// Decode: stores the newest position of every kv head, each by one warp. For a phase that follows
// attention and precedes the next q|k|v; what it takes and leaves no other phase between them does.
static __device__ __forceinline__ void store_newest(const struct gpu_task &task) {
    int position = task.state->position;
    int items = (task.layer == 0 ? 1 : STREAMS) * KV_HEADS;
    for (int n = warp_id() * gridDim.x + blockIdx.x; n < items; n += WARPS * gridDim.x) {
        struct cache_row row;
        row.add_newest(task, n / KV_HEADS, n % KV_HEADS, position);
        row.store(cache_place(task, n / KV_HEADS, n % KV_HEADS, position / TILE));
    }
}

// new_keys, new_values -> cache. Grid: rows of positions / WARPS, kv heads, distinct streams.
extern "C" __global__ void __launch_bounds__(THREADS) prefill_cache(const struct gpu_task task) {
    wait_for_previous_kernel();
    int at = task.position / TILE + blockIdx.x * WARPS + warp_id(), kv_head = blockIdx.y;
    int token =
        at * TILE - task.position; // of the row's position 0; the first row may begin before
    int first = token < 0 ? -token : 0, left = task.tokens - token;
    if (left <= 0)
        return;
    long long offset =
        (long long)((int)blockIdx.z * task.tokens + token) * NEW_STRIDE + kv_head * HEAD_DIM;
    struct cache_row row;
    row.add_new(task.new_keys + offset, task.new_values + offset, first, left < TILE ? left : TILE);
    row.store(cache_place(task, blockIdx.z, kv_head, at));
}
