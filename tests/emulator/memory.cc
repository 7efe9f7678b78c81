// Device memory and shared memory, and a record of who accessed what. The kernels are compiled so
// that each of their accesses calls a function here. Reported are addresses out of range, reads of
// shared memory that the block has not written, and accesses to the same place, one of them a
// write, that nothing orders: no barrier, no wait for the kernel before, no fence with an atomic
// operation. That does not depend on which of them came first, so a missing barrier shows
// whatever the order of threads happens to be.
//
// A thread's accesses are ordered among themselves; those of a warp by __syncwarp, but not by
// shuffles and products; those of a block by __syncthreads. Copies to shared memory write from when
// they are started to when their thread has waited for them. In cooperative launches, and in blocks
// with barriers in shared memory, the clocks of cooperative.cc say what is ordered, and all readers
// of a place are kept; in device memory only of a cooperative launch. Its blocks tell each other
// floats. What another block touched before it told something may be written by who knows of that;
// what another block wrote in the launch is read only by a look at a float that it told.
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <algorithm>
#include <map>
#include <unordered_map>
#include "device.h"
#include "machine.h"

enum : size_t {
    PAGE = 4096,
    SLOT_BYTES = 256 << 10,                    // of address space for a block's shared memory
    SHARED_BYTES = MOST_RESIDENT * SLOT_BYTES, // shared memory lies first
    DEVICE_BYTES = (size_t)4 << 30,            // then device memory
    ARENA_BYTES = SHARED_BYTES + DEVICE_BYTES,
    SHARED_GRAIN = 4, // bytes that have one record
    DEVICE_GRAIN = 2,
};

// A record of an access, in shared memory: who << 20 | the block's time; 0: none. Times go on from
// one block to the next in the same slot. In device memory the block's instance << 32 is added.
// With OF_SET, instead of the time: which one.
struct shared_cell {
    uint32_t written, read;
};

struct device_cell {
    uint64_t written, read;
};

struct allocation {
    size_t start, end; // in the arena
    bool written;      // by a kernel; before that, reads are not recorded
};

// What each page of the arena is; READ: wholly in an allocation that no kernel has written.
enum page_kind : unsigned char { OUTSIDE, READ, OTHER };

static char *arena;
static struct shared_cell *shared_cells;
static struct device_cell *device_cells;
static std::vector<uint32_t> launch_of = {0}; // of each instance
static size_t taken = SHARED_BYTES;           // of the arena
static struct allocation **pages;             // the allocation of each page, or NULL
static enum page_kind *page_kinds;
static unsigned until_switch;

static unsigned switch_period() {
    static const char *period = getenv("EMULATOR_SWITCH");
    return period ? (unsigned)atoi(period) : 0;
}

static void *reserve(size_t bytes, int protection) {
    void *found = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) {
        perror("emulator: reserving memory");
        exit(70);
    }
    return found;
}

static void open_arena() {
    if (arena)
        return;
    const int usable = PROT_READ | PROT_WRITE;
    arena = (char *)reserve(ARENA_BYTES, PROT_NONE);
    mprotect(arena, SHARED_BYTES, usable);
    shared_cells = (struct shared_cell *)reserve(
        SHARED_BYTES / SHARED_GRAIN * sizeof(struct shared_cell), usable);
    device_cells = (struct device_cell *)reserve(
        DEVICE_BYTES / DEVICE_GRAIN * sizeof(struct device_cell), usable);
    pages = (struct allocation **)reserve(ARENA_BYTES / PAGE * sizeof *pages, usable);
    page_kinds = (enum page_kind *)reserve(ARENA_BYTES / PAGE * sizeof *page_kinds, usable);
    until_switch = switch_period() ? 1 + emulate_random(switch_period()) : 0;
}

char *shared_memory_end(unsigned slot) {
    return arena + (slot + 1) * SLOT_BYTES;
}

uint32_t new_instance(const struct grid *grid) {
    open_arena();
    launch_of.push_back(grid->number);
    return (uint32_t)launch_of.size() - 1;
}

