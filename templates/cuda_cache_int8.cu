// The KV cache in int8: a key, or a value, of one position and kv head is scale * (u - 128), u from
// 1 to 255, with scale = largest magnitude / 127 in fp32. cuda_cache_bf16.cu is the same for bf16.
//
// Products are those of the integers, which bf16 holds exactly: keys' scales multiply the scores,
// values' scales the probabilities. A scale needs the whole head, whose parts several blocks
// compute, so a prefill's q|k|v leaves them in task.projected, and a kernel makes the cache of
// these. In decode they are told, the warp that attends the newest position makes the integers in
// its registers; they are stored when attention is over.
#include "cuda_int8.cu"

// Cache of one (layer, stream, kv head): rows of 16 positions, each its tiles of keys, its tiles of
// values, and the scales of positions g and g + 8: [8 g, keys' two, values' two]. A tile is 8 bytes
// a lane: those of rows g and g + 8, columns 2i, 2i + 8, 2i + 1, 2i + 9.
enum {
    BYTE_TILE = TILE_ELEMENTS,
    ROW_SCALES = 2 * HEAD_TILES * BYTE_TILE,
    ROW_BYTES = ROW_SCALES + 2 * TILE * 4,
};

static __device__ inline char *cache_place(const struct gpu_task &task, int stream, int kv_head,
                                           int row) {
    return task.cache + cache_number(task, stream, kv_head) * CACHE_BLOCK_BYTES +
           (long long)row * ROW_BYTES;
}

// load_tile for 8 bytes.
static __device__ inline struct columns load_columns(const struct columns *from) {
#ifdef EMULATOR
    return *from;
#else
    struct columns c;
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(c.x), "=r"(c.y) : "l"(from));
    return c;
#endif
}

// A key and a value of one position as a warp has them: lane l has words l, l + 32, ... of the key,
// where word 4 d + i is columns 2i, 2i + 8, 2i + 1, 2i + 9 of tile d, and bytes l, l + 32, ... of
// the value.
struct cache_entry {
    enum {
        KEY_WORDS = (HEAD_TILES + 7) / 8,
        VALUE_BYTES = (HEAD_TILES + 1) / 2,
        KEYS = 4 * KEY_WORDS, // numbers that a lane makes that of: keys of words, then values
        NUMBERS = KEYS + VALUE_BYTES,
    };

    unsigned key[KEY_WORDS], value[(VALUE_BYTES + 3) / 4];
    float key_scale, value_scale;

    // Where number n of this lane is, from the key on, if the value is `value` further; -1: it has
    // none.
    static __device__ __forceinline__ int number_place(int n, int value) {
        int word = n / 4 * WARP + lane_id(), b = n % 4;
        int dim = n < KEYS ? word / 4 * TILE + word % 4 * 2 + b % 2 * 8 + b / 2
                           : (n - KEYS) * WARP + lane_id();
        return dim >= HEAD_DIM ? -1 : n < KEYS ? dim : value + dim;
    }
};

// A float's magnitude as an integer: these have the same order, and a NaN, the largest, is not
// lost.
static __device__ __forceinline__ unsigned larger_magnitude(unsigned most, float x) {
    unsigned bits = __float_as_uint(x) & 0x7fffffff;
    return bits > most ? bits : most;
}

static __device__ __forceinline__ float warp_magnitude(unsigned most) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        most = larger_magnitude(most, __uint_as_float(__shfl_xor_sync(0xffffffff, most, distance)));
    return __uint_as_float(most);
}

// u of x, to nearest: 1.5 * 2^23 + 128 leaves integers in a float's low bits.
static __device__ __forceinline__ unsigned quantize(float x, float inverse) {
    return __float_as_uint(fmaf(x, inverse, 12583040.0f)) & 255;
}

