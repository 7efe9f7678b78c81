// See gpu.h.
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda_driver.h"
#include "cuda_driver.c"
#include "cubin_cache.h"
#include "cubin_cache.c"
#include "cubin_build.h"
#include "cubin_build.c"
#include "nvml.h"
#include "nvml.c"
#include "cuda_task.h"
#include "gpu.h"
#include "model.h"
#include "clock.h"
#include "engine_cu.h"
#include "gpu_dims.h"
#include "cubins.h"

enum { GPU_PART = 1 };

// The kernels of engine.cu.
enum kernel {
    KERNEL_EMBED,
    KERNEL_DECODE_STEP,
    KERNEL_PREFILL_INPUT_NORM,
    KERNEL_PREFILL_QKV,
    KERNEL_PREFILL_CACHE,
    KERNEL_PREFILL_GATHER,
    KERNEL_PREFILL_ATTENTION,
    KERNEL_PREFILL_O,
    KERNEL_PREFILL_POST_NORM,
    KERNEL_PREFILL_GATE_UP,
    KERNEL_PREFILL_DOWN,
    KERNEL_CHOOSE,
    KERNEL_SAMPLE,
    KERNEL_READ_MEMORY,
    KERNELS,
};

// Their names, and which module of engine.cu has them.
static const struct {
    const char *name;
    int module;
} KERNEL_TABLE[] = {
    {"embed", 2},
    {"decode_step", 0},
    {"prefill_input_norm", 2},
    {"prefill_qkv", 4},
    {"prefill_cache", 2},
    {"prefill_gather", 2},
    {"prefill_attention", 2},
    {"prefill_o", 3},
    {"prefill_post_norm", 2},
    {"prefill_gate_up", 3},
    {"prefill_down", 3},
    {"choose", 0},
    {"sample_token", 1},
    {"read_memory", 1},
};

// Sizes that engine.cu works with too: threads of a block, tiles and bytes.
enum {
    GPU_WARPS = 8,
    GPU_THREADS = 32 * GPU_WARPS,
    GPU_STEP_THREADS = GPU_THREADS + 32,            // of a decode step: with the producer's warp,
    GPU_STEP_WARPGROUP_THREADS = GPU_THREADS + 128, // or its warpgroup
    GPU_PREFILL_THREADS = 128,
    GPU_WARPGROUP_THREADS = 384,
    GPU_SAMPLE_THREADS = 1024,
    GPU_PREFILL_TILES = 8, // row tiles, column tiles of a block
    GPU_QUERIES = 64,      // of an item of prefill attention
    GPU_OLDEST_SM = 80,
    GPU_PARTS = sizeof GPU_BUFFERS / sizeof *GPU_BUFFERS,
};

struct gpu_info {
    char name[96];               // of the device
    char note[256];              // one line on the kernel cache, or ""
    int sm;                      // 10 * major + minor of its compute capability
    bool integrated;             // host and device share memory
    const char *kernels;         // embedded, cached, or compiled now
    struct parscale_start start; // all but check
    size_t weight_bytes, cache_bytes, activation_bytes;
};

// Memory of the host that the device reads and writes.
struct gpu_pinned {
    struct gpu_state state;       // on its way to the device
    struct gpu_state chosen[2];   // what the device chose, by odd and even positions
    struct gpu_sampling sampling; // how
};

struct step_graph {
    void *graph, *executable;
};

struct gpu {
    pthread_t opening; // the thread that opens the device, if is_opening
    bool is_opening;
    struct error opening_error;
    const struct adapter *first_adapter;
    struct cuda_driver driver;
    struct gpu_info info;
    unsigned streams;
    size_t prefix_tokens;
    size_t shared_bytes; // of a block, at most: what the kernels were compiled for
    bool use_cache;      // of compiled kernels
    const struct cubin *embedded;
    struct cubin_build build; // where none is embedded
    int device, multiprocessors, shared_limit;
    void *context, *modules[CUBIN_MODULES], *functions[KERNELS];
    void *stream, *copies; // all work, and copies of results beside it
    void *ready[2];        // events: the logits of an even, an odd position are there
    struct step_graph greedy_step, sampling_step;
    cuda_pointer weights, cache, parts[GPU_PARTS]; // parts: of the activations
    double uploaded;                               // when the weights were
    void *mapped;                                  // the pack, where the device reads it in place
    struct gpu_task task;
    struct gpu_pinned *pinned;
    float *logits;      // pinned [vocab], and behind it the stream weights [MAX_STREAMS]
    bool fresh;         // those are of the last work
    enum kernel choice; // what chooses a token: KERNEL_CHOOSE or KERNEL_SAMPLE
    size_t position;    // behind which the last logits stand, if has_logits
    bool has_logits;
    bool follows;     // the host takes what the device chooses
    bool ahead;       // the step behind `position` was launched
    struct nvml nvml; // opened when energy is asked for
};

static size_t gpu_block_tokens(const struct gpu *gpu) {
    return GPU_COLUMNS / gpu->streams;
}

static unsigned blocks_for(size_t work, size_t each) {
    return (unsigned)((work + each - 1) / each);
}

// One launch; every kernel may start while the one before it ends (see wait_for_previous_kernel).
static int gpu_launch(struct gpu *gpu, enum kernel kernel, unsigned x, unsigned y, unsigned z,
                      unsigned threads, size_t shared, struct error *error) {
    struct cuda_launch_attribute overlap = {.id = CUDA_LAUNCH_PROGRAMMATIC, .value = 1};
    struct cuda_launch launch = {
        .grid = {x, y, z},
        .block = {threads, 1, 1},
        .shared_bytes = (unsigned)shared,
        .stream = gpu->stream,
        .attributes = &overlap,
        .attribute_count = gpu->info.sm >= 90 ? 1 : 0,
    };
    void *arguments[] = {&gpu->task};
    return cuda_check(&gpu->driver,
                      gpu->driver.launch(&launch, gpu->functions[kernel], arguments, NULL),
                      KERNEL_TABLE[kernel].name, error);
}

