// The kernels of one engine.cu. Compiled with -fsanitize=thread, so that each access to memory
// calls a function of memory.cc; nothing else of the sanitizer is used.
#include "kernels.h"
#include ENGINE_CU

const int emulated_streams = STREAMS, emulated_shared_bytes = SHARED_BYTES;
#ifdef EMULATOR_WARPGROUPS
const int emulated_sm = 90;
#else
const int emulated_sm = 100;
#endif
const size_t emulated_task_bytes = sizeof(struct gpu_task);

void emulate_kernel(void *kernel, const void *task) {
    ((void (*)(const struct gpu_task))kernel)(*(const struct gpu_task *)task);
}
