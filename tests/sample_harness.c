// Tests of runtime/sample.c and runtime/logprob.c, TAP. The expected distribution is computed here
// from the definition of each filter, by plain sorting in long double.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "sample.h"
#include "logprob.h"
#include "sample.c"
#include "logprob.c"

enum { VOCAB = 1200, DRAWS = 6000 };

static int test_count, failures;

static void ok(bool passed, const char *name) {
    test_count++;
    failures += !passed;
    printf("%s %d - %s\n", passed ? "ok" : "not ok", test_count, name);
}

static struct candidate candidates[VOCAB];
static float penalized[VOCAB];
static struct sample_scratch scratch = {candidates, penalized};
static float logits[VOCAB];
static const float *sort_logits;

// Numbers in [0, 1) for the tests' own data: a linear congruential generator (Knuth's MMIX).
static double noise(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53;
}

// Logits between -spread and spread, on a grid so that there are ties.
static void make_logits(int count, float spread) {
    for (int i = 0; i < count; i++)
        logits[i] = roundf((float)(2 * noise() - 1) * spread * 64) / 64;
}

static int by_logit(const void *a, const void *b) {
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    if (sort_logits[x] != sort_logits[y])
        return sort_logits[x] > sort_logits[y] ? -1 : 1;
    return x < y ? -1 : x > y;
}

// probability [count] of each id, from the definitions.
static void reference(const float *source, int count, const int32_t *recent, int recent_count,
                      const struct parscale_sampling *s, double *probability) {
    float changed[VOCAB];
    int32_t order[VOCAB];
    memcpy(changed, source, (size_t)count * sizeof *source);
    for (int id = 0; id < count; id++) {
        bool seen = false;
        for (int i = recent_count > 64 ? recent_count - 64 : 0; i < recent_count; i++)
            seen = seen || recent[i] == id;
        if (seen)
            changed[id] =
                source[id] > 0 ? source[id] / s->repeat_penalty : source[id] * s->repeat_penalty;
        order[id] = id;
        probability[id] = 0;
    }
    sort_logits = changed;
    qsort(order, (size_t)count, sizeof *order, by_logit);
    int kept = s->top_k > 0 && s->top_k < count ? s->top_k : count;
    long double total = 0, sum = 0;
    for (int i = 0; i < kept; i++)
        total += expl((long double)changed[order[i]]);
    int nucleus = 0;
    while (nucleus < kept && (nucleus == 0 || sum < (long double)s->top_p * total))
        sum += expl((long double)changed[order[nucleus++]]);
    kept = s->top_p < 1 ? nucleus : kept;
    long double most = expl((long double)changed[order[0]]);
    while (kept > 1 && expl((long double)changed[order[kept - 1]]) < (long double)s->min_p * most)
        kept--;
    total = 0;
    for (int i = 0; i < kept; i++)
        total += expl((long double)changed[order[i]] / (long double)s->temperature);
    for (int i = 0; i < kept; i++)
        probability[order[i]] =
            (double)(expl((long double)changed[order[i]] / (long double)s->temperature) / total);
}

// Draws DRAWS ids, at positions or with seeds that count up, and compares their frequencies with
// probability [count]: Pearson's chi-square over the ids expected 5 times or more and one bin for
// the rest, accepted up to 5 standard deviations over its mean. No id of probability 0 may come.
static bool agrees(int count, const int32_t *recent, int recent_count,
                   struct parscale_sampling sampling, bool vary_seed, const double *probability) {
    int seen[VOCAB] = {0};
    for (int i = 0; i < DRAWS; i++) {
        if (vary_seed)
            sampling.seed = (uint64_t)i;
        int32_t id = sample(logits, count, recent, recent_count, &sampling,
                            vary_seed ? 7 : (uint64_t)i, &scratch);
        if (id < 0 || id >= count || probability[id] == 0)
            return false;
        seen[id]++;
    }
    double chi_square = 0, rest_expected = 0, rest_seen = 0;
    int bins = 0;
    for (int id = 0; id < count; id++) {
        double expected = probability[id] * DRAWS;
        if (expected < 5) {
            rest_expected += expected;
            rest_seen += seen[id];
            continue;
        }
        chi_square += (seen[id] - expected) * (seen[id] - expected) / expected;
        bins++;
    }
    if (rest_expected >= 5) {
        chi_square += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
        bins++;
    }
    double freedom = bins > 1 ? bins - 1 : 1;
    return chi_square < freedom + 5 * sqrt(2 * freedom);
}

