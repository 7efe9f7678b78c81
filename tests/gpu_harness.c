// Checks and measures an engine, linked as a library, on a GPU. Prints key=value pairs.
//
//     gpu_harness compare PACK STREAMS TOKENS [ISA]  against the CPU: mean KL, logits' error over
//                                                    their deviation; of prefill and decode
//     gpu_harness repeat PACK STREAMS TOKENS         greedy tokens twice, bit for bit
//     gpu_harness fill PACK STREAMS PIECE            a prompt of context - 1 tokens: mean KL of its
//                                                    end to that of the same prompt in pieces
//     gpu_harness speed PACK STREAMS CONTEXT PROMPT  ms a step behind CONTEXT, ms a prompt
//     gpu_harness start PACK STREAMS cache|nocache   seconds to open, and their parts
//     gpu_harness step PACK STREAMS CONTEXT          one decode step, for a profiler
//     gpu_harness first PACK STREAMS LABEL           CSV: LABEL,STREAMS,what,context,value; the
//                                                    first start, if the cache of kernels is empty
//     gpu_harness table PACK STREAMS LABEL PROMPT STEPS CONTEXT...
//                                                    the same of all else
#define _GNU_SOURCE
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../runtime/clock.h"
#include "../runtime/parscale.h"

enum {
    DECODE_STEPS = 200,
    PROMPTS = 7,
    BURST = 20,      // steps from the same position on
    BURST_START = 4, // those that are not timed: the first one's input comes from the host
    ENERGY_SECONDS = 2,
    ENERGY_BURST = 200, // long, as a step more runs ahead in vain
};

static const struct parscale_sampling GREEDY = {.top_p = 1, .repeat_penalty = 1};

static struct parscale *open_on(const char *device, const char *pack, int streams, bool no_cache,
                                const char *isa) {
    struct parscale *model = NULL;
    struct parscale_options options = {.pack = pack,
                                       .device = device,
                                       .streams = streams,
                                       .no_kernel_cache = no_cache,
                                       .isa = isa};
    if (parscale_open(&model, &options)) {
        fprintf(stderr, "gpu_harness: %s\n", parscale_error(model));
        exit(1);
    }
    if (parscale_info(model)->device_note[0])
        fprintf(stderr, "gpu_harness: %s\n", parscale_info(model)->device_note);
    return model;
}

// Opens the GPU as this program's first: the seconds that it takes.
static struct parscale *open_timed(const char *pack, int streams, bool no_cache, double *seconds) {
    double began = clock_seconds();
    struct parscale *model = open_on("cuda", pack, streams, no_cache, NULL);
    *seconds = clock_seconds() - began;
    return model;
}

static void must(int code, const struct parscale *model) {
    if (code) {
        fprintf(stderr, "gpu_harness: %s\n", parscale_error(model));
        exit(1);
    }
}

// Ids that look random, the same every time.
static int32_t *some_ids(size_t n, int vocab) {
    int32_t *ids = malloc(n * sizeof *ids);
    uint64_t state = 7;
    for (size_t i = 0; ids && i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        ids[i] = (int32_t)((state >> 33) % (uint64_t)vocab);
    }
    return ids;
}

// KL(p || q) in nats, of logits.
static double divergence(const float *p, const float *q, size_t n) {
    double max_p = -INFINITY, max_q = -INFINITY, sum_p = 0, sum_q = 0, kl = 0;
    for (size_t i = 0; i < n; i++) {
        max_p = fmax(max_p, p[i]);
        max_q = fmax(max_q, q[i]);
    }
    for (size_t i = 0; i < n; i++) {
        sum_p += exp(p[i] - max_p);
        sum_q += exp(q[i] - max_q);
    }
    for (size_t i = 0; i < n; i++) {
        double log_p = p[i] - max_p - log(sum_p);
        kl += exp(log_p) * (log_p - (q[i] - max_q - log(sum_q)));
    }
    return kl;
}

struct kept {
    float *logits; // [tokens, vocab]
    size_t vocab;
};

static int keep(void *user, size_t i, const float *logits) {
    struct kept *kept = user;
    memcpy(kept->logits + i * kept->vocab, logits, kept->vocab * sizeof(float));
    return 0;
}

