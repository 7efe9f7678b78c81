// See gpu.h.
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "cuda_driver.h"
#include "cuda_driver.c"
#include "cubin_cache.h"
#include "cubin_cache.c"
#include "cuda_task.h"
#include "gpu.h"
#include "model.h"
#include "engine_cu.h"

enum { GPU_PART = 1 };

// The kernels of engine.cu.
enum kernel {
    KERNEL_EMBED,
    KERNEL_DECODE_QKV,
    KERNEL_DECODE_ATTENTION,
    KERNEL_DECODE_O,
    KERNEL_DECODE_GATE_UP,
    KERNEL_DECODE_DOWN,
    KERNEL_PREFILL_INPUT_NORM,
    KERNEL_PREFILL_QKV,
    KERNEL_PREFILL_ATTENTION,
    KERNEL_PREFILL_O,
    KERNEL_PREFILL_POST_NORM,
    KERNEL_PREFILL_GATE_UP,
    KERNEL_PREFILL_DOWN,
    KERNEL_FINAL_NORM,
    KERNEL_MIX_STREAMS,
    KERNEL_WEIGH_STREAMS,
    KERNEL_HEAD,
    KERNEL_CHOOSE,
    KERNELS,
};

static const char *const KERNEL_NAMES[KERNELS] = {
    "embed",
    "decode_qkv",
    "decode_attention",
    "decode_o",
    "decode_gate_up",
    "decode_down",
    "prefill_input_norm",
    "prefill_qkv",
    "prefill_attention",
    "prefill_o",
    "prefill_post_norm",
    "prefill_gate_up",
    "prefill_down",
    "final_norm",
    "mix_streams",
    "weigh_streams",
    "head",
    "choose",
};

// Sizes that engine.cu works with too: threads of a block, tiles and bytes.
enum {
    GPU_WARPS = 8,
    GPU_THREADS = 32 * GPU_WARPS,
    GPU_PREFILL_THREADS = 128,
    GPU_PREFILL_SHARED = 64 << 10,
    GPU_PREFILL_TILES = 8,                         // row tiles, column tiles of a block
    GPU_HEAD_TILES = (HEAD_DIM + TILE - 1) / TILE, //
    GPU_HEADS_TILES = (HEADS * HEAD_DIM + TILE - 1) / TILE,
    GPU_HIDDEN_TILES = HIDDEN_SIZE / TILE,
    GPU_INTERMEDIATE_TILES = (INTERMEDIATE_SIZE + TILE - 1) / TILE,
    GPU_HEAD_GROUPS = (HEADS / KV_HEADS + 7) / 8,   // groups of 8 query heads of a kv head
    GPU_QUERIES = GPU_HEAD_TILES <= 8 ? 64 : 32,    // of a block of prefill attention
    GPU_PARTIAL_FLOATS = GPU_HEAD_TILES * 128 + 16, // one split of decode attention
    GPU_LARGE_SHARED = 160 << 10,                   // bytes of a block: sm_80, 87, 90, 100, 110
    GPU_SMALL_SHARED = 256,                         // one or two words of each warp
    GPU_SPLIT_SUM_BYTES = GPU_WARPS * 32 * 4 * 4,
    GPU_MOST_SPLITS = 16, //
    GPU_OLDEST_SM = 80,
    GPU_PARTS = 18, // buffers of activations
};

struct gpu {
    struct cuda_driver driver;
    struct gpu_info info;
    unsigned streams, splits; // splits: of the positions, in decode attention
    bool use_cache;           // of compiled kernels
    bool newer_compiler;      // NVRTC is newer than the driver
    int device, multiprocessors, shared_limit;
    void *context, *stream, *module, *functions[KERNELS];
    void *graph, *decode;                          // a decode step, captured and executable
    cuda_pointer weights, cache, parts[GPU_PARTS]; // parts: of the activations
    void *mapped;                                  // the pack, where the device reads it in place
    struct gpu_task task;
    struct gpu_state *state; // pinned: what the last step left, or the next one starts from
    float *logits;           // pinned [vocab], and behind it the stream weights [MAX_STREAMS]
    bool fresh;              // state, logits are those of the last work
};

static const struct gpu_info *gpu_information(const struct gpu *gpu) {
    return &gpu->info;
}

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
                      KERNEL_NAMES[kernel], error);
}

// ---- The forward pass ----

// What a warp of a decode kernel copies ahead, in shared memory: less where there is little.
static size_t ring_bytes(const struct gpu *gpu) {
    return gpu->shared_limit >= GPU_LARGE_SHARED ? 16384 : 8192;
}

