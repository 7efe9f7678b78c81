// Placing a tensor in quantised tiles: blocks of a GGUF as they are where their format is the
// tile's, else each group of 32 weights quantised here. Included where the spec asks for it.
#include <float.h>
#include "f16.h"
#include "round_f16.h"
#include "tile_quantized.h"

// One row's part of a tile: scale * (quants - 128), or scale * quants + minimum.
struct group {
    unsigned char quants[GROUP];
    uint16_t scale, minimum; // f16
};

static bool f16_is_finite(uint16_t half) {
    return (half & 0x7c00) != 0x7c00;
}

// The nearest integer, ties to even, of |x| < 2^22, in low..high.
static float round_between(float x, float low, float high) {
    float rounded = (x + 12582912.0f) - 12582912.0f; // 1.5 * 2^23
    return rounded < low ? low : rounded > high ? high : rounded;
}

// ---- formats ------------------------------------------------------------------------------------

// How values [n], n <= GROUP, become a group; false if a value or the scale is not finite.
// Symmetric: the largest magnitude becomes 127.
static bool quantize_int8(const float *values, size_t n, struct group *group) {
    float max = 0;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        float magnitude = fabsf(values[i]);
        finite = finite && magnitude <= FLT_MAX;
        max = magnitude > max ? magnitude : max;
    }
    group->scale = magnitude_to_f16(max / 127.0f);
    float scale = f16_to_float(group->scale);
    memset(group->quants, 128, GROUP);
    for (size_t i = 0; i < n && finite && scale > 0; i++)
        group->quants[i] = (unsigned char)(round_between(values[i] / scale, -127, 127) + 128.0f);
    return finite && f16_is_finite(group->scale);
}

// Quantises to the range low..high, both rounded to what f16 can say. Returns the sum of the
// squared errors.
static float quantize_range(const float *values, size_t n, float low, float high,
                            struct group *group) {
    group->minimum = float_to_f16(low);
    float minimum = f16_to_float(group->minimum), sum = 0;
    group->scale = magnitude_to_f16(high > minimum ? (high - minimum) / 15.0f : 0.0f);
    float scale = f16_to_float(group->scale), inverse = scale > 0 ? 1.0f / scale : 0.0f;
    memset(group->quants, 0, GROUP);
    for (size_t i = 0; i < n; i++) {
        float quant = round_between((values[i] - minimum) * inverse, 0, 15);
        float error = quant * scale + minimum - values[i];
        group->quants[i] = (unsigned char)quant;
        sum += error * error;
    }
    return sum;
}

// The range with the least squared error, of 16 that leave off 0 to 9 % at either end: of normally
// distributed weights it is 14 % below that of the whole range.
static bool quantize_int4(const float *values, size_t n, struct group *group) {
    const int cuts = 4;
    float low = values[0], high = values[0], least = INFINITY;
    bool finite = true;
    for (size_t i = 0; i < n; i++) {
        finite = finite && fabsf(values[i]) <= FLT_MAX;
        low = values[i] < low ? values[i] : low;
        high = values[i] > high ? values[i] : high;
    }
    for (int i = 0; i < cuts * cuts && finite; i++) {
        struct group found;
        int below = i / cuts, above = i % cuts;
        float cut = 0.03f * (high - low);
        float error =
            quantize_range(values, n, low + cut * (float)below, high - cut * (float)above, &found);
        if (i == 0 || error < least) {
            least = error;
            *group = found;
        }
    }
    return finite && f16_is_finite(group->scale) && f16_is_finite(group->minimum);
}

// ---- blocks of a GGUF ---------------------------------------------------------------------------

// Element i of a block's 4-bit quants.
static unsigned char block_quad(const unsigned char *quads, size_t i) {
    return i < 16 ? quads[i] & 15 : quads[i - 16] >> 4;
}

// Takes a block as an int8 group, exactly; false if its dtype is none that fits.
static bool take_int8(enum dtype dtype, const char *block, struct group *group) {
    const unsigned char *quants = (const unsigned char *)block + 2;
    if (dtype != DTYPE_Q8_0 && dtype != DTYPE_Q4_0)
        return false;
    group->scale = load_u16(block);
    for (size_t i = 0; i < GROUP; i++)
        group->quants[i] =
            dtype == DTYPE_Q8_0 ? quants[i] ^ 0x80 : (unsigned char)(block_quad(quants, i) + 120);
    return true;
}

// The same as an int4 group. A Q4_0 block's minimum is -8 scale; f16 has it unless it overflows.
static bool take_int4(enum dtype dtype, const char *block, struct group *group) {
    if (dtype != DTYPE_Q4_0 && dtype != DTYPE_Q4_1)
        return false;
    const unsigned char *quads = (const unsigned char *)block + (dtype == DTYPE_Q4_0 ? 2 : 4);
    group->scale = load_u16(block);
    group->minimum = dtype == DTYPE_Q4_0 ? float_to_f16(-8.0f * f16_to_float(group->scale))
                                         : load_u16(block + 2);
    for (size_t i = 0; i < GROUP; i++)
        group->quants[i] = block_quad(quads, i);
    return true;
}

// ---- tiles --------------------------------------------------------------------------------------

