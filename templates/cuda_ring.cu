// The ring of cuda_product.cu: what is multiplied in which order, and how.

enum {
    MOST_SLOTS = 26,
    SLOT_TILES = 32,
    WARP_TILES = SLOT_TILES / WARPS, // of a slot, for each warp
    LARGEST_TILE = (int)head_tiles::BYTES > (int)bf16_tiles::BYTES ? head_tiles::BYTES
                                                                   : bf16_tiles::BYTES,
    TILE_ROOM = STREAMS > 1 || (int)layer_tiles::BYTES > (int)head_tiles::BYTES
                    ? LARGEST_TILE
                    : head_tiles::BYTES,
    SLOT_BYTES = SLOT_TILES * TILE_ROOM,
    SUM_ROWS = 8 / COLUMN_GROUPS, // rows of tiles whose sums are kept until they are added
    SUMS_BYTES = SUM_ROWS * COLUMN_GROUPS * SPLIT_SUM_FLOATS * 4,
    ATTENTION_BYTES = WARPS * ATTENTION_PARTIAL * 4,
    WORK_BYTES = SUMS_BYTES > ATTENTION_BYTES ? SUMS_BYTES : ATTENTION_BYTES,
    SLOTS_THAT_FIT = (SHARED_BYTES - WORK_BYTES - 768) / SLOT_BYTES,
    RING_SLOTS = SLOTS_THAT_FIT < MOST_SLOTS ? SLOTS_THAT_FIT : MOST_SLOTS,
    FLYING_BYTES = 48 << 10, // under way, at most: more would delay what the blocks tell each other
    FLYING_FIT = FLYING_BYTES / SLOT_BYTES,
    FLYING = FLYING_FIT < 1 ? 1 : FLYING_FIT < RING_SLOTS ? FLYING_FIT : RING_SLOTS,
};

// What lies in shared memory behind the slots and the sums.
struct workplace {
    unsigned long long full[MOST_SLOTS], empty[MOST_SLOTS]; // of the slots
    float scales[TILE], weights[TILE];                      // of norms; of streams
    struct gpu_best best[WARPS];
    unsigned word; // of last_to_arrive
};

static __device__ inline struct workplace *workplace() {
    return (struct workplace *)(shared_memory() + RING_SLOTS * SLOT_BYTES + WORK_BYTES);
}

static __device__ inline float *work_floats() {
    return (float *)(shared_memory() + RING_SLOTS * SLOT_BYTES);
}

static __device__ inline char *ring_slot(int slot) {
    return shared_memory() + slot * SLOT_BYTES;
}

// The barrier of all threads but the producer's.
static __device__ inline void consumers_barrier() {
    barrier_sync<1, THREADS>();
}

// A matrix as the blocks share it: groups of rows of tiles, to blocks in turn.
struct matrix {
    const char *tiles;
    int groups, rows;                 // rows: of a group
    int column_tiles, tile_bytes; // of a row
};

enum {
    LAYER_MATRICES = 4,
    STEP_MATRICES = LAYERS * LAYER_MATRICES + (STREAMS > 1 ? 3 : 1),
    MIX_ROWS = STREAMS * WEIGHT_PLANES, // a row for each stream: see decode_mix
};

