// See bandwidth.h.
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "bandwidth.h"
#include "cli.h"

enum { BANDWIDTH_PASSES = 8, BANDWIDTH_LANES = 16, BANDWIDTH_AHEAD = 4096 };

// What the threads share. The gate is locked until the barrier is for as many as could be started.
struct bandwidth_group {
    pthread_mutex_t gate;
    pthread_barrier_t barrier;
};

struct bandwidth_task {
    pthread_t thread;
    struct bandwidth_group *group;
    uint64_t *words; // this thread's part
    size_t count;    // a multiple of BANDWIDTH_LANES
    uint64_t sum;    // so that the reads are needed
};

static uint64_t bandwidth_read(const uint64_t *words, size_t count) {
    uint64_t lanes[BANDWIDTH_LANES] = {0};
    for (size_t i = 0; i < count; i += BANDWIDTH_LANES) {
        __builtin_prefetch((const char *)(words + i) + BANDWIDTH_AHEAD);
        __builtin_prefetch((const char *)(words + i) + BANDWIDTH_AHEAD + 64);
        for (int lane = 0; lane < BANDWIDTH_LANES; lane++)
            lanes[lane] += words[i + lane];
    }
    uint64_t sum = 0;
    for (int lane = 0; lane < BANDWIDTH_LANES; lane++)
        sum += lanes[lane];
    return sum;
}

// Fills its part, then reads it between every two barriers.
static void *bandwidth_thread(void *argument) {
    struct bandwidth_task *task = argument;
    memset(task->words, 1, task->count * sizeof *task->words); // pages come near the thread
    pthread_mutex_lock(&task->group->gate);
    pthread_mutex_unlock(&task->group->gate);
    for (int pass = 0; pass < BANDWIDTH_PASSES; pass++) {
        pthread_barrier_wait(&task->group->barrier);
        task->sum += bandwidth_read(task->words, task->count);
        pthread_barrier_wait(&task->group->barrier);
    }
    return NULL;
}

// The seconds of the shortest pass over all tasks.
static double bandwidth_best_pass(pthread_barrier_t *barrier) {
    double best = 1e9;
    for (int pass = 0; pass < BANDWIDTH_PASSES; pass++) {
        pthread_barrier_wait(barrier);
        double start = clock_seconds();
        pthread_barrier_wait(barrier);
        double seconds = clock_seconds() - start;
        best = seconds < best ? seconds : best;
    }
    return best;
}

// At least 128 MiB, and four times the last cache.
static size_t bandwidth_buffer_bytes(void) {
    size_t bytes = (size_t)128 << 20;
    long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
    return cache > 0 && 4 * (size_t)cache > bytes ? 4 * (size_t)cache : bytes;
}

// tasks [threads], words [threads * part].
static double bandwidth_run(struct bandwidth_task *tasks, int threads, uint64_t *words,
                            size_t part) {
    struct bandwidth_group group = {.gate = PTHREAD_MUTEX_INITIALIZER};
    pthread_mutex_lock(&group.gate);
    int started = 0;
    for (; started < threads; started++) {
        struct bandwidth_task *task = &tasks[started];
        *task = (struct bandwidth_task){
            .group = &group, .words = words + (size_t)started * part, .count = part};
        if (pthread_create(&task->thread, NULL, bandwidth_thread, task) != 0)
            break;
    }
    pthread_barrier_init(&group.barrier, NULL, (unsigned)started + 1);
    pthread_mutex_unlock(&group.gate);
    double seconds = bandwidth_best_pass(&group.barrier);
    for (int i = 0; i < started; i++)
        pthread_join(tasks[i].thread, NULL);
    pthread_barrier_destroy(&group.barrier);
    return seconds > 0 ? (double)((size_t)started * part * sizeof *words) / seconds : 0;
}

static double bandwidth_measure(int threads) {
    size_t bytes = bandwidth_buffer_bytes();
    void *buffer = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (buffer == MAP_FAILED)
        return 0;
    madvise(buffer, bytes, MADV_HUGEPAGE); // may fail: then the pages are small
    size_t part = bytes / sizeof(uint64_t) / (size_t)threads / BANDWIDTH_LANES * BANDWIDTH_LANES;
    struct bandwidth_task *tasks = calloc((size_t)threads, sizeof *tasks);
    double rate = tasks ? bandwidth_run(tasks, threads, buffer, part) : 0;
    free(tasks);
    munmap(buffer, bytes);
    return rate;
}
