// The command chat: a conversation in ChatML,
//     <|im_start|>ROLE\nTEXT<|im_end|>\n
// a block a turn. Only the two markers are special; whatever stands between them is tokenized as
// plain text, so a marker that a user types is text. See cli.h.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "cli.h"
#include "input.h"

enum { CHAT_LINE_MAX = 1 << 20 };

struct chat {
    struct session *session;
    bool interactive;   // stdin is a terminal
    int32_t start, end; // <|im_start|> and <|im_end|>
    int32_t pending;    // the last id of a reply that was cut; -1: none
    int32_t *turn;      // [context], the ids to append next
    size_t turn_count;  // may be more than the context: then they do not fit
    char *line;         // [CHAT_LINE_MAX]
};

static void chat_add_id(struct chat *chat, int32_t id) {
    if (chat->turn_count < (size_t)chat->session->info->context)
        chat->turn[chat->turn_count] = id;
    chat->turn_count++;
}

static int chat_add_text(struct chat *chat, const char *text, size_t bytes) {
    int32_t *ids = NULL;
    size_t count = 0;
    int code = parscale_tokenize(chat->session->handle, text, bytes, false, &ids, &count);
    if (code)
        return session_api_error(chat->session, code);
    for (size_t i = 0; i < count; i++)
        chat_add_id(chat, ids[i]);
    free(ids);
    return EXIT_OK;
}

// <|im_start|>ROLE\nTEXT. Role and text are tokenized together, as the published templates do.
static int chat_open_block(struct chat *chat, const char *role, const char *text, size_t bytes) {
    size_t role_bytes = strlen(role);
    char *block = malloc(role_bytes + 1 + bytes);
    if (!block)
        return fail(&chat->session->error, EXIT_MEMORY, "chat: no memory for a turn");
    memcpy(block, role, role_bytes);
    block[role_bytes] = '\n';
    memcpy(block + role_bytes + 1, text, bytes);
    chat_add_id(chat, chat->start);
    int code = chat_add_text(chat, block, role_bytes + 1 + bytes);
    free(block);
    return code;
}

// <|im_end|>\n
static int chat_close_block(struct chat *chat) {
    chat_add_id(chat, chat->end);
    return chat_add_text(chat, "\n", 1);
}

static int chat_system_block(struct chat *chat) {
    const char *text = chat->session->arguments.system_prompt;
    if (!text)
        text = parscale_system_prompt(chat->session->handle);
    if (!text)
        return EXIT_OK;
    int code = chat_open_block(chat, "system", text, strlen(text));
    return code ? code : chat_close_block(chat);
}

// Everything from the end of the last reply to the start of the next.
static int chat_compose(struct chat *chat, const char *text, size_t bytes) {
    chat->turn_count = 0;
    if (chat->pending >= 0)
        chat_add_id(chat, chat->pending);
    int code = parscale_position(chat->session->handle) == 0 ? chat_system_block(chat)
                                                             : chat_close_block(chat);
    if (code == EXIT_OK)
        code = chat_open_block(chat, "user", text, bytes);
    if (code == EXIT_OK)
        code = chat_close_block(chat);
    return code ? code : chat_open_block(chat, "assistant", "", 0);
}

static int chat_turn(struct chat *chat, const char *text, size_t bytes) {
    struct session *session = chat->session;
    int context = session->info->context, used = parscale_position(session->handle);
    int code = chat_compose(chat, text, bytes);
    if (code)
        return code;
    if (chat->turn_count > (size_t)(context - used))
        return fail(&session->error, EXIT_INPUT,
                    "chat: found a turn of %zu tokens, expected %d at most: %d of the context's %d "
                    "are used; /clear starts over",
                    chat->turn_count, context - used, used, context);
    code = session_prefill(session, chat->turn, chat->turn_count);
    if (code)
        return code;
    struct generation generation;
    code = generation_run(session, &generation);
    chat->pending = generation.pending;
    if (!generation.complete_line)
        putchar('\n');
    if (code == EXIT_OK)
        code = output_flush(&session->error);
    if (code == EXIT_OK && generation.end == GENERATION_CONTEXT_FULL)
        return fail(
            &session->error, EXIT_INPUT,
            "chat: the reply was cut, all %d tokens of the context are used; /clear starts over",
            context);
    return code;
}