void forget_shared(unsigned slot) {
    memset(shared_cells + slot * SLOT_BYTES / SHARED_GRAIN, 0,
           SLOT_BYTES / SHARED_GRAIN * sizeof(struct shared_cell));
}

// ---- Order ----

static uint32_t shared_record(unsigned who) {
    return (uint32_t)who << TIME_BITS | current->block->time;
}

static uint64_t device_record(unsigned who) {
    return (uint64_t)current->block->instance << 32 | shared_record(who);
}

// Readers of a place: of each block and warp one record.
struct reader_set {
    uint32_t readers[MOST_RESIDENT][CLOCK_WARPS];
};

static std::vector<struct reader_set> sets;
static std::vector<unsigned> unused_sets;

void forget_readers() {
    sets.clear();
    unused_sets.clear();
}

static bool is_set(uint32_t access) {
    return access >> TIME_BITS == OF_SET;
}

static unsigned index_of(uint32_t instance) {
    return instance - current->block->grid->first_instance;
}

// Whether an access of a clocked block of this launch is ordered before what the current thread
// does now: by the thread's clock or, of another block, by what data has come from there.
static bool is_ordered_in(unsigned block, uint32_t access) {
    unsigned who = access >> TIME_BITS, time = access % MOST_TIME;
    if (block == current->block->index)
        return who == current->thread || is_known(current->clock, who, time);
    const struct flow *flow = &current->block->warps[current->thread / LANES].flow;
    return time < flow->times[flow_index(block, who < THREADS ? who / LANES : who - OF_WARP)];
}

static bool is_ordered_set(unsigned index) {
    for (unsigned block = 0; block < MOST_RESIDENT; block++)
        for (uint32_t reader : sets[index].readers[block])
            if (reader && !is_ordered_in(block, reader))
                return false;
    return true;
}

// The record of who read: `access` of a block of this launch, which is not known to be ordered, and
// the current thread.
static uint32_t add_reader(unsigned block, uint32_t access) {
    unsigned who = access >> TIME_BITS, warp = current->thread / LANES, index = access % MOST_TIME;
    uint32_t mine = shared_record(current->thread), several = shared_record(OF_WARP + warp);
    if (who != OF_SET) {
        unsigned its_warp = who < THREADS ? who / LANES : who - OF_WARP;
        if (block == current->block->index && its_warp == warp)
            return several;
        if (unused_sets.empty()) {
            unused_sets.push_back((unsigned)sets.size());
            sets.push_back({});
        }
        index = unused_sets.back();
        unused_sets.pop_back();
        sets[index] = {};
        sets[index].readers[block][its_warp] = access;
    }
    uint32_t *reader = &sets[index].readers[current->block->index][warp];
    *reader = !*reader || is_ordered_in(current->block->index, *reader) ? mine : several;
    return (uint32_t)OF_SET << TIME_BITS | index;
}

// Whether an access of the current block is ordered before what the current thread does now.
static inline bool ordered_here(uint32_t access) {
    const struct block *block = current->block;
    unsigned who = access >> TIME_BITS, time = access % MOST_TIME, thread = current->thread;
    if (block->clocked)
        return is_ordered_in(block->index, access);
    if (who >= UNDER_WAY)
        return false;
    unsigned warp = who < THREADS ? who / LANES : who - OF_WARP;
    return who == thread || time < block->barrier_time ||
           (warp == thread / LANES && time < block->warps[warp].time);
}

static bool known_to(const std::vector<struct knowledge> &known, uint32_t instance, unsigned who,
                     uint32_t time) {
    for (const struct knowledge &k : known) {
        if (k.instance != instance)
            continue;
        unsigned warp = who < THREADS ? who / LANES : who - OF_WARP;
        if (time < k.block || (time < k.warp && warp == k.thread / LANES) ||
            (time < k.own && who == k.thread))
            return true;
    }
    return false;
}

