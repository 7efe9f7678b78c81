// See options.h.
#include <errno.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "options.h"

struct command_row {
    const char *name, *synopsis, *help;
    const char *sources; // the options of which one may be given, to say what to work on
    bool needs_source;
};

// clang-format off
static const struct command_row command_table[COMMAND_COUNT] = {
    [COMMAND_GENERATE] = {"generate", "(-p TEXT | -f FILE | --ids IDS) [options]",
        "continue a prompt; the new text goes to stdout as it comes", "-p, -f and --ids", true},
    [COMMAND_CHAT] = {"chat", "[options]",
        "talk with the model, one line a turn; /clear starts over, /streams P changes P, /exit ends",
        NULL, false},
    [COMMAND_SCORE] = {"score", "(-p TEXT | -f FILE | --ids IDS) [options]",
        "print position, id and log-probability of every token", "-p, -f and --ids", true},
    [COMMAND_TOKENIZE] = {"tokenize", "[-p TEXT | -f FILE] [options]",
        "turn text, from stdin if none is given, into ids", "-p and -f", false},
    [COMMAND_DETOKENIZE] = {"detokenize", "[--ids IDS | -f FILE] [options]",
        "turn ids, from stdin if none are given, into text", "-f and --ids", false},
    [COMMAND_BENCH] = {"bench", "[options]",
        "measure prefill and decode, and compare with the memory's bandwidth", NULL, false},
    [COMMAND_INFO] = {"info", "[options]", "tell what the engine and its model are", NULL, false},
};
// clang-format on

enum option_kind {
    OPTION_FLAG,   // bool, takes no value
    OPTION_TEXT,   // const char *
    OPTION_CHOICE, // const char *, one of the words of `choices`
    OPTION_INT,    // int
    OPTION_FLOAT,  // float
    OPTION_SEED,   // uint64_t, any
    OPTION_LIST,   // struct int_list, numbers with commas between them
};

struct option_row {
    const char *brief, *name; // brief may be NULL
    const char *value;        // how the help calls the value; NULL for a flag
    enum option_kind kind;
    size_t field;         // offset in struct arguments
    unsigned commands;    // bit 1 << COMMAND_X is set if COMMAND_X has the option
    const char *fallback; // the default, read like a value; NULL: nothing, 0 or false
    double least, most;   // of numbers
    const char *choices;
    const char *help;
};

enum {
    FOR_GENERATE = 1 << COMMAND_GENERATE,
    FOR_CHAT = 1 << COMMAND_CHAT,
    FOR_SCORE = 1 << COMMAND_SCORE,
    FOR_TOKENIZE = 1 << COMMAND_TOKENIZE,
    FOR_DETOKENIZE = 1 << COMMAND_DETOKENIZE,
    FOR_BENCH = 1 << COMMAND_BENCH,
    FOR_INFO = 1 << COMMAND_INFO,
    FOR_ALL = (1 << COMMAND_COUNT) - 1,
    FOR_SAMPLING = FOR_GENERATE | FOR_CHAT,
    FOR_COMPUTING = FOR_GENERATE | FOR_CHAT | FOR_SCORE | FOR_BENCH | FOR_INFO,
};

