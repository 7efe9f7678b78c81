// The products of prefill: rows of weights times columns of activations, whatever the format of the
// weights is. column = stream * tokens + token. Both stream through shared memory in asynchronous
// copies, a step of K at a time. A block of threads computes BLOCK_TILES rows of tiles by some
// columns, then the same elsewhere. Results are slices: 16 rows by 64 columns, each of one warp.

enum {
    BLOCK_TILES = 8,                    // rows of tiles of weights of a block
    STEP_TILES = WARPGROUPS ? 4 : 2,    // 16s of K at a time
    PRODUCT_WARPS = WARPGROUPS ? 8 : 4, // that multiply
    PRODUCT_THREADS = (PRODUCT_WARPS + 4 * WARPGROUPS) * WARP, // a warpgroup more copies
    PRODUCT_BLOCKS = WARPGROUPS ? 1 : 2,                       // that a multiprocessor runs
    SLICE_COLUMNS = 64,
    INPUT_K = 64, // k of a block of activations
    INPUT_BLOCK_BYTES = 8 * INPUT_K * 2,
    INPUT_ROW_BYTES = GPU_COLUMNS / 8 * INPUT_BLOCK_BYTES, // all columns' blocks of the same k
    CHUNK_K = 8,                                           // k of 16 bytes of activations
    STEP_CHUNKS = STEP_TILES * TILE / CHUNK_K,             // of a column
};

// Matrix and activations of a product. K is passed once for each plane of the weights.
struct product {
    const char *weights, *input;
    int row_tiles, column_tiles; // of the weights; column_tiles: K / 16, filled up
    int columns;
};

// Activations lie in blocks of 8 columns x 64 k, [k / 64, columns / 8] of them: for each column its
// 8 chunks of 8 k, in wgmma's order, in which whoever reads the same chunk of 8 columns meets no
// bank of shared memory twice. Where a chunk of a column is, in chunks from the block's row on.
static __device__ inline int input_chunk(int column, int chunk) {
    return column * (INPUT_K / CHUNK_K) + (chunk ^ column % 8);
}

// The word of elements k, k + 1 (k even) of `column`.
static __device__ inline unsigned *input_word(char *input, int column, int k) {
    char *row = input + (long long)(k / INPUT_K) * INPUT_ROW_BYTES;
    return (unsigned *)(row + input_chunk(column, k % INPUT_K / CHUNK_K) * 16 + k % CHUNK_K * 2);
}

// Columns: token by token, then stream by stream. In layer 0 all streams have one input: they are
// the tokens.
struct prefill_columns {
    const struct gpu_task &task;
    int count;
    unsigned inverse; // 2^31 / tokens, rounded up: so it takes no division

    __device__ __forceinline__ prefill_columns(const struct gpu_task &given)
        : task(given), count(given.layer == 0 ? given.tokens : given.tokens * STREAMS),
          inverse((1u << 31) / given.tokens + 1) {
    }

    __device__ __forceinline__ int stream(int column) const {
        return (unsigned long long)(2 * column) * inverse >> 32;
    }
    __device__ __forceinline__ int position(int column) const {
        return task.position + column - stream(column) * task.tokens;
    }
};

// What q|k|v leaves of a column: queries' heads, keys', values', each [head_dim].
static __device__ __forceinline__ unsigned short *projected_head(const struct gpu_task &task,
                                                                 int column, int head) {
    return task.projected + column * QKV_FLOATS + head * HEAD_DIM;
}

// A step: which 16s of K. Every pass over K starts one.
struct product_step {
    int weight_tile;   // the first one's, with its plane
    int tiles;         // how many there are: less than 1 behind the last pass
    const char *input; // the row of blocks
    int input_chunk;   // the first one's there
};

static __device__ __forceinline__ int pass_steps(const struct product &p) {
    return (p.column_tiles + STEP_TILES - 1) / STEP_TILES;
}

static __device__ __forceinline__ int count_steps(const struct product &p) {
    return WEIGHT_PLANES * pass_steps(p);
}

static __device__ __forceinline__ struct product_step find_step(const struct product &p, int n) {
    int plane = WEIGHT_PLANES > 1 ? n / pass_steps(p) : 0;
    int tile = (n - plane * pass_steps(p)) * STEP_TILES;
    struct product_step step = {plane * p.column_tiles + tile,
                                n < count_steps(p) ? p.column_tiles - tile : 0,
                                p.input + (long long)(tile * TILE / INPUT_K) * INPUT_ROW_BYTES,
                                tile * TILE % INPUT_K / CHUNK_K};
    return step;
}

// Blocks of results: those of the same rows follow each other, they read the same weights.
static __device__ __forceinline__ int blocks_of_row(const struct product &p, int columns) {
    return (p.columns + columns - 1) / columns;
}

static __device__ __forceinline__ int count_blocks(const struct product &p, int columns) {
    return (p.row_tiles + BLOCK_TILES - 1) / BLOCK_TILES * blocks_of_row(p, columns);
}

// Its first row of tiles and its first column.
static __device__ __forceinline__ int block_tile(const struct product &p, int columns, int block) {
    return block / blocks_of_row(p, columns) * BLOCK_TILES;
}

static __device__ __forceinline__ int block_column(const struct product &p, int columns,
                                                   int block) {
    return block % blocks_of_row(p, columns) * columns;
}

// What a thread holds of a block of results are slices: sums of 16 rows by 64 columns of its warp,
// as multiply has them.
enum { SLICE_FLOATS = 32 };

struct slice {
    int row_tile, column; // the first column
};
