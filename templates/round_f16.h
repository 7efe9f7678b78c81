// fp32 to f16.
#ifndef ROUND_F16_H
#define ROUND_F16_H

#include <math.h>
#include <stdint.h>
#include <string.h>

// Rounds to nearest, ties to even, for value >= 0; 65520 and more become infinity.
static inline uint16_t magnitude_to_f16(float value) {
    uint32_t bits;
    if (value >= 65520.0f)
        return 0x7c00;
    if (value < 0x1p-14f) { // subnormal: adding 0.5 leaves multiples of 2^-24
        value += 0.5f;
        memcpy(&bits, &value, sizeof bits);
        return (uint16_t)(bits - 0x3f000000);
    }
    memcpy(&bits, &value, sizeof bits);
    return (uint16_t)((bits + 0xfff + (bits >> 13 & 1) - 0x38000000) >> 13);
}

// The same for any number that is not a NaN.
static inline uint16_t float_to_f16(float value) {
    return (uint16_t)(magnitude_to_f16(fabsf(value)) | (signbit(value) ? 0x8000 : 0));
}

#endif
