// Blocks of products where warpgroups multiply (wgmma): two of them, each 64 rows by all columns of
// the block. A warp of its own copies ahead, one stage after the other, also from one block of
// results to the next: bulk copies, whose end barriers tell. Weights lie in shared memory in the
// pack's order and go through registers, whatever their format is; activations are read where they
// lie. The warpgroups wait for stages, not for each other: one ends a block of results while the
// other still multiplies.

enum {
    COLUMN_COST = 16, // what a block of results costs beside its columns, in columns
    MOST_STAGES = 6,
    BARRIER_BYTES = 1024,
    // Weights of a step, in front of its activations.
    ROWS_STEP_BYTES = (BLOCK_TILES * ROW_STEP_BYTES + 1023) / 1024 * 1024,
};

// Of the stages, at the end of the shared memory.
struct stage_barriers {
    unsigned long long full[MOST_STAGES], empty[MOST_STAGES];
};

static __device__ inline struct stage_barriers *stage_barriers() {
    return (struct stage_barriers *)(shared_memory() + SHARED_BYTES - BARRIER_BYTES);
}

// By all threads; `copies` make a stage full, `consumers` warps leave it.
static __device__ __forceinline__ void init_stages(int stages, int copies, int consumers) {
    if (threadIdx.x == 0) {
        for (int i = 0; i < stages; i++) {
            init_barrier(&stage_barriers()->full[i], copies * COPY_ARRIVALS);
            init_barrier(&stage_barriers()->empty[i], consumers);
        }
        publish_barriers();
    }
    __syncthreads();
}

// A place in the ring of stages, the producer's or a consumer's.
template <int BYTES> struct stage_ring {
    enum {
        FIT = (SHARED_BYTES - BARRIER_BYTES) / BYTES,
        STAGES = FIT < MOST_STAGES ? FIT : MOST_STAGES,
    };

    struct ring_place<STAGES> at;

    __device__ __forceinline__ char *place() const {
        return shared_memory() + at.slot * BYTES;
    }
    __device__ __forceinline__ unsigned long long *full() const {
        return &stage_barriers()->full[at.slot];
    }
    __device__ __forceinline__ void await_full() const {
        wait_barrier(full(), at.parity);
    }
    __device__ __forceinline__ void await_empty() const {
        wait_barrier(&stage_barriers()->empty[at.slot], at.parity ^ 1);
    }

    // A consumer's: the stage before this one is the producer's again.
    __device__ __forceinline__ void leave_last() const {
        arrive_as_warp(&stage_barriers()->empty[at.slot > 0 ? at.slot - 1 : STAGES - 1]);
    }
};

// Of steps of products: weights, then activations.
template <int COLUMNS> struct product_ring : stage_ring<ROWS_STEP_BYTES + COLUMNS * INPUT_K * 2> {
    // The producer's: a step of a block of results, which starts at this row of tiles and column.
    // All columns are copied; nobody looks at what those behind the last give. Activations are read
    // again for other rows, by all multiprocessors: weights must not push them out of the L2 cache.
    __device__ __forceinline__ void copy(const struct product &p, const struct product_step &step,
                                         int row_tile, int column) {
        const int bytes = layer_tiles::BYTES, all = WEIGHT_PLANES * p.column_tiles / INPUT_TILES;
        int tiles = step.tiles < STEP_TILES ? step.tiles : STEP_TILES;
        int rows = p.row_tiles - row_tile;
        this->await_empty();
        copy_pieces<false>(this->place(), ROW_STEP_BYTES,
                           p.weights +
                               ((long long)row_tile * all + step.weight_tile / INPUT_TILES) * bytes,
                           all * bytes, tiles / INPUT_TILES * bytes,
                           rows < BLOCK_TILES ? rows : BLOCK_TILES, this->full());
        copy_slot<false>(this->place() + ROWS_STEP_BYTES,
                         step.input + column / 8 * INPUT_BLOCK_BYTES, COLUMNS * INPUT_K * 2,
                         this->full());
        this->at.next();
    }

    // Starts sum += what the stage has, when it is full. rows: of tiles in the block.
    template <enum number NUMBER>
    __device__ __forceinline__ void
    multiply(float (&sum)[COLUMNS / 8][4], struct tile (&weights)[STEP_TILES],
             const struct product &p, const struct product_step &step, int rows) {
        const bool whole = p.column_tiles % STEP_TILES == 0;
        const char *place = this->place();
        const unsigned long long columns = swizzled_columns(place + ROWS_STEP_BYTES);
        int row = warp_id() < rows ? warp_id() : rows - 1;
        this->await_full();
#pragma unroll
        for (int k = 0; k < STEP_TILES; k++)
            if (whole || k < step.tiles)
                weights[k] = load_weight<NUMBER>(place, row, k);
        fence_products();
#pragma unroll
        for (int k = 0; k < STEP_TILES; k++)
            if (whole || k < step.tiles)
                multiply_warpgroup<NUMBER>(sum, weights[k], further(columns, k * TILE * 2));
        commit_products();
    }
};

template <int COLUMNS>
static __device__ __forceinline__ void copy_blocks(const struct product &p, int steps) {
    struct product_ring<COLUMNS> ring;
    for (int block = blockIdx.x; block < count_blocks(p, COLUMNS); block += gridDim.x) {
        int row_tile = block_tile(p, COLUMNS, block), column = block_column(p, COLUMNS, block);
        for (int step = 0; step < steps; step++)
            ring.copy(p, find_step(p, step), row_tile, column);
    }
}

// Multiplies and calls finish(slice, sum) for every slice of the results of this block of threads.
template <enum number NUMBER, int COLUMNS, typename FINISH>
static __device__ __forceinline__ void multiply_by_warpgroups(const struct product &p,
                                                              const FINISH &finish) {
    const int steps = count_steps(p);
    struct product_ring<COLUMNS> ring;
    init_stages(ring.STAGES, 2, PRODUCT_WARPS);
    if (warp_id() >= PRODUCT_WARPS) {
        give_registers<24>();
        if (warp_id() == PRODUCT_WARPS)
            copy_blocks<COLUMNS>(p, steps);
        return;
    }
    take_registers<240>();
    for (int block = blockIdx.x; block < count_blocks(p, COLUMNS); block += gridDim.x) {
        int row_tile = block_tile(p, COLUMNS, block), column = block_column(p, COLUMNS, block);
        float sum[COLUMNS / 8][4] = {};
        struct tile weights[2][STEP_TILES]; // of two steps under way
        for (int step = 0; step < steps; step += 2) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                if (steps % 2 && step + half == steps)
                    break;
                ring.template multiply<NUMBER>(sum, weights[half], p, find_step(p, step + half),
                                               p.row_tiles - row_tile);
                if (step + half > 0) {
                    wait_products<1>();
                    ring.leave_last();
                }
                ring.at.next();
            }
        }
        wait_products<0>();
        ring.leave_last();
        keep(sum);
#pragma unroll
        for (int i = 0; i < COLUMNS; i += SLICE_COLUMNS) {
            struct slice slice = {row_tile + warp_id(), column + i};
            finish(slice, sum + i / 8);
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
