// One error: an exit code and one line of text that names the file, the field, what was found and
// what was expected. Functions that can fail take a struct error and return its code, 0 for
// success.
#ifndef ERROR_H
#define ERROR_H

enum exit_code {
    EXIT_OK = 0,
    EXIT_INTERNAL = 1, // a bug in this program
    EXIT_USAGE = 2,    // unknown option, bad value, a spec or a checkpoint that is refused
    EXIT_PACK = 3,     // model.psc or a file it is made from: missing, damaged, of another plan
    EXIT_MEMORY = 4,   // the memory plan could not be had
    EXIT_INPUT = 5,    // a prompt that does not fit, an id outside the vocabulary
    EXIT_OUTPUT = 6,   // stdout closed, disk full
    EXIT_DEVICE = 7,   // no such device, or it failed
};

struct error {
    int code;       // enum exit_code
    char text[512]; // one line, no newline
};

// Fills *error and returns code, so that a caller can write `return fail(...)`.
__attribute__((format(printf, 3, 4))) static int fail(struct error *error, int code,
                                                      const char *format, ...);

#endif
