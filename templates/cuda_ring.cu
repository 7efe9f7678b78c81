// The ring of cuda_product.cu: what is multiplied in which order, and how.

// A slot's size: `bytes`, if that is larger than `least` and at least eight of it fit.
static __device__ constexpr int slot_size(int least, int bytes) {
    return bytes > least && bytes <= SHARED_BYTES / 8 ? bytes : least;
}

typedef struct split_sums<STREAMS> stream_sums;

enum {
    MOST_SLOTS = 26,
    TILE_ROOM = (int)layer_tiles::BYTES > (int)head_tiles::BYTES  ? layer_tiles::BYTES
                : (int)head_tiles::BYTES > (int)bf16_tiles::BYTES ? head_tiles::BYTES
                                                                  : bf16_tiles::BYTES,
    // Rows of tiles whose sums are kept until they are added: with few bytes adding is what takes
    // time, with many the slots that its place takes.
    SUMS_FIT = LAYER_TILE_BYTES == (int)TILE_BYTES ? 2048
               : SHARED_BYTES < 200 << 10          ? 4096
                                                   : 8192,
    SUM_ROWS_FIT = SUMS_FIT / stream_sums::ROW_FLOATS,
    SUM_ROWS = SUM_ROWS_FIT < 2   ? 2
               : SUM_ROWS_FIT < 8 ? SUM_ROWS_FIT
                                  : 8,
    SUMS_BYTES = SUM_ROWS * stream_sums::ROW_FLOATS * 4,
    // Blocks of a team tell each other their channels of the MLP, and each has a part of
    // down_proj's rows: four, if that leaves every warp a row of tiles.
    TEAM = HIDDEN_TILES >= 4 * WARPS ? 4 : 1,
    MLP_CHANNELS = 64, // of a block, in one go
    MLP_TILES = MLP_CHANNELS / TILE_COLUMNS,
    TEAM_TILES = TEAM * MLP_TILES,
    // Keys and values of a row of tiles, of the prefix or of the cache.
    SPAN_BYTES = (int)PREFIX_SPAN_BYTES > (int)ROW_BYTES ? (int)PREFIX_SPAN_BYTES : (int)ROW_BYTES,
    // A slot holds at least 32 tiles, or these keys and values; with few bytes a whole row of q|k|v
    // or of gate and up, and for each warp all of the team's tiles of a row of down_proj, so that
    // warps wait once for each.
    LEAST_SLOT_BYTES = 32 * TILE_ROOM > SPAN_BYTES ? 32 * TILE_ROOM : (int)SPAN_BYTES,
    LAYER_ROW_BYTES = (HIDDEN_COLUMN_TILES + WARPS - 1) / WARPS * WARPS * layer_tiles::BYTES,
    TEAM_BYTES = WARPS * TEAM_TILES * layer_tiles::BYTES,
    SLOT_BYTES = layer_tiles::SCALES
                     ? slot_size(slot_size(LEAST_SLOT_BYTES, LAYER_ROW_BYTES), TEAM_BYTES)
                     : (int)LEAST_SLOT_BYTES,
    SLOT_SPANS = SLOT_BYTES / SPAN_BYTES, // that lie side by side in a slot
    // Of a row of down_proj, in a slot.
    PIECE_TILES = TEAM_TILES < 4 || (int)TEAM_BYTES <= (int)SLOT_BYTES ? TEAM_TILES : 4,
    PIECE_BYTES = PIECE_TILES * layer_tiles::BYTES,
    INNER_COLUMNS = TEAM_TILES * layer_tiles::INPUTS * COLUMN_GROUPS * WARP, // of activations
    INNER_BYTES = INNER_COLUMNS * 8,
    KEPT_BYTES = THREADS * 16,
    // Attention has its queries, behind them the newest key and value, then what half of the warps
    // found, which takes the place of `inner` and `kept` too.
    HALF_WARPS = WARPS / 2,
    QUERY_BYTES = HEAD_TILES * WARP * 16,
    ATTENTION_BYTES = QUERY_BYTES + (int)cache_row::NEWEST_BYTES,
    RESULTS_BYTES = ATTENTION_BYTES + HALF_WARPS * RESULT_FLOATS * 4 - INNER_BYTES - KEPT_BYTES,
    MOST_BYTES = RESULTS_BYTES > ATTENTION_BYTES ? RESULTS_BYTES : ATTENTION_BYTES,
    WORK_BYTES = SUMS_BYTES > MOST_BYTES ? SUMS_BYTES : MOST_BYTES,
    REST_BYTES = 1280, // of struct workplace
    SLOTS_THAT_FIT =
        (SHARED_BYTES - WORK_BYTES - INNER_BYTES - KEPT_BYTES - REST_BYTES) / SLOT_BYTES,
    RING_SLOTS = SLOTS_THAT_FIT < MOST_SLOTS ? SLOTS_THAT_FIT : MOST_SLOTS,
    // Warps that attend together: the ring holds what they attend.
    SPANS_FIT = RING_SLOTS * SLOT_SPANS,
    ATTENDING_WARPS = SPANS_FIT < WARPS ? SPANS_FIT : WARPS,
    FEW_COLUMNS = 4,                  // whose activations all are asked for at once
    MOST_GIVEN = WARPGROUPS ? 24 : 8, // float4 of activations that a lane keeps
    FLYING_BYTES = 80 << 10,          // under way, at most
    FLYING_FIT = FLYING_BYTES / SLOT_BYTES,
    FLYING = FLYING_FIT < 2            ? 2
             : FLYING_FIT < RING_SLOTS ? FLYING_FIT
                                       : RING_SLOTS,
    LAYERS_INT8 = layer_tiles::SCALES && (int)layer_tiles::BYTES == (int)head_tiles::BYTES,
    LAYERS_INT4 = layer_tiles::SCALES && !LAYERS_INT8,
    // The same, in slots, of what is copied while blocks tell each other most, which more would
    // delay: a layer's weights, keys and values up to the first of the MLP that fill the ring. Two,
    // but three with int4, where a layer takes less time than its chain of phases. Of the MLP half
    // a row of gate and up, and not less than two slots; of int8's, which are larger than bf16's,
    // one.
    CALM = LAYERS_INT4 ? 3 : 2,
    HALF_ROW_SLOTS =
        (HIDDEN_COLUMN_TILES * (int)layer_tiles::BYTES / 2 + SLOT_BYTES - 1) / SLOT_BYTES,
    CALM_MLP = LAYERS_INT8          ? 1
               : HALF_ROW_SLOTS > 2 ? HALF_ROW_SLOTS
                                    : 2,
    // Rows of tiles that a warp multiplies together: with few bytes and streams a row takes as long
    // as its chain of products. Their slots are held for that time; int8 has few, of large rows.
    ROWS_FIT = !WARPGROUPS || RING_SLOTS < 4 ? 1 // below sm_90 registers are short
               : RING_SLOTS < 8              ? 2
                                             : 4,
    FEW_INT4 = LAYERS_INT4 && STREAMS <= FEW_COLUMNS,
    GATE_UP_TOGETHER = FEW_INT4                                      ? ROWS_FIT
                       : LAYERS_INT8 && STREAMS == 1 && ROWS_FIT > 1 ? 2
                                                                     : 1,
    DOWN_TOGETHER = FEW_INT4 && ROWS_FIT == 4 && PIECE_TILES == TEAM_TILES ? 3 : 1,
};

