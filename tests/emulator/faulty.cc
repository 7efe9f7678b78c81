// Small kernels with one fault each, and some without: what the emulator must say of them.
//
//     faulty             lists them: name|a part of the complaint, which is empty for good ones
//     faulty NAME        runs a kernel; exit 1 if the emulator complains
//
// Compiled like kernels.cc.
#include <stdio.h>
#include "emulator.h"
#include "kernels.h"
#include "machine.h"

#define STREAMS      1 // not used
#define SHARED_BYTES 101376
#include ENGINE_CU

const int emulated_streams = 0, emulated_shared_bytes = 0, emulated_sm = 90;
const size_t emulated_task_bytes = 0;

void emulate_kernel(void *, const void *) {
}

enum { WORDS = 1000, BLOCKS = 6, BLOCK_THREADS = 64, SHARED_WORDS = 256 };

struct arguments {
    int *data; // [WORDS] device memory
    unsigned *counter;
    float *told; // [2 * BLOCKS]
};

static int *shared_words() {
    return (int *)shared_memory();
}

static int thread() {
    return (int)threadIdx.x;
}

// A word of this thread alone, in the upper half.
static int &own(const struct arguments &a) {
    return a.data[500 + blockIdx.x * BLOCK_THREADS + threadIdx.x];
}

static bool leader() {
    return blockIdx.x == 0 && thread() == 0;
}

static int copied(const struct arguments &a, bool waits) {
    copy_async(shared_words() + 4 * thread(), a.data + 4 * (thread() % 8), true);
    commit_copies();
    if (waits)
        wait_copies<0>();
    return shared_words()[4 * thread()];
}

// Blocks leave a word each; the last one to arrive adds them up. fence: where.
enum { NO_FENCE, LATE_FENCE, ALL_FENCES };
static void add_up(const struct arguments &a, int fence) {
    int *last = shared_words();
    if (thread() == 1)
        a.data[blockIdx.x] = 1;
    __syncthreads();
    if (thread() == 0) {
        if (fence != NO_FENCE && fence != LATE_FENCE)
            __threadfence();
        *last = atomicInc(a.counter, BLOCKS - 1) == BLOCKS - 1;
        if (fence != NO_FENCE)
            __threadfence();
    }
    __syncthreads();
    if (*last && thread() == 2)
        for (int i = 1; i < BLOCKS; i++)
            a.data[0] += a.data[i];
}

struct kernel {
    const char *name, *complaint;
    void (*run)(const struct arguments &);
    void (*next)(const struct arguments &); // chained behind it
    bool cooperative = false;
};

// Two warps of each block take what a third one copies, ten numbers a lane; then blocks pass floats
// on in rounds. Shared memory: barriers, slots of the ring.
enum {
    SLOTS = 2,
    SLOT_WORDS = 4 * WARP,
    COPIES = 5,
    CONSUMERS = 2,
    RING_THREADS = (CONSUMERS + 1) * WARP,
    RING_BYTES = SLOTS * (16 + 4 * SLOT_WORDS),
};

static float await_told(const float *from, unsigned round) {
    float value;
    do {
        value = look(from, round);
    } while (look_again_alone(strange(value, round)));
    return value;
}

// The sum of what all blocks have told at `floats` in this round, whole numbers.
static float sum_of_told(const float *floats, unsigned round, bool waits) {
    float sum = 0;
    for (unsigned i = 0; i < gridDim.x; i++)
        sum += waits ? await_told(floats + i, round) : look(floats + i, round);
    return roundf(sum);
}

// Each block tells the next number. `places`: of a float, in turn; with one it is told anew before
// all have found it.
static void pass_numbers(const struct arguments &a, unsigned places, bool waits) {
    float number = 2;
    for (unsigned i = places; i < 4 * places; i++) {
        float *floats = a.told + i % places * BLOCKS;
        unsigned round = i / places; // of this place
        if (thread() == 0)
            tell(floats + blockIdx.x, number, round);
        float sum = sum_of_told(floats, round, waits);
        if (sum != number * (float)gridDim.x)
            emulate_fault("finds a wrong sum");
        number *= 2;
        barrier_sync<1, CONSUMERS * WARP>();
    }
}

