// See emulator.h. A fiber runs until it waits for others; then the scheduler picks another warp at
// random. Copies to shared memory are done when they are waited for, and until then their targets
// are NaN, so that a missing wait shows.
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <map>
#include <vector>
#include "device.h"
#include "emulator.h"

enum {
    LANES = 32,
    RESIDENT = 3,            // blocks that run at a time
    STACK_BYTES = 256 << 10, // of a fiber
    PAGE = 4096,
    MOST_SHARED = 227 << 10,
};

enum class wait_for { nothing, warp, barrier, ended };
enum class warp_operation { product, transpose, shuffle, barrier };

struct copy {
    void *to;
    const void *from; // NULL: zeros
    size_t bytes;
};

struct block;

struct fiber {
    jmp_buf context;
    ucontext_t start;
    char *stack;
    bool started;
    wait_for waits;
    struct block *block;
    unsigned thread;
    std::vector<struct copy> open;                // copies of no group yet
    std::vector<std::vector<struct copy>> groups; // under way
};

struct warp {
    warp_operation operation;
    unsigned arrived;
    unsigned words[LANES][6]; // of the lanes that arrived
    unsigned given[LANES][6]; // of all lanes, until all have arrived at the next operation
    float results[LANES][4];
};

struct block {
    bool active;
    unsigned index;              // in the grid
    struct emulated_index place; //
    unsigned arrived, ended;     // at the barrier; threads
    char *shared, *shared_map;
    std::vector<struct fiber> fibers;
    std::vector<struct warp> warps;
};

struct emulated_index threadIdx, blockIdx, gridDim;

static struct block blocks[RESIDENT];
static const struct emulated_launch *launch;
static struct fiber *current;
static jmp_buf scheduler;
static const char *failure;
static unsigned long long random_state = 1;
static std::map<void *, std::pair<void *, size_t>> allocations;

void emulate_seed(unsigned long long seed) {
    random_state = seed * 2 + 1;
}

static unsigned random_below(unsigned n) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(random_state >> 33) % n;
}

static void complain(const char *what) {
    fprintf(stderr, "emulator: %s: block (%u, %u, %u) thread %u: %s\n", launch->name,
            current->block->place.x, current->block->place.y, current->block->place.z,
            current->thread, what);
}

// ---- Fibers ----

static void yield(wait_for what) {
    current->waits = what;
    if (!_setjmp(current->context))
        _longjmp(scheduler, 1);
}

static void fiber_main() {
    launch->run(launch->argument);
    if (!current->groups.empty() || !current->open.empty()) {
        for (const auto &group : current->groups)
            if (!group.empty())
                failure = "ends with copies under way";
        if (!current->open.empty())
            failure = "ends with copies under way";
        if (failure)
            complain(failure);
    }
    current->block->ended++;
    if (current->block->arrived && !failure) {
        failure = "ends while others wait at a barrier";
        complain(failure);
    }
    current->waits = wait_for::ended;
    _longjmp(scheduler, 1);
}

static void resume(struct fiber *fiber) {
    current = fiber;
    threadIdx = {fiber->thread, 0, 0};
    blockIdx = fiber->block->place;
    if (_setjmp(scheduler))
        return;
    if (fiber->started)
        _longjmp(fiber->context, 1);
    fiber->started = true;
    setcontext(&fiber->start);
}

static void prepare_fiber(struct fiber *fiber, struct block *block, unsigned thread) {
    if (!fiber->stack)
        fiber->stack = (char *)mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    getcontext(&fiber->start);
    fiber->start.uc_stack.ss_sp = fiber->stack;
    fiber->start.uc_stack.ss_size = STACK_BYTES;
    fiber->start.uc_link = NULL;
    makecontext(&fiber->start, fiber_main, 0);
    fiber->started = false;
    fiber->waits = wait_for::nothing;
    fiber->block = block;
    fiber->thread = thread;
    fiber->open.clear();
    fiber->groups.clear();
}

// ---- What threads do together ----

void __syncthreads() {
    struct block *block = current->block;
    if (++block->arrived < launch->threads) {
        if (block->ended) {
            failure = "a barrier that not all threads reach";
            complain(failure);
        }
        yield(wait_for::barrier);
        return;
    }
    block->arrived = 0;
    for (unsigned t = 0; t < launch->threads; t++)
        if (block->fibers[t].waits == wait_for::barrier)
            block->fibers[t].waits = wait_for::nothing;
}

