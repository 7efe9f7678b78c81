// The emulated machine: kernels in flight, the blocks that run, their threads; and what its two
// halves, threads (emulator.cc) and memory (memory.cc), need of each other.
#pragma once
#include <stdint.h>
#include <array>
#include <deque>
#include <map>
#include <vector>
#include "emulator.h"

enum {
    LANES = 32,
    MOST_WARPS = 32,
    RESIDENT = 4,       // blocks that run at a time, unless the launch is cooperative
    MOST_BARRIERS = 16, // of parts of a block
    MOST_BLOCK_TIME = 1 << 18,
};

enum class wait_for { nothing, warp, barrier, part_barrier, phase, kernel, ended };

// An asynchronous copy to shared memory, or (bytes 0) the end of a group of copies.
struct copy {
    char *to;
    uintptr_t from : 48; // 0: zeros
    uintptr_t bytes : 16;
};

// Copies under way, in order.
struct copy_queue {
    std::vector<struct copy> ring; // a power of two of them
    size_t first, end;             // counted on and on
    size_t groups;                 // ends of groups among them
};

// Accesses of a block that another one may rely on: all before the block's time `block`, those of
// warp thread / LANES before `warp`, those of `thread` before `own`.
struct knowledge {
    uint32_t instance;
    unsigned thread;
    uint32_t own, warp, block;
};

struct fiber {
    void *context[5]; // of __builtin_setjmp
    char *stack;
    struct block *block;
    unsigned thread;
    wait_for waits;
    unsigned part;               // which barrier of a part it waits for
    unsigned long long *awaited; // the barrier whose phase it waits for
    bool waited;                 // for the kernel before
    bool products_fenced;
    uint32_t shown; // what it wrote to shared memory before, products may read
    struct copy_queue copies;
    std::vector<struct knowledge> fenced;   // what a later atomic operation tells others
    std::vector<struct knowledge> observed; // what atomic operations told, of use behind a fence
    std::vector<struct knowledge> known;    //
};

// A product of a warpgroup under way, of one of its warps; no sums: the end of a group.
struct warpgroup_product {
    float (*sum[LANES])[4]; // [8][4]
    const unsigned *a[LANES];
    unsigned given[LANES][4]; // a, at the start
    const char *b;
    uint64_t written; // digest of who wrote b
};

struct warp {
    int operation;
    unsigned arrived;
    uint32_t time;            // of its last barrier: accesses of the warp before are ordered
    unsigned words[LANES][6]; // of the lanes that arrived
    unsigned given[LANES][6]; // of all lanes, until all have arrived at the next operation
    float results[LANES][4];
    std::deque<struct warpgroup_product> products;
    size_t product_groups;
    std::map<float (*)[4], std::array<float, LANES>> totals; // of sums that are under way
    struct warpgroup_product next;
};

// A barrier in shared memory that threads arrive at without waiting.
struct phase_barrier {
    unsigned arrivals, pending, phase; // of a phase, still to come in this one, how many have ended
};

// A copy to shared memory that a barrier tells the end of.
struct slot_copy {
    char *to;
    const void *from;
    size_t bytes;
    unsigned long long *barrier;
    int arrivals; // of those that the barrier expects
};

// One launch. Launches have consecutive numbers.
struct grid {
    struct emulated_launch launch;
    uint32_t number;
    std::vector<unsigned> order; // of its blocks
    unsigned next, ended;        // blocks: the next one to start, how many have ended
    unsigned waited, triggered;  // that waited for the kernel before, that let the next one start
    bool chained, complete;
    uint32_t floor;        // all launches of lower numbers are complete when this one starts
    uint32_t waited_floor; // the same behind the wait, when number - 1 is too
};

struct block {
    bool active;
    bool lax; // accesses are not checked for order
    struct grid *grid;
    uint32_t instance; // 1, 2, ...: of all blocks that ever ran
    struct {
        unsigned x, y, z;
    } place;
    unsigned arrived, ended; // at the barrier; threads
    unsigned part_arrived[MOST_BARRIERS];
    std::map<unsigned long long *, struct phase_barrier> phase_barriers;
    std::vector<struct slot_copy> slot_copies; // under way
    bool waited, triggered;                    // some thread; `all_waited`: all know, by a barrier
    bool all_waited;
    uint32_t time;         // counts barriers, warp barriers and fences, from start_time on
    uint32_t start_time;   //
    uint32_t barrier_time; // accesses before are ordered
    char *shared;
    std::vector<struct fiber *> fibers;
    struct warp warps[MOST_WARPS];
    std::vector<struct knowledge> known; // of other blocks, by all threads
};

// ---- emulator.cc ----

extern struct fiber *current;

// A message, with kernel, block and thread; does not return.
[[noreturn]] void emulate_fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Lets other threads run. Called at accesses, now and then.
void emulate_switch();
unsigned emulate_random(unsigned below);

// Arrivals at a barrier in shared memory.
void arrive_at(unsigned long long *barrier, unsigned arrivals);

// ---- memory.cc ----

// Where a slot's shared memory ends (it starts where the launch's size says).
char *shared_memory_end(unsigned slot);

// Forgets what was accessed there.
void forget_shared(unsigned slot);

// Ends a copy.
void land_slot(const struct slot_copy &copy);

// Whether the current thread has copies under way.
bool copies_under_way();

// 16 k of 64 columns of activations, as a descriptor with the 128-byte swizzle has them, at `b` in
// shared memory. Returns a digest of who wrote them last; `check`: it is a fault if this thread may
// not read it.
uint64_t read_blocks(const char *b, float (&columns)[16][64], bool check);

// A block starts: its number among all.
uint32_t new_instance(const struct grid *grid);
