// Threads, blocks and kernels: see emulator.h. A fiber runs until it waits for others; then the
// next lane of its warp runs, and behind the last one another warp, drawn at random.
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>
#include <map>
#include <string>
#include "device.h"
#include "machine.h"

enum {
    STACK_BYTES = 256 << 10, // of a fiber
    BURST = 32,              // times that a warp goes on, at most, before another one does
    LANDING = 8,             // a copy lands in one of so many steps
    STUCK = 1000000,         // times that threads asked in vain, and nothing else happened
};

enum warp_operation {
    PRODUCT,
    F16_PRODUCT,
    TRANSPOSE,
    SHUFFLE,
    BARRIER,
    MATRICES,
    WARPGROUP_PRODUCT,
    COMMIT_PRODUCTS,
    WAIT_PRODUCTS,
};

struct emulated_index threadIdx, blockIdx, gridDim;
struct fiber *current;

static struct block blocks[MOST_RESIDENT];
static std::vector<struct grid *> queue;
static size_t first;           // launches before it are complete
static uint32_t launches = 16; // number of the next one
static bool failed;
static unsigned asked; // times in a row that threads paused
static unsigned long long random_state = 1;
static void *scheduler[5]; // of __builtin_setjmp

// The lanes that run now, one after another: those of one warp, from lane `start` in steps of
// `stride`.
static struct {
    struct fiber **lanes;
    unsigned start, stride, next;
    bool ran, paused;
} turn;

void emulate_seed(unsigned long long seed) {
    random_state = seed * 2 + 1;
}

unsigned emulate_random(unsigned below) {
    random_state = random_state * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(random_state >> 33) % below;
}

static void say(const struct fiber *fiber, const char *format, va_list arguments) {
    const struct block *block = fiber->block;
    fprintf(stderr, "emulator: %s: block (%u, %u, %u) thread %u: ", block->grid->launch.name,
            block->place.x, block->place.y, block->place.z, fiber->thread);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    failed = true;
}

[[noreturn]] __attribute__((noinline)) static void leave() {
    __builtin_longjmp(scheduler, 1);
}

void emulate_fault(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    say(current, format, arguments);
    va_end(arguments);
    leave();
}

// ---- Fibers ----

[[noreturn]] static void next_lane();

// The body of every fiber; a fiber serves one thread after another.
static void fiber_main() {
    for (;;) {
        struct block *block = current->block;
        block->grid->launch.run(block->grid->launch.argument);
        if (copies_under_way())
            emulate_fault("ends with copies under way");
        if (block->arrived) // at the barrier of all
            emulate_fault("ends while others wait at a barrier");
        if (!block->warps[current->thread / LANES].products.empty())
            emulate_fault("ends with products under way");
        end_looks();
        block->ended++;
        asked = 0;
        current->waits = wait_for::ended;
        if (!__builtin_setjmp(current->context))
            next_lane();
    }
}

[[noreturn]] __attribute__((noinline)) static void start_fiber(struct fiber *fiber) {
    static unsigned fibers;
    ucontext_t context;
    fiber->stack = (char *)mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    getcontext(&context);
    context.uc_stack.ss_sp = fiber->stack;
    // Not all at the same place of a page: caches like that better.
    context.uc_stack.ss_size = STACK_BYTES - fibers++ % 61 * 1088;
    context.uc_link = NULL;
    makecontext(&context, fiber_main, 0);
    setcontext(&context);
    abort();
}

[[noreturn]] __attribute__((noinline)) static void next_lane() {
    while (turn.next < LANES) {
        struct fiber *fiber = turn.lanes[(turn.start + turn.next++ * turn.stride) % LANES];
        if (fiber->waits != wait_for::nothing)
            continue;
        turn.ran = true;
        turn.paused = false;
        current = fiber;
        threadIdx = {fiber->thread, 0, 0};
        if (!fiber->stack)
            start_fiber(fiber);
        __builtin_longjmp(fiber->context, 1);
    }
    leave();
}

