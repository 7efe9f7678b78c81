// See unicode.h.
#include <stdlib.h>
#include <string.h>
#include "unicode.h"

// UTF-8 -------------------------------------------------------------------------------------------

static bool is_character(uint32_t point) {
    return point < 0xd800 || (point >= 0xe000 && point < 0x110000);
}

// Length of a code point in bytes.
static size_t utf8_size(uint32_t point) {
    return point < 0x80 ? 1 : point < 0x800 ? 2 : point < 0x10000 ? 3 : 4;
}

static size_t utf8_decode(const char *text, size_t bytes, uint32_t *point) {
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
    return utf8_size(value) == length && is_character(value) ? length : 0; // not overlong
}

static size_t utf8_prefix(const char *text, size_t bytes) {
    uint32_t point;
    size_t at = 0, length = 1;
    for (; at < bytes && length > 0; at += length)
        length = utf8_decode(text + at, bytes - at, &point);
    return at;
}

static size_t utf8_encode(char *text, uint32_t point) {
    size_t length = utf8_size(point);
    for (size_t i = length - 1; i > 0; i--, point >>= 6)
        text[i] = (char)(0x80 | (point & 0x3f));
    text[0] = (char)(length == 1 ? point : (0xf00u >> length & 0xf0) | point);
    return length;
}

// Tables ------------------------------------------------------------------------------------------

// Index of the last element that is <= key, or 0. table [n] is ascending, n > 0.
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

static enum unicode_class unicode_class(const struct unicode_tables *u, uint32_t point) {
    if ((point | 0x20) - 'a' < 26)
        return UNICODE_LETTER; // the table says the same; this is for speed
    return u->class_start[last_not_above(u->class_start, u->classes, point << 2 | 3)] & 3;
}

// Orders pairs of code points, for bsearch.
static int compare_pairs(const void *left, const void *right) {
    const uint32_t *a = left, *b = right;
    int k = a[0] == b[0];
    return (a[k] > b[k]) - (a[k] < b[k]);
}

static bool is_ascending(const uint32_t *table, size_t n) {
    for (size_t i = 1; i < n; i++)
        if (table[i - 1] >= table[i])
            return false;
    return true;
}

// Whether parts are no more than the factors in unicode.h allow, and can be written as UTF-8.
static bool is_decomposition(uint32_t point, const uint32_t *parts) {
    size_t n = 0, bytes = 0, most = utf8_size(point);
    for (; n < DECOMPOSITION_MAX && parts[n] != 0; bytes += utf8_size(parts[n++]))
        if (!is_character(parts[n]))
            return false;
    return n > 0 && n <= NFC_POINTS_FACTOR * most && bytes <= NFC_BYTES_FACTOR * most;
}

// The same; composing never makes a text longer.
static bool is_composition(const uint32_t *pair) {
    return is_character(pair[2]) && utf8_size(pair[2]) <= utf8_size(pair[0]) + utf8_size(pair[1]);
}

static int unicode_check(const struct unicode_tables *u, bool nfc, struct error *error) {
    if (u->classes == 0 || (nfc && (u->combining == 0 || u->decompositions == 0)))
        return fail(error, EXIT_PACK, "tokenizer: found an empty table, expected Unicode's");
    if (!is_ascending(u->class_start, u->classes) ||
        !is_ascending(u->combining_start, u->combining) ||
        !is_ascending(u->decomposed, u->decompositions))
        return fail(error, EXIT_PACK, "tokenizer: found unordered code points, expected Unicode's");
    for (size_t i = 0; i < u->decompositions; i++)
        if (!is_decomposition(u->decomposed[i], &u->decomposition[DECOMPOSITION_MAX * i]))
            return fail(error, EXIT_PACK,
                        "tokenizer: decomposition[%zu]: found U+%04X, expected that of U+%04X", i,
                        u->decomposition[DECOMPOSITION_MAX * i], u->decomposed[i]);
    for (size_t i = 0; i < u->compositions; i++) {
        const uint32_t *pair = &u->composition[3 * i];
        if (!is_composition(pair) || (i > 0 && compare_pairs(pair - 3, pair) >= 0))
            return fail(error, EXIT_PACK,
                        "tokenizer: composition[%zu]: found U+%04X, expected that of U+%04X U+%04X",
                        i, pair[2], pair[0], pair[1]);
    }
    return EXIT_OK;
}

