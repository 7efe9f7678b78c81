// The products of every path that this processor has with quantised tiles, against the same sums
// in double precision: for both kinds of tile (int4 alone if activations have 8 bits), rows of 1 to
// MOST_TILES tiles and 1 to MOST_COLUMNS columns. Prints a line for each path: the largest error as
// a share of what rounding the activations explains, 1 or less; and in how many columns a result
// depended on what else was computed with it, or a NaN got lost. ENGINE is engine.c of an int4
// engine.
#define PARSCALE_NO_MAIN
#include ENGINE

enum { MOST_TILES = 5, MOST_COLUMNS = 16 };

struct product_case {
    size_t tiles, columns;
    bool int4;
    char row[MOST_TILES * INT8_TILE_BYTES + 8192]; // the end is fetched ahead
    double weights[TILE][MOST_TILES * GROUP];      //
    float x[MOST_COLUMNS][MOST_TILES * GROUP];     //
    _Alignas(64) char packed[MOST_COLUMNS * MOST_TILES * GROUP * sizeof(float)];
};

static uint32_t random_bits(void) {
    static uint64_t state = 7;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static double random_number(void) {
    return random_bits() / 1073741824.0 - 1;
}

// A random half of a weight's magnitude, put to a table of the tile; returns its value.
static double random_half(char *table, size_t lane) {
    uint16_t half = (uint16_t)((random_bits() & 1) << 15 | (4 + random_bits() % 6) << 10 |
                               (random_bits() & 1023));
    memcpy(table + 2 * lane, &half, sizeof half);
    return (double)f16_to_float(half);
}

// The tile's bytes are random; what weights they are is written down as tile_quantized.h says.
static void make_tile(struct product_case *at, size_t k) {
    char *tile = at->row + k * (at->int4 ? INT4_TILE_BYTES : INT8_TILE_BYTES);
    size_t scales = at->int4 ? INT4_SCALES : INT8_SCALES;
    for (size_t i = 0; i < scales; i++)
        tile[i] = (char)random_bits();
    for (size_t row = 0; row < TILE; row++) {
        size_t lane = row % 8 * 2 + row / 8;
        double scale = random_half(tile + scales, lane);
        double minimum = at->int4 ? random_half(tile + INT4_MINIMUMS, lane) : -128 * scale;
        for (size_t i = 0; i < 4; i++) {
            for (size_t w = 0; w < 2; w++) {
                size_t columns[4] = {2 * i, 16 + 2 * i, 2 * i + 1, 17 + 2 * i};
                for (size_t b = 0; b < 4; b++) {
                    size_t word = at->int4 ? i : 2 * i + w;
                    size_t place = at->int4 || i < 2 ? lane : (lane + 8) % TILE;
                    unsigned byte = (unsigned char)tile[(word * TILE + place) * 4 + b];
                    unsigned quant = at->int4 ? byte >> 4 * w & 15 : byte;
                    at->weights[row][k * GROUP + 8 * w + columns[b]] = scale * quant + minimum;
                }
            }
        }
    }
}

// Activations of many sizes: groups of zeros, of tiny numbers, with one that is far larger.
static void make_case(struct product_case *at, size_t tiles, size_t columns, bool int4) {
    at->tiles = tiles;
    at->columns = columns;
    at->int4 = int4;
    for (size_t k = 0; k < tiles; k++)
        make_tile(at, k);
    for (size_t c = 0; c < columns; c++) {
        for (size_t group = 0; group < tiles; group++) {
            double size = random_bits() % 8 ? exp(3 * random_number()) : 1e-36;
            size = random_bits() % 8 ? size : 0;
            for (size_t k = 0; k < GROUP; k++)
                at->x[c][group * GROUP + k] = (float)(size * random_number());
            if (random_bits() % 4 == 0)
                at->x[c][group * GROUP + random_bits() % GROUP] *= 100;
        }
    }
}

static void pack_case(struct product_case *at, const struct quantized_path *path) {
    char *packed = at->packed;
    for (size_t c = 0; c < at->columns; c++)
        for (size_t group = 0; group < at->tiles; group++, packed += path->group_bytes)
            path->pack(at->x[c] + group * GROUP, packed);
}

// |y - the exact sum| as a share of: half a step of the activations, `steps` to a group's largest,
// times the weights, and fp32's rounding of sums.
static double error_share(const struct product_case *at, size_t c, size_t row, double steps,
                          double y) {
    double sum = 0, allowed = 1e-30;
    for (size_t group = 0; group < at->tiles; group++) {
        double largest = 0, weights = 0;
        for (size_t k = group * GROUP; k < (group + 1) * GROUP; k++) {
            double x = (double)at->x[c][k];
            largest = fmax(largest, fabs(x));
            weights += fabs(at->weights[row][k]);
            sum += at->weights[row][k] * x;
        }
        // A weight is a difference of numbers up to 25 times as large.
        allowed += largest * weights * ((steps > 0 ? 0.5 / steps : 0) + 4e-6);
    }
    return fabs(y - sum) / allowed;
}

static void test_path(struct product_case *at, const struct quantized_path *path, double *error,
                      size_t *wrong) {
    float y[MOST_COLUMNS * TILE], alone[TILE];
    double steps = path->group_bytes >= GROUP * sizeof(float) ? 0
                   : path->group_bytes >= 2 * GROUP           ? 32512
                                                              : 127;
    size_t stride = at->tiles * path->group_bytes, poisoned = random_bits() % at->columns;
    pack_case(at, path);
    path->product(at->row, at->tiles, at->int4, at->packed, at->columns, y, TILE);
    for (size_t c = 0; c < at->columns; c++) {
        for (size_t row = 0; row < TILE; row++) {
            double share = error_share(at, c, row, steps, (double)y[c * TILE + row]);
            *error = share <= *error ? *error : share;
        }
        path->product(at->row, at->tiles, at->int4, at->packed + c * stride, 1, alone, TILE);
        *wrong += memcmp(alone, y + c * TILE, sizeof alone) != 0;
    }
    float kept = at->x[poisoned][3];
    at->x[poisoned][3] = NAN;
    pack_case(at, path);
    path->product(at->row, at->tiles, at->int4, at->packed, at->columns, y, TILE);
    for (size_t i = 0; i < at->columns * TILE; i++)
        *wrong += isnan(y[i]) != (i / TILE == poisoned);
    at->x[poisoned][3] = kept;
}

int main(void) {
    static struct product_case at;
    for (size_t i = 0; i < sizeof QUANTIZED_PATHS / sizeof *QUANTIZED_PATHS; i++) {
        const struct quantized_path *path = &QUANTIZED_PATHS[i];
        if (!path->isa->usable() || (path->usable && !path->usable()))
            continue;
        double error = 0;
        size_t wrong = 0, cases = 0;
        for (size_t tiles = 1; tiles <= MOST_TILES; tiles++) {
            for (size_t columns = 1; columns <= MOST_COLUMNS; columns++) {
                for (int int4 = path->group_bytes < 2 * GROUP; int4 < 2; int4++, cases++) {
                    make_case(&at, tiles, columns, int4);
                    test_path(&at, path, &error, &wrong);
                }
            }
        }
        printf("path=%s bytes=%zu cases=%zu error=%.3g wrong=%zu\n", path->isa->name,
               path->group_bytes, cases, error, wrong);
    }
    return 0;
}