// count / size, upwards; neither is negative. Signed, a division takes more instructions.
static __device__ __forceinline__ int quotient_up(unsigned count, unsigned size) {
    return (count + size - 1) / size;
}

// A team, and this block's place in it. Its share of the MLP are tiles of a row of down_proj, in
// one plane, and the channels of gate and up that they are multiplied with. It takes them in parts.
struct team {
    int number, size, member;
    int first, end;

    __device__ __forceinline__ team() {
        const int each = quotient_up(DOWN_COLUMN_TILES, gridDim.x);
        number = block_id() / TEAM;
        member = block_id() % TEAM;
        size = (int)gridDim.x - number * TEAM < TEAM ? (int)gridDim.x - number * TEAM : (int)TEAM;
        first = number * TEAM * each;
        end = first + size * each < DOWN_COLUMN_TILES ? first + size * each : DOWN_COLUMN_TILES;
    }

    __device__ __forceinline__ int parts() const {
        return first < end ? quotient_up(end - first, size * MLP_TILES) : 0;
    }

    // Of the part that starts with tile `from`: tiles of the team, at most of each member; this
    // block's first and how many.
    __device__ __forceinline__ int tiles(int from) const {
        int left = end - from < 0 ? 0 : end - from;
        return left < size * MLP_TILES ? left : size * MLP_TILES;
    }
    __device__ __forceinline__ int each(int from) const {
        return quotient_up(tiles(from), size);
    }
    __device__ __forceinline__ int my_first(int from) const {
        return from + member * each(from);
    }
    __device__ __forceinline__ int my_tiles(int from) const {
        int left = tiles(from) - member * each(from);
        return left < 0 ? 0 : left < each(from) ? left : each(from);
    }