// Ring, sums and a few floats: engine.cu's DECODE_SHARED.
static size_t decode_shared(const struct gpu *gpu) {
    return GPU_WARPS * ring_bytes(gpu) + (gpu->streams + 7) / 8 * GPU_SPLIT_SUM_BYTES +
           TILE * sizeof(float);
}

static size_t decode_attention_shared(void) {
    return GPU_WARPS * GPU_PARTIAL_FLOATS * sizeof(float);
}

// One layer of a decode step.
static int decode_layer(struct gpu *gpu, int layer, struct error *error) {
    const unsigned threads = GPU_THREADS, streams = gpu->streams;
    const unsigned hidden = GPU_HIDDEN_TILES;
    gpu->task.layer = layer;
    int code = gpu_launch(gpu, KERNEL_DECODE_QKV, (unsigned)LAYOUT.qkv.row_tiles, 1, 1, threads,
                          decode_shared(gpu), error);
    if (!code)
        code = gpu_launch(gpu, KERNEL_DECODE_ATTENTION, gpu->splits, KV_HEADS * GPU_HEAD_GROUPS,
                          streams, threads, decode_attention_shared(), error);
    if (!code)
        code = gpu_launch(gpu, KERNEL_DECODE_O, hidden, 1, 1, threads, decode_shared(gpu), error);
    if (!code)
        code = gpu_launch(gpu, KERNEL_DECODE_GATE_UP,
                          blocks_for((size_t)LAYOUT.gate_up.row_tiles, GPU_WARPS), 1, 1, threads,
                          decode_shared(gpu), error);
    if (!code)
        code =
            gpu_launch(gpu, KERNEL_DECODE_DOWN, hidden, 1, 1, threads, decode_shared(gpu), error);
    return code;
}

