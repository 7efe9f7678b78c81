// The commands tokenize and detokenize. See cli.h.
#include <stdlib.h>
#include <string.h>
#include "cli.h"
#include "input.h"

// Fails if the model has no tokenizer.
static int tokenize_check(struct session *session) {
    if (session->info->has_tokenizer)
        return EXIT_OK;
    return fail(&session->error, EXIT_INPUT, "%s: the model has no tokenizer",
                command_name(session->arguments.command));
}

static int tokenize_command(struct session *session) {
    char *text = NULL;
    size_t bytes = 0, count = 0;
    int32_t *ids = NULL;
    int code = tokenize_check(session);
    if (code == EXIT_OK)
        code = session_text(session, &text, &bytes);
    if (code)
        return code;
    code = parscale_tokenize(session->handle, text, bytes, true, &ids, &count);
    free(text);
    if (code)
        return session_api_error(session, code);
    for (size_t i = 0; i < count && !ferror(stdout); i++)
        printf(i == 0 ? "%d" : " %d", ids[i]);
    putchar('\n');
    free(ids);
    return output_flush(&session->error);
}

// The ids of --ids, -f or stdin.
static int detokenize_ids(struct session *session, int32_t **ids, size_t *count) {
    const struct arguments *arguments = &session->arguments;
    int vocab_size = session->info->vocab_size;
    if (arguments->ids)
        return input_ids("--ids", arguments->ids, strlen(arguments->ids), vocab_size, EXIT_USAGE,
                         ids, count, &session->error);
    const char *path = arguments->file ? arguments->file : "-";
    char *text = NULL;
    size_t bytes = 0;
    int code = input_read(path, &text, &bytes, &session->error);
    if (code)
        return code;
    code = input_ids(strcmp(path, "-") == 0 ? "stdin" : path, text, bytes, vocab_size, EXIT_INPUT,
                     ids, count, &session->error);
    free(text);
    return code;
}

static int detokenize_command(struct session *session) {
    int32_t *ids = NULL;
    size_t count = 0, bytes = 0;
    int code = tokenize_check(session);
    if (code == EXIT_OK)
        code = detokenize_ids(session, &ids, &count);
    if (code)
        return code;
    struct utf8_writer writer = {.file = stdout};
    for (size_t i = 0; i < count && !ferror(stdout); i++) {
        const char *piece = parscale_piece(session->handle, ids[i], &bytes);
        if (piece)
            utf8_write(&writer, piece, bytes);
    }
    utf8_finish(&writer);
    free(ids);
    return output_flush(&session->error);
}