    // Rows of tiles of down_proj: `size` apart from `member` on.
    __device__ __forceinline__ int rows() const {
        return quotient_up(HIDDEN_TILES - member, size);
    }
};

// How a step's attention is divided: the same in all layers.
struct attention_split {
    int warps;        // of a block that attend: at least half of them, if the ring has room
    int splits;       // blocks that share an item; 1, if a block has several items
    int newest;       // of an item's warps, the one that attends the newest position
    int item, number; // this block's first item, if there is one; its number among the splits
    bool again;       // whether a warp attends more than one row of tiles
};

// What lies in shared memory behind the slots and the sums.
struct workplace {
    struct columns inner[INNER_COLUMNS]; // activations of a team's channels, see lane_place
    float4 kept[THREADS];                // each thread's own, from one phase to the next
    float4 columns[HALF_WARPS * 4];      // of attention: maxima and totals of warps' columns
    unsigned long long full[MOST_SLOTS], empty[MOST_SLOTS]; // of the slots
    float scales[TILE], weights[TILE];                      // of norms; of streams
    struct gpu_best best[WARPS];
    int position;                 // of the step
    struct attention_split split; // of its attention
    struct team team;             // this block's
};

static __device__ inline struct workplace *workplace() {
    return (struct workplace *)(shared_memory() + RING_SLOTS * SLOT_BYTES + WORK_BYTES);
}

static __device__ inline float *work_floats() {
    return (float *)(shared_memory() + RING_SLOTS * SLOT_BYTES);
}

static __device__ inline char *newest_entries() {
    return (char *)work_floats() + QUERY_BYTES;
}

static __device__ inline char *ring_slot(int slot) {
    return shared_memory() + slot * SLOT_BYTES;
}

// The barrier of all threads but the producer's.
static __device__ inline void consumers_barrier() {
    barrier_sync<1, THREADS>();
}

// What a block copies of a matrix: rows of tiles in groups. A slot is a part of one row; or, where
// `pieces` is not 0, such a part of up to WARPS rows, `piece_stride` apart, of all of them.
struct job {
    const char *from;
    long long group_stride;
    int groups, rows;    // rows: of a group
    int row_bytes, most; // most: bytes of a row in a slot
    long long row_gap;   // from the end of a row to the next one
    int pieces, piece_stride;
};

// Rows of tiles of gate and up for `tiles` tiles of down from `first` on.
static __device__ __forceinline__ int inner_rows(int first, int tiles) {
    const int each = TILE_COLUMNS / 8;
    int end =
        (first + tiles) * each < GATE_UP_ROW_TILES ? (first + tiles) * each : GATE_UP_ROW_TILES;
    return end - first * each;
}

// Rows of tiles that the blocks take in turn, `rows` together.
static __device__ __forceinline__ struct job rows_in_turn(const char *tiles, int groups, int rows,
                                                          int column_tiles, int tile_bytes) {
    const int bytes = column_tiles * tile_bytes, most = SLOT_BYTES / tile_bytes / WARPS * WARPS;
    struct job job = {tiles + (long long)block_id() * rows * bytes,
                      (long long)gridDim.x * rows * bytes,
                      groups > (int)block_id() ? quotient_up(groups - block_id(), gridDim.x) : 0,
                      rows,
                      bytes,
                      most * tile_bytes,
                      0,
                      0,
                      0};
    return job;
}

