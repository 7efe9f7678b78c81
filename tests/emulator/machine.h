// The emulated machine: kernels in flight, the blocks that run, their threads; and what its two
// halves, threads (emulator.cc) and memory (memory.cc), need of each other.
#pragma once
#include <stdint.h>
#include <array>
#include <deque>
#include <map>
#include <memory>
#include <vector>
#include "emulator.h"

enum {
    LANES = 32,
    MOST_WARPS = 32,
    RESIDENT = 4,       // blocks that run at a time, unless the launch is cooperative
    MOST_BARRIERS = 16, // of parts of a block
    MOST_BLOCK_TIME = 1 << 18,
    TIME_BITS = 20, // of a block's time in a record of an access
    MOST_TIME = 1 << TIME_BITS,
};

// Who accessed memory: a thread, or several of a warp, of a block, of a launch, of all that it has
// a set of; a copy that ended with a phase of a barrier, or one under way.
enum : unsigned {
    THREADS = 1024,
    OF_WARP = THREADS, // + warp
    OF_BLOCK = OF_WARP + MOST_WARPS,
    OF_LAUNCH,
    OF_SET,
    COPIED,           // + index of the barrier
    UNDER_WAY = 2048, // + thread
};

// What a thread of a clocked block relies on: what the block's warps, their first lanes and copies
// did before these times.
enum {
    CLOCK_WARPS = MOST_COOPERATIVE / LANES,
    CLOCK_COPIES = 64, // barriers that tell of them
    FIRST_LANES = CLOCK_WARPS,
    COPIES_TOLD = 2 * CLOCK_WARPS,
    CLOCK_TIMES = COPIES_TOLD + CLOCK_COPIES,
};

struct vector_clock {
    uint32_t times[CLOCK_TIMES];
};

typedef std::shared_ptr<const struct vector_clock> known_clock; // NULL: it relies on nothing

// Whose data has come to a warp of a cooperative launch, told from block to block: that of what
// warps, CLOCK_WARPS of each block, did before these times.
struct flow {
    uint32_t times[MOST_RESIDENT * CLOCK_WARPS];
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

// What a thread looked for in a round and has not found.
struct sought {
    const float *at;
    unsigned round;
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
    struct copy_queue copies;
    std::vector<struct knowledge> fenced;   // what a later atomic operation tells others
    std::vector<struct knowledge> observed; // what atomic operations told, of use behind a fence
    std::vector<struct knowledge> known;    //
    known_clock clock;                      // in a clocked block
    std::vector<struct sought> sought;      // what it has looked for and not found
};

// A product of a warpgroup under way, of one of its warps; no sums: the end of a group.
struct warpgroup_product {
    float (*sum[LANES])[4]; // [blocks][4], of 8 columns each
    int blocks;
    bool f16; // else bf16
    const unsigned *a[LANES];
    unsigned given[LANES][4]; // a, at the start
    unsigned long long b;     // a matrix descriptor
    uint64_t written;         // digest of who wrote what lies there
};

struct warp {
    int operation;
    unsigned arrived;
    uint32_t time; // of its last barrier: accesses of the warp before are ordered
    struct flow flow;
    unsigned words[LANES][6]; // of the lanes that arrived
    unsigned given[LANES][6]; // of all lanes, until all have arrived at the next operation
    float results[LANES][4];
    std::deque<struct warpgroup_product> products;
    size_t product_groups;
    std::map<float (*)[4], std::array<float, 128>> totals; // of sums that are under way
    struct warpgroup_product next;
};

// A barrier in shared memory that threads arrive at without waiting.
struct phase_barrier {
    unsigned arrivals, pending, phase; // of a phase, still to come in this one, how many have ended
    size_t bytes, unstarted;           // still to come in this phase; of these not being copied yet
    unsigned index;                    // among those of the block
    unsigned maker;                    // the thread that initialised it,
    uint32_t time;                     // when
    bool published;
    known_clock coming, told; // by the arrivals of this phase, of the last one
    struct flow coming_flow, flow;
};

// A copy to shared memory that a barrier tells the end of.
struct slot_copy {
    char *to;
    const void *from;
    size_t bytes;
    unsigned long long *barrier;
    known_clock told; // by the thread that started it
};

// One launch. Launches have consecutive numbers.
struct grid {
    struct emulated_launch launch;
    uint32_t number;
    std::vector<unsigned> order; // of its blocks
    unsigned next, ended;        // blocks: the next one to start, how many have ended
    unsigned waited, triggered;  // that waited for the kernel before, that let the next one start
    bool chained, complete;
    uint32_t first_instance; // of its blocks
    uint32_t floor;          // all launches of lower numbers are complete when this one starts
    uint32_t waited_floor;   // the same behind the wait, when number - 1 is too
};

struct block {
    bool active;
    bool cooperative;
    bool clocked;   // its threads have clocks: a cooperative launch, or barriers in shared memory
    unsigned index; // in a cooperative launch, else the block's slot
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

// The current thread does not go on until somebody says so.
void wait_until_released(wait_for what);

// Who asks again and again may find something new.
void note_progress();

// ---- cooperative.cc ----

static inline unsigned flow_index(unsigned block, unsigned warp) {
    return block * CLOCK_WARPS + warp;
}

// The flow of the current thread's warp, when the thread tells something: all that the warp did so
// far is taken to be in it.
const struct flow *tell_flow();

// What was told has come to the current thread.
void follow(const struct flow &told);

void want_cooperative();

// From now on the threads of the current block have clocks.
void use_clocks(struct block *block);

// The block ends.
void end_clocks(struct block *block);

// Threads meet at a barrier, whole warps in order.
void meet(struct fiber *const *fibers, unsigned count);

void start_slot_copy(char *to, const void *from, size_t bytes, unsigned long long *barrier);

// Ends a copy of the current thread's block.
void end_slot_copy(const struct slot_copy &copy);

// Whether an access, of somebody else in the block, is ordered before what the owner of the clock
// does now.
static inline bool is_known(const known_clock &clock, unsigned who, uint32_t time) {
    if (!clock || who >= UNDER_WAY)
        return false;
    const uint32_t *times = clock->times;
    if (who >= COPIED)
        return time < times[COPIES_TOLD + who - COPIED];
    if (who >= OF_WARP)
        return time < times[who - OF_WARP];
    return time < times[who / LANES] ||
           (who % LANES == 0 && time < times[FIRST_LANES + who / LANES]);
}

// ---- memory.cc ----

// Where a slot's shared memory ends (it starts where the launch's size says).
char *shared_memory_end(unsigned slot);

// Forgets what was accessed there.
void forget_shared(unsigned slot);

// The end of a copy that the barrier of this index tells.
void land_slot(const struct slot_copy &copy, unsigned index);

void write_barrier(unsigned long long *barrier);

// No clocked block runs any more.
void forget_readers();

// Whether the current thread has copies under way.
bool copies_under_way();

// The current thread ends: it must have found all that it looked for.
void end_looks();

// A 16-bit number of a word.
static inline float half_word(unsigned word, unsigned odd, bool f16) {
    unsigned half = odd ? word >> 16 : word & 0xffff;
    return f16 ? f16_to_float((uint16_t)half) : __uint_as_float(half << 16);
}

// 16 k of the columns of a product, as its descriptor says where they lie in shared memory. Returns
// a digest of who wrote them last; `check`: it is a fault if this thread may not read it.
uint64_t read_columns(const struct warpgroup_product &p, float (&columns)[16][256], bool check);

// A block starts: its number among all.
uint32_t new_instance(const struct grid *grid);
