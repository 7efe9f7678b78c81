// Runs a kernel of engine.cu on the CPU, every thread as a fiber. Blocks run a few at a time, warps
// in random order; shared memory starts as NaN; a barrier or a warp operation that not all threads
// reach ends the run with a message, and so does an address outside of what was allocated.
#pragma once
#include <stddef.h>

struct emulated_launch {
    const char *name;
    unsigned grid[3], threads, shared_bytes;
    void (*run)(const void *argument); // the kernel
    const void *argument;
};

// 0, or -1 after a message on stderr.
int emulate_launch(const struct emulated_launch *launch);

// Device memory: NaN all over, between two pages that may not be touched.
void *emulate_allocate(size_t bytes);
void emulate_release(void *pointer);

void emulate_seed(unsigned long long seed);
