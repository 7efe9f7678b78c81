// The products of every path that this processor has with rows of int8 cache tiles, against the
// same sums in double precision: 1 to WIDEST_ROW tiles, 1 to MOST_COLUMNS columns. Prints a line
// for each path: the largest error as a share of what rounding the activations explains, 1 or less;
// and in how many columns a result depended on what else was computed with it, or a NaN got lost.
// ENGINE is engine.c of an engine with an int8 cache.
#define PARSCALE_NO_MAIN
#include ENGINE

enum { MOST_COLUMNS = 27, APART = TILE_ELEMENTS + 64, MOST = WIDEST_ROW * TILE };

struct product_case {
    size_t tiles, columns, stride;
    char row[WIDEST_ROW * APART + 8192]; // the end is fetched ahead
    float x[MOST_COLUMNS][MOST], y[MOST_COLUMNS][TILE];
    _Alignas(64) char packed[MOST_COLUMNS * (MOST * sizeof(float) + 64)];
};

static uint32_t random_bits(void) {
    static uint64_t state = 7;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33);
}

static int element(const struct product_case *at, size_t row, size_t k) {
    const char *tile = at->row + k / TILE * APART;
    return (unsigned char)tile[tile_index(row, k % TILE)] - 128;
}

static void multiply(const struct cache_product *by, struct product_case *at, size_t first,
                     size_t columns) {
    size_t n = at->tiles * TILE;
    at->stride = at->tiles * by->packed_bytes + by->column_bytes;
    for (size_t c = 0; c < columns; c++)
        by->pack(at->x[first + c], n, at->packed + c * at->stride);
    by->product(at->row, at->tiles, APART, at->packed, at->stride, columns, at->y[first], TILE);
}

// The largest error of column c, as a share of what is allowed: fp32 sums, and the activations'
// rounding: `share` of each, or of the largest.
static double column_error(const struct product_case *at, size_t c, double each, double largest) {
    double most = 0, worst = 0;
    for (size_t k = 0; k < at->tiles * TILE; k++)
        most = fmax(most, fabs((double)at->x[c][k]));
    for (size_t r = 0; r < TILE; r++) {
        double sum = 0, allowed = 1e-30;
        for (size_t k = 0; k < at->tiles * TILE; k++) {
            double q = element(at, r, k), x = (double)at->x[c][k];
            sum += q * x;
            allowed += fabs(q) * (fabs(x) * (each + 3e-6) + most * largest);
        }
        worst = fmax(worst, fabs((double)at->y[c][r] - sum) / allowed);
    }
    return worst;
}

// A column's results are the same bits when it is computed alone; a NaN in it reaches all of them.
static bool column_is_wrong(const struct cache_product *by, struct product_case *at, size_t c) {
    float before[TILE], kept = at->x[c][3];
    memcpy(before, at->y[c], sizeof before);
    multiply(by, at, c, 1);
    bool wrong = memcmp(before, at->y[c], sizeof before) != 0;
    at->x[c][3] = NAN;
    multiply(by, at, c, 1);
    for (size_t r = 0; r < TILE; r++)
        wrong |= !isnan(at->y[c][r]);
    at->x[c][3] = kept;
    memcpy(at->y[c], before, sizeof before);
    return wrong;
}

int main(void) {
    static struct product_case at;
    for (size_t p = 0; p < sizeof CACHE_PATHS / sizeof *CACHE_PATHS; p++) {
        const struct cache_path *path = &CACHE_PATHS[p];
        if (!path->isa->usable() || (path->usable && !path->usable()))
            continue;
        bool integers = path->by.column_bytes > 0, bf16 = path->by.packed_bytes == 2 * TILE;
        double error = 0;
        size_t wrong = 0, cases = 0;
        for (at.tiles = 1; at.tiles <= WIDEST_ROW; at.tiles++) {
            for (at.columns = 1; at.columns <= MOST_COLUMNS; at.columns++, cases++) {
                for (size_t i = 0; i < sizeof at.row; i++)
                    at.row[i] = (char)(1 + random_bits() % 255);
                for (size_t i = 0; i < MOST_COLUMNS * MOST; i++)
                    at.x[i / MOST][i % MOST] = (float)random_bits() / 1073741824.0f - 1;
                multiply(&path->by, &at, 0, at.columns);
                for (size_t c = 0; c < at.columns; c++)
                    error = fmax(error, column_error(&at, c, bf16 && !integers ? 1.0 / 256 : 0,
                                                     integers ? 0.6 / 32512 : 0));
                for (size_t c = 0; c < at.columns; c += 5)
                    wrong += column_is_wrong(&path->by, &at, c);
            }
        }
        printf("path=%s column_bytes=%zu cases=%zu error=%.3g wrong=%zu\n", path->isa->name,
               path->by.column_bytes, cases, error, wrong);
    }
    return 0;
}
