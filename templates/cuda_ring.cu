// The ring of cuda_product.cu: what is multiplied in which order, and how.

enum {
    MOST_SLOTS = 26,
    TILE_ROOM = (int)layer_tiles::BYTES > (int)head_tiles::BYTES  ? layer_tiles::BYTES
                : (int)head_tiles::BYTES > (int)bf16_tiles::BYTES ? head_tiles::BYTES
                                                                  : bf16_tiles::BYTES,
    SLOT_BYTES = 32 * TILE_ROOM,  // a slot holds at least 32 tiles
    SUM_ROWS = 4 / COLUMN_GROUPS, // rows of tiles whose sums are kept until they are added
    SUMS_BYTES = SUM_ROWS * COLUMN_GROUPS * SPLIT_SUM_FLOATS * 4,
    ATTENTION_BYTES = WARPS * ATTENTION_PARTIAL * 4,
    WORK_BYTES = SUMS_BYTES > ATTENTION_BYTES ? SUMS_BYTES : ATTENTION_BYTES,
    // The part of the MLP that a block does in one go: channels, and tiles of down_proj's rows.
    MLP_CHANNELS = 64,
    MLP_TILES = MLP_CHANNELS / TILE_COLUMNS,
    MLP_ROWS = MLP_CHANNELS / 8, // of tiles, of gate and up
    INNER_BYTES = MLP_CHANNELS / TILE * COLUMN_GROUPS * COLUMN_BYTES,
    PIECE_BYTES = MLP_TILES * layer_tiles::BYTES,                 // of a row of down_proj
    SLOT_PIECES = SLOT_BYTES / PIECE_BYTES / WARPS * WARPS < WARP // a lane copies one
                      ? SLOT_BYTES / PIECE_BYTES / WARPS * WARPS
                      : WARP,
    KEPT_BYTES = THREADS * 16 + 768, // the rest of struct workplace
    SLOTS_THAT_FIT = (SHARED_BYTES - WORK_BYTES - INNER_BYTES - KEPT_BYTES) / SLOT_BYTES,
    RING_SLOTS = SLOTS_THAT_FIT < MOST_SLOTS ? SLOTS_THAT_FIT : MOST_SLOTS,
    FLYING_BYTES = 48 << 10, // under way, at most: more would delay what the blocks tell each other
    FLYING_FIT = FLYING_BYTES / SLOT_BYTES,
    FLYING = FLYING_FIT < 2            ? 2
             : FLYING_FIT < RING_SLOTS ? FLYING_FIT
                                       : RING_SLOTS,
};

// What lies in shared memory behind the slots and the sums.
struct workplace {
    struct columns inner[INNER_BYTES / 8]; // activations of MLP_CHANNELS, see column_index
    unsigned long long full[MOST_SLOTS], empty[MOST_SLOTS]; // of the slots
    float4 kept[THREADS];              // each thread's own, from one phase to the next
    float scales[TILE], weights[TILE]; // of norms; of streams
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
    int groups, rows;             // rows: of a group; 0: one row, of which each block takes a copy
    int column_tiles, tile_bytes; // of a row
};

enum { MIX_ROWS = STREAMS * WEIGHT_PLANES }; // of tiles for one row of tiles: see decode_mix

// q|k|v and o of a layer.
static __device__ __forceinline__ struct matrix attention_matrix(const char *layer, bool o) {
    struct matrix qkv = {layer + QKV_OFFSET, QKV_ROW_TILES, 1, HIDDEN_COLUMN_TILES * WEIGHT_PLANES,
                         layer_tiles::BYTES};
    struct matrix out = {layer + O_OFFSET, HIDDEN_TILES, 1, O_COLUMN_TILES * WEIGHT_PLANES,
                         layer_tiles::BYTES};
    return o ? out : qkv;
}

// Behind the layers: the aggregation network, if there is one, and the head.
static __device__ __forceinline__ struct matrix head_matrix(const struct gpu_task &task, int n) {
    struct matrix mix = {task.weights + MIX_OFFSET, HIDDEN_TILES, MIX_ROWS, HIDDEN_TILES,
                         bf16_tiles::BYTES};
    struct matrix weigh = {task.weights + WEIGH_OFFSET, HIDDEN_TILES, 0,
                           HIDDEN_TILES * WEIGHT_PLANES, bf16_tiles::BYTES};
    struct matrix head = {task.weights + HEAD_OFFSET, HEAD_ROW_TILES, 1,
                          HIDDEN_COLUMN_TILES * WEIGHT_PLANES, head_tiles::BYTES};
    return n == 2 ? head : n == 1 ? weigh : mix;
}

