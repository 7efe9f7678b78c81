// The C API of parscale.h on top of the forward pass: opening a model, feeding it ids, its logits.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <stdio.h>
#include "clock.h"
#include "model.h"

static const struct adapter *find_adapter(int streams) {
    const size_t count = sizeof ADAPTERS / sizeof *ADAPTERS;
    if (streams == 0)
        return &ADAPTERS[count - 1];
    for (size_t i = 0; i < count; i++)
        if (ADAPTERS[i].streams == streams)
            return &ADAPTERS[i];
    return NULL;
}

// The P of this engine, with commas between them.
static const char *list_streams(char *text, size_t size) {
    size_t length = 0;
    for (size_t i = 0; i < sizeof ADAPTERS / sizeof *ADAPTERS && length < size; i++)
        length += (size_t)snprintf(text + length, size - length, "%s%d", i ? ", " : "",
                                   ADAPTERS[i].streams);
    return text;
}

static int choose_adapter(struct parscale *model, int streams, const struct adapter **adapter) {
    char list[80];
    *adapter = find_adapter(streams);
    if (!*adapter)
        return fail(&model->error, EXIT_USAGE, "streams: found P = %d, expected one of %s", streams,
                    list_streams(list, sizeof list));
    return EXIT_OK;
}

static void use_adapter(struct parscale *model, const struct adapter *adapter) {
    struct parscale_info *info = &model->info;
    size_t slots = 1 + (LAYERS - 1) * (size_t)adapter->streams;
    model->adapter = adapter;
    info->streams = adapter->streams;
    info->prefix_tokens = adapter->prefix_tokens;
    info->adapter_bytes = adapter->bytes;
    info->kv_bytes_position = slots * KV_HEADS * cache_position_bytes(model);
}

