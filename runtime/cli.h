// The command line: what main() calls, and what its commands share. Relies on the C API alone.
#ifndef CLI_H
#define CLI_H

#include "clock.h"
#include "error.h"
#include "options.h"
#include "output.h"
#include "parscale.h"

// One run of the program.
struct session {
    struct arguments arguments;
    struct parscale *handle;
    const struct parscale_info *info;
    struct error error;
    size_t prefill_tokens, decode_tokens; // what the statistics tell
    double prefill_seconds, decode_seconds;
};

// Runs the program; returns its exit code. On failure stderr has one line that says why.
static int cli_main(int argc, char **argv);

// The commands. Each returns an exit code and, if that is not EXIT_OK, has filled session->error.
static int generate_command(struct session *session);
static int chat_command(struct session *session);
static int score_command(struct session *session);
static int tokenize_command(struct session *session);
static int detokenize_command(struct session *session);
static int bench_command(struct session *session);
static int info_command(struct session *session);

// Turns a failure of the C API into the session's error; returns code.
static int session_api_error(struct session *session, int code);

// The text of -p, -f or, if neither is given, stdin. *text is malloc'ed.
static int session_text(struct session *session, char **text, size_t *bytes);

// The ids of --ids, -p or -f: at least one, and no more than the context holds. *ids is malloc'ed.
static int session_prompt(struct session *session, int32_t **ids, size_t *count);

// Appends ids to the cache, and counts them and their time as prefill.
static int session_prefill(struct session *session, const int32_t *ids, size_t count);

// Writes to stderr which device was taken and why, if there was a choice.
static void session_device(const struct session *session);

// Writes the device, the session's statistics and the process' peak memory to stderr.
static void session_statistics(const struct session *session);

enum generation_end { GENERATION_LIMIT, GENERATION_STOP_ID, GENERATION_CONTEXT_FULL };

struct generation {
    enum generation_end end;
    int32_t pending;    // the last id printed, which is not in the cache yet; -1: none, or it was a
                        // stop id
    bool complete_line; // nothing was printed, or a line end last
};

// Chooses and prints tokens until a stop id, the limit of -n, or the end of the context.
static int generation_run(struct session *session, struct generation *generation);

#endif