// A copy of 4 * WARP bytes, to a barrier that expects so many.
static void copy_expecting(const struct arguments &a, int bytes) {
    unsigned long long *barrier = (unsigned long long *)shared_memory();
    if (thread() >= WARP)
        return;
    if (thread() == 0) {
        init_barrier(barrier, COPY_ARRIVALS);
        publish_barriers();
    }
    __syncwarp();
    begin_copies(barrier, bytes);
    copy_part(shared_words() + 4, a.data, 4 * WARP, barrier);
    end_copies(barrier);
    wait_barrier(barrier, 0);
}

// `early`: of all copies but the first, one is read when that many before it is there.
template <int early> static void pass_on(const struct arguments &a) {
    unsigned long long *full = (unsigned long long *)shared_memory(), *empty = full + SLOTS;
    int *ring = shared_words() + 4 * SLOTS;
    if (thread() == 0) {
        for (int i = 0; i < SLOTS; i++) {
            init_barrier(full + i, COPY_ARRIVALS);
            init_barrier(empty + i, CONSUMERS);
        }
        publish_barriers();
    }
    __syncthreads();
    if (thread() >= CONSUMERS * WARP) {
        for (int i = 0; i < COPIES; i++) {
            int slot = i % SLOTS;
            if (i >= SLOTS)
                wait_barrier(empty + slot, (unsigned)(i / SLOTS - 1) % 2);
            copy_slot(ring + slot * SLOT_WORDS, a.data + 64, SLOT_WORDS * 4, full + slot);
        }
        return;
    }
    unsigned sum = 0;
    for (int i = 0; i < COPIES; i++) {
        int slot = i % SLOTS;
        int awaited = i > 0 ? i - early : i;
        wait_barrier(full + awaited % SLOTS, (unsigned)(awaited / SLOTS) % 2);
        struct tile t = load_fragment((const struct tile *)(ring + slot * SLOT_WORDS));
        sum += t.x + t.y + t.z + t.w;
        __syncwarp();
        if (thread() % WARP == 0)
            arrive(empty + slot);
    }
    own(a) = (int)sum;
    pass_numbers(a, 2, true);
}

// Without the warp that copies.
template <int places, bool waits> static void pass_only(const struct arguments &a) {
    if (thread() < CONSUMERS * WARP)
        pass_numbers(a, places, waits);
}

// All blocks read a word, which the first one then writes; `waits`: until all have told.
template <bool waits> static void write_when_read(const struct arguments &a) {
    if (thread() == 0) {
        own(a) = 0; // reads are recorded from then on
        tell(a.told + blockIdx.x, a.data[0] ? 2 : 4, 1);
        if (blockIdx.x == 0) {
            if (waits)
                sum_of_told(a.told, 1, true);
            a.data[0] = 1;
        }
    }
}

// The first block writes a word and tells a float; the others then read `word`.
static void read_behind(const struct arguments &a, const int *word) {
    if (leader()) {
        a.data[0] = 1;
        tell(a.told, 2, 1);
    } else if (thread() == 0) {
        await_told(a.told, 1);
        own(a) = *word;
    }
}

static void nothing(const struct arguments &) {
    wait_for_previous_kernel();
}

static void write_words(const struct arguments &a) {
    wait_for_previous_kernel();
    a.data[blockIdx.x * BLOCK_THREADS + threadIdx.x] = 1;
}

static void read_words(const struct arguments &a) {
    wait_for_previous_kernel();
    own(a) = a.data[threadIdx.x];
}