// Zeroed pages, taken from the system when they are first touched.
static void *take_pages(size_t bytes) {
    void *pages = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

// Takes the whole memory plan.
static int take_memory(struct parscale *model, int threads) {
    size_t cache = cache_bytes(model->isa), scratch = (size_t)threads * sizeof(struct scratch);
    model->info.cache_bytes = cache;
    model->info.activation_bytes = sizeof(struct buffers) + scratch;
    model->buffers = take_pages(sizeof(struct buffers));
    model->scratch = take_pages(scratch);
    model->cache = take_pages(cache);
    if (!model->buffers || !model->scratch || !model->cache)
        return fail(&model->error, EXIT_MEMORY,
                    "memory plan: %zu bytes of cache and %zu of activations could not be had: %s",
                    cache, sizeof(struct buffers) + scratch, strerror(errno));
    for (size_t i = 0; i < HEAD_DIM / 2; i++)
        model->buffers->frequencies[i] = 1.0f / powf(ROPE_THETA, (float)(2 * i) / (float)HEAD_DIM);
    return EXIT_OK;
}

static int choose_paths(struct parscale *model, const struct parscale_options *options) {
    model->bulk = isa_find(options->isa);
    if (!model->bulk)
        return fail(&model->error, EXIT_USAGE,
                    "--isa %s: this processor does not have it, or it is unknown", options->isa);
    model->isa = exact_isa(model->bulk);
    return choose_adapter(model, options->streams, &model->adapter);
}

static void fill_info(struct parscale *model, int threads) {
    struct parscale_info *info = &model->info;
    info->name = SPEC_NAME;
    info->plan_digest = PLAN_DIGEST;
    info->weight_dtype = WEIGHT_DTYPE;
    info->cache_dtype = CACHE_DTYPE;
    info->isa = model->bulk->name;
    info->hidden_size = HIDDEN_SIZE;
    info->intermediate_size = INTERMEDIATE_SIZE;
    info->layers = LAYERS;
    info->heads = HEADS;
    info->kv_heads = KV_HEADS;
    info->head_dim = HEAD_DIM;
    info->vocab_size = VOCAB_SIZE;
    info->adapters = sizeof ADAPTERS / sizeof *ADAPTERS;
    info->context = CONTEXT;
    info->threads = threads;
    info->has_tokenizer = model->file.header->tokenizer_bytes > 0;
    info->pack_bytes = model->file.bytes;
    info->weight_bytes = LAYOUT.layer_stride * LAYERS + HIDDEN_SIZE * sizeof(float) +
                         (size_t)LAYOUT.head.row_tiles * (size_t)LAYOUT.head.column_tiles *
                             WEIGHT_PLANES * (size_t)LAYOUT.head.tile_bytes;
    use_adapter(model, model->adapter);
}

static int open_tokenizer(struct parscale *model, const char *path) {
    struct error reason = {0};
    const struct tokenizer_chat *chat = &model->tokenizer.chat;
    if (tokenizer_open(&model->tokenizer, pack_at(model, LAYOUT.end),
                       (size_t)model->file.header->tokenizer_bytes, &reason))
        return fail(&model->error, reason.code, "%s: %s", path, reason.text);
    if (model->tokenizer.ids > VOCAB_SIZE)
        return fail(&model->error, EXIT_PACK, "%s: tokenizer: found %u ids, expected %d at most",
                    path, model->tokenizer.ids, VOCAB_SIZE);
    if (chat->system_bytes == 0)
        return EXIT_OK;
    model->system_prompt = strndup(chat->system, chat->system_bytes);
    return model->system_prompt ? EXIT_OK
                                : fail(&model->error, EXIT_MEMORY, "no memory for the prompt");
}

// Chooses CPU or GPU, which is opened while the pack is.
static int open_device(struct parscale *model, const struct parscale_options *options) {
    const char *wanted = options->device ? options->device : "cpu";
    bool automatic = strcmp(wanted, "auto") == 0;
    model->info.device = "cpu";
    model->info.device_note = model->device_note;
    model->info.gpu_kernels = GPU_KERNELS;
    if (strcmp(wanted, "cpu") == 0 || (automatic && !GPU_PART))
        return EXIT_OK;
    if (!automatic && strcmp(wanted, "cuda") != 0)
        return fail(&model->error, EXIT_USAGE, "--device %s: expected cpu, cuda or auto", wanted);
    model->needs_gpu = !automatic;
    return gpu_open(&model->gpu, model->adapter, !options->no_kernel_cache, &model->error);
}

// The GPU then holds weights, cache and activations of its own.
static int start_device(struct parscale *model) {
    if (!model->gpu)
        return EXIT_OK;
    int code = gpu_start(model->gpu, &model->file, model->pool, &model->error);
    if (!code)
        gpu_describe(model->gpu, &model->info, model->device_note, sizeof model->device_note);
    if (!code || model->needs_gpu)
        return code;
    memcpy(model->device_note, model->error.text, sizeof model->device_note);
    model->error = (struct error){0};
    gpu_close(model->gpu);
    model->gpu = NULL;
    use_adapter(model, model->adapter); // the CPU's cache may have another type
    return EXIT_OK;
}

static int open_model(struct parscale *model, const struct parscale_options *options) {
    int threads = options->threads > 0 ? options->threads : usable_processors();
    threads = threads > MAX_THREADS ? MAX_THREADS : threads;
    const struct pack_expectation expected = {PLAN_DIGEST, SPEC_NAME, LAYOUT.end};

    int code = choose_paths(model, options);
    if (!code)
        code = pool_start(&model->pool, threads, &model->error);
    if (!code)
        code = open_device(model, options);
    double start = clock_seconds();
    if (!code)
        code = pack_open(&model->file, options->pack, &expected, model->pool, &model->error);
    if (code)
        return code;
    model->info.start.check = clock_seconds() - start;
    fill_info(model, threads);
    if (model->info.has_tokenizer)
        code = open_tokenizer(model, options->pack);
    if (!code)
        code = take_memory(model, threads);
    return code ? code : start_device(model);
}

int parscale_open(struct parscale **handle, const struct parscale_options *options) {
    struct parscale *model = calloc(1, sizeof *model);
    *handle = model;
    return model ? open_model(model, options) : EXIT_MEMORY;
}

void parscale_close(struct parscale *model) {
    if (!model)
        return;
    size_t threads = (size_t)model->info.threads;
    gpu_close(model->gpu);
    pool_stop(model->pool);
    pack_close(&model->file);
    if (model->buffers)
        munmap(model->buffers, sizeof(struct buffers));
    if (model->scratch)
        munmap(model->scratch, threads * sizeof(struct scratch));
    if (model->cache)
        munmap(model->cache, cache_bytes(model->isa));
    free(model->system_prompt);
    free(model);
}

const char *parscale_error(const struct parscale *model) {
    return model ? model->error.text : "out of memory";
}

const struct parscale_info *parscale_info(const struct parscale *model) {
    return &model->info;
}

int parscale_adapter(struct parscale *model, int index, struct parscale_adapter *result) {
    if (index < 0 || index >= model->info.adapters)
        return fail(&model->error, EXIT_USAGE, "adapter: found index %d, expected 0 to %d", index,
                    model->info.adapters - 1);
    const struct adapter *adapter = &ADAPTERS[index];
    *result =
        (struct parscale_adapter){adapter->streams, adapter->prefix_tokens, adapter->bytes, 0};
    return checksum(pack_at(model, adapter->offset), adapter->bytes, model->pool, &result->digest,
                    &model->error);
}

int parscale_position(const struct parscale *model) {
    return (int)model->position;
}

int parscale_rewind(struct parscale *model, int position) {
    if (position < 0 || (size_t)position > model->position)
        return fail(&model->error, EXIT_INPUT, "rewind: found position %d, expected 0 to %zu",
                    position, model->position);
    model->position = (size_t)position;
    return EXIT_OK;
}

static int check_ids(struct parscale *model, const int32_t *ids, size_t n) {
    if (n > CONTEXT - model->position)
        return fail(&model->error, EXIT_INPUT,
                    "context: found %zu positions in use and %zu to add, expected %d at most",
                    model->position, n, CONTEXT);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= VOCAB_SIZE)
            return fail(&model->error, EXIT_INPUT, "id %zu: found %d, expected 0 to %d", i, ids[i],
                        VOCAB_SIZE - 1);
    return EXIT_OK;
}

