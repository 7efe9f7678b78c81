// How fast the device reads its memory: what a decode step is measured against.

enum {
    READ_LOADS = 16,                              // 16 bytes each, none waits for another
    READ_BLOCK_BYTES = THREADS * READ_LOADS * 16, // GPU_READ_BLOCK of gpu.c
};

// Reads a buffer of gridDim.x * READ_BLOCK_BYTES bytes at task.weights. task.sums [blocks, WARPS]:
// sums of its words, so that every one is needed.
extern "C" __global__ void __launch_bounds__(THREADS) read_memory(const struct gpu_task task) {
    wait_for_previous_kernel();
    const struct tile *from =
        (const struct tile *)(task.weights + (long long)blockIdx.x * READ_BLOCK_BYTES) +
        threadIdx.x;
    struct tile words[READ_LOADS];
#pragma unroll
    for (int i = 0; i < READ_LOADS; i++)
        words[i] = load_tile(from + i * THREADS);
    unsigned sum = 0;
#pragma unroll
    for (int i = 0; i < READ_LOADS; i++)
        sum += words[i].x + words[i].y + words[i].z + words[i].w;
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        sum += __shfl_xor_sync(0xffffffff, sum, distance);
    if (lane_id() == 0)
        task.sums[blockIdx.x * WARPS + warp_id()] = sum;
}
