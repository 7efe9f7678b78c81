// What engine.cu needs to be compiled as C++ for the emulator: CUDA's words, and the emulator's
// functions that stand for PTX (templates/cuda_primitives.cu). Given to the compiler with -include.
#pragma once
#include <math.h>
#include <string.h>
#include "../../templates/f16.h"
#include "../../templates/round_bf16.h"
#include "../../templates/round_f16.h"

#define EMULATOR
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__

struct emulated_index {
    unsigned x, y, z;
};
extern struct emulated_index threadIdx, blockIdx, gridDim; // of the fiber that runs

struct alignas(8) float2 {
    float x, y;
};

static inline struct float2 make_float2(float x, float y) {
    return {x, y};
}

struct alignas(16) float4 {
    float x, y, z, w;
};

static inline struct float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}

struct uint2 {
    unsigned x, y;
};

static inline struct uint2 make_uint2(unsigned x, unsigned y) {
    return {x, y};
}

static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}

static inline unsigned emulate_bf16(float value) {
    return isnan(value) ? 0x7fff : float_to_bf16(value);
}

static inline unsigned emulate_f16(float value) {
    return isnan(value) ? 0x7fff : float_to_f16(value);
}

void emulate_product(float (&sum)[4], const unsigned (&words)[6], bool f16);
unsigned emulate_transpose(unsigned word);
void emulate_matrices(unsigned (&words)[4]);
void emulate_warpgroup_product(float (*sum)[4], int blocks, const unsigned *a, unsigned long long b,
                               bool f16);
unsigned emulate_shared_address(const void *shared);
void emulate_fence_products();
void emulate_commit_products();
void emulate_wait_products(int pending);
void emulate_copy(void *shared, const void *global, int bytes, bool wanted);
void emulate_commit();
void emulate_wait(int pending);
void emulate_wait_for_kernel();
void emulate_trigger();
char *emulate_shared_memory();
void __syncthreads();
void __syncwarp();
void __threadfence();
unsigned atomicInc(unsigned *counter, unsigned limit);
unsigned atomicAdd(unsigned *counter, unsigned value);
void emulate_barrier(int id, int threads);
void emulate_tell(float *to, const float *from, int count);
void emulate_look(const float *from, float *to, int count, unsigned round);
void emulate_pause();
void emulate_init_barrier(unsigned long long *barrier, int arrivals);
void emulate_publish_barriers();
void emulate_arrive(unsigned long long *barrier);
void emulate_wait_barrier(unsigned long long *barrier, unsigned parity);
bool emulate_test_barrier(unsigned long long *barrier, unsigned parity);
void emulate_expect_bytes(unsigned long long *barrier, int bytes);
void emulate_copy_bulk(void *shared, const void *global, int bytes, unsigned long long *barrier);
unsigned emulate_shuffle(unsigned word, int distance);

// For tests that leave out a statement: false if it is the one that EMULATOR_SKIP names.
bool emulate_kept(int statement);

static inline bool __any_sync(unsigned, bool here) {
    unsigned any = here;
    for (int distance = 16; distance > 0; distance /= 2)
        any |= emulate_shuffle(any, distance);
    return any;
}

template <typename T> static inline T __shfl_xor_sync(unsigned, T value, int distance) {
    static_assert(sizeof(T) == 4, "one word");
    unsigned word;
    memcpy(&word, &value, sizeof word);
    word = emulate_shuffle(word, distance);
    memcpy(&value, &word, sizeof value);
    return value;
}

template <typename T> static inline T __shfl_sync(unsigned mask, T value, int source) {
    return __shfl_xor_sync(mask, value, (int)(threadIdx.x % 32) ^ source);
}