// The command /streams P: the turns so far are prefilled again, a cache holds for one P alone.
static int chat_streams(struct chat *chat, const char *text, size_t bytes) {
    struct session *session = chat->session;
    char number[8];
    int streams;
    snprintf(number, sizeof number, "%.*s", (int)(bytes < sizeof number ? bytes : sizeof number),
             text);
    if (!option_parse_int(number, 0, MOST_STREAMS, &streams))
        return fail(&session->error, EXIT_USAGE,
                    "/streams: found '%s', expected a whole number from 0 to %d", number,
                    MOST_STREAMS);
    double start = clock_seconds();
    int held = parscale_position(session->handle), before = session->info->streams;
    int code = parscale_set_streams(session->handle, streams);
    if (code)
        return session_api_error(session, code);
    if (session->info->streams != before) {
        session->prefill_seconds += clock_seconds() - start;
        session->prefill_tokens += (size_t)held;
    }
    fprintf(stderr, "streams: %d\n", session->info->streams);
    return EXIT_OK;
}

static bool chat_is(const char *line, size_t bytes, const char *command) {
    return bytes == strlen(command) && memcmp(line, command, bytes) == 0;
}

// A line that is an order to the chat itself. *done tells whether it was one.
static int chat_order(struct chat *chat, size_t bytes, bool *ended, bool *done) {
    static const char streams[] = "/streams ";
    const size_t streams_bytes = sizeof streams - 1;
    const char *line = chat->line;
    *done = true;
    if (bytes == SIZE_MAX || chat_is(line, bytes, "/exit")) {
        *ended = true;
        return EXIT_OK;
    }
    if (chat_is(line, bytes, "/clear")) {
        chat->pending = -1;
        int code = parscale_rewind(chat->session->handle, 0);
        return code ? session_api_error(chat->session, code) : EXIT_OK;
    }
    if (bytes >= streams_bytes && memcmp(line, streams, streams_bytes) == 0)
        return chat_streams(chat, line + streams_bytes, bytes - streams_bytes);
    *done = false;
    return EXIT_OK;
}

// Reads and answers one line; *ended tells whether it was the last.
static int chat_line(struct chat *chat, bool *ended) {
    size_t bytes = 0;
    if (chat->interactive)
        fputs("> ", stderr);
    int code = input_line(stdin, chat->line, CHAT_LINE_MAX, &bytes, &chat->session->error);
    if (code || bytes == 0)
        return code;
    bool done;
    code = chat_order(chat, bytes, ended, &done);
    if (!done)
        code = chat_turn(chat, chat->line, bytes);
    bool theirs = code == EXIT_INPUT || code == EXIT_USAGE; // the user can do something about it
    if (theirs && chat->interactive) {
        output_error(&chat->session->error);
        return EXIT_OK;
    }
    return code;
}

// The id that text, a marker of the template, must be.
static int chat_marker(struct session *session, const char *text, int32_t *id) {
    int32_t *ids = NULL;
    size_t count = 0;
    int code = parscale_tokenize(session->handle, text, strlen(text), true, &ids, &count);
    if (code)
        return session_api_error(session, code);
    if (count == 1)
        *id = ids[0];
    else
        code = fail(&session->error, EXIT_INPUT, "chat: found %zu ids for %s, expected one", count,
                    text);
    free(ids);
    return code;
}

static int chat_start(struct chat *chat) {
    struct session *session = chat->session;
    const char *template = parscale_chat_template(session->handle);
    if (!template || strcmp(template, "chatml") != 0)
        return fail(&session->error, EXIT_INPUT, "chat: found %s, expected a model with ChatML",
                    template ? template : "a model without a chat template");
    int code = chat_marker(session, "<|im_start|>", &chat->start);
    if (code == EXIT_OK)
        code = chat_marker(session, "<|im_end|>", &chat->end);
    if (code)
        return code;
    chat->turn = malloc((size_t)session->info->context * sizeof *chat->turn);
    chat->line = malloc(CHAT_LINE_MAX);
    if (!chat->turn || !chat->line)
        return fail(&session->error, EXIT_MEMORY, "chat: no memory for a turn");
    return EXIT_OK;
}

static int chat_command(struct session *session) {
    struct chat chat = {.session = session, .interactive = isatty(STDIN_FILENO), .pending = -1};
    int code = chat_start(&chat);
    if (code == EXIT_OK && chat.interactive)
        fputs("One line a turn; /clear starts over, /streams P changes P, /exit ends.\n", stderr);
    for (bool ended = false; code == EXIT_OK && !ended;)
        code = chat_line(&chat, &ended);
    free(chat.turn);
    free(chat.line);
    if (code == EXIT_OK)
        session_statistics(session);
    return code;
}