// The same of any access to device memory. by_flow: whether it is enough that data has come from
// another block of the launch.
static bool ordered(uint64_t access, bool by_flow) {
    const struct fiber *fiber = current;
    const struct block *block = fiber->block;
    uint32_t instance = (uint32_t)(access >> 32), launch = launch_of[instance];
    unsigned who = (uint32_t)access >> TIME_BITS, time = access % MOST_TIME;
    if (!access)
        return true;
    if (launch != block->grid->number) {
        bool waited = fiber->waited || block->all_waited;
        return launch < block->grid->floor || (waited && (launch < block->grid->waited_floor ||
                                                          launch + 1 == block->grid->number));
    }
    if (block->cooperative && is_set((uint32_t)access))
        return is_ordered_set(time);
    if (block->cooperative)
        return (by_flow || instance == block->instance) &&
               is_ordered_in(index_of(instance), (uint32_t)access);
    if (who == OF_LAUNCH)
        return false;
    if (instance == block->instance)
        return ordered_here((uint32_t)access);
    return known_to(block->known, instance, who, time) ||
           known_to(fiber->known, instance, who, time);
}

// Whose reads a record stands for that stood for those of `who`, and now for the current thread's.
static unsigned with_reader(unsigned who) {
    unsigned warp = current->thread / LANES;
    return who / LANES == warp || who == OF_WARP + warp ? OF_WARP + warp : OF_BLOCK;
}

// ---- Accesses ----

// Where the code of an access is: for addr2line.
static unsigned long code_offset(const void *code) {
    Dl_info self;
    if (!dladdr(code, &self))
        return 0;
    return (unsigned long)((const char *)code - (const char *)self.dli_fbase) - 1;
}

// access, other: "reads", "writes" or "overwrites"; distance: launches between them.
[[noreturn]] static void tell_race(const char *access, const char *memory, size_t offset,
                                   const char *other, unsigned who, bool elsewhere,
                                   unsigned distance, const void *code) {
    char whom[64], when[40] = "";
    if (who >= UNDER_WAY)
        snprintf(whom, sizeof whom, "a copy under way, of thread %u,", who - UNDER_WAY);
    else if (who >= COPIED)
        snprintf(whom, sizeof whom, "a copy");
    else if (who < THREADS)
        snprintf(whom, sizeof whom, "thread %u", who);
    else
        snprintf(whom, sizeof whom, "one of several threads");
    if (distance)
        snprintf(when, sizeof when, " %u launches before", distance);
    emulate_fault("%s %s memory at %#zx, which %s%s %s%s: nothing orders these (code %#lx)", access,
                  memory, offset, whom, elsewhere ? " of another block" : "", other, when,
                  code_offset(code));
}

// Every access to shared memory: in the grains that it touches, the accesses that it must be
// behind are ordered, or it is a fault.
static void touch_shared(struct shared_cell *cells, size_t offset, size_t bytes, bool write,
                         uint32_t mine, const void *code) {
    const struct shared_cell *end = cells + (offset + bytes + SHARED_GRAIN - 1) / SHARED_GRAIN;
    const struct block *block = current->block;
    const uint32_t start = block->start_time;
    for (struct shared_cell *c = cells + offset / SHARED_GRAIN; c < end; c++) {
        if (c->written % MOST_TIME < start) { // by an earlier block
            if (!write)
                emulate_fault("reads shared memory at %#zx, which nobody has written (code %#lx)",
                              offset, code_offset(code));
        } else if (!ordered_here(c->written)) {
            tell_race(write ? "writes" : "reads", "shared", offset, "writes",
                      c->written >> TIME_BITS, false, 0, code);
        }
        bool set = is_set(c->read);
        bool free = set ? write && is_ordered_set(c->read % MOST_TIME)
                        : c->read % MOST_TIME < start || ordered_here(c->read);
        if (write) {
            if (!free)
                tell_race("writes", "shared", offset, "reads", c->read >> TIME_BITS, false, 0,
                          code);
            if (set)
                unused_sets.push_back(c->read % MOST_TIME);
            *c = {mine, 0};
        } else if (free) {
            c->read = mine;
        } else if (block->clocked) {
            c->read = add_reader(block->index, c->read);
        } else {
            c->read = shared_record(with_reader(c->read >> TIME_BITS));
        }
    }
}

