// The layers of a decode step: all streams are columns of each product. The phases of a layer,
// q|k|v, attention, o, MLP and the sum of its parts, follow each other; what a phase needs of other
// blocks it looks for until it is told. Before that, a block loads what no other block writes; its
// weights arrive all the time.
//
// What is told in one layer may be told over in the next: every block adds to its rows what its
// team's part of the MLP is, be it nothing, when it has read all that it needs of that layer, and
// the parts of all teams are summed up; nothing of the next layer can be told before that, as it
// depends on all sums.

// What a block carries from phase to phase.
struct step {
    struct ring ring;
    unsigned round; // of this layer
};

// The round of what is told once in a launch.
static __device__ __forceinline__ unsigned launch_round(const struct gpu_task &task) {
    return task.rounds[2 * block_id() + 1] + 1;
}

// What a thread finishes of a batch of rows of tiles, gridDim.x apart from `first` on: two rows of
// one column.
struct finish {
    unsigned row_tile, thread; // thread: of finish_split
    struct place at;
    const float *sums;
    bool mine; // whether the rows are a batch's, and the column a stream's

    __device__ __forceinline__ finish(int first, unsigned row_tiles) {
        const unsigned n = opaque(thread_id()); // what follows is not kept for all layers
        row_tile = first + n / stream_sums::FINISHERS * gridDim.x;
        thread = n % stream_sums::FINISHERS;
        at = split_place<STREAMS>(thread);
        sums = work_floats() + n / stream_sums::FINISHERS * stream_sums::ROW_FLOATS;
        mine = n / stream_sums::FINISHERS < SUM_ROWS && row_tile < row_tiles && at.column < STREAMS;
    }

    // The sum of these rows; zeros where there are none.
    __device__ __forceinline__ float2 sum() const {
        return mine ? finish_split<STREAMS>(sums, thread) : make_float2(0, 0);
    }
};

typedef struct row_product<layer_tiles, told_exactly, HIDDEN_COLUMN_TILES, WEIGHT_PLANES,
                           HIDDEN_TILES, STREAMS>
    qkv_product;
typedef struct row_product<layer_tiles, told_fours<layer_tiles>, HIDDEN_COLUMN_TILES, WEIGHT_PLANES,
                           HIDDEN_TILES, STREAMS, GATE_UP_TOGETHER>
    gate_up_product;
typedef struct row_product<layer_tiles, told_attended, O_COLUMN_TILES, WEIGHT_PLANES,
                           ATTENDED_TILES, STREAMS>
    o_product;

// Four numbers that this thread will need are copied to shared memory while others are awaited:
// they come from far, and registers are short.
static __device__ __forceinline__ void keep(const float *a, const float *b, const float *c,
                                            const float *d) {
    float4 *to = &workplace()->kept[thread_id()];
    copy_word_async(&to->x, a);
    copy_word_async(&to->y, b);
    copy_word_async(&to->z, c);
    copy_word_async(&to->w, d);
    commit_copies();
}

static __device__ __forceinline__ float4 kept() {
    wait_copies<0>();
    return workplace()->kept[thread_id()];
}

// What rows r and r + 8 of a row of tiles of q|k|v need besides their products: two biases, and for
// queries and keys cosine and sine of their rotary pair.
static __device__ __forceinline__ void keep_terms(const struct gpu_task &task,
                                                  const struct finish &f, int position) {
    if (f.mine) {
        const float *bias =
            (const float *)(layer_weights(task) + QKV_BIAS_OFFSET) + f.row_tile * TILE + f.at.row;
        const unsigned dim = (f.row_tile * PAIRS_A_ROW + f.at.row) % HALF_HEAD;
        const float *angle = task.rotary + ((unsigned)position * HALF_HEAD + dim) * 2;
        keep(bias, bias + 8, angle, angle + 1);
    }
}

