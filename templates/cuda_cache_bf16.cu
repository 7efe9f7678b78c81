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

// A row of tiles: 16 positions, which are multiplied as they are. The newest position of a decode
// step is put in by the warp that attends it, and stored when attention is over.
struct cache_row {
    enum { QUANTIZED = 0, SCALE_BYTES = 0 };

    int newest;         // a position that the cache has not yet; -1: it has all
    const float *fresh; // its key, told; its value is KV_HEADS heads further
    unsigned round;
    struct tile *place; // in shared memory, for a row of tiles

    // This lane's part of the row's tiles.
    static __device__ __forceinline__ const struct tile *keys(const struct gpu_task &task,
                                                              int stream, int kv_head, int row) {
        const struct tile *block = (const struct tile *)cache_block(task, stream, kv_head);
        return block + lane_id() + row * 2 * HEAD_TILES * WARP;
    }
    static __device__ __forceinline__ const struct tile *values(const struct tile *keys) {
        return keys + HEAD_TILES * WARP;
    }

    __device__ __forceinline__ void add_newest(const float *key, int position, unsigned told,
                                               char *shared) {
        newest = position % TILE;
        fresh = key;
        round = told;
        place = (struct tile *)shared;
    }

    // A row of tiles with the newest position in its place, by way of shared memory: element n of
    // it belongs to number n at `from`.
    template <typename INDEX>
    __device__ __forceinline__ void complete(struct tile (&tiles)[HEAD_TILES], const float *from,
                                             INDEX index) const {
        enum { MINE = (HEAD_DIM + 2 * WARP - 1) / (2 * WARP) }; // pairs of a lane
        float values[2 * MINE];
        unsigned missing, told = round;
        if (newest < 0)
            return;
        do
            missing = look_for_all(values, round, [from, told](int i, float &value) {
                int dim = i / 2 * 2 * WARP + 2 * lane_id() + i % 2;
                if (dim < HEAD_DIM)
                    value = look(from + dim, told);
            });
        while (look_again(missing));
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++)
            place[d * WARP + lane_id()] = tiles[d];
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2 * MINE; i++) {
            int dim = i / 2 * 2 * WARP + 2 * lane_id() + i % 2;
            unsigned short *tile = (unsigned short *)(place + dim / TILE * WARP);
            if (dim < HEAD_DIM)
                tile[index(dim % TILE)] = bf16_bits(without_round(values[i]));
        }
        __syncwarp();
#pragma unroll
        for (int d = 0; d < HEAD_TILES; d++)
            tiles[d] = place[d * WARP + lane_id()];
        __syncwarp(); // before others of the warp take the place
    }

    __device__ __forceinline__ void complete_keys(struct tile (&keys)[HEAD_TILES]) const {
        int position = newest;
        complete(keys, fresh, [position](int dim) { return fragment_index(position, dim); });
    }

    __device__ __forceinline__ void complete_values(struct tile (&values)[HEAD_TILES]) const {
        int position = newest;
        complete(values, fresh + KV_HEADS * HEAD_DIM,
                 [position](int dim) { return fragment_index(dim, position); });
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
        unsigned short *row = (unsigned short *)cache_block(task, stream, kv_head) +
                              position / TILE * 2 * HEAD_TILES * TILE_ELEMENTS;
#pragma unroll 1
        for (int dim = lane_id(); dim < HEAD_DIM; dim += WARP) {
            unsigned short *tile = row + dim / TILE * TILE_ELEMENTS;
            float k, v;
            do {
                k = look(key + dim, round);
                v = look(key + KV_HEADS * HEAD_DIM + dim, round);
            } while (look_again_alone(strange(k, round) | strange(v, round)));
            tile[fragment_index(position % TILE, dim % TILE)] = bf16_bits(without_round(k));
            tile[HEAD_TILES * TILE_ELEMENTS + fragment_index(dim % TILE, position % TILE)] =
                bf16_bits(without_round(v));
        }
    }
    __syncwarp(); // no lane tells of this layer before all have read
}
