// The KV cache in bf16 tiles. cuda_cache_int8.cu is the same for a cache of integers.

// Cache of one (layer, stream, kv head): rows of 16 positions, each its tiles of keys, then its
// tiles of values.
enum { ROW_BYTES = 2 * HEAD_TILES * TILE_BYTES };

static __device__ inline char *cache_place(const struct gpu_task &task, int stream, int kv_head,
                                           int row) {
    return task.cache + cache_number(task, stream, kv_head) * CACHE_BLOCK_TILES * TILE_BYTES +
           (long long)row * ROW_BYTES;
}

// Element (row, column) of a tile of the cache: lane by lane.
static __device__ inline int fragment_index(int row, int column) {
    int pair = column / 2, lane = row % 8 * 4 + pair % 4, word = row / 8 * 2 + pair / 4;
    return (lane * 4 + word) * 2 + column % 2;
}

// Where a dimension of a position's key, or of its value, lies in its row.
static __device__ __forceinline__ unsigned short *key_place(unsigned short *row, int position,
                                                            int dim) {
    return row + dim / TILE * TILE_ELEMENTS + fragment_index(position % TILE, dim % TILE);
}

static __device__ __forceinline__ unsigned short *value_place(unsigned short *row, int position,
                                                              int dim) {
    return row + (HEAD_TILES + dim / TILE) * TILE_ELEMENTS +
           fragment_index(dim % TILE, position % TILE);
}

// A row of tiles: 16 positions, which are multiplied as they are. The newest position of a decode
// step is put in by the warp that attends it, and stored when attention is over.
struct cache_row {
    enum {
        QUANTIZED = 0,
        PAIRS = (HEAD_DIM + 2 * WARP - 1) / (2 * WARP), // of dimensions, of a lane
        NUMBERS = 4 * PAIRS,                            // keys, then values
        NEWEST_BYTES = 2 * HEAD_TILES * TILE * 2,
    };

    int newest;          // a position that the cache has not yet; -1: it has all
    const char *entries; // in shared memory: its key and its value, bf16 [2, HEAD_TILES, TILE]

    static __device__ __forceinline__ const struct tile *values(const struct tile *keys) {
        return keys + HEAD_TILES * WARP;
    }

    // Number n of this lane's share of a new key and value: which dimension that is, if the head
    // has it; where it is told, from the key on, or -1.
    static __device__ __forceinline__ int number_dim(int n) {
        return n / 2 % PAIRS * 2 * WARP + 2 * lane_id() + n % 2;
    }
    static __device__ __forceinline__ int number_place(int n) {
        int dim = number_dim(n);
        return dim < HEAD_DIM ? n / (2 * PAIRS) * KV_HEADS * HEAD_DIM + dim : -1;
    }

    // Leaves those numbers in shared memory; a barrier must follow.
    static __device__ __forceinline__ void leave_newest(char *shared, const float *numbers) {
        enum { WORDS = HEAD_TILES * TILE / 2 };
        unsigned *words = (unsigned *)shared;
#pragma unroll
        for (int n = 0; n < 2 * PAIRS; n++) {
            int word = n % PAIRS * WARP + lane_id();
            if (word < WORDS)
                words[n / PAIRS * WORDS + word] = to_bf16(numbers[2 * n], numbers[2 * n + 1]);
        }
    }

    __device__ __forceinline__ void add_newest(const char *shared, int position) {
        newest = position % TILE;
        entries = shared;
    }

    __device__ __forceinline__ void complete_keys(struct tile (&keys)[HEAD_TILES]) const {
        if (newest < 0)
            return;
        const unsigned *key = (const unsigned *)entries + lane_id() % 4;
        const bool mine = lane_id() / 4 == newest % 8, low = mine && newest < 8,
                   high = mine && newest >= 8;
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
            unsigned first = key[d * 8], second = key[d * 8 + 4];
            keys[d] = {low ? first : keys[d].x, low ? second : keys[d].y, high ? first : keys[d].z,
                       high ? second : keys[d].w};
        }
    }

    __device__ __forceinline__ void complete_values(struct tile (&values)[HEAD_TILES]) const {
        if (newest < 0)
            return;
        const unsigned short *value =
            (const unsigned short *)entries + HEAD_TILES * TILE + lane_id() / 4;
        const bool mine = lane_id() % 4 == newest / 2 % 4, low = mine && newest < 8,
                   high = mine && newest >= 8;
        const int shift = newest % 2 * 16;
        const unsigned others = 0xffff0000u >> shift;
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++) {
            unsigned first = (unsigned)value[d * TILE] << shift,
                     second = (unsigned)value[d * TILE + 8] << shift;
            values[d] = {low ? (values[d].x & others) | first : values[d].x,
                         high ? (values[d].y & others) | first : values[d].y,
                         low ? (values[d].z & others) | second : values[d].z,
                         high ? (values[d].w & others) | second : values[d].w};
        }
    }

    // What an int8 cache has besides.
    template <bool SHARED> __device__ __forceinline__ void load_scales(const struct tile *) {
    }
    template <bool SHARED>
    __device__ __forceinline__ void load(struct tile (&)[HEAD_TILES], const struct tile *) const {
    }
    __device__ __forceinline__ void make_f16(struct tile (&)[HEAD_TILES], const struct tile *,
                                             bool) {
    }
    __device__ __forceinline__ void scale_scores(float (&)[4]) const {
    }
    __device__ __forceinline__ void scale_chances(float (&)[4]) const {
    }
};