// ---- The forward pass ----

// Whether the kernels use warpgroups: engine.cu's WARPGROUPS.
static bool has_warpgroups(const struct gpu *gpu) {
    return gpu->info.sm == 90;
}

// A decode step, or behind a prefill what follows its layers: a block on every multiprocessor,
// which wait for each other.
static int launch_decode(struct gpu *gpu, struct error *error) {
    struct cuda_launch_attribute together = {.id = CUDA_LAUNCH_COOPERATIVE, .value = 1};
    struct cuda_launch launch = {
        .grid = {(unsigned)gpu->task.blocks, 1, 1},
        .block = {has_warpgroups(gpu) ? GPU_STEP_WARPGROUP_THREADS : GPU_STEP_THREADS, 1, 1},
        .shared_bytes = (unsigned)gpu->shared_bytes,
        .stream = gpu->stream,
        .attributes = &together,
        .attribute_count = 1,
    };
    void *arguments[] = {&gpu->task};
    return cuda_check(
        &gpu->driver,
        gpu->driver.launch(&launch, gpu->functions[KERNEL_DECODE_STEP], arguments, NULL),
        KERNEL_TABLE[KERNEL_DECODE_STEP].name, error);
}

static size_t prefill_shared(const struct gpu *gpu) {
    return has_warpgroups(gpu) ? gpu->shared_bytes : GPU_PREFILL_SHARED;
}

// A block of threads for each block of results; those of warpgroups take one after the other.
static int prefill_product(struct gpu *gpu, enum kernel kernel, size_t columns, int row_tiles,
                           struct error *error) {
    if (has_warpgroups(gpu))
        return gpu_launch(gpu, kernel, (unsigned)gpu->multiprocessors, 1, 1, GPU_WARPGROUP_THREADS,
                          prefill_shared(gpu), error);
    unsigned blocks = blocks_for(columns, TILE * GPU_PREFILL_TILES) *
                      blocks_for((size_t)row_tiles, GPU_PREFILL_TILES);
    return gpu_launch(gpu, kernel, blocks, 1, 1, GPU_PREFILL_THREADS, prefill_shared(gpu), error);
}

// Whether they also attend in a prefill: engine.cu's WARPGROUPS_ATTEND.
static bool warpgroups_attend(const struct gpu *gpu) {
    return has_warpgroups(gpu) && GPU_WARPGROUPS_ATTEND;
}

static size_t attention_shared(const struct gpu *gpu) {
    return warpgroups_attend(gpu) ? gpu->shared_bytes : GPU_PREFILL_ATTENTION_SHARED;
}

// Rows of tiles are gathered up to whole steps of at most eight. Then a block of threads attends
// each item; those of warpgroups take one after the other.
static int prefill_attention(struct gpu *gpu, struct error *error) {
    size_t tokens = (size_t)gpu->task.tokens, positions = (size_t)gpu->task.position + tokens;
    size_t rows = blocks_for(gpu->prefix_tokens, TILE) + blocks_for(positions, TILE);
    int code = gpu_launch(gpu, KERNEL_PREFILL_GATHER, 2 * blocks_for(rows, GPU_WARPS), KV_HEADS,
                          gpu->streams, GPU_THREADS, 0, error);
    if (code)
        return code;
    if (warpgroups_attend(gpu))
        return gpu_launch(gpu, KERNEL_PREFILL_ATTENTION, (unsigned)gpu->multiprocessors, 1, 1,
                          GPU_WARPGROUP_THREADS, attention_shared(gpu), error);
    unsigned groups = blocks_for(tokens * (HEADS / KV_HEADS), GPU_QUERIES);
    return gpu_launch(gpu, KERNEL_PREFILL_ATTENTION, groups * KV_HEADS * gpu->streams, 1, 1,
                      GPU_PREFILL_THREADS, attention_shared(gpu), error);
}

// One layer of a block of tokens. The input of layer 0 is the same in all streams.
static int prefill_layer(struct gpu *gpu, int layer, struct error *error) {
    size_t tokens = (size_t)gpu->task.tokens, columns = tokens * gpu->streams;
    size_t distinct = layer == 0 ? tokens : columns;
    gpu->task.layer = layer;
    int code = gpu_launch(gpu, KERNEL_PREFILL_INPUT_NORM, blocks_for(distinct, GPU_WARPS), 1, 1,
                          GPU_THREADS, 0, error);
    if (!code)
        code = prefill_product(gpu, KERNEL_PREFILL_QKV, distinct, LAYOUT.qkv.row_tiles, error);
    if (!code)
        code =
            gpu_launch(gpu, KERNEL_PREFILL_CACHE,
                       blocks_for((size_t)gpu->task.position % TILE + tokens, TILE * GPU_WARPS / 2),
                       KV_HEADS, (unsigned)(distinct / tokens), GPU_THREADS, 0, error);
    if (!code)
        code = prefill_attention(gpu, error);
    if (!code)
        code = prefill_product(gpu, KERNEL_PREFILL_O, columns, LAYOUT.o.row_tiles, error);
    if (!code)
        code = gpu_launch(gpu, KERNEL_PREFILL_POST_NORM, blocks_for(columns, GPU_WARPS), 1, 1,
                          GPU_THREADS, 0, error);
    if (!code)
        code =
            prefill_product(gpu, KERNEL_PREFILL_GATE_UP, columns, LAYOUT.gate_up.row_tiles, error);
    if (!code)
        code = prefill_product(gpu, KERNEL_PREFILL_DOWN, columns, LAYOUT.down.row_tiles, error);
    return code;
}

static int prefill_layers(struct gpu *gpu, struct error *error) {
    int code = gpu_launch(gpu, KERNEL_EMBED, (unsigned)gpu->task.tokens, gpu->streams, 1,
                          GPU_THREADS, 0, error);
    for (int layer = 0; layer < LAYERS && !code; layer++)
        code = prefill_layer(gpu, layer, error);
    return code;
}