static int prefill_product(struct gpu *gpu, enum kernel kernel, size_t columns, int row_tiles,
                           struct error *error) {
    return gpu_launch(gpu, kernel, blocks_for(columns, TILE * GPU_PREFILL_TILES),
                      blocks_for((size_t)row_tiles, GPU_PREFILL_TILES), 1, GPU_PREFILL_THREADS,
                      GPU_PREFILL_SHARED, error);
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
        code = gpu_launch(gpu, KERNEL_PREFILL_ATTENTION,
                          blocks_for(tokens * (HEADS / KV_HEADS), GPU_QUERIES), KV_HEADS,
                          gpu->streams, GPU_PREFILL_THREADS, 0, error);
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

static int forward_layers(struct gpu *gpu, bool decode, struct error *error) {
    int code = gpu_launch(gpu, KERNEL_EMBED, (unsigned)gpu->task.tokens, gpu->streams, 1,
                          GPU_THREADS, 0, error);
    for (int layer = 0; layer < LAYERS && !code; layer++)
        code = decode ? decode_layer(gpu, layer, error) : prefill_layer(gpu, layer, error);
    return code;
}

// Final norm, aggregation, head and choice, for task.token.
static int forward_head(struct gpu *gpu, struct error *error) {
    const unsigned threads = GPU_THREADS;
    const size_t shared = decode_shared(gpu);
    int code =
        gpu_launch(gpu, KERNEL_FINAL_NORM, gpu->streams, 1, 1, threads, GPU_SMALL_SHARED, error);
    if (!code && gpu->streams > 1)
        code = gpu_launch(gpu, KERNEL_MIX_STREAMS, GPU_HIDDEN_TILES, 1, 1, threads, shared, error);
    if (!code && gpu->streams > 1)
        code = gpu_launch(gpu, KERNEL_WEIGH_STREAMS, 1, 1, 1, threads, shared, error);
    if (!code)
        code = gpu_launch(gpu, KERNEL_HEAD, blocks_for((size_t)LAYOUT.head.row_tiles, GPU_WARPS), 1,
                          1, threads, shared, error);
    return code ? code : gpu_launch(gpu, KERNEL_CHOOSE, 1, 1, 1, threads, GPU_SMALL_SHARED, error);
}

// The decode step as one graph, captured once: token and position are read from device memory.
static int capture_decode(struct gpu *gpu, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    const int *ids = gpu->task.ids;
    gpu->task.ids = NULL;
    gpu->task.tokens = 1;
    gpu->task.token = 0;
    int code = cuda_check(driver, driver->capture_begin(gpu->stream, CUDA_CAPTURE_THREAD_LOCAL),
                          "capturing a decode step", error);
    if (code)
        return code;
    code = forward_layers(gpu, true, error);
    if (!code)
        code = forward_head(gpu, error);
    cuda_result ended = driver->capture_end(gpu->stream, &gpu->graph);
    gpu->task.ids = ids;
    if (!code)
        code = cuda_check(driver, ended, "capturing a decode step", error);
    if (!code)
        code = cuda_check(driver, driver->graph_instantiate(&gpu->decode, gpu->graph, 0),
                          "making the decode graph", error);
    return code;
}

// Waits for the device; what it did last is then in state.
static int gpu_finish(struct gpu *gpu, struct error *error) {
    return cuda_check(&gpu->driver, gpu->driver.stream_synchronize(gpu->stream), "running a kernel",
                      error);
}

static int fetch_state(struct gpu *gpu, struct error *error) {
    gpu->fresh = false;
    return cuda_check(&gpu->driver,
                      gpu->driver.copy_to_host(gpu->state, (cuda_pointer)(uintptr_t)gpu->task.state,
                                               sizeof *gpu->state, gpu->stream),
                      "copying from the device", error);
}

static int decode_step(struct gpu *gpu, int32_t id, size_t position, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    int code = gpu_finish(gpu, error);
    if (!code && (gpu->state->token != id || gpu->state->position != (int)position)) {
        *gpu->state = (struct gpu_state){id, (int)position};
        code = cuda_check(driver,
                          driver->copy_to_device((cuda_pointer)(uintptr_t)gpu->task.state,
                                                 gpu->state, sizeof *gpu->state, gpu->stream),
                          "copying to the device", error);
    }
    if (!code)
        code = cuda_check(driver, driver->graph_launch(gpu->decode, gpu->stream),
                          "launching a decode step", error);
    return code ? code : fetch_state(gpu, error);
}

static int prefill_block(struct gpu *gpu, const struct block *block, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    gpu->task.tokens = (int)block->tokens;
    gpu->task.position = (int)block->position;
    int code = cuda_check(driver,
                          driver->copy_to_device((cuda_pointer)(uintptr_t)gpu->task.ids, block->ids,
                                                 block->tokens * sizeof *block->ids, gpu->stream),
                          "copying to the device", error);
    return code ? code : forward_layers(gpu, false, error);
}

static int gpu_head(struct gpu *gpu, const struct block *block, size_t token, struct error *error) {
    gpu->task.tokens = (int)block->tokens;
    gpu->task.position = (int)block->position;
    gpu->task.token = (int)token;
    int code = forward_head(gpu, error);
    return code ? code : fetch_state(gpu, error);
}

static int gpu_compute(struct gpu *gpu, const struct block *block, struct error *error) {
    if (block->tokens == 1 && block->head_tokens == 1)
        return decode_step(gpu, block->ids[0], block->position, error);
    int code = prefill_block(gpu, block, error);
    if (!code && block->head_tokens)
        code = gpu_head(gpu, block, block->head_first, error);
    return code ? code : gpu_finish(gpu, error); // ids are the caller's: they must have been read
}

static int gpu_output(struct gpu *gpu, struct gpu_output *output, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    int code = EXIT_OK;
    if (!gpu->fresh) {
        code =
            cuda_check(driver,
                       driver->copy_to_host(gpu->logits, (cuda_pointer)(uintptr_t)gpu->task.logits,
                                            (size_t)VOCAB_SIZE * sizeof(float), gpu->stream),
                       "copying logits", error);
        if (!code)
            code =
                cuda_check(driver,
                           driver->copy_to_host(gpu->logits + VOCAB_SIZE,
                                                (cuda_pointer)(uintptr_t)gpu->task.stream_weights,
                                                gpu->streams * sizeof(float), gpu->stream),
                           "copying stream weights", error);
        if (!code)
            code = gpu_finish(gpu, error);
        gpu->fresh = !code;
    }
    *output = (struct gpu_output){gpu->logits, gpu->logits + VOCAB_SIZE};
    return code;
}

static int32_t gpu_choice(struct gpu *gpu, struct error *error) {
    return gpu_finish(gpu, error) ? 0 : gpu->state->token;
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
    if (!code)
        code = cuda_check(driver, driver->context_retain(&gpu->context, gpu->device),
                          "opening the device", error);
    if (!code)
        code = cuda_check(driver, driver->context_set(gpu->context), "opening the device", error);
    if (!code)
        code = cuda_check(driver, driver->stream_create(&gpu->stream, CUDA_STREAM_NON_BLOCKING),
                          "opening the device", error);
    return code;
}

// The kernels' machine code for this device: from the cache, or compiled now.
static int find_cubin(struct gpu *gpu, char **cubin, struct error *error) {
    struct nvrtc nvrtc;
    enum { OPTIONS = 3 };
    char architecture[40], streams[24], ring[40], key[CUBIN_KEY_CHARS];
    const char *const options[OPTIONS] = {architecture, streams, ring};
    int major = 0, minor = 0, driver_version = 0;
    size_t bytes = 0;
    char *note = gpu->info.note;
    snprintf(architecture, sizeof architecture, "--gpu-architecture=sm_%d", gpu->info.sm);
    snprintf(streams, sizeof streams, "-DSTREAMS=%u", gpu->streams);
    snprintf(ring, sizeof ring, "-DWARP_RING_BYTES=%zu", ring_bytes(gpu));
    int code = nvrtc_open(&nvrtc, error);
    if (code)
        return code;
    (void)nvrtc.version(&major, &minor);
    (void)gpu->driver.version(&driver_version);
    cubin_key(ENGINE_CU, options, OPTIONS, 1000 * major + 10 * minor, driver_version, key);
    if (!gpu->use_cache || !cubin_load(key, cubin, &bytes, note, sizeof gpu->info.note)) {
        code = nvrtc_build(&nvrtc, ENGINE_CU, OPTIONS, options, cubin, &bytes, error);
        gpu->info.compiled = !code;
        if (!code && gpu->use_cache)
            cubin_store(key, *cubin, bytes, note, sizeof gpu->info.note);
    }
    gpu->newer_compiler = 1000 * major + 10 * minor > driver_version;
    nvrtc_close(&nvrtc);
    return code;
}

static int load_kernels(struct gpu *gpu, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    char *cubin = NULL;
    int code = find_cubin(gpu, &cubin, error);
    if (!code)
        code = cuda_check(driver, driver->module_load(&gpu->module, cubin),
                          gpu->newer_compiler ? "loading kernels (NVRTC is newer than the driver)"
                                              : "loading kernels",
                          error);
    free(cubin);
    for (int k = 0; k < KERNELS && !code; k++)
        code = cuda_check(driver,
                          driver->module_function(&gpu->functions[k], gpu->module, KERNEL_NAMES[k]),
                          KERNEL_NAMES[k], error);
    return code;
}

// A multiprocessor runs two kernels at a time, the end of one and the start of the next, only if
// both divide its memory in the same way into shared memory and cache.
static int divide_memory(struct gpu *gpu, struct error *error) {
    int code = EXIT_OK;
    for (int k = 0; k < KERNELS && !code; k++)
        if (k <= KERNEL_DECODE_DOWN || k >= KERNEL_FINAL_NORM)
            code = cuda_check(
                &gpu->driver,
                gpu->driver.function_set(gpu->functions[k], CUDA_FUNCTION_SHARED_PERCENT, 100),
                KERNEL_NAMES[k], error);
    return code;
}

// More than 48 KB of shared memory must be asked for.
static int allow_shared(struct gpu *gpu, struct error *error) {
    const struct {
        enum kernel kernel;
        size_t bytes;
    } wanted[] = {
        {KERNEL_DECODE_QKV, decode_shared(gpu)},
        {KERNEL_DECODE_ATTENTION, decode_attention_shared()},
        {KERNEL_DECODE_O, decode_shared(gpu)},
        {KERNEL_DECODE_GATE_UP, decode_shared(gpu)},
        {KERNEL_DECODE_DOWN, decode_shared(gpu)},
        {KERNEL_MIX_STREAMS, decode_shared(gpu)},
        {KERNEL_WEIGH_STREAMS, decode_shared(gpu)},
        {KERNEL_HEAD, decode_shared(gpu)},
        {KERNEL_PREFILL_QKV, GPU_PREFILL_SHARED},
        {KERNEL_PREFILL_O, GPU_PREFILL_SHARED},
        {KERNEL_PREFILL_GATE_UP, GPU_PREFILL_SHARED},
        {KERNEL_PREFILL_DOWN, GPU_PREFILL_SHARED},
    };
    int code = EXIT_OK;
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted && !code; i++)
        code =
            cuda_check(&gpu->driver,
                       gpu->driver.function_set(gpu->functions[wanted[i].kernel],
                                                CUDA_FUNCTION_SHARED_BYTES, (int)wanted[i].bytes),
                       KERNEL_NAMES[wanted[i].kernel], error);
    return code;
}