enum { MIX_ROWS = STREAMS * WEIGHT_PLANES }; // of tiles for one row of tiles: see decode_mix

// Of a layer, n = 0: q|k|v, 1: o; then of each part of the MLP gate and up, and down.
static __device__ __forceinline__ struct job layer_job(const char *layer, const struct team &team,
                                                       int n) {
    const int bytes = layer_tiles::BYTES, tiles = HIDDEN_COLUMN_TILES * WEIGHT_PLANES;
    if (n < 2)
        return rows_in_turn(layer + (n ? O_OFFSET : QKV_OFFSET), n ? HIDDEN_TILES : QKV_ROW_TILES,
                            1, n ? O_COLUMN_TILES * WEIGHT_PLANES : tiles, bytes);
    const int part = team.first + (n - 2) / 2 * team.size * MLP_TILES;
    if (n % 2 == 0) {
        const int first = team.my_first(part);
        struct job gate_up = rows_in_turn(layer + GATE_UP_OFFSET, 0, 1, tiles, bytes);
        gate_up.from =
            layer + GATE_UP_OFFSET + (long long)first * (TILE_COLUMNS / 8) * tiles * bytes;
        gate_up.groups = team.my_tiles(part) > 0;
        gate_up.rows = inner_rows(first, team.my_tiles(part));
        return gate_up;
    }
    const int stride = DOWN_COLUMN_TILES * WEIGHT_PLANES * bytes;
    struct job down = {layer + DOWN_OFFSET + (long long)team.member * stride + part * bytes,
                       (long long)WARPS * team.size * stride,
                       (team.rows() + WARPS - 1) / WARPS,
                       WEIGHT_PLANES,
                       team.tiles(part) * bytes,
                       PIECE_BYTES,
                       (DOWN_COLUMN_TILES - team.tiles(part)) * bytes,
                       team.rows(),
                       team.size * stride};
    return down;
}

// Behind the layers: the aggregation network, if there is one, and the head.
static __device__ __forceinline__ struct job head_job(const struct gpu_task &task, int n) {
    struct job mix = rows_in_turn(task.weights + MIX_OFFSET, HIDDEN_TILES, MIX_ROWS, HIDDEN_TILES,
                                  bf16_tiles::BYTES);
    struct job weigh = rows_in_turn(task.weights + WEIGH_OFFSET, HIDDEN_TILES, 1,
                                    HIDDEN_TILES * WEIGHT_PLANES, bf16_tiles::BYTES);
    weigh.from = task.weights + WEIGH_OFFSET; // all who have rows of the result take all of it
    weigh.groups = block_id() < HIDDEN_TILES;
    struct job head = rows_in_turn(task.weights + HEAD_OFFSET, HEAD_ROW_TILES, 1,
                                   HIDDEN_COLUMN_TILES * WEIGHT_PLANES, head_tiles::BYTES);
    return n == 2 ? head : n == 1 ? weigh : mix;
}

// A consumer's place.
struct ring : ring_place<RING_SLOTS> {
    bool full = false; // whether it is known already that the slot is

    // Until the next COUNT slots are full: where they are.
    template <int COUNT> __device__ __forceinline__ void wait(const char *(&slots)[COUNT]) const {
        struct ring place = *this;
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            if (!place.full)
                wait_barrier(&workplace()->full[place.slot], place.parity);
            slots[i] = ring_slot(place.slot);
            place.next();
            place.full = false;
        }
    }

    // Until the slot `further` behind the next one is full: where it is.
    __device__ __forceinline__ const char *wait_further(int further) const {
        struct ring place = *this;
        const char *slots[1];
#pragma unroll 1
        for (; further > 0; further--) {
            place.next();
            place.full = false;
        }
        place.wait(slots);
        return slots[0];
    }

    // To the slot behind the next `count`, each when it is full: before that it may be the one of a
    // round before, which other warps have not left.
    __device__ __forceinline__ void leave_slots(int count) {
#pragma unroll 1
        for (; count > 0; count--) {
            const char *slot[1];
            wait(slot);
            leave();
        }
    }

    // To the slot behind these, which are the producer's again. With few bytes a weight it is full
    // already, most times: that is asked here, as the answer takes a while, where registers suffice
    // for it.
    template <int COUNT = 1> __device__ __forceinline__ void leave() {
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
            arrive_as_warp(&workplace()->empty[slot]);
            next();
        }
        if (WARPGROUPS && layer_tiles::SCALES)
            full = has_ended(&workplace()->full[slot], parity);
    }
};