// clang-format off
static const struct option_row option_table[] = {
    {"-p", "--prompt", "TEXT", OPTION_TEXT, offsetof(struct arguments, prompt),
     FOR_GENERATE | FOR_SCORE | FOR_TOKENIZE,
     NULL, 0, 0, NULL, "text to work on; <|im_start|> and the like become their ids"},
    {"-f", "--file", "FILE", OPTION_TEXT, offsetof(struct arguments, file),
     FOR_GENERATE | FOR_SCORE | FOR_TOKENIZE,
     NULL, 0, 0, NULL, "read the text from FILE, - is stdin"},
    {"-f", "--file", "FILE", OPTION_TEXT, offsetof(struct arguments, file), FOR_DETOKENIZE,
     NULL, 0, 0, NULL, "read the ids from FILE, - is stdin"},
    {NULL, "--ids", "IDS", OPTION_TEXT, offsetof(struct arguments, ids),
     FOR_GENERATE | FOR_SCORE | FOR_DETOKENIZE,
     NULL, 0, 0, NULL, "ids with spaces or commas between them, such as \"1 2 3\""},
    {NULL, "--system", "TEXT", OPTION_TEXT, offsetof(struct arguments, system_prompt), FOR_CHAT,
     NULL, 0, 0, NULL, "system prompt in place of the model's own"},
    {"-n", "--predict", "N", OPTION_INT, offsetof(struct arguments, predict), FOR_SAMPLING,
     "-1", -1, INT_MAX, NULL, "tokens at most; -1: until a stop id or a full context"},
    {NULL, "--temp", "X", OPTION_FLOAT, offsetof(struct arguments, sampling.temperature),
     FOR_SAMPLING,
     "0.8", 0, 1000, NULL, "temperature; 0: always the best id"},
    {NULL, "--top-k", "K", OPTION_INT, offsetof(struct arguments, sampling.top_k), FOR_SAMPLING,
     "40", 0, INT_MAX, NULL, "choose among the K best; 0: all"},
    {NULL, "--top-p", "X", OPTION_FLOAT, offsetof(struct arguments, sampling.top_p), FOR_SAMPLING,
     "0.95", 0, 1, NULL, "choose among the best that together reach X; 1: all"},
    {NULL, "--min-p", "X", OPTION_FLOAT, offsetof(struct arguments, sampling.min_p), FOR_SAMPLING,
     "0.05", 0, 1, NULL, "leave out what is below X times the best; 0: nothing"},
    {NULL, "--repeat-penalty", "X", OPTION_FLOAT,
     offsetof(struct arguments, sampling.repeat_penalty), FOR_SAMPLING,
     "1.0", 0.01, 100, NULL, "make each of the last 64 ids less likely; 1: off"},
    {"-s", "--seed", "SEED", OPTION_SEED, offsetof(struct arguments, sampling.seed), FOR_SAMPLING,
     "0", 0, 0, NULL, "seed of the choice; the same seed gives the same text"},
    {NULL, "--ignore-eos", NULL, OPTION_FLAG, offsetof(struct arguments, ignore_eos), FOR_GENERATE,
     NULL, 0, 0, NULL, "go on after a stop id"},
    {NULL, "--print-ids", NULL, OPTION_FLAG, offsetof(struct arguments, print_ids), FOR_GENERATE,
     NULL, 0, 0, NULL, "print ids instead of text, the stop id too"},
    {NULL, "--top", "N", OPTION_INT, offsetof(struct arguments, top), FOR_SCORE,
     "0", 0, 1 << 24, NULL, "add the N best next tokens to each line, as id:log-probability"},
    {"-p", "--n-prompt", "N,...", OPTION_LIST, offsetof(struct arguments, prompt_sizes), FOR_BENCH,
     NULL, 0, INT_MAX, NULL, "prefill N tokens, 0: no such test (default 512 or the context)"},
    {"-n", "--n-gen", "N,...", OPTION_LIST, offsetof(struct arguments, generate_sizes), FOR_BENCH,
     NULL, 0, INT_MAX, NULL, "decode N tokens, 0: no such test (default 128 or the context)"},
    {"-d", "--n-depth", "N,...", OPTION_LIST, offsetof(struct arguments, depths), FOR_BENCH,
     "0", 0, INT_MAX, NULL, "tokens in the cache before each test"},
    {"-r", "--repetitions", "N", OPTION_INT, offsetof(struct arguments, repetitions), FOR_BENCH,
     "5", 1, 1000, NULL, "times that each test is run, besides one to warm up"},
    {"-o", "--output", "FORMAT", OPTION_CHOICE, offsetof(struct arguments, format), FOR_BENCH,
     "md", 0, 0, "md csv json", "md, csv or json"},
    {NULL, "--json", NULL, OPTION_FLAG, offsetof(struct arguments, json), FOR_INFO,
     NULL, 0, 0, NULL, "print JSON"},
    {"-m", "--model", "FILE", OPTION_TEXT, offsetof(struct arguments, model), FOR_ALL,
     NULL, 0, 0, NULL, "the pack (default: model.psc beside this program)"},
    {"-t", "--threads", "N", OPTION_INT, offsetof(struct arguments, threads), FOR_COMPUTING,
     "0", 0, 1024, NULL, "threads, 0: one per usable processor; results do not depend on it"},
    {NULL, "--streams", "P", OPTION_INT, offsetof(struct arguments, streams), FOR_COMPUTING,
     "0", 0, MOST_STREAMS, NULL, "parallel streams, of those info lists; 0: the most"},
    {NULL, "--device", "NAME", OPTION_CHOICE, offsetof(struct arguments, device), FOR_COMPUTING,
     "auto", 0, 0, "cpu auto cuda", "cpu, cuda, or auto: a GPU if one can run the model"},
    {NULL, "--no-cache", NULL, OPTION_FLAG, offsetof(struct arguments, no_cache), FOR_COMPUTING,
     NULL, 0, 0, NULL, "compile the GPU's kernels even if they are in the cache"},
    {NULL, "--isa", "NAME", OPTION_CHOICE, offsetof(struct arguments, isa), FOR_COMPUTING,
     NULL, 0, 0, "plain avx2 avx512 avx512bf16 neon",
     "plain, avx2, avx512, avx512bf16 or neon (default: the fastest)"},
    {"-h", "--help", NULL, OPTION_FLAG, offsetof(struct arguments, help), FOR_ALL,
     NULL, 0, 0, NULL, "print this"},
};
// clang-format on