[[noreturn]] static void tell_device_race(bool write, size_t offset, const char *other,
                                          uint64_t access, const void *code) {
    uint32_t instance = (uint32_t)(access >> 32);
    tell_race(write ? "writes" : "reads", "device", offset, other, (uint32_t)access >> TIME_BITS,
              instance != current->block->instance,
              current->block->grid->number - launch_of[instance], code);
}

// The same in device memory.
static void touch_device(struct device_cell *cells, size_t offset, size_t bytes, bool write,
                         const void *code) {
    const uint64_t mine = device_record(current->thread);
    const struct block *block = current->block;
    const struct device_cell *end = cells + (offset + bytes + DEVICE_GRAIN - 1) / DEVICE_GRAIN;
    uint64_t good = 0; // known to be ordered
    for (struct device_cell *c = cells + offset / DEVICE_GRAIN; c < end; c++) {
        if (c->written != good && !ordered(c->written, write))
            tell_device_race(write, offset, "writes", c->written, code);
        good = c->written;
        if (c->read == mine && !write)
            continue;
        bool set = is_set((uint32_t)c->read) && launch_of[c->read >> 32] == block->grid->number;
        bool free = (write || !set) && ordered(c->read, true);
        if (write && !free)
            tell_device_race(write, offset, "reads", c->read, code);
        if (write && set)
            unused_sets.push_back((unsigned)c->read % MOST_TIME);
        if (write)
            *c = {mine, 0};
        else if (free)
            c->read = mine;
        else if (block->cooperative)
            c->read = (uint64_t)block->instance << 32 |
                      add_reader(index_of((uint32_t)(c->read >> 32)), (uint32_t)c->read);
        else if (c->read >> 32 == mine >> 32 && !block->clocked &&
                 (uint32_t)c->read >> TIME_BITS != OF_LAUNCH)
            c->read = device_record(with_reader((uint32_t)c->read >> TIME_BITS));
        else
            c->read = device_record(OF_LAUNCH);
    }
}

// The thread's access to shared memory, now or by a copy.
static void access_shared(size_t at, size_t bytes, bool write, uint32_t mine, const void *code) {
    size_t start = (size_t)(current->block->shared - arena);
    if (at < start || at + bytes > start + current->block->grid->launch.shared_bytes)
        emulate_fault("shared memory at %ld is out of range: there are %u bytes (code %#lx)",
                      (long)at - (long)start, current->block->grid->launch.shared_bytes,
                      code_offset(code));
    touch_shared(shared_cells + start / SHARED_GRAIN, at - start, bytes, write, mine, code);
}

static void note_written(struct allocation *allocation) {
    allocation->written = true;
    for (size_t page = allocation->start / PAGE; page < allocation->end / PAGE; page++)
        page_kinds[page] = OTHER;
}

static void switch_now_and_then() {
    if (until_switch && --until_switch == 0) {
        until_switch = 1 + emulate_random(switch_period());
        emulate_switch();
    }
}

// Where these bytes are, in device memory.
static struct allocation *find_allocation(const void *address, size_t bytes, const void *code) {
    size_t at = (size_t)((const char *)address - arena);
    struct allocation *allocation = at < ARENA_BYTES ? pages[at / PAGE] : NULL;
    if (!allocation || at < allocation->start || at + bytes > allocation->end)
        emulate_fault("device memory %p is out of range (code %#lx)", address, code_offset(code));
    return allocation;
}

static struct device_cell *cells_of(const struct allocation *allocation) {
    return device_cells + (allocation->start - SHARED_BYTES) / DEVICE_GRAIN;
}

