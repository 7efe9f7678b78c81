// The next token by temperature, top-k, top-p, min-p and repeat penalty: what runtime/sample.c
// chooses from the same logits, to the bit. One block; sums are added in sample.c's order. What
// would keep more than SAMPLE_MOST candidates is left to the CPU: the choice is then -1.

enum {
    SAMPLE_THREADS = 1024,
    SAMPLE_MOST = 512,  // candidates that are sorted and cut here
    SAMPLE_LIST = 2048, // that may come into question
};

struct sample_space { // shared memory
    unsigned long long keys[SAMPLE_LIST];
    double sums[SAMPLE_RUNS];
    float weights[SAMPLE_MOST];
    double total;
    unsigned count; // of the list
    int kept;
};

// Larger is better: by logit, of equals the lower id; 0 for NaN.
static __device__ inline unsigned long long sample_key(float logit, int id) {
    unsigned bits = __float_as_uint(logit + 0.0f); // -0 is 0
    bits = bits >> 31 ? ~bits : bits | 0x80000000;
    return logit == logit ? (unsigned long long)bits << 32 | (0xffffffff - (unsigned)id) : 0;
}

static __device__ inline int key_id(unsigned long long key) {
    return (int)(0xffffffff - (unsigned)key);
}

// Sorts keys [n], n a power of two, the best first: bitonic, by the whole block.
static __device__ __forceinline__ void sort_keys(unsigned long long *keys, int n) {
    for (int size = 2; size <= n; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            for (int i = threadIdx.x; i < n / 2; i += SAMPLE_THREADS) {
                int low = 2 * i - (i & (stride - 1)), high = low + stride;
                unsigned long long a = keys[low], b = keys[high];
                if ((a < b) == ((low & size) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            __syncthreads();
        }
    }
}

// Leaves the weights' sums, run by run, in space.sums; returns the length of a run. A barrier must
// follow.
static __device__ __forceinline__ int sum_runs(struct sample_space &space, const float *logits,
                                               float most, float temperature) {
    int length = sample_run_length(VOCAB_SIZE), first = threadIdx.x * length;
    double sum = 0;
#pragma unroll 1
    for (int i = first; i < VOCAB_SIZE && i < first + length; i++)
        sum += (double)sample_weight(logits[i], most, temperature);
    space.sums[threadIdx.x] = sum; // 0 behind the end
    return length;
}

// The part of `parts` in which the sum passes `target`; *before: the sum up to it.
template <typename T>
static __device__ inline int find_part(const T *parts, int count, double target, double *before) {
    int found = 0;
    double sum = 0;
    *before = 0;
    for (int i = 0; i < count && sum <= target; i++) {
        if (parts[i] > 0) {
            found = i;
            *before = sum;
        }
        sum += (double)parts[i];
    }
    return found;
}

// One of all ids. Thread 0's result counts.
static __device__ __forceinline__ int draw_any(struct sample_space &space, const float *logits,
                                               float most, float temperature, double uniform) {
    int length = sum_runs(space, logits, most, temperature);
    __syncthreads();
    if (threadIdx.x > 0)
        return 0;
    double total = 0, sum;
    for (int i = 0; i < SAMPLE_RUNS; i++)
        total += space.sums[i];
    double target = sample_product(uniform, total);
    int first = find_part(space.sums, SAMPLE_RUNS, target, &sum) * length, chosen = first;
    for (int i = first; i < VOCAB_SIZE && i < first + length && sum <= target; i++) {
        float weight = sample_weight(logits[i], most, temperature);
        chosen = weight > 0 ? i : chosen;
        sum += (double)weight;
    }
    return chosen;
}

// Leaves the best candidates in space.keys, best first, `wanted` of them if there are that many.
// Returns how many; -1: too many came into question. keys: the best of each thread's share, sorted.
static __device__ __forceinline__ int list_candidates(struct sample_space &space,
                                                      const float *logits, int wanted) {
    unsigned long long least = space.keys[wanted - 1]; // so many are at least as good
    least = least ? least : 1;
    if (threadIdx.x == 0)
        space.count = 0;
    __syncthreads();
#pragma unroll 1
    for (int i = threadIdx.x; i < VOCAB_SIZE; i += SAMPLE_THREADS) {
        unsigned long long key = sample_key(logits[i], i);
        if (key >= least) {
            unsigned place = atomicAdd(&space.count, 1);
            if (place < SAMPLE_LIST)
                space.keys[place] = key;
        }
    }
    __syncthreads();
    int count = (int)space.count;
    if (count > SAMPLE_LIST)
        return -1;
    for (int i = count + threadIdx.x; i < SAMPLE_LIST; i += SAMPLE_THREADS)
        space.keys[i] = 0;
    __syncthreads();
    sort_keys(space.keys, SAMPLE_LIST);
    return count < wanted ? count : wanted;
}

// sample_cut of sample.c, with the weights at temperature 1 in space.weights.
static __device__ inline int cut_candidates(const struct sample_space &space, const float *logits,
                                            int count, double total,
                                            const struct gpu_sampling &sampling) {
    int kept = count;
    if (sampling.top_p < 1) {
        double sum = 0, enough = sample_product(sampling.top_p, total);
        for (kept = 0; kept < count && (kept == 0 || sum < enough); kept++)
            sum += (double)space.weights[kept];
    }
    float least = logits[key_id(space.keys[0])] + sampling.log_min_p;
    while (kept > 1 && logits[key_id(space.keys[kept - 1])] < least)
        kept--;
    return kept;
}

// One of the best, after the filters. Thread 0's result counts.
static __device__ __forceinline__ int draw_filtered(struct sample_space &space, const float *logits,
                                                    float most, const struct gpu_sampling &sampling,
                                                    double uniform) {
    bool all = sampling.top_k <= 0 || sampling.top_k > VOCAB_SIZE; // candidates for top-p
    int wanted = all ? VOCAB_SIZE : sampling.top_k;
    bool few = wanted <= SAMPLE_MOST;
    if (!few && sampling.top_k > 0)
        return -1;
    int count = list_candidates(space, logits, few ? wanted : SAMPLE_MOST);
    if (count < 0)
        return -1;
    if (sampling.top_k <= 0 && sampling.top_p < 1)
        (void)sum_runs(space, logits, most, 1);
    int mine = threadIdx.x;
    float logit = mine < count ? logits[key_id(space.keys[mine])] : 0;
    if (mine < count)
        space.weights[mine] = sample_weight(logit, most, 1);
    __syncthreads();
    if (mine == 0) {
        double total = 0;
        if (sampling.top_k > 0)
            for (int i = 0; i < count; i++)
                total += (double)space.weights[i];
        else if (sampling.top_p < 1)
            for (int i = 0; i < SAMPLE_RUNS; i++)
                total += space.sums[i];
        space.kept = cut_candidates(space, logits, count, total, sampling);
    }
    __syncthreads();
    int kept = space.kept;
    if (!few && kept == SAMPLE_MOST)
        return -1;
    if (mine < kept)
        space.weights[mine] = sample_weight(logit, most, sampling.temperature);
    __syncthreads();
    if (mine > 0)
        return 0;
    double total = 0, before;
    for (int i = 0; i < kept; i++)
        total += (double)space.weights[i];
    return key_id(
        space.keys[find_part(space.weights, kept, sample_product(uniform, total), &before)]);
}

// The id that stands at `position` next. Thread 0's result counts.
static __device__ __forceinline__ int sample_logits(struct sample_space &space, const float *logits,
                                                    const struct gpu_sampling &sampling,
                                                    int position) {
    unsigned long long best = 0;
#pragma unroll 8
    for (int i = threadIdx.x; i < VOCAB_SIZE; i += SAMPLE_THREADS) {
        unsigned long long key = sample_key(logits[i], i);
        best = key > best ? key : best;
    }
    space.keys[threadIdx.x] = best;
    __syncthreads();
    sort_keys(space.keys, SAMPLE_THREADS);
    best = space.keys[0];
    if (best == 0)
        return 0;
    if (!(sampling.temperature > 0))
        return key_id(best);
    float most = logits[key_id(best)];
    double uniform = sample_uniform(sampling.seed, (unsigned long long)position);
    return sampling.filtered ? draw_filtered(space, logits, most, sampling, uniform)
                             : draw_any(space, logits, most, sampling.temperature, uniform);
}

// The id that this thread penalizes: of the last ones up to `position`, each once. -1: none. Not by
// the first warps, whose thread 0 draws.
static __device__ inline int recent_id(const struct gpu_task &task, int position, bool wanted) {
    int mine = position + SAMPLE_PENALTY_WINDOW - (int)threadIdx.x;
    if (!wanted || mine > position || mine <= position - SAMPLE_PENALTY_WINDOW || mine < 0)
        return -1;
    int id = task.history[mine];
    for (int later = mine + 1; later <= position; later++)
        if (task.history[later] == id)
            return -1;
    return id;
}

// state: the choice, and the next position. Grid: 1. The penalty changes the logits in place, for
// as long as this kernel runs.
extern "C" __global__ void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_token(const struct gpu_task task) {
    wait_for_previous_kernel();
    struct sample_space &space = *(struct sample_space *)shared_memory();
    const struct gpu_sampling sampling = *task.sampling;
    int position = newest_position(task);
    float *logits = task.logits + (long long)(position % 2) * VOCAB_SIZE;
    int id = recent_id(task, position, sampling.repeat_penalty != 1);
    float before = id < 0 ? 0 : logits[id];
    if (id >= 0)
        logits[id] = sample_penalized(before, sampling.repeat_penalty);
    __syncthreads();
    int token = sample_logits(space, logits, sampling, position + 1);
    // Thread 0 may still read what is put back now.
    __syncthreads();
    if (id >= 0)
        logits[id] = before;
    if (threadIdx.x == 0)
        leave_choice(task, token);
}