static int launch_choice(struct gpu *gpu, struct error *error) {
    if (gpu->choice == KERNEL_CHOOSE)
        return gpu_launch(gpu, KERNEL_CHOOSE, 1, 1, 1, GPU_THREADS, GPU_SMALL_SHARED, error);
    return gpu_launch(gpu, KERNEL_SAMPLE, 1, 1, 1, GPU_SAMPLE_THREADS, GPU_SAMPLE_SHARED, error);
}

// Logits and choice.
static int launch_step_kernels(struct gpu *gpu, struct error *error) {
    int code = launch_decode(gpu, error);
    return code ? code : launch_choice(gpu, error);
}

static int make_graph(struct gpu *gpu, struct step_graph *step, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    size_t unused = 0, total = 0;
    (void)driver->memory_info(&unused, &total);
    cuda_result result = driver->graph_instantiate(&step->executable, step->graph, 0);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return fail(error, EXIT_MEMORY, "GPU memory, decode graph: %zu of %zu bytes are free",
                    unused, total);
    return cuda_check(driver, result, "making the decode graph", error);
}

// A decode step as a graph, which ends with the kernel `choice`: token and position are read from
// device memory.
static int capture_decode(struct gpu *gpu, enum kernel choice, struct step_graph *step,
                          struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    const int *ids = gpu->task.ids;
    gpu->task.ids = NULL;
    gpu->task.tokens = 1;
    gpu->task.token = 0;
    gpu->choice = choice;
    int code = cuda_check(driver, driver->capture_begin(gpu->stream, CUDA_CAPTURE_THREAD_LOCAL),
                          "capturing a decode step", error);
    if (code)
        return code;
    code = launch_step_kernels(gpu, error);
    cuda_result ended = driver->capture_end(gpu->stream, &step->graph);
    gpu->task.ids = ids;
    if (!code)
        code = cuda_check(driver, ended, "capturing a decode step", error);
    return code ? code : make_graph(gpu, step, error);
}

static int capture_steps(struct gpu *gpu, struct error *error) {
    int code = capture_decode(gpu, KERNEL_SAMPLE, &gpu->sampling_step, error);
    return code ? code : capture_decode(gpu, KERNEL_CHOOSE, &gpu->greedy_step, error);
}

// Waits for all work.
static int gpu_finish(struct gpu *gpu, struct error *error) {
    return cuda_check(&gpu->driver, gpu->driver.stream_synchronize(gpu->stream), "running a kernel",
                      error);
}

// Marks the end of the work that makes the logits behind `position`, and waits for it. What comes
// after it may still run.
static int mark_logits(struct gpu *gpu, size_t position, struct error *error) {
    return cuda_check(&gpu->driver, gpu->driver.event_record(gpu->ready[position % 2], gpu->stream),
                      "running a kernel", error);
}

static int wait_for_logits(struct gpu *gpu, struct error *error) {
    return cuda_check(&gpu->driver, gpu->driver.event_synchronize(gpu->ready[gpu->position % 2]),
                      "running a kernel", error);
}

static int launch_step(struct gpu *gpu, size_t position, struct error *error) {
    bool greedy = gpu->choice == KERNEL_CHOOSE;
    void *step = greedy ? gpu->greedy_step.executable : gpu->sampling_step.executable;
    int code = cuda_check(&gpu->driver, gpu->driver.graph_launch(step, gpu->stream),
                          "launching a decode step", error);
    return code ? code : mark_logits(gpu, position, error);
}

// Whether the device's own choice was this id at this position: it has it already.
static int is_own_choice(struct gpu *gpu, int32_t id, size_t position, bool *own,
                         struct error *error) {
    *own = false;
    if (!gpu->has_logits)
        return EXIT_OK;
    int code = wait_for_logits(gpu, error);
    const struct gpu_state *chosen = &gpu->pinned->chosen[gpu->position % 2];
    *own = !code && chosen->token == id && chosen->position == (int)position;
    return code;
}

// While tokens are taken as the device chooses them, it computes one step ahead of the host.
static int decode_step(struct gpu *gpu, int32_t id, size_t position, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    bool own;
    int code = is_own_choice(gpu, id, position, &own, error);
    if (!code && !own) {
        gpu->ahead = gpu->follows = false;
        code = gpu_finish(gpu, error);
        gpu->pinned->state = (struct gpu_state){id, (int)position};
        if (!code)
            code = cuda_check(driver,
                              driver->copy_to_device((cuda_pointer)(uintptr_t)gpu->task.state,
                                                     &gpu->pinned->state, sizeof gpu->pinned->state,
                                                     gpu->stream),
                              "copying to the device", error);
    }
    if (!code && !gpu->ahead)
        code = launch_step(gpu, position, error);
    gpu->ahead = false;
    gpu->position = position;
    gpu->has_logits = !code;
    gpu->fresh = false;
    if (!code && gpu->follows && position + 1 < CONTEXT) {
        code = launch_step(gpu, position + 1, error);
        gpu->ahead = !code;
    }
    return code;
}

static int prefill_block(struct gpu *gpu, const struct block *block, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    gpu->ahead = gpu->has_logits = false;
    gpu->task.tokens = (int)block->tokens;
    gpu->task.position = (int)block->position;
    int code = cuda_check(driver,
                          driver->copy_to_device((cuda_pointer)(uintptr_t)gpu->task.ids, block->ids,
                                                 block->tokens * sizeof *block->ids, gpu->stream),
                          "copying to the device", error);
    return code ? code : prefill_layers(gpu, error);
}

