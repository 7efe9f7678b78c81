// Weights times a few columns of activations in a kernel that stays for a whole decode step. Each
// block, one on a multiprocessor, has a ring of slots in shared memory. A warp of its own, the
// producer, fills it with the tiles that the block will multiply, in that order, through all phases
// and layers, and waits for nothing but room: so memory is read also while the others wait for what
// other blocks compute. A slot is SLOT_TILES tiles of one row; the warps take them in turn, and
// their sums are added in one order (share_sums, finish_split). Activations come to registers, each
// warp only what its tiles need.

enum {
    MOST_SLOTS = 26,
    MOST_SPLITS = 16, // of an item of attention
    SPLIT_TILES = 1,  // rows of tiles of a warp, from which on attention is split
    FLYING_BYTES = 40 << 10, // under way, at most: more would delay what the blocks tell each other
    CALM_BYTES = 16 << 10,   // the same around attention, when they tell each other most
    CALM_ROWS = 3,           // of gate and up that belong to that time
    SLOT_TILES = 16,
    WARP_TILES = SLOT_TILES / WARPS, // of a slot, for each warp
    SLOT_BYTES = SLOT_TILES * layer_tiles::BYTES,
    STEP_THREADS = THREADS + WARP, // the last warp is the producer
    SUM_ROWS = 8 / COLUMN_GROUPS,  // rows of tiles whose sums are kept until they are added
    SUMS_BYTES = SUM_ROWS * COLUMN_GROUPS * SPLIT_SUM_BYTES,
    ATTENTION_BYTES = WARPS * ATTENTION_PARTIAL * 4,
    WORK_BYTES = SUMS_BYTES > ATTENTION_BYTES ? SUMS_BYTES : ATTENTION_BYTES,
    SLOTS_THAT_FIT = (SHARED_BYTES - WORK_BYTES - 512) / SLOT_BYTES,
    RING_SLOTS = SLOTS_THAT_FIT < MOST_SLOTS ? SLOTS_THAT_FIT : MOST_SLOTS,
    FLYING = FLYING_BYTES < SLOT_BYTES ? 1 : FLYING_BYTES / SLOT_BYTES,
    CALM = CALM_BYTES < SLOT_BYTES ? 1 : CALM_BYTES / SLOT_BYTES,
};

// Shared memory of the kernel, behind the slots.
struct workplace {
    unsigned long long full[MOST_SLOTS], empty[MOST_SLOTS]; // of the slots
    float scales[TILE];
    unsigned word; // of last_to_arrive
};

static __device__ inline struct workplace *workplace() {
    return (struct workplace *)(shared_memory() + RING_SLOTS * SLOT_BYTES + WORK_BYTES);
}

static __device__ inline float *work_floats() {
    return (float *)(shared_memory() + RING_SLOTS * SLOT_BYTES);
}

// The barrier of all threads but the producer's.
static __device__ inline void consumers_barrier() {
    barrier_sync<1, THREADS>();
}

// A matrix of a layer: rows are shared among the blocks in turn.
struct matrix {
    long long offset;           // from the layer's start
    int row_tiles, column_tiles; // column_tiles: of all planes
};

enum { MATRICES = 4 };

static __device__ inline struct matrix layer_matrix(int which) {
    const struct matrix all[MATRICES] = {
        {QKV_OFFSET, QKV_ROW_TILES, HIDDEN_COLUMN_TILES * WEIGHT_PLANES},
        {O_OFFSET, HIDDEN_TILES, O_COLUMN_TILES * WEIGHT_PLANES},
        {GATE_UP_OFFSET, GATE_UP_ROW_TILES, HIDDEN_COLUMN_TILES * WEIGHT_PLANES},
        {DOWN_OFFSET, HIDDEN_TILES, DOWN_COLUMN_TILES * WEIGHT_PLANES},
    };
    return all[which];
}

// A place in the ring: how many slots were passed.
struct ring {
    int slot;        // which comes next
    unsigned parity; // of the barriers that say that it is full

    __device__ __forceinline__ void next() {
        slot++;
        if (slot == RING_SLOTS) {
            slot = 0;
            parity ^= 1;
        }
    }
};

static __device__ inline char *ring_slot(int slot) {
    return shared_memory() + slot * SLOT_BYTES;
}

// The producer's whole work: all the block's weights of all layers.
static __device__ __forceinline__ void fill_ring(const struct gpu_task &task) {
    struct workplace *w = workplace();
    struct ring to = {0, 0}, oldest = {0, 0}; // oldest: of the copies that are under way
    int flying = 0;
    for (int layer = 0; layer < LAYERS; layer++) {
        const char *weights = task.weights + LAYERS_OFFSET + layer * LAYER_STRIDE;
        for (int which = 0; which < MATRICES; which++) {
            const struct matrix m = layer_matrix(which);
            for (int row = blockIdx.x; row < m.row_tiles; row += gridDim.x) {
                const char *from = weights + m.offset +
                                   (long long)row * m.column_tiles * layer_tiles::BYTES;
                bool calm = which < 2 || (which == 2 && row / gridDim.x < CALM_ROWS);
                for (int k = 0; k < m.column_tiles; k += SLOT_TILES) {
                    int tiles = m.column_tiles - k < SLOT_TILES ? m.column_tiles - k : SLOT_TILES;
                    while (flying >= (calm ? CALM : FLYING)) {
                        wait_barrier(&w->full[oldest.slot], oldest.parity);
                        oldest.next();
                        flying--;
                    }
                    wait_barrier(&w->empty[to.slot], to.parity ^ 1);
                    copy_slot(ring_slot(to.slot), from + k * layer_tiles::BYTES,
                              tiles * layer_tiles::BYTES, &w->full[to.slot]);
                    to.next();
                    flying++;
                }
            }
        }
    }
    // A block must not end before its copies have.
    for (; flying > 0; flying--) {
        wait_barrier(&w->full[oldest.slot], oldest.parity);
        oldest.next();
    }
}

