// The command score: how likely the model finds a text, token by token. See cli.h.
#include <math.h>
#include <stdlib.h>
#include "cli.h"
#include "logprob.h"
#include "sample.h"

struct scoring {
    struct session *session;
    const int32_t *ids;
    size_t count;
    int top;                // the arguments' --top, no more than the vocabulary
    struct candidate *best; // [top]
    double logprob;         // of the token that comes next, from the logits before it
    double sum;             // of the log-probabilities so far
};

// Six decimals; a NaN without its sign, which says nothing, and a zero without its.
static void score_print(double logprob) {
    if (isnan(logprob))
        printf("nan");
    else
        printf("%.6f", logprob > -5e-7 ? 0.0 : logprob);
}

// One line: the token at `position`, and the best that may follow it. logits are those after it.
static int score_visit(void *user, size_t position, const float *logits) {
    struct scoring *scoring = user;
    int vocab_size = scoring->session->info->vocab_size;
    printf("%zu\t%d\t", position, scoring->ids[position]);
    if (position == 0)
        putchar('-');
    else
        score_print(scoring->logprob);
    double normalizer = log_sum_exp(logits, vocab_size);
    int found =
        scoring->top > 0 ? best_candidates(logits, vocab_size, scoring->top, scoring->best) : 0;
    for (int i = 0; i < found; i++) {
        printf("\t%d:", scoring->best[i].id);
        score_print((double)scoring->best[i].logit - normalizer);
    }
    putchar('\n');
    if (position + 1 < scoring->count) {
        scoring->logprob = (double)logits[scoring->ids[position + 1]] - normalizer;
        scoring->sum += scoring->logprob;
    }
    return ferror(stdout) ? output_flush(&scoring->session->error) : EXIT_OK;
}

static void score_mean(const struct scoring *scoring) {
    size_t scored = scoring->count - 1;
    double mean = -scoring->sum / (double)scored;
    if (scored == 0)
        fprintf(stderr, "mean NLL: none, the first token has no probability\n");
    else if (isnan(mean))
        fprintf(stderr, "mean NLL: nan nats over %zu tokens\n", scored);
    else
        fprintf(stderr, "mean NLL: %.6f nats over %zu tokens, perplexity %.4f\n", mean, scored,
                exp(mean));
}

static int score_run(struct session *session, struct scoring *scoring) {
    double start = clock_seconds();
    int code = parscale_score(session->handle, scoring->ids, scoring->count, score_visit, scoring);
    session->prefill_seconds = clock_seconds() - start;
    session->prefill_tokens = scoring->count;
    if (code) // a visit that failed has filled the error
        return session->error.code ? code : session_api_error(session, code);
    code = output_flush(&session->error);
    if (code == EXIT_OK) {
        score_mean(scoring);
        session_statistics(session);
    }
    return code;
}

static int score_command(struct session *session) {
    struct scoring scoring = {.session = session};
    int vocab_size = session->info->vocab_size;
    scoring.top = session->arguments.top < vocab_size ? session->arguments.top : vocab_size;
    int32_t *ids = NULL;
    int code = session_prompt(session, &ids, &scoring.count);
    if (code)
        return code;
    scoring.ids = ids;
    scoring.best = calloc((size_t)scoring.top + 1, sizeof *scoring.best);
    code = scoring.best
               ? score_run(session, &scoring)
               : fail(&session->error, EXIT_MEMORY, "--top: no memory for %d", scoring.top);
    free(scoring.best);
    free(ids);
    return code;
}