// Tells rows r and r + 8 of a row of tiles of q|k|v: a rotary pair of a query or a key, or two
// dimensions of a value; low and high without their terms. to: the stream's [heads + 2 kv_heads,
// head_dim].
static __device__ __forceinline__ void tell_qkv(float *to, unsigned row_tile, unsigned r,
                                                float4 terms, float low, float high,
                                                unsigned round) {
    low += terms.x;
    high += terms.y;
    if (row_tile * TILE >= QKV_VALUE_ROW) {
        const unsigned row = row_tile * TILE - QKV_VALUE_ROW + r;
        to += (HEADS + KV_HEADS) * HEAD_DIM + row;
        if (row < KV_HEADS * HEAD_DIM)
            tell(to, low, round);
        if (row + 8 < KV_HEADS * HEAD_DIM)
            tell(to + 8, high, round);
        return;
    }
    const unsigned pair = row_tile * PAIRS_A_ROW + r, head = pair / HALF_HEAD;
    if (head >= HEADS + KV_HEADS)
        return;
    to += pair + head * HALF_HEAD; // head * HEAD_DIM + pair % HALF_HEAD
    tell(to, low * terms.z - high * terms.w, round);
    tell(to + HALF_HEAD, high * terms.z + low * terms.w, round);
}

// normed -> queries, keys, values: the rows of tiles of q|k|v that `f` finishes.
static __device__ __forceinline__ void finish_qkv(const struct gpu_task &task,
                                                  const struct finish &f, unsigned round) {
    const float2 y = f.sum();
    if (f.mine) {
        float scale = workplace()->scales[f.at.column];
        tell_qkv(task.qkv + f.at.column * QKV_FLOATS, f.row_tile, f.at.row, kept(), y.x * scale,
                 y.y * scale, round);
    }
}

// Rows row and row + 8 of a column of the residual, and what the next product needs of them; norm:
// the weights of its norm. By all threads of a warp, those that have rows: `mine`.
static __device__ __forceinline__ void leave_rows(const struct gpu_task &task,
                                                  const struct told_input &out,
                                                  const struct finish &f, float2 y, float2 norm) {
    const unsigned row = f.row_tile * TILE + f.at.row;
    float square = f.mine ? y.x * y.x + y.y * y.y : 0;
    float2 n = make_float2(y.x * norm.x, y.y * norm.y);
    // Of the next row, for even ones; 4 pairs of rows of all columns of a group are in one warp.
    float2 next = make_float2(__shfl_xor_sync(0xffffffff, n.x, stream_sums::LEFT),
                              __shfl_xor_sync(0xffffffff, n.y, stream_sums::LEFT));
    square += __shfl_xor_sync(0xffffffff, square, stream_sums::LEFT);
    square += __shfl_xor_sync(0xffffffff, square, 2 * stream_sums::LEFT);
    if (!f.mine)
        return;
    float *x = task.residual + (f.at.column * HIDDEN_SIZE + row);
    x[0] = y.x;
    x[8] = y.y;
    if (row % 2 == 0)
        tell_normed(out, row, f.at.column, make_float4(n.x, next.x, n.y, next.y));
    if (f.at.row % 4 == 0)
        tell(out.squares + (f.at.column * told_input::PARTS + f.row_tile * 2 + f.at.row / 4),
             square, out.round);
}

// The residual that `f` adds to, and the weights of the next norm: kept until then.
static __device__ __forceinline__ void keep_rows(const struct gpu_task &task,
                                                 const struct finish &f, const float *norm) {
    const unsigned row = f.row_tile * TILE + f.at.row;
    if (f.mine) {
        const float *x = task.residual + (f.at.column * HIDDEN_SIZE + row);
        keep(x, x + 8, norm + row, norm + row + 8);
    }
}

// The sums of the warps added to the kept residual.
static __device__ __forceinline__ void
finish_rows(const struct gpu_task &task, const struct told_input &out, const struct finish &f) {
    float2 y = f.sum(), norm = make_float2(0, 0);
    if (f.mine) {
        const float4 rows = kept();
        y = make_float2(rows.x + y.x, rows.y + y.y);
        norm = make_float2(rows.z, rows.w);
    }
    leave_rows(task, out, f, y, norm);
}

typedef struct told_fours<layer_tiles> inner_told;

