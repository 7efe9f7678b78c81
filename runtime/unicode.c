// See unicode.h.
#include <string.h>
#include "unicode.h"
#include "unicode_tables.h"

// Index of the last element that is <= key. table is ascending and table[0] <= key.
static size_t last_not_above(const uint32_t *table, size_t n, uint32_t key) {
    size_t low = 0, high = n;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (table[middle] <= key)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static enum unicode_class unicode_class(uint32_t point) {
    enum { N = sizeof unicode_class_starts / sizeof *unicode_class_starts };
    if ((point | 0x20) - 'a' < 26)
        return UNICODE_LETTER; // the table says the same; this is for speed
    return unicode_class_starts[last_not_above(unicode_class_starts, N, point << 2 | 3)] & 3;
}

static size_t utf8_decode(const char *text, size_t bytes, uint32_t *point) {
    static const uint32_t smallest[5] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *s = (const unsigned char *)text;
    *point = s[0];
    if (s[0] < 0x80)
        return 1;
    size_t length = s[0] < 0xc0 ? 0 : s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : s[0] < 0xf8 ? 4 : 0;
    if (length == 0 || length > bytes)
        return 0;
    uint32_t value = s[0] & (0x7fu >> length);
    for (size_t i = 1; i < length; i++) {
        if ((s[i] & 0xc0) != 0x80)
            return 0;
        value = value << 6 | (s[i] & 0x3f);
    }
    *point = value;
    int surrogate = value >= 0xd800 && value < 0xe000;
    return value < smallest[length] || value > 0x10ffff || surrogate ? 0 : length;
}

static size_t utf8_prefix(const char *text, size_t bytes) {
    uint32_t point;
    size_t at = 0, length = 1;
    for (; at < bytes && length > 0; at += length)
        length = utf8_decode(text + at, bytes - at, &point);
    return at;
}

static size_t utf8_encode(char *text, uint32_t point) {
    if (point < 0x80) {
        text[0] = (char)point;
        return 1;
    }
    size_t length = point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
    for (size_t i = length - 1; i > 0; i--, point >>= 6)
        text[i] = (char)(0x80 | (point & 0x3f));
    text[0] = (char)((0xf00u >> length & 0xf0) | point);
    return length;
}

static int nfc_is_plain(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] >= 0xcc) // U+0300 is CC 80
            return 0;
    return 1;
}

// Hangul syllables decompose by arithmetic (Unicode Standard, section 3.12).
enum {
    HANGUL_S = 0xac00,
    HANGUL_L = 0x1100,
    HANGUL_V = 0x1161,
    HANGUL_T = 0x11a7, // one before the first: T index 0 is "none"
    HANGUL_LS = 19,
    HANGUL_VS = 21,
    HANGUL_TS = 28,
    HANGUL_SS = HANGUL_LS * HANGUL_VS * HANGUL_TS,
};

enum {
    DECOMPOSITIONS = sizeof decomposition_first / sizeof *decomposition_first,
    DECOMPOSITION_RUNS = sizeof decomposition_runs / sizeof *decomposition_runs,
    COMPOSITIONS = sizeof composition_order / sizeof *composition_order,
};

// Index of the canonical decomposition of a code point, or DECOMPOSITIONS if it has none.
static size_t decomposition_index(uint32_t point) {
    if (point < decomposition_runs[0] >> 12 || point >= 1u << 20)
        return DECOMPOSITIONS;
    size_t run = last_not_above(decomposition_runs, DECOMPOSITION_RUNS, point << 12 | 0xfff);
    uint32_t start = decomposition_runs[run];
    size_t end =
        run + 1 < DECOMPOSITION_RUNS ? decomposition_runs[run + 1] & 0xfff : (size_t)DECOMPOSITIONS;
    size_t index = (start & 0xfff) + (point - (start >> 12));
    return index < end ? index : (size_t)DECOMPOSITIONS;
}

// The code point that decomposition `index` belongs to.
static uint32_t decomposed_point(size_t index) {
    size_t low = 0, high = DECOMPOSITION_RUNS;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if ((decomposition_runs[middle] & 0xfff) <= index)
            low = middle;
        else
            high = middle;
    }
    uint32_t start = decomposition_runs[low];
    return (start >> 12) + (uint32_t)index - (start & 0xfff);
}