static int gpu_head(struct gpu *gpu, const struct block *block, size_t token, struct error *error) {
    gpu->task.tokens = (int)block->tokens;
    gpu->task.position = (int)block->position;
    gpu->task.token = (int)token;
    gpu->position = block->position + token;
    gpu->fresh = false;
    int code = launch_step_kernels(gpu, error);
    if (!code)
        code = mark_logits(gpu, gpu->position, error);
    gpu->has_logits = !code;
    return code;
}

static int gpu_compute(struct gpu *gpu, const struct block *block, struct error *error) {
    if (block->tokens == 1 && block->head_tokens == 1)
        return decode_step(gpu, block->ids[0], block->position, error);
    int code = prefill_block(gpu, block, error);
    if (!code && block->head_tokens)
        code = gpu_head(gpu, block, block->head_first, error);
    return code ? code : gpu_finish(gpu, error); // ids are the caller's: they must have been read
}

// Copies beside a step that may run ahead, on a stream of its own.
static int fetch(struct gpu *gpu, float *to, const float *from, size_t count, struct error *error) {
    return cuda_check(&gpu->driver,
                      gpu->driver.copy_to_host(to, (cuda_pointer)(uintptr_t)from,
                                               count * sizeof(float), gpu->copies),
                      "copying logits", error);
}

static int gpu_output(struct gpu *gpu, struct gpu_output *output, struct error *error) {
    const size_t slot = gpu->position % 2;
    int code = EXIT_OK;
    if (!gpu->fresh) {
        code = wait_for_logits(gpu, error);
        if (!code)
            code = fetch(gpu, gpu->logits, gpu->task.logits + slot * VOCAB_SIZE, VOCAB_SIZE, error);
        if (!code)
            code = fetch(gpu, gpu->logits + VOCAB_SIZE,
                         gpu->task.stream_weights + slot * gpu->streams, gpu->streams, error);
        if (!code)
            code = cuda_check(&gpu->driver, gpu->driver.stream_synchronize(gpu->copies),
                              "copying logits", error);
        gpu->fresh = !code;
    }
    *output = (struct gpu_output){gpu->logits, gpu->logits + VOCAB_SIZE};
    return code;
}

// The same choice by the device; greedy ones are equal whatever else is asked for.
static struct gpu_sampling device_sampling(const struct parscale_sampling *sampling) {
    if (!(sampling->temperature > 0))
        return (struct gpu_sampling){.repeat_penalty = sampling->repeat_penalty};
    return (struct gpu_sampling){
        .temperature = sampling->temperature,
        .top_p = sampling->top_p,
        .log_min_p = sampling->min_p > 0 ? logf(sampling->min_p) : -INFINITY,
        .repeat_penalty = sampling->repeat_penalty,
        .top_k = sampling->top_k,
        .filtered = sampling->top_k > 0 || sampling->top_p < 1 || sampling->min_p > 0,
        .seed = sampling->seed,
    };
}

static bool same_sampling(const struct gpu_sampling *a, const struct gpu_sampling *b) {
    return a->temperature == b->temperature && a->top_p == b->top_p &&
           a->log_min_p == b->log_min_p && a->repeat_penalty == b->repeat_penalty &&
           a->top_k == b->top_k && a->filtered == b->filtered && a->seed == b->seed;
}

// Chooses anew from logits that are there, and has later steps choose in this way. A step that ran
// ahead is forgotten.
static int choose_again(struct gpu *gpu, const struct gpu_sampling *sampling, struct error *error) {
    bool greedy = !(sampling->temperature > 0) && sampling->repeat_penalty == 1;
    int code = gpu_finish(gpu, error);
    gpu->pinned->sampling = *sampling;
    gpu->choice = greedy ? KERNEL_CHOOSE : KERNEL_SAMPLE;
    gpu->ahead = false;
    gpu->task.tokens = 1;
    gpu->task.token = 0;
    gpu->task.position = (int)gpu->position;
    if (!code)
        code = cuda_check(&gpu->driver,
                          gpu->driver.copy_to_device((cuda_pointer)(uintptr_t)gpu->task.sampling,
                                                     &gpu->pinned->sampling, sizeof *sampling,
                                                     gpu->stream),
                          "copying to the device", error);
    if (!code)
        code = launch_choice(gpu, error);
    return code ? code : mark_logits(gpu, gpu->position, error);
}

static int32_t gpu_choice(struct gpu *gpu, const struct parscale_sampling *sampling,
                          struct error *error) {
    const struct gpu_sampling wanted = device_sampling(sampling);
    int code = EXIT_OK;
    if (!same_sampling(&wanted, &gpu->pinned->sampling))
        code = choose_again(gpu, &wanted, error);
    if (!code)
        code = wait_for_logits(gpu, error);
    int token = code ? -1 : gpu->pinned->chosen[gpu->position % 2].token;
    gpu->follows = token >= 0;
    return token;
}

// ---- Measuring ----

enum { GPU_READ_BLOCK = GPU_THREADS * 16 * 16 }; // bytes: READ_BLOCK_BYTES of cuda_measure.cu

// Seconds in which the device reads `blocks` blocks at task.weights: the best of some rounds of
// some passes each, which take milliseconds. 0 if it cannot.
static double time_reading(struct gpu *gpu, unsigned blocks) {
    enum { ROUNDS = 5, PASSES = 4 };
    struct error unused = {0};
    double best = 0;
    for (int round = 0; round < ROUNDS; round++) {
        int code = gpu_finish(gpu, &unused);
        double start = clock_seconds();
        for (int pass = 0; pass < PASSES && !code; pass++)
            code = gpu_launch(gpu, KERNEL_READ_MEMORY, blocks, 1, 1, GPU_THREADS, 0, &unused);
        if (code || gpu_finish(gpu, &unused))
            return 0;
        double seconds = (clock_seconds() - start) / PASSES;
        best = round == 0 || seconds < best ? seconds : best;
    }
    return best;
}

