// Runs an engine over prompts of a real model and prints, a line a prompt, how far it is from what
// the published code computed in fp32. Reads from stdin, for each prompt:
//
//     N ids..., N - 1 log-probabilities, G greedy ids..., G margins...
//
// Output: key=value pairs: tokens=N-1, the sum and the largest of the absolute errors of the
// log-probabilities, the greedy steps up to the first with a margin below 0.1, and how many of them
// chose another id.
//
//     real_harness PACK STREAMS ISA
#include "compare.h"

enum { MOST = 4096 };

struct prompt {
    int32_t ids[MOST], greedy[MOST];
    double expected[MOST], margins[MOST]; // expected[i]: of ids[i + 1]
    size_t tokens, steps;
};

struct scores {
    const struct prompt *prompt;
    size_t vocab;
    double sum, largest; // of the errors
};

static size_t read_count(void) {
    size_t n;
    if (scanf("%zu", &n) != 1)
        return 0;
    if (n > MOST)
        exit(2);
    return n;
}

static void read_numbers(double *numbers, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (scanf("%lf", &numbers[i]) != 1)
            exit(2);
}

static void read_ids(int32_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (scanf("%d", &ids[i]) != 1)
            exit(2);
}

static bool read_prompt(struct prompt *prompt) {
    prompt->tokens = read_count();
    if (prompt->tokens == 0)
        return false;
    read_ids(prompt->ids, prompt->tokens);
    read_numbers(prompt->expected, prompt->tokens - 1);
    prompt->steps = read_count();
    read_ids(prompt->greedy, prompt->steps);
    read_numbers(prompt->margins, prompt->steps);
    return true;
}

static int visit(void *user, size_t i, const float *logits) {
    struct scores *scores = user;
    if (i + 1 == scores->prompt->tokens)
        return 0;
    double ours = logits[scores->prompt->ids[i + 1]] - log_sum_exp(logits, scores->vocab);
    double error = fabs(ours - scores->prompt->expected[i]);
    scores->sum += error;
    scores->largest = worse(scores->largest, error);
    return 0;
}

int main(int argc, char **argv) {
    static struct prompt prompt;
    if (argc != 4)
        return 2;
    struct parscale *model = open_model(argv[1], argv[3], atoi(argv[2]));
    while (read_prompt(&prompt)) {
        struct scores scores = {&prompt, (size_t)parscale_info(model)->vocab_size, 0, 0};
        parscale_rewind(model, 0);
        must(model, parscale_score(model, prompt.ids, prompt.tokens, visit, &scores));
        size_t steps = 0, wrong = 0;
        for (; steps < prompt.steps && prompt.margins[steps] >= 0.1; steps++) {
            wrong += best_id(parscale_logits(model), scores.vocab) != prompt.greedy[steps];
            must(model, parscale_decode(model, prompt.greedy[steps]));
        }
        printf("tokens=%zu sum=%.6f largest=%.6f steps=%zu wrong=%zu\n", prompt.tokens - 1,
               scores.sum, scores.largest, steps, wrong);
    }
    parscale_close(model);
    return 0;
}
