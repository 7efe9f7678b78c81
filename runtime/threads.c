// See threads.h. Threads spin for a moment before they sleep: a decode step has hundreds of phases
// of a few microseconds.
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "threads.h"

enum {
    SPINS_IN_BARRIER = 1 << 12,   // then sleep: where a processor is wanted for other work, the
                                  // thread that is waited for may need this one
    SPINS_BETWEEN_JOBS = 1 << 16, // the same
};

struct worker {
    struct pool *pool;
    pthread_t handle;
    int thread;
};

// How far a thread's share of the phase's work is given out: the phase's number above, items taken
// below. A count of an earlier phase means none. On a cache line of its own.
struct taken {
    _Alignas(64) atomic_ullong count;
};

struct pool {
    int threads;
    atomic_uint arrived;  // at the barrier in progress
    atomic_uint barriers; // completed
    atomic_uint jobs;     // given out; one ends before the next begins
    void (*job)(void *argument, int thread);
    void *argument;
    bool stopping;
    atomic_uint sleepers;  // in a barrier
    pthread_mutex_t mutex; // for sleeping only
    pthread_cond_t wake;
    struct taken taken[MAX_THREADS];
    struct worker workers[MAX_THREADS - 1];
};

static inline void spin_pause(void) {
#ifdef __x86_64__
    __builtin_ia32_pause();
#endif
}

// The mutex makes sure that whoever has decided to sleep does so before.
static void wake_sleepers(struct pool *pool) {
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
}

static void pool_barrier(struct pool *pool) {
    unsigned completed = atomic_load_explicit(&pool->barriers, memory_order_relaxed);
    unsigned arrived = atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) + 1;
    if (arrived == (unsigned)pool->threads) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store(&pool->barriers, completed + 1);
        if (atomic_load(&pool->sleepers) > 0)
            wake_sleepers(pool);
        return;
    }
    for (unsigned spins = 0; spins < SPINS_IN_BARRIER; spins++) {
        if (atomic_load_explicit(&pool->barriers, memory_order_acquire) != completed)
            return;
        spin_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(&pool->barriers) == completed)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    atomic_fetch_sub(&pool->sleepers, 1);
    pthread_mutex_unlock(&pool->mutex);
}

static struct work pool_work(struct pool *pool, int thread, size_t n) {
    unsigned phase = atomic_load_explicit(&pool->barriers, memory_order_relaxed) + 1;
    return (struct work){.pool = pool, .n = n, .thread = thread, .phase = phase};
}

// Takes the next item of one thread's share; false if none is left.
static bool take_item(struct work *work) {
    struct pool *pool = work->pool;
    size_t threads = (size_t)pool->threads, owner = (size_t)work->thread;
    size_t begin = work->n * owner / threads, end = work->n * (owner + 1) / threads;
    atomic_ullong *count = &pool->taken[owner].count;
    unsigned long long seen = atomic_load_explicit(count, memory_order_relaxed), next;
    do {
        size_t taken = (unsigned)(seen >> 32) == work->phase ? (unsigned)seen : 0;
        if (begin + taken >= end)
            return false;
        work->item = begin + taken;
        next = (unsigned long long)work->phase << 32 | (taken + 1);
    } while (!atomic_compare_exchange_weak_explicit(count, &seen, next, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

static bool pool_next(struct work *work) {
    for (; work->helped < work->pool->threads; work->helped++) {
        if (take_item(work))
            return true;
        work->thread = (work->thread + 1) % work->pool->threads;
    }
    return false;
}

// Waits until a job after `seen` is given out.
static void wait_for_job(struct pool *pool, unsigned seen) {
    for (unsigned spins = 0; spins < SPINS_BETWEEN_JOBS; spins++) {
        if (atomic_load_explicit(&pool->jobs, memory_order_acquire) != seen)
            return;
        spin_pause();
    }
    pthread_mutex_lock(&pool->mutex);
    while (atomic_load_explicit(&pool->jobs, memory_order_acquire) == seen)
        pthread_cond_wait(&pool->wake, &pool->mutex);
    pthread_mutex_unlock(&pool->mutex);
}

static void *worker_main(void *argument) {
    struct worker *worker = argument;
    struct pool *pool = worker->pool;
    for (unsigned seen = 0;; seen++) {
        wait_for_job(pool, seen);
        if (pool->stopping)
            return NULL;
        pool->job(pool->argument, worker->thread);
        pool_barrier(pool);
    }
}

static void give_out(struct pool *pool) {
    atomic_fetch_add_explicit(&pool->jobs, 1, memory_order_release);
    wake_sleepers(pool);
}

static void pool_run(struct pool *pool, void (*job)(void *argument, int thread), void *argument) {
    pool->job = job;
    pool->argument = argument;
    give_out(pool);
    job(argument, 0);
    pool_barrier(pool);
}

static int usable_processors(void) {
    cpu_set_t usable; // too small on machines with more than CPU_SETSIZE: then all are counted
    long n = sched_getaffinity(0, sizeof usable, &usable) == 0 ? CPU_COUNT(&usable)
                                                               : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (int)n;
}

static int pool_start(struct pool **result, int threads, struct error *error) {
    *result = NULL;
    struct pool *pool = aligned_alloc(_Alignof(struct pool), sizeof *pool);
    if (!pool)
        return fail(error, EXIT_MEMORY, "threads: no memory for %d threads", threads);
    memset(pool, 0, sizeof *pool);
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->wake, NULL);
    pool->threads = 1;
    for (int i = 1; i < threads; i++) {
        struct worker *worker = &pool->workers[i - 1];
        worker->pool = pool;
        worker->thread = i;
        int code = pthread_create(&worker->handle, NULL, worker_main, worker);
        if (code) {
            pool_stop(pool);
            return fail(error, EXIT_MEMORY, "threads: cannot start thread %d of %d: %s", i + 1,
                        threads, strerror(code));
        }
        pool->threads = i + 1;
    }
    *result = pool;
    return EXIT_OK;
}

static void pool_stop(struct pool *pool) {
    if (!pool)
        return;
    pool->stopping = true;
    give_out(pool);
    for (int i = 1; i < pool->threads; i++)
        pthread_join(pool->workers[i - 1].handle, NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->mutex);
    free(pool);
}
