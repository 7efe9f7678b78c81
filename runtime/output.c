// See output.h.
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include "output.h"

// The length of the character that starts with byte; 0 if none does.
static unsigned utf8_length(unsigned char byte) {
    if (byte < 0x80)
        return 1;
    if (byte < 0xc2 || byte > 0xf4)
        return 0;
    return byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

// Whether byte may follow the held ones. The second byte is limited further after E0 and F0
// (overlong forms), ED (surrogates) and F4 (past U+10FFFF).
static bool utf8_continues(const struct utf8_writer *writer, unsigned char byte) {
    unsigned first = writer->held_count == 1 ? writer->held[0] : 0;
    unsigned least = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    unsigned most = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
    return byte >= least && byte <= most;
}

static void utf8_emit(struct utf8_writer *writer, const void *bytes, size_t n) {
    fwrite(bytes, 1, n, writer->file);
    writer->last = ((const char *)bytes)[n - 1];
    writer->held_count = 0;
}

static void utf8_finish(struct utf8_writer *writer) {
    if (writer->held_count > 0)
        utf8_emit(writer, "\xef\xbf\xbd", 3);
}

static void utf8_write(struct utf8_writer *writer, const char *bytes, size_t n) {
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (writer->held_count > 0 && !utf8_continues(writer, byte))
            utf8_finish(writer);
        if (writer->held_count == 0)
            writer->expected = utf8_length(byte);
        writer->held[writer->held_count++] = byte;
        if (writer->expected == 0)
            utf8_finish(writer);
        else if (writer->held_count == writer->expected)
            utf8_emit(writer, writer->held, writer->held_count);
    }
}

static void json_write_string(FILE *file, const char *text) {
    struct utf8_writer writer = {.file = file};
    fputc('"', file);
    for (; *text; text++) {
        unsigned char byte = (unsigned char)*text;
        char escaped[8] = {*text};
        if (byte < 0x20)
            snprintf(escaped, sizeof escaped, "\\u%04x", byte);
        else if (byte == '"' || byte == '\\')
            snprintf(escaped, sizeof escaped, "\\%c", byte);
        utf8_write(&writer, escaped, strlen(escaped));
    }
    utf8_finish(&writer);
    fputc('"', file);
}

static int output_flush(struct error *error) {
    errno = 0;
    bool failed = fflush(stdout) != 0;
    if (failed || ferror(stdout))
        return fail(error, EXIT_OUTPUT, "stdout: %s", errno ? strerror(errno) : "a write failed");
    return EXIT_OK;
}

static void output_error(const struct error *error) {
    char line[sizeof error->text];
    snprintf(line, sizeof line, "%s", error->text);
    for (char *at = line; *at; at++) {
        if ((unsigned char)*at < 0x20 || *at == 0x7f)
            *at = '?';
    }
    struct utf8_writer writer = {.file = stderr};
    utf8_write(&writer, "parscale: ", 10);
    utf8_write(&writer, line, strlen(line));
    utf8_finish(&writer);
    fputc('\n', stderr);
}
