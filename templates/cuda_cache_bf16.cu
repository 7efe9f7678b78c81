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

static __device__ inline void store_value(const struct gpu_task &task, int stream, int, int kv_head,
                                          int position, int dim, float value) {
    unsigned short *values = (unsigned short *)cache_block(task, stream, kv_head);
    values += ((position / TILE * 2 + 1) * HEAD_TILES + dim / TILE) * TILE_ELEMENTS;
    values[fragment_index(dim % TILE, position % TILE)] = bf16_bits(value);
}

static __device__ inline void store_key(const struct gpu_task &task, int stream, int, int kv_head,
                                        int position, int dim, float first, float second) {
    unsigned short *keys = (unsigned short *)cache_block(task, stream, kv_head);
    keys += position / TILE * 2 * HEAD_TILES * TILE_ELEMENTS;
    keys[dim / TILE * TILE_ELEMENTS + fragment_index(position % TILE, dim % TILE)] =
        bf16_bits(first);
    dim += HEAD_DIM / 2;
    keys[dim / TILE * TILE_ELEMENTS + fragment_index(position % TILE, dim % TILE)] =
        bf16_bits(second);
}

// A row of tiles: 16 positions. It has nothing but its tiles, which are multiplied as they are.
struct cache_row {
    enum { QUANTIZED = 0, SCALE_BYTES = 0 };

    // This lane's part of the row's tiles.
    static __device__ __forceinline__ const struct tile *keys(const struct gpu_task &task,
                                                              int stream, int kv_head, int row) {
        const struct tile *block = (const struct tile *)cache_block(task, stream, kv_head);
        return block + lane_id() + row * 2 * HEAD_TILES * WARP;
    }
    static __device__ __forceinline__ const struct tile *values(const struct tile *keys) {
        return keys + HEAD_TILES * WARP;
    }

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
    __device__ __forceinline__ void add_newest(const struct gpu_task &, int, int, int) {
    }
    __device__ __forceinline__ void widen_keys(struct tile (&)[HEAD_TILES]) {
    }
    __device__ __forceinline__ void widen_values(struct tile (&)[HEAD_TILES]) const {
    }
    __device__ __forceinline__ void scale_scores(float (&)[4]) const {
    }
    __device__ __forceinline__ void scale_chances(float (&)[4]) const {
    }
};

// Decode: the newest position is in the cache already.
static __device__ __forceinline__ void store_newest(const struct gpu_task &) {
}