static void access(const void *address, size_t bytes, bool write, const void *code) {
    size_t at = (size_t)((const char *)address - arena);
    if (at >= ARENA_BYTES) // the thread's own, or the host's
        return;
    switch_now_and_then();
    if (at < SHARED_BYTES) {
        access_shared(at, bytes, write, shared_record(current->thread), code);
        return;
    }
    if (!write && bytes <= 16 && page_kinds[at / PAGE] == READ &&
        at / PAGE == (at + bytes - 1) / PAGE)
        return;
    struct allocation *allocation = find_allocation(address, bytes, code);
    if (write && !allocation->written)
        note_written(allocation);
    if (allocation->written)
        touch_device(cells_of(allocation), at - allocation->start, bytes, write, code);
}

// ---- Copies to shared memory ----

static void push_copy(const struct copy &copy) {
    struct copy_queue *queue = &current->copies;
    if (queue->end - queue->first == queue->ring.size()) {
        std::vector<struct copy> larger(queue->ring.empty() ? 64 : 2 * queue->ring.size());
        for (size_t i = queue->first; i < queue->end; i++)
            larger[i & (larger.size() - 1)] = queue->ring[i & (queue->ring.size() - 1)];
        queue->ring = larger;
    }
    queue->ring[queue->end++ & (queue->ring.size() - 1)] = copy;
}

void emulate_copy(void *shared, const void *global, int count, bool wanted) {
    const size_t bytes = (size_t)count;
    const void *code = __builtin_return_address(0);
    if ((size_t)shared % bytes || (wanted && (size_t)global % bytes))
        emulate_fault("a copy that is not aligned (code %#lx)", code_offset(code));
    access_shared((size_t)((const char *)shared - arena), bytes, true,
                  shared_record(UNDER_WAY + current->thread), code);
    if (wanted)
        access(global, bytes, false, code);
    push_copy({(char *)shared, wanted ? (uintptr_t)global : 0, bytes});
}

static void land(const struct copy &copy) {
    size_t at = (size_t)(copy.to - arena);
    if (copy.from)
        memcpy(copy.to, (const void *)(uintptr_t)copy.from, copy.bytes);
    else
        memset(copy.to, 0, copy.bytes);
    for (size_t i = at / SHARED_GRAIN; i < (at + copy.bytes) / SHARED_GRAIN; i++)
        shared_cells[i].written = shared_record(current->thread);
}

uint64_t read_columns(const struct warpgroup_product &p, float (&columns)[16][256], bool check) {
    uint64_t digest = 14695981039346656037u;
    const bool swizzled = p.b >> 62 == 1;
    const size_t start = (size_t)(current->block->shared - arena) + (p.b & 0x3fff) * 16;
    const size_t chunk_bytes = swizzled ? 16 : (p.b >> 16 & 0x3fff) * 16;
    const size_t column_bytes = swizzled ? 128 : 16, block_bytes = (p.b >> 32 & 0x3fff) * 16;
    if (swizzled && (start % 1024 % 32 || start % 1024 >= 128))
        emulate_fault("a product's columns are not aligned");
    for (unsigned n = 0; n < (unsigned)p.blocks * 8; n++) {
        for (unsigned chunk = 0; chunk < 2; chunk++) {
            size_t at = start + n / 8 * block_bytes + n % 8 * column_bytes + chunk * chunk_bytes;
            if (swizzled)
                at ^= at / 128 % 8 * 16;
            if (check)
                access_shared(at, 16, false, shared_record(current->thread), NULL);
            for (unsigned grain = 0; grain < 16 / SHARED_GRAIN; grain++) {
                uint32_t written = shared_cells[at / SHARED_GRAIN + grain].written;
                if (check && written >> TIME_BITS < COPIED)
                    emulate_fault("a product reads shared memory at %#zx, which threads wrote: "
                                  "it needs a fence between the two",
                                  at);
                digest = (digest ^ written) * 1099511628211u;
            }
            unsigned words[4];
            memcpy(words, arena + at, sizeof words);
            for (unsigned k = 0; k < 8; k++)
                columns[chunk * 8 + k][n] = half_word(words[k / 2], k % 2, p.f16);
        }
    }
    return digest;
}

