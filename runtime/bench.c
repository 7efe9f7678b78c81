// The command bench: speed of prefill (pp) and decode (tg) at a depth of the cache, in rows like
// llama-bench's. Tokenizing and sampling are not measured. See cli.h.
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "bandwidth.h"
#include "cli.h"

struct bench_test {
    bool decodes; // tg; else pp
    int tokens, depth;
};

struct bench_result {
    double seconds, seconds_deviation; // of one repetition
    double rate, rate_deviation;       // tokens a second: mean and sample standard deviation
    double bytes_token;  // read from memory for a token; 0 for pp, where blocks share reads
    double joules_token; // of all repetitions; 0: unknown
};

struct bench {
    struct session *session;
    struct int_list prompt_sizes, generate_sizes;
    double bandwidth;        // of this machine or its GPU, bytes a second; 0: unknown
    bool tells_energy;       // whether the GPU does
    double power_limit;      // of the GPU, watts; 0: unknown
    int32_t *ids;            // [context], which ones does not matter
    double *seconds, *rates; // [repetitions]
    int rows;                // printed so far
};

static struct int_list bench_sizes(struct int_list given, int fallback, int context) {
    if (given.count > 0)
        return given;
    return (struct int_list){1, {fallback < context ? fallback : context}};
}

// Runs the test once behind a cache of test->depth positions; *seconds is its time.
static int bench_once(struct bench *bench, const struct bench_test *test, double *seconds) {
    struct parscale *handle = bench->session->handle;
    int code = parscale_rewind(handle, test->depth);
    double start = clock_seconds();
    if (code == EXIT_OK && !test->decodes)
        code = parscale_prefill(handle, bench->ids + test->depth, (size_t)test->tokens);
    for (int i = 0; test->decodes && i < test->tokens && code == EXIT_OK; i++)
        code = parscale_decode(handle, bench->ids[test->depth + i]);
    (void)parscale_logits(handle); // waits for a GPU
    *seconds = clock_seconds() - start;
    return code ? session_api_error(bench->session, code) : EXIT_OK;
}

// Joules that the GPU has used since an arbitrary moment; 0 if it does not tell.
static double bench_energy(const struct bench *bench) {
    struct parscale_energy energy = {0};
    if (bench->tells_energy)
        (void)parscale_energy(bench->session->handle, &energy);
    return energy.joules;
}

// Mean and sample standard deviation of values [n].
static void bench_mean(const double *values, int n, double *mean, double *deviation) {
    double sum = 0, squares = 0;
    for (int i = 0; i < n; i++)
        sum += values[i];
    *mean = sum / n;
    for (int i = 0; i < n; i++)
        squares += (values[i] - *mean) * (values[i] - *mean);
    *deviation = n > 1 ? sqrt(squares / (n - 1)) : 0;
}

// A decoded token reads every weight, what belongs to the P in use and the cache so far.
static double bench_bytes_token(const struct parscale_info *info, const struct bench_test *test) {
    if (!test->decodes)
        return 0;
    double positions = test->depth + (test->tokens + 1) / 2.0;
    return (double)(info->weight_bytes + info->adapter_bytes) +
           positions * (double)info->kv_bytes_position;
}

// Runs the test once to warm up (tg: one token), then as often as asked.
static int bench_measure(struct bench *bench, const struct bench_test *test,
                         struct bench_result *result) {
    struct session *session = bench->session;
    int repetitions = session->arguments.repetitions;
    int code = parscale_rewind(session->handle, 0);
    if (code == EXIT_OK && test->depth > 0)
        code = parscale_prefill(session->handle, bench->ids, (size_t)test->depth);
    if (code)
        return session_api_error(session, code);
    struct bench_test warm_up = *test;
    if (test->decodes)
        warm_up.tokens = 1;
    code = bench_once(bench, &warm_up, &bench->seconds[0]);
    double before = bench_energy(bench), after = before;
    for (int i = 0; i < repetitions && code == EXIT_OK; i++) {
        code = bench_once(bench, test, &bench->seconds[i]);
        bench->rates[i] = test->tokens / bench->seconds[i];
        after = bench_energy(bench);
    }
    if (code)
        return code;
    bench_mean(bench->seconds, repetitions, &result->seconds, &result->seconds_deviation);
    bench_mean(bench->rates, repetitions, &result->rate, &result->rate_deviation);
    result->bytes_token = bench_bytes_token(session->info, test);
    result->joules_token = (after - before) / repetitions / test->tokens;
    return EXIT_OK;
}

static void bench_test_name(const struct bench_test *test, char *name, size_t size) {
    int length = snprintf(name, size, "%s%d", test->decodes ? "tg" : "pp", test->tokens);
    if (test->depth > 0)
        snprintf(name + length, size - (size_t)length, " @ d%d", test->depth);
}

// Memory read in bytes a second; 0 if it is not known.
static double bench_read_rate(const struct bench_test *test, const struct bench_result *result) {
    return result->bytes_token * test->tokens / result->seconds;
}

