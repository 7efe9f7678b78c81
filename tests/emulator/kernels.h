// What kernels.cc tells the driver of the engine.cu that it was compiled with.
#pragma once
#include <stddef.h>

extern const int emulated_streams, emulated_shared_bytes, emulated_sm;
extern const size_t emulated_task_bytes;

void emulate_kernel(void *kernel, const void *task);