// The producer's place, and that of the oldest copy under way.
struct filling {
    struct ring_place<RING_SLOTS> to, oldest;
    int flying;
    int most, slots; // under way; slots for which that holds, then FLYING does

    // For the next `count` slots at most `most_flying` copies are under way.
    __device__ __forceinline__ void limit(int most_flying, int count = 1 << 30) {
        most = most_flying;
        slots = count;
    }

    __device__ __forceinline__ void wait_for_oldest() {
        wait_barrier(&workplace()->full[oldest.slot], oldest.parity);
        oldest.next();
        flying--;
    }

    // The next slot, when it is free.
    __device__ __forceinline__ char *take_slot() {
        if (slots-- == 0)
            most = FLYING;
        while (flying >= most)
            wait_for_oldest();
        wait_barrier(&workplace()->empty[to.slot], to.parity ^ 1);
        return ring_slot(to.slot);
    }

    // Its copies have begun.
    __device__ __forceinline__ void next_slot() {
        to.next();
        flying++;
    }

    __device__ __forceinline__ void copy(const struct job &job) {
#pragma unroll 1
        for (int group = 0; group < job.groups; group++) {
            const char *from = job.from + group * job.group_stride;
            int pieces = job.pieces - group * WARPS;
            pieces = job.pieces == 0 ? 1 : pieces < WARPS ? pieces : (int)WARPS;
            int left = job.row_bytes;
#pragma unroll 1
            for (int row = 0; row < job.rows;) {
                int bytes = left < job.most ? left : job.most;
                copy_pieces(take_slot(), PIECE_BYTES, from, job.piece_stride, bytes, pieces,
                            &workplace()->full[to.slot]);
                next_slot();
                from += bytes;
                left -= bytes;
                if (left == 0) {
                    left = job.row_bytes;
                    from += job.row_gap;
                    row++;
                }
            }
        }
    }
};

// Products of rows of TILES tiles in PLANES planes that share activations: KS 16s of COLUMNS
// columns, told as TOLD says. Up to TOGETHER rows are multiplied together, where a slot holds one.
template <typename FORMAT, typename TOLD, int TILES, int PLANES, int KS, int COLUMNS,
          int TOGETHER = 1>
struct row_product {
    typedef struct side_by_side<FORMAT, COLUMNS> beside;
    typedef typename TOLD::number number;

    enum {
        ALL_TILES = TILES * PLANES,
        SLOT_TILES = SLOT_BYTES / FORMAT::BYTES / WARPS * WARPS,
        WARP_TILES = SLOT_TILES / WARPS, // of a slot, for each warp
        SLOTS = (ALL_TILES + SLOT_TILES - 1) / SLOT_TILES,
        // Each warp's tiles of a slot, side by side.
        BATCHES = (WARP_TILES + beside::TILES - 1) / beside::TILES,
        BATCH = (WARP_TILES + BATCHES - 1) / BATCHES,
        EACH = beside::EACH,
        GROUPS = (COLUMNS + 7) / 8,
        GIVEN = FORMAT::INPUTS * GROUPS,         // numbers of activations for a tile
        PIECES = GIVEN * TOLD::PARTS,            // of them, 8 bytes each
        FIT = MOST_GIVEN / (WARP_TILES * GIVEN), // slots whose activations fit the registers
        CHUNK = SLOTS <= FIT ? SLOTS
                : FIT < 2    ? 1
                             : FIT / 2,
        CHUNKS = (SLOTS + CHUNK - 1) / CHUNK,
        CHUNK_BATCHES = CHUNK * BATCHES,
        ROW_FLOATS = split_sums<COLUMNS>::ROW_FLOATS,
    };