// Channels of silu(gate) * up, from `channel` on, of `rows` rows of tiles whose sums are there;
// zeros of those up to `all`. A row of tiles is 8 gates and their 8 ups: a thread has two of them.
static __device__ __forceinline__ void finish_gate_up(const struct gpu_task &task, int channel,
                                                      int rows, int all, unsigned round) {
    const float *scales = workplace()->scales;
    const unsigned n = opaque(thread_id());
    const int row = n / stream_sums::FINISHERS * 2, thread = n % stream_sums::FINISHERS;
    const struct place at = split_place<STREAMS>(thread);
    float value[2] = {0, 0}, next[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        if (row + i < rows && at.column < STREAMS) {
            float2 y =
                finish_split<STREAMS>(work_floats() + (row + i) * stream_sums::ROW_FLOATS, thread);
            value[i] = swiglu(y.x * scales[at.column], y.y * scales[at.column]);
        }
        // Of row at.row + 1, if that is odd.
        next[i] = __shfl_xor_sync(0xffffffff, value[i], stream_sums::LEFT);
    }
    if (at.row % 2 == 0 && row < all && at.column < STREAMS)
        inner_told::tell_four(task.inner, COLUMN_GROUPS, channel + row * 8 + at.row, at.column,
                              make_float4(value[0], next[0], value[1], next[1]), round);
}

// A team's channels, `count` 16s of them from the 16s `first` on, to shared memory.
static __device__ __forceinline__ void gather_inner(const struct gpu_task &task, int first,
                                                    int count, unsigned round) {
    enum { EACH = COLUMN_GROUPS * WARP, MINE = (INNER_COLUMNS + THREADS - 1) / THREADS };
    const inner_told::number *from = (const inner_told::number *)task.inner + first * EACH;
    inner_told::number found[MINE];
    await_all(found, round, [=](int i, inner_told::number &value) {
        int n = i * THREADS + thread_id();
        if (n < count * EACH && n / WARP % COLUMN_GROUPS * 8 + n % WARP / 4 < STREAMS)
            value = look(from + n, round);
    });
#pragma unroll
    for (int i = 0; i < MINE; i++)
        if (i * THREADS + thread_id() < INNER_COLUMNS)
            workplace()->inner[i * THREADS + thread_id()] = inner_told::part(found[i], 0);
}

// What a team adds to the residual: of a tile the sums of those lanes that have columns.
enum {
    ADDED_PAIRS = (stream_sums::LEFT + 1) / 2, // of columns of a group of 8
    ADDED_LANES = 8 * ADDED_PAIRS,
    ADDED_FLOATS = HIDDEN_TILES * COLUMN_GROUPS * ADDED_LANES * 4,
};

static __device__ __forceinline__ float4 *added_place(const struct gpu_task &task, int team,
                                                      int row_tile, int group, int n) {
    float4 *added = (float4 *)(task.added + (long long)team * ADDED_FLOATS);
    return added + (row_tile * COLUMN_GROUPS + group) * ADDED_LANES + n;
}

// A team's part of a tile. more: to what is there; last: nothing is added any more, it is told.
static __device__ __forceinline__ void add_tile_part(const struct gpu_task &task, int team,
                                                     int row_tile, int group, float4 part,
                                                     unsigned round, bool more, bool last) {
    int pair = lane_id() % 4;
    float4 *to = added_place(task, team, row_tile, group, lane_id() / 4 * ADDED_PAIRS + pair);
    if (pair >= ADDED_PAIRS)
        return;
    if (more) // left with the parity of the round before
        part = add(without_round(look(to, round ^ 1)), part);
    tell(to, part, last ? round : round ^ 1);
}

typedef struct side_by_side<layer_tiles, STREAMS> inner_columns;

// add_tile_part of ROWS of the team's rows, WARPS apart, whose sums these are.
template <int ROWS>
static __device__ __forceinline__ void
add_inner(const struct gpu_task &task, const struct step &step, const struct team &team, int row,
          const float (&sum)[ROWS][2][COLUMN_GROUPS][4], bool more, bool last) {
#pragma unroll
    for (int i = 0; i < ROWS * COLUMN_GROUPS; i++) {
        const float(&halves)[2][COLUMN_GROUPS][4] = sum[i / COLUMN_GROUPS];
        const int group = i % COLUMN_GROUPS,
                  row_tile = (row + i / COLUMN_GROUPS * WARPS) * team.size + team.member;
        add_tile_part(
            task, team.number, row_tile, group,
            inner_columns::add_up(layer_tiles::results(add(halves[0][group], halves[1][group]))),
            step.round, more, last);
    }
}

