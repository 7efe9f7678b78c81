// What threads of a clocked block know of each other, and their barriers. A thread's vector
// clock says which of the block's accesses are ordered before what it does now; whoever tells
// others something, by a barrier, passes it on. What it did itself since its warp's last barrier is
// passed on only by the first lane of a warp: others are taken to have told nothing of it.
//
// Between blocks of a cooperative launch only data flows, by floats that they tell (memory.cc).
// What a lane finds is taken to be in all that its warp tells from then on: lanes pass data on by
// shuffles and products.
#include <algorithm>
#include <iterator>
#include "device.h"
#include "machine.h"

// ---- Clocks ----

// The block's time, of which all accesses so far are before.
static uint32_t next_time(struct block *block) {
    if (++block->time == MOST_TIME)
        emulate_fault("runs too long for the emulator");
    return block->time;
}

template <typename T> static void raise(T *clock, const T &other) {
    for (size_t i = 0; i < std::size(other.times); i++)
        clock->times[i] = std::max(clock->times[i], other.times[i]);
}

static known_clock join_clocks(const known_clock &a, const known_clock &b) {
    static known_clock last[3]; // lanes of a warp want the same, one after another
    if (a == b || !b)
        return a;
    if (!a)
        return b;
    if (last[0] != a || last[1] != b) {
        auto both = std::make_shared<struct vector_clock>(*a);
        raise(both.get(), *b);
        last[0] = a;
        last[1] = b;
        last[2] = both;
    }
    return last[2];
}

static known_clock with_time(const known_clock &clock, struct block *block, unsigned which) {
    auto own = clock ? std::make_shared<struct vector_clock>(*clock)
                     : std::make_shared<struct vector_clock>();
    own->times[which] = next_time(block);
    return own;
}

// What a thread knows and did, for others.
static known_clock what_it_tells(const struct fiber *fiber) {
    if (fiber->thread % LANES)
        return fiber->clock;
    return with_time(fiber->clock, fiber->block, FIRST_LANES + fiber->thread / LANES);
}

void meet(struct fiber *const *fibers, unsigned count) {
    struct block *block = fibers[0]->block;
    auto all = std::make_shared<struct vector_clock>();
    const struct vector_clock *last = NULL;
    for (unsigned i = 0; i < count; i++) {
        const struct vector_clock *clock = fibers[i]->clock.get();
        if (clock && clock != last)
            raise(all.get(), *clock);
        last = clock;
    }
    uint32_t time = next_time(block);
    struct flow flow = {};
    for (unsigned i = 0; i < count; i += LANES) {
        unsigned warp = fibers[i]->thread / LANES;
        all->times[warp] = time;
        raise(&flow, block->warps[warp].flow);
        flow.times[flow_index(block->index, warp)] = time;
    }
    for (unsigned i = 0; i < count; i += LANES)
        block->warps[fibers[i]->thread / LANES].flow = flow;
    for (unsigned i = 0; i < count; i++)
        fibers[i]->clock = all;
}

const struct flow *tell_flow() {
    struct block *block = current->block;
    unsigned warp = current->thread / LANES;
    struct flow *flow = &block->warps[warp].flow;
    flow->times[flow_index(block->index, warp)] = next_time(block);
    return flow;
}

void follow(const struct flow &told) {
    raise(&current->block->warps[current->thread / LANES].flow, told);
}

static unsigned clocked_blocks;

void use_clocks(struct block *block) {
    clocked_blocks += !block->clocked;
    block->clocked = true;
}

void end_clocks(struct block *block) {
    if (!block->clocked)
        return;
    block->clocked = false;
    if (--clocked_blocks == 0)
        forget_readers();
}

void want_cooperative() {
    if (!current->block->cooperative)
        emulate_fault("does what only cooperative launches may do here");
}

// ---- Barriers of a part of the block ----

void emulate_barrier(int id, int threads) {
    struct block *block = current->block;
    want_cooperative();
    if (id <= 0 || id >= MOST_BARRIERS || threads <= 0 || threads % LANES)
        emulate_fault("a barrier %d of %d threads", id, threads);
    current->part = (unsigned)id;
    if (++block->part_arrived[id] < (unsigned)threads) {
        wait_until_released(wait_for::part_barrier);
        return;
    }
    block->part_arrived[id] = 0;
    std::vector<struct fiber *> all;
    for (struct fiber *fiber : block->fibers)
        if (fiber == current ||
            (fiber->waits == wait_for::part_barrier && fiber->part == (unsigned)id))
            all.push_back(fiber);
    for (unsigned i = 0; i < all.size(); i += LANES)
        if (all[i]->thread % LANES || all[i + LANES - 1]->thread != all[i]->thread + LANES - 1)
            emulate_fault("a barrier of parts of warps");
    meet(all.data(), (unsigned)all.size());
    for (struct fiber *fiber : all)
        fiber->waits = wait_for::nothing;
}