// ---- Memory ----

struct part {
    size_t bytes;
    size_t place; // of its pointer, in struct gpu_task
};

// Blocks of decode attention with one split, for P streams.
static unsigned attention_items(int streams) {
    return (unsigned)streams * KV_HEADS * GPU_HEAD_GROUPS;
}

// Splits of decode attention: every multiprocessor has a part of it where there are positions
// enough.
static unsigned attention_parts(const struct gpu *gpu, const struct adapter *adapter) {
    unsigned parts = (unsigned)gpu->multiprocessors / attention_items(adapter->streams);
    unsigned most =
        blocks_for(tiles_for((size_t)adapter->prefix_tokens) + tiles_for(CONTEXT), GPU_WARPS);
    parts = parts > most ? most : parts;
    return parts < 1 ? 1 : parts > GPU_MOST_SPLITS ? GPU_MOST_SPLITS : parts;
}

// Partial results of decode attention, for the P that has most of them.
static size_t most_partials(const struct gpu *gpu) {
    size_t most = 0;
    for (size_t i = 0; i < sizeof ADAPTERS / sizeof *ADAPTERS; i++) {
        size_t n =
            (size_t)attention_items(ADAPTERS[i].streams) * attention_parts(gpu, &ADAPTERS[i]);
        most = n > most ? n : most;
    }
    return most;
}