static void test_distributions(void) {
    static const struct {
        const char *name;
        int count;
        float spread;
        struct parscale_sampling sampling; // temperature, top_k, top_p, min_p, repeat_penalty, seed
    } cases[] = {
        {"plain softmax", 40, 3, {1, 0, 1, 0, 1, 0}},
        {"temperature 0.5", 40, 3, {0.5f, 0, 1, 0, 1, 1}},
        {"temperature 2", 40, 3, {2, 0, 1, 0, 1, 2}},
        {"top-k 5", 40, 3, {1, 5, 1, 0, 1, 3}},
        {"top-k 1", 40, 3, {1, 1, 1, 0, 1, 3}},
        {"top-k over the vocabulary", 40, 3, {1, 1000, 1, 0, 1, 3}},
        {"top-p 0.5", 40, 3, {1, 0, 0.5f, 0, 1, 4}},
        {"top-p 0 keeps the best", 40, 3, {1, 0, 0, 0, 1, 4}},
        {"min-p 0.1", 40, 3, {1, 0, 1, 0.1f, 1, 5}},
        {"min-p 1", 40, 3, {1, 0, 1, 1, 1, 5}},
        {"top-p of what top-k left, before temperature", 40, 1, {3, 10, 0.6f, 0, 1, 6}},
        {"top-k, top-p and min-p", 40, 2, {0.8f, 20, 0.95f, 0.3f, 1, 7}},
        {"the defaults", VOCAB, 5, {0.8f, 40, 0.95f, 0.05f, 1, 8}},
        {"top-p past the first 256 candidates", VOCAB, 0.5f, {1, 0, 0.9f, 0, 1, 9}},
        {"min-p past the first 256 candidates", VOCAB, 0.5f, {1, 0, 1, 0.5f, 1, 10}},
        {"repeat penalty 2", 40, 2, {1, 0, 1, 0, 2, 11}},
        {"repeat penalty 0.5 and top-k", 40, 2, {1, 10, 1, 0, 0.5f, 12}},
    };
    int32_t recent[70]; // the first six are out of the window
    for (int i = 0; i < 70; i++)
        recent[i] = i < 6 ? 30 + i : i % 12;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        double probability[VOCAB];
        char name[128];
        make_logits(cases[i].count, cases[i].spread);
        reference(logits, cases[i].count, recent, 70, &cases[i].sampling, probability);
        snprintf(name, sizeof name, "%s, over positions", cases[i].name);
        ok(agrees(cases[i].count, recent, 70, cases[i].sampling, false, probability), name);
        snprintf(name, sizeof name, "%s, over seeds", cases[i].name);
        ok(agrees(cases[i].count, recent, 70, cases[i].sampling, true, probability), name);
    }
}

static int32_t choose(int count, const int32_t *recent, int recent_count,
                      struct parscale_sampling sampling, uint64_t position) {
    return sample(logits, count, recent, recent_count, &sampling, position, &scratch);
}

static void test_greedy(void) {
    const struct parscale_sampling greedy = {0, 40, 0.95f, 0.05f, 1, 0};
    const struct parscale_sampling punishing = {0, 0, 1, 0, 2, 0};
    make_logits(40, 0.9f);
    logits[11] = logits[29] = 2;
    ok(choose(40, NULL, 0, greedy, 3) == 11, "temperature 0: the lowest id wins a tie");
    ok(choose(40, (int32_t[]){11}, 1, punishing, 3) == 29, "temperature 0: the penalty counts");
    ok(choose(40, (int32_t[]){11, 29, 11}, 3, punishing, 3) == 11,
       "a repeated id is penalized once");
    int32_t window[65] = {11};
    ok(choose(40, window, 65, punishing, 3) == 11, "the penalty looks back on 64 ids");
    ok(choose(40, window, 64, punishing, 3) == 29, "the penalty looks back on all 64 ids");
    for (int i = 0; i < 40; i++)
        logits[i] = i == 7 ? -1 : -1.5f;
    ok(choose(40, (int32_t[]){7}, 1, punishing, 0) == 0, "a negative logit is made smaller");
    ok(logits[7] == -1, "the logits are left as they were");
}

static void test_odd_logits(void) {
    const struct parscale_sampling warm = {1, 0, 1, 0, 1, 0},
                                   defaults = {0.8f, 40, 0.95f, 0.05f, 1.1f, 0};
    const struct parscale_sampling all[] = {
        warm, defaults, {0, 0, 1, 0, 1, 0}, {1, 0, 0.9f, 0, 1, 0}};
    bool zero = true, only = true, infinite = true, lowest = true;
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < 50; i++)
            logits[i] = NAN;
        zero = zero && choose(50, (int32_t[]){3}, 1, all[k], (uint64_t)k) == 0;
        logits[17] = -100;
        only = only && choose(50, (int32_t[]){3}, 1, all[k], (uint64_t)k) == 17;
        for (int i = 0; i < 50; i++)
            logits[i] = i == 23 ? INFINITY : i % 2 ? -INFINITY : 80;
        infinite = infinite && choose(50, (int32_t[]){3}, 1, all[k], (uint64_t)k) == 23;
        for (int i = 0; i < 50; i++)
            logits[i] = -INFINITY;
        int32_t id = choose(50, (int32_t[]){3}, 1, all[k], (uint64_t)k);
        lowest = lowest && id >= 0 && id < 50;
    }
    ok(zero, "all NaN: id 0");
    ok(only, "one number among NaN: that one");
    ok(infinite, "an infinite logit wins");
    ok(lowest, "all minus infinity: some id");
    logits[0] = 1;
    ok(choose(1, NULL, 0, defaults, 0) == 0, "a vocabulary of one");
    make_logits(50, 30);
    struct parscale_sampling extreme = {1e-30f, 0, 1, 0, 1, 0};
    ok(choose(50, NULL, 0, extreme, 0) == choose(50, NULL, 0, all[2], 0),
       "a tiny temperature is greedy");
}