// Writes the full canonical decomposition of a code point, 1 to 4 of them; returns how many.
static size_t decompose(uint32_t point, uint32_t *out) {
    if (point - HANGUL_S < HANGUL_SS) {
        uint32_t s = point - HANGUL_S, t = s % HANGUL_TS;
        out[0] = HANGUL_L + s / (HANGUL_VS * HANGUL_TS);
        out[1] = HANGUL_V + s / HANGUL_TS % HANGUL_VS;
        out[2] = HANGUL_T + t;
        return t == 0 ? 2 : 3;
    }
    uint32_t tail[4]; // only the first of a pair decomposes further, at most three times
    size_t n = 0, length = 0;
    for (size_t i; (i = decomposition_index(point)) < DECOMPOSITIONS && n < 4;) {
        if (decomposition_second[i] != 0)
            tail[n++] = decomposition_second[i];
        point = decomposition_first[i];
    }
    out[length++] = point;
    while (n > 0)
        out[length++] = tail[--n];
    return length;
}

// The primary composite of two code points, or 0.
static uint32_t compose(uint32_t first, uint32_t second) {
    uint32_t s = first - HANGUL_S, v = second - HANGUL_V, t = second - HANGUL_T;
    if (first - HANGUL_L < HANGUL_LS && v < HANGUL_VS)
        return HANGUL_S + ((first - HANGUL_L) * HANGUL_VS + v) * HANGUL_TS;
    if (s < HANGUL_SS && s % HANGUL_TS == 0 && t > 0 && t < HANGUL_TS)
        return first + t;
    uint64_t key = (uint64_t)first << 32 | second;
    size_t low = 0, high = COMPOSITIONS;
    while (low < high) {
        size_t middle = low + (high - low) / 2, i = composition_order[middle];
        uint64_t found = (uint64_t)decomposition_first[i] << 32 | decomposition_second[i];
        if (found == key)
            return decomposed_point(i);
        if (found < key)
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

// Below, a code point carries its combining class in the upper eight bits.
enum { POINT_MASK = 0x1fffff, COMBINING_SHIFT = 24 };

static uint32_t with_combining_class(uint32_t point) {
    enum { N = sizeof combining_class_starts / sizeof *combining_class_starts };
    size_t i = last_not_above(combining_class_starts, N, point << 8 | 0xff);
    return point | (combining_class_starts[i] & 0xff) << COMBINING_SHIFT;
}

// Orders a run of combining characters by class, equal ones as they were: a counting sort, since a
// run may be as long as the text.
static void order_run(uint32_t *points, size_t n, uint32_t *spare) {
    if (n < 2)
        return;
    size_t place[257] = {0};
    int ordered = 1;
    for (size_t i = 0; i < n; i++) {
        place[(points[i] >> COMBINING_SHIFT) + 1]++;
        ordered &= i == 0 || points[i - 1] >> COMBINING_SHIFT <= points[i] >> COMBINING_SHIFT;
    }
    if (ordered)
        return;
    for (size_t class = 1; class < 257; class ++)
        place[class] += place[class - 1];
    memcpy(spare, points, n * sizeof *points);
    for (size_t i = 0; i < n; i++)
        points[place[spare[i] >> COMBINING_SHIFT]++] = spare[i];
}

// Composes in place; returns how many are left. A character joins the last starter unless one
// between them has the same or a higher class, or is a starter.
static size_t compose_all(uint32_t *points, size_t n) {
    size_t length = 0, starter = n; // n: none yet
    uint32_t previous = 0;          // combining class of the last one kept
    for (size_t i = 0; i < n; i++) {
        uint32_t class = points[i] >> COMBINING_SHIFT, point = points[i] & POINT_MASK;
        if (starter < n && (length == starter + 1 || previous < class)) {
            uint32_t composite = compose(points[starter], point);
            if (composite != 0) {
                points[starter] = composite;
                continue;
            }
        }
        if (class == 0)
            starter = length;
        previous = class;
        points[length++] = point;
    }
    return length;
}

static size_t nfc_normalize(const char *text, size_t bytes, char *out, uint32_t *points,
                            uint32_t *spare) {
    size_t n = 0, run = 0; // run: where the current run of combining characters starts
    for (size_t i = 0; i < bytes;) {
        uint32_t point, parts[4];
        i += utf8_decode(text + i, bytes - i, &point);
        size_t count = decompose(point, parts);
        for (size_t k = 0; k < count; k++) {
            uint32_t part = with_combining_class(parts[k]);
            if (part >> COMBINING_SHIFT == 0) {
                order_run(points + run, n - run, spare);
                run = n + 1;
            }
            points[n++] = part;
        }
    }
    order_run(points + run, n - run, spare);
    n = compose_all(points, n);
    size_t length = 0;
    for (size_t i = 0; i < n; i++)
        length += utf8_encode(out + length, points[i]);
    return length;
}
