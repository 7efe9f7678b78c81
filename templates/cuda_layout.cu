// Where things lie, in elements or bytes: the same layouts as on the CPU (tile.h), and the two
// orders of activations.

enum {
    TILE = 16,
    TILE_ELEMENTS = TILE * TILE,
    TILE_BYTES = 2 * TILE_ELEMENTS,
    COLUMN_BYTES = TILE_BYTES / 2, // 16 activations of 8 columns
    COLUMN_GROUPS = (STREAMS + 7) / 8,
    HEAD_TILES = (HEAD_DIM + TILE - 1) / TILE,
    HIDDEN_TILES = HIDDEN_SIZE / TILE,
    GROUP_HEADS = HEADS / KV_HEADS,
    // Rows r and r + 8 of a row of tiles of q|k are a rotary pair, dimensions i and i + HALF_HEAD;
    // pairs are counted over queries' heads, then keys'.
    HALF_HEAD = HEAD_DIM / 2,
    QUERY_PAIRS = HEADS * HALF_HEAD,
    PAIRS_A_ROW = TILE / 2,
    // Inputs are filled up to whole tiles of weights, with zeros where those have none.
    INPUT_TILES = TILE_COLUMNS / TILE, // 16s of activations that a tile of weights takes
    HIDDEN_INPUT_TILES = HIDDEN_COLUMN_TILES * INPUT_TILES,
    HEADS_TILES = O_COLUMN_TILES * INPUT_TILES,
    INTERMEDIATE_TILES = DOWN_COLUMN_TILES * INPUT_TILES,
    ATTENDED_TILES = (HEADS * HEAD_DIM + TILE - 1) / TILE,
    QKV_FLOATS = (HEADS + 2 * KV_HEADS) * HEAD_DIM, // of a column: heads of q, k, v
    // Whether a decode step has registers to spare: 232 a thread, and attention takes fewer.
    MANY_REGISTERS = WARPGROUPS && HEAD_TILES <= 6 && CACHE_ELEMENT_BYTES == 2,
};

// This thread's number in its block, and the block's. Without MANY_REGISTERS they are read each
// time: else the compiler keeps what it makes of them in one phase over all others, and
// spills.
static __device__ __forceinline__ unsigned thread_id() {
    return MANY_REGISTERS ? threadIdx.x : read_thread_id();
}

static __device__ __forceinline__ unsigned block_id() {
    return MANY_REGISTERS ? blockIdx.x : read_block_id();
}

static __device__ inline int lane_id() {
    return thread_id() % WARP;
}

static __device__ inline int warp_id() {
    return thread_id() / WARP;
}

// Which chunk of a tile of the pack is this lane's.
static __device__ inline int chunk_id() {
    return lane_id() % 4 * 8 + lane_id() / 4;
}

// Decode's activations: [k / 16, groups of 8 columns, lanes], where a lane has what it needs of 16
// k of its column: k, k + 1, k + 8 and k + 9, k even. The place of element (k, column).
static __device__ inline unsigned lane_place(unsigned groups, unsigned k, unsigned column) {
    return (k / TILE * groups + column / 8) * WARP + column % 8 * 4 + k % 8 / 2;
}

static __device__ inline float negative_infinity() {
    return __uint_as_float(0xff800000);
}

static __device__ inline float from_bf16(unsigned short bits) {
    return __uint_as_float((unsigned)bits << 16);
}

static __device__ inline unsigned short bf16_bits(float value) {
    return (unsigned short)to_bf16(value, 0.0f);
}

// The two numbers of a word of bf16.
static __device__ inline float even_of(unsigned word) {
    return __uint_as_float(word << 16);
}

static __device__ inline float odd_of(unsigned word) {
    return __uint_as_float(word & 0xffff0000);
}

// What bf16 leaves of a pair of values: their low parts, in bf16 too.
static __device__ inline unsigned low_parts(unsigned high, float even, float odd) {
    return to_bf16(even - even_of(high), odd - odd_of(high));
}

// A tile of f16 in bf16.
static __device__ inline unsigned word_from_f16(unsigned word) {
    return to_bf16(from_f16(word & 0xffff), from_f16(word >> 16));
}

static __device__ inline struct tile tile_from_f16(const struct tile &t) {
    return {word_from_f16(t.x), word_from_f16(t.y), word_from_f16(t.z), word_from_f16(t.w)};
}

// The sum of two words' numbers in f16.
static __device__ inline unsigned sum_to_f16(unsigned a, unsigned b) {
    return to_f16(even_of(a) + even_of(b), odd_of(a) + odd_of(b));
}

static __device__ inline struct tile sum_to_f16(const struct tile &a, const struct tile &b) {
    return {sum_to_f16(a.x, b.x), sum_to_f16(a.y, b.y), sum_to_f16(a.z, b.z), sum_to_f16(a.w, b.w)};
}

// A tile of bf16 in f16.
static __device__ inline struct tile tile_to_f16(const struct tile &t) {
    return {to_f16(even_of(t.x), odd_of(t.x)), to_f16(even_of(t.y), odd_of(t.y)),
            to_f16(even_of(t.z), odd_of(t.z)), to_f16(even_of(t.w), odd_of(t.w))};
}

// What a score of the query before it is scaled has to be multiplied by, so that 2^score is what
// the softmax needs.
static __device__ inline float query_scale() {
    return rsqrtf((float)HEAD_DIM) * 1.44269504f;
}

// silu(gate) * up; the fast functions' error is far below a bf16's.
static __device__ inline float swiglu(float gate, float up) {
    return fast_quotient(gate, 1.0f + power_of_two(-1.44269504f * gate)) * up;
}

// The same of two, to bf16, with one quotient: 1 / a = b / (a b), of an a and a b whose product is
// no infinity.
static __device__ inline unsigned swiglu_pair(const float (&gate)[2], const float (&up)[2]) {
    const float most = 0x1p62f; // the quotient is as good as 0
    float even = 1.0f + fminf(power_of_two(-1.44269504f * gate[0]), most);
    float odd = 1.0f + fminf(power_of_two(-1.44269504f * gate[1]), most);
    float inverse = fast_quotient(1.0f, even * odd);
    return to_bf16(gate[0] * up[0] * (inverse * odd), gate[1] * up[1] * (inverse * even));
}

// Where the token stands whose logits are wanted.
static __device__ inline int newest_position(const struct gpu_task &task) {
    return task.ids ? task.position + task.token : task.state->position;
}

// A stream's residual there.
static __device__ inline const float *newest_residual(const struct gpu_task &task, int stream) {
    int column = task.ids ? stream * task.tokens + task.token : stream;
    return task.residual + (long long)column * HIDDEN_SIZE;
}

// The next step's input; for the host too.
static __device__ inline void leave_choice(const struct gpu_task &task, int token) {
    int position = newest_position(task);
    struct gpu_state state = {token, task.ids ? task.position + task.tokens : position + 1};
    *task.state = state;
    task.chosen[position % 2] = state;
}

static __device__ inline const char *layer_weights(const struct gpu_task &task) {
    return task.weights + LAYERS_OFFSET + task.layer * LAYER_STRIDE;
}

// Which block of the cache is that of a (layer, stream, kv head). Layer 0 is the same in all
// streams.
static __device__ inline long long cache_number(const struct gpu_task &task, int stream,
                                                int kv_head) {
    int slot = task.layer == 0 ? 0 : 1 + (task.layer - 1) * STREAMS + stream;
    return (long long)slot * KV_HEADS + kv_head;
}