__attribute__((noinline)) void wait_until_released(wait_for what) {
    if (what != wait_for::nothing && what != wait_for::warp) // a warp may ask together
        asked = 0;
    current->waits = what;
    if (!__builtin_setjmp(current->context))
        next_lane();
}

void note_progress() {
    asked = 0;
}

void emulate_switch() {
    wait_until_released(wait_for::nothing);
}

void emulate_pause() {
    if (++asked > STUCK)
        emulate_fault("asks again and again, and nobody else can go on");
    turn.paused = true;
    wait_until_released(wait_for::nothing);
}

// ---- What threads do together ----

// Threads from `first` on, `count` of them, go on.
static void release(struct block *block, unsigned first_thread, unsigned count, wait_for what) {
    for (unsigned t = first_thread; t < first_thread + count; t++)
        if (block->fibers[t]->waits == what)
            block->fibers[t]->waits = wait_for::nothing;
}

// What one of these threads knows of other blocks, all know.
static void share_knowledge(struct block *block, unsigned first_thread, unsigned count,
                            std::vector<struct knowledge> *all) {
    for (unsigned t = first_thread; t < first_thread + count; t++) {
        std::vector<struct knowledge> &known = block->fibers[t]->known;
        all->insert(all->end(), known.begin(), known.end());
        known.clear();
    }
}

void __syncthreads() {
    struct block *block = current->block;
    unsigned threads = block->grid->launch.threads;
    if (block->ended)
        emulate_fault("a barrier that not all threads reach");
    if (++block->arrived < threads) {
        wait_until_released(wait_for::barrier);
        return;
    }
    block->arrived = 0;
    block->barrier_time = ++block->time;
    block->all_waited |= block->waited;
    if (block->clocked)
        meet(block->fibers.data(), threads);
    else
        share_knowledge(block, 0, threads, &block->known);
    release(block, 0, threads, wait_for::barrier);
}

static void compute_product(struct warp *w, bool f16) {
    float a[16][16], b[16][8];
    for (int lane = 0; lane < LANES; lane++) {
        int g = lane / 4, i = lane % 4;
        for (int word = 0; word < 4; word++)
            for (int odd = 0; odd < 2; odd++)
                a[g + word % 2 * 8][2 * i + word / 2 * 8 + odd] =
                    half_word(w->given[lane][word], odd, f16);
        for (int word = 0; word < 2; word++)
            for (int odd = 0; odd < 2; odd++)
                b[2 * i + word * 8 + odd][g] = half_word(w->given[lane][4 + word], odd, f16);
    }
    for (int r = 0; r < 16; r++) {
        float sum[8] = {};
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < 8; c++)
                sum[c] += a[r][k] * b[k][c];
        for (int c = 0; c < 8; c++)
            w->results[r % 8 * 4 + c / 2][r / 8 * 2 + c % 2] = sum[c];
    }
}

// Of all that a warp does together, only its barrier orders accesses to memory.
static void order_warp(struct block *block, unsigned warp) {
    if (block->clocked) {
        meet(&block->fibers[warp * LANES], LANES);
        return;
    }
    std::vector<struct knowledge> all;
    share_knowledge(block, warp * LANES, LANES, &all);
    for (unsigned lane = 0; lane < LANES && !all.empty(); lane++)
        block->fibers[warp * LANES + lane]->known = all;
    block->warps[warp].time = ++block->time;
}

// ---- Products of a warpgroup ----
//
// Each warp's part by itself. What it reads is read when it starts, and must be the same when the
// warp waits for it; until then its sums are NaN.

static void add_warpgroup_product(const struct warpgroup_product &p, const float (&b)[16][256],
                                  std::array<float, 128> *(&totals)[LANES]) {
    float a[16][16], sum[256];
    for (int lane = 0; lane < LANES; lane++)
        for (int word = 0; word < 4; word++) // of a tile: columns 2i, then 2i + 8, of row g, g + 8
            for (int odd = 0; odd < 2; odd++)
                a[lane / 4 + word / 2 * 8][lane % 4 * 2 + word % 2 * 8 + odd] =
                    half_word(p.given[lane][word], odd, p.f16);
    for (int r = 0; r < 16; r++) {
        memset(sum, 0, sizeof sum);
        for (int k = 0; k < 16; k++)
            for (int c = 0; c < p.blocks * 8; c++)
                sum[c] += a[r][k] * b[k][c];
        for (int c = 0; c < p.blocks * 8; c++)
            (*totals[r % 8 * 4 + c % 8 / 2])[c / 8 * 4 + r / 8 * 2 + c % 2] += sum[c];
    }
}