void emulate_commit() {
    push_copy({});
    current->copies.groups++;
}

void emulate_wait(int pending) {
    struct copy_queue *queue = &current->copies;
    while (queue->groups > (size_t)pending) {
        const struct copy &copy = queue->ring[queue->first++ & (queue->ring.size() - 1)];
        if (copy.bytes)
            land(copy);
        else
            queue->groups--;
    }
}

bool copies_under_way() {
    const struct copy_queue *queue = &current->copies;
    for (size_t i = queue->first; i < queue->end; i++)
        if (queue->ring[i & (queue->ring.size() - 1)].bytes)
            return true;
    return false;
}

// ---- Copies whose end a barrier tells ----

void emulate_copy_bulk(void *shared, const void *global, int bytes, unsigned long long *barrier) {
    const void *code = __builtin_return_address(0);
    if ((size_t)shared % 16 || (size_t)global % 16 || bytes % 16 || bytes <= 0)
        emulate_fault("a copy that is not aligned (code %#lx)", code_offset(code));
    size_t at = (size_t)((char *)shared - arena);
    for (size_t i = at / SHARED_GRAIN; i < (at + (size_t)bytes) / SHARED_GRAIN; i++)
        if (shared_cells[i].written % MOST_TIME >= current->block->start_time &&
            shared_cells[i].written >> TIME_BITS < COPIED)
            emulate_fault("a copy to %#zx, where threads wrote, needs a fence between the two "
                          "(code %#lx)",
                          at, code_offset(code));
    access_shared(at, (size_t)bytes, true, shared_record(UNDER_WAY + current->thread), code);
    access(global, (size_t)bytes, false, code);
    start_slot_copy((char *)shared, global, (size_t)bytes, barrier);
}

void land_slot(const struct slot_copy &copy, unsigned index) {
    size_t at = (size_t)(copy.to - arena);
    memcpy(copy.to, copy.from, copy.bytes);
    for (size_t i = at / SHARED_GRAIN; i < (at + copy.bytes) / SHARED_GRAIN; i++)
        shared_cells[i].written = shared_record(COPIED + index);
}

void write_barrier(unsigned long long *barrier) {
    access(barrier, sizeof *barrier, true, __builtin_return_address(0));
    *barrier = 0;
}

// ---- Floats that the blocks of a cooperative launch tell each other, one or two at once ----
//
// A thread's first look at a value finds the one before, unless a barrier orders it behind who told
// it or found it: whoever does not wait for a value has a wrong one, whichever came first. A look
// finds a value for good if the lowest bit of its last word is that of the round; it may be
// overwritten by whom data of all who found it has come to.

// A warp's looks at a float since it was told: the times of the first and the last one that found
// it for good; which lanes have looked.
struct looks {
    uint32_t first, last, lanes;
};

// What is told at once. One word is both, the first and the last.
struct told_words {
    unsigned first, last;
};

// What was told or looked at in the launch.
struct told_float {
    uint32_t launch;
    struct told_words before[2]; // values that were there, the last one first
    uint64_t told[2];            // records of the last times that it was told, 0: none
    struct flow flow;            // what came with the last one
    struct looks looks[MOST_RESIDENT * CLOCK_WARPS];
};

static struct told_float *find_told(const float *at) {
    static std::unordered_map<const float *, struct told_float> all;
    struct told_float *t = &all[at];
    uint32_t launch = current->block->grid->number;
    if (t->launch != launch) {
        *t = {};
        t->launch = launch;
    }
    return t;
}

static struct told_words words_of(const float *at, int count) {
    struct told_words words;
    memcpy(&words.first, at, sizeof words.first);
    memcpy(&words.last, at + count - 1, sizeof words.last);
    return words;
}

static bool is_of_round(const struct told_words &words, unsigned round) {
    return ((words.last ^ round) & 1) == 0;
}

