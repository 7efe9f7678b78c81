// What goes to stdout and stderr: text that is always valid UTF-8, JSON strings, and the check that
// stdout took it all.
#ifndef OUTPUT_H
#define OUTPUT_H

#include <stddef.h>
#include <stdio.h>
#include "error.h"

// Writes bytes that arrive in pieces. A character is written when its last byte has come; what is
// not UTF-8 becomes U+FFFD, one for each maximal part of a character (Unicode 15, section 3.9).
struct utf8_writer {
    FILE *file;
    unsigned char held[4]; // an unfinished character
    unsigned held_count;
    unsigned expected; // its length in bytes
    char last;         // the last byte written, '\0' at first
};

static void utf8_write(struct utf8_writer *writer, const char *bytes, size_t n);

// Call at the end of the text: an unfinished character becomes U+FFFD.
static void utf8_finish(struct utf8_writer *writer);

// Writes text, which may hold anything, as a quoted JSON string.
static void json_write_string(FILE *file, const char *text);

// Flushes stdout. EXIT_OUTPUT if any write to it failed.
static int output_flush(struct error *error);

// Writes the error to stderr, in one line whatever its text holds.
static void output_error(const struct error *error);

#endif