    number given[CHUNK_BATCHES * GIVEN];
    typename FORMAT::template input<GROUPS, PIECES, BATCH> in[CHUNK_BATCHES];

    // The slot of a batch of a chunk: how many tiles are before it; how many it has.
    static __device__ __forceinline__ int slot_first(int chunk, int batch) {
        return (chunk * CHUNK + batch / BATCHES) * SLOT_TILES;
    }
    static __device__ __forceinline__ int slot_tiles(int chunk, int batch) {
        const int left = ALL_TILES - slot_first(chunk, batch);
        return left < 0 ? 0 : left < SLOT_TILES ? left : (int)SLOT_TILES;
    }

    // This warp's first tile of a batch, in the slot: its tiles of a slot follow each other.
    static __device__ __forceinline__ int first_tile(int chunk, int batch) {
        return warp_id() * quotient_up(slot_tiles(chunk, batch), WARPS) + batch % BATCHES * BATCH;
    }

    // How many tiles of a batch it has.
    static __device__ __forceinline__ int count_tiles(int chunk, int batch) {
        const int all = slot_tiles(chunk, batch), each = quotient_up(all, WARPS),
                  room = each - batch % BATCHES * BATCH, most = room < BATCH ? room : BATCH;
        const bool even = CHUNKS == 1 && all % WARPS == 0; // known when this is compiled
        const int left = even ? most : all - first_tile(chunk, batch);
        return left < most ? left : most;
    }

    // Looks for the activations of chunk `chunk`, for this lane's tiles.
    __device__ __forceinline__ void ask(const float *input, int chunk, unsigned round) {
        const int TILE_NUMBERS = GIVEN * WARP, mine = beside::tile();
        const int column_lane = beside::lane();
        const number *from = (const number *)input + column_lane + mine * TILE_NUMBERS;
#pragma unroll
        for (int group = 0; group < GROUPS; group++) {
            if (column_lane / 4 >= COLUMNS - group * 8)
                break;
#pragma unroll
            for (int n = 0; n < CHUNK_BATCHES; n++) {
                const int first = slot_first(chunk, n) + first_tile(chunk, n), tile = first + mine;
                bool again = PLANES > 1 && tile >= TILES; // the second plane's
                const number *its = from + (first - again * TILES) * TILE_NUMBERS;
#pragma unroll
                for (int half = 0; half < FORMAT::INPUTS; half++) {
                    int k = (tile - again * TILES) * FORMAT::INPUTS + half;
                    if (mine < count_tiles(chunk, n) && (TILES * FORMAT::INPUTS == KS || k < KS))
                        given[n * GIVEN + half * GROUPS + group] =
                            look(its + (half * GROUPS + group) * WARP, round);
                }
            }
        }
    }

    // Waits for all of this warp's activations, and takes those of chunk 0. If they are many, some
    // lanes ask for a few alone first, blocks for different ones: many questions delay the answers.
    __device__ __forceinline__ void await(const float *input, unsigned round) {
        const int mine = first_tile(0, 0), each = count_tiles(0, 0);
        const int tile = mine + (CHUNKS == 1 && each > 0 ? block_id() % each : 0);
        if (COLUMNS > FEW_COLUMNS && lane_id() < 4 && tile < TILES) {
            const number *one = (const number *)input + tile * (GIVEN * WARP) + lane_id();
            while (look_again_alone(strange(look(one, round), round)))
                ;
        }
        converge();
        tell_nothing(given, round); // and so it stays where nothing is asked for
#pragma unroll 1
        for (int chunk = CHUNKS - 1; chunk >= 0; chunk--) {
            do
                ask(input, chunk, round);
            while (look_again(strange(given, round)));
        }
        take();
    }

    __device__ __forceinline__ void take() {
#pragma unroll
        for (int n = 0; n < CHUNK_BATCHES; n++) {
            struct columns x[PIECES];
#pragma unroll
            for (int i = 0; i < PIECES; i++)
                x[i] = FORMAT::ordered(TOLD::part(given[n * GIVEN + i % GIVEN], i / GIVEN));
            in[n].take(x, beside::tile());
        }
    }

