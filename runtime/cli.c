// See cli.h.
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include "cli.h"
#include "input.h"

static int session_api_error(struct session *session, int code) {
    return fail(&session->error, code, "%s", parscale_error(session->handle));
}

static int session_text(struct session *session, char **text, size_t *bytes) {
    const struct arguments *arguments = &session->arguments;
    if (!arguments->prompt)
        return input_read(arguments->file ? arguments->file : "-", text, bytes, &session->error);
    *text = strdup(arguments->prompt);
    *bytes = strlen(arguments->prompt);
    return *text ? EXIT_OK : fail(&session->error, EXIT_MEMORY, "-p: no memory for its text");
}

// The ids of -p or -f.
static int session_text_ids(struct session *session, int32_t **ids, size_t *count) {
    char *text = NULL;
    size_t bytes = 0;
    int code = session_text(session, &text, &bytes);
    if (code)
        return code;
    code = parscale_tokenize(session->handle, text, bytes, true, ids, count);
    free(text);
    return code ? session_api_error(session, code) : EXIT_OK;
}

static int session_prompt(struct session *session, int32_t **ids, size_t *count) {
    const struct arguments *arguments = &session->arguments;
    int code = arguments->ids
                   ? input_ids("--ids", arguments->ids, strlen(arguments->ids),
                               session->info->vocab_size, EXIT_USAGE, ids, count, &session->error)
                   : session_text_ids(session, ids, count);
    if (code)
        return code;
    if (*count == 0)
        code = fail(&session->error, EXIT_INPUT, "prompt: found no token, expected 1 at least");
    else if (*count > (size_t)session->info->context)
        code = fail(&session->error, EXIT_INPUT,
                    "prompt: found %zu tokens, expected %d at most, which is the context", *count,
                    session->info->context);
    if (code)
        free(*ids);
    return code;
}

static int session_prefill(struct session *session, const int32_t *ids, size_t count) {
    double start = clock_seconds();
    int code = parscale_prefill(session->handle, ids, count);
    session->prefill_seconds += clock_seconds() - start;
    session->prefill_tokens += count;
    return code ? session_api_error(session, code) : EXIT_OK;
}

static void session_rate(const char *what, size_t tokens, double seconds) {
    if (tokens == 0)
        return;
    fprintf(stderr, "%s %zu tokens in %.1f ms: %.1f tokens/s, %.3f ms a token\n", what, tokens,
            seconds * 1e3, (double)tokens / seconds, seconds * 1e3 / (double)tokens);
}

static void session_device(const struct session *session) {
    const struct parscale_info *info = session->info;
    if (info->device_note[0])
        fprintf(stderr, "device:  %s, %s\n", info->device, info->device_note);
}

static void session_statistics(const struct session *session) {
    session_device(session);
    session_rate("prefill:", session->prefill_tokens, session->prefill_seconds);
    session_rate("decode: ", session->decode_tokens, session->decode_seconds);
    struct rusage usage;
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        fprintf(stderr, "memory:  %.1f MiB at the peak, for a pack of %.1f MiB\n",
                (double)usage.ru_maxrss / 1024, (double)session->info->pack_bytes / (1 << 20));
}

// The pack that is used if -m is not given: model.psc in the folder of this program.
static int cli_default_model(const char *program, char *path, size_t size, struct error *error) {
    char self[4096];
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length > 0)
        self[length] = '\0';
    else
        snprintf(self, sizeof self, "%s", program);
    char *slash = strrchr(self, '/');
    int folder = slash ? (int)(slash - self) + 1 : 0;
    int written = snprintf(path, size, "%.*smodel.psc", folder, self);
    if (written < 0 || (size_t)written >= size)
        return fail(error, EXIT_PACK, "model.psc: the path beside '%.256s' is too long, use -m",
                    self);
    return EXIT_OK;
}

static int cli_open(struct session *session, const char *program) {
    const struct arguments *arguments = &session->arguments;
    char path[4096 + 16];
    struct parscale_options options = {
        .pack = arguments->model,
        .isa = arguments->isa,
        .threads = arguments->threads,
        .streams = arguments->streams,
        .device = arguments->device,
        .no_kernel_cache = arguments->no_cache,
    };
    if (!options.pack) {
        int code = cli_default_model(program, path, sizeof path, &session->error);
        if (code)
            return code;
        options.pack = path;
    }
    if (arguments->command == COMMAND_TOKENIZE || arguments->command == COMMAND_DETOKENIZE) {
        options.threads = 1; // they compute nothing
        options.device = "cpu";
    }
    int code = parscale_open(&session->handle, &options);
    if (!session->handle)
        return fail(&session->error, EXIT_MEMORY, "no memory to open %.256s", options.pack);
    session->info = parscale_info(session->handle);
    return code ? session_api_error(session, code) : EXIT_OK;
}

static int cli_run(struct session *session, int argc, char **argv) {
    static int (*const commands[COMMAND_COUNT])(struct session *) = {
        [COMMAND_GENERATE] = generate_command,
        [COMMAND_CHAT] = chat_command,
        [COMMAND_SCORE] = score_command,
        [COMMAND_TOKENIZE] = tokenize_command,
        [COMMAND_DETOKENIZE] = detokenize_command,
        [COMMAND_BENCH] = bench_command,
        [COMMAND_INFO] = info_command,
    };
    int code = options_parse(&session->arguments, argc, argv, &session->error);
    if (code)
        return code;
    if (session->arguments.help)
        options_help(stdout, session->arguments.command);
    else if ((code = cli_open(session, argv[0])) == EXIT_OK)
        code = commands[session->arguments.command](session);
    return code ? code : output_flush(&session->error);
}

// A closed stdin, stdout or stderr would hand its number to the next file that is opened.
static int cli_check_streams(struct error *error) {
    if (fcntl(STDOUT_FILENO, F_GETFD) < 0)
        return fail(error, EXIT_OUTPUT, "stdout: %s", strerror(errno));
    for (int stream = STDIN_FILENO; stream <= STDERR_FILENO; stream++) {
        if (fcntl(stream, F_GETFD) < 0 && open("/dev/null", O_RDWR) < 0)
            return fail(error, EXIT_INPUT, "/dev/null: %s", strerror(errno));
    }
    return EXIT_OK;
}

static int cli_main(int argc, char **argv) {
    struct session session = {0};
    signal(SIGPIPE, SIG_IGN); // a reader that went away is an error of the next write
    int code = cli_check_streams(&session.error);
    if (code == EXIT_OK)
        code = cli_run(&session, argc, argv);
    if (code)
        output_error(&session.error);
    parscale_close(session.handle);
    return code;
}
