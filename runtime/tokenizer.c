// See tokenizer.h.
#include <stdlib.h>
#include <string.h>
#include "tokenizer.h"

static const uint32_t NO_ID = UINT32_MAX; // also "no rank" and "no symbol"

// Opening -----------------------------------------------------------------------------------------

struct tokenizer_header {
    char magic[4];
    uint32_t rule, nfc, ids, merges, added, stops, piece_bytes, system_bytes;
    uint32_t chat, im_start, im_end;
    uint32_t classes, combining, decompositions, compositions;
};

static int check_below(const char *name, const uint32_t *values, size_t n, uint32_t limit,
                       struct error *error) {
    for (size_t i = 0; i < n; i++)
        if (values[i] >= limit)
            return fail(error, EXIT_PACK, "tokenizer: %s[%zu]: found %u, expected less than %u",
                        name, i, values[i], limit);
    return EXIT_OK;
}

// n + 1 places that start at 0, ascend and end at `end`.
static int check_places(const char *name, const uint32_t *values, size_t n, uint32_t end,
                        struct error *error) {
    uint32_t previous = 0;
    for (size_t i = 0; i <= n; i++) {
        if (values[i] < previous || (i == 0 && values[i] != 0) || (i == n && values[i] != end))
            return fail(error, EXIT_PACK,
                        "tokenizer: %s[%zu]: found %u after %u, expected up to %u", name, i,
                        values[i], previous, end);
        previous = values[i];
    }
    return EXIT_OK;
}

static int check_added(const struct tokenizer *t, struct error *error) {
    for (uint32_t i = 0; i < t->added_tokens; i++) {
        size_t bytes = 0;
        uint32_t id = t->added[i] >> 1;
        const char *piece = id < t->ids ? tokenizer_piece(t, (int32_t)id, &bytes) : NULL;
        if (bytes == 0 || utf8_prefix(piece, bytes) != bytes)
            return fail(error, EXIT_PACK, "tokenizer: added[%u]: found id %u, expected a text's", i,
                        id);
    }
    return EXIT_OK;
}

static int check_sections(const struct tokenizer *t, uint32_t piece_bytes, struct error *error) {
    for (int i = 0; i < 256; i++)
        if (t->byte_id[i] != NO_ID && check_below("byte_id", &t->byte_id[i], 1, t->ids, error))
            return error->code;
    if (check_places("piece_start", t->piece_start, t->ids, piece_bytes, error) ||
        check_places("merge_first", t->merge_first, t->ids, t->merges, error) ||
        check_below("merge_right", t->merge_right, t->merges, t->ids, error) ||
        check_below("merge_rank", t->merge_rank, t->merges, t->merges, error) ||
        check_below("merge_result", t->merge_result, t->merges, t->ids, error) ||
        check_added(t, error))
        return error->code;
    return unicode_check(&t->unicode, t->nfc, error);
}

// Points t to the sections, which are behind the header, if their lengths add up.
static int find_sections(struct tokenizer *t, const struct tokenizer_header *h, size_t bytes,
                         struct error *error) {
    struct unicode_tables *u = &t->unicode;
    const struct {
        const uint32_t **start;
        uint64_t length;
    } sections[] = {
        {&t->piece_start, (uint64_t)h->ids + 1},
        {&t->byte_id, 256},
        {&t->merge_first, (uint64_t)h->ids + 1},
        {&t->merge_right, h->merges},
        {&t->merge_rank, h->merges},
        {&t->merge_result, h->merges},
        {&t->added, h->added},
        {&t->stop, h->stops},
        {&u->class_start, h->classes},
        {&u->combining_start, h->combining},
        {&u->decomposed, h->decompositions},
        {&u->decomposition, (uint64_t)DECOMPOSITION_MAX * h->decompositions},
        {&u->composition, (uint64_t)3 * h->compositions},
    };
    enum { SECTIONS = sizeof sections / sizeof *sections };
    uint64_t expected = sizeof *h + (uint64_t)h->piece_bytes + h->system_bytes;
    for (int i = 0; i < SECTIONS; i++)
        expected += sections[i].length * sizeof(uint32_t);
    if (expected != bytes)
        return fail(error, EXIT_PACK, "tokenizer: found %zu bytes, expected %llu", bytes,
                    (unsigned long long)expected);
    const uint32_t *place = (const uint32_t *)(h + 1);
    for (int i = 0; i < SECTIONS; place += sections[i++].length)
        *sections[i].start = place;
    t->pieces = (const char *)place;
    t->chat.system = t->pieces + h->piece_bytes;
    return EXIT_OK;
}

