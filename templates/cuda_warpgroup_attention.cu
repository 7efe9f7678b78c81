// Prefill attention where warpgroups multiply: two of them, 64 queries each. A warp of its own
// copies steps ahead, also from one item to the next. The warpgroups wait for steps, not for each
// other: the tensor cores multiply for one while the other makes probabilities.

typedef struct stage_ring<ATTENTION_STEP_BYTES> attention_ring;

// Item `round` of this block. Every second round goes the other way: who had the longest gets the
// shortest.
static __device__ __forceinline__ int item_of(int round) {
    return round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
}

static __device__ __forceinline__ void copy_items(const struct gpu_task &task) {
    attention_ring ring;
    for (int round = 0; item_of(round) < count_items(task); round++) {
        const struct attended_item item = find_item(task, item_of(round));
        const char *steps = gathered_steps(task, item.stream, item.kv_head);
        for (int step = 0; step < item.steps; step++, ring.at.next()) {
            ring.await_empty();
            copy_slot<false>(ring.place(), steps + step * ATTENTION_STEP_BYTES,
                             ATTENTION_STEP_BYTES, ring.full());
        }
    }
}

template <int BLOCKS>
static __device__ __forceinline__ void
start_scores(float (&score)[BLOCKS][4], const struct prefill_queries &q, const char *keys) {
    const int CHUNK_BYTES = BLOCKS * MATRIX_BYTES;
    const unsigned long long columns = plain_columns(keys, CHUNK_BYTES);
#pragma unroll
    for (int i = 0; i < 4 * BLOCKS; i++)
        score[i / 4][i % 4] = 0;
    fence_products();
#pragma unroll
    for (int d = 0; d < HEAD_TILES; d++)
        multiply_warpgroup<F16>(score, q.held[d], further(columns, 2 * d * CHUNK_BYTES));
    commit_products();
}

// Of a step's rows of tiles those from `first` on.
template <int ROWS>
static __device__ __forceinline__ void start_values(struct prefill_queries &q,
                                                    const struct tile (&chances)[ROWS],
                                                    const char *values, int first) {
    const int CHUNK_BYTES = 2 * HEAD_TILES * MATRIX_BYTES;
    const unsigned long long columns = plain_columns(values, CHUNK_BYTES);
    fence_products();
#pragma unroll
    for (int row = 0; row < ROWS; row++)
        multiply_warpgroup<F16>(q.sum, chances[row],
                                further(columns, 2 * (first + row) * CHUNK_BYTES));
    commit_products();
}

template <int ROWS>
static __device__ __forceinline__ void
attend_item(const struct gpu_task &task, const struct attended_item &item, attention_ring &ring) {
    struct prefill_queries q;
    struct tile chances[2][ROWS / 2];
    start_queries(q, task, item, (struct tile *)0);
    for (int step = 0; step < item.steps; step++) {
        attention_scores score;
        ring.await_full();
        start_scores(score, q, ring.place());
        wait_products<0>();
        keep(score);
        keep(q.sum);
        if (step > 0)
            ring.leave_last();
        hide_scores(score, q, step * ROWS);
        raise_maximum(q, score);
#pragma unroll
        for (int half = 0; half < 2; half++) { // the first is multiplied while the second is made
#pragma unroll
            for (int row = 0; row < ROWS / 2; row++)
                chances[half][row] = soften_row(q, score, half * ROWS / 2 + row);
            start_values(q, chances[half], ring.place() + KEYS_BYTES, half * ROWS / 2);
        }
        ring.at.next();
    }
    wait_products<0>();
    keep(q.sum);
    ring.leave_last();
    store_attention(task, q, item);
}

template <int ROWS> // of tiles of a step
static __device__ __forceinline__ void attend_by_warpgroups(const struct gpu_task &task) {
    attention_ring ring;
    init_stages(ring.STAGES, 1, ATTENTION_WARPS);
    if (warp_id() >= ATTENTION_WARPS) {
        give_registers<24>();
        if (warp_id() == ATTENTION_WARPS)
            copy_items(task);
        return;
    }
    take_registers<240>();
    for (int round = 0; item_of(round) < count_items(task); round++)
        attend_item<ROWS>(task, find_item(task, item_of(round)), ring);
}
