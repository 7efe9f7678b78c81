// fp32 to bf16.
#ifndef ROUND_BF16_H
#define ROUND_BF16_H

#include <stdint.h>
#include <string.h>

// Rounds to nearest, ties to even; a NaN stays a NaN.
static inline uint16_t float_to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#endif
