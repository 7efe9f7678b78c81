// Tests of runtime/output.c, TAP: U+FFFD as the Unicode Standard (section 3.9, tables 3-8 to 3-11
// of version 15) replaces what is not UTF-8, characters that arrive byte by byte, JSON strings, and
// what reaches stderr.
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "error.h"
#include "error.c"
#include "output.h"
#include "output.c"

#define R "\xef\xbf\xbd"

static int test_count, failures;

static void ok(bool passed, const char *name) {
    test_count++;
    failures += !passed;
    printf("%s %d - %s\n", passed ? "ok" : "not ok", test_count, name);
}

// What a writer makes of bytes [n] that come `step` at a time; malloc'ed.
static char *written(const char *bytes, size_t n, size_t step) {
    char *text = NULL;
    size_t size;
    struct utf8_writer writer = {.file = open_memstream(&text, &size)};
    for (size_t i = 0; i < n; i += step)
        utf8_write(&writer, bytes + i, n - i < step ? n - i : step);
    utf8_finish(&writer);
    fclose(writer.file);
    return text;
}

static void test_replacement(void) {
    static const struct {
        const char *name, *bytes, *expected;
    } cases[] = {
        {"ASCII", "plain", "plain"},
        {"2, 3 and 4 bytes", "\xc3\xa9\xe6\x97\xa5\xf0\x9f\x91\x8d",
         "\xc3\xa9\xe6\x97\xa5\xf0\x9f\x91\x8d"},
        {"the ends of the ranges",
         "\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf",
         "\xc2\x80\xe0\xa0\x80\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xf4\x8f\xbf\xbf"},
        {"table 3-8, overlong forms", "\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41", R R R R R R R R "A"},
        {"table 3-9, surrogates", "\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41", R R R R R R R R "A"},
        {"table 3-10, other ill-formed sequences", "\xf4\x91\x92\x93\xff\x41\x80\xbf\x42",
         R R R R R "A" R R "B"},
        {"table 3-11, truncated sequences", "\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41", R R R R "A"},
        {"an end inside a character", "a\xf0\x9f\x91", "a" R},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        bool equal = true;
        for (size_t step = 1; step < 6; step++) {
            char *text = written(cases[i].bytes, strlen(cases[i].bytes), step);
            equal = equal && strcmp(text, cases[i].expected) == 0;
            free(text);
        }
        ok(equal, cases[i].name);
    }
}

static void test_streaming(void) {
    char *text = NULL;
    size_t size;
    struct utf8_writer writer = {.file = open_memstream(&text, &size)};
    bool held = true;
    for (int i = 0; i < 3; i++) {
        utf8_write(&writer, &"\xf0\x9f\x91\x8d"[i], 1);
        fflush(writer.file);
        held = held && size == 0;
    }
    utf8_write(&writer, "\x8d", 1);
    fflush(writer.file);
    ok(held && size == 4, "a character is held back until it is complete");
    ok(writer.last == '\x8d', "the last byte is known");
    fclose(writer.file);
    free(text);
}

static void test_json(void) {
    char *text = NULL;
    size_t size;
    FILE *file = open_memstream(&text, &size);
    json_write_string(file, "a\"b\\c\n\x01\xc3\xa9\xff/");
    fclose(file);
    ok(strcmp(text, "\"a\\\"b\\\\c\\u000a\\u0001\xc3\xa9" R "/\"") == 0,
       "a JSON string (RFC 8259)");
    free(text);
}

// Runs output_error with stderr in a pipe.
static void test_error_line(void) {
    struct error error;
    char line[1024];
    int ends[2], saved = dup(STDERR_FILENO);
    fail(&error, EXIT_USAGE, "found '%s'", "a\nb\x1b[31m\xff");
    if (saved < 0 || pipe(ends) != 0 || dup2(ends[1], STDERR_FILENO) < 0)
        exit(1);
    output_error(&error);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(ends[1]);
    ssize_t length = read(ends[0], line, sizeof line - 1);
    close(ends[0]);
    line[length < 0 ? 0 : length] = '\0';
    ok(strcmp(line, "parscale: found 'a?b?[31m" R "'\n") == 0, "an error is one line of UTF-8");
}

int main(void) {
    test_replacement();
    test_streaming();
    test_json();
    test_error_line();
    struct error error;
    ok(output_flush(&error) == EXIT_OK, "stdout takes what is written");
    printf("1..%d\n", test_count);
    return failures > 0;
}
