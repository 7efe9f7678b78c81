// See sample.h.
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include "sample_arithmetic.h"
#include "sample.h"

static bool candidate_is_better(struct candidate a, struct candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Restores the heap below root; the worst candidate is on top.
static void candidate_sift(struct candidate *heap, int size, int root) {
    struct candidate moving = heap[root];
    for (int child = 2 * root + 1; child < size; child = 2 * root + 1) {
        if (child + 1 < size && candidate_is_better(heap[child], heap[child + 1]))
            child++;
        if (!candidate_is_better(moving, heap[child]))
            break;
        heap[root] = heap[child];
        root = child;
    }
    heap[root] = moving;
}

static int best_candidates(const float *logits, int count, int n, struct candidate *best) {
    int size = 0, next = 0;
    for (; next < count && size < n; next++) {
        if (!isnan(logits[next]))
            best[size++] = (struct candidate){logits[next], next};
    }
    for (int root = size / 2 - 1; root >= 0; root--)
        candidate_sift(best, size, root);
    for (; next < count; next++) { // an equal logit further on is worse, and NaN is not greater
        if (logits[next] > best[0].logit) {
            best[0] = (struct candidate){logits[next], next};
            candidate_sift(best, size, 0);
        }
    }
    for (int last = size - 1; last > 0; last--) { // heap sort: the worst goes to the end
        struct candidate worst = best[0];
        best[0] = best[last];
        best[last] = worst;
        candidate_sift(best, last, 0);
    }
    return size;
}

// The logits with each recent one made less likely.
static const float *sample_penalize(const float *logits, int vocab_size, const int32_t *recent,
                                    int recent_count, float penalty, float *penalized) {
    if (penalty == 1.0f || recent_count == 0)
        return logits;
    memcpy(penalized, logits, (size_t)vocab_size * sizeof *logits);
    int first = recent_count > SAMPLE_PENALTY_WINDOW ? recent_count - SAMPLE_PENALTY_WINDOW : 0;
    for (int i = first; i < recent_count; i++) {
        float logit = logits[recent[i]]; // from the source: an id that repeats is penalized once
        penalized[recent[i]] = sample_penalized(logit, penalty);
    }
    return penalized;
}

// How many of the candidates [count], best first, top-p and min-p keep; at least 1. total: the sum
// of the weights of all from which top-p chooses.
static int sample_cut(const struct candidate *candidates, int count, double total,
                      const struct parscale_sampling *sampling) {
    float most = candidates[0].logit;
    int kept = count;
    if (sampling->top_p < 1) {
        double sum = 0;
        for (kept = 0; kept < count && (kept == 0 || sum < sampling->top_p * total); kept++)
            sum += (double)sample_weight(candidates[kept].logit, most, 1);
    }
    if (sampling->min_p > 0) {
        float least = most + logf(sampling->min_p);
        while (kept > 1 && candidates[kept - 1].logit < least)
            kept--;
    }
    return kept;
}

// The sum of the weights of all logits at temperature 1, run by run.
static double sample_total(const float *logits, int vocab_size, float most) {
    int length = sample_run_length(vocab_size);
    double total = 0;
    for (int first = 0; first < vocab_size; first += length) {
        double sum = 0;
        for (int i = first; i < vocab_size && i < first + length; i++)
            sum += (double)sample_weight(logits[i], most, 1);
        total += sum;
    }
    return total;
}

// Top-k, top-p and min-p: leaves the kept candidates, best first, in candidates and returns how
// many.
static int sample_filter(const float *logits, int vocab_size,
                         const struct parscale_sampling *sampling, struct candidate *candidates) {
    if (sampling->top_k > 0) {
        int n = sampling->top_k < vocab_size ? sampling->top_k : vocab_size;
        int count = best_candidates(logits, vocab_size, n, candidates);
        double total = 0;
        for (int i = 0; i < count; i++)
            total += (double)sample_weight(candidates[i].logit, candidates[0].logit, 1);
        return count > 0 ? sample_cut(candidates, count, total, sampling) : 0;
    }
    int n = vocab_size < 256 ? vocab_size : 256;
    int count = best_candidates(logits, vocab_size, n, candidates);
    if (count == 0)
        return 0;
    double total = sampling->top_p < 1 ? sample_total(logits, vocab_size, candidates[0].logit) : 0;
    // The cut is mostly early: sort a few, and more only if all of them were kept.
    int kept = sample_cut(candidates, count, total, sampling);
    while (kept == n && n < vocab_size) {
        n = n > vocab_size / 16 ? vocab_size : n * 16;
        count = best_candidates(logits, vocab_size, n, candidates);
        kept = sample_cut(candidates, count, total, sampling);
    }
    return kept;
}

// All ids, in order. Returns how many: none if no logit is a number.
static int sample_all(const float *logits, int vocab_size, struct candidate *candidates) {
    bool any = false;
    for (int id = 0; id < vocab_size; id++) {
        any = any || !isnan(logits[id]);
        candidates[id] = (struct candidate){logits[id], id};
    }
    return any ? vocab_size : 0;
}

// One of the candidates [count >= 1] with probability softmax(logit / temperature), never a NaN;
// their logits are overwritten by weights. Run by run, then in the run.
static int32_t sample_draw(struct candidate *candidates, int count, float temperature,
                           double uniform) {
    float most = -INFINITY;
    for (int i = 0; i < count; i++)
        most = candidates[i].logit > most ? candidates[i].logit : most;
    double runs[SAMPLE_RUNS], total = 0, before = 0, base = 0;
    int length = sample_run_length(count), run = 0, chosen = 0;
    for (int r = 0; r * length < count; r++) {
        runs[r] = 0;
        for (int i = r * length; i < count && i < (r + 1) * length; i++) {
            candidates[i].logit = sample_weight(candidates[i].logit, most, temperature);
            runs[r] += (double)candidates[i].logit;
        }
        total += runs[r];
    }
    for (int r = 0; r * length < count && before <= uniform * total; r++) {
        if (runs[r] > 0) { // if rounding leaves the sum below, the last one that counts
            run = r;
            base = before;
        }
        before += runs[r];
    }
    double sum = base;
    for (int i = run * length; i < count && i < (run + 1) * length; i++) {
        if (candidates[i].logit > 0)
            chosen = i;
        sum += (double)candidates[i].logit;
        if (sum > uniform * total)
            break;
    }
    return candidates[chosen].id;
}

static int32_t sample(const float *logits, int vocab_size, const int32_t *recent, int recent_count,
                      const struct parscale_sampling *sampling, uint64_t position,
                      struct sample_scratch *scratch) {
    struct candidate *candidates = scratch->candidates;
    logits = sample_penalize(logits, vocab_size, recent, recent_count, sampling->repeat_penalty,
                             scratch->penalized);
    int count;
    if (!(sampling->temperature > 0))
        count = best_candidates(logits, vocab_size, 1, candidates);
    else if (sampling->top_k > 0 || sampling->top_p < 1 || sampling->min_p > 0)
        count = sample_filter(logits, vocab_size, sampling, candidates);
    else
        count = sample_all(logits, vocab_size, candidates);
    if (count < 2)
        return count == 0 ? 0 : candidates[0].id;
    return sample_draw(candidates, count, sampling->temperature,
                       sample_uniform(sampling->seed, position));
}
