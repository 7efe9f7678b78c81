// See logprob.h. Written so that a compiler can use vector registers: lanes in fixed-size inner
// loops, an exponential without branches or calls.
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include "logprob.h"

enum { LOGPROB_LANES = 16, LOGPROB_BLOCK = 256 }; // a block stays in the first-level cache

// e^x for x <= 0, relative error below 2e-7 (Cephes' expf polynomial); below -87 it is e^-87. NaN
// gives NaN. 2^n is built from the bits of n + 1.5 * 2^23, whose low bits are n.
static inline float logprob_exp(float x) {
    const float magic = 12582912.0f;
    x = x < -87.0f ? -87.0f : x;
    float shifted = x * 1.44269504f + magic;
    float n = shifted - magic;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    uint32_t bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return (p * r * r + r + 1.0f) * power;
}

// The largest of block [LOGPROB_BLOCK]; any of them if one is NaN, for then the sum will be NaN.
static float logprob_block_max(const float *block) {
    float lanes[LOGPROB_LANES];
    memcpy(lanes, block, sizeof lanes);
    for (int i = LOGPROB_LANES; i < LOGPROB_BLOCK; i += LOGPROB_LANES) {
        for (int lane = 0; lane < LOGPROB_LANES; lane++)
            lanes[lane] = lanes[lane] > block[i + lane] ? lanes[lane] : block[i + lane];
    }
    float most = -FLT_MAX;
    for (int lane = 0; lane < LOGPROB_LANES; lane++)
        most = lanes[lane] > most ? lanes[lane] : most;
    return most;
}

// The sum of exp(block - most), block [LOGPROB_BLOCK].
static double logprob_block_sum(const float *block, float most) {
    float lanes[LOGPROB_LANES] = {0};
    for (int i = 0; i < LOGPROB_BLOCK; i += LOGPROB_LANES) {
        for (int lane = 0; lane < LOGPROB_LANES; lane++)
            lanes[lane] += logprob_exp(block[i + lane] - most);
    }
    double sum = 0;
    for (int lane = 0; lane < LOGPROB_LANES; lane++)
        sum += (double)lanes[lane];
    return sum;
}

static double log_sum_exp(const float *logits, int count) {
    float most = -FLT_MAX;
    double sum = 0;
    for (int start = 0; start < count; start += LOGPROB_BLOCK) {
        const float *block = logits + start;
        float tail[LOGPROB_BLOCK];
        if (count - start < LOGPROB_BLOCK) {
            for (int i = 0; i < LOGPROB_BLOCK; i++)
                tail[i] = i < count - start ? block[i] : -INFINITY;
            block = tail;
        }
        float block_most = logprob_block_max(block);
        if (block_most > most) { // what was summed so far was relative to the old maximum
            sum *= exp((double)most - (double)block_most);
            most = block_most;
        }
        sum += logprob_block_sum(block, most);
    }
    return (double)most + log(sum);
}