static int tokenizer_open(struct tokenizer *t, const void *blob, size_t bytes,
                          struct error *error) {
    const struct tokenizer_header *h = blob;
    if (bytes < sizeof *h || (uintptr_t)h % sizeof(uint32_t) != 0 ||
        memcmp(h->magic, "tok2", 4) != 0)
        return fail(error, EXIT_PACK, "tokenizer: found %zu bytes, expected a header", bytes);
    if ((h->rule != TOKENIZER_QWEN2 && h->rule != TOKENIZER_SMOLLM) || h->nfc > 1 || h->chat > 1 ||
        h->ids > INT32_MAX || (h->chat && (h->im_start >= h->ids || h->im_end >= h->ids)))
        return fail(error, EXIT_PACK,
                    "tokenizer: found rule %u, nfc %u, chat %u (%u, %u), %u ids, expected others",
                    h->rule, h->nfc, h->chat, h->im_start, h->im_end, h->ids);
    *t = (struct tokenizer){
        .rule = h->rule,
        .nfc = h->nfc,
        .ids = h->ids,
        .merges = h->merges,
        .added_tokens = h->added,
        .stops = h->stops,
        .chat = {h->chat, (int32_t)h->im_start, (int32_t)h->im_end, NULL, h->system_bytes},
        .unicode = {.classes = h->classes,
                    .combining = h->combining,
                    .decompositions = h->decompositions,
                    .compositions = h->compositions},
    };
    int code = find_sections(t, h, bytes, error);
    return code ? code : check_sections(t, h->piece_bytes, error);
}

// Ids to text -------------------------------------------------------------------------------------

static const char *tokenizer_piece(const struct tokenizer *t, int32_t id, size_t *bytes) {
    *bytes = 0;
    if (id < 0 || (uint32_t)id >= t->ids)
        return NULL;
    *bytes = t->piece_start[id + 1] - t->piece_start[id];
    return *bytes > 0 ? t->pieces + t->piece_start[id] : NULL;
}

static bool tokenizer_is_stop(const struct tokenizer *t, int32_t id) {
    for (uint32_t i = 0; i < t->stops; i++)
        if (t->stop[i] == (uint32_t)id)
            return true;
    return false;
}

// Added tokens ------------------------------------------------------------------------------------