// By a warp, of the numbers of each lane.
static __device__ __forceinline__ struct cache_entry make_entry(const float *numbers) {
    struct cache_entry entry;
    unsigned most_key = 0, most_value = 0;
    const float *k = numbers, *v = numbers + cache_entry::KEYS;
#pragma unroll
    for (int n = 0; n < cache_entry::NUMBERS; n++) {
        unsigned &most = n < cache_entry::KEYS ? most_key : most_value;
        most = larger_magnitude(most, numbers[n]);
    }
    float largest_key = warp_magnitude(most_key), largest_value = warp_magnitude(most_value);
    float key_inverse = largest_key > 1e-30f ? 127.0f / largest_key : 0.0f;
    float value_inverse = largest_value > 1e-30f ? 127.0f / largest_value : 0.0f;
    entry.key_scale = largest_key / 127.0f;
    entry.value_scale = largest_value / 127.0f;
#pragma unroll
    for (int n = 0; n < cache_entry::KEY_WORDS; n++)
        entry.key[n] = quantize(k[4 * n], key_inverse) | quantize(k[4 * n + 1], key_inverse) << 8 |
                       quantize(k[4 * n + 2], key_inverse) << 16 |
                       quantize(k[4 * n + 3], key_inverse) << 24;
#pragma unroll
    for (int n = 0; n < cache_entry::VALUE_BYTES; n++) {
        unsigned byte = quantize(v[n], value_inverse) << n % 4 * 8;
        entry.value[n / 4] = n % 4 ? entry.value[n / 4] | byte : byte;
    }
    return entry;
}

// The same of a decode step's newest key and value, told by other blocks.
static __device__ __forceinline__ struct cache_entry await_entry(const float *key, unsigned round) {
    float numbers[cache_entry::NUMBERS];
    await_all(numbers, round, [=](int n, float &x) {
        int place = cache_entry::number_place(n, KV_HEADS * HEAD_DIM);
        if (place >= 0)
            x = look(key + place, round);
    });
#pragma unroll
    for (int n = 0; n < cache_entry::NUMBERS; n++)
        numbers[n] = without_round(numbers[n]);
    return make_entry(numbers);
}

// And of what a prefill leaves.
static __device__ __forceinline__ struct cache_entry load_entry(const unsigned short *key) {
    float numbers[cache_entry::NUMBERS];
#pragma unroll
    for (int n = 0; n < cache_entry::NUMBERS; n++) {
        int place = cache_entry::number_place(n, KV_HEADS * HEAD_DIM);
        numbers[n] = place >= 0 ? from_f16(key[place]) : 0;
    }
    return make_entry(numbers);
}

// Of 16 positions, word i of a value's dimension has 2i, 2i + 8, 2i + 1, 2i + 9: the word and the
// byte of position r, and the position of a byte.
static __device__ __forceinline__ int value_word(int r) {
    return r % 8 / 2;
}

static __device__ __forceinline__ int value_byte(int r) {
    return r % 2 * 2 + r / 8;
}

static __device__ __forceinline__ int value_position(int word, int byte) {
    return word * 2 + byte / 2 + byte % 2 * 8;
}

static __device__ __forceinline__ unsigned insert_byte(unsigned word, unsigned byte, int n) {
    return (word & ~(255u << 8 * n)) | (byte & 255) << 8 * n;
}

// A row of 16 positions, as a lane 4g + i attends it.
struct cache_row {
    enum {
        QUANTIZED = 1,
        NUMBERS = cache_entry::NUMBERS,
        NEWEST_BYTES = WARP * (int)sizeof(struct cache_entry),
    };

    float key_scale[2], value_scale[2]; // of positions g and g + 8
    int newest;                         // a position that the cache has not yet; -1: it has all
    const struct cache_entry *entries;  // made of them, [WARP]

    static __device__ __forceinline__ const struct tile *values(const struct tile *keys) {
        return (const struct tile *)((const char *)keys + HEAD_TILES * BYTE_TILE);
    }

    template <bool SHARED> __device__ __forceinline__ void load_scales(const struct tile *keys) {
        const char *scales = (const char *)keys + ROW_SCALES;
        const struct tile *from = (const struct tile *)scales + lane_id() / 4;
        struct tile t = SHARED ? *from : load_tile(from);
        key_scale[0] = __uint_as_float(t.x);
        key_scale[1] = __uint_as_float(t.y);
        value_scale[0] = __uint_as_float(t.z);
        value_scale[1] = __uint_as_float(t.w);
    }