// By the last lane of a warp.
static void start_product(struct warp *w) {
    float b[16][256];
    std::array<float, 128> *totals[LANES];
    struct warpgroup_product &p = w->next;
    p.written = read_columns(p, b, true);
    const int floats = p.blocks * 4; // of a lane
    for (int lane = 0; lane < LANES; lane++) {
        float *sum = p.sum[lane][0];
        memcpy(p.given[lane], p.a[lane], sizeof p.given[lane]);
        if (w->totals.find(p.sum[lane]) == w->totals.end())
            memcpy(w->totals[p.sum[lane]].data(), sum, (size_t)floats * sizeof *sum);
        totals[lane] = &w->totals[p.sum[lane]];
        for (int i = 0; i < floats; i++)
            sum[i] = NAN;
    }
    add_warpgroup_product(p, b, totals);
    w->products.push_back(p);
}

static void complete_product(struct warp *w, const struct warpgroup_product &p) {
    float b[16][256];
    if (read_columns(p, b, false) != p.written)
        emulate_fault("shared memory that a product under way reads was written");
    for (int lane = 0; lane < LANES; lane++) {
        bool used = false;
        if (memcmp(p.given[lane], p.a[lane], sizeof p.given[lane]) != 0)
            emulate_fault("registers that a product under way reads were written");
        for (const struct warpgroup_product &other : w->products)
            used |= other.sum[lane] == p.sum[lane];
        if (used)
            continue;
        memcpy(p.sum[lane], w->totals[p.sum[lane]].data(), (size_t)p.blocks * 4 * sizeof(float));
        w->totals.erase(p.sum[lane]);
    }
}

static void complete_products(struct warp *w, unsigned pending) {
    while (w->product_groups > pending) {
        struct warpgroup_product p = w->products.front();
        w->products.pop_front();
        if (p.blocks)
            complete_product(w, p);
        else
            w->product_groups--;
    }
}

// Leaves this lane's words and waits for the other lanes; the last one computes products.
static struct warp *with_warp(warp_operation operation, const unsigned *words, int count) {
    unsigned lane = current->thread % LANES;
    struct block *block = current->block;
    struct warp *w = &block->warps[current->thread / LANES];
    if (w->arrived && w->operation != operation)
        emulate_fault("lanes of a warp do different things");
    w->operation = operation;
    for (int i = 0; i < count; i++)
        w->words[lane][i] = words[i];
    if (++w->arrived < LANES) {
        wait_until_released(wait_for::warp);
        return w;
    }
    w->arrived = 0;
    for (int i = 0; i < LANES; i++)
        memcpy(w->given[i], w->words[i], (size_t)count * sizeof *words);
    if (operation != SHUFFLE && operation != BARRIER)
        note_progress();
    if (operation == PRODUCT || operation == F16_PRODUCT)
        compute_product(w, operation == F16_PRODUCT);
    if (operation == BARRIER)
        order_warp(block, current->thread / LANES);
    if (operation == WARPGROUP_PRODUCT)
        start_product(w);
    if (operation == COMMIT_PRODUCTS) {
        w->products.push_back({});
        w->product_groups++;
    }
    if (operation == WAIT_PRODUCTS && !w->products.empty() && w->products.back().blocks)
        emulate_fault("a wait for products that are in no group");
    if (operation == WAIT_PRODUCTS)
        complete_products(w, words[0]);
    release(block, current->thread - lane, LANES, wait_for::warp);
    return w;
}

void emulate_product(float (&sum)[4], const unsigned (&words)[6], bool f16) {
    struct warp *w = with_warp(f16 ? F16_PRODUCT : PRODUCT, words, 6);
    for (int i = 0; i < 4; i++)
        sum[i] += w->results[current->thread % LANES][i];
}

