// Weights of layers, embedding and head as bf16 tiles. cuda_weights_quantized.cu is the same for
// quantised tiles.

typedef struct bf16_tiles layer_tiles;
typedef struct bf16_tiles head_tiles;

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

// This thread's pieces of every step: 16 bytes of one k of COPIES rows of weights and of columns.
enum { COPIES = BLOCK_TILES * STEP_TILES / PRODUCT_WARPS };

struct copies {
    unsigned rows[COPIES], columns[COPIES]; // bytes from weights and input to the rows, at k = 0
};

static __device__ __forceinline__ struct copies plan_copies(const struct product &p) {
    struct copies c;
    int columns_tiles = (p.columns + TILE - 1) / TILE;
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        int offset = i * (PRODUCT_WARPS / STEP_TILES) + warp_id() / STEP_TILES;
        int row = blockIdx.y * BLOCK_TILES + offset, column = blockIdx.x * BLOCK_TILES + offset;
        row = row < p.row_tiles ? row : p.row_tiles - 1; // behind the end: not used
        column = column < columns_tiles ? column : columns_tiles - 1;
        c.rows[i] = (unsigned)row * (WEIGHT_PLANES * p.column_tiles * TILE_BYTES) + lane_id() * 16;
        c.columns[i] =
            (unsigned)column * (p.input_parts * p.column_tiles * TILE_BYTES) + lane_id() * 16;
    }
    return c;
}

enum { STAGE_BYTES = 2 * INPUT_STAGE_BYTES };

// Starts copying step `step` of K to its stage: [rows and columns, STEP_TILES] tiles.
static __device__ __forceinline__ void copy_step(const struct product &p, const struct copies &c,
                                                 int step) {
    char *stage = shared_memory() + step % STAGES * STAGE_BYTES + warp_id() * TILE_BYTES;
    int k = step * STEP_TILES + warp_id() % STEP_TILES;
    bool wanted = k < WEIGHT_PLANES * p.input_parts * p.column_tiles; // zeros behind the end
    int row_k = k, column_k = k;
    if (WEIGHT_PLANES > 1 || p.input_parts > 1) {
        int pass = k / p.column_tiles;
        row_k = k - (pass - pass / p.input_parts) * p.column_tiles;
        column_k = k - (pass - pass % p.input_parts) * p.column_tiles;
    }
    const char *weights = p.weights + row_k * TILE_BYTES, *input = p.input + column_k * TILE_BYTES;
#pragma unroll
    for (int i = 0; i < COPIES; i++) {
        copy_async(stage + (i * PRODUCT_THREADS + chunk_place(lane_id())) * 16, weights + c.rows[i],
                   wanted);
        copy_async(stage + ((COPIES + i) * PRODUCT_THREADS + lane_id()) * 16, input + c.columns[i],
                   wanted);
    }
}

// sum += what lies in a stage. tiles: of K, how many of its STEP_TILES there are.
static __device__ __forceinline__ void
multiply_stage(const char *bytes, int tiles, float (&sum)[WARP_ROWS][2 * WARP_COLUMNS][4]) {
    const struct tile *stage = (const struct tile *)bytes;
    const struct tile *rows =
        stage + warp_id() / COLUMN_WARPS * WARP_ROWS * STEP_TILES * WARP + chunk_place(chunk_id());
    const struct tile *columns =
        stage + (BLOCK_TILES + warp_id() % COLUMN_WARPS * WARP_COLUMNS) * STEP_TILES * WARP +
        lane_id();
#pragma unroll
    for (int k = 0; k < STEP_TILES; k++) {
        if (k < tiles) { // measured: faster than multiplying zeros
            struct tile a[WARP_ROWS], b[WARP_COLUMNS];
#pragma unroll
            for (int i = 0; i < WARP_ROWS; i++) {
                a[i] = rows[(i * STEP_TILES + k) * WARP];
                b[i] = columns[(i * STEP_TILES + k) * WARP];
            }
#pragma unroll
            for (int i = 0; i < WARP_ROWS; i++) {
#pragma unroll
                for (int j = 0; j < WARP_COLUMNS; j++) {
                    struct columns even = {b[j].x, b[j].y}, odd = {b[j].z, b[j].w};
                    multiply(sum[i][2 * j], a[i], even);
                    multiply(sum[i][2 * j + 1], a[i], odd);
                }
            }
        }
    }
}
