// A pool of threads that run one function together, phase by phase. What a thread does in a phase
// depends only on the phase, never on timing, and no result depends on how many threads there are.
#ifndef THREADS_H
#define THREADS_H

#include <stdbool.h>
#include <stddef.h>
#include "error.h"

enum { MAX_THREADS = 256 };

struct pool;

// Processors that this process may use: 1..MAX_THREADS.
static int usable_processors(void);

// threads: 1..MAX_THREADS, the caller's own included. On failure *pool is NULL.
static int pool_start(struct pool **pool, int threads, struct error *error);
static void pool_stop(struct pool *pool); // NULL is allowed

// Runs job(argument, thread) on all threads, thread = 0 on the caller's; returns when all are done.
static void pool_run(struct pool *pool, void (*job)(void *argument, int thread), void *argument);

// Inside a job: returns when all threads have arrived.
static void pool_barrier(struct pool *pool);

// Inside a job: hands out 0..n-1, every number to one thread, until none is left; one loop
//
//     for (struct work work = pool_work(pool, thread, n); pool_next(&work);)
//         ... work.item ...
//
// in a phase. A thread takes its own contiguous share in order and then helps the others, so that a
// thread that is held up does not hold up the rest.
struct work {
    struct pool *pool;
    size_t n, item;
    int thread, helped; // whose share items come from, how many shares are done
    unsigned phase;
};
static struct work pool_work(struct pool *pool, int thread, size_t n);
static bool pool_next(struct work *work);

#endif