void emulate_tell(float *to, const float *from, int count) {
    const size_t bytes = (size_t)count * sizeof *to;
    const void *code = __builtin_return_address(0);
    want_cooperative();
    size_t offset = (size_t)((char *)to - arena) - find_allocation(to, bytes, code)->start;
    access(to, bytes, true, code);
    struct told_float *t = find_told(to);
    t->told[1] = t->told[0];
    t->told[0] = device_record(current->thread);
    t->before[1] = t->before[0];
    t->before[0] = words_of(to, count);
    t->flow = *tell_flow();
    for (unsigned i = 0; i < MOST_RESIDENT * CLOCK_WARPS; i++)
        if (t->looks[i].last && t->looks[i].last >= t->flow.times[i])
            tell_race("overwrites", "device", offset, "reads", OF_WARP + i % CLOCK_WARPS,
                      i / CLOCK_WARPS != current->block->index, 0, code);
    memset(t->looks, 0, sizeof t->looks);
    memcpy(to, from, bytes);
    note_progress();
}

// Whether the thread finds no other value than the newest one.
static bool sees_newest(const struct told_float *t) {
    bool sees = ordered(t->told[0], false);
    for (unsigned w = 0; w < CLOCK_WARPS && !sees; w++) {
        uint32_t first = t->looks[flow_index(current->block->index, w)].first;
        sees = first && is_known(current->clock, OF_WARP + w, first);
    }
    return sees;
}

static struct told_words look_at(const float *from, int count, unsigned round, const void *code) {
    want_cooperative();
    switch_now_and_then();
    const struct allocation *allocation = find_allocation(from, (size_t)count * sizeof *from, code);
    size_t offset = (size_t)((const char *)from - arena) - allocation->start;
    uint64_t written = cells_of(allocation)[offset / DEVICE_GRAIN].written;
    struct told_float *t = find_told(from);
    if (written != t->told[0] && !ordered(written, false))
        tell_device_race(false, offset, "writes", written, code);
    struct looks *looks = &t->looks[flow_index(current->block->index, current->thread / LANES)];
    uint32_t lane = 1u << current->thread % LANES;
    if (t->told[0] && !(looks->lanes & lane)) {
        looks->lanes |= lane;
        if (!sees_newest(t)) {
            // A value of the round, but not the one that is there.
            if (is_of_round(t->before[0], round) ||
                (is_of_round(t->before[1], round) && !ordered(t->told[1], true)))
                tell_device_race(false, offset, "overwrites", t->told[0], code);
            return t->before[0];
        }
    }
    struct told_words words = words_of(from, count);
    if (is_of_round(words, round)) {
        looks->last = current->block->time;
        if (!looks->first)
            looks->first = looks->last;
        if (!ordered(t->told[0], true))
            follow(t->flow);
    }
    return words;
}

// Whoever looks for something goes on until it is found.
static void note_look(const float *at, unsigned round, bool found) {
    std::vector<struct sought> &all = current->sought;
    auto is_it = [at, round](const struct sought &s) { return s.at == at && s.round == round; };
    auto there = std::find_if(all.begin(), all.end(), is_it);
    if (there == all.end() && !found)
        all.push_back({at, round});
    else if (there != all.end() && found)
        all.erase(there);
}

void end_looks() {
    if (!current->sought.empty())
        emulate_fault("has looked for %p and goes on without it",
                      (const void *)current->sought[0].at);
}

void emulate_look(const float *from, float *to, int count, unsigned round) {
    struct told_words words = look_at(from, count, round, __builtin_return_address(0));
    note_look(from, round, is_of_round(words, round));
    memcpy(to, &words.first, sizeof words.first);
    memcpy(to + count - 1, &words.last, sizeof words.last);
}

// ---- Fences and atomic operations ----
//
// As PTX's memory model has it: what a thread knows at a fence, an atomic operation behind it
// tells; what an atomic operation is told, its thread may rely on behind a fence. Not in
// cooperative launches, where they order nothing.

static std::map<unsigned *, std::vector<struct knowledge>> *told;