static void store_int8(const struct group *group, unsigned char *tile, size_t lane) {
    for (size_t word = 0; word < GROUP_WORDS; word++)
        for (size_t b = 0; b < 4; b++)
            tile[quantized_word(false, word, lane) + b] = group->quants[quantized_column(word, b)];
    memcpy(tile + INT8_SCALES + 2 * lane, &group->scale, 2);
}

static void store_int4(const struct group *group, unsigned char *tile, size_t lane) {
    for (size_t i = 0; i < GROUP_WORDS / 2; i++) {
        for (size_t b = 0; b < 4; b++) {
            int low = group->quants[quantized_column(2 * i, b)];
            int high = group->quants[quantized_column(2 * i + 1, b)];
            tile[quantized_word(true, 2 * i, lane) + b] = (unsigned char)(low | high << 4);
        }
    }
    memcpy(tile + INT4_SCALES + 2 * lane, &group->scale, 2);
    memcpy(tile + INT4_MINIMUMS + 2 * lane, &group->minimum, 2);
}

// Random quants, evenly spread, and a scale that gives the weights the deviation wanted, a little
// different in each group. `index` is the group's in its tensor.
static void random_group(const struct source *source, uint64_t index, int bits,
                         struct group *group) {
    const float spread = bits == 8 ? 73.9f : 4.61f; // deviation of even numbers of so many bits
    for (size_t i = 0; i < GROUP; i += 8) {
        uint64_t random = mix64(source->seed + (index * 5 + i / 8) * 0x9e3779b97f4a7c15u);
        if (bits == 4)
            random &= 0x0f0f0f0f0f0f0f0fu;
        memcpy(group->quants + i, &random, 8);
    }
    uint64_t random = mix64(source->seed + (index * 5 + 4) * 0x9e3779b97f4a7c15u);
    float vary = 0.75f + (float)(random >> 40) * 0x1p-25f; // 0.75 to 1.25
    group->scale = magnitude_to_f16(source->deviation / spread * vary);
    group->minimum = float_to_f16(-7.5f * f16_to_float(group->scale));
}

// ---- tensors ------------------------------------------------------------------------------------

struct quantized_format {
    int bits;
    size_t tile_bytes;
    bool (*take)(enum dtype dtype, const char *block, struct group *group);
    bool (*quantize)(const float *values, size_t n, struct group *group);
    void (*store)(const struct group *group, unsigned char *tile, size_t lane);
};

static const struct quantized_format FORMAT_INT8 = {8, INT8_TILE_BYTES, take_int8, quantize_int8,
                                                    store_int8};
static const struct quantized_format FORMAT_INT4 = {4, INT4_TILE_BYTES, take_int4, quantize_int4,
                                                    store_int4};

// Group number g of a source row that has been read: values [columns], source->buffer as stored.
static bool read_group(const struct quantized_format *format, const struct source *source,
                       const float *values, size_t columns, size_t g, struct group *group) {
    const struct dtype_info *info = &DTYPES[source->dtype];
    if (info->block == GROUP &&
        format->take(source->dtype, source->buffer + g * info->bytes, group))
        return f16_is_finite(group->scale) && (format->bits == 8 || f16_is_finite(group->minimum));
    size_t n = columns - g * GROUP < GROUP ? columns - g * GROUP : GROUP;
    return format->quantize(values + g * GROUP, n, group);
}

static int refuse_group(const struct quantized_format *format, const struct placement *placement,
                        int layer, const struct source *source, size_t row, size_t g,
                        struct error *error) {
    const char *name = placement->name, *mark = strstr(name, "%d");
    char number[16] = "";
    if (mark)
        snprintf(number, sizeof number, "%d", layer);
    return fail(error, EXIT_PACK,
                "%s: %.*s%s%s: row %zu, columns from %zu: found weights that are not finite or past"
                " f16's range, expected ones that int%d can hold",
                source->path, (int)(mark ? mark - name : 0), name, number, mark ? mark + 2 : name,
                row, g * GROUP, format->bits);
}

// Places a tensor in quantised tiles.
static int place_quantized(const struct placement *placement, int layer, struct source *source,
                           bool interleaved, char *pack, float *values, struct error *error) {
    const struct quantized_format *format =
        placement->kind == TENSOR_INT4 ? &FORMAT_INT4 : &FORMAT_INT8;
    char *base = pack + placement->offset + (size_t)layer * placement->stride;
    size_t columns = (size_t)placement->columns, groups = (columns + GROUP - 1) / GROUP;
    bool random = source->descriptor < 0;
    for (size_t row = 0; row < (size_t)placement->rows; row++) {
        size_t r = placed_row(placement, interleaved ? undo_interleaving(row) : row);
        size_t first = r / TILE * (size_t)placement->row_tiles_apart * format->tile_bytes;
        unsigned char *tile = (unsigned char *)base + first;
        int code = random ? EXIT_OK : source_read(source, row * columns, columns, values, error);
        if (code)
            return code;
        for (size_t g = 0; g < groups; g++, tile += format->tile_bytes) {
            struct group group;
            if (random)
                random_group(source, row * groups + g, format->bits, &group);
            else if (!read_group(format, source, values, columns, g, &group))
                return refuse_group(format, placement, layer, source, row, g, error);
            format->store(&group, tile, quantized_lane(r % TILE));
        }
    }
    return EXIT_OK;
}