// The activations, for the largest P. Returns their number.
static size_t memory_plan(const struct gpu *gpu, struct part parts[GPU_PARTS]) {
    const size_t columns = GPU_COLUMNS, tile_column = TILE * 2; // bytes of 16 of one
    const size_t P = MAX_STREAMS;
    const size_t two = 2 * (size_t)GPU_HIDDEN_TILES;
    const size_t input = two > GPU_HEADS_TILES ? two : GPU_HEADS_TILES;
    const struct part plan[] = {
        {columns * HIDDEN_SIZE * 4, offsetof(struct gpu_task, residual)},
        {columns * input * tile_column, offsetof(struct gpu_task, input)},
        {columns * GPU_INTERMEDIATE_TILES * tile_column, offsetof(struct gpu_task, activation)},
        {(P + 7) / 8 * GPU_HIDDEN_TILES * TILE_BYTES, offsetof(struct gpu_task, normed)},
        {(size_t)GPU_HIDDEN_TILES * 2 * TILE * 4, offsetof(struct gpu_task, squares)},
        {columns * HEADS * HEAD_DIM * 4, offsetof(struct gpu_task, query)},
        {most_partials(gpu) * GPU_PARTIAL_FLOATS * 4, offsetof(struct gpu_task, partial)},
        {attention_items(MAX_STREAMS) * sizeof(unsigned), offsetof(struct gpu_task, arrivals)},
        {P * HIDDEN_SIZE * 4, offsetof(struct gpu_task, final)},
        {P * GPU_HIDDEN_TILES * TILE_BYTES, offsetof(struct gpu_task, mix_input)},
        {(size_t)GPU_HIDDEN_TILES * TILE_BYTES, offsetof(struct gpu_task, mixed)},
        {(size_t)GPU_HIDDEN_TILES * TILE_BYTES, offsetof(struct gpu_task, head_input)},
        {P * 4, offsetof(struct gpu_task, stream_weights)},
        {(size_t)VOCAB_SIZE * 4, offsetof(struct gpu_task, logits)},
        {blocks_for((size_t)LAYOUT.head.row_tiles, GPU_WARPS) * sizeof(struct gpu_best),
         offsetof(struct gpu_task, best)},
        {sizeof(struct gpu_state), offsetof(struct gpu_task, state)},
        {columns * sizeof(int), offsetof(struct gpu_task, ids)},
        {(size_t)CONTEXT * HEAD_DIM * 4, offsetof(struct gpu_task, rotary)},
    };
    memcpy(parts, plan, sizeof plan);
    return sizeof plan / sizeof *plan;
}

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