// All matrices of a decode step, in order. The second layer of the aggregation network is one row of
// tiles, of which each block that has a part of the hidden state takes its own copy.
static __device__ __forceinline__ struct matrix step_matrix(const struct gpu_task &task, int n) {
    const int planes = WEIGHT_PLANES, layer_bytes = layer_tiles::BYTES;
    const int adapter_bytes = bf16_tiles::BYTES;
    const char *layer = task.weights + LAYERS_OFFSET + n / LAYER_MATRICES * LAYER_STRIDE;
    int which = n % LAYER_MATRICES;
    if (n >= LAYERS * LAYER_MATRICES)
        which = STEP_MATRICES - 1 - n + LAYER_MATRICES; // from the last one on
    switch (which) {
    case 0:
        return {layer + QKV_OFFSET, QKV_ROW_TILES, 1, HIDDEN_COLUMN_TILES * planes, layer_bytes};
    case 1:
        return {layer + O_OFFSET, HIDDEN_TILES, 1, O_COLUMN_TILES * planes, layer_bytes};
    case 2:
        return {layer + GATE_UP_OFFSET, GATE_UP_ROW_TILES, 1, HIDDEN_COLUMN_TILES * planes,
                layer_bytes};
    case 3:
        return {layer + DOWN_OFFSET, HIDDEN_TILES, 1, DOWN_COLUMN_TILES * planes, layer_bytes};
    case 4:
        return {task.weights + HEAD_OFFSET, HEAD_ROW_TILES, 1, HIDDEN_COLUMN_TILES * planes,
                head_tiles::BYTES};
    case 5:
        return {task.weights + WEIGH_OFFSET, HIDDEN_TILES, 0, HIDDEN_TILES * planes, adapter_bytes};
    default:
        return {task.weights + MIX_OFFSET, HIDDEN_TILES, MIX_ROWS, HIDDEN_TILES, adapter_bytes};
    }
}

// A place in the ring.
struct ring {
    int slot;        // which comes next
    unsigned parity; // of the phase in which it becomes full

