// Where weights come from: a range of a file in one of the dtypes of safetensors and GGUF, or
// random numbers. A source is read in order, as fp32.
#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <unistd.h>
#include "bf16.h"
#include "f16.h"

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_Q8_0, DTYPE_Q4_0, DTYPE_Q4_1, DTYPE_COUNT };

// How a dtype stores `block` elements in `bytes` bytes. The quantised ones are ggml's:
// Q8_0: f16 scale, 32 x int8; Q4_0: f16 scale, 32 x 4 bits less 8; Q4_1: f16 scale, f16 minimum,
// 32 x 4 bits. Four-bit element i is the low half of byte i for i < 16, then the high halves.
static const struct dtype_info {
    const char *name;
    size_t block, bytes;
} DTYPES[DTYPE_COUNT] = {
    [DTYPE_F32] = {"F32", 1, 4},     [DTYPE_F16] = {"F16", 1, 2},
    [DTYPE_BF16] = {"BF16", 1, 2},   [DTYPE_Q8_0] = {"Q8_0", 32, 34},
    [DTYPE_Q4_0] = {"Q4_0", 32, 18}, [DTYPE_Q4_1] = {"Q4_1", 32, 20},
};

struct source {
    const char *path;
    int descriptor; // -1: random numbers
    enum dtype dtype;
    uint64_t offset; // of the tensor in the file
    uint64_t seed;   // of random numbers; each element's depends on seed and index alone
    float mean, deviation;
    char *buffer; // one row, as stored
};

static uint16_t load_u16(const void *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

// n stored elements at `stored` to fp32; n is a multiple of the dtype's block.
static void dequantize(enum dtype dtype, const char *stored, size_t n, float *out) {
    const struct dtype_info *info = &DTYPES[dtype];
    for (size_t i = 0; i < n; i += info->block, stored += info->bytes, out += info->block) {
        switch (dtype) {
        case DTYPE_F32:
            memcpy(out, stored, 4);
            break;
        case DTYPE_F16:
            *out = f16_to_float(load_u16(stored));
            break;
        case DTYPE_BF16:
            *out = bf16_to_float(load_u16(stored));
            break;
        case DTYPE_Q8_0:
            for (size_t j = 0; j < 32; j++)
                out[j] = f16_to_float(load_u16(stored)) * (float)(signed char)stored[2 + j];
            break;
        case DTYPE_Q4_0:
        case DTYPE_Q4_1: {
            const unsigned char *quads =
                (const unsigned char *)stored + (dtype == DTYPE_Q4_0 ? 2 : 4);
            float scale = f16_to_float(load_u16(stored));
            float minimum =
                dtype == DTYPE_Q4_0 ? -8.0f * scale : f16_to_float(load_u16(stored + 2));
            for (size_t j = 0; j < 32; j++) {
                int quant = j < 16 ? quads[j] & 15 : quads[j - 16] >> 4;
                out[j] = (float)quant * scale + minimum;
            }
            break;
        }
        case DTYPE_COUNT:
            break;
        }
    }
}

// SplitMix64's output function (Steele, Lea & Flood 2014).
static uint64_t mix64(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

// Nearly normal: the sum of four uniform numbers, scaled to deviation 1.
static float random_normal(uint64_t seed, uint64_t index) {
    uint64_t bits = mix64(seed + index * 0x9e3779b97f4a7c15u);
    int32_t sum = 0;
    for (int i = 0; i < 4; i++)
        sum += (int32_t)(bits >> 16 * i & 0xffff);
    return ((float)sum - 131070.0f) * (1.0f / 37837.2f); // 65536 * sqrt(4 / 12)
}

// Bytes [at, at + bytes) of a file.
static int read_range(int descriptor, const char *path, uint64_t at, size_t bytes, char *out,
                      struct error *error) {
    for (size_t got = 0; got < bytes;) {
        ssize_t part = pread(descriptor, out + got, bytes - got, (off_t)(at + got));
        if (part < 0 && errno == EINTR)
            continue;
        if (part <= 0)
            return fail(error, EXIT_PACK, "%s: offset %llu: %s", path,
                        (unsigned long long)(at + got),
                        part < 0 ? strerror(errno) : "the file ends here, more was expected");
        got += (size_t)part;
    }
    return EXIT_OK;
}

// Elements [first, first + n) as fp32; n is a row, whole blocks of the dtype.
static int source_read(struct source *source, uint64_t first, size_t n, float *out,
                       struct error *error) {
    if (source->descriptor < 0) {
        for (size_t i = 0; i < n; i++)
            out[i] =
                source->mean +
                source->deviation *
                    (source->deviation == 0.0f ? 0.0f : random_normal(source->seed, first + i));
        return EXIT_OK;
    }
    const struct dtype_info *info = &DTYPES[source->dtype];
    size_t bytes = n / info->block * info->bytes;
    uint64_t at = source->offset + first / info->block * info->bytes;
    int code = read_range(source->descriptor, source->path, at, bytes, source->buffer, error);
    if (code)
        return code;
    dequantize(source->dtype, source->buffer, n, out);
    return EXIT_OK;
}