static double gpu_read_bandwidth(struct gpu *gpu) {
    const struct cuda_driver *driver = &gpu->driver;
    const struct gpu_task task = gpu->task;
    const size_t most = (size_t)4 << 30, sums = GPU_WARPS * sizeof *task.sums; // of a block
    size_t available = 0, total = 0;
    cuda_pointer memory = 0;
    (void)driver->memory_info(&available, &total);
    size_t wanted = available / 2 < most ? available / 2 : most;
    unsigned blocks = (unsigned)(wanted / (GPU_READ_BLOCK + sums));
    size_t bytes = blocks * (size_t)GPU_READ_BLOCK;
    if (blocks == 0 || driver->allocate(&memory, bytes + blocks * sums) != CUDA_SUCCESS)
        return 0;
    gpu->task.weights = (const char *)(uintptr_t)memory;
    gpu->task.sums = (unsigned *)(uintptr_t)(memory + bytes);
    double seconds = 0;
    if (driver->fill(memory, 1, bytes, gpu->stream) == CUDA_SUCCESS)
        seconds = time_reading(gpu, blocks);
    gpu->task = task;
    (void)driver->release(memory);
    return seconds > 0 ? (double)bytes / seconds : 0;
}

static bool gpu_energy(struct gpu *gpu, struct parscale_energy *energy) {
    unsigned char uuid[GPU_UUID_BYTES];
    if (!gpu->nvml.library && (gpu->driver.device_uuid(uuid, gpu->device) != CUDA_SUCCESS ||
                               !nvml_open(&gpu->nvml, uuid)))
        return false;
    energy->power_limit = nvml_power_limit(&gpu->nvml);
    return nvml_energy(&gpu->nvml, &energy->joules);
}

// ---- Starting up ----

static int find_device(struct gpu *gpu, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    int count = 0, major = 0, minor = 0, integrated = 0;
    int code = cuda_check(driver, driver->device_count(&count), "counting devices", error);
    if (!code && count == 0)
        code = fail(error, EXIT_DEVICE, "CUDA: found no device");
    if (!code)
        code = cuda_check(driver, driver->device(&gpu->device, 0), "opening device 0", error);
    if (code)
        return code;
    (void)driver->device_name(gpu->info.name, sizeof gpu->info.name, gpu->device);
    const struct {
        int attribute, *value;
    } wanted[] = {
        {CUDA_CAPABILITY_MAJOR, &major},
        {CUDA_CAPABILITY_MINOR, &minor},
        {CUDA_MULTIPROCESSORS, &gpu->multiprocessors},
        {CUDA_SHARED_PER_BLOCK, &gpu->shared_limit},
        {CUDA_INTEGRATED, &integrated},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted && !code; i++)
        code = cuda_check(
            driver, driver->device_attribute(wanted[i].value, wanted[i].attribute, gpu->device),
            "asking for the device's properties", error);
    gpu->info.sm = 10 * major + minor;
    gpu->info.integrated = integrated != 0;
    if (!code && gpu->info.sm < GPU_OLDEST_SM)
        code = fail(error, EXIT_DEVICE,
                    "CUDA: %s: found compute capability %d.%d, expected 8.0 or more",
                    gpu->info.name, major, minor);
    return code;
}

static int open_context(struct gpu *gpu, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    int code = cuda_check(driver, driver->context_retain(&gpu->context, gpu->device),
                          "opening the device", error);
    if (!code)
        code = cuda_check(driver, driver->context_set(gpu->context), "opening the device", error);
    if (!code)
        code = cuda_check(driver, driver->stream_create(&gpu->stream, CUDA_STREAM_NON_BLOCKING),
                          "opening the device", error);
    if (!code)
        code = cuda_check(driver, driver->stream_create(&gpu->copies, CUDA_STREAM_NON_BLOCKING),
                          "opening the device", error);
    for (int i = 0; i < 2 && !code; i++)
        code = cuda_check(driver, driver->event_create(&gpu->ready[i], CUDA_EVENT_NO_TIMING),
                          "opening the device", error);
    return code;
}

// The embedded machine code that runs on this device, the newest: of its major architecture, not
// above its minor one, with no more shared memory than there is. NULL if there is none.
static const struct cubin *find_embedded(const struct gpu *gpu) {
    const struct cubin *best = NULL;
    for (const struct cubin *cubin = CUBINS; cubin->sm; cubin++) {
        bool fits = cubin->sm / 10 == gpu->info.sm / 10 && cubin->sm <= gpu->info.sm &&
                    cubin->streams == (int)gpu->streams &&
                    cubin->shared_bytes <= (size_t)gpu->shared_limit;
        if (fits && (!best || cubin->sm > best->sm))
            best = cubin;
    }
    return best;
}

// Begins to look for the kernels' machine code for this device.
static void start_kernels(struct gpu *gpu) {
    struct cubin_build *build = &gpu->build;
    gpu->embedded = find_embedded(gpu);
    *build = (struct cubin_build){.source = ENGINE_CU, .use_cache = gpu->use_cache};
    gpu->shared_bytes = gpu->embedded ? gpu->embedded->shared_bytes : (size_t)gpu->shared_limit;
    if (gpu->embedded)
        return;
    (void)gpu->driver.version(&build->driver_version);
    snprintf(build->options[0], CUBIN_OPTION_CHARS, "--gpu-architecture=sm_%d%s", gpu->info.sm,
             has_warpgroups(gpu) ? "a" : "");
    snprintf(build->options[1], CUBIN_OPTION_CHARS, "-DSTREAMS=%u", gpu->streams);
    snprintf(build->options[2], CUBIN_OPTION_CHARS, "-DSHARED_BYTES=%zu", gpu->shared_bytes);
    cubin_build_start(build);
}