static size_t best_of(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

// Sums over logits: the squared error of b, the squared deviation of a from its mean.
struct squares {
    double error, deviation;
};

static void add_squares(struct squares *squares, const float *a, const float *b, size_t n) {
    double mean = 0;
    for (size_t i = 0; i < n; i++)
        mean += a[i] / (double)n;
    for (size_t i = 0; i < n; i++) {
        squares->error += (a[i] - (double)b[i]) * (a[i] - (double)b[i]);
        squares->deviation += (a[i] - mean) * (a[i] - mean);
    }
}

static void compare(const char *pack, int streams, size_t tokens, const char *isa) {
    struct parscale *cpu = open_on("cpu", pack, streams, false, isa);
    size_t vocab = (size_t)parscale_info(cpu)->vocab_size;
    int32_t *ids = some_ids(tokens, (int)vocab);
    struct kept expected = {malloc(tokens * vocab * sizeof(float)), vocab};
    struct kept found = {malloc(tokens * vocab * sizeof(float)), vocab};
    if (!ids || !expected.logits || !found.logits)
        exit(1);
    must(parscale_score(cpu, ids, tokens, keep, &expected), cpu);
    parscale_close(cpu);
    struct parscale *gpu = open_on("cuda", pack, streams, false, NULL);
    must(parscale_score(gpu, ids, tokens, keep, &found), gpu);
    double prefill = 0, decode = 0;
    struct squares prefilled = {0}, decoded = {0};
    size_t agree = 0;
    for (size_t i = 0; i < tokens; i++) {
        prefill += divergence(expected.logits + i * vocab, found.logits + i * vocab, vocab);
        add_squares(&prefilled, expected.logits + i * vocab, found.logits + i * vocab, vocab);
    }
    // Other keys and values first: decode must not find what it has to store there already.
    must(parscale_rewind(gpu, 0), gpu);
    must(parscale_prefill(gpu, ids + 1, tokens - 1), gpu);
    must(parscale_rewind(gpu, 0), gpu);
    for (size_t i = 0; i < tokens; i++) {
        const float *reference = expected.logits + i * vocab;
        must(parscale_decode(gpu, ids[i]), gpu);
        const float *logits = parscale_logits(gpu);
        decode += divergence(reference, logits, vocab);
        add_squares(&decoded, reference, logits, vocab);
        agree += best_of(reference, vocab) == best_of(logits, vocab);
    }
    printf("compare streams=%d tokens=%zu kl_prefill=%.3g kl_decode=%.3g error_prefill=%.3g "
           "error_decode=%.3g same_best=%zu\n",
           streams, tokens, prefill / (double)tokens, decode / (double)tokens,
           sqrt(prefilled.error / prefilled.deviation), sqrt(decoded.error / decoded.deviation),
           agree);
    parscale_close(gpu);
    free(ids);
    free(expected.logits);
    free(found.logits);
}

// FNV-1a over the logits of `tokens` greedy steps behind a prompt.
static uint64_t greedy_digest(struct parscale *model, const int32_t *prompt, size_t n,
                              size_t tokens) {
    uint64_t hash = 0xcbf29ce484222325u;
    size_t bytes = (size_t)parscale_info(model)->vocab_size * sizeof(float);
    must(parscale_rewind(model, 0), model);
    must(parscale_prefill(model, prompt, n), model);
    for (size_t i = 0; i < tokens; i++) {
        const unsigned char *logits = (const unsigned char *)parscale_logits(model);
        for (size_t b = 0; b < bytes; b++)
            hash = (hash ^ logits[b]) * 0x100000001b3u;
        must(parscale_decode(model, parscale_sample(model, &GREEDY)), model);
    }
    return hash;
}

static void repeat(const char *pack, int streams, size_t tokens) {
    struct parscale *model = open_on("cuda", pack, streams, false, NULL);
    int32_t *prompt = some_ids(64, parscale_info(model)->vocab_size);
    uint64_t first = greedy_digest(model, prompt, 64, tokens);
    parscale_close(model);
    model = open_on("cuda", pack, streams, false, NULL);
    uint64_t second = greedy_digest(model, prompt, 64, tokens);
    printf("repeat streams=%d tokens=%zu first=%016llx second=%016llx equal=%d\n", streams, tokens,
           (unsigned long long)first, (unsigned long long)second, first == second);
    parscale_close(model);
    free(prompt);
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n) {
    qsort(values, n, sizeof *values, by_size);
    return values[n / 2];
}

// The median time of a prompt.
static double prefill_seconds(struct parscale *model, const int32_t *ids, size_t prompt) {
    double times[PROMPTS];
    for (int i = -1; i < PROMPTS; i++) { // once to warm up
        must(parscale_rewind(model, 0), model);
        double start = clock_seconds();
        must(parscale_prefill(model, ids, prompt), model);
        (void)parscale_sample(model, &GREEDY);
        if (i >= 0)
            times[i] = clock_seconds() - start;
    }
    return median(times, PROMPTS);
}

// n greedy steps behind `context` positions, which the cache holds; times [n].
static void decode_burst(struct parscale *model, int32_t id, size_t context, size_t n,
                         double *times) {
    must(parscale_rewind(model, (int)context), model);
    for (size_t i = 0; i < n; i++) {
        double start = clock_seconds();
        must(parscale_decode(model, id), model);
        id = parscale_sample(model, &GREEDY);
        times[i] = clock_seconds() - start;
    }
}

// The median time of at least `steps` steps behind `context` positions.
static double decode_seconds(struct parscale *model, const int32_t *ids, size_t context,
                             size_t steps) {
    const size_t each = BURST - BURST_START, bursts = (steps + each - 1) / each;
    double *times = malloc(bursts * each * sizeof *times), burst[BURST];
    if (!times)
        exit(1);
    must(parscale_rewind(model, 0), model);
    must(parscale_prefill(model, ids, context), model);
    decode_burst(model, ids[0], context, BURST, burst); // to warm up
    for (size_t i = 0; i < bursts; i++) {
        decode_burst(model, ids[0], context, BURST, burst);
        memcpy(times + i * each, burst + BURST_START, each * sizeof *times);
    }
    double result = median(times, bursts * each);
    free(times);
    return result;
}

static void speed(const char *pack, int streams, size_t context, size_t prompt) {
    struct parscale *model = open_on("cuda", pack, streams, false, NULL);
    int32_t *ids = some_ids(prompt > context ? prompt : context, parscale_info(model)->vocab_size);
    double prefill = prefill_seconds(model, ids, prompt);
    printf("speed streams=%d context=%zu decode_ms=%.4f prompt=%zu prefill_ms=%.2f "
           "gpu_activation_bytes=%zu\n",
           streams, context, 1e3 * decode_seconds(model, ids, context, DECODE_STEPS), prompt,
           1e3 * prefill, parscale_info(model)->gpu_activation_bytes);
    parscale_close(model);
    free(ids);
}

// ---- A row for each figure: LABEL,STREAMS,what,context,value ----

struct table {
    const char *pack, *label; // label: the row's first columns
    int streams;
    size_t prompt, steps;
};

static void row(const struct table *table, const char *what, size_t context, double value) {
    char at[24] = "";
    if (context > 0)
        snprintf(at, sizeof at, "%zu", context);
    printf("%s,%d,%s,%s,%.10g\n", table->label, table->streams, what, at, value);
    fflush(stdout);
}

// Opens the model; its row is the seconds without the upload.
static struct parscale *start_row(const struct table *table, const char *what) {
    double seconds;
    struct parscale *model = open_timed(table->pack, table->streams, false, &seconds);
    row(table, what, 0, seconds - parscale_info(model)->start.upload_alone);
    return model;
}

// Joules of a step behind `context` positions, which the cache holds: of some seconds of them.
static void energy_row(const struct table *table, struct parscale *model, size_t context) {
    struct parscale_energy before, after;
    double began = clock_seconds(), times[ENERGY_BURST];
    size_t room = (size_t)parscale_info(model)->context - context - 1, tokens = 0;
    size_t burst = room < ENERGY_BURST ? room : ENERGY_BURST;
    if (!parscale_energy(model, &before))
        return;
    for (after = before; clock_seconds() - began < ENERGY_SECONDS; tokens += burst) {
        decode_burst(model, 0, context, burst, times);
        (void)parscale_energy(model, &after);
    }
    row(table, "joules_token", context, (after.joules - before.joules) / (double)tokens);
}

static void decode_rows(const struct table *table, struct parscale *model, size_t context) {
    const struct parscale_info *info = parscale_info(model);
    int32_t *ids = some_ids(context, info->vocab_size);
    size_t cache = (context + BURST / 2) * info->kv_bytes_position;
    row(table, "decode_ms", context, 1e3 * decode_seconds(model, ids, context, table->steps));
    row(table, "bytes_token", context, (double)(info->weight_bytes + info->adapter_bytes + cache));
    energy_row(table, model, context);
    free(ids);
}

static void print_table(const struct table *table, char **contexts) {
    struct parscale *model = start_row(table, "later_start_s");
    const struct parscale_info *info = parscale_info(model);
    row(table, "driver_start_s", 0, info->start.device);
    row(table, "upload_s", 0, info->start.upload);
    row(table, "pack_bytes", 0, (double)info->pack_bytes);
    row(table, "gpu_cache_bytes", 0, (double)info->gpu_cache_bytes);
    row(table, "gpu_activation_bytes", 0, (double)info->gpu_activation_bytes);
    row(table, "read_gb_s", 0, 1e-9 * parscale_read_bandwidth(model));
    for (; *contexts; contexts++)
        decode_rows(table, model, strtoul(*contexts, NULL, 10));
    int32_t *ids = some_ids(table->prompt, info->vocab_size);
    row(table, "prefill_ms", table->prompt, 1e3 * prefill_seconds(model, ids, table->prompt));
    free(ids);
    parscale_close(model);
}

// One decode step behind `context` positions, for a profiler.
static void step(const char *pack, int streams, size_t context) {
    struct parscale *model = open_on("cuda", pack, streams, false, NULL);
    int32_t *ids = some_ids(context, parscale_info(model)->vocab_size);
    must(parscale_prefill(model, ids, context), model);
    must(parscale_decode(model, ids[0]), model);
    (void)parscale_sample(model, &GREEDY);
    parscale_close(model);
    free(ids);
}

// Logits behind a full prompt and one more token, as [2, vocab].
static void fill_context(struct parscale *model, const int32_t *ids, size_t piece, float *logits) {
    size_t context = (size_t)parscale_info(model)->context;
    size_t vocab = (size_t)parscale_info(model)->vocab_size;
    must(parscale_rewind(model, 0), model);
    for (size_t done = 0; done < context - 1; done += piece) {
        size_t left = context - 1 - done;
        must(parscale_prefill(model, ids + done, left < piece ? left : piece), model);
    }
    memcpy(logits, parscale_logits(model), vocab * sizeof *logits);
    must(parscale_decode(model, ids[context - 1]), model);
    memcpy(logits + vocab, parscale_logits(model), vocab * sizeof *logits);
}

static void fill(const char *pack, int streams, size_t piece) {
    struct parscale *model = open_on("cuda", pack, streams, false, NULL);
    size_t context = (size_t)parscale_info(model)->context;
    size_t vocab = (size_t)parscale_info(model)->vocab_size;
    int32_t *ids = some_ids(context, (int)vocab);
    float *whole = malloc(2 * vocab * sizeof *whole), *pieces = malloc(2 * vocab * sizeof *pieces);
    if (!ids || !whole || !pieces)
        exit(1);
    fill_context(model, ids, context - 1, whole);
    fill_context(model, ids, piece, pieces);
    double kl = divergence(pieces, whole, vocab) + divergence(pieces + vocab, whole + vocab, vocab);
    printf("fill streams=%d tokens=%zu position=%d kl=%.3g\n", streams, context - 1,
           parscale_position(model), kl / 2);
    parscale_close(model);
    free(ids);
    free(whole);
    free(pieces);
}

// Seconds to open a model, without the upload first: without those of its seconds in which nothing
// else was waited for.
static void start(const char *pack, int streams, bool no_cache) {
    double all;
    struct parscale *model = open_timed(pack, streams, no_cache, &all);
    const struct parscale_start *parts = &parscale_info(model)->start;
    printf("start streams=%d without_upload=%.3f seconds=%.3f check=%.3f device=%.3f kernels=%.3f "
           "upload=%.3f upload_alone=%.3f load=%.3f\n",
           streams, all - parts->upload_alone, all, parts->check, parts->device, parts->kernels,
           parts->upload, parts->upload_alone, parts->load);
    parscale_close(model);
}

int main(int argc, char **argv) {
    if (argc < 5)
        return 2;
    int streams = atoi(argv[3]);
    if (strcmp(argv[1], "compare") == 0)
        compare(argv[2], streams, strtoul(argv[4], NULL, 10), argc == 6 ? argv[5] : NULL);
    else if (strcmp(argv[1], "repeat") == 0)
        repeat(argv[2], streams, strtoul(argv[4], NULL, 10));
    else if (strcmp(argv[1], "speed") == 0 && argc == 6)
        speed(argv[2], streams, strtoul(argv[4], NULL, 10), strtoul(argv[5], NULL, 10));
    else if (strcmp(argv[1], "fill") == 0)
        fill(argv[2], streams, strtoul(argv[4], NULL, 10));
    else if (strcmp(argv[1], "start") == 0)
        start(argv[2], streams, strcmp(argv[4], "nocache") == 0);
    else if (strcmp(argv[1], "step") == 0)
        step(argv[2], streams, strtoul(argv[4], NULL, 10));
    else if (strcmp(argv[1], "first") == 0)
        parscale_close(
            start_row(&(struct table){.pack = argv[2], .streams = streams, .label = argv[4]},
                      "first_start_s"));
    else if (strcmp(argv[1], "table") == 0 && argc > 7)
        print_table(&(struct table){argv[2], argv[4], streams, strtoul(argv[5], NULL, 10),
                                    strtoul(argv[6], NULL, 10)},
                    argv + 7);
    else
        return 2;
    return 0;
}