static void head_only(void *argument, int thread) {
    struct parscale *model = argument;
    head(model, thread, &model->scratch[thread]);
}

static int compute_block(struct parscale *model) {
    if (model->gpu)
        return gpu_compute(model->gpu, &model->block, &model->error);
    pool_run(model->pool, forward, model);
    return EXIT_OK;
}

// Logits of head_tokens tokens, on a GPU of one.
static int compute_head(struct parscale *model) {
    if (model->gpu)
        return gpu_head(model->gpu, &model->block, model->block.head_first, &model->error);
    pool_run(model->pool, head_only, model);
    return EXIT_OK;
}

// Logits of every token of the block that was just computed, a few at a time.
static int visit_block(struct parscale *model, size_t done,
                       int (*visit)(void *user, size_t i, const float *logits), void *user) {
    struct block *block = &model->block;
    size_t most = model->gpu ? 1 : HEAD_TOKENS;
    for (size_t first = 0; first < block->tokens; first += most) {
        size_t left = block->tokens - first;
        block->head_first = first;
        block->head_tokens = left < most ? left : most;
        int code = compute_head(model);
        for (size_t t = 0; t < block->head_tokens && !code; t++) {
            model->logits_row = t;
            const float *logits = parscale_logits(model);
            code = model->error.code ? model->error.code : visit(user, done + first + t, logits);
        }
        if (code)
            return code;
    }
    return EXIT_OK;
}