// A number in a column of that width, "-" for 0, which stands for what does not apply.
static void bench_print_number(double number, int width, int decimals) {
    if (number > 0)
        printf(" %*.*f |", width, decimals, number);
    else
        printf(" %*s |", width, "-");
}

static void bench_print_md(const struct bench *bench, const struct bench_test *test,
                           const struct bench_result *result, bool first) {
    static const char head[] =
        "| model                |  P | isa        | threads |         test |                t/s |"
        " ms/token |  MB/token |   GB/s |  % bw |";
    static const char rule[] =
        "| -------------------- | -: | ---------- | ------: | -----------: | -----------------: |"
        " -------: | --------: | -----: | ----: |";
    const struct parscale_info *info = bench->session->info;
    char name[32], rate[64];
    bench_test_name(test, name, sizeof name);
    snprintf(rate, sizeof rate, "%.2f ± %.2f", result->rate, result->rate_deviation);
    double read_rate = bench_read_rate(test, result);
    if (first)
        printf("%s%s\n%s%s\n", head, bench->tells_energy ? "  J/token |" : "", rule,
               bench->tells_energy ? " -------: |" : "");
    // One column more for the rate, as ± has two bytes.
    printf("| %-20s | %2d | %-10s | %7d | %12s | %19s |", info->name, info->streams, info->isa,
           info->threads, name, rate);
    bench_print_number(result->seconds * 1e3 / test->tokens, 8, 3);
    bench_print_number(result->bytes_token * 1e-6, 9, 2);
    bench_print_number(read_rate * 1e-9, 6, 2);
    bench_print_number(bench->bandwidth > 0 ? read_rate / bench->bandwidth * 100 : 0, 5, 1);
    if (bench->tells_energy)
        bench_print_number(result->joules_token, 8, 4);
    putchar('\n');
}

enum { BENCH_FIELDS = 22 };

// A result for programs: named values, "" for what does not apply.
struct bench_row {
    int count;
    struct {
        const char *key;
        bool text;
        char value[80];
    } fields[BENCH_FIELDS];
};

static void bench_put_text(struct bench_row *row, const char *key, const char *text) {
    row->fields[row->count].key = key;
    row->fields[row->count].text = true;
    snprintf(row->fields[row->count++].value, sizeof row->fields[0].value, "%s", text);
}

static void bench_put(struct bench_row *row, const char *key, double number, int decimals) {
    row->fields[row->count].key = key;
    snprintf(row->fields[row->count++].value, sizeof row->fields[0].value, "%.*f", decimals,
             number);
}

// The same if number is not 0, which stands for what does not apply.
static void bench_put_known(struct bench_row *row, const char *key, double number, int decimals) {
    bench_put(row, key, number, decimals);
    if (!(number > 0))
        row->fields[row->count - 1].value[0] = '\0';
}

static void bench_fill(struct bench_row *row, const struct bench *bench,
                       const struct bench_test *test, const struct bench_result *result) {
    const struct parscale_info *info = bench->session->info;
    double read_rate = bench_read_rate(test, result);
    char name[32];
    bench_test_name(test, name, sizeof name);
    bench_put_text(row, "model", info->name);
    bench_put_text(row, "plan_digest", info->plan_digest);
    bench_put(row, "streams", info->streams, 0);
    bench_put_text(row, "isa", info->isa);
    bench_put(row, "n_threads", info->threads, 0);
    bench_put_text(row, "test", name);
    bench_put(row, "n_prompt", test->decodes ? 0 : test->tokens, 0);
    bench_put(row, "n_gen", test->decodes ? test->tokens : 0, 0);
    bench_put(row, "n_depth", test->depth, 0);
    bench_put(row, "repetitions", bench->session->arguments.repetitions, 0);
    bench_put(row, "avg_ns", result->seconds * 1e9, 0);
    bench_put(row, "stddev_ns", result->seconds_deviation * 1e9, 0);
    bench_put(row, "avg_ts", result->rate, 3);
    bench_put(row, "stddev_ts", result->rate_deviation, 3);
    bench_put(row, "ms_token", result->seconds * 1e3 / test->tokens, 4);
    bench_put_known(row, "bytes_token", result->bytes_token, 0);
    bench_put_known(row, "gb_s", read_rate * 1e-9, 3);
    bench_put_known(row, "machine_gb_s", bench->bandwidth * 1e-9, 3);
    bench_put_known(row, "machine_percent",
                    bench->bandwidth > 0 ? read_rate / bench->bandwidth * 100 : 0, 2);
    if (bench->tells_energy) {
        bench_put_known(row, "joules_token", result->joules_token, 5);
        bench_put_known(row, "power_limit_w", bench->power_limit, 0);
    }
}

static void bench_print_csv(const struct bench_row *row, bool first) {
    for (int i = 0; first && i < row->count; i++)
        printf("%s%s", row->fields[i].key, i + 1 < row->count ? "," : "\n");
    for (int i = 0; i < row->count; i++) // no value has a comma or a quote
        printf("%s%s", row->fields[i].value, i + 1 < row->count ? "," : "\n");
}

