// What blocks tell each other of four activations in 8 bytes (FORMAT::four), against the numbers
// themselves: the same in both rounds, of all magnitudes. Prints key=value pairs.
#include ENGINE_CU
#include <stdio.h>

struct emulated_index threadIdx, blockIdx, gridDim = {1, 1, 1};

// Whether `bits` are x in bf16, but for magnitudes that no activation has.
static bool is_bf16(unsigned bits, float x) {
    const unsigned magnitude = bits & 0x7fff, sign = emulate_bf16(x) & 0x8000;
    if ((bits & 0x8000) != sign)
        return false;
    if (fabsf(x) < 0x1p-63f)
        return magnitude <= emulate_bf16(0x1p-63f);
    if (fabsf(x) > 0x1.fep63f)
        return magnitude == emulate_bf16(0x1.fep63f);
    return bits == emulate_bf16(x);
}

// Whether they are a sixteenth of x in f16, bounded, `units` halves of the last place away at most;
// of numbers below 2^-14, whose last place is always the same, one more.
static bool is_f16(unsigned bits, float x, int units) {
    const float most = 61440, wanted = fmaxf(fminf(x / 16, most), -most),
                error = fabsf(f16_to_float((unsigned short)bits) - wanted);
    const bool small = fabsf(wanted) < 0x1p-14f;
    const float place = (small ? 0x1p-14f : fabsf(wanted)) * 0x1p-10f;
    return error <= (units > 1 && small ? units + 1 : units) * place / 2;
}

static bool right(const float (&x)[4], const struct columns &words) {
    const unsigned bits[4] = {words.x & 0xffff, words.x >> 16, words.y & 0xffff, words.y >> 16};
    bool good = true;
    for (int i = 0; i < 4; i++) {
        if (layer_tiles::SCALES)
            good = good && is_f16(bits[i], x[i], i == 2 ? 2 : 1);
        else
            good = good && (i == 3 ? is_bf16(bits[i], x[i]) : bits[i] == emulate_bf16(x[i]));
    }
    return good;
}

int main() {
    enum { NUMBERS = 1 << 20 };
    int wrong = 0, different = 0;
    for (unsigned n = 0; n < NUMBERS; n++) {
        float x[4];
        for (unsigned i = 0; i < 4; i++) {
            unsigned bits = (n + i * 0x1234567) * 2654435761u;
            x[i] = n < 8 ? 0 : __uint_as_float(bits % 0x7f800000 | (bits & 0x80000000));
        }
        const struct columns told = layer_tiles::four(x[0], x[1], x[2], x[3]);
        struct columns words[2];
        for (unsigned round = 0; round < 2; round++)
            words[round] = layer_tiles::from_four(__uint_as_float(told.x),
                                                  with_round(__uint_as_float(told.y), round));
        wrong += !right(x, words[0]);
        different += words[0].x != words[1].x || words[0].y != words[1].y;
    }
    printf("numbers=%d wrong=%d different=%d\n", NUMBERS, wrong, different);
    return wrong || different;
}