// The pack on the device: where host and device share memory, the mapped file itself if the driver
// allows it, else a copy.
static int upload_weights(struct gpu *gpu, const struct pack_file *file, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    cuda_pointer there = 0;
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
    int code = take_device_memory(gpu, &gpu->weights, LAYOUT.end, "weights", error);
    gpu->task.weights = (const char *)(uintptr_t)gpu->weights;
    if (!code)
        code =
            cuda_check(driver, driver->copy_to_device(gpu->weights, base, LAYOUT.end, gpu->stream),
                       "uploading weights", error);
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

static int take_gpu_memory(struct gpu *gpu, const struct pack_file *file, struct error *error) {
    const struct cuda_driver *driver = &gpu->driver;
    struct part parts[GPU_PARTS];
    size_t count = memory_plan(gpu, parts), all = 0;
    for (size_t i = 0; i < count; i++)
        all += parts[i].bytes;
    gpu->info.activation_bytes = all;
    gpu->info.cache_bytes = (size_t)CACHE_SLOTS * KV_HEADS * CACHE_BLOCK_TILES * TILE_BYTES;
    int code = upload_weights(gpu, file, error);
    if (!code)
        code = take_device_memory(gpu, &gpu->cache, gpu->info.cache_bytes, "caches", error);
    gpu->task.cache = (char *)(uintptr_t)gpu->cache;
    for (size_t i = 0; i < count && !code; i++) {
        code = take_device_memory(gpu, &gpu->parts[i], parts[i].bytes, "activations", error);
        void *pointer = (void *)(uintptr_t)gpu->parts[i];
        memcpy((char *)&gpu->task + parts[i].place, &pointer, sizeof pointer);
    }
    if (code)
        return code;
    void *state = NULL, *logits = NULL;
    code = cuda_check(driver, driver->allocate_host(&state, sizeof *gpu->state), "pinned memory",
                      error);
    gpu->state = state;
    if (!code)
        code = cuda_check(
            driver, driver->allocate_host(&logits, (VOCAB_SIZE + MAX_STREAMS) * sizeof(float)),
            "pinned memory", error);
    gpu->logits = logits;
    if (!code)
        *gpu->state = (struct gpu_state){-1, -1};
    return code ? code : upload_rotary(gpu, error);
}

// The kernels for one P.
static int choose_kernels(struct gpu *gpu, const struct adapter *adapter, struct error *error) {
    gpu->streams = (unsigned)adapter->streams;
    gpu->splits = attention_parts(gpu, adapter);
    int code = load_kernels(gpu, error);
    if (!code)
        code = allow_shared(gpu, error);
    return code ? code : divide_memory(gpu, error);
}

static void release_kernels(const struct gpu *gpu) {
    if (gpu->decode)
        (void)gpu->driver.graph_release(gpu->decode);
    if (gpu->graph)
        (void)gpu->driver.graph_destroy(gpu->graph);
    if (gpu->module)
        (void)gpu->driver.module_unload(gpu->module);
}

static int gpu_set_streams(struct gpu *gpu, const struct adapter *adapter, struct error *error) {
    int code = gpu_finish(gpu, error);
    if (code)
        return code;
    const struct gpu before = *gpu;
    gpu->module = gpu->graph = gpu->decode = NULL;
    code = choose_kernels(gpu, adapter, error);
    if (!code)
        code = capture_decode(gpu, error);
    release_kernels(code ? gpu : &before);
    if (code)
        *gpu = before;
    else
        *gpu->state = (struct gpu_state){-1, -1};
    return code;
}

static int start_gpu(struct gpu *gpu, const struct pack_file *file, const struct adapter *adapter,
                     struct error *error) {
    int code = cuda_driver_open(&gpu->driver, error);
    if (!code)
        code = find_device(gpu, error);
    if (!code)
        code = choose_kernels(gpu, adapter, error);
    if (!code)
        code = take_gpu_memory(gpu, file, error);
    if (!code)
        code = capture_decode(gpu, error);
    return code;
}

static int gpu_open(struct gpu **result, const struct pack_file *file,
                    const struct adapter *adapter, bool use_cache, struct error *error) {
    struct gpu *gpu = calloc(1, sizeof *gpu);
    *result = NULL;
    if (!gpu)
        return fail(error, EXIT_MEMORY, "GPU: %zu bytes could not be had", sizeof *gpu);
    gpu->use_cache = use_cache;
    int code = start_gpu(gpu, file, adapter, error);
    if (code)
        gpu_close(gpu);
    else
        *result = gpu;
    return code;
}

static void gpu_close(struct gpu *gpu) {
    if (!gpu)
        return;
    const struct cuda_driver *driver = &gpu->driver;
    if (gpu->stream)
        (void)driver->stream_synchronize(gpu->stream);
    release_kernels(gpu);
    if (gpu->state)
        (void)driver->release_host(gpu->state);
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
    if (gpu->stream)
        (void)driver->stream_destroy(gpu->stream);
    if (gpu->context)
        (void)driver->context_release(gpu->device);
    cuda_driver_close(&gpu->driver);
    free(gpu);
}