enum { OPTION_ROWS = sizeof option_table / sizeof option_table[0] };

static const char *command_name(enum command command) {
    return command_table[command].name;
}

static bool option_has_name(const struct option_row *row, const char *name) {
    return strcmp(row->name, name) == 0 || (row->brief && strcmp(row->brief, name) == 0);
}

static bool option_parse_int(const char *text, double least, double most, int *value) {
    char *end;
    errno = 0;
    long number = strtol(text, &end, 10);
    bool plain = (*text >= '0' && *text <= '9') || *text == '-';
    *value = (int)number;
    return plain && end != text && *end == '\0' && errno == 0 && (double)number >= least &&
           (double)number <= most;
}

static bool option_parse_float(const char *text, double least, double most, float *value) {
    char *end;
    double number = strtod(text, &end);
    bool plain = (*text >= '0' && *text <= '9') || *text == '.' || *text == '-';
    *value = (float)number;
    return plain && end != text && *end == '\0' && number >= least && number <= most;
}

static bool option_parse_seed(const char *text, uint64_t *value) {
    char *end;
    errno = 0;
    *value = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0;
}

static bool option_parse_list(const char *text, double least, double most, struct int_list *list) {
    for (list->count = 0; list->count < OPTION_LIST_MAX; text++) {
        char number[16];
        size_t length = strcspn(text, ",");
        if (length >= sizeof number)
            return false;
        memcpy(number, text, length);
        number[length] = '\0';
        if (!option_parse_int(number, least, most, &list->values[list->count++]))
            return false;
        text += length;
        if (*text == '\0')
            return true;
    }
    return false;
}

// Whether text is one of the words of choices.
static bool option_is_choice(const char *choices, const char *text) {
    size_t length = strlen(text);
    for (const char *at = choices; length > 0 && (at = strstr(at, text)) != NULL; at += length) {
        bool starts = at == choices || at[-1] == ' ';
        if (starts && (at[length] == ' ' || at[length] == '\0'))
            return true;
    }
    return false;
}

// Writes text to the field of row; false if it is not allowed.
static bool option_store(struct arguments *arguments, const struct option_row *row,
                         const char *text) {
    void *field = (char *)arguments + row->field;
    switch (row->kind) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return true;
    case OPTION_CHOICE:
        *(const char **)field = text;
        return option_is_choice(row->choices, text);
    case OPTION_INT:
        return option_parse_int(text, row->least, row->most, field);
    case OPTION_FLOAT:
        return option_parse_float(text, row->least, row->most, field);
    case OPTION_SEED:
        return option_parse_seed(text, field);
    case OPTION_LIST:
        return option_parse_list(text, row->least, row->most, field);
    case OPTION_TEXT:
        break;
    }
    *(const char **)field = text;
    return true;
}

// What option `row` allows, in words.
static void option_expected(const struct option_row *row, char *text, size_t size) {
    if (row->kind == OPTION_CHOICE)
        snprintf(text, size, "one of %s", row->choices);
    else if (row->kind == OPTION_SEED)
        snprintf(text, size, "a whole number from 0 to %llu", (unsigned long long)UINT64_MAX);
    else if (row->kind == OPTION_FLOAT)
        snprintf(text, size, "a number from %g to %g", row->least, row->most);
    else if (row->kind == OPTION_INT)
        snprintf(text, size, "a whole number from %.0f to %.0f", row->least, row->most);
    else if (row->kind == OPTION_LIST)
        snprintf(text, size, "1 to %d whole numbers from %.0f to %.0f with commas between",
                 OPTION_LIST_MAX, row->least, row->most);
    else
        snprintf(text, size, "%s", row->value);
}

static int option_bad_value(const struct option_row *row, const char *name, const char *value,
                            struct error *error) {
    char expected[128];
    option_expected(row, expected, sizeof expected);
    if (!value)
        return fail(error, EXIT_USAGE, "%s: found no value, expected %s", name, expected);
    return fail(error, EXIT_USAGE, "%s: found '%.64s', expected %s", name, value, expected);
}

// The option `name` of the command.
static int option_find(enum command command, const char *name, const struct option_row **found,
                       struct error *error) {
    unsigned others = 0;
    for (int i = 0; i < OPTION_ROWS; i++) {
        if (!option_has_name(&option_table[i], name))
            continue;
        *found = &option_table[i];
        if (option_table[i].commands >> command & 1)
            return EXIT_OK;
        others |= option_table[i].commands;
    }
    if (!others)
        return fail(error, EXIT_USAGE, "%s: found unknown option '%.64s', see %s --help",
                    command_name(command), name, command_name(command));
    char names[128] = "";
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (others >> i & 1)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s",
                     *names ? ", " : "", command_table[i].name);
    }
    return fail(error, EXIT_USAGE, "%s: found option '%.64s', which is for %s",
                command_name(command), name, names);
}