// This block's share of the MLP: tiles of a row of down_proj, in one plane, and the channels of
// gate and up that they are multiplied with.
struct share {
    int first, end;

    __device__ __forceinline__ share() {
        int each = blocks_tiles();
        first = blockIdx.x * each;
        end = first + each < DOWN_COLUMN_TILES ? first + each : DOWN_COLUMN_TILES;
    }

    static __device__ __forceinline__ int blocks_tiles() {
        return (DOWN_COLUMN_TILES + (int)gridDim.x - 1) / (int)gridDim.x;
    }

    // How many blocks have a share.
    static __device__ __forceinline__ int blocks() {
        return (DOWN_COLUMN_TILES + blocks_tiles() - 1) / blocks_tiles();
    }

    // Of the part that starts with tile `first`.
    __device__ __forceinline__ int part_tiles(int from) const {
        return end - from < MLP_TILES ? end - from : MLP_TILES;
    }
};

// Rows of tiles of gate and up for `tiles` tiles of down from `first` on.
static __device__ __forceinline__ int inner_rows(int first, int tiles) {
    const int each = TILE_COLUMNS / 8;
    int end =
        (first + tiles) * each < GATE_UP_ROW_TILES ? (first + tiles) * each : GATE_UP_ROW_TILES;
    return end - first * each;
}

// Which slot comes next.
struct ring : ring_place<RING_SLOTS> {
    // A consumer's: until the slot is full; and then to the next one, this is the producer's again.
    __device__ __forceinline__ void wait() const {
        wait_barrier(&workplace()->full[slot], parity);
    }

