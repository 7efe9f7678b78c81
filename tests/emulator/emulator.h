// Runs the kernels of engine.cu on the CPU, every thread as a fiber. A few blocks run at a time,
// warps and lanes in an order drawn from a seed; a kernel that is chained to the one before starts
// while that one ends. Ends with a message on stderr: accesses that nothing orders (memory.cc),
// barriers and warp operations that not all threads reach.
#pragma once
#include <stddef.h>

enum { MOST_RESIDENT = 8, MOST_COOPERATIVE = 512 }; // blocks of a cooperative launch, threads

struct emulated_launch {
    const char *name;
    unsigned grid[3], threads, shared_bytes;
    void (*run)(const void *argument); // the kernel
    const void *argument;              // lives until emulate_finish
    bool chained; // programmatic stream serialization: may start before the launch before it ends
    bool cooperative; // all blocks run at once
};

void emulate_seed(unsigned long long seed);

// Adds a kernel to those that run in order.
void emulate_launch(const struct emulated_launch *launch);

// Runs them. 0, or -1 after a message on stderr; then nothing may be launched any more.
int emulate_finish();

// Device memory, NaN all over. NULL if there is no room.
void *emulate_allocate(size_t bytes);
void emulate_release(void *pointer);