// First of the added tokens low..high-1 whose byte at `depth` is at least `byte`.
static size_t added_bound(const struct tokenizer *t, size_t low, size_t high, size_t depth,
                          unsigned byte) {
    while (low < high) {
        size_t middle = low + (high - low) / 2, length;
        const char *piece = tokenizer_piece(t, (int32_t)(t->added[middle] >> 1), &length);
        if (depth >= length || (unsigned char)piece[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

// Length of the longest added token that text starts with, or 0. The tokens are in the order of
// their bytes: each byte of the text narrows down the range of those that match so far.
static size_t added_token_at(const struct tokenizer *t, const char *text, size_t bytes,
                             bool special, int32_t *id) {
    size_t low = 0, high = t->added_tokens, best = 0;
    for (size_t depth = 0; depth < bytes; depth++) {
        unsigned byte = (unsigned char)text[depth];
        low = added_bound(t, low, high, depth, byte);
        high = added_bound(t, low, high, depth, byte + 1);
        if (low == high)
            break;
        size_t length;
        const char *piece = tokenizer_piece(t, (int32_t)(t->added[low] >> 1), &length);
        if (length != depth + 1 || memcmp(piece, text, length) != 0)
            continue;
        if (special || (t->added[low] & 1) == 0) {
            *id = (int32_t)(t->added[low] >> 1);
            best = length;
        }
        low++;
    }
    return best;
}

// Splitting ---------------------------------------------------------------------------------------

struct character {
    enum unicode_class class;
    uint32_t point;
    size_t bytes;
};

// The end of the text reads as white space of no bytes: that is what \s+(?!\S) takes it for.
static struct character character_at(const struct tokenizer *t, const char *text, size_t bytes,
                                     size_t at) {
    struct character c = {UNICODE_SPACE, 0, 0};
    if (at < bytes) {
        c.bytes = utf8_decode(text + at, bytes - at, &c.point);
        c.class = unicode_class(&t->unicode, c.point);
    }
    return c;
}

// Where the run of characters of one class ends that starts at `at`, which may be empty.
static size_t skip_class(const struct tokenizer *t, const char *text, size_t bytes, size_t at,
                         enum unicode_class class) {
    struct character c;
    while (at < bytes && (c = character_at(t, text, bytes, at)).class == class)
        at += c.bytes;
    return at;
}

// Length of the English contraction that text starts with, or 0. (?i) is Unicode's: U+017F, the
// long s, is an s.
static size_t contraction(const char *text, size_t bytes, bool any_case) {
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    char next[2] = {0}; // what follows the apostrophe, in lower case if any_case
    if (text[0] != '\'')
        return 0;
    if (any_case && bytes > 2 && memcmp(text + 1, "\xc5\xbf", 2) == 0)
        return 3;
    for (size_t i = 0; i < 2 && i + 1 < bytes; i++) {
        bool upper = text[i + 1] >= 'A' && text[i + 1] <= 'Z';
        next[i] = (char)(any_case && upper ? text[i + 1] | 0x20 : text[i + 1]);
    }
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (memcmp(next, endings[i], strlen(endings[i])) == 0)
            return 1 + strlen(endings[i]);
    return 0;
}

static bool is_newline(uint32_t point) {
    return point == '\r' || point == '\n';
}

// Length of the piece that text, which starts with white space, starts with: up to the last newline
// of the run (qwen2), or all of it before a space, the end or (smollm) a digit, or else all but the
// last character, which goes with what follows.
static size_t split_space(const struct tokenizer *t, const char *text, size_t bytes) {
    size_t at = 0, last = 0, line = 0;
    struct character c;
    while ((c = character_at(t, text, bytes, at)).class == UNICODE_SPACE && c.bytes > 0) {
        last = at;
        at += c.bytes;
        if (is_newline(c.point))
            line = at;
    }
    if (t->rule == TOKENIZER_QWEN2 && line > 0)
        return line;
    bool end = at == bytes || (t->rule == TOKENIZER_SMOLLM && c.class == UNICODE_NUMBER);
    return end || last == 0 ? at : last;
}

static size_t split_qwen2(const struct tokenizer *t, const char *text, size_t bytes) {
    size_t at = contraction(text, bytes, true);
    if (at > 0)
        return at;
    struct character c = character_at(t, text, bytes, 0);
    struct character next = character_at(t, text, bytes, c.bytes);
    if (c.class == UNICODE_NUMBER)
        return c.bytes;
    if (c.class == UNICODE_LETTER || (next.class == UNICODE_LETTER && !is_newline(c.point)))
        return skip_class(t, text, bytes, c.bytes, UNICODE_LETTER);
    if (c.class == UNICODE_SPACE && (c.point != ' ' || next.class != UNICODE_OTHER))
        return split_space(t, text, bytes);
    at = skip_class(t, text, bytes, c.bytes, UNICODE_OTHER);
    while (at < bytes && is_newline((unsigned char)text[at]))
        at++;
    return at;
}

static size_t split_smollm(const struct tokenizer *t, const char *text, size_t bytes) {
    size_t at = contraction(text, bytes, false);
    if (at > 0)
        return at;
    struct character c = character_at(t, text, bytes, 0);
    struct character next = character_at(t, text, bytes, c.bytes);
    if (c.class == UNICODE_NUMBER)
        return c.bytes;
    if (c.class != UNICODE_SPACE)
        return skip_class(t, text, bytes, 0, c.class);
    if (c.point == ' ' && (next.class == UNICODE_LETTER || next.class == UNICODE_OTHER))
        return skip_class(t, text, bytes, c.bytes, next.class);
    return split_space(t, text, bytes);
}

// Merging -----------------------------------------------------------------------------------------

// A token of the piece so far, in a list. rank: of the merge with the next one, or NO_ID; NO_ID
// also when this symbol has become part of the one before.
struct symbol {
    uint32_t id, rank, previous, next;
};

// Memory for one call of tokenizer_encode; n: bytes of the text, m: at most so many in form C.
struct tokenizer_scratch {
    uint64_t *heap; // [3 m] pairs to merge, rank << 32 | symbol, the smallest at the top
    size_t heap_size;
    struct symbol *symbols;   // [m]
    uint32_t *points, *spare; // [2 n] each, for form C
    char *normalized;         // [m]
};

static void heap_push(struct tokenizer_scratch *s, uint64_t key) {
    size_t i = s->heap_size++;
    for (; i > 0 && s->heap[(i - 1) / 2] > key; i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = key;
}

static uint64_t heap_pop(struct tokenizer_scratch *s) {
    uint64_t top = s->heap[0], key = s->heap[--s->heap_size];
    size_t i = 0, n = s->heap_size;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && s->heap[child + 1] < s->heap[child])
            child++;
        if (s->heap[child] >= key)
            break;
        s->heap[i] = s->heap[child];
    }
    s->heap[i] = key;
    return top;
}

// The rank of a pair, or NO_ID.
static uint32_t merge_rank_of(const struct tokenizer *t, uint32_t left, uint32_t right) {
    uint32_t low = t->merge_first[left], high = t->merge_first[left + 1];
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (t->merge_right[middle] == right)
            return t->merge_rank[middle];
        if (t->merge_right[middle] < right)
            low = middle + 1;
        else
            high = middle;
    }
    return NO_ID;
}

// Finds the merge of symbol i with the next one and queues it.
static void queue_merge(const struct tokenizer *t, struct tokenizer_scratch *s, uint32_t i) {
    struct symbol *symbol = &s->symbols[i];
    symbol->rank = NO_ID;
    if (symbol->next != NO_ID)
        symbol->rank = merge_rank_of(t, symbol->id, s->symbols[symbol->next].id);
    if (symbol->rank != NO_ID)
        heap_push(s, (uint64_t)symbol->rank << 32 | i);
}

// Ids of one piece; returns how many. n log n: a piece of n bytes has fewer than n merges, and each
// queues at most two more.
static size_t merge_piece(const struct tokenizer *t, const char *piece, size_t bytes,
                          struct tokenizer_scratch *s, int32_t *ids) {
    uint32_t count = 0;
    size_t n = 0;
    for (size_t i = 0; i < bytes; i++) {
        uint32_t id = t->byte_id[(unsigned char)piece[i]];
        if (id == NO_ID)
            continue;
        s->symbols[count] = (struct symbol){id, NO_ID, count > 0 ? count - 1 : NO_ID, NO_ID};
        if (count > 0)
            s->symbols[count - 1].next = count;
        count++;
    }
    s->heap_size = 0;
    for (uint32_t i = 0; i < count; i++)
        queue_merge(t, s, i);
    while (s->heap_size > 0) {
        uint64_t key = heap_pop(s);
        uint32_t rank = (uint32_t)(key >> 32), i = (uint32_t)key;
        struct symbol *symbol = &s->symbols[i];
        if (symbol->rank != rank)
            continue; // one of the pair has been merged with another since
        struct symbol *right = &s->symbols[symbol->next];
        symbol->id = t->merge_result[rank];
        symbol->next = right->next;
        right->rank = NO_ID;
        if (symbol->next != NO_ID)
            s->symbols[symbol->next].previous = i;
        queue_merge(t, s, i);
        if (symbol->previous != NO_ID)
            queue_merge(t, s, symbol->previous);
    }
    for (uint32_t i = count > 0 ? 0 : NO_ID; i != NO_ID; i = s->symbols[i].next)
        ids[n++] = (int32_t)s->symbols[i].id;
    return n;
}

// Text to ids -------------------------------------------------------------------------------------

// Ids of a text without added tokens; returns how many.
static size_t encode_text(const struct tokenizer *t, const char *text, size_t bytes,
                          struct tokenizer_scratch *s, int32_t *ids) {
    if (t->nfc && !nfc_is_plain(text, bytes)) {
        bytes = nfc_normalize(&t->unicode, text, bytes, s->normalized, s->points, s->spare);
        text = s->normalized;
    }
    size_t n = 0;
    for (size_t at = 0, length; at < bytes; at += length) {
        length = t->rule == TOKENIZER_QWEN2 ? split_qwen2(t, text + at, bytes - at)
                                            : split_smollm(t, text + at, bytes - at);
        n += merge_piece(t, text + at, length, s, ids + n);
    }
    return n;
}

// Takes the scratch, in one piece that starts at its heap, and the room for the ids.
static int take_scratch(struct tokenizer_scratch *s, size_t n, size_t m, int32_t **ids,
                        struct error *error) {
    uint64_t each = 3 * sizeof *s->heap + sizeof *s->symbols + 1; // per byte of m
    uint64_t total = m * each + n * (uint64_t)(2 * NFC_POINTS_FACTOR * sizeof *s->points) + 1;
    *s = (struct tokenizer_scratch){.heap = total <= SIZE_MAX ? malloc((size_t)total) : NULL};
    *ids = s->heap != NULL ? malloc(m * sizeof **ids + 1) : NULL;
    if (*ids == NULL) {
        free(s->heap);
        return fail(error, EXIT_MEMORY, "text: no memory to tokenize %zu bytes", n);
    }
    s->symbols = (struct symbol *)(s->heap + 3 * m);
    s->points = (uint32_t *)(s->symbols + m);
    s->spare = s->points + NFC_POINTS_FACTOR * n;
    s->normalized = (char *)(s->spare + NFC_POINTS_FACTOR * n);
    return EXIT_OK;
}

static int tokenizer_encode(const struct tokenizer *t, const char *text, size_t bytes, bool special,
                            int32_t **ids, size_t *n, struct error *error) {
    enum { MAX_BYTES = 1 << 30 };
    struct tokenizer_scratch scratch;
    *ids = NULL;
    *n = 0;
    if (bytes > MAX_BYTES)
        return fail(error, EXIT_INPUT, "text: found %zu bytes, expected at most %d", bytes,
                    MAX_BYTES);
    size_t valid = utf8_prefix(text, bytes);
    if (valid < bytes)
        return fail(error, EXIT_INPUT, "text: byte %zu: found 0x%02x, expected UTF-8", valid,
                    (unsigned char)text[valid]);
    size_t room = t->nfc && !nfc_is_plain(text, bytes) ? NFC_BYTES_FACTOR * bytes : bytes;
    int code = take_scratch(&scratch, bytes, room, ids, error);
    if (code != EXIT_OK)
        return code;
    size_t start = 0; // of the text that has no ids yet
    for (size_t at = 0; at < bytes;) {
        int32_t id;
        size_t length = added_token_at(t, text + at, bytes - at, special, &id);
        if (length > 0) {
            *n += encode_text(t, text + start, at - start, &scratch, *ids + *n);
            (*ids)[(*n)++] = id;
            start = at + length;
        }
        at += length > 0 ? length : 1;
    }
    *n += encode_text(t, text + start, bytes - start, &scratch, *ids + *n);
    free(scratch.heap);
    return EXIT_OK;
}
