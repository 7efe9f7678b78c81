// Blocks of products where every warp multiplies by itself (mma.sync): 128 rows by 128 columns, a
// warp 64 by 64 of them. A block of threads has one block of results.

enum {
    STAGES = 4, // steps under way
    WARPS_COLUMNS = 128,
    WARPS_STAGE_BYTES = BLOCK_TILES * ROW_STEP_BYTES + WARPS_COLUMNS * STEP_TILES * TILE * 2,
};

// Where a chunk of a column of a step is in shared memory, in chunks: a step is half a block.
static __device__ inline int stage_chunk(int column, int chunk) {
    return column * STEP_CHUNKS + (chunk ^ column / 2 % STEP_CHUNKS);
}

// Starts copying the activations of a step, from column `first` on; zeros behind the last column
// and the end of K.
static __device__ __forceinline__ void
copy_input(const struct product &p, const struct product_step &step, int first, char *stage) {
    const int APART = PRODUCT_THREADS / STEP_CHUNKS; // columns of one thread
    int chunk = threadIdx.x % STEP_CHUNKS, column = threadIdx.x / STEP_CHUNKS;
    const char *from = step.input + input_chunk(first + column, step.input_chunk + chunk) * 16;
    char *to = stage + stage_chunk(column, chunk) * 16;
#pragma unroll
    for (int i = 0; i < WARPS_COLUMNS / APART; i++)
        copy_async(to + i * APART * STEP_CHUNKS * 16, from + i * APART * (INPUT_K / CHUNK_K) * 16,
                   first + column + i * APART < p.columns && chunk * CHUNK_K / TILE < step.tiles);
}

// 16 columns j of the 64 of a warp, 16 k of a step: operands for its own products, x, y of the
// first 8 columns, z, w of the others.
static __device__ __forceinline__ struct tile load_input(const char *stage, int j, int k) {
    int column = warp_id() % 2 * SLICE_COLUMNS + j * TILE + lane_id() / 16 * 8 + lane_id() % 8;
    return load_matrices(stage + stage_chunk(column, k * 2 + lane_id() / 8 % 2) * 16);
}

// `at`: the block's first row of tiles and its first column.
static __device__ __forceinline__ void copy_step(const struct product &p, const struct slice &at,
                                                 int n) {
    struct product_step step = find_step(p, n);
    char *stage = shared_memory() + n % STAGES * WARPS_STAGE_BYTES;
    copy_weights(p, step, at.row_tile, stage);
    copy_input(p, step, at.column, stage + BLOCK_TILES * ROW_STEP_BYTES);
}

// sum += what lies in a stage.
template <enum number NUMBER>
static __device__ __forceinline__ void
multiply_stage(const char *stage, const struct product_step &step, float (&sum)[4][8][4]) {
    struct tile weights[4][STEP_TILES];
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int k = 0; k < STEP_TILES; k++)
            weights[i][k] = load_weight<NUMBER>(stage, warp_id() / 2 * 4 + i, k);
    }
#pragma unroll
    for (int k = 0; k < STEP_TILES; k++) {
        if (k < step.tiles) { // measured: faster than multiplying zeros
            struct tile input[4];
#pragma unroll
            for (int j = 0; j < 4; j++)
                input[j] = load_input(stage + BLOCK_TILES * ROW_STEP_BYTES, j, k);
#pragma unroll
            for (int i = 0; i < 4; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    struct columns even = {input[j].x, input[j].y}, odd = {input[j].z, input[j].w};
                    multiply<NUMBER>(sum[i][2 * j], weights[i][k], even);
                    multiply<NUMBER>(sum[i][2 * j + 1], weights[i][k], odd);
                }
            }
        }
    }
}

// Multiplies and calls finish(slice, sum) for every slice of the results of this block of threads.
template <enum number NUMBER, typename FINISH>
static __device__ __forceinline__ void multiply_by_warps(const struct product &p,
                                                         const FINISH &finish) {
    float sum[4][8][4] = {};
    int steps = count_steps(p);
    struct slice at = {block_tile(p, WARPS_COLUMNS, blockIdx.x),
                       block_column(p, WARPS_COLUMNS, blockIdx.x)};
    for (int step = 0; step < STAGES - 1; step++) {
        if (step < steps)
            copy_step(p, at, step);
        commit_copies();
    }
    for (int step = 0; step < steps; step++) {
        wait_copies<STAGES - 2>();
        __syncthreads();
        if (step + STAGES - 1 < steps)
            copy_step(p, at, step + STAGES - 1);
        commit_copies();
        multiply_stage<NUMBER>(shared_memory() + step % STAGES * WARPS_STAGE_BYTES,
                               find_step(p, step), sum);
    }
    __syncthreads(); // what follows may use the stages
#pragma unroll
    for (int i = 0; i < 4; i++) {
        struct slice slice = {at.row_tile + warp_id() / 2 * 4 + i,
                              at.column + warp_id() % 2 * SLICE_COLUMNS};
        finish(slice, sum[i]);
    }
}