// The share of TILES tiles side by side of a team's channels.
enum { INNER_PIECES = layer_tiles::INPUTS * COLUMN_GROUPS };
template <int TILES>
static __device__ __forceinline__ typename layer_tiles::input<COLUMN_GROUPS, INNER_PIECES, TILES>
inner_input(int first) {
    const int tile = inner_columns::tile(), lane = inner_columns::lane();
    struct columns mine[INNER_PIECES] = {};
    if (tile < TILES)
#pragma unroll
        for (int i = 0; i < INNER_PIECES; i++)
            mine[i] = layer_tiles::ordered(
                workplace()->inner[((first + tile) * INNER_PIECES + i) * WARP + lane]);
    typename layer_tiles::input<COLUMN_GROUPS, INNER_PIECES, TILES> in;
    in.take(mine, tile);
    return in;
}

enum {
    INNER_BATCH = (int)inner_columns::TILES < (int)PIECE_TILES ? inner_columns::TILES : PIECE_TILES
};
typedef typename layer_tiles::input<COLUMN_GROUPS, INNER_PIECES, INNER_BATCH>
    inner_inputs[TEAM_TILES / INNER_BATCH];

// Waits for this warp's next pieces of down_proj, of a row each.
template <int ROWS>
static __device__ __forceinline__ void await_pieces(const struct ring &ring,
                                                    const char *(&pieces)[ROWS]) {
    ring.wait(pieces);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        pieces[r] += warp_id() * PIECE_BYTES;
}