// Decode: stores the newest position of every kv head, each by one warp. For a phase behind
// attention. The last blocks first: they have the least to do.
static __device__ __forceinline__ void store_newest(const struct gpu_task &task, int position,
                                                    unsigned round) {
    const int items = (task.layer == 0 ? 1 : STREAMS) * KV_HEADS;
    for (int n = (warp_id() + 1) * gridDim.x - 1 - blockIdx.x; n < items; n += WARPS * gridDim.x) {
        int stream = n / KV_HEADS, kv_head = n % KV_HEADS;
        const float *key = task.qkv + stream * QKV_FLOATS + (HEADS + kv_head) * HEAD_DIM;
        unsigned short *row = (unsigned short *)cache_place(task, stream, kv_head, position / TILE);
        float numbers[cache_row::NUMBERS];
        await_all(numbers, round, [=](int i, float &number) {
            if (cache_row::number_place(i) >= 0)
                number = look(key + cache_row::number_place(i), round);
        });
#pragma unroll
        for (int i = 0; i < cache_row::NUMBERS; i++) {
            const bool value = i >= cache_row::NUMBERS / 2;
            const int dim = cache_row::number_dim(i);
            unsigned short *to =
                value ? value_place(row, position, dim) : key_place(row, position, dim);
            if (dim < HEAD_DIM)
                *to = bf16_bits(without_round(numbers[i]));
        }
    }
    __syncwarp(); // no lane tells of this layer before all have read
}

#if MODULES & 4
// Which bits of a word belong to positions n, n + 1 of [first, end).
static __device__ __forceinline__ unsigned present_bits(int n, int first, int end) {
    return (n >= first && n < end ? 0x0000ffff : 0) |
           (n + 1 >= first && n + 1 < end ? 0xffff0000 : 0);
}

// The new bits where they are present.
static __device__ __forceinline__ unsigned merge_bits(unsigned old, unsigned added,
                                                      unsigned present) {
    return (old & ~present) | (added & present);
}

static __device__ __forceinline__ struct tile
merge_tiles(const struct tile &old, const struct tile &added, const struct tile &present) {
    return {merge_bits(old.x, added.x, present.x), merge_bits(old.y, added.y, present.y),
            merge_bits(old.z, added.z, present.z), merge_bits(old.w, added.w, present.w)};
}

// Positions first to end - 1 of a row of keys, or of values, by one warp. heads: of position 0.
static __device__ __forceinline__ void store_row(struct tile *row, const unsigned short *heads,
                                                 bool values, int first, int end) {
    const int g = lane_id() / 4, pair = lane_id() % 4 * 2;
    const bool low = g >= first && g < end, high = g + 8 >= first && g + 8 < end;
    const unsigned low_bits = low ? ~0u : 0, high_bits = high ? ~0u : 0,
                   even_bits = present_bits(pair, first, end),
                   odd_bits = present_bits(pair + 8, first, end);
    const struct tile present = {values ? even_bits : low_bits, values ? odd_bits : low_bits,
                                 values ? even_bits : high_bits, values ? odd_bits : high_bits};
    struct tile tiles[HEAD_TILES];
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        const unsigned short *from = heads + g * QKV_FLOATS + d * TILE + pair;
        const bool near = d * TILE + pair < HEAD_DIM, far = d * TILE + pair + 8 < HEAD_DIM;
        tiles[d] = {low && near ? *(const unsigned *)from : 0,
                    low && far ? *(const unsigned *)(from + 8) : 0,
                    high && near ? *(const unsigned *)(from + 8 * QKV_FLOATS) : 0,
                    high && far ? *(const unsigned *)(from + 8 * QKV_FLOATS + 8) : 0};
    }
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++) {
        struct tile t = tile_from_f16(tiles[d]), *to = row + d * WARP + lane_id();
        if (values)
            t = {transpose(t.x), transpose(t.z), transpose(t.y), transpose(t.w)};
        *to = end - first == TILE ? t : merge_tiles(*to, t, present);
    }
}

// projected -> cache. Grid: rows of positions by fours, kv heads, distinct streams. Each warp has
// keys or values of a row.
extern "C" __global__ void __launch_bounds__(THREADS) prefill_cache(const struct gpu_task task) {
    wait_for_previous_kernel();
    const bool values = warp_id() % 2;
    const int row = task.position / TILE + blockIdx.x * (WARPS / 2) + warp_id() / 2,
              stream = blockIdx.z, kv_head = blockIdx.y;
    const int token = row * TILE - task.position; // of the row's first position, maybe negative
    const int first = token < 0 ? -token : 0,
              end = task.tokens - token < TILE ? task.tokens - token : TILE;
    if (end <= 0)
        return;
    store_row(
        (struct tile *)cache_place(task, stream, kv_head, row) + values * HEAD_TILES * WARP,
        projected_head(task, stream * task.tokens + token, HEADS + values * KV_HEADS + kv_head),
        values, first, end);
}
#endif