    // Bytes of a row's keys, or values; complete_* makes numbers of them.
    template <bool SHARED>
    __device__ __forceinline__ void load(struct tile (&tiles)[HEAD_TILES],
                                         const struct tile *from) const {
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
            const struct columns *mine = (const struct columns *)from + d * WARP + lane_id();
            struct columns bytes = SHARED ? *mine : load_columns(mine);
            tiles[d].x = bytes.x;
            tiles[d].y = bytes.y;
        }
    }

    // Of a decode step's newest position: see cuda_cache_bf16.cu.
    static __device__ __forceinline__ int number_place(int n) {
        return cache_entry::number_place(n, KV_HEADS * HEAD_DIM);
    }
    static __device__ __forceinline__ void leave_newest(char *shared, const float *numbers) {
        ((struct cache_entry *)shared)[lane_id()] = make_entry(numbers);
    }
    __device__ __forceinline__ void add_newest(const char *shared, int position) {
        newest = position % TILE;
        entries = (const struct cache_entry *)shared;
    }

    static __device__ __forceinline__ struct tile widen(const struct tile &t) {
        struct tile wide = {int8_pair(t.x), int8_pair(t.x >> 8), int8_pair(t.y),
                            int8_pair(t.y >> 8)};
        return wide;
    }

    __device__ __forceinline__ void complete_keys(struct tile (&keys)[HEAD_TILES]) {
        if (newest >= 0) {
            const struct cache_entry entry = entries[lane_id()];
            bool mine = lane_id() / 4 == newest % 8, low = newest < 8;
#pragma unroll
            for (int i = 0; i < 2; i++) { // not by an index: that would keep them in memory
                bool this_one = mine && low == (i == 0);
                key_scale[i] = this_one ? entry.key_scale : key_scale[i];
                value_scale[i] = this_one ? entry.value_scale : value_scale[i];
            }
#pragma unroll
            for (int d = 0; d < HEAD_TILES; d++) {
                int source = d % 8 * 4 + lane_id() % 4;
                unsigned word = __shfl_sync(0xffffffff, entry.key[d / 8], source);
                keys[d].x = mine && low ? word : keys[d].x;
                keys[d].y = mine && !low ? word : keys[d].y;
            }
        }
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++)
            keys[d] = widen(keys[d]);
    }

    __device__ __forceinline__ void complete_values(struct tile (&values)[HEAD_TILES]) const {
        if (newest >= 0) {
            const struct cache_entry entry = entries[lane_id()];
            bool mine = lane_id() % 4 == value_word(newest);
            int n = value_byte(newest);
#pragma unroll
            for (int d = 0; d < HEAD_TILES; d++) {
                unsigned word = entry.value[d / 8];
                int source = d % 2 * TILE + lane_id() / 4, shift = d / 2 % 4 * 8;
                unsigned x = __shfl_sync(0xffffffff, word, source) >> shift;
                unsigned y = __shfl_sync(0xffffffff, word, source + 8) >> shift;
                values[d].x = mine ? insert_byte(values[d].x, x, n) : values[d].x;
                values[d].y = mine ? insert_byte(values[d].y, y, n) : values[d].y;
            }
        }
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++)
            values[d] = widen(values[d]);
    }

    // Prefill: numbers of what `load` left of keys, or of values.
    __device__ __forceinline__ void make_f16(struct tile (&tiles)[HEAD_TILES],
                                             const struct tile *keys, bool values) {
        float even[2], odd[2]; // scales of words x and z, y and w; keys': of x and y, z and w
        load_scales<false>(keys);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            even[i] = __shfl_sync(0xffffffff, value_scale[i], lane_id() % 4 * 8);
            odd[i] = __shfl_sync(0xffffffff, value_scale[i], lane_id() % 4 * 8 + 4);
            even[i] = values ? even[i] : key_scale[i];
            odd[i] = values ? odd[i] : key_scale[i];
        }
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
            const struct tile t = widen(tiles[d]);
            const int y = values, z = !values;
            tiles[d] = {to_f16(even_of(t.x) * even[0], odd_of(t.x) * odd[0]),
                        to_f16(even_of(t.y) * even[y], odd_of(t.y) * odd[y]),
                        to_f16(even_of(t.z) * even[z], odd_of(t.z) * odd[z]),
                        to_f16(even_of(t.w) * even[1], odd_of(t.w) * odd[1])};
        }
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
};