void __threadfence() {
    struct fiber *f = current;
    struct block *block = f->block;
    f->known.insert(f->known.end(), f->observed.begin(), f->observed.end());
    f->observed.clear();
    f->fenced = f->known;
    f->fenced.insert(f->fenced.end(), block->known.begin(), block->known.end());
    block->time++;
    f->fenced.push_back({block->instance, f->thread, block->time,
                         block->warps[f->thread / LANES].time, block->barrier_time});
}

unsigned atomicInc(unsigned *counter, unsigned limit) {
    struct fiber *f = current;
    find_allocation(counter, sizeof *counter, __builtin_return_address(0));
    if (!told)
        told = new std::map<unsigned *, std::vector<struct knowledge>>;
    std::vector<struct knowledge> &all = (*told)[counter];
    if (!all.empty() && launch_of[all[0].instance] != f->block->grid->number)
        all.clear();
    all.insert(all.end(), f->fenced.begin(), f->fenced.end());
    f->observed = all;
    unsigned before = *counter;
    *counter = before >= limit ? 0 : before + 1;
    return before;
}

// In shared memory; of the accesses of other kinds it is ordered like a read.
unsigned atomicAdd(unsigned *counter, unsigned value) {
    access(counter, sizeof *counter, false, __builtin_return_address(0));
    unsigned before = *counter;
    *counter += value;
    return before;
}

// ---- Device memory ----

void *emulate_allocate(size_t bytes) {
    open_arena();
    size_t rounded = (bytes + 15) / 16 * 16, all = (rounded + PAGE - 1) / PAGE * PAGE;
    if (all + 2 * PAGE > ARENA_BYTES - taken ||
        mprotect(arena + taken + PAGE, all, PROT_READ | PROT_WRITE) != 0)
        return NULL;
    size_t end = taken + PAGE + all;
    struct allocation *made = new allocation{end - rounded, end, false};
    for (size_t page = taken / PAGE + 1; page < end / PAGE; page++)
        pages[page] = made, page_kinds[page] = page * PAGE >= made->start ? READ : OTHER;
    memset(arena + made->start, 0xff, rounded);
    taken = end;
    return arena + made->start;
}

// Its addresses are not used again.
void emulate_release(void *pointer) {
    size_t start = (size_t)((char *)pointer - arena);
    struct allocation *allocation = pages[start / PAGE];
    size_t first = start / PAGE, last = allocation->end / PAGE;
    for (size_t page = first; page < last; page++)
        pages[page] = NULL, page_kinds[page] = OUTSIDE;
    madvise(arena + first * PAGE, (last - first) * PAGE, MADV_DONTNEED);
    mprotect(arena + first * PAGE, (last - first) * PAGE, PROT_NONE);
    delete allocation;
}

// ---- What the compiler calls ----

extern "C" {
void __tsan_init() {
}

void __tsan_read1(const void *address) {
    access(address, 1, false, __builtin_return_address(0));
}

void __tsan_read2(const void *address) {
    access(address, 2, false, __builtin_return_address(0));
}

void __tsan_read4(const void *address) {
    access(address, 4, false, __builtin_return_address(0));
}

void __tsan_read8(const void *address) {
    access(address, 8, false, __builtin_return_address(0));
}

void __tsan_read16(const void *address) {
    access(address, 16, false, __builtin_return_address(0));
}

void __tsan_read_range(const void *address, size_t bytes) {
    access(address, bytes, false, __builtin_return_address(0));
}

void __tsan_write1(void *address) {
    access(address, 1, true, __builtin_return_address(0));
}

void __tsan_write2(void *address) {
    access(address, 2, true, __builtin_return_address(0));
}

void __tsan_write4(void *address) {
    access(address, 4, true, __builtin_return_address(0));
}

void __tsan_write8(void *address) {
    access(address, 8, true, __builtin_return_address(0));
}

void __tsan_write16(void *address) {
    access(address, 16, true, __builtin_return_address(0));
}

void __tsan_write_range(void *address, size_t bytes) {
    access(address, bytes, true, __builtin_return_address(0));
}
}