// Waits for the machine code of all modules.
static int wait_for_kernels(struct gpu *gpu, struct error *error) {
    struct gpu_info *info = &gpu->info;
    info->kernels = gpu->embedded ? "embedded" : "cached";
    info->start.kernels = 0;
    if (gpu->embedded)
        return EXIT_OK;
    int code = cubin_build_wait(&gpu->build, true, error);
    for (int i = 0; i < CUBIN_MODULES; i++) {
        const struct cubin_module *module = &gpu->build.modules[i];
        if (module->compiled)
            info->kernels = "compiled";
        if (module->note[0])
            memcpy(info->note, module->note, sizeof info->note);
        info->start.kernels = fmax(info->start.kernels, module->seconds);
    }
    return code;
}

// Embedded machine code is one module, with all kernels.
static int load_kernels(struct gpu *gpu, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    const struct cubin *embedded = gpu->embedded;
    int code = EXIT_OK;
    for (int i = 0; i < (embedded ? 1 : CUBIN_MODULES) && !code; i++) {
        const struct cubin_module *built = &gpu->build.modules[i];
        const void *image =
            embedded ? (const void *)(CUBIN_WORDS + embedded->first_word) : built->cubin;
        code =
            cuda_check(driver, driver->module_load(&gpu->modules[i], image),
                       embedded                ? "loading the embedded kernels"
                       : built->newer_compiler ? "loading kernels (NVRTC is newer than the driver)"
                                               : "loading kernels",
                       error);
    }
    for (int k = 0; k < KERNELS && !code; k++) {
        void *module = gpu->modules[embedded ? 0 : KERNEL_TABLE[k].module];
        code = cuda_check(driver,
                          driver->module_function(&gpu->functions[k], module, KERNEL_TABLE[k].name),
                          KERNEL_TABLE[k].name, error);
    }
    cubin_build_free(&gpu->build);
    return code;
}

// More than 48 KB of shared memory must be asked for.
static int allow_shared(struct gpu *gpu, struct error *error) {
    const struct {
        enum kernel kernel;
        size_t bytes;
    } wanted[] = {
        {KERNEL_DECODE_STEP, gpu->shared_bytes},
        {KERNEL_PREFILL_QKV, prefill_shared(gpu)},
        {KERNEL_PREFILL_ATTENTION, attention_shared(gpu)},
        {KERNEL_PREFILL_O, prefill_shared(gpu)},
        {KERNEL_PREFILL_GATE_UP, prefill_shared(gpu)},
        {KERNEL_PREFILL_DOWN, prefill_shared(gpu)},
    };
    int code = EXIT_OK;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted && !code; i++)
        code =
            cuda_check(&gpu->driver,
                       gpu->driver.function_set(gpu->functions[wanted[i].kernel],
                                                CUDA_FUNCTION_SHARED_BYTES, (int)wanted[i].bytes),
                       KERNEL_TABLE[wanted[i].kernel].name, error);
    return code;
}

// ---- Memory ----

// One allocation, zeroed; says what did not fit.
static int take_device_memory(struct gpu *gpu, cuda_pointer *memory, size_t bytes, const char *what,
                              struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    size_t unused = 0, total = 0;
    (void)driver->memory_info(&unused, &total);
    cuda_result result = driver->allocate(memory, bytes);
    if (result == CUDA_ERROR_OUT_OF_MEMORY)
        return fail(error, EXIT_MEMORY, "GPU memory, %s: asked for %zu bytes, %zu of %zu are free",
                    what, bytes, unused, total);
    int code = cuda_check(driver, result, what, error);
    return code ? code
                : cuda_check(driver, driver->fill(*memory, 0, bytes, gpu->stream), what, error);
}

// The pack on its way: the pool's threads copy it, a batch at a time, to memory that the device can
// read by itself while they copy the next one.
struct upload {
    struct gpu *gpu;
    const char *from;
    struct pool *pool;
    char *staging; // [2, UPLOAD_BATCH], pinned
    struct error *error;
    int code;
};

enum { UPLOAD_BATCH = 4 << 20, UPLOAD_PIECE = 128 << 10 };

// By thread 0, which alone talks to the driver: waits until the device has read this half.
static void wait_for_half(struct upload *upload, size_t half) {
    const struct cuda_driver *driver = &upload->gpu->driver;
    upload->code = cuda_check(driver, driver->event_synchronize(upload->gpu->ready[half]),
                              "uploading weights", upload->error);
}

static void send_half(struct upload *upload, size_t half, size_t at, size_t bytes) {
    struct gpu *gpu = upload->gpu;
    const struct cuda_driver *driver = &gpu->driver;
    upload->code =
        cuda_check(driver,
                   driver->copy_to_device(gpu->weights + at, upload->staging + half * UPLOAD_BATCH,
                                          bytes, gpu->stream),
                   "uploading weights", upload->error);
    if (!upload->code)
        upload->code = cuda_check(driver, driver->event_record(gpu->ready[half], gpu->stream),
                                  "uploading weights", upload->error);
}

static void upload_share(void *argument, int thread) {
    struct upload *upload = argument;
    for (size_t at = 0, half = 0; at < LAYOUT.end; at += UPLOAD_BATCH, half = 1 - half) {
        size_t left = LAYOUT.end - at, bytes = left < UPLOAD_BATCH ? left : UPLOAD_BATCH;
        char *staging = upload->staging + half * UPLOAD_BATCH;
        if (thread == 0 && !upload->code)
            wait_for_half(upload, half);
        pool_barrier(upload->pool);
        if (upload->code)
            return;
        struct work work = pool_work(upload->pool, thread, blocks_for(bytes, UPLOAD_PIECE));
        while (pool_next(&work)) {
            size_t first = work.item * UPLOAD_PIECE, rest = bytes - first;
            memcpy(staging + first, upload->from + at + first,
                   rest < UPLOAD_PIECE ? rest : UPLOAD_PIECE);
        }
        pool_barrier(upload->pool);
        if (thread == 0)
            send_half(upload, half, at, bytes);
    }
}

