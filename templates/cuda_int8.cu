// From bytes to bf16 or f16 numbers, exactly: quantised weights and an int8 cache.

// (word & mask) ^ bits: one instruction, where the compiler makes two of two constants.
static __device__ inline unsigned select_bits(unsigned word, unsigned mask, unsigned bits) {
#ifdef EMULATOR
    return (word & mask) ^ bits;
#else
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
    return result;
#endif
}

// Bytes 0 and 2, and 1 and 3, of a word of u as two f16 numbers u / 2^24.
static __device__ __forceinline__ unsigned even_bytes(unsigned word) {
    return word & 0x00ff00ff;
}

static __device__ __forceinline__ unsigned odd_bytes(unsigned word) {
#ifdef EMULATOR
    return word >> 8 & 0x00ff00ff;
#else
    unsigned result;
    asm("prmt.b32 %0, %1, 0, 0x4341;" : "=r"(result) : "r"(word));
    return result;
#endif
}

// a * b + c for pairs of f16.
static __device__ inline unsigned f16_sum(unsigned a, unsigned b, unsigned c) {
#ifdef EMULATOR
    return to_f16(from_f16(a & 0xffff) * from_f16(b & 0xffff) + from_f16(c & 0xffff),
                  from_f16(a >> 16) * from_f16(b >> 16) + from_f16(c >> 16));
#else
    unsigned word;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(a), "r"(b), "r"(c));
    return word;
#endif
}

// a - b for two pairs of bf16.
static __device__ inline unsigned bf16_difference(unsigned a, unsigned b) {
#ifdef EMULATOR
    return to_bf16(even_of(a) - even_of(b), odd_of(a) - odd_of(b));
#else
    unsigned word;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(word) : "r"(b), "r"(0xbf80bf80), "r"(a));
    return word;
#endif
}

// Bytes 0 and 2 of a word of u as two bf16 numbers u - 128. 0x4300 is 128 and leaves 7 bits for an
// integer; the eighth chooses whether 128 or 256 is to be subtracted.
static __device__ __forceinline__ unsigned int8_pair(unsigned word) {
    return bf16_difference(select_bits(word, 0x007f007f, 0x43004300),
                           select_bits(word, 0x00800080, 0x43804380));
}
