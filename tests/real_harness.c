// Runs an engine over prompts of a real model and prints, a line a prompt, how far it is from what
// the published code computed in fp32. Reads from stdin, for each prompt:
//
//     N ids..., N - 1 log-probabilities, G greedy ids..., G margins
//
// Output: "tokens=N error=E steps=S wrong=W": the sum of the absolute errors of N log-probabilities,
// the greedy steps that agree up to the first with a margin below 0.1, and whether one before it
// differs.
//
//     real_harness PACK ISA
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include "../runtime/parscale.h"

enum { MOST = 4096 };

struct scores {
    const int32_t *ids;
    const double *expected; // [n - 1]
    size_t n, vocab;
    double error;
};

static int compare(void *user, size_t i, const float *logits) {
    struct scores *s = user;
    if (i + 1 == s->n)
        return 0;
    double max = -INFINITY, sum = 0;
    for (size_t v = 0; v < s->vocab; v++)
        max = logits[v] > max ? logits[v] : max;
    for (size_t v = 0; v < s->vocab; v++)
        sum += exp(logits[v] - max);
    double ours = logits[s->ids[i + 1]] - max - log(sum);
    s->error += fabs(ours - s->expected[i]);
    return 0;
}

static int32_t argmax(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return (int32_t)best;
}

static size_t read_numbers(double *numbers, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (scanf("%lf", &numbers[i]) != 1)
            exit(2);
    return n;
}

int main(int argc, char **argv) {
    static double expected[MOST], margins[MOST], number[MOST];
    static int32_t ids[MOST], greedy[MOST];
    size_t n, steps;
    struct parscale *model;
    struct parscale_options options = {.pack = argv[1], .isa = argc > 2 ? argv[2] : NULL};
    if (argc < 2 || parscale_open(&model, &options)) {
        fprintf(stderr, "%s\n", argc < 2 ? "usage: real_harness PACK ISA" : parscale_error(model));
        return 1;
    }
    while (scanf("%zu", &n) == 1 && n > 0 && n < MOST) {
        read_numbers(number, n);
        for (size_t i = 0; i < n; i++)
            ids[i] = (int32_t)number[i];
        read_numbers(expected, n - 1);
        if (scanf("%zu", &steps) != 1 || steps > MOST)
            return 2;
        read_numbers(number, steps);
        for (size_t i = 0; i < steps; i++)
            greedy[i] = (int32_t)number[i];
        read_numbers(margins, steps);

        struct scores s = {ids, expected, n, (size_t)parscale_info(model)->vocab_size, 0};
        parscale_rewind(model, 0);
        if (parscale_score(model, ids, n, compare, &s))
            return 1;
        size_t equal = 0;
        int wrong = 0;
        for (; equal < steps && margins[equal] >= 0.1 && !wrong; equal++) {
            wrong = argmax(parscale_logits(model), s.vocab) != greedy[equal];
            if (parscale_decode(model, greedy[equal]))
                return 1;
        }
        printf("tokens=%zu error=%.5f steps=%zu wrong=%d\n", n - 1, s.error, equal, wrong);
    }
    parscale_close(model);
    return 0;
}
