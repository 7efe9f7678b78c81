// Arithmetic that every CPU path compiles for its own instruction set: branch-free loops that a
// compiler vectorises. Inlined into the paths' functions, so that their target attributes apply.
#ifndef CPU_MATH_H
#define CPU_MATH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

// exp(x) for x in -87..87, within 2 units in the last place, NaN for NaN. exp(x) = 2^n * exp(r)
// with |r| <= ln(2)/2; the polynomial is Cephes' expf (S. Moshier).
__attribute__((always_inline)) static inline float exp_bounded(float x) {
    const float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const float round = 12582912.0f; // 1.5 * 2^23: a sum's low bits are the nearest integer
    float sum = x * log2e + round, n = sum - round;
    float r = x - n * ln2_high - n * ln2_low;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &sum, sizeof bits);
    bits = (bits + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// s[j] = exp(s[j] - max), 0 if that is below exp(-87).
__attribute__((always_inline)) static inline void exponential_lanes(float s[16], float max) {
    for (size_t j = 0; j < 16; j++) {
        float x = s[j] - max;
        float e = exp_bounded(x < -87.0f ? -87.0f : x);
        s[j] = x < -87.0f ? 0.0f : e;
    }
}

// struct isa, exponentials. Sixteen lanes, so that no order depends on the vector width; a NaN in s
// makes the sum a NaN.
__attribute__((always_inline)) static inline float exponentials_body(float *s, size_t n,
                                                                     float *max) {
    float lanes[16], top = *max, sum = 0;
    for (size_t j = 0; j < 16; j++)
        lanes[j] = top;
    for (size_t i = 0; i < n; i += 16)
        for (size_t j = 0; j < 16; j++)
            lanes[j] = s[i + j] > lanes[j] ? s[i + j] : lanes[j];
    for (size_t j = 0; j < 16; j++)
        top = lanes[j] > top ? lanes[j] : top;
    for (size_t j = 0; j < 16; j++)
        lanes[j] = 0;
    for (size_t i = 0; i < n; i += 16) {
        exponential_lanes(s + i, top);
        for (size_t j = 0; j < 16; j++)
            lanes[j] += s[i + j];
    }
    for (size_t j = 0; j < 16; j++)
        sum += lanes[j];
    *max = top;
    return sum;
}

// out = gate * sigmoid(gate) * up = gate / (1 + exp(-gate)) * up
__attribute__((always_inline)) static inline void swiglu_lanes(const float gate[16],
                                                               const float up[16], float out[16]) {
    for (size_t j = 0; j < 16; j++) {
        float x = gate[j] < -87.0f ? -87.0f : gate[j];
        float e = exp_bounded(x > 87.0f ? -87.0f : -x);
        out[j] = gate[j] / (1.0f + e) * up[j];
    }
}

// struct isa, swiglu.
__attribute__((always_inline)) static inline void swiglu_body(const float *gate_up, size_t n,
                                                              float *out) {
    for (size_t i = 0; i < n; i += 16, gate_up += 32) {
        float gate[16], up[16];
        memcpy(gate, gate_up, 8 * sizeof(float));
        memcpy(up, gate_up + 8, 8 * sizeof(float));
        memcpy(gate + 8, gate_up + 16, 8 * sizeof(float));
        memcpy(up + 8, gate_up + 24, 8 * sizeof(float));
        swiglu_lanes(gate, up, out + i);
    }
}

#endif