unsigned emulate_shuffle(unsigned word, int distance) {
    unsigned lane = current->thread % LANES;
    return with_warp(SHUFFLE, &word, 1)->given[lane ^ (unsigned)distance][0];
}

unsigned emulate_transpose(unsigned word) {
    struct warp *w = with_warp(TRANSPOSE, &word, 1);
    unsigned g = current->thread % LANES / 4, i = current->thread % 4, result = 0;
    for (unsigned odd = 0; odd < 2; odd++) { // element (2i + odd, g) of the source
        unsigned source = w->given[(2 * i + odd) * 4 + g / 2][0];
        result |= (source >> (g % 2 * 16) & 0xffff) << (odd * 16);
    }
    return result;
}

void __syncwarp() {
    with_warp(BARRIER, NULL, 0);
}

void emulate_matrices(unsigned (&words)[4]) {
    unsigned g = current->thread % LANES / 4, i = current->thread % 4;
    const struct warp *w = with_warp(MATRICES, words, 4);
    for (unsigned m = 0; m < 4; m++)
        words[m] = w->given[8 * m + g][i];
}

unsigned emulate_shared_address(const void *shared) {
    return (unsigned)((const char *)shared - current->block->shared);
}

void emulate_warpgroup_product(float (*sum)[4], int blocks, const unsigned *a, unsigned long long b,
                               bool f16) {
    struct block *block = current->block;
    struct warp *w = &block->warps[current->thread / LANES];
    unsigned lane = current->thread % LANES;
    if (!current->products_fenced)
        emulate_fault("products without a fence before them");
    if (w->arrived && w->next.b != b)
        emulate_fault("lanes of a warp multiply different columns");
    w->next.sum[lane] = sum;
    w->next.blocks = blocks;
    w->next.f16 = f16;
    w->next.a[lane] = a;
    w->next.b = b;
    with_warp(WARPGROUP_PRODUCT, NULL, 0);
}

void emulate_fence_products() {
    current->products_fenced = true;
}

void emulate_commit_products() {
    with_warp(COMMIT_PRODUCTS, NULL, 0);
    current->products_fenced = false;
}

void emulate_wait_products(int pending) {
    unsigned word = (unsigned)pending;
    with_warp(WAIT_PRODUCTS, &word, 1);
}

// ---- Kernels ----

// How this thread may rely on the kernel before: it is complete, and so are those that a block of
// it waited for.
static void note_wait() {
    struct block *block = current->block;
    current->waited = true;
    if (!block->waited) {
        block->waited = true;
        block->grid->waited++;
    }
}

static struct grid *grid_before(const struct grid *grid) {
    size_t index = grid->number - queue[0]->number;
    return index ? queue[index - 1] : NULL;
}

void emulate_wait_for_kernel() {
    struct grid *grid = current->block->grid, *before = grid_before(grid);
    if (grid->chained && !before->complete)
        wait_until_released(wait_for::kernel);
    if (grid->chained)
        grid->waited_floor = before->waited || !before->chained ? grid->number : before->floor;
    note_wait();
}

static void trigger(struct block *block) {
    if (!block->triggered)
        block->grid->triggered++;
    block->triggered = true;
}

void emulate_trigger() {
    trigger(current->block);
}

bool emulate_kept(int statement) {
    static std::map<std::string, std::vector<bool>> *met;
    static const char *skip = getenv("EMULATOR_SKIP"), *list = getenv("EMULATOR_STATEMENTS");
    const char *kernel = current->block->grid->launch.name;
    if (list) { // append what is met for the first time
        if (!met)
            met = new std::map<std::string, std::vector<bool>>;
        std::vector<bool> &here = (*met)[kernel];
        if (here.size() <= (size_t)statement)
            here.resize((size_t)statement + 1);
        FILE *file = here[(size_t)statement] ? NULL : fopen(list, "a");
        here[(size_t)statement] = true;
        if (file) {
            fprintf(file, "%d %s\n", statement, kernel);
            fclose(file);
        }
    }
    if (!skip || atoi(skip) != statement)
        return true;
    const char *only = strchr(skip, ' ');
    return only && strcmp(only + 1, kernel) != 0;
}