// Published outputs of SplitMix64 started at 1234567.
static void test_random(void) {
    static const uint64_t expected[] = {6457827717110365317u, 3203168211198807973u,
                                        9817491932198370423u, 4593380528125082431u,
                                        16408922859458223821u};
    bool equal = true;
    for (uint64_t i = 0; i < 5; i++)
        equal = equal && sample_mix(1234567 + (i + 1) * 0x9e3779b97f4a7c15u) == expected[i];
    ok(equal, "the generator is SplitMix64");
    bool same = true, other_seed = false, other_position = false;
    struct parscale_sampling first = {1, 0, 1, 0, 1, 5}, second = {1, 0, 1, 0, 1, 6};
    make_logits(VOCAB, 1);
    for (uint64_t i = 0; i < 20; i++) {
        int32_t id = choose(VOCAB, NULL, 0, first, i);
        same = same && id == choose(VOCAB, NULL, 0, first, i);
        other_seed = other_seed || id != choose(VOCAB, NULL, 0, second, i);
        other_position = other_position || id != choose(VOCAB, NULL, 0, first, i + 1);
    }
    ok(same, "the same seed and position choose the same id");
    ok(other_seed && other_position, "another seed, another position: another id");
}

static void test_best(void) {
    struct candidate best[VOCAB];
    int32_t order[VOCAB];
    bool equal = true;
    static const int counts[] = {1, 2, 3, 40, 257, VOCAB};
    make_logits(VOCAB, 2); // many ties
    for (int32_t i = 0; i < VOCAB; i++)
        order[i] = i;
    sort_logits = logits;
    qsort(order, VOCAB, sizeof *order, by_logit);
    for (int k = 0; k < 6; k++) {
        equal = equal && best_candidates(logits, VOCAB, counts[k], best) == counts[k];
        for (int i = 0; i < counts[k]; i++)
            equal = equal && best[i].id == order[i] && best[i].logit == logits[order[i]];
    }
    ok(equal, "the best candidates are in order, ties by id");
    for (int i = 0; i < VOCAB; i++)
        logits[i] = i == 5 || i == 900 ? (float)i : NAN;
    ok(best_candidates(logits, VOCAB, 10, best) == 2 && best[0].id == 900 && best[1].id == 5,
       "the best candidates leave NaN out");
}

static void test_log_sum_exp(void) {
    static const int counts[] = {1, 2, 16, 255, 256, 257, 1000, 49152, 151936, 200001};
    static const float offsets[] = {0, 1e4f, -1e4f}, spreads[] = {0, 1, 30, 300};
    float *values = malloc(200001 * sizeof *values);
    double worst = 0;
    for (int test = 0; values && test < 120; test++) {
        int count = counts[test % 10];
        float offset = offsets[test / 10 % 3], spread = spreads[test / 30];
        long double most = -INFINITY, sum = 0;
        for (int i = 0; i < count; i++) {
            values[i] = offset + (float)(2 * noise() - 1) * spread;
            most = values[i] > most ? values[i] : most;
        }
        for (int i = 0; i < count; i++)
            sum += expl(values[i] - most);
        double error = fabs(log_sum_exp(values, count) - (double)(most + logl(sum)));
        worst = error > worst ? error : worst;
    }
    printf("# log_sum_exp: largest error %.3g\n", worst);
    ok(values && worst < 1e-6, "log_sum_exp agrees with long double within 1e-6");
    ok(fabs(log_sum_exp((float[]){-INFINITY, 3, -INFINITY}, 3) - 3) < 1e-6,
       "log_sum_exp with minus infinity");
    ok(isnan(log_sum_exp((float[]){1, NAN, 2}, 3)), "log_sum_exp of NaN is NaN");
    free(values);
}

int main(void) {
    test_distributions();
    test_greedy();
    test_odd_logits();
    test_random();
    test_best();
    test_log_sum_exp();
    printf("1..%d\n", test_count);
    return failures > 0;
}
