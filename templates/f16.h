// IEEE 754 half precision, the scales of GGUF's blocks and of quantised tiles.
#ifndef F16_H
#define F16_H

#include <stdint.h>
#include <string.h>

// Exact; infinities and NaNs too.
static inline float f16_to_float(uint16_t half) {
    uint32_t bits = (half & 0x7fffu) << 13; // exponent and fraction in place, the bias still f16's
    float value;
    memcpy(&value, &bits, sizeof value);
    value *= 0x1p112f;
    uint32_t special = bits >= 0x0f800000 ? 0x7f800000 : 0;
    memcpy(&bits, &value, sizeof bits);
    bits |= special | (half & 0x8000u) << 16;
    memcpy(&value, &bits, sizeof value);
    return value;
}

#endif
