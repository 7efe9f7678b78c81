// What tests/tokenizer.t runs: the tokenizer on its own, over a blob in a file. Relies on the
// runtime's sources, compiled in.
//   harness BLOB encode < RECORDS   a line for each record: ids, a tab, their bytes in hex; or
//   error harness BLOB info               stop ids and chat template harness BLOB repeat TEXT BYTES
//   ids and seconds that BYTES of TEXT take harness BLOB corrupt COUNT      opens COUNT damaged
//   copies and uses those that open harness BLOB classes            runs of code points of one
//   class
// A record is a byte (1: special), its text's length (32 bits, this machine's order) and the text.
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "error.c"
#include "unicode.c"
#include "tokenizer.c"

static _Noreturn void die(const char *message) {
    fprintf(stderr, "harness: %s\n", message);
    exit(99);
}

static void *allocate(size_t bytes) {
    void *memory = malloc(bytes);
    if (memory == NULL)
        die("no memory");
    return memory;
}

static char *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0)
        die(path);
    *bytes = (size_t)ftell(file);
    rewind(file);
    char *data = allocate(*bytes);
    if (fread(data, 1, *bytes, file) != *bytes)
        die(path);
    fclose(file);
    return data;
}

static void print_encoded(const struct tokenizer *t, const char *text, size_t bytes, bool special) {
    struct error error = {0};
    int32_t *ids;
    size_t n, length;
    if (tokenizer_encode(t, text, bytes, special, &ids, &n, &error) != EXIT_OK) {
        printf("error %d %s\n", error.code, error.text);
        return;
    }
    for (size_t i = 0; i < n; i++)
        printf("%s%" PRId32, i > 0 ? " " : "", ids[i]);
    putchar('\t');
    for (size_t i = 0; i < n; i++) {
        const char *piece = tokenizer_piece(t, ids[i], &length);
        for (size_t k = 0; k < length; k++)
            printf("%02x", (unsigned char)piece[k]);
    }
    putchar('\n');
    free(ids);
}

static void encode_records(const struct tokenizer *t) {
    unsigned char special;
    uint32_t bytes;
    while (fread(&special, 1, 1, stdin) == 1) {
        if (fread(&bytes, sizeof bytes, 1, stdin) != 1)
            die("half a record");
        char *text = allocate(bytes > 0 ? bytes : 1); // exact: reading past the end is seen
        if (fread(text, 1, bytes, stdin) != bytes)
            die("half a record");
        print_encoded(t, text, bytes, special == 1);
        free(text);
    }
}

