// A pool of threads that run one function together, phase by phase. What a thread does in a phase
// depends only on the phase, never on timing, and no result depends on how many threads there are.
#ifndef THREADS_H
#define THREADS_H

#include <stddef.h>
#include "error.h"

enum { MAX_THREADS = 256 };

struct pool;

// threads: 1..MAX_THREADS, the caller's own included. On failure *pool is NULL.
static int pool_start(struct pool **pool, int threads, struct error *error);
static void pool_stop(struct pool *pool); // NULL is allowed

// Runs job(argument, thread) on all threads, thread = 0 on the caller's; returns when all are done.
static void pool_run(struct pool *pool, void (*job)(void *argument, int thread), void *argument);

// Inside a job: returns when all threads have arrived.
static void pool_barrier(struct pool *pool);

struct range {
    size_t begin, end;
};
// Inside a job: this thread's share of 0..n-1, contiguous, equal to within one.
static struct range pool_share(const struct pool *pool, int thread, size_t n);

#endif
