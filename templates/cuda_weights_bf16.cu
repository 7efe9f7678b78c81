// Weights of layers, embedding and head as bf16 tiles. cuda_weights_quantized.cu is the same for
// quantised tiles.

typedef struct bf16_tiles layer_tiles;
typedef struct bf16_tiles head_tiles;
typedef struct told_pairs<bf16_tiles, 2> told_exactly; // what accuracy depends on

// Element (row, column) of a tile of the pack.
static __device__ inline int tile_index(int row, int column) {
    int pair = column / 2, chunk = pair % 4 * 8 + row % 8, word = row / 8 * 2 + pair / 4;
    return (chunk * 4 + word) * 2 + column % 2;
}

// Weight `i` of row `id` of the embedding.
static __device__ inline float embedding_weight(const struct gpu_task &task, int id, int i) {
    const char *row = task.weights + EMBEDDING_OFFSET +
                      (long long)(id / TILE) * HIDDEN_TILES * WEIGHT_PLANES * TILE_BYTES;
    float x = 0;
    for (int plane = 0; plane < WEIGHT_PLANES; plane++)
        x += from_bf16(
            ((const unsigned short *)row)[(plane * HIDDEN_TILES + i / TILE) * TILE_ELEMENTS +
                                          tile_index(id % TILE, i % TILE)]);
    return x;
}

// ---- A step of a block of prefill. ----

enum { ROW_STEP_BYTES = STEP_TILES * TILE_BYTES }; // of a row of tiles

// Where chunk c of a tile of the pack lies in shared memory, in chunks. Lanes copy chunk by chunk,
// as the memory likes it, and each reads its own: in this order neither meets a bank twice.
static __device__ inline int chunk_place(int c) {
    return c ^ c / 8 * 2;
}

// Starts copying a step of all rows of tiles of a block of results; zeros behind the end of K.
static __device__ __forceinline__ void copy_weights(const struct product &p,
                                                    const struct product_step &step, int first_tile,
                                                    char *stage) {
#pragma unroll
    for (int row = warp_id(); row < BLOCK_TILES; row += PRODUCT_WARPS) {
        int tile = first_tile + row < p.row_tiles ? first_tile + row : p.row_tiles - 1;
        const char *from =
            p.weights +
            ((long long)tile * WEIGHT_PLANES * p.column_tiles + step.weight_tile) * TILE_BYTES +
            lane_id() * 16;
        char *to = stage + row * ROW_STEP_BYTES + chunk_place(lane_id()) * 16;
#pragma unroll
        for (int k = 0; k < STEP_TILES; k++)
            copy_async(to + k * TILE_BYTES, from + k * TILE_BYTES, k < step.tiles);
    }
}

// This lane's part of 16s `k` of row `row` of the block.
template <enum number NUMBER>
static __device__ __forceinline__ struct tile load_weight(const char *stage, int row, int k) {
    const struct tile *place = (const struct tile *)(stage + row * ROW_STEP_BYTES + k * TILE_BYTES);
    struct tile weights = WARPGROUPS ? load_fragment(place) : place[chunk_place(chunk_id())];
    return NUMBER == F16 ? tile_to_f16(weights) : weights;
}
