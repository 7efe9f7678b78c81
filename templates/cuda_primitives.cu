// All that is not plain CUDA C: the tensor core, asynchronous copies, hints for the memory system
// and for the launch of dependent kernels. Each primitive is one small function: PTX where CUDA
// compiles it, plain C for the emulator (which defines EMULATOR and runs every thread as a fiber).

enum { WARP = 32 };

// A 16 x 16 tile as the lanes of a warp hold it: lane 4g + i has a chunk of the pack's tile order
// (tile.h), columns 2i, 2i+1 and 2i+8, 2i+9 of row g (x, y) and of row g + 8 (z, w).
struct tile {
    unsigned x, y, z, w;
};

// 16 x 8 activations, rows 2i, 2i+1 (x) and 2i+8, 2i+9 (y) of column g in lane 4g + i.
struct columns {
    unsigned x, y;
};

// Two floats to two bf16 in a word, to nearest even; `even` in the low half.
static __device__ inline unsigned to_bf16(float even, float odd) {
#ifdef EMULATOR
    return emulate_bf16(even) | emulate_bf16(odd) << 16;
#else
    unsigned word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(odd), "f"(even));
    return word;
#endif
}

// sum [16, 8] += a [16, 16] x b [16, 8]; sum[0], sum[1]: row g, columns 2i, 2i+1; sum[2], sum[3]:
// row g + 8.
static __device__ inline void multiply(float (&sum)[4], const struct tile &a,
                                       const struct columns &b) {
#ifdef EMULATOR
    unsigned words[] = {a.x, a.z, a.y, a.w, b.x, b.y};
    emulate_product(sum, words);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b.x), "r"(b.y));
#endif
}

// 2^x to a few units in the last place; 0 for minus infinity.
static __device__ inline float power_of_two(float x) {
#ifdef EMULATOR
    return exp2f(x);
#else
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
#endif
}

// a / b to a few units in the last place; 0 for an infinite b.
static __device__ inline float fast_quotient(float a, float b) {
#ifdef EMULATOR
    return a / b;
#else
    return __fdividef(a, b);
#endif
}

// Transposes 8 x 8 bf16 over the warp: lane 4g + i gives elements 2i, 2i+1 of row g and gets those
// of column g.
static __device__ inline unsigned transpose(unsigned word) {
#ifdef EMULATOR
    return emulate_transpose(word);
#else
    unsigned result;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(word));
    return result;
#endif
}

// 16 bytes of what no kernel that may still run writes: through the L1 cache.
static __device__ inline struct tile load_tile(const struct tile *from) {
#ifdef EMULATOR
    return *from;
#else
    struct tile t;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(t.x), "=r"(t.y), "=r"(t.z), "=r"(t.w)
                 : "l"(from));
    return t;
#endif
}

// Copies 16 bytes from global to shared memory past the L1 cache, behind the thread's back; zeros
// without a look at `global` if they are not `wanted`.
static __device__ inline void copy_async(void *shared, const void *global, bool wanted) {
#ifdef EMULATOR
    emulate_copy(shared, global, 16, wanted);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(wanted ? 16 : 0)
                 : "memory");
#endif
}

// The same for 8 bytes, through the L1 cache: other warps want them too.
static __device__ inline void copy_columns(void *shared, const void *global, bool wanted) {
#ifdef EMULATOR
    emulate_copy(shared, global, 8, wanted);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(wanted ? 8 : 0)
                 : "memory");
#endif
}

// Ends a group of copies.
static __device__ inline void commit_copies() {
#ifdef EMULATOR
    emulate_commit();
#else
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until at most PENDING of this thread's groups are still under way.
template <int PENDING> static __device__ inline void wait_copies() {
#ifdef EMULATOR
    emulate_wait(PENDING);
#else
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
#endif
}

// Programmatic dependent launch, where the architecture has it: a kernel starts while the one
// before it still runs, does what does not depend on it, and waits here until all its writes are
// seen. Every block of every kernel waits, so that all kernels before the one before are done too.
// Then the next kernel may start.
static __device__ inline void wait_for_previous_kernel() {
#ifdef EMULATOR
    emulate_wait_for_kernel();
    emulate_trigger();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// The block's shared memory; every kernel divides it by itself.
static __device__ inline char *shared_memory() {
#ifdef EMULATOR
    return emulate_shared_memory();
#else
    extern __shared__ struct tile shared_bytes[];
    return (char *)shared_bytes;
#endif
}