static void bench_print_json(const struct bench_row *row, bool first) {
    printf(first ? "  {" : ",\n  {");
    for (int i = 0; i < row->count; i++) {
        const char *value = row->fields[i].value;
        printf("%s\"%s\": ", i > 0 ? ", " : "", row->fields[i].key);
        if (row->fields[i].text)
            json_write_string(stdout, value);
        else
            fputs(*value ? value : "null", stdout);
    }
    putchar('}');
}

// Checks all tests, or runs them, in order of depth, pp first. visit returns an exit code.
static int bench_each(struct bench *bench,
                      int (*visit)(struct bench *bench, const struct bench_test *test)) {
    const struct int_list *depths = &bench->session->arguments.depths;
    for (int d = 0; d < depths->count; d++) {
        for (int i = 0; i < bench->prompt_sizes.count + bench->generate_sizes.count; i++) {
            bool decodes = i >= bench->prompt_sizes.count;
            int tokens = decodes ? bench->generate_sizes.values[i - bench->prompt_sizes.count]
                                 : bench->prompt_sizes.values[i];
            struct bench_test test = {decodes, tokens, depths->values[d]};
            int code = tokens > 0 ? visit(bench, &test) : EXIT_OK;
            if (code)
                return code;
        }
    }
    return EXIT_OK;
}

static int bench_check(struct bench *bench, const struct bench_test *test) {
    struct session *session = bench->session;
    long positions = (long)test->depth + test->tokens;
    if (positions <= session->info->context)
        return EXIT_OK;
    return fail(
        &session->error, EXIT_INPUT,
        "bench: found %s%d at depth %d, which takes %ld positions, expected %d at most, which "
        "is the context",
        test->decodes ? "tg" : "pp", test->tokens, test->depth, positions, session->info->context);
}

static int bench_run(struct bench *bench, const struct bench_test *test) {
    struct bench_result result = {0};
    int code = bench_measure(bench, test, &result);
    if (code)
        return code;
    const char *format = bench->session->arguments.format;
    struct bench_row row = {0};
    bench_fill(&row, bench, test, &result);
    bool first = bench->rows++ == 0;
    if (strcmp(format, "md") == 0)
        bench_print_md(bench, test, &result, first);
    else if (strcmp(format, "csv") == 0)
        bench_print_csv(&row, first);
    else
        bench_print_json(&row, first);
    return output_flush(&bench->session->error);
}

// Bandwidth and energy are the GPU's if there is one.
static void bench_find_limits(struct bench *bench) {
    const struct session *session = bench->session;
    struct parscale_energy energy = {0};
    if (strcmp(session->info->device, "cpu") == 0)
        bench->bandwidth = bandwidth_measure(session->info->threads);
    else
        bench->bandwidth = parscale_read_bandwidth(session->handle);
    bench->tells_energy = parscale_energy(session->handle, &energy);
    bench->power_limit = energy.power_limit;
}

static void bench_print_limits(const struct bench *bench) {
    const struct parscale_info *info = bench->session->info;
    fprintf(stderr, "read bandwidth of ");
    if (strcmp(info->device, "cpu") == 0)
        fprintf(stderr, "this machine with %d threads", info->threads);
    else
        fprintf(stderr, "%s", info->device);
    fprintf(stderr, ": %.2f GB/s\n", bench->bandwidth * 1e-9);
    if (bench->tells_energy)
        fprintf(stderr, "energy: of the whole GPU, whose power limit is %.0f W\n",
                bench->power_limit);
}

static int bench_all(struct bench *bench) {
    const struct session *session = bench->session;
    bool json = strcmp(session->arguments.format, "json") == 0;
    int code = bench_each(bench, bench_check);
    if (code)
        return code;
    bench_find_limits(bench);
    if (json)
        printf("[\n");
    code = bench_each(bench, bench_run);
    if (json && code == EXIT_OK)
        printf("\n]\n");
    if (code == EXIT_OK)
        session_device(session);
    if (code == EXIT_OK)
        bench_print_limits(bench);
    return code;
}

static int bench_command(struct session *session) {
    const struct arguments *arguments = &session->arguments;
    int context = session->info->context;
    struct bench bench = {
        .session = session,
        .prompt_sizes = bench_sizes(arguments->prompt_sizes, 512, context),
        .generate_sizes = bench_sizes(arguments->generate_sizes, 128, context),
        .ids = malloc((size_t)context * sizeof *bench.ids),
        .seconds = calloc((size_t)arguments->repetitions, sizeof *bench.seconds),
        .rates = calloc((size_t)arguments->repetitions, sizeof *bench.rates),
    };
    int code = EXIT_OK;
    if (!bench.ids || !bench.seconds || !bench.rates)
        code = fail(&session->error, EXIT_MEMORY, "bench: no memory for %d ids and %d times",
                    context, arguments->repetitions);
    for (int i = 0; i < context && code == EXIT_OK; i++) // scattered over the vocabulary
        bench.ids[i] = (int32_t)((uint32_t)i * 2654435761u % (uint32_t)session->info->vocab_size);
    if (code == EXIT_OK)
        code = bench_all(&bench);
    free(bench.ids);
    free(bench.seconds);
    free(bench.rates);
    return code;
}