    __device__ __forceinline__ void leave() {
        arrive_as_warp(&workplace()->empty[slot]);
        next();
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

    // The next slot, when it is free.
    __device__ __forceinline__ char *take_slot() {
        if (flying == FLYING)
            wait_for_oldest();
        wait_barrier(&workplace()->empty[to.slot], to.parity ^ 1);
        return ring_slot(to.slot);
    }

    __device__ __forceinline__ void pass_slot() {
        to.next();
        flying++;
    }

    __device__ __forceinline__ void copy_row(const char *from, int column_tiles, int tile_bytes) {
        const int most = SLOT_BYTES / tile_bytes / WARPS * WARPS;
        for (int k = 0; k < column_tiles; k += most) {
            int tiles = column_tiles - k < most ? column_tiles - k : most;
            copy_slot(take_slot(), from + k * tile_bytes, tiles * tile_bytes,
                      &workplace()->full[to.slot]);
            pass_slot();
        }
    }

    __device__ __forceinline__ void copy_matrix(const struct matrix &m) {
        const int bytes = m.column_tiles * m.tile_bytes;
        for (int group = blockIdx.x; group < m.groups; group += gridDim.x) {
            if (m.rows == 0 && group == (int)blockIdx.x)
                copy_row(m.tiles, m.column_tiles, m.tile_bytes);
            for (int row = 0; row < m.rows; row++)
                copy_row(m.tiles + ((long long)group * m.rows + row) * bytes, m.column_tiles,
                         m.tile_bytes);
        }
    }

    // Some channels of gate and up, then what they are multiplied with of every row of down_proj.
    __device__ __forceinline__ void copy_mlp(const char *layer) {
        const int row_tiles = HIDDEN_COLUMN_TILES * WEIGHT_PLANES, bytes = layer_tiles::BYTES;
        const struct share share;
        for (int first = share.first; first < share.end; first += MLP_TILES) {
            int tiles = share.part_tiles(first), rows = inner_rows(first, tiles);
            const char *gate_up =
                layer + GATE_UP_OFFSET + (long long)first * (TILE_COLUMNS / 8) * row_tiles * bytes;
            for (int row = 0; row < rows; row++)
                copy_row(gate_up + (long long)row * row_tiles * bytes, row_tiles, bytes);
            for (int plane = 0; plane < WEIGHT_PLANES; plane++) {
                const char *down =
                    layer + DOWN_OFFSET + (plane * DOWN_COLUMN_TILES + first) * bytes;
                for (int row = 0; row < HIDDEN_TILES; row += SLOT_PIECES) {
                    int pieces =
                        HIDDEN_TILES - row < SLOT_PIECES ? HIDDEN_TILES - row : SLOT_PIECES;
                    const int stride = DOWN_COLUMN_TILES * WEIGHT_PLANES * bytes;
                    copy_pieces(take_slot(), PIECE_BYTES, down + (long long)row * stride, stride,
                                tiles * bytes, pieces, &workplace()->full[to.slot]);
                    pass_slot();
                }
            }
        }
    }
};

// The producer's whole work: all that this block multiplies.
static __device__ __forceinline__ void fill_ring(const struct gpu_task &task) {
    struct filling filling = {{}, {}, 0};
    for (int layer = task.ids ? LAYERS : 0; layer < LAYERS; layer++) {
        const char *weights = task.weights + LAYERS_OFFSET + layer * LAYER_STRIDE;
        for (int o = 0; o < 2; o++)
            filling.copy_matrix(attention_matrix(weights, o));
        filling.copy_mlp(weights);
    }
    for (int n = STREAMS > 1 ? 0 : 2; n < 3; n++)
        filling.copy_matrix(head_matrix(task, n));
    while (filling.flying > 0) // a block must not end before its copies
        filling.wait_for_oldest();
}

// Products of rows of TILES tiles in PLANES planes that share activations, of which there are
// COLUMNS columns in PARTS parts, PART_INPUTS 16s each, as column_index has them.
template <typename FORMAT, int TILES, int PLANES, int PARTS, int PART_INPUTS, int COLUMNS>
struct row_product {
    enum {
        ALL_TILES = TILES * PLANES,
        SLOT_TILES = SLOT_BYTES / FORMAT::BYTES / WARPS * WARPS,
        WARP_TILES = SLOT_TILES / WARPS, // of a slot, for each warp
        SLOTS = (ALL_TILES + SLOT_TILES - 1) / SLOT_TILES,
        GROUPS = (COLUMNS + 7) / 8,
        PIECES = FORMAT::INPUTS * PARTS * GROUPS, // of activations for a tile, 8 bytes each
        FIT = 24 / (WARP_TILES * PIECES),         // slots whose activations fit the registers
        CHUNK = SLOTS <= FIT ? SLOTS
                : FIT < 2    ? 1
                             : FIT / 2,
        CHUNKS = (SLOTS + CHUNK - 1) / CHUNK,
        ROW_FLOATS = GROUPS * SPLIT_SUM_FLOATS,
    };

    struct inputs {
        struct columns x[CHUNK * WARP_TILES][PIECES];
    };

    // The activations of chunk `chunk`, for this warp's tiles.
    static __device__ __forceinline__ void load(struct inputs &in, const char *input, int chunk) {
        const struct columns *from =
            (const struct columns *)input + warp_id() * FORMAT::INPUTS * GROUPS * WARP + lane_id();
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
                in.x[n][piece] =
                    (all || there) && group * 8 + lane_id() / 4 < COLUMNS ? from[at * WARP] : none;
            }
        }
    }

    // sum += the slots of chunk `chunk` times their activations.
    static __device__ __forceinline__ void multiply_chunk(float (&sum)[2][GROUPS][4],
                                                          struct ring &ring,
                                                          const struct inputs &in, int chunk) {
#pragma unroll
        for (int s = 0; s < CHUNK; s++) {
            int first = (chunk * CHUNK + s) * SLOT_TILES;
            if (CHUNKS > 1 && first >= ALL_TILES)
                return;
            ring.wait();
            const char *slot = ring_slot(ring.slot) + warp_id() * FORMAT::BYTES;
#pragma unroll
            for (int i = 0; i < WARP_TILES; i++) {
                bool all = CHUNKS == 1 && first + (i + 1) * WARPS <= ALL_TILES;
                if (all || first + i * WARPS + warp_id() < ALL_TILES)
                    FORMAT::multiply_tile(sum[i % 2], slot + i * WARPS * FORMAT::BYTES,
                                          in.x[s * WARP_TILES + i]);
            }
            ring.leave();
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
