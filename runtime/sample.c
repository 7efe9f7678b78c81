// See sample.h.
#include <math.h>
#include <stdbool.h>
#include <string.h>
#include "sample.h"

// SplitMix64's output function (Steele, Lea and Flood, 2014).
static uint64_t sample_mix(uint64_t x) {
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

// A number in [0, 1): the position-th output of SplitMix64 started at the mixed seed. Being a
// function of the position it survives a rewind.
static double sample_uniform(uint64_t seed, uint64_t position) {
    const uint64_t step = UINT64_C(0x9e3779b97f4a7c15);
    uint64_t start = sample_mix(seed + step);
    return (double)(sample_mix(start + (position + 1) * step) >> 11) * 0x1p-53;
}

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

// exp((logit - most) / temperature), where most is the largest logit and may be infinite.
static double sample_weight(float logit, float most, float temperature) {
    return logit == most ? 1.0 : (double)expf((logit - most) / temperature);
}

// The logits with each recent one divided by the penalty, or multiplied where it is negative
// (Keskar et al., 2019, in llama.cpp's form).
static const float *sample_penalize(const float *logits, int vocab_size, const int32_t *recent,
                                    int recent_count, float penalty, float *penalized) {
    if (penalty == 1.0f || recent_count == 0)
        return logits;
    memcpy(penalized, logits, (size_t)vocab_size * sizeof *logits);
    int first = recent_count > SAMPLE_PENALTY_WINDOW ? recent_count - SAMPLE_PENALTY_WINDOW : 0;
    for (int i = first; i < recent_count; i++) {
        float logit = logits[recent[i]]; // from the source: an id that repeats is penalized once
        penalized[recent[i]] = logit <= 0 ? logit * penalty : logit / penalty;
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
            sum += sample_weight(candidates[kept].logit, most, 1);
    }
    if (sampling->min_p > 0) {
        float least = most + logf(sampling->min_p);
        while (kept > 1 && candidates[kept - 1].logit < least)
            kept--;
    }
    return kept;
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
            total += sample_weight(candidates[i].logit, candidates[0].logit, 1);
        return count > 0 ? sample_cut(candidates, count, total, sampling) : 0;
    }
    int n = vocab_size < 256 ? vocab_size : 256;
    int count = best_candidates(logits, vocab_size, n, candidates);
    if (count == 0)
        return 0;
    double total = 0;
    for (int i = 0; i < vocab_size && sampling->top_p < 1; i++)
        total += isnan(logits[i]) ? 0 : sample_weight(logits[i], candidates[0].logit, 1);
    // The cut is mostly early: sort a few, and more only if all of them were kept.
    int kept = sample_cut(candidates, count, total, sampling);
    while (kept == n && n < vocab_size) {
        n = n > vocab_size / 16 ? vocab_size : n * 16;
        count = best_candidates(logits, vocab_size, n, candidates);
        kept = sample_cut(candidates, count, total, sampling);
    }
    return kept;
}

// All ids whose logit is a number, in order of id.
static int sample_all(const float *logits, int vocab_size, struct candidate *candidates) {
    int count = 0;
    for (int id = 0; id < vocab_size; id++) {
        if (!isnan(logits[id]))
            candidates[count++] = (struct candidate){logits[id], id};
    }
    return count;
}

// One of the candidates [count >= 1] with probability softmax(logit / temperature); their logits
// are overwritten by weights.
static int32_t sample_draw(struct candidate *candidates, int count, float temperature,
                           double uniform) {
    float most = candidates[0].logit;
    for (int i = 1; i < count; i++)
        most = candidates[i].logit > most ? candidates[i].logit : most;
    double total = 0;
    for (int i = 0; i < count; i++) {
        candidates[i].logit = (float)sample_weight(candidates[i].logit, most, temperature);
        total += (double)candidates[i].logit;
    }
    double sum = 0;
    int chosen = 0;
    for (; chosen < count - 1; chosen++) {
        sum += (double)candidates[chosen].logit;
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
