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
struct alignas(8) columns {
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

// ---- Synchronisation inside of a kernel that runs as one launch of resident blocks ----

// A barrier of COUNT threads of the block, whole warps; ID: 1 to 15, as __syncthreads is 0.
template <int ID, int COUNT> static __device__ inline void barrier_sync() {
#ifdef EMULATOR
    emulate_barrier(ID, COUNT);
#else
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(COUNT) : "memory");
#endif
}

// Adds one to a counter in device memory: whoever finds that with load_acquire sees all that this
// thread saw before, such as what its block wrote before a barrier.
static __device__ inline void arrive_grid(unsigned *counter) {
#ifdef EMULATOR
    emulate_arrive_grid(counter);
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
#endif
}

static __device__ inline unsigned load_acquire(const unsigned *counter) {
#ifdef EMULATOR
    return emulate_load_acquire(counter);
#else
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
#endif
}

// In every loop that asks until others have done something.
static __device__ inline void pause() {
#ifdef EMULATOR
    emulate_pause();
#endif
}

// Barriers in shared memory that threads arrive at without waiting (PTX: mbarrier). A phase ends
// with its last arrival and the next one begins; phases 0, 2, ... have parity 0. init_barrier of
// all, publish_barriers, both by one thread, and __syncthreads come before any use.
#ifndef EMULATOR
static __device__ inline unsigned shared_address(const void *shared) {
    return (unsigned)__cvta_generic_to_shared(shared);
}
#endif

static __device__ inline void init_barrier(unsigned long long *barrier, int arrivals) {
#ifdef EMULATOR
    emulate_init_barrier(barrier, arrivals);
#else
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals)
                 : "memory");
#endif
}

static __device__ inline void publish_barriers() {
#ifdef EMULATOR
    emulate_publish_barriers();
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

static __device__ inline void arrive(unsigned long long *barrier) {
#ifdef EMULATOR
    emulate_arrive(barrier);
#else
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(
                     shared_address(barrier))
                 : "memory");
#endif
}

// Waits until the last phase of this parity has ended. Then this thread sees what those who arrived
// saw before, and what was copied.
static __device__ inline void wait_barrier(unsigned long long *barrier, unsigned parity) {
#ifdef EMULATOR
    emulate_wait_barrier(barrier, parity);
#else
    unsigned ended;
    do { // from sm_90 on the hardware lets the thread sleep a while
#if __CUDA_ARCH__ >= 900
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p; }"
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p; }"
#endif
                     : "=r"(ended)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    } while (!ended);
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
enum { COPY_ARRIVALS = 1 };
#else
enum { COPY_ARRIVALS = WARP };
#endif

// Copies to shared memory, behind the warp's back, what is read once: its lanes all call this with
// the same arguments, and may write there. `bytes`: a multiple of 16. COPY_ARRIVALS of `barrier`'s
// arrivals are those of one copy when it is there.
static __device__ inline void copy_slot(void *shared, const void *global, int bytes,
                                        unsigned long long *barrier) {
#ifdef EMULATOR
    emulate_copy_slot(shared, global, bytes, barrier);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (threadIdx.x % WARP == 0) {
        unsigned long long policy;
        asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
        asm volatile(
            "{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                shared_address(barrier)),
            "r"(bytes)
            : "memory");
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                     ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
                     "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                     : "memory");
    }
#else
    for (int i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16)
        copy_async((char *)shared + i, (const char *)global + i, true);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
                 : "memory");
#endif
}

// The chunk of this lane, 4g + i, of a tile in shared memory that lies there as in the pack: chunk
// 8i + g. No two lanes meet in a bank: each begins with another word, and puts them right at last.
static __device__ inline struct tile load_fragment(const struct tile *tile_in_shared) {
    int g = threadIdx.x % WARP / 4, i = threadIdx.x % 4;
    const unsigned *words = (const unsigned *)(tile_in_shared + 8 * i + g);
    struct tile t = {words[i], words[i ^ 1], words[i ^ 2], words[i ^ 3]};
    if (i & 1)
        t = {t.y, t.x, t.w, t.z};
    if (i & 2)
        t = {t.z, t.w, t.x, t.y};
    return t;
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