static int copy_weights(struct gpu *gpu, const char *from, struct pool *pool, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    void *staging = NULL;
    int code = cuda_check(driver, driver->allocate_host(&staging, (size_t)2 * UPLOAD_BATCH),
                          "pinned memory", error);
    if (code)
        return code;
    struct upload upload = {gpu, from, pool, staging, error, EXIT_OK};
    pool_run(pool, upload_share, &upload);
    code = upload.code;
    if (!code)
        code =
            cuda_check(driver, driver->stream_synchronize(gpu->stream), "uploading weights", error);
    (void)driver->release_host(staging);
    return code;
}

// The pack on the device: where host and device share memory, the mapped file itself if the driver
// allows it, else a copy.
static int upload_weights(struct gpu *gpu, const struct pack_file *file, struct pool *pool,
                          struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    cuda_pointer there = 0;
    double start = clock_seconds();
    void *base = (void *)(uintptr_t)file->base;
    if (gpu->info.integrated &&
        driver->register_host(base, file->bytes,
                              CUDA_REGISTER_DEVICE_MAP | CUDA_REGISTER_READ_ONLY) == CUDA_SUCCESS) {
        gpu->mapped = base;
        int code = cuda_check(driver, driver->host_device_pointer(&there, base, 0),
                              "reading the pack in place", error);
        gpu->task.weights = (const char *)(uintptr_t)there;
        return code;
    }
    gpu->info.weight_bytes = LAYOUT.end;
    int code = take_device_memory(gpu, &gpu->weights, LAYOUT.end, "weights", error);
    gpu->task.weights = (const char *)(uintptr_t)gpu->weights;
    if (!code)
        code = copy_weights(gpu, base, pool, error);
    gpu->uploaded = clock_seconds();
    gpu->info.start.upload = gpu->uploaded - start;
    return code;
}

static int upload_rotary(struct gpu *gpu, struct error *error) {
    const size_t half = HEAD_DIM / 2, bytes = (size_t)CONTEXT * HEAD_DIM * sizeof(float);
    float *table = malloc(bytes);
    if (!table)
        return fail(error, EXIT_MEMORY, "rotary table: %zu bytes could not be had", bytes);
    for (size_t i = 0; i < half; i++) {
        float frequency = 1.0f / powf(ROPE_THETA, (float)(2 * i) / (float)HEAD_DIM);
        for (size_t position = 0; position < CONTEXT; position++) {
            float angle = (float)position * frequency;
            table[(position * half + i) * 2] = cosf(angle);
            table[(position * half + i) * 2 + 1] = sinf(angle);
        }
    }
    const struct cuda_driver *driver = &gpu->driver;
    int code = cuda_check(driver,
                          driver->copy_to_device((cuda_pointer)(uintptr_t)gpu->task.rotary, table,
                                                 bytes, gpu->stream),
                          "copying to the device", error);
    if (!code)
        code = gpu_finish(gpu, error);
    free(table);
    return code;
}

static int take_pinned_memory(struct gpu *gpu, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    void *pinned = NULL, *logits = NULL;
    cuda_pointer chosen = 0;
    int code = cuda_check(driver, driver->allocate_host(&pinned, sizeof *gpu->pinned),
                          "pinned memory", error);
    gpu->pinned = pinned;
    if (!code)
        code = cuda_check(
            driver, driver->allocate_host(&logits, (VOCAB_SIZE + MAX_STREAMS) * sizeof(float)),
            "pinned memory", error);
    gpu->logits = logits;
    if (!code) {
        memset(pinned, 0, sizeof *gpu->pinned);
        gpu->pinned->sampling.repeat_penalty = 1; // greedy; the device does not read it then
        code = cuda_check(driver, driver->host_device_pointer(&chosen, gpu->pinned->chosen, 0),
                          "pinned memory", error);
    }
    gpu->task.chosen = (struct gpu_state *)(uintptr_t)chosen;
    return code;
}

static int take_gpu_memory(struct gpu *gpu, const struct pack_file *file, struct pool *pool,
                           struct error *error) {
    gpu->info.activation_bytes = GPU_ACTIVATION_BYTES;
    gpu->info.cache_bytes = GPU_CACHE_BYTES;
    int code = upload_weights(gpu, file, pool, error);
    if (!code)
        code = take_device_memory(gpu, &gpu->cache, gpu->info.cache_bytes, "caches", error);
    gpu->task.cache = (char *)(uintptr_t)gpu->cache;
    for (size_t i = 0; i < GPU_PARTS && !code; i++) {
        code = take_device_memory(gpu, &gpu->parts[i], GPU_BUFFERS[i].bytes, "activations", error);
        void *pointer = (void *)(uintptr_t)gpu->parts[i];
        memcpy((char *)&gpu->task + GPU_BUFFERS[i].place, &pointer, sizeof pointer);
    }
    if (!code)
        code = take_pinned_memory(gpu, error);
    return code ? code : upload_rotary(gpu, error);
}

// Begins to look for the kernels for one P; what takes long is done by other threads.
static void start_choice(struct gpu *gpu, const struct adapter *adapter) {
    gpu->streams = (unsigned)adapter->streams;
    gpu->prefix_tokens = (size_t)adapter->prefix_tokens;
    gpu->task.blocks =
        gpu->multiprocessors < GPU_MOST_BLOCKS ? gpu->multiprocessors : GPU_MOST_BLOCKS;
    start_kernels(gpu);
}

// Waits for them, and makes the decode steps of them.
static int finish_choice(struct gpu *gpu, struct error *error) {
    int code = wait_for_kernels(gpu, error);
    double start = clock_seconds();
    if (!code)
        code = load_kernels(gpu, error);
    if (!code)
        code = allow_shared(gpu, error);
    if (!code)
        code = capture_steps(gpu, error);
    gpu->info.start.load = clock_seconds() - start;
    return code;
}

static void release_step(const struct cuda_driver *driver, const struct step_graph *step) {
    if (step->executable)
        (void)driver->graph_release(step->executable);
    if (step->graph)
        (void)driver->graph_destroy(step->graph);
}

