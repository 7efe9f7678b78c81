// What goes in: files, stdin and lists of ids.
#ifndef INPUT_H
#define INPUT_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include "error.h"

enum { INPUT_MAX = 64 << 20 }; // bytes of one text, so that an endless file ends

// Reads path, or stdin if it is "-", to its end. *text [*bytes] is malloc'ed and followed by '\0'.
// EXIT_INPUT if it cannot be read or is longer than INPUT_MAX.
static int input_read(const char *path, char **text, size_t *bytes, struct error *error);

// Reads a line into line [size], without its line end; *bytes is its length, SIZE_MAX at the end
// of the file. EXIT_INPUT if the line is longer.
static int input_line(FILE *file, char *line, size_t size, size_t *bytes, struct error *error);

// Reads ids with white space or commas between them from text [bytes]. *ids [*count] is malloc'ed.
// Fails with bad_code if something is not a number, EXIT_INPUT if one is not below vocab_size.
// source names the text in messages.
static int input_ids(const char *source, const char *text, size_t bytes, int vocab_size,
                     int bad_code, int32_t **ids, size_t *count, struct error *error);

#endif