char *emulate_shared_memory() {
    return current->block->shared;
}

// ---- Scheduling ----

void emulate_launch(const struct emulated_launch *launch) {
    struct grid *grid = new struct grid();
    grid->launch = *launch;
    grid->number = launches++;
    grid->chained = launch->chained && !queue.empty();
    queue.push_back(grid);
}

static void start_grid(struct grid *grid) {
    const unsigned *extent = grid->launch.grid;
    const struct grid *before = grid_before(grid);
    grid->order.resize(extent[0] * extent[1] * extent[2]);
    for (unsigned i = 0; i < grid->order.size(); i++) {
        unsigned j = emulate_random(i + 1);
        grid->order[i] = grid->order[j];
        grid->order[j] = i;
    }
    grid->floor = grid->number;
    if (grid->chained)
        grid->floor = !before->chained || before->waited == before->order.size() ? before->number
                                                                                 : before->floor;
    grid->waited_floor = grid->floor;
}

// The launch whose blocks may start now: one that nothing is before, or chained to one of which
// every block has said so or has ended. NULL: none.
static struct grid *find_startable() {
    for (size_t i = first; i < queue.size(); i++) {
        struct grid *grid = queue[i];
        if (grid->order.empty()) {
            const struct grid *before = i > first ? queue[i - 1] : NULL;
            if (before && (!grid->chained || before->triggered < before->order.size() ||
                           grid->launch.cooperative))
                return NULL;
            start_grid(grid);
        }
        if (grid->next < grid->order.size())
            return grid;
    }
    return NULL;
}

static void start_block(struct block *block, struct grid *grid) {
    unsigned index = grid->order[grid->next++], threads = grid->launch.threads;
    const unsigned *extent = grid->launch.grid;
    block->active = true;
    block->grid = grid;
    block->instance = new_instance(grid);
    if (grid->next == 1)
        grid->first_instance = block->instance;
    block->cooperative = grid->launch.cooperative;
    block->index =
        block->cooperative ? block->instance - grid->first_instance : (unsigned)(block - blocks);
    if (block->cooperative)
        use_clocks(block);
    block->place = {index % extent[0], index / extent[0] % extent[1],
                    index / extent[0] / extent[1]};
    block->arrived = block->ended = 0;
    memset(block->part_arrived, 0, sizeof block->part_arrived);
    block->phase_barriers.clear();
    block->waited = block->triggered = block->all_waited = false;
    if (block->time >= MOST_BLOCK_TIME) {
        forget_shared((unsigned)(block - blocks));
        block->time = 0;
    }
    block->start_time = ++block->time;
    block->barrier_time = 0;
    block->known.clear();
    block->shared =
        shared_memory_end((unsigned)(block - blocks)) - (grid->launch.shared_bytes + 15) / 16 * 16;
    while (block->fibers.size() < threads)
        block->fibers.push_back(new struct fiber());
    for (unsigned w = 0; w < threads / LANES; w++) {
        block->warps[w].arrived = block->warps[w].time = 0;
        block->warps[w].flow = {};
    }
    for (unsigned t = 0; t < threads; t++) {
        struct fiber *fiber = block->fibers[t];
        fiber->block = block;
        fiber->thread = t;
        fiber->waits = wait_for::nothing;
        fiber->waited = fiber->products_fenced = false;
        fiber->fenced.clear();
        fiber->observed.clear();
        fiber->known.clear();
        fiber->sought.clear();
        fiber->clock = NULL;
    }
}

// Runs the lanes of one warp that can run. Whether there were any.
static bool run_warp(struct block *block, unsigned warp) {
    turn.lanes = &block->fibers[warp * LANES];
    turn.start = emulate_random(LANES);
    turn.stride = emulate_random(LANES / 2) * 2 + 1;
    turn.next = 0;
    turn.ran = turn.paused = false;
    if (!__builtin_setjmp(scheduler))
        next_lane();
    return turn.ran;
}