// Stores those positions of row `row` of 16 that share value word `word` and are first <= r < end,
// by one warp; with COUNT 1 there is one of them, a decode step's. column: of position 0 of the
// row.
template <int COUNT>
static __device__ __forceinline__ void store_positions(const struct gpu_task &task, int stream,
                                                       int kv_head, int row, int word, int column,
                                                       int first, int end, unsigned round) {
    struct cache_entry entries[COUNT];
    bool present[COUNT];
    char *place = cache_place(task, stream, kv_head, row);
    float *scales = (float *)(place + ROW_SCALES);
#pragma unroll
    for (int n = 0; n < COUNT; n++) {
        int r = COUNT == 1 ? first : value_position(word, n);
        present[n] = r >= first && r < end;
        if (!present[n])
            continue;
        if (COUNT == 1)
            entries[n] =
                await_entry(task.qkv + stream * QKV_FLOATS + (HEADS + kv_head) * HEAD_DIM, round);
        else
            entries[n] = load_entry(projected_head(task, column + r, HEADS + kv_head));
#pragma unroll
        for (int k = 0; k < cache_entry::KEY_WORDS; k++) {
            int d = k * 8 + lane_id() / 4, at = (d * WARP + r % 8 * 4 + lane_id() % 4) * 2 + r / 8;
            if (d < HEAD_TILES)
                ((unsigned *)place)[at] = entries[n].key[k];
        }
        if (lane_id() == 0) {
            scales[r % 8 * 4 + r / 8] = entries[n].key_scale;
            scales[r % 8 * 4 + 2 + r / 8] = entries[n].value_scale;
        }
    }
    unsigned *words = (unsigned *)(place + HEAD_TILES * BYTE_TILE);
#pragma unroll
    for (int k = 0; k < cache_entry::VALUE_BYTES; k++) {
        int dim = k * WARP + lane_id();
        int at = (dim / TILE * WARP + dim % 8 * 4 + word) * 2 + dim % TILE / 8;
        if (dim >= HEAD_TILES * TILE)
            continue;
        unsigned bytes = words[at];
#pragma unroll
        for (int n = 0; n < COUNT; n++)
            if (present[n])
                bytes = insert_byte(bytes, entries[n].value[k / 4] >> k % 4 * 8,
                                    COUNT == 1 ? value_byte(first) : n);
        words[at] = bytes;
    }
}

// Decode: stores the newest position of every kv head, each by one warp. For a phase behind
// attention. The last blocks first: they have the least to do.
static __device__ __forceinline__ void store_newest(const struct gpu_task &task, int position,
                                                    unsigned round) {
    int r = position % TILE;
    int items = (task.layer == 0 ? 1 : STREAMS) * KV_HEADS;
    for (int n = (warp_id() + 1) * gridDim.x - 1 - blockIdx.x; n < items; n += WARPS * gridDim.x)
        store_positions<1>(task, n / KV_HEADS, n % KV_HEADS, position / TILE, value_word(r), 0, r,
                           r + 1, round);
    __syncwarp(); // no lane tells of this layer before all have read
}

#if MODULES & 4
// projected -> cache. Grid: rows of positions by fours, kv heads, distinct streams. Two warps a
// row.
extern "C" __global__ void __launch_bounds__(THREADS) prefill_cache(const struct gpu_task task) {
    wait_for_previous_kernel();
    int row = task.position / TILE + blockIdx.x * (WARPS / 2) + warp_id() / 2, stream = blockIdx.z;
    int token = row * TILE - task.position; // at the row's position 0: may be before the first
    int first = token < 0 ? -token : 0, end = task.tokens - token;
    if (end <= 0)
        return;
#pragma unroll 1
    for (int word = warp_id() % 2 * 2, i = 0; i < 2; i++)
        store_positions<4>(task, stream, blockIdx.y, row, word + i, stream * task.tokens + token,
                           first, end, 0);
}
#endif
