// The KV cache in bf16 tiles. cuda_cache_int8.cu is the same for a cache of integers.

// Cache of one (layer, stream, kv head): for every 16 positions a row of tiles of keys, then one of
// values.
static __device__ inline char *cache_block(const struct gpu_task &task, int stream, int kv_head) {
    return task.cache + cache_number(task, stream, kv_head) * CACHE_BLOCK_TILES * TILE_BYTES;
}

// Element (row, column) of a tile of the cache: lane by lane.
static __device__ inline int fragment_index(int row, int column) {
    int pair = column / 2, lane = row % 8 * 4 + pair % 4, word = row / 8 * 2 + pair / 4;
    return (lane * 4 + word) * 2 + column % 2;
}

// The row of tiles that has a position.
static __device__ __forceinline__ unsigned short *row_of(const struct gpu_task &task, int stream,
                                                         int kv_head, int position) {
    return (unsigned short *)cache_block(task, stream, kv_head) +
           position / TILE * 2 * HEAD_TILES * TILE_ELEMENTS;
}

// Where a dimension of its key, or of its value, lies there.
static __device__ __forceinline__ unsigned short *key_place(unsigned short *row, int position,
                                                            int dim) {
    return row + dim / TILE * TILE_ELEMENTS + fragment_index(position % TILE, dim % TILE);
}

static __device__ __forceinline__ unsigned short *value_place(unsigned short *row, int position,
                                                              int dim) {
    return row + (HEAD_TILES + dim / TILE) * TILE_ELEMENTS +
           fragment_index(dim % TILE, position % TILE);
}

// Keys of a prefill, see store_pairs.
static __device__ __forceinline__ void store_keys(const struct prefill_columns &columns, int column,
                                                  int pair, const float (&first)[2],
                                                  const float (&second)[2]) {
    store_pairs(
        columns, column, pair, KV_HEADS, first, second, [&](int column, int kv_head, int dim) {
            int position = columns.position(column);
            return key_place(row_of(columns.task, columns.stream(column), kv_head, position),
                             position, dim);
        });
}

// Values of a prefill: columns `column` and + 1 of a row of all kv heads' values.
static __device__ __forceinline__ void store_values(const struct prefill_columns &columns,
                                                    int column, int row, const float (&values)[2]) {
    int kv_head = row / HEAD_DIM, dim = row % HEAD_DIM;
    if (kv_head >= KV_HEADS || column >= columns.count)
        return;
    unsigned short *to[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        int position = columns.position(column + i);
        to[i] = value_place(row_of(columns.task, columns.stream(column + i), kv_head, position),
                            position, dim);
    }
    const unsigned word = to_bf16(values[0], values[1]);
    if (column + 1 < columns.count && to[1] == to[0] + 1) {
        *(unsigned *)to[0] = word;
        return;
    }
    *to[0] = (unsigned short)word;
    if (column + 1 < columns.count)
        *to[1] = (unsigned short)(word >> 16);
}

// A row of tiles: 16 positions, which are multiplied as they are. The newest position of a decode
// step is put in by the warp that attends it, and stored when attention is over.
struct cache_row {
    enum {
        QUANTIZED = 0,
        SCALE_BYTES = 0,
        PAIRS = (HEAD_DIM + 2 * WARP - 1) / (2 * WARP), // of dimensions, of a lane
        NUMBERS = 4 * PAIRS,                            // keys, then values
        NEWEST_BYTES = 2 * HEAD_TILES * TILE * 2,
    };

    int newest;          // a position that the cache has not yet; -1: it has all
    const char *entries; // in shared memory: its key and its value, bf16 [2, HEAD_TILES, TILE]

    // This lane's part of the row's tiles.
    static __device__ __forceinline__ const struct tile *keys(const struct gpu_task &task,
                                                              int stream, int kv_head, int row) {
        const struct tile *block = (const struct tile *)cache_block(task, stream, kv_head);
        return block + lane_id() + row * 2 * HEAD_TILES * WARP;
    }
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
    __device__ __forceinline__ void load_scales(const struct tile *) {
    }
    __device__ __forceinline__ void load(struct tile (&)[HEAD_TILES], const struct tile *) const {
    }
    static __device__ __forceinline__ void copy(char *, const struct tile *, int, bool) {
    }
    static __device__ __forceinline__ void copy_scales(char *, const struct tile *, bool) {
    }
    static __device__ __forceinline__ struct tile read(const char *) {
        return {};
    }
    static __device__ __forceinline__ void scale_columns(float (&)[2][4], const char *, int) {
    }
    __device__ __forceinline__ void scale_scores(float (&)[4]) const {
    }
    __device__ __forceinline__ void scale_chances(float (&)[4]) const {
    }
};

// Decode: stores the newest position of every kv head, each by one warp. For a phase behind
// attention. The last blocks first: they have the least to do.
static __device__ __forceinline__ void store_newest(const struct gpu_task &task, unsigned round) {
    const int position = task.state->position, items = (task.layer == 0 ? 1 : STREAMS) * KV_HEADS;
    for (int n = (warp_id() + 1) * gridDim.x - 1 - blockIdx.x; n < items; n += WARPS * gridDim.x) {
        int stream = n / KV_HEADS, kv_head = n % KV_HEADS;
        const float *key = task.qkv + stream * QKV_FLOATS + (HEADS + kv_head) * HEAD_DIM;
        unsigned short *row = row_of(task, stream, kv_head, position);
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