static const struct kernel KERNELS[] = {
    {"good: a barrier", "",
     [](const struct arguments &) {
         shared_words()[thread()] = 1;
         __syncthreads();
         shared_words()[thread() ^ 63] += 1;
     },
     NULL},
    {"good: a warp's barrier", "",
     [](const struct arguments &) {
         shared_words()[thread()] = 1;
         __syncwarp();
         shared_words()[thread() ^ 31] += 1;
     },
     NULL},
    {"good: a copy", "", [](const struct arguments &a) { own(a) = 0 * copied(a, true); }, NULL},
    {"good: the last block adds up", "", [](const struct arguments &a) { add_up(a, ALL_FENCES); },
     NULL},
    {"good: a kernel that waits", "", write_words, read_words},
    {"good: halves of a word", "",
     [](const struct arguments &a) { ((short *)a.data)[blockIdx.x * 64 + threadIdx.x] = 1; }, NULL},
    {"good: copies, and numbers that are told", "", pass_on<0>, NULL, true},
    {"a copy read when the one before is there", "a copy", pass_on<1>, NULL, true},
    {"good: one finds what all are told", "",
     [](const struct arguments &a) {
         if (thread() == 0)
             tell(a.told + blockIdx.x, 2, 1);
         if (thread() / WARP == 1)
             sum_of_told(a.told, 1, true);
         __syncthreads();
         if (sum_of_told(a.told, 1, false) != 2 * BLOCKS)
             emulate_fault("finds a wrong sum");
     },
     NULL, true},
    {"good: a word that is written when all have told of it", "", write_when_read<true>, NULL,
     true},
    {"a word that is written before all have told of it", "nothing orders", write_when_read<false>,
     NULL, true},
    {"numbers that are not waited for", "a wrong sum", pass_only<2, false>, NULL, true},
    {"numbers told anew before all have found them", "overwrite", pass_only<1, true>, NULL, true},
    {"a word read behind a float that was told", "of another block writes",
     [](const struct arguments &a) { read_behind(a, a.data); }, NULL, true},
    {"a float that was told, read as a word", "of another block writes",
     [](const struct arguments &a) { read_behind(a, (const int *)a.told); }, NULL, true},
    {"a number that nobody tells", "again and again",
     [](const struct arguments &a) {
         while (look_again(strange(look(a.told, 1), 1)))
             ;
     },
     NULL, true},
    {"a copy over what a thread wrote", "needs a fence",
     [](const struct arguments &a) {
         unsigned long long *barrier = (unsigned long long *)shared_memory();
         if (thread() < WARP) {
             shared_words()[4 + thread()] = 0;
             if (thread() == 0) {
                 init_barrier(barrier, COPY_ARRIVALS);
                 publish_barriers();
             }
             __syncwarp();
             copy_slot(shared_words() + 4, a.data, 4 * WARP, barrier);
             wait_barrier(barrier, 0);
         }
     },
     NULL, true},
    {"a copy of more bytes than are expected", "expects 16",
     [](const struct arguments &a) { copy_expecting(a, 16); }, NULL, true},
    {"a copy of fewer bytes than are expected", "waits for threads that never come",
     [](const struct arguments &a) { copy_expecting(a, 8 * WARP); }, NULL, true},
    {"no barrier", "nothing orders",
     [](const struct arguments &) {
         shared_words()[thread()] = 1;
         __syncthreads();
         shared_words()[thread()] = 2;
         __syncwarp();
         shared_words()[thread() ^ 63] += 1;
     },
     NULL},
    {"no warp's barrier", "nothing orders",
     [](const struct arguments &) {
         shared_words()[thread()] = 1;
         __syncwarp();
         shared_words()[thread()] = 2;
         __shfl_xor_sync(0xffffffff, 1, 1);
         shared_words()[thread() ^ 31] += 1;
     },
     NULL},
    {"a copy not waited for", "a copy under way",
     [](const struct arguments &a) { own(a) = 0 * copied(a, false); }, NULL},
    {"a copy of another thread", "reads shared memory",
     [](const struct arguments &a) { own(a) = copied(a, true) + shared_words()[thread() ? 0 : 4]; },
     NULL},
    {"a copy without an end", "copies under way",
     [](const struct arguments &a) {
         copy_async(shared_words() + 4 * thread(), a.data, true);
         commit_copies();
     },
     NULL},
    {"a copy that is not aligned", "not aligned",
     [](const struct arguments &a) { copy_async(shared_words() + 4 * thread(), a.data + 1, true); },
     NULL},
    {"no fence", "nothing orders", [](const struct arguments &a) { add_up(a, NO_FENCE); }, NULL},
    {"a fence too late", "nothing orders", [](const struct arguments &a) { add_up(a, LATE_FENCE); },
     NULL},
    {"blocks that write the same", "nothing orders",
     [](const struct arguments &a) { a.data[threadIdx.x] = (int)blockIdx.x; }, NULL},
    {"no wait for the kernel before", "1 launches before", write_words,
     [](const struct arguments &a) { own(a) = a.data[threadIdx.x]; }},
    {"a write before the wait", "1 launches before", read_words,
     [](const struct arguments &a) {
         a.data[blockIdx.x * 64 + threadIdx.x] = 1;
         wait_for_previous_kernel();
     }},
    {"shared memory that nobody wrote", "nobody has written",
     [](const struct arguments &a) { own(a) = shared_words()[thread()]; }, NULL},
    {"behind shared memory", "shared memory at 1024 is out of range",
     [](const struct arguments &) { shared_words()[SHARED_WORDS] = leader(); }, NULL},
    {"before shared memory", "shared memory at -4 is out of range",
     [](const struct arguments &) { shared_words()[-1] = leader(); }, NULL},
    {"a copy behind shared memory", "shared memory at 1024 is out of range",
     [](const struct arguments &a) { copy_async(shared_words() + SHARED_WORDS, a.data, true); },
     NULL},
    {"behind device memory", "out of range",
     [](const struct arguments &a) {
         if (leader())
             a.data[WORDS] = 1;
     },
     NULL},
    {"before device memory", "out of range",
     [](const struct arguments &a) {
         if (leader())
             a.data[500] = a.data[-1];
     },
     NULL},
    {"far behind device memory", "out of range",
     [](const struct arguments &a) {
         if (leader())
             a.data[1 << 28] = 1;
     },
     NULL},
    {"a copy from behind device memory", "out of range",
     [](const struct arguments &a) {
         copy_async(shared_words() + 4 * thread(), a.data + WORDS, true);
     },
     NULL},
    {"a barrier that some threads do not reach", "a barrier",
     [](const struct arguments &) {
         if (thread() < 40)
             __syncthreads();
     },
     NULL},
    {"a barrier that a warp does not reach", "barrier",
     [](const struct arguments &) {
         if (thread() < 32)
             __syncthreads();
         else
             __syncwarp();
     },
     NULL},
    {"a barrier and a shuffle", "never come",
     [](const struct arguments &) {
         if (thread() % 2)
             __syncthreads();
         else
             __shfl_xor_sync(0xffffffff, 1, 1);
     },
     NULL},
    {"a warp's barrier and a shuffle", "different things",
     [](const struct arguments &) {
         if (thread() % 2)
             __syncwarp();
         else
             __shfl_xor_sync(0xffffffff, 1, 1);
     },
     NULL},
};