// Form C ------------------------------------------------------------------------------------------

static bool nfc_is_plain(const char *text, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if ((unsigned char)text[i] >= 0xcc) // U+0300 is CC 80
            return false;
    return true;
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

// Writes the full canonical decomposition of a code point to out; returns how many there are.
static size_t decompose(const struct unicode_tables *u, uint32_t point, uint32_t *out) {
    if (point - HANGUL_S < HANGUL_SS) {
        uint32_t s = point - HANGUL_S, t = s % HANGUL_TS;
        out[0] = HANGUL_L + s / (HANGUL_VS * HANGUL_TS);
        out[1] = HANGUL_V + s / HANGUL_TS % HANGUL_VS;
        out[2] = HANGUL_T + t;
        return t == 0 ? 2 : 3;
    }
    size_t i = last_not_above(u->decomposed, u->decompositions, point), n = 0;
    const uint32_t *parts = &u->decomposition[DECOMPOSITION_MAX * i];
    if (u->decomposed[i] != point) {
        out[0] = point;
        return 1;
    }
    for (; n < DECOMPOSITION_MAX && parts[n] != 0; n++)
        out[n] = parts[n];
    return n;
}

// The primary composite of two code points, or 0.
static uint32_t compose(const struct unicode_tables *u, uint32_t first, uint32_t second) {
    uint32_t s = first - HANGUL_S, v = second - HANGUL_V, t = second - HANGUL_T;
    if (first - HANGUL_L < HANGUL_LS && v < HANGUL_VS)
        return HANGUL_S + ((first - HANGUL_L) * HANGUL_VS + v) * HANGUL_TS;
    if (s < HANGUL_SS && s % HANGUL_TS == 0 && t > 0 && t < HANGUL_TS)
        return first + t;
    const uint32_t pair[2] = {first, second};
    const uint32_t *found =
        bsearch(pair, u->composition, u->compositions, 3 * sizeof *pair, compare_pairs);
    return found != NULL ? found[2] : 0;
}

// Below, a code point carries its combining class in the upper eight bits.
enum { POINT_MASK = 0x1fffff, COMBINING_SHIFT = 24 };

static uint32_t with_combining_class(const struct unicode_tables *u, uint32_t point) {
    size_t i = last_not_above(u->combining_start, u->combining, point << 8 | 0xff);
    return point | (u->combining_start[i] & 0xff) << COMBINING_SHIFT;
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
static size_t compose_all(const struct unicode_tables *u, uint32_t *points, size_t n) {
    size_t length = 0, starter = n; // n: none yet
    uint32_t previous = 0;          // combining class of the last one kept
    for (size_t i = 0; i < n; i++) {
        uint32_t class = points[i] >> COMBINING_SHIFT, point = points[i] & POINT_MASK;
        if (starter < n && (length == starter + 1 || previous < class)) {
            uint32_t composite = compose(u, points[starter], point);
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

static size_t nfc_normalize(const struct unicode_tables *u, const char *text, size_t bytes,
                            char *out, uint32_t *points, uint32_t *spare) {
    size_t n = 0, run = 0; // run: where the current run of combining characters starts
    for (size_t i = 0; i < bytes;) {
        uint32_t point, parts[DECOMPOSITION_MAX];
        i += utf8_decode(text + i, bytes - i, &point);
        size_t count = decompose(u, point, parts);
        for (size_t k = 0; k < count; k++) {
            uint32_t part = with_combining_class(u, parts[k]);
            if (part >> COMBINING_SHIFT == 0) {
                order_run(points + run, n - run, spare);
                run = n + 1;
            }
            points[n++] = part;
        }
    }
    order_run(points + run, n - run, spare);
    n = compose_all(u, points, n);
    size_t length = 0;
    for (size_t i = 0; i < n; i++)
        length += utf8_encode(out + length, points[i]);
    return length;
}
