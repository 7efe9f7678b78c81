// Blocks of products where warpgroups multiply (wgmma): two of them, each 64 rows by all columns of
// the block. Weights are copied to shared memory in the pack's order and go through registers,
// whatever their format is; activations are read where they lie.

enum {
    COLUMN_COST = 16, // what a block of results costs beside its columns, in columns
    SPARE_BYTES = PRODUCT_THREADS * SLICE_FLOATS * 4, // for what follows a product: a slice each
    WARPGROUP_SHARED = 224 << 10,
    // Weights of a step, in front of its activations.
    ROWS_STEP_BYTES = (BLOCK_TILES * ROW_STEP_BYTES + 1023) / 1024 * 1024,
};

// What is copied ahead: steps of this block of threads, to one stage after the other, also from one
// block of results to the next.
template <int COLUMNS> struct feed {
    enum {
        STAGE_BYTES = ROWS_STEP_BYTES + COLUMNS * INPUT_K * 2,
        FIT = (WARPGROUP_SHARED - SPARE_BYTES) / STAGE_BYTES,
        STAGES = FIT < 6 ? FIT : 6,
        AHEAD = STAGES - 2, // steps: two more are multiplied
    };

    int block, step, stage;
    int row_tile, column; // of the block: found once, divisions take long

    __device__ __forceinline__ void find_block(const struct product &p) {
        row_tile = block_tile(p, COLUMNS, block);
        column = block_column(p, COLUMNS, block);
    }

    __device__ __forceinline__ char *place(int stage) const {
        return shared_memory() + stage * STAGE_BYTES;
    }

    __device__ __forceinline__ void copy(const struct product &p, int steps) {
        if (block < count_blocks(p, COLUMNS)) {
            struct product_step s = find_step(p, step);
            copy_weights(p, s, row_tile, place(stage));
            copy_input<COLUMNS>(p, s, column, place(stage) + ROWS_STEP_BYTES);
        }
        commit_copies();
        stage = stage + 1 < STAGES ? stage + 1 : 0;
        if (++step == steps) {
            step = 0;
            block += gridDim.x;
            find_block(p);
        }
    }
};

// Multiplies and calls finish(slice, sum) for every slice of the results of this block of threads.
template <int COLUMNS, typename FINISH>
static __device__ __forceinline__ void multiply_by_warpgroups(const struct product &p,
                                                              const FINISH &finish) {
    typedef struct feed<COLUMNS> feed_type;
    const int SLICES = COLUMNS / SLICE_COLUMNS, STAGES = feed_type::STAGES;
    const int steps = (count_steps(p) + 1) / 2 * 2; // two sets of registers take turns
    feed_type feed = {(int)blockIdx.x, 0, 0, 0, 0};
    feed.find_block(p);
    for (int i = 0; i < feed_type::AHEAD; i++)
        feed.copy(p, steps);
    int stage = 0;
    for (int block = blockIdx.x; block < count_blocks(p, COLUMNS); block += gridDim.x) {
        float sum[SLICES][8][4] = {};
        struct tile weights[2][STEP_TILES];
        for (int step = 0; step < steps; step += 2) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const char *place = feed.place(stage);
                wait_copies<feed_type::AHEAD - 1>();
                show_copies();
                __syncthreads();
                load_weights(weights[half], place, warp_id(), find_step(p, step + half).low);
                fence_products();
#pragma unroll
                for (int k = 0; k < STEP_TILES; k++)
                    multiply_warpgroup(sum, weights[half][k],
                                       place + ROWS_STEP_BYTES + k * TILE * 2);
                commit_products();
                feed.copy(p, steps);
                wait_products<1>();
                stage = stage + 1 < STAGES ? stage + 1 : 0;
            }
        }
        wait_products<0>();
#pragma unroll
        for (int i = 0; i < SLICES; i++) {
            keep(sum[i]);
            struct slice slice = {block_tile(p, COLUMNS, block) + warp_id(),
                                  block_column(p, COLUMNS, block) + i * SLICE_COLUMNS};
            finish(slice, sum[i]);
        }
    }
}

// Columns of a block of results, so that the last round of blocks leaves few multiprocessors idle.
static __device__ inline constexpr int block_columns(int row_tiles) {
    const int MULTIPROCESSORS = 132;
    int best = 256, least = 1 << 30;
    for (int columns = 256; columns >= 128; columns -= SLICE_COLUMNS) {
        int blocks =
            (row_tiles + BLOCK_TILES - 1) / BLOCK_TILES * ((GPU_COLUMNS + columns - 1) / columns);
        int cost = (blocks + MULTIPROCESSORS - 1) / MULTIPROCESSORS * (columns + COLUMN_COST);
        if (cost < least) {
            least = cost;
            best = columns;
        }
    }
    return best;
}

// Shared memory for what follows a product: SLICE_FLOATS for each thread.
static __device__ inline float *spare_floats() {
    return (float *)(shared_memory() + (WARPGROUPS ? WARPGROUP_SHARED - SPARE_BYTES : 0));
}