// ---- Barriers in shared memory ----

void emulate_init_barrier(unsigned long long *barrier, int arrivals) {
    struct block *block = current->block;
    use_clocks(block);
    write_barrier(barrier);
    struct phase_barrier made = {};
    made.arrivals = made.pending = (unsigned)arrivals;
    made.index = (unsigned)block->phase_barriers.size();
    made.maker = current->thread;
    made.time = block->time;
    if (made.index == CLOCK_COPIES || !block->phase_barriers.insert({barrier, made}).second)
        emulate_fault("more than %d barriers in shared memory, or one twice", CLOCK_COPIES);
}

void emulate_publish_barriers() {
    for (auto &[address, barrier] : current->block->phase_barriers)
        barrier.published |= barrier.maker == current->thread;
}

static struct phase_barrier *find_barrier(unsigned long long *barrier) {
    auto found = current->block->phase_barriers.find(barrier);
    if (found == current->block->phase_barriers.end())
        emulate_fault("a barrier in shared memory that is not initialised");
    struct phase_barrier *b = &found->second;
    if (b->maker != current->thread && !is_known(current->clock, b->maker, b->time))
        emulate_fault("a barrier in shared memory of which thread %u, which initialises it, has "
                      "not told",
                      b->maker);
    return b;
}

// What is told with an arrival or with bytes that are copied; the phase ends when all of both are
// there.
static void tell_barrier(struct phase_barrier *b, unsigned long long *barrier,
                         const known_clock &told) {
    struct block *block = current->block;
    b->coming = join_clocks(b->coming, told);
    note_progress();
    if (b->pending || b->bytes)
        return;
    b->pending = b->arrivals;
    b->phase++;
    b->told = b->coming;
    b->coming = NULL;
    b->flow = b->coming_flow;
    for (struct fiber *fiber : block->fibers)
        if (fiber->waits == wait_for::phase && fiber->awaited == barrier)
            fiber->waits = wait_for::nothing;
}

static void arrive_at(struct phase_barrier *b, unsigned long long *barrier) {
    if (b->pending == 0)
        emulate_fault("more arrivals at a barrier than it was initialised with");
    b->pending--;
    tell_barrier(b, barrier, what_it_tells(current));
}

void emulate_arrive(unsigned long long *barrier) {
    struct phase_barrier *b = find_barrier(barrier);
    raise(&b->coming_flow, *tell_flow());
    arrive_at(b, barrier);
}

void emulate_expect_bytes(unsigned long long *barrier, int bytes) {
    struct phase_barrier *b = find_barrier(barrier);
    b->bytes += (size_t)bytes;
    b->unstarted += (size_t)bytes;
    arrive_at(b, barrier);
}

bool emulate_test_barrier(unsigned long long *barrier, unsigned parity) {
    const struct phase_barrier *b = find_barrier(barrier);
    if ((b->phase & 1) == parity)
        return false;
    current->clock = join_clocks(current->clock, b->told);
    follow(b->flow);
    return true;
}

void emulate_wait_barrier(unsigned long long *barrier, unsigned parity) {
    while (!emulate_test_barrier(barrier, parity)) {
        current->awaited = barrier;
        wait_until_released(wait_for::phase);
    }
}

// ---- Copies whose end a barrier tells ----

void start_slot_copy(char *to, const void *from, size_t bytes, unsigned long long *barrier) {
    struct phase_barrier *b = find_barrier(barrier);
    if (!b->published)
        emulate_fault("a copy to a barrier that is not published");
    if (bytes > b->unstarted)
        emulate_fault("a copy of %zu bytes to a barrier that expects %zu", bytes, b->unstarted);
    b->unstarted -= bytes;
    raise(&b->coming_flow, *tell_flow()); // with the phase's end, which is behind this copy's
    current->block->slot_copies.push_back({to, from, bytes, barrier, what_it_tells(current)});
}

void end_slot_copy(const struct slot_copy &copy) {
    struct block *block = current->block;
    struct phase_barrier *b = &block->phase_barriers.at(copy.barrier);
    land_slot(copy, b->index);
    b->bytes -= copy.bytes;
    tell_barrier(b, copy.barrier, with_time(copy.told, block, COPIES_TOLD + b->index));
}
