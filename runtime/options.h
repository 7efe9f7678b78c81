// The command line as data: one table of commands, one of options; parsing, checking and --help are
// all made from them.
#ifndef OPTIONS_H
#define OPTIONS_H

#include <stdbool.h>
#include <stdio.h>
#include "error.h"
#include "parscale.h"

enum command {
    COMMAND_GENERATE,
    COMMAND_CHAT,
    COMMAND_SCORE,
    COMMAND_TOKENIZE,
    COMMAND_DETOKENIZE,
    COMMAND_BENCH,
    COMMAND_INFO,
    COMMAND_COUNT,
};

enum { OPTION_LIST_MAX = 16, MOST_STREAMS = 16 };

struct int_list {
    int count;
    int values[OPTION_LIST_MAX];
};

// What a command line says. Every option writes one field; what is not given has its default.
struct arguments {
    enum command command;
    bool help; // --help was asked for; command is COMMAND_COUNT if it came before a command
    const char *model, *isa, *device;
    int threads, streams;
    const char *prompt, *file, *ids; // NULL: not given
    int predict;                     // -1: no limit
    struct parscale_sampling sampling;
    bool ignore_eos, print_ids, no_cache;
    const char *system_prompt; // NULL: the model's own
    int top;
    struct int_list prompt_sizes, generate_sizes, depths; // count 0: not given
    int repetitions;
    const char *format;
    bool json;
};

// Reads argv. EXIT_USAGE with one line that names the option, what was found and what is allowed.
static int options_parse(struct arguments *arguments, int argc, char **argv, struct error *error);

// Whether text is a whole number from least to most; *value is it then.
static bool option_parse_int(const char *text, double least, double most, int *value);

// The help of one command, or of the whole program if command is COMMAND_COUNT.
static void options_help(FILE *file, enum command command);

static const char *command_name(enum command command);

#endif
