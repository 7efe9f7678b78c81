// See input.h.
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "input.h"

// Reads file to its end into *text, which grows.
static int input_read_all(FILE *file, const char *name, char **text, size_t *bytes,
                          struct error *error) {
    size_t size = 0;
    do {
        if (*bytes + 1 >= size) {
            size = size ? 2 * size : 1 << 16;
            char *larger = realloc(*text, size);
            if (!larger)
                return fail(error, EXIT_MEMORY, "%s: no memory for a text of %zu bytes", name,
                            size);
            *text = larger;
        }
        *bytes += fread(*text + *bytes, 1, size - 1 - *bytes, file);
        if (ferror(file))
            return fail(error, EXIT_INPUT, "%s: %s", name, strerror(errno));
        if (*bytes > INPUT_MAX)
            return fail(error, EXIT_INPUT, "%s: found more than %d bytes, expected %d at most",
                        name, INPUT_MAX, INPUT_MAX);
    } while (!feof(file));
    (*text)[*bytes] = '\0';
    return EXIT_OK;
}

static int input_read(const char *path, char **text, size_t *bytes, struct error *error) {
    bool is_stdin = strcmp(path, "-") == 0;
    FILE *file = is_stdin ? stdin : fopen(path, "rb");
    if (!file)
        return fail(error, EXIT_INPUT, "%.256s: %s", path, strerror(errno));
    *text = NULL;
    *bytes = 0;
    int code = input_read_all(file, is_stdin ? "stdin" : path, text, bytes, error);
    if (!is_stdin)
        fclose(file);
    if (code) {
        free(*text);
        *text = NULL;
    }
    return code;
}

static int input_line(FILE *file, char *line, size_t size, size_t *bytes, struct error *error) {
    size_t length = 0;
    int byte;
    while ((byte = getc(file)) != EOF && byte != '\n') {
        if (length == size)
            return fail(error, EXIT_INPUT,
                        "stdin: found a line of more than %zu bytes, expected %zu at most", size,
                        size);
        line[length++] = (char)byte;
    }
    if (byte == EOF && length == 0) {
        *bytes = SIZE_MAX;
        return EXIT_OK;
    }
    if (length > 0 && line[length - 1] == '\r')
        length--;
    *bytes = length;
    return EXIT_OK;
}

static bool input_is_separator(char byte) {
    return byte == ' ' || byte == ',' || (byte >= '\t' && byte <= '\r');
}

// The number that text [length] is; -1 if it is none, INT64_MAX if it is too large for any
// vocabulary.
static int64_t input_number(const char *text, size_t length) {
    int64_t number = 0;
    for (size_t i = 0; i < length; i++) {
        if (text[i] < '0' || text[i] > '9')
            return -1;
        number = number > INT32_MAX ? number : number * 10 + (text[i] - '0');
    }
    return number > INT32_MAX ? INT64_MAX : number;
}

static int input_ids(const char *source, const char *text, size_t bytes, int vocab_size,
                     int bad_code, int32_t **ids, size_t *count, struct error *error) {
    *count = 0;
    *ids = malloc((bytes / 2 + 1) * sizeof **ids); // a number and a separator take two bytes
    if (!*ids)
        return fail(error, EXIT_MEMORY, "%.256s: no memory for %zu bytes of ids", source, bytes);
    for (size_t i = 0; i < bytes;) {
        if (input_is_separator(text[i])) {
            i++;
            continue;
        }
        size_t end = i;
        while (end < bytes && !input_is_separator(text[end]))
            end++;
        int64_t id = input_number(text + i, end - i);
        if (id < 0 || id >= vocab_size) {
            int length = end - i < 32 ? (int)(end - i) : 32;
            free(*ids);
            *ids = NULL;
            return fail(error, id < 0 ? bad_code : EXIT_INPUT,
                        "%.256s: found '%.*s' after %zu ids, expected an id from 0 to %d", source,
                        length, text + i, *count, vocab_size - 1);
        }
        (*ids)[(*count)++] = (int32_t)id;
        i = end;
    }
    return EXIT_OK;
}
