// Arithmetic that every CPU path compiles for its own instruction set: branch-free loops that a
// compiler vectorises. Inlined into the paths' functions, so that their target attributes apply.
#ifndef CPU_MATH_H
#define CPU_MATH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

// exp(x) for x <= 0, within 2 units in the last place, 0 below -87, NaN for NaN. exp(x) = 2^n *
// exp(r) with |r| <= ln(2)/2; the polynomial is Cephes' expf (S. Moshier).
__attribute__((always_inline)) static inline float exp_negative(float x) {
    const float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
    const float round = 12582912.0f;         // 1.5 * 2^23: adding it leaves the nearest integer
    float clamped = x > -87.0f ? x : -87.0f; // a NaN too
    float n = (clamped * log2e + round) - round;
    float r = clamped - n * ln2_high - n * ln2_low;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof scale);
    float value = x < -87.0f ? 0.0f : p * scale;
    return x != x ? x : value;
}

// struct isa, exponentials. Sixteen lanes, so that no order depends on the vector width; a NaN in s
// makes the sum a NaN.
__attribute__((always_inline)) static inline float exponentials_body(float *s, size_t n,
                                                                     float *max) {
    float lanes[16], top = *max, sum = 0;
    size_t whole = n / 16 * 16;
    for (size_t j = 0; j < 16; j++)
        lanes[j] = top;
    for (size_t i = 0; i < whole; i += 16)
        for (size_t j = 0; j < 16; j++)
            lanes[j] = s[i + j] > lanes[j] ? s[i + j] : lanes[j];
    for (size_t j = 0; j < 16; j++)
        top = lanes[j] > top ? lanes[j] : top;
    for (size_t i = whole; i < n; i++)
        top = s[i] > top ? s[i] : top;
    for (size_t j = 0; j < 16; j++)
        lanes[j] = 0;
    for (size_t i = 0; i < whole; i += 16) {
        for (size_t j = 0; j < 16; j++) {
            s[i + j] = exp_negative(s[i + j] - top);
            lanes[j] += s[i + j];
        }
    }
    for (size_t i = whole; i < n; i++) {
        s[i] = exp_negative(s[i] - top);
        lanes[i % 16] += s[i];
    }
    for (size_t j = 0; j < 16; j++)
        sum += lanes[j];
    *max = top;
    return sum;
}

// struct isa, swiglu. gate * sigmoid(gate) = gate * e / (1 + e) with e = exp(-|gate|) on the side
// that does not overflow.
__attribute__((always_inline)) static inline void swiglu_body(const float *gate_up, size_t n,
                                                              float *out) {
    for (size_t i = 0; i < n; i += 8) {
        const float *gate = gate_up + 2 * i, *up = gate + 8;
        for (size_t j = 0; j < 8; j++) {
            float magnitude = gate[j] < 0 ? -gate[j] : gate[j];
            float e = exp_negative(-magnitude);
            float sigmoid = (gate[j] < 0 ? e : 1.0f) / (1.0f + e);
            out[i + j] = gate[j] * sigmoid * up[j];
        }
    }
}

#endif