// Reads argument *index of argv and its value, and moves *index past them.
static int option_parse(struct arguments *arguments, int argc, char **argv, int *index,
                        struct error *error) {
    char *argument = argv[(*index)++];
    if (argument[0] != '-' || argument[1] == '\0')
        return fail(error, EXIT_USAGE, "%s: found '%.64s', expected an option",
                    command_name(arguments->command), argument);
    char name[32];
    size_t length = strncmp(argument, "--", 2) == 0 ? strcspn(argument, "=") : strlen(argument);
    const char *value = argument[length] == '=' ? argument + length + 1 : NULL;
    snprintf(name, sizeof name, "%.*s", (int)(length < sizeof name ? length : sizeof name),
             argument);
    const struct option_row *row = NULL;
    int code = option_find(arguments->command, name, &row, error);
    if (code)
        return code;
    if (row->kind == OPTION_FLAG && value)
        return fail(error, EXIT_USAGE, "%s: found '%.64s', expected no value", name, value);
    if (row->kind != OPTION_FLAG && !value && *index < argc)
        value = argv[(*index)++];
    if ((row->kind != OPTION_FLAG && !value) || !option_store(arguments, row, value))
        return option_bad_value(row, name, value, error);
    return EXIT_OK;
}

static int options_parse_command(struct arguments *arguments, const char *name,
                                 struct error *error) {
    if (name && (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0)) {
        arguments->help = true;
        return EXIT_OK;
    }
    char names[128] = "";
    for (int i = 0; i < COMMAND_COUNT; i++) {
        if (name && strcmp(name, command_table[i].name) == 0) {
            arguments->command = (enum command)i;
            return EXIT_OK;
        }
        snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", *names ? ", " : "",
                 command_table[i].name);
    }
    if (!name)
        return fail(error, EXIT_USAGE, "found no command, expected %s or --help", names);
    return fail(error, EXIT_USAGE, "found command '%.64s', expected %s or --help", name, names);
}

// Whether what to work on is given, and once.
static int options_check_source(const struct arguments *arguments, struct error *error) {
    const struct command_row *row = &command_table[arguments->command];
    int given = !!arguments->prompt + !!arguments->file + !!arguments->ids;
    if (given > 1)
        return fail(error, EXIT_USAGE, "%s: found %d of %s, expected one", row->name, given,
                    row->sources);
    if (given == 0 && row->needs_source)
        return fail(error, EXIT_USAGE, "%s: found none of %s, expected one", row->name,
                    row->sources);
    return EXIT_OK;
}

static int options_parse(struct arguments *arguments, int argc, char **argv, struct error *error) {
    *arguments = (struct arguments){.command = COMMAND_COUNT};
    for (int i = 0; i < OPTION_ROWS; i++) {
        if (option_table[i].fallback)
            option_store(arguments, &option_table[i], option_table[i].fallback);
    }
    int code = options_parse_command(arguments, argc > 1 ? argv[1] : NULL, error);
    for (int i = 2; i < argc && code == EXIT_OK && !arguments->help;)
        code = option_parse(arguments, argc, argv, &i, error);
    if (code || arguments->help)
        return code;
    return options_check_source(arguments, error);
}

static void option_help(FILE *file, const struct option_row *row) {
    char names[64];
    snprintf(names, sizeof names, "%s%s%s %s", row->brief ? row->brief : "  ",
             row->brief ? ", " : "  ", row->name, row->value ? row->value : "");
    fprintf(file, "  %-26s %s", names, row->help);
    if (row->fallback)
        fprintf(file, " (default %s)", row->fallback);
    fputc('\n', file);
}

static void options_help(FILE *file, enum command command) {
    if (command == COMMAND_COUNT) {
        fprintf(file, "usage: engine COMMAND [options]\n\n");
        for (int i = 0; i < COMMAND_COUNT; i++)
            fprintf(file, "  %-12s %s\n", command_table[i].name, command_table[i].help);
        fprintf(file, "\nengine COMMAND --help lists the options of a command.\n");
        return;
    }
    const struct command_row *row = &command_table[command];
    fprintf(file, "usage: engine %s %s\n\n%s\n\n", row->name, row->synopsis, row->help);
    for (int i = 0; i < OPTION_ROWS; i++) {
        if (option_table[i].commands >> command & 1)
            option_help(file, &option_table[i]);
    }
}