static float half_word(unsigned word, int odd) {
    return __uint_as_float(odd ? word & 0xffff0000 : word << 16);
}

static void compute_product(struct warp *w) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        int g = lane / 4, i = lane % 4;
        for (int word = 0; word < 4; word++)
            for (int odd = 0; odd < 2; odd++)
                a[g + word % 2 * 8][2 * i + word / 2 * 8 + odd] =
                    half_word(w->given[lane][word], odd);
        for (int word = 0; word < 2; word++)
            for (int odd = 0; odd < 2; odd++)
                b[2 * i + word * 8 + odd][g] = half_word(w->given[lane][4 + word], odd);
    }
    float sum[16][8] = {};
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < 8; c++)
                sum[r][c] += a[r][k] * b[k][c];
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            w->results[lane][i] = sum[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

// Leaves this lane's words and waits for the other lanes; the last one computes products.
static struct warp *with_warp(warp_operation operation, const unsigned *words, int count) {
    unsigned lane = current->thread % LANES;
    struct block *block = current->block;
    struct warp *w = &block->warps[current->thread / LANES];
    if (w->arrived && w->operation != operation) {
        failure = "lanes of a warp do different things";
        complain(failure);
    }
    w->operation = operation;
    if (count)
        memcpy(w->words[lane], words, (size_t)count * sizeof *words);
    if (++w->arrived < LANES) {
        yield(wait_for::warp);
        return w;
    }
    w->arrived = 0;
    memcpy(w->given, w->words, sizeof w->given);
    if (operation == warp_operation::product)
        compute_product(w);
    for (unsigned t = 0; t < LANES; t++) {
        struct fiber *other = &block->fibers[current->thread / LANES * LANES + t];
        if (other->waits == wait_for::warp)
            other->waits = wait_for::nothing;
    }
    return w;
}

void emulate_product(float (&sum)[4], const unsigned (&words)[6]) {
    struct warp *w = with_warp(warp_operation::product, words, 6);
    for (int i = 0; i < 4; i++)
        sum[i] += w->results[current->thread % LANES][i];
}

unsigned emulate_shuffle(unsigned word, int distance) {
    unsigned lane = current->thread % LANES;
    return with_warp(warp_operation::shuffle, &word, 1)->given[lane ^ (unsigned)distance][0];
}

unsigned emulate_transpose(unsigned word) {
    struct warp *w = with_warp(warp_operation::transpose, &word, 1);
    unsigned g = current->thread % LANES / 4, i = current->thread % 4, result = 0;
    for (unsigned odd = 0; odd < 2; odd++) { // element (2i + odd, g) of the source
        unsigned source = w->given[(2 * i + odd) * 4 + g / 2][0];
        result |= (source >> (g % 2 * 16) & 0xffff) << (odd * 16);
    }
    return result;
}

void __syncwarp() {
    with_warp(warp_operation::barrier, NULL, 0);
}

void __threadfence() {
}

unsigned atomicInc(unsigned *counter, unsigned limit) {
    unsigned before = *counter;
    *counter = before >= limit ? 0 : before + 1;
    return before;
}

unsigned atomicAdd(unsigned *counter, unsigned value) {
    unsigned before = *counter;
    *counter += value;
    return before;
}

// ---- Memory ----

unsigned emulate_bf16(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7fffffff) > 0x7f800000)
        return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

char *emulate_shared_memory() {
    return current->block->shared;
}

void emulate_copy(void *shared, const void *global, int bytes, bool wanted) {
    const char *to = (const char *)shared, *start = current->block->shared;
    if (to < start || to + bytes > start + launch->shared_bytes || (size_t)to % bytes ||
        (size_t)global % bytes) {
        failure = "a copy outside of shared memory, or not aligned";
        complain(failure);
    }
    memset(shared, 0xff, (size_t)bytes);
    current->open.push_back({shared, wanted ? global : NULL, (size_t)bytes});
}

void emulate_commit() {
    current->groups.push_back(current->open);
    current->open.clear();
}

void emulate_wait(int pending) {
    while ((int)current->groups.size() > pending) {
        for (const struct copy &copy : current->groups.front())
            if (copy.from)
                memcpy(copy.to, copy.from, copy.bytes);
            else
                memset(copy.to, 0, copy.bytes);
        current->groups.erase(current->groups.begin());
    }
}