    __device__ __forceinline__ void next() {
        slot++;
        if (slot == RING_SLOTS) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// The producer's place, and that of the oldest copy under way.
struct filling {
    struct ring to, oldest;
    int flying;

    __device__ __forceinline__ void wait_for_oldest() {
        wait_barrier(&workplace()->full[oldest.slot], oldest.parity);
        oldest.next();
        flying--;
    }

    __device__ __forceinline__ void copy_row(const char *from, const struct matrix &m) {
        struct workplace *w = workplace();
        for (int k = 0; k < m.column_tiles; k += SLOT_TILES) {
            int tiles = m.column_tiles - k < SLOT_TILES ? m.column_tiles - k : SLOT_TILES;
            if (flying == FLYING)
                wait_for_oldest();
            wait_barrier(&w->empty[to.slot], to.parity ^ 1);
            copy_slot(ring_slot(to.slot), from + k * m.tile_bytes, tiles * m.tile_bytes,
                      &w->full[to.slot]);
            to.next();
            flying++;
        }
    }
};

// The producer's whole work: all that this block multiplies, from matrix `first` on.
static __device__ __forceinline__ void fill_ring(const struct gpu_task &task, int first) {
    struct filling filling = {{0, 0}, {0, 0}, 0};
    for (int n = first; n < STEP_MATRICES; n++) {
        const struct matrix m = step_matrix(task, n);
        const int bytes = m.column_tiles * m.tile_bytes;
        for (int group = blockIdx.x; group < m.groups; group += gridDim.x) {
            if (m.rows == 0 && group == (int)blockIdx.x) // the same for all
                filling.copy_row(m.tiles, m);
            for (int row = 0; row < m.rows; row++)
                filling.copy_row(m.tiles + ((long long)group * m.rows + row) * bytes, m);
        }
    }
    while (filling.flying > 0) // a block must not end before its copies
        filling.wait_for_oldest();
}

// Products of rows of TILES tiles in PLANES planes that share activations, of which there are
// COLUMNS columns in PARTS parts, PART_INPUTS 16s each, as column_index has them.
template <typename FORMAT, int TILES, int PLANES, int PARTS, int PART_INPUTS, int COLUMNS>
struct row_product {
    enum {
        ALL_TILES = TILES * PLANES,
        SLOTS = (ALL_TILES + SLOT_TILES - 1) / SLOT_TILES,
        GROUPS = (COLUMNS + 7) / 8,
        PIECES = FORMAT::INPUTS * PARTS * GROUPS, // of activations for a tile, 8 bytes each
        FIT = 24 / (WARP_TILES * PIECES),         // slots whose activations fit the registers
        CHUNK = SLOTS <= FIT ? SLOTS : FIT < 2 ? 1 : FIT / 2,
        CHUNKS = (SLOTS + CHUNK - 1) / CHUNK,
        ROW_FLOATS = GROUPS * SPLIT_SUM_FLOATS,
    };

    struct inputs {
        struct columns x[CHUNK * WARP_TILES][PIECES];
    };

    // The activations of chunk `chunk`, for this warp's tiles.
    static __device__ __forceinline__ void load(struct inputs &in, const char *input, int chunk) {
        const struct columns *from = (const struct columns *)input +
                                     warp_id() * FORMAT::INPUTS * GROUPS * WARP + lane_id();
#pragma unroll
        for (int n = 0; n < CHUNK * WARP_TILES; n++) {
            int tile = chunk * CHUNK * SLOT_TILES + n * WARPS; // of warp 0
            bool all = CHUNKS == 1 && tile + WARPS <= ALL_TILES;
            bool there = tile + warp_id() < ALL_TILES;
            if (PLANES > 1)
                tile -= tile + warp_id() < TILES ? 0 : TILES;
#pragma unroll
            for (int piece = 0; piece < PIECES; piece++) {
                int group = piece % GROUPS, half = piece / GROUPS % FORMAT::INPUTS;
                int part = piece / GROUPS / FORMAT::INPUTS;
                int at = (part * PART_INPUTS + tile * FORMAT::INPUTS + half) * GROUPS + group;
                const struct columns none = {0, 0};
                in.x[n][piece] = (all || there) && group * 8 + lane_id() / 4 < COLUMNS
                                     ? from[at * WARP]
                                     : none;
            }
        }
    }

    // sum += the slots of chunk `chunk` times their activations.
    static __device__ __forceinline__ void multiply_chunk(float (&sum)[2][GROUPS][4],
                                                          struct ring &ring,
                                                          const struct inputs &in, int chunk) {
        struct workplace *w = workplace();
#pragma unroll
        for (int s = 0; s < CHUNK; s++) {
            int first = (chunk * CHUNK + s) * SLOT_TILES;
            if (CHUNKS > 1 && first >= ALL_TILES)
                return;
            wait_barrier(&w->full[ring.slot], ring.parity);
            const char *slot = ring_slot(ring.slot) + warp_id() * FORMAT::BYTES;
#pragma unroll
            for (int i = 0; i < WARP_TILES; i++) {
                bool all = CHUNKS == 1 && first + (i + 1) * WARPS <= ALL_TILES;
                if (all || first + i * WARPS + warp_id() < ALL_TILES)
                    FORMAT::multiply_tile(sum[i % 2], slot + i * WARPS * FORMAT::BYTES,
                                          in.x[s * WARP_TILES + i]);
            }
            __syncwarp();
            if (lane_id() == 0)
                arrive(&w->empty[ring.slot]);
            ring.next();
        }
    }

    // The next `rows` rows, SUM_ROWS at most: their sums to work_floats() [rows, ROW_FLOATS], for
    // finish_split behind a barrier.
    static __device__ __forceinline__ void multiply_rows(struct ring &ring, const char *input,
                                                         int rows) {
        struct inputs even, odd;
        load(even, input, 0);
#pragma unroll 1
        for (int row = 0; row < rows; row++) {
            float sum[2][GROUPS][4] = {};
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
            float4 *to = (float4 *)(work_floats() + row * ROW_FLOATS) + threadIdx.x;
#pragma unroll
            for (int group = 0; group < GROUPS; group++) {
                const float(&a)[4] = sum[0][group], (&b)[4] = sum[1][group];
                to[group * THREADS] =
                    make_float4(a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]);
            }
        }
    }
};

// How many of this block's rows of tiles, gridDim.x apart, are multiplied together from `first` on.
static __device__ __forceinline__ int batch_rows(int first, int row_tiles) {
    int rows = (row_tiles - first + (int)gridDim.x - 1) / (int)gridDim.x;
    return rows < 0 ? 0 : rows < SUM_ROWS ? rows : SUM_ROWS;
}

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