// Appends ids block by block; logits of the last one, or with `visit` of every one.
static int feed(struct parscale *model, const int32_t *ids, size_t n,
                int (*visit)(void *user, size_t i, const float *logits), void *user) {
    model->error.code = EXIT_OK; // of an earlier call; its text stays
    int code = check_ids(model, ids, n);
    size_t streams = (size_t)model->adapter->streams;
    size_t most = model->gpu ? gpu_block_tokens(model->gpu) : BLOCK_COLUMNS / streams;
    for (size_t done = 0; done < n && !code;) {
        size_t tokens = n - done < most ? n - done : most;
        bool logits = !visit && done + tokens == n;
        model->block = (struct block){
            .ids = ids + done,
            .tokens = tokens,
            .streams = streams,
            .position = model->position,
            .head_first = tokens - 1,
            .head_tokens = logits ? 1 : 0,
        };
        code = compute_block(model);
        if (code)
            return code;
        model->logits_row = 0;
        memmove(model->buffers->history + model->position, ids + done, tokens * sizeof *ids);
        model->position += tokens;
        if (visit)
            code = visit_block(model, done, visit, user);
        done += tokens;
    }
    return code;
}

int parscale_set_streams(struct parscale *model, int streams) {
    const struct adapter *adapter;
    const size_t held = model->position;
    int code = choose_adapter(model, streams, &adapter);
    if (code || adapter == model->adapter)
        return code;
    if (model->gpu)
        code = gpu_set_streams(model->gpu, adapter, &model->error);
    if (code)
        return code;
    use_adapter(model, adapter);
    model->position = 0;
    code = feed(model, model->buffers->history, held, NULL, NULL);
    if (code)
        model->position = 0;
    return code;
}

int parscale_prefill(struct parscale *model, const int32_t *ids, size_t n) {
    return feed(model, ids, n, NULL, NULL);
}

int parscale_score(struct parscale *model, const int32_t *ids, size_t n,
                   int (*visit)(void *user, size_t i, const float *logits), void *user) {
    return feed(model, ids, n, visit, user);
}

int parscale_decode(struct parscale *model, int32_t id) {
    return feed(model, &id, 1, NULL, NULL);
}

// What the GPU computed last. A failure there is the handle's error from then on.
static struct gpu_output device_output(const struct parscale *model) {
    struct gpu_output output;
    (void)gpu_output(model->gpu, &output, (struct error *)&model->error);
    return output;
}

const float *parscale_logits(const struct parscale *model) {
    if (model->gpu)
        return device_output(model).logits;
    return model->buffers->logits + model->logits_row * VOCAB_SIZE;
}

const float *parscale_stream_weights(const struct parscale *model) {
    if (model->gpu)
        return device_output(model).stream_weights;
    return model->buffers->weights + model->logits_row * (size_t)model->adapter->streams;
}

int32_t parscale_sample(struct parscale *model, const struct parscale_sampling *sampling) {
    if (model->gpu) {
        int32_t id = gpu_choice(model->gpu, sampling, &model->error);
        if (id >= 0 || model->error.code)
            return id < 0 ? 0 : id;
    }
    struct sample_scratch scratch = {model->buffers->candidates, model->buffers->penalized};
    return sample(parscale_logits(model), VOCAB_SIZE, model->buffers->history, (int)model->position,
                  sampling, model->position, &scratch);
}

int parscale_tokenize(struct parscale *model, const char *text, size_t bytes, bool special,
                      int32_t **ids, size_t *n) {
    *ids = NULL;
    *n = 0;
    if (!model->info.has_tokenizer)
        return fail(&model->error, EXIT_INPUT, "%s has no tokenizer: give ids", SPEC_NAME);
    return tokenizer_encode(&model->tokenizer, text, bytes, special, ids, n, &model->error);
}

const char *parscale_piece(const struct parscale *model, int32_t id, size_t *bytes) {
    return tokenizer_piece(&model->tokenizer, id, bytes);
}

bool parscale_is_stop(const struct parscale *model, int32_t id) {
    return tokenizer_is_stop(&model->tokenizer, id);
}

const char *parscale_chat_template(const struct parscale *model) {
    return model->tokenizer.chat.chatml ? "chatml" : NULL;
}

const char *parscale_system_prompt(const struct parscale *model) {
    return model->system_prompt;
}

double parscale_read_bandwidth(struct parscale *model) {
    return model->gpu ? gpu_read_bandwidth(model->gpu) : 0;
}

bool parscale_energy(struct parscale *model, struct parscale_energy *energy) {
    return model->gpu && gpu_energy(model->gpu, energy);
}