void *emulate_allocate(size_t bytes) {
    size_t rounded = (bytes + 15) / 16 * 16, pages = (rounded + PAGE - 1) / PAGE * PAGE;
    char *map = (char *)mmap(NULL, pages + 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED || mprotect(map + PAGE, pages, PROT_READ | PROT_WRITE) != 0)
        return NULL;
    memset(map + PAGE, 0xff, pages);
    void *pointer = map + PAGE + pages - rounded;
    allocations[pointer] = {map, pages + 2 * PAGE};
    return pointer;
}

void emulate_release(void *pointer) {
    auto found = allocations.find(pointer);
    munmap(found->second.first, found->second.second);
    allocations.erase(found);
}

static void out_of_range(int, siginfo_t *info, void *) {
    char text[256];
    int n = snprintf(text, sizeof text,
                     "emulator: %s: block (%u, %u, %u) thread %u: address %p is out of range\n",
                     launch ? launch->name : "host", blockIdx.x, blockIdx.y, blockIdx.z,
                     threadIdx.x, info->si_addr);
    (void)!write(2, text, (size_t)n);
    _exit(70);
}

static void catch_faults() {
    static char stack[64 << 10];
    stack_t alternative = {};
    alternative.ss_sp = stack;
    alternative.ss_size = sizeof stack;
    sigaltstack(&alternative, NULL);
    struct sigaction action = {};
    action.sa_sigaction = out_of_range;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
}

// ---- Scheduling ----

static void start_block(struct block *block, unsigned index) {
    const unsigned *grid = launch->grid;
    block->active = true;
    block->index = index;
    block->place = {index % grid[0], index / grid[0] % grid[1], index / grid[0] / grid[1]};
    block->arrived = block->ended = 0;
    if (!block->shared_map) {
        block->shared_map = (char *)emulate_allocate(MOST_SHARED);
    }
    block->shared = block->shared_map + (MOST_SHARED - (launch->shared_bytes + 15) / 16 * 16);
    memset(block->shared_map, 0xff, MOST_SHARED);
    if (block->fibers.size() < launch->threads)
        block->fibers.resize(launch->threads);
    block->warps.assign(launch->threads / LANES, {});
    for (unsigned t = 0; t < launch->threads; t++)
        prepare_fiber(&block->fibers[t], block, t);
}

// Runs the lanes of one warp that can run. Whether there were any.
static bool run_warp(struct block *block, unsigned warp) {
    bool ran = false;
    unsigned first = random_below(LANES);
    for (unsigned i = 0; i < LANES && !failure; i++) {
        struct fiber *fiber = &block->fibers[warp * LANES + (first + i) % LANES];
        if (fiber->waits == wait_for::nothing) {
            resume(fiber);
            ran = true;
        }
    }
    return ran;
}

// A step of one block: a random warp, or the next one that can run.
static void run_block(struct block *block) {
    unsigned warps = launch->threads / LANES, first = random_below(warps);
    for (unsigned i = 0; i < warps; i++)
        if (run_warp(block, (first + i) % warps))
            return;
    if (!failure && block->ended < launch->threads) {
        failure = "threads wait for others that never come";
        complain(failure);
    }
}

int emulate_launch(const struct emulated_launch *wanted) {
    static bool catching;
    if (!catching)
        catch_faults();
    catching = true;
    launch = wanted;
    gridDim = {wanted->grid[0], wanted->grid[1], wanted->grid[2]};
    failure = NULL;
    std::vector<unsigned> order(wanted->grid[0] * wanted->grid[1] * wanted->grid[2]);
    for (unsigned i = 0; i < order.size(); i++) { // a random order of blocks
        unsigned j = random_below(i + 1);
        order[i] = order[j];
        order[j] = i;
    }
    unsigned next = 0, running = 0;
    while ((next < order.size() || running) && !failure) {
        struct block *block = &blocks[random_below(RESIDENT)];
        if (!block->active) {
            if (next == order.size())
                continue;
            start_block(block, order[next++]);
            running++;
        }
        run_block(block);
        if (block->ended == wanted->threads) {
            block->active = false;
            running--;
        }
    }
    for (struct block &block : blocks)
        block.active = false;
    launch = NULL;
    return failure ? -1 : 0;
}