// A product of rows of COLUMN_TILES tiles, all planes, whose activations are PARTS times
// [INPUT_TILES_OF_K tiles]. `input`: as column_index has them.
template <typename FORMAT, int PARTS, int PLANE_TILES> struct row_product {
    enum {
        TILES = PLANE_TILES * WEIGHT_PLANES,
        SLOTS = (TILES + SLOT_TILES - 1) / SLOT_TILES,
        PIECES = FORMAT::INPUTS * PARTS * COLUMN_GROUPS, // of activations for a tile, 8 bytes each
        FIT = 48 / (WARP_TILES * PIECES),                // slots whose activations fit the registers
        CHUNK = SLOTS <= FIT ? SLOTS : 2,
        CHUNKS = (SLOTS + CHUNK - 1) / CHUNK,
    };

    struct inputs {
        struct columns x[CHUNK * WARP_TILES][PIECES];
    };

    // The activations of chunk `chunk`, for this warp's tiles.
    static __device__ __forceinline__ void load(struct inputs &in, const char *input, int chunk) {
        const struct columns *from =
            (const struct columns *)input +
            warp_id() * FORMAT::INPUTS * COLUMN_GROUPS * WARP + lane_id();
#pragma unroll
        for (int n = 0; n < CHUNK * WARP_TILES; n++) {
            int tile = chunk * CHUNK * SLOT_TILES + n * WARPS; // of warp 0
            bool all = CHUNKS == 1 && tile + WARPS <= TILES, there = tile + warp_id() < TILES;
            if (WEIGHT_PLANES > 1)
                tile -= tile + warp_id() < PLANE_TILES ? 0 : PLANE_TILES;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) {
                int group = piece % COLUMN_GROUPS, half = piece / COLUMN_GROUPS % FORMAT::INPUTS;
                int part = piece / COLUMN_GROUPS / FORMAT::INPUTS;
                int at = ((part * PLANE_TILES + tile) * FORMAT::INPUTS + half) * COLUMN_GROUPS;
                const struct columns none = {0, 0};
                in.x[n][piece] = (all || there) && group * 8 + lane_id() / 4 < STREAMS
                                     ? from[(at + group) * WARP]
                                     : none;
            }
        }
    }

    // sum += the slots of chunk `chunk` times their activations.
    static __device__ __forceinline__ void multiply_chunk(float (&sum)[2][COLUMN_GROUPS][4],
                                                          struct ring &ring,
                                                          const struct inputs &in, int chunk) {
        struct workplace *w = workplace();
#pragma unroll
        for (int s = 0; s < CHUNK; s++) {
            int first = (chunk * CHUNK + s) * SLOT_TILES;
            if (CHUNKS > 1 && first >= TILES)
                return;
            wait_barrier(&w->full[ring.slot], ring.parity);
            const char *slot = ring_slot(ring.slot) + warp_id() * FORMAT::BYTES;
#pragma unroll
            for (int i = 0; i < WARP_TILES; i++) {
                if ((CHUNKS == 1 && first + i * WARPS + WARPS <= TILES) ||
                    first + i * WARPS + warp_id() < TILES)
                    FORMAT::multiply_step(sum[i % 2], slot + i * WARPS * FORMAT::BYTES,
                                          in.x[s * WARP_TILES + i]);
            }
            __syncwarp();
            if (lane_id() == 0)
                arrive(&w->empty[ring.slot]);
            ring.next();
        }
    }

    static __device__ __forceinline__ void store(float *sums, int row,
                                                 const float (&sum)[2][COLUMN_GROUPS][4]) {
#pragma unroll
        for (int group = 0; group < COLUMN_GROUPS; group++) {
            float *to = sums + (((row * COLUMN_GROUPS + group) * WARPS + warp_id()) * WARP +
                                lane_id()) * 4;
#pragma unroll
            for (int i = 0; i < 4; i++)
                to[i] = sum[0][group][i] + sum[1][group][i];
        }
    }

    // Rows first, first + gridDim.x and so on, SUM_ROWS at most: their sums, for finish_split. Ends
    // with a barrier.
    static __device__ __forceinline__ void multiply_rows(struct ring &ring, const char *input,
                                                        int row_tiles, int first) {
        struct inputs even, odd;
        int rows = 0;
        load(even, input, 0);
#pragma unroll 1
        for (int row = first; row < row_tiles && rows < SUM_ROWS; row += gridDim.x) {
            float sum[2][COLUMN_GROUPS][4] = {};
            if (CHUNKS == 1) {
                multiply_chunk(sum, ring, even, 0);
            } else {
#pragma unroll 1
                for (int chunk = 0; chunk < CHUNKS; chunk += 2) {
                    load(odd, input, chunk + 1);
                    multiply_chunk(sum, ring, even, chunk);
                    load(even, input, chunk + 2 < CHUNKS ? chunk + 2 : 0);
                    multiply_chunk(sum, ring, odd, chunk + 1);
                }
            }
            store(work_floats(), rows++, sum);
        }
        consumers_barrier();
    }
};

// Where blocks meet: what all of them wrote before they arrived is seen after the wait.
struct meeting {
    unsigned *counter, target; // target: arrivals when all are there

    __device__ __forceinline__ void arrive() {
        consumers_barrier();
        if (threadIdx.x == 0)
            arrive_grid(counter);
        target += gridDim.x;
    }

    __device__ __forceinline__ void wait() const {
        if (threadIdx.x == 0) {
            while ((int)(load_acquire(counter) - target) < 0)
                pause();
        }
        consumers_barrier();
    }
};