// sum += such pieces: of their rows' tiles those from `first` on.
template <int ROWS>
static __device__ __forceinline__ void multiply_pieces(float (&sum)[ROWS][2][COLUMN_GROUPS][4],
                                                       const char *const (&pieces)[ROWS], int first,
                                                       const inner_inputs &in) {
#pragma unroll
    for (int t = 0; t < PIECE_TILES; t += INNER_BATCH) {
        const char *tiles[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            tiles[r] = pieces[r] + t * layer_tiles::BYTES;
        layer_tiles::multiply_tiles<inner_columns::EACH>(
            sum, t, tiles, layer_tiles::BYTES, INNER_BATCH, in[(first + t) / INNER_BATCH]);
    }
}

// What `tiles` tiles of the team's channels add to this block's rows of the residual, each of which
// has one warp. A block without channels adds nothing, but it has waited for its input all the
// same: see above. more: to what another part added; last: no other part follows.
static __device__ __forceinline__ void outer_part(const struct gpu_task &task, struct step &step,
                                                  const struct team &team, int tiles, bool more,
                                                  bool last) {
    inner_inputs in;
#pragma unroll
    for (int n = 0; n < TEAM_TILES / INNER_BATCH; n++)
        in[n] = inner_input<INNER_BATCH>(n * INNER_BATCH);
    int row = warp_id();
    if constexpr (DOWN_TOGETHER > 1) {
#pragma unroll 1
        for (; tiles == TEAM_TILES && row + (DOWN_TOGETHER - 1) * WARPS < team.rows();
             row += DOWN_TOGETHER * WARPS) {
            float sum[DOWN_TOGETHER][2][COLUMN_GROUPS][4] = {};
            const char *pieces[DOWN_TOGETHER];
            await_pieces(step.ring, pieces);
            multiply_pieces(sum, pieces, 0, in);
            step.ring.leave<DOWN_TOGETHER>();
            add_inner(task, step, team, row, sum, more, last);
        }
    }
#pragma unroll 1
    for (; row - warp_id() < team.rows(); row += WARPS) {
        float sum[1][2][COLUMN_GROUPS][4] = {};
#pragma unroll 1
        for (int plane = 0; plane < WEIGHT_PLANES; plane++) {
#pragma unroll
            for (int first = 0; first < TEAM_TILES; first += PIECE_TILES) {
                if (first >= tiles)
                    break;
                const char *piece[1];
                await_pieces(step.ring, piece);
                if (row < team.rows() && first + PIECE_TILES <= tiles) {
                    multiply_pieces(sum, piece, first, in);
                } else if (row < team.rows()) {
#pragma unroll 1
                    for (int t = 0; first + t < tiles; t++) {
                        layer_tiles::multiply_tiles<inner_columns::EACH>(sum, 0, piece, 0, 1,
                                                                         inner_input<1>(first + t));
                        piece[0] += layer_tiles::BYTES;
                    }
                }
                step.ring.leave();
            }
        }
        if (row >= team.rows())
            break;
        add_inner(task, step, team, row, sum, more, last);
    }
}

// The sum of all teams' parts of a row of tiles and a group of columns, in a fixed order: warps and
// slices of their lanes take teams in turn. To `to`, for finish_split behind a barrier.
static __device__ __forceinline__ void add_parts(const struct gpu_task &task, int row_tile,
                                                 int group, float *to, unsigned round) {
    const int SLICES = WARPS * (WARP / ADDED_LANES),
              TOGETHER = ((WARPGROUPS ? 136 : 72) / TEAM + SLICES - 1) / SLICES;
    const int teams = ((int)gridDim.x + TEAM - 1) / TEAM;
    const int slice = warp_id() * (WARP / ADDED_LANES) + lane_id() / ADDED_LANES;
    const int n = lane_id() % ADDED_LANES;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
    for (int first = slice; first - slice < teams; first += TOGETHER * SLICES) {
        const float4 *from = added_place(task, first, row_tile, group, n);
        float4 part[TOGETHER];
        if (STREAMS > FEW_COLUMNS && lane_id() == 0 && first < teams) // see row_product
            while (look_again_alone(strange(look(from, round), round)))
                ;
        converge();
        await_all(part, round, [first, from, round, teams](int i, float4 &value) {
            if (first + i * SLICES < teams)
                value = look(from + i * (SLICES * ADDED_FLOATS / 4), round);
        });
#pragma unroll
        for (int i = 0; i < TOGETHER; i++)
            sum = add(sum, without_round(part[i]));
    }
    for (int distance = ADDED_LANES; distance < WARP; distance *= 2)
        sum = add(sum, shuffle(sum, distance));
    if (lane_id() < ADDED_LANES)
        stream_sums::leave(to, n / ADDED_PAIRS, n % ADDED_PAIRS, sum);
}

static __device__ __forceinline__ void add_rows(const struct gpu_task &task, int first, int rows,
                                                unsigned round) {
#pragma unroll 1
    for (int n = 0; n < rows * COLUMN_GROUPS; n++)
        add_parts(task, first + n / COLUMN_GROUPS * gridDim.x, n % COLUMN_GROUPS,
                  work_floats() + n * stream_sums::FLOATS, round);
}

// normed -> queries, keys, values.
static __device__ __forceinline__ void decode_qkv(const struct gpu_task &task, struct step &step) {
    const struct told_input in(task, FOR_QKV, step.round);
    const int position = workplace()->position, stride = SUM_ROWS * gridDim.x;
    if (block_id() >= QKV_ROW_TILES)
        return;
    struct finish f(block_id(), QKV_ROW_TILES);
    keep_terms(task, f, position);
    qkv_product product;
    product.await(in.normed, in.round);
    struct column_scales scales;
    scales.begin(in);
    for (int first = block_id(); first < QKV_ROW_TILES; first += stride) {
        product.multiply_rows(step.ring, in.normed, batch_rows(first, QKV_ROW_TILES), in.round);
        if (first == block_id())
            scales.end(in, workplace()->scales);
        consumers_barrier();
        finish_qkv(task, f, step.round);
        consumers_barrier(); // before others take the place of the sums
        if (first + stride < QKV_ROW_TILES) {
            f = finish(first + stride, QKV_ROW_TILES);
            keep_terms(task, f, position);
        }
    }
}

// residual += o_proj x. A row of tiles has one owner, who alone reads and writes its residual.
static __device__ __forceinline__ void decode_o(const struct gpu_task &task, struct step &step) {
    const struct told_input out(task, FOR_MLP, step.round);
    const float *norm = (const float *)(layer_weights(task) + POST_NORM_OFFSET);
    const int stride = SUM_ROWS * gridDim.x;
    if (block_id() >= HIDDEN_TILES)
        return;
    struct finish f(block_id(), HIDDEN_TILES);
    keep_rows(task, f, norm);
    o_product product;
    product.await(task.attended, step.round);
    for (int first = block_id(); first < HIDDEN_TILES; first += stride) {
        product.multiply_rows(step.ring, task.attended, batch_rows(first, HIDDEN_TILES),
                              step.round);
        consumers_barrier();
        finish_rows(task, out, f);
        consumers_barrier(); // before others take the place of the sums
        if (first + stride < HIDDEN_TILES) {
            f = finish(first + stride, HIDDEN_TILES);
            keep_rows(task, f, norm);
        }
    }
}

// Of the part of a team's channels that starts with tile `from`: tiles of down_proj, how many of
// them are this block's, the first of these.
struct mlp_share {
    int tiles, mine, first;

    __device__ __forceinline__ mlp_share(const struct team &team, int from) {
        tiles = team.tiles(from);
        mine = team.my_tiles(from);
        first = team.my_first(from);
    }

    // Rows of tiles of gate and up, and what these are filled up to.
    __device__ __forceinline__ int rows() const {
        return mine > 0 ? inner_rows(first, mine) : 0;
    }

    __device__ __forceinline__ int all() const {
        return mine * (TILE_COLUMNS / 8);
    }
};

// normed -> what this team's channels of the MLP add to the residual. Gate, up and down are one
// phase, as only a few other blocks are asked in between.
static __device__ __forceinline__ void decode_mlp(const struct gpu_task &task, struct step &step) {
    const struct told_input in(task, FOR_MLP, step.round);
    const struct team team = workplace()->team;
    int part = team.first;
    struct mlp_share share(team, part); // while others are awaited
    gate_up_product product;
    product.await(in.normed, in.round);
    struct column_scales scales;
    if (share.mine > 0)
        scales.begin(in);
    else
        consumers_barrier(); // not every warp has waited for an input
    do {
#pragma unroll 1
        for (int row = 0; row < share.all(); row += SUM_ROWS) {
            const int left = share.rows() - row < 0 ? 0 : share.rows() - row;
            const int batch = left < SUM_ROWS ? left : (int)SUM_ROWS;
            product.multiply_rows(step.ring, in.normed, batch, in.round);
            if (row == 0 && part == team.first)
                scales.end(in, workplace()->scales);
            consumers_barrier();
            finish_gate_up(task, share.first * TILE_COLUMNS + row * 8, batch,
                           share.all() - row < SUM_ROWS ? share.all() - row : (int)SUM_ROWS,
                           step.round);
            consumers_barrier(); // before others take the place of the sums
        }
        if (part == team.first) { // attention is over
            store_newest(task, workplace()->position, step.round);
        }
        gather_inner(task, part * layer_tiles::INPUTS, share.tiles * layer_tiles::INPUTS,
                     step.round);
        consumers_barrier();
        const bool more = part > team.first;
        part += team.size * MLP_TILES;
        outer_part(task, step, team, share.tiles, more, part >= team.end);
        if (part < team.end) {
            consumers_barrier(); // before others take the place of the channels
            share = mlp_share(team, part);
        }
    } while (part < team.end);
    even_results(task); // while others add
}

// residual += what all channels add.
static __device__ __forceinline__ void decode_add(const struct gpu_task &task, struct step &step) {
    const bool last = task.layer == LAYERS - 1;
    const struct told_input out(task, last ? FOR_HEAD : FOR_QKV,
                                last ? launch_round(task) : step.round + 1);
    const char *layer = layer_weights(task);
    const float *norm = (const float *)(last ? task.weights + FINAL_NORM_OFFSET
                                             : layer + LAYER_STRIDE + INPUT_NORM_OFFSET);
    for (int first = block_id(); first < HIDDEN_TILES; first += SUM_ROWS * gridDim.x) {
        const struct finish f(first, HIDDEN_TILES);
        keep_rows(task, f, norm);
        add_rows(task, first, batch_rows(first, HIDDEN_TILES), step.round);
        consumers_barrier();
        finish_rows(task, out, f);
        consumers_barrier(); // before others take the place of the sums
    }
}
