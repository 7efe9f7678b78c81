// The kernel sample_token against sample.c: random logits of many kinds, random options. Runs on
// whatever libcuda.so.1 is found, the emulator for one. Prints key=value pairs: cases, decided (by
// the device), wrong (decided, but not as sample.c does).
//
//     gpu_sample_harness VOCAB CASES
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../runtime/error.h"
#include "../runtime/error.c"
#include "../runtime/cuda_driver.h"
#include "../runtime/cuda_driver.c"
#include "../runtime/sample.h"
#include "../runtime/sample.c"
#include "../templates/cuda_task.h"

enum { HISTORY = 200, THREADS = 1024, SHARED_BYTES = 28 << 10, KINDS = 10 };

static struct cuda_driver driver;
static void *stream, *kernel;
static int vocab;
static struct gpu_task task; // its pointers are device memory, of the same size as these:
static float *logits;        // [vocab]
static int32_t history[HISTORY];

static void must(int code) {
    if (code) {
        fprintf(stderr, "gpu_sample_harness: error %d\n", code);
        exit(1);
    }
}

static double noise(void) {
    static uint64_t state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) * 0x1p-53;
}

static int pick(int n) {
    return (int)(noise() * n);
}

// About normal.
static float bell(void) {
    double sum = -6;
    for (int i = 0; i < 12; i++)
        sum += noise();
    return (float)sum;
}

static float one_logit(int kind, int id) {
    static const float FEW[] = {-0.0f, 0.0f, 1, -1, 2.5f};
    switch (kind) {
    case 0:
        return 3 * bell();
    case 1: // ties
        return roundf(4 * bell()) / 4;
    case 2:
        return FEW[pick(5)];
    case 3:
        return pick(3) ? 3 * bell() : NAN;
    case 4:
        return pick(50) ? 3 * bell() : pick(2) ? INFINITY : -INFINITY;
    case 5: // one far better than the rest
        return id == vocab / 3 ? 40 : bell();
    case 6:
        return pick(vocab) ? NAN : bell();
    case 7:
        return 1.5f;
    case 8: // nearly alike: top-p keeps very many
        return 0.01f * bell();
    default: // the good ones all in a few threads' share
        return id % THREADS < 8 ? 10 + bell() : -10 + bell();
    }
}

static struct parscale_sampling some_options(void) {
    static const float TEMPERATURE[] = {0, 0.2f, 0.8f, 1, 1.7f}, TOP_P[] = {1, 0.95f, 0.5f, 0.01f};
    static const float MIN_P[] = {0, 0.05f, 0.5f}, PENALTY[] = {1, 1, 1.1f, 0.5f};
    static const int TOP_K[] = {0, 0, 1, 5, 40, 512, 513};
    return (struct parscale_sampling){
        .temperature = TEMPERATURE[pick(5)],
        .top_k = TOP_K[pick(7)],
        .top_p = TOP_P[pick(4)],
        .min_p = MIN_P[pick(3)],
        .repeat_penalty = PENALTY[pick(4)],
        .seed = (uint64_t)pick(1 << 30),
    };
}

static void *device_memory(size_t bytes) {
    cuda_pointer pointer;
    must(driver.allocate(&pointer, bytes));
    return (void *)(uintptr_t)pointer;
}

static void upload(const void *to, const void *from, size_t bytes) {
    must(driver.copy_to_device((cuda_pointer)(uintptr_t)to, from, bytes, stream));
}

static void start(void) {
    struct error error;
    void *module, *chosen;
    if (cuda_driver_open(&driver, &error)) {
        fprintf(stderr, "gpu_sample_harness: %s\n", error.text);
        exit(1);
    }
    must(driver.stream_create(&stream, CUDA_STREAM_NON_BLOCKING));
    must(driver.module_load(&module, "EMULATED"));
    must(driver.module_function(&kernel, module, "sample_token"));
    must(driver.allocate_host(&chosen, 2 * sizeof *task.chosen));
    task.logits = device_memory(2 * (size_t)vocab * sizeof *task.logits);
    task.history = device_memory(sizeof history);
    task.sampling = device_memory(sizeof *task.sampling);
    task.state = device_memory(sizeof *task.state);
    task.ids = task.history; // not NULL: the position is the task's
    task.chosen = chosen;
    task.tokens = 1;
}

// The device's choice behind `position`.
static int device_choice(const struct parscale_sampling *s, int position) {
    struct gpu_sampling sampling = {
        .temperature = s->temperature,
        .top_p = s->top_p,
        .log_min_p = s->min_p > 0 ? logf(s->min_p) : -INFINITY,
        .repeat_penalty = s->repeat_penalty,
        .top_k = s->top_k,
        .filtered = s->top_k > 0 || s->top_p < 1 || s->min_p > 0,
        .seed = s->seed,
    };
    void *arguments[] = {&task};
    const struct cuda_launch launch = {
        {1, 1, 1}, {THREADS, 1, 1}, SHARED_BYTES, stream, NULL, 0,
    };
    task.position = position;
    upload(task.sampling, &sampling, sizeof sampling);
    upload(task.history, history, sizeof history);
    upload(task.logits + position % 2 * vocab, logits, (size_t)vocab * sizeof *logits);
    must(driver.launch(&launch, kernel, arguments, NULL));
    must(driver.stream_synchronize(stream));
    return task.chosen[position % 2].token;
}

int main(int argc, char **argv) {
    if (argc != 3)
        return 2;
    vocab = atoi(argv[1]);
    logits = malloc((size_t)vocab * sizeof *logits);
    struct sample_scratch scratch = {
        malloc((size_t)vocab * sizeof *scratch.candidates),
        malloc((size_t)vocab * sizeof *scratch.penalized),
    };
    if (!logits || !scratch.candidates || !scratch.penalized)
        return 1;
    start();
    int cases = atoi(argv[2]), decided = 0, wrong = 0, usual = 0, usual_decided = 0;
    for (int i = 0; i < cases; i++) {
        int kind = i % KINDS, position = pick(HISTORY - 1);
        for (int id = 0; id < vocab; id++)
            logits[id] = one_logit(kind, id);
        for (int p = 0; p < HISTORY; p++)
            history[p] = pick(2) ? pick(vocab) : pick(20);
        struct parscale_sampling s = some_options();
        int expected =
            sample(logits, vocab, history, position + 1, &s, (uint64_t)position + 1, &scratch);
        int found = device_choice(&s, position);
        bool common = kind < 9 && (s.top_k > 0 && s.top_k <= 512);
        decided += found >= 0;
        usual += common;
        usual_decided += common && found >= 0;
        if (found >= 0 && found != expected) {
            wrong++;
            fprintf(stderr,
                    "case %d: logits %d, temp %g, top-k %d, top-p %g, min-p %g, penalty %g: "
                    "found %d, expected %d\n",
                    i, kind, (double)s.temperature, s.top_k, (double)s.top_p, (double)s.min_p,
                    (double)s.repeat_penalty, found, expected);
        }
    }
    printf("cases=%d decided=%d usual=%d usualdecided=%d wrong=%d\n", cases, decided, usual,
           usual_decided, wrong);
    free(logits);
    free(scratch.candidates);
    free(scratch.penalized);
    return 0;
}
