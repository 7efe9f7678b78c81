// Runs an engine, linked as a library, over a golden model and prints how far it is from what the
// published code computed: one line of key=value pairs.
//
//     golden_harness PACK ISA EXPECTED [EVERY]
//
// EVERY, where time is short: only every EVERY-th prefill, and as many times fewer greedy steps.
// EXPECTED, made by golden.lua: tokens S, vocab V, streams P, greedy steps N (int32 each), ids [S]
// int32, logits [S, V], weights [S, P] (P > 1), greedy ids [N] int32, greedy margins [N]; fp32.
#include "compare.h"

struct golden {
    struct parscale *model;
    int32_t tokens, vocab, streams, steps;
    size_t every;
    int32_t *ids, *greedy;
    float *logits, *weights, *margins;
};

struct distance {
    double logits, weights; // the largest
    double kl;              // the sum
    int positions;          //
    int agree;              // positions with the same best id
};

static void *load(FILE *file, size_t elements) {
    void *data = must_have(malloc(elements * 4 + 1));
    if (fread(data, 4, elements, file) != elements) {
        fprintf(stderr, "the expected values end early\n");
        exit(1);
    }
    return data;
}

static void load_golden(struct golden *golden, const char *path) {
    FILE *file = must_have(fopen(path, "rb"));
    int32_t *sizes = load(file, 4);
    golden->tokens = sizes[0];
    golden->vocab = sizes[1];
    golden->streams = sizes[2];
    golden->steps = sizes[3];
    size_t tokens = (size_t)sizes[0], steps = (size_t)sizes[3];
    golden->ids = load(file, tokens);
    golden->logits = load(file, tokens * (size_t)golden->vocab);
    golden->weights = load(file, golden->streams > 1 ? tokens * (size_t)golden->streams : 0);
    golden->greedy = load(file, steps);
    golden->margins = load(file, steps);
    free(sizes);
    fclose(file);
}

static void add_logits(const struct golden *golden, struct distance *d, size_t i,
                       const float *ours) {
    size_t vocab = (size_t)golden->vocab;
    const float *expected = golden->logits + i * vocab;
    for (size_t v = 0; v < vocab; v++)
        d->logits = worse(d->logits, fabs((double)ours[v] - expected[v]));
    d->kl += divergence(expected, ours, vocab);
    d->positions++;
    d->agree += best_id(expected, vocab) == best_id(ours, vocab);
}

// Logits and weights of position i, the last one in the cache.
static void add_position(const struct golden *golden, struct distance *d, size_t i) {
    const float *ours = parscale_stream_weights(golden->model);
    double sum = 0;
    for (size_t p = 0; p < (size_t)golden->streams; p++) {
        sum += ours[p];
        if (golden->streams > 1)
            d->weights = worse(d->weights, fabs((double)ours[p] -
                                                golden->weights[i * (size_t)golden->streams + p]));
    }
    d->weights = worse(d->weights, fabs(sum - 1));
    add_logits(golden, d, i, parscale_logits(golden->model));
}

struct visitor {
    const struct golden *golden;
    struct distance *distance;
};

static int visit(void *user, size_t i, const float *logits) {
    struct visitor *visitor = user;
    add_logits(visitor->golden, visitor->distance, i, logits);
    return 0;
}

// All positions in blocks; each (or every so many) position as the last one of a prefill; each by a
// decode step.
static void compare_logits(struct golden *golden, struct distance *blocks, struct distance *prefill,
                           struct distance *decode) {
    struct parscale *model = golden->model;
    size_t tokens = (size_t)golden->tokens;
    struct visitor visitor = {golden, blocks};
    must(model, parscale_score(model, golden->ids, tokens, visit, &visitor));
    for (size_t i = 0; i < tokens; i += golden->every) {
        parscale_rewind(model, 0);
        if (i / 2) // the first half is in the cache already
            must(model, parscale_prefill(model, golden->ids, i / 2));
        must(model, parscale_prefill(model, golden->ids + i / 2, i + 1 - i / 2));
        add_position(golden, prefill, i);
    }
    // Other keys and values first: decode must not find what it has to store there already.
    parscale_rewind(model, 0);
    must(model, parscale_prefill(model, golden->ids + 1, tokens - 1));
    parscale_rewind(model, 0);
    for (size_t i = 0; i < tokens; i++) {
        must(model, parscale_decode(model, golden->ids[i]));
        add_position(golden, decode, i);
    }
}

// The best id of each step, up to the first whose two best logits were too close to call.
static void compare_greedy(struct golden *golden, int *equal, int *wrong) {
    struct parscale *model = golden->model;
    parscale_rewind(model, 0);
    must(model, parscale_prefill(model, golden->ids, (size_t)golden->tokens));
    for (*equal = 0, *wrong = 0; *equal < golden->steps / (int)golden->every; ++*equal) {
        int32_t id = best_id(parscale_logits(model), (size_t)golden->vocab);
        if (id != golden->greedy[*equal]) {
            *wrong = golden->margins[*equal] >= 0.01f;
            return;
        }
        must(model, parscale_decode(model, id));
    }
}

// The mean of the worse way to prefill; of all positions seen where there are but a few prefills.
static double prefill_divergence(const struct distance *blocks, const struct distance *prefill) {
    if (prefill->positions < blocks->positions)
        return (blocks->kl + prefill->kl) / (blocks->positions + prefill->positions);
    return worse(blocks->kl, prefill->kl) / blocks->positions;
}

int main(int argc, char **argv) {
    struct golden golden = {0};
    struct distance blocks = {0}, prefill = {0}, decode = {0};
    int equal, wrong;
    if (argc < 4 || argc > 5)
        return 2;
    golden.every = argc > 4 ? strtoul(argv[4], NULL, 10) : 1;
    if (golden.every == 0)
        return 2;
    load_golden(&golden, argv[3]);
    golden.model = open_model(argv[1], argv[2], golden.streams);
    compare_logits(&golden, &blocks, &prefill, &decode);
    compare_greedy(&golden, &equal, &wrong);
    printf("logits=%.3g weights=%.3g kl=%.3g decodekl=%.3g greedy=%d wrong=%d tokens=%d agree=%d "
           "decodeagree=%d steps=%d\n",
           worse(worse(blocks.logits, prefill.logits), decode.logits),
           worse(prefill.weights, decode.weights), prefill_divergence(&blocks, &prefill),
           decode.kl / decode.positions, equal, wrong, golden.tokens,
           blocks.agree < prefill.agree ? blocks.agree : prefill.agree, decode.agree, golden.steps);
    parscale_close(golden.model);
    free(golden.ids);
    free(golden.greedy);
    free(golden.margins);
    free(golden.logits);
    free(golden.weights);
    return 0;
}