static void release_kernels(const struct gpu *gpu) {
    release_step(&gpu->driver, &gpu->greedy_step);
    release_step(&gpu->driver, &gpu->sampling_step);
    for (int i = 0; i < CUBIN_MODULES; i++)
        if (gpu->modules[i])
            (void)gpu->driver.module_unload(gpu->modules[i]);
}

// What blocks told each other lies elsewhere with another P.
static int forget_told(struct gpu *gpu, struct error *error) {
    int code = EXIT_OK;
    for (size_t i = 0; i < GPU_PARTS && !code; i++)
        if (GPU_BUFFERS[i].told)
            code = cuda_check(&gpu->driver,
                              gpu->driver.fill(gpu->parts[i], 0, GPU_BUFFERS[i].bytes, gpu->stream),
                              "activations", error);
    return code;
}

static int gpu_set_streams(struct gpu *gpu, const struct adapter *adapter, struct error *error) {
    int code = gpu_finish(gpu, error);
    if (code)
        return code;
    const struct gpu before = *gpu;
    memset(gpu->modules, 0, sizeof gpu->modules);
    gpu->greedy_step = gpu->sampling_step = (struct step_graph){0};
    gpu->has_logits = gpu->follows = gpu->ahead = gpu->fresh = false;
    start_choice(gpu, adapter);
    code = finish_choice(gpu, error);
    if (!code)
        code = forget_told(gpu, error);
    release_kernels(code ? gpu : &before);
    if (code)
        *gpu = before;
    return code;
}

static void *open_device_thread(void *argument) {
    struct gpu *gpu = argument;
    struct error *error = &gpu->opening_error;
    double start = clock_seconds();
    int code = cuda_driver_open(&gpu->driver, error);
    if (!code)
        code = find_device(gpu, error);
    if (!code) {
        start_choice(gpu, gpu->first_adapter);
        code = open_context(gpu, error);
    }
    gpu->info.start.device = clock_seconds() - start;
    return NULL;
}

static int gpu_open(struct gpu **result, const struct adapter *adapter, bool use_cache,
                    struct error *error) {
    struct gpu *gpu = calloc(1, sizeof *gpu);
    *result = gpu;
    if (!gpu)
        return fail(error, EXIT_MEMORY, "GPU: %zu bytes could not be had", sizeof *gpu);
    gpu->use_cache = use_cache;
    gpu->first_adapter = adapter;
    gpu->is_opening = pthread_create(&gpu->opening, NULL, open_device_thread, gpu) == 0;
    if (!gpu->is_opening) // no more threads are to be had
        (void)open_device_thread(gpu);
    return EXIT_OK;
}

// Waits until the device is open, or it is known that it cannot be.
static int wait_for_device(struct gpu *gpu, struct error *error) {
    if (gpu->is_opening)
        (void)pthread_join(gpu->opening, NULL);
    gpu->is_opening = false;
    if (gpu->opening_error.code)
        *error = gpu->opening_error;
    return gpu->opening_error.code;
}

static int gpu_start(struct gpu *gpu, const struct pack_file *file, struct pool *pool,
                     struct error *error) {
    int code = wait_for_device(gpu, error);
    if (!code) // a context is a thread's
        code = cuda_check(&gpu->driver, gpu->driver.context_set(gpu->context), "opening the device",
                          error);
    if (!code && !gpu->embedded) // do not upload in vain
        code = cubin_build_wait(&gpu->build, false, error);
    if (!code)
        code = take_gpu_memory(gpu, file, pool, error);
    if (!code)
        code = finish_choice(gpu, error);
    struct parscale_start *start = &gpu->info.start;
    double kernels_ready = gpu->build.start + start->kernels; // 0 if they are embedded
    start->upload_alone = fmin(start->upload, fmax(0, gpu->uploaded - kernels_ready));
    return code;
}

static void gpu_describe(const struct gpu *gpu, struct parscale_info *info, char *note,
                         size_t note_bytes) {
    const struct gpu_info *own = &gpu->info;
    const double check = info->start.check;
    info->device = own->name;
    info->gpu_cache_bytes = own->cache_bytes;
    info->gpu_activation_bytes = own->activation_bytes;
    info->start = own->start;
    info->start.check = check;
    snprintf(note, note_bytes, "sm_%d: kernels %s in %.2f s, weights %s in %.2f s%s%s", own->sm,
             own->kernels, own->start.kernels, own->weight_bytes ? "uploaded" : "read in place",
             own->start.upload, own->note[0] ? "; " : "", own->note);
}

static void gpu_close(struct gpu *gpu) {
    if (!gpu)
        return;
    struct error unused;
    const struct cuda_driver *driver = &gpu->driver;
    (void)wait_for_device(gpu, &unused);
    cubin_build_free(&gpu->build);
    if (gpu->stream)
        (void)driver->stream_synchronize(gpu->stream);
    release_kernels(gpu);
    if (gpu->pinned)
        (void)driver->release_host(gpu->pinned);
    if (gpu->logits)
        (void)driver->release_host(gpu->logits);
    if (gpu->mapped)
        (void)driver->unregister_host(gpu->mapped);
    for (size_t i = 0; i < GPU_PARTS; i++)
        if (gpu->parts[i])
            (void)driver->release(gpu->parts[i]);
    if (gpu->cache)
        (void)driver->release(gpu->cache);
    if (gpu->weights)
        (void)driver->release(gpu->weights);
    for (int i = 0; i < 2; i++)
        if (gpu->ready[i])
            (void)driver->event_destroy(gpu->ready[i]);
    if (gpu->copies)
        (void)driver->stream_destroy(gpu->copies);
    if (gpu->stream)
        (void)driver->stream_destroy(gpu->stream);
    if (gpu->context)
        (void)driver->context_release(gpu->device);
    nvml_close(&gpu->nvml);
    cuda_driver_close(&gpu->driver);
    free(gpu);
}