static void print_info(const struct tokenizer *t) {
    size_t length;
    for (int32_t id = -1; id <= (int32_t)t->ids; id++)
        if (tokenizer_is_stop(t, id))
            printf("stop %" PRId32 " %s\n", id, tokenizer_piece(t, id, &length) ? "" : "no piece");
    if (t->chat.chatml)
        printf("chatml %" PRId32 " %" PRId32 " %.*s\n", t->chat.im_start, t->chat.im_end,
               (int)t->chat.system_bytes, t->chat.system);
    printf("ids %" PRIu32 "\n", t->ids);
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static void time_repeated(const struct tokenizer *t, const char *text, size_t bytes) {
    struct error error = {0};
    char *all = allocate(bytes);
    for (size_t i = 0, length = strlen(text); i < bytes; i++)
        all[i] = text[i % length];
    int32_t *ids;
    size_t n;
    double start = seconds();
    if (tokenizer_encode(t, all, bytes, true, &ids, &n, &error) != EXIT_OK)
        die(error.text);
    printf("%zu ids %.3f s\n", n, seconds() - start);
    free(ids);
    free(all);
}

// The header and the places in the sections are what can go wrong: half of the damage goes there.
static void damage(char *copy, size_t bytes, uint64_t *seed) {
    for (int i = 0; i < 8; i++) {
        *seed = *seed * 6364136223846793005u + 1442695040888963407u;
        uint64_t draw = *seed >> 20;
        size_t at = (size_t)((draw >> 16) % (draw & 1 ? bytes : sizeof(struct tokenizer_header)));
        uint64_t flipped = (unsigned char)copy[at] ^ 1u << (draw >> 8 & 7);
        copy[at] = (char)(draw & 2 ? draw >> 8 : flipped);
        if (i == 0 && draw & 4)
            return;
    }
}

// Text that takes every way through the tokenizer, and every decomposition and composition that the
// tables have.
static char *text_for(const struct unicode_tables *u, size_t *bytes) {
    static const char text[] =
        "<|im_start|>abcab, Hello! \xc3\xa9\xe1\xb8\x9b\xcc\xa3 12  3\xea\xb0\x81<|im_end|>";
    char *all = allocate(sizeof text + 4 * (u->decompositions + 3 * (size_t)u->compositions));
    memcpy(all, text, sizeof text);
    *bytes = sizeof text;
    for (uint32_t i = 0; i < u->decompositions; i++)
        *bytes += utf8_encode(all + *bytes, u->decomposed[i]);
    for (uint32_t i = 0; i < 3 * u->compositions; i++)
        *bytes += utf8_encode(all + *bytes, u->composition[i]);
    return all;
}

// Reads all that a tokenizer has; the sum is so that no read is left out.
static uint64_t use(const struct tokenizer *t, const char *text, size_t bytes) {
    struct error error = {0};
    int32_t *ids;
    size_t n, length;
    uint64_t sum = 0;
    if (tokenizer_encode(t, text, bytes, true, &ids, &n, &error) != EXIT_OK)
        die(error.text);
    free(ids);
    for (int32_t id = 0; (uint32_t)id < t->ids; id++) {
        const char *piece = tokenizer_piece(t, id, &length);
        for (size_t k = 0; k < length; k++)
            sum += (unsigned char)piece[k];
        sum += tokenizer_is_stop(t, id);
    }
    for (size_t k = 0; k < t->chat.system_bytes; k++)
        sum += (unsigned char)t->chat.system[k];
    return sum;
}

static void open_damaged(const struct unicode_tables *u, const char *blob, size_t bytes,
                         int count) {
    uint64_t seed = 1, sum = 0;
    size_t text_bytes;
    char *text = text_for(u, &text_bytes);
    int opened = 0;
    for (int i = 0; i < count; i++) {
        struct tokenizer t = {0};
        struct error error = {0};
        size_t cut = i % 8 == 0 ? (size_t)i * 7919 % bytes : bytes;
        char *copy = allocate(cut + 1);
        memcpy(copy, blob, cut);
        if (cut == bytes)
            damage(copy, bytes, &seed);
        if (tokenizer_open(&t, copy, cut, &error) == EXIT_OK) {
            opened++;
            sum += use(&t, text, text_bytes);
        }
        free(copy);
    }
    free(text);
    printf("opened %d of %d, sum %" PRIu64 "\n", opened, count, sum);
}

static void print_classes(const struct unicode_tables *u) {
    uint32_t start = 0;
    for (uint32_t point = 1; point <= 0x110000; point++)
        if (point == 0x110000 || unicode_class(u, point) != unicode_class(u, start)) {
            printf("%" PRIx32 " %" PRIx32 " %d\n", start, point - 1, (int)unicode_class(u, start));
            start = point;
        }
}

int main(int argc, char **argv) {
    struct tokenizer t = {0};
    struct error error = {0};
    size_t bytes;
    if (argc < 3)
        die("usage: harness BLOB encode|info|repeat|corrupt|classes");
    char *blob = read_file(argv[1], &bytes);
    if (tokenizer_open(&t, blob, bytes, &error) != EXIT_OK)
        die(error.text);
    if (strcmp(argv[2], "encode") == 0)
        encode_records(&t);
    else if (strcmp(argv[2], "info") == 0)
        print_info(&t);
    else if (strcmp(argv[2], "repeat") == 0 && argc == 5)
        time_repeated(&t, argv[3], strtoul(argv[4], NULL, 10));
    else if (strcmp(argv[2], "corrupt") == 0 && argc == 4)
        open_damaged(&t.unicode, blob, bytes, atoi(argv[3]));
    else if (strcmp(argv[2], "classes") == 0)
        print_classes(&t.unicode);
    else
        die("unknown command");
    free(blob);
    return 0;
}