struct bound {
    void (*run)(const struct arguments &);
    struct arguments arguments;
};

static void call(const void *argument) {
    const struct bound *bound = (const struct bound *)argument;
    bound->run(bound->arguments);
}

static void start(const struct bound *bound, const char *name, bool chained, bool cooperative) {
    struct emulated_launch launch = {
        .name = name,
        .grid = {BLOCKS, 1, 1},
        .threads = (unsigned)(cooperative ? (int)RING_THREADS : BLOCK_THREADS),
        .shared_bytes = (unsigned)(cooperative ? (int)RING_BYTES : SHARED_WORDS * 4),
        .run = call,
        .argument = bound,
        .chained = chained,
        .cooperative = cooperative};
    emulate_launch(&launch);
}

__attribute__((no_sanitize("thread"))) int main(int argc, char **argv) {
    for (const struct kernel &kernel : KERNELS) {
        if (argc == 1)
            printf("%s|%s\n", kernel.name, kernel.complaint);
        if (argc == 1 || strcmp(argv[1], kernel.name) != 0)
            continue;
        struct arguments arguments = {(int *)emulate_allocate(WORDS * sizeof(int)),
                                      (unsigned *)emulate_allocate(sizeof(unsigned)),
                                      (float *)emulate_allocate(2 * BLOCKS * sizeof(float))};
        *arguments.counter = 0;
        for (int i = 0; i < 2 * BLOCKS; i++)
            arguments.told[i] = 0;
        struct bound one = {kernel.run, arguments}, next = {kernel.next, arguments};
        struct bound before = {nothing, arguments};
        start(&before, "nothing", false, false);
        start(&one, "first", true, kernel.cooperative);
        if (kernel.next)
            start(&next, "second", true, false);
        return emulate_finish() == 0 ? 0 : 1;
    }
    return argc == 1 ? 0 : 2;
}