    // sum += the slots of chunk `chunk` times their activations.
    template <int ROWS>
    __device__ __forceinline__ void multiply_chunk(float (&sum)[ROWS][2][GROUPS][4],
                                                   struct ring &ring, int chunk) const {
#pragma unroll
        for (int s = 0; s < CHUNK; s++) {
            if (CHUNKS > 1 && slot_first(chunk, s * BATCHES) >= ALL_TILES)
                return;
            const char *tiles[ROWS];
            ring.wait(tiles);
#pragma unroll
            for (int r = 0; r < ROWS; r++)
                tiles[r] += first_tile(chunk, s * BATCHES) * FORMAT::BYTES;
#pragma unroll
            for (int b = 0; b < BATCHES; b++) {
                FORMAT::template multiply_tiles<EACH>(sum, b * BATCH, tiles, FORMAT::BYTES,
                                                      count_tiles(chunk, s * BATCHES + b),
                                                      in[s * BATCHES + b]);
#pragma unroll
                for (int r = 0; r < ROWS; r++)
                    tiles[r] += BATCH * FORMAT::BYTES;
            }
            ring.leave<ROWS>();
        }
    }

    // The next ROWS rows: their sums to `to` [ROWS, ROW_FLOATS].
    template <int ROWS>
    __device__ __forceinline__ void multiply_together(struct ring &ring, const float *input,
                                                      float *to, unsigned round) {
        float sum[ROWS][2][GROUPS][4] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            if (CHUNKS > 1) // all are told: await saw them
                ask(input, chunk + 1 < CHUNKS ? chunk + 1 : 0, round);
            multiply_chunk(sum, ring, chunk);
            if (CHUNKS > 1)
                take();
        }
#pragma unroll
        for (int i = 0; i < ROWS * GROUPS; i++) {
            float(&halves)[2][GROUPS][4] = sum[i / GROUPS];
            split_sums<COLUMNS>::leave(
                to + i * split_sums<COLUMNS>::FLOATS, lane_id() / 4, lane_id() % 4,
                beside::add_up(FORMAT::results(add(halves[0][i % GROUPS], halves[1][i % GROUPS]))));
        }
    }

    // The next `rows` rows: their sums to work_floats() [rows, ROW_FLOATS], for finish_split behind
    // a barrier.
    __device__ __forceinline__ void multiply_rows(struct ring &ring, const float *input, int rows,
                                                  unsigned round) {
        int row = 0;
        if constexpr (TOGETHER > 1 && SLOTS == 1) {
#pragma unroll 1
            for (; row + TOGETHER <= rows; row += TOGETHER)
                multiply_together<TOGETHER>(ring, input, work_floats() + row * ROW_FLOATS, round);
        }
#pragma unroll 1
        for (; row < rows; row++)
            multiply_together<1>(ring, input, work_floats() + row * ROW_FLOATS, round);
    }
};

// How many of this block's rows of tiles, gridDim.x apart, are multiplied together from `first` on:
// MOST, if there are so many.
template <int MOST = SUM_ROWS>
static __device__ __forceinline__ int batch_rows(int first, int row_tiles) {
    int rows = 0;
#pragma unroll
    for (int i = 0; i < MOST; i++)
        rows += first + i * (int)gridDim.x < row_tiles;
    return rows;
}

// Tells four elements of the input of the next product with all rows. Of several streams the next
// one behind the layers is the aggregation network's; the head's tiles have the same numbers as
// layers'.
static __device__ __forceinline__ void tell_normed(const struct told_input &out, unsigned k,
                                                   unsigned column, const float4 &x) {
    if (STREAMS > 1 && out.which == FOR_HEAD)
        adapter_told::tell_four(out.normed, COLUMN_GROUPS, k, column, x, out.round);
    else if (out.which == FOR_MLP)
        told_fours<layer_tiles>::tell_four(out.normed, COLUMN_GROUPS, k, column, x, out.round);
    else
        told_exactly::tell_four(out.normed, COLUMN_GROUPS, k, column, x, out.round);
}
