// The command generate, and the loop that it shares with chat. See cli.h.
#include <stdlib.h>
#include <unistd.h>
#include "cli.h"

// Prints one chosen id: its text, or its number after a space.
static void generation_print(struct session *session, struct utf8_writer *text, int32_t id,
                             bool first) {
    if (session->arguments.print_ids) {
        printf(first ? "%d" : " %d", id);
        return;
    }
    size_t bytes = 0;
    const char *piece = parscale_piece(session->handle, id, &bytes);
    if (piece)
        utf8_write(text, piece, bytes);
}

// Chooses and prints one id and, unless that was the last, appends it; *ended tells.
static int generation_step(struct session *session, struct utf8_writer *text, int produced,
                           struct generation *generation, bool *ended) {
    const struct arguments *arguments = &session->arguments;
    int32_t id = parscale_sample(session->handle, &arguments->sampling);
    bool stop = !arguments->ignore_eos && parscale_is_stop(session->handle, id);
    if (!stop || arguments->print_ids)
        generation_print(session, text, id, produced == 0);
    generation->pending = stop ? -1 : id;
    *ended = true;
    if (stop)
        generation->end = GENERATION_STOP_ID;
    else if (arguments->predict >= 0 && produced + 1 >= arguments->predict)
        generation->end = GENERATION_LIMIT;
    else if (parscale_position(session->handle) == session->info->context)
        generation->end = GENERATION_CONTEXT_FULL;
    else
        *ended = false;
    if (*ended)
        utf8_finish(text);
    int code = output_flush(&session->error);
    if (code || *ended)
        return code;
    code = parscale_decode(session->handle, id);
    session->decode_tokens++;
    return code ? session_api_error(session, code) : EXIT_OK;
}

static int generation_run(struct session *session, struct generation *generation) {
    struct utf8_writer text = {.file = stdout};
    *generation = (struct generation){.end = GENERATION_LIMIT, .pending = -1};
    bool ended = session->arguments.predict == 0;
    double start = clock_seconds();
    int code = EXIT_OK;
    for (int produced = 0; !ended && code == EXIT_OK; produced++)
        code = generation_step(session, &text, produced, generation, &ended);
    session->decode_seconds += clock_seconds() - start;
    generation->complete_line = text.last == '\n' || text.last == '\0';
    return code;
}

static int generate_command(struct session *session) {
    static const char *const endings[] = {
        [GENERATION_LIMIT] = "the limit of -n",
        [GENERATION_STOP_ID] = "a stop id",
        [GENERATION_CONTEXT_FULL] = "the context is full",
    };
    if (!session->info->has_tokenizer && !session->arguments.print_ids)
        return fail(&session->error, EXIT_INPUT,
                    "generate: the model has no tokenizer, expected "
                    "--ids and --print-ids");
    int32_t *ids = NULL;
    size_t count = 0;
    int code = session_prompt(session, &ids, &count);
    if (code)
        return code;
    code = session_prefill(session, ids, count);
    free(ids);
    struct generation generation = {.complete_line = true};
    if (code == EXIT_OK)
        code = generation_run(session, &generation);
    // Ids are a line. Text stays as the model made it, but a terminal's prompt gets a line of its
    // own.
    if (session->arguments.print_ids || (isatty(STDOUT_FILENO) && !generation.complete_line))
        putchar('\n');
    if (code == EXIT_OK)
        code = output_flush(&session->error);
    if (code == EXIT_OK) {
        session_statistics(session);
        fprintf(stderr, "ended:   %s\n", endings[generation.end]);
    }
    return code;
}