static void end_block(struct block *block) {
    struct grid *grid = block->grid;
    if (!block->slot_copies.empty()) {
        if (!__builtin_setjmp(scheduler))
            emulate_fault("ends with copies under way");
        return;
    }
    block->active = false;
    trigger(block);
    if (block->clocked)
        forget_shared((unsigned)(block - blocks));
    end_clocks(block);
    if (++grid->ended < grid->order.size())
        return;
    grid->complete = true;
    for (struct block &other : blocks)
        if (other.active && other.grid->number == grid->number + 1)
            release(&other, 0, other.grid->launch.threads, wait_for::kernel);
    while (first < queue.size() && queue[first]->complete)
        first++;
}

// Runs a random warp of the block, or the next one that can run, for a while. Whether there was
// one.
static bool run_block(struct block *block) {
    const struct emulated_launch *launch = &block->grid->launch;
    unsigned warps = launch->threads / LANES, start = emulate_random(warps);
    blockIdx = {block->place.x, block->place.y, block->place.z};
    gridDim = {launch->grid[0], launch->grid[1], launch->grid[2]};
    for (unsigned i = 0; i < warps; i++) {
        unsigned warp = (start + i) % warps, burst = emulate_random(BURST);
        if (!run_warp(block, warp))
            continue;
        while (burst-- && !failed && !turn.paused && run_warp(block, warp))
            ;
        if (block->ended == launch->threads && !failed)
            end_block(block);
        return true;
    }
    return false;
}

// Ends a random one of the copies whose end a barrier tells. Whether there was one.
static bool end_copy() {
    unsigned start = emulate_random(MOST_RESIDENT);
    for (unsigned i = 0; i < MOST_RESIDENT; i++) {
        struct block *block = &blocks[(start + i) % MOST_RESIDENT];
        std::vector<struct slot_copy> &copies = block->slot_copies;
        if (!block->active || copies.empty())
            continue;
        std::swap(copies[emulate_random((unsigned)copies.size())], copies.back());
        struct slot_copy copy = copies.back();
        copies.pop_back();
        current = block->fibers[0];
        if (!__builtin_setjmp(scheduler))
            end_slot_copy(copy);
        return true;
    }
    return false;
}

// One step of a random block, running or new. Whether there was one that could go on.
static bool step() {
    if (emulate_random(LANDING) == 0 && end_copy())
        return true;
    unsigned start = emulate_random(MOST_RESIDENT);
    for (unsigned i = 0; i < MOST_RESIDENT; i++) {
        unsigned slot = (start + i) % MOST_RESIDENT;
        struct block *block = &blocks[slot];
        if (!block->active) {
            struct grid *grid = find_startable();
            if (!grid || (slot >= RESIDENT && !grid->launch.cooperative))
                continue;
            start_block(block, grid);
        }
        if (run_block(block))
            return true;
    }
    return end_copy();
}

static void tell_deadlock(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    for (const struct block &block : blocks)
        for (unsigned t = 0; block.active && t < block.grid->launch.threads && !failed; t++)
            if (block.fibers[t]->waits != wait_for::nothing &&
                block.fibers[t]->waits != wait_for::kernel &&
                block.fibers[t]->waits != wait_for::ended)
                say(block.fibers[t], format, arguments);
    va_end(arguments);
    failed = true;
}

static void out_of_range(int, siginfo_t *info, void *) {
    char text[256];
    int n = snprintf(text, sizeof text,
                     "emulator: %s: block (%u, %u, %u) thread %u: address %p is out of range\n",
                     current ? current->block->grid->launch.name : "host", blockIdx.x, blockIdx.y,
                     blockIdx.z, threadIdx.x, info->si_addr);
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

int emulate_finish() {
    static bool catching;
    if (!catching)
        catch_faults();
    catching = true;
    while (first < queue.size() && !failed)
        if (!step())
            tell_deadlock("waits for threads that never come");
    for (struct grid *grid : queue)
        delete grid;
    queue.clear();
    first = 0;
    current = NULL;
    return failed ? -1 : 0;
}
