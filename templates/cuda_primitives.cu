// All that is not plain CUDA C: the tensor core, asynchronous copies, hints for the memory system
// and for the launch of dependent kernels. Each primitive is one small function: PTX where CUDA
// compiles it, plain C for the emulator (which defines EMULATOR and runs every thread as a fiber).

enum { WARP = 32 };

// Whether warpgroups multiply (wgmma): compute capability 9.0, compiled for sm_90a.
#if defined(EMULATOR_WARPGROUPS) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
enum { WARPGROUPS = 1 };
#else
enum { WARPGROUPS = 0 };
#endif

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

// Two words side by side, for `multiply`: by an instruction that does not change them. Where they
// are only copied, the assembler does that again for each product.
static __device__ __forceinline__ struct columns pair_of(float x, float y) {
    const unsigned zero = gridDim.y - 1;
    return {__float_as_uint(x) ^ zero, __float_as_uint(y) ^ zero};
}

// Four 8 x 8 matrices of bf16 from shared memory: lane 8m + r gives the address of row r of matrix
// m, 16 bytes; lane 4g + i gets elements 2i, 2i+1 of row g of matrices 0 to 3 in x to w.
static __device__ inline struct tile load_matrices(const void *row) {
#ifdef EMULATOR
    struct tile t = *(const struct tile *)row;
    unsigned words[] = {t.x, t.y, t.z, t.w};
    emulate_matrices(words);
    return {words[0], words[1], words[2], words[3]};
#else
    struct tile t;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(t.x), "=r"(t.y), "=r"(t.z), "=r"(t.w)
                 : "r"((unsigned)__cvta_generic_to_shared(row)));
    return t;
#endif
}

#ifndef EMULATOR
// Operands of a warpgroup's product: 32 sums of a thread for each 64 columns.
#define SUMS_0                                                                                     \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_1                                                                                     \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_2                                                                                     \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
    "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SUMS_3                                                                                     \
    "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
    "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, "   \
    "%127"
#define SUM_OPERANDS(s) "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
#define SLICE_OPERANDS(s)                                                                          \
    SUM_OPERANDS(s[0]), SUM_OPERANDS(s[1]), SUM_OPERANDS(s[2]), SUM_OPERANDS(s[3]),                \
        SUM_OPERANDS(s[4]), SUM_OPERANDS(s[5]), SUM_OPERANDS(s[6]), SUM_OPERANDS(s[7])
#define WARPGROUP_PRODUCT(columns, sums, weights)                                                  \
    "{.reg .pred add;\n"                                                                           \
    "setp.eq.u32 add, 0, 0;\n"                                                                     \
    "wgmma.mma_async.sync.aligned.m64n" columns "k16.f32.bf16.bf16 {" sums "}, {" weights          \
    ", add, 1, 1, 0;}"
#endif

// Products of a warpgroup, four warps, run behind the threads' backs: between the start of one and
// the wait for its group, neither `sum` nor `a` may be touched nor what lies at `b` be changed.
// sum [64, 64 SLICES] += a [64, 16] x b [16, 64 SLICES]: rows 16w to 16w + 15 are warp w's,
// sum[s][j] of columns 64s + 8j to 64s + 8j + 7 and a as in multiply. b: 16 k of blocks of
// activations (input_word) in shared memory, at a multiple of 1,024 bytes, 32 bytes further for
// each 16 of k before. One instruction for all columns: it reads `a` once.
template <int SLICES>
static __device__ inline void multiply_warpgroup(float (&sum)[SLICES][8][4], const struct tile &a,
                                                 const void *b) {
    static_assert(SLICES >= 2 && SLICES <= 4, "128, 192 or 256 columns");
#ifdef EMULATOR
    for (int i = 0; i < SLICES; i++) // 64 columns of 64 k, bf16
        emulate_warpgroup_product(sum[i], &a.x, (const char *)b + i * 64 * 64 * 2);
#else
    unsigned long long address = __cvta_generic_to_shared(b);
    // Swizzled in rows of 128 bytes; 1,024 bytes from 8 columns to the next.
    unsigned long long columns = 1ull << 62 | 64ull << 32 | 1ull << 16 | address >> 4;
    if constexpr (SLICES == 2)
        asm volatile(WARPGROUP_PRODUCT("128", SUMS_0 ", " SUMS_1, "%64, %65, %66, %67}, %68")
                     : SLICE_OPERANDS(sum[0]), SLICE_OPERANDS(sum[1])
                     : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "l"(columns));
    else if constexpr (SLICES == 3)
        asm volatile(
            WARPGROUP_PRODUCT("192", SUMS_0 ", " SUMS_1 ", " SUMS_2, "%96, %97, %98, %99}, %100")
            : SLICE_OPERANDS(sum[0]), SLICE_OPERANDS(sum[1]), SLICE_OPERANDS(sum[2])
            : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "l"(columns));
    else
        asm volatile(WARPGROUP_PRODUCT("256", SUMS_0 ", " SUMS_1 ", " SUMS_2 ", " SUMS_3,
                                       "%128, %129, %130, %131}, %132")
                     : SLICE_OPERANDS(sum[0]), SLICE_OPERANDS(sum[1]), SLICE_OPERANDS(sum[2]),
                       SLICE_OPERANDS(sum[3])
                     : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "l"(columns));
#endif
}

// Before the first product of a group: registers are as the threads left them.
static __device__ inline void fence_products() {
#ifdef EMULATOR
    emulate_fence_products();
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Ends a group of products.
static __device__ inline void commit_products() {
#ifdef EMULATOR
    emulate_commit_products();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until at most PENDING groups of products are still under way.
template <int PENDING> static __device__ inline void wait_products() {
#ifdef EMULATOR
    emulate_wait_products(PENDING);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
#endif
}

// All threads of a warpgroup give registers back, or take some that another one gave back: then
// each thread has COUNT, a multiple of 8.
template <int COUNT> static __device__ inline void give_registers() {
#ifndef EMULATOR
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

template <int COUNT> static __device__ inline void take_registers() {
#ifndef EMULATOR
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// Keeps the compiler from using a sum before it is complete.
static __device__ inline void keep(float (&sum)[8][4]) {
#ifndef EMULATOR
#pragma unroll
    for (int i = 0; i < 32; i++)
        asm volatile("" : "+f"(sum[i / 4][i % 4])::"memory");
#else
    (void)sum;
#endif
}

// threadIdx.x and blockIdx.x, read each time: the compiler does not know them again, and keeps
// nothing that it made of them before.
static __device__ __forceinline__ unsigned read_thread_id() {
#ifdef EMULATOR
    return threadIdx.x;
#else
    unsigned number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    return number;
#endif
}

static __device__ __forceinline__ unsigned read_block_id() {
#ifdef EMULATOR
    return blockIdx.x;
#else
    unsigned number;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(number));
    return number;
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

// *to += value, which no other thread changes now. Behind the thread's back.
static __device__ inline void add_float(float *to, float value) {
#ifdef EMULATOR
    *to += value;
#else
    asm volatile("red.relaxed.gpu.global.add.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
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

// Asks for what is read soon, to be in the L2 cache then.
static __device__ inline void prefetch(const void *global) {
#ifdef EMULATOR
    (void)global;
#else
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
#endif
}

// Copies 16 bytes from global to shared memory past the L1 cache, behind the thread's back; zeros
// without a look at `global` if they are not `wanted`.
static __device__ inline void copy_async(void *shared, const void *global, bool wanted) {
#ifdef EMULATOR
    emulate_copy(shared, global, wanted);
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(
                     (unsigned)__cvta_generic_to_shared(shared)),
                 "l"(global), "r"(wanted ? 16 : 0)
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

// Blocks that run together pass numbers on without a barrier. 4 or 8 bytes, which are written and
// read at once, carry in the lowest bit of their last word the parity of the round they belong to:
// who waits for them reads them again until they have the round's. Of other memory that says
// nothing. In the next round they may be overwritten when all who read them have told of what they
// made of them. 16 bytes are two times 8. Results do not depend on rounds: the bit is cleared where
// it was read. An infinity with that bit becomes a NaN.
static __device__ inline float with_round(float value, unsigned round) {
    return __uint_as_float((__float_as_uint(value) & ~1u) | (round & 1));
}

// What was told: the same in every round.
static __device__ inline float without_round(float value) {
    return with_round(value, 0);
}

static __device__ inline float4 without_round(const float4 &value) {
    return make_float4(value.x, without_round(value.y), value.z, without_round(value.w));
}

// In its lowest bit: whether a number is of another round, or `others` has that bit. In one
// instruction: of many such bits the compiler makes predicates, one after the other.
static __device__ inline unsigned strange(float value, unsigned round, unsigned others = 0) {
#ifdef EMULATOR
    return (__float_as_uint(value) ^ round) | others;
#else
    unsigned result;
    asm("lop3.b32 %0, %1, %2, %3, 0xbe;"
        : "=r"(result)
        : "r"(__float_as_uint(value)), "r"(round), "r"(others));
    return result;
#endif
}

static __device__ inline unsigned strange(const float4 &value, unsigned round,
                                          unsigned others = 0) {
    return strange(value.w, round, strange(value.y, round, others));
}

static __device__ inline void tell(float *to, float value, unsigned round) {
    value = with_round(value, round);
#ifdef EMULATOR
    emulate_tell(to, &value, 1);
#else
    asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(to), "f"(value) : "memory");
#endif
}

static __device__ inline void tell(float2 *to, float2 value, unsigned round) {
    value.y = with_round(value.y, round);
#ifdef EMULATOR
    emulate_tell(&to->x, &value.x, 2);
#else
    asm volatile(
        "{ .reg .b64 a; mov.b64 a, {%1, %2}; st.relaxed.gpu.global.b64 [%0], a; }" ::"l"(to),
        "f"(value.x), "f"(value.y)
        : "memory");
#endif
}

static __device__ inline void tell(float4 *to, float4 value, unsigned round) {
    value.y = with_round(value.y, round);
    value.w = with_round(value.w, round);
#ifdef EMULATOR
    emulate_tell(&to->x, &value.x, 2);
    emulate_tell(&to->z, &value.z, 2);
#else
    asm volatile("{ .reg .b64 a, b; mov.b64 a, {%1, %2}; mov.b64 b, {%3, %4}; "
                 "st.relaxed.gpu.global.v2.b64 [%0], {a, b}; }" ::"l"(to),
                 "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
                 : "memory");
#endif
}

// What may be of this round, or of the one before.
static __device__ inline float look(const float *from, unsigned round) {
    float value;
#ifdef EMULATOR
    emulate_look(from, &value, 1, round);
#else
    (void)round;
    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(value) : "l"(from));
#endif
    return value;
}

static __device__ inline float4 look(const float4 *from, unsigned round) {
    float4 value;
#ifdef EMULATOR
    emulate_look(&from->x, &value.x, 2, round);
    emulate_look(&from->z, &value.z, 2, round);
#else
    (void)round;
    asm volatile("{ .reg .b64 a, b; ld.relaxed.gpu.global.v2.b64 {a, b}, [%4]; "
                 "mov.b64 {%0, %1}, a; mov.b64 {%2, %3}, b; }"
                 : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
                 : "l"(from));
#endif
    return value;
}

// True. Behind a branch loads stay together: else the assembler may put what needs the first of
// them before the last one, and they are no longer under way at the same time.
static __device__ inline bool together() {
    return gridDim.x > 0;
}

// Zeros of this round.
static __device__ inline void tell_nothing(float &value, unsigned round) {
    value = with_round(0, round);
}

static __device__ inline void tell_nothing(float4 &value, unsigned round) {
    value = make_float4(0, with_round(0, round), 0, with_round(0, round));
}

// Whether to look again, after `strange` of what was found: by one thread; by all lanes, if one has
// to.
static __device__ inline bool look_again_alone(unsigned missing) {
#ifdef EMULATOR
    if (missing & 1)
        emulate_pause();
#endif
    return missing & 1;
}

static __device__ inline bool look_again(unsigned missing) {
    return look_again_alone(__any_sync(0xffffffff, missing & 1));
}

// The same of an array of numbers.
template <int COUNT, typename NUMBER>
static __device__ __forceinline__ void tell_nothing(NUMBER (&found)[COUNT], unsigned round) {
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        tell_nothing(found[i], round);
}

template <int COUNT, typename NUMBER>
static __device__ __forceinline__ unsigned strange(const NUMBER (&found)[COUNT], unsigned round) {
    unsigned some[2] = {0, 0}; // shorter chains
#pragma unroll
    for (int i = 0; i < COUNT; i++)
        some[i % 2] = strange(found[i], round, some[i % 2]);
    return some[0] | some[1];
}

// Waits for COUNT numbers of each lane of a warp: ask(i, found[i]) looks for number i, or leaves it
// as it is, 0, where there is none. All are looked for before the first is checked.
template <int COUNT, typename NUMBER, typename ASK>
static __device__ __forceinline__ void await_all(NUMBER (&found)[COUNT], unsigned round, ASK ask) {
    tell_nothing(found, round);
    do {
        if (together()) {
#pragma unroll
            for (int i = 0; i < COUNT; i++)
                ask(i, found[i]);
        }
    } while (look_again(strange(found, round)));
}

// Behind a loop that lanes leave one by one: from here on the warp is one again. Nothing depends on
// that but the time that it takes.
static __device__ inline void converge() {
#ifndef EMULATOR
    __syncwarp();
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

// One arrival of a whole warp, when all its lanes are here.
static __device__ inline void arrive_as_warp(unsigned long long *barrier) {
    __syncwarp();
    if (threadIdx.x % WARP == 0)
        arrive(barrier);
}

// A place in a ring of COUNT slots whose barriers end a phase in each round.
template <int COUNT> struct ring_place {
    int slot = 0;
    unsigned parity = 0; // of the phase in which the slot becomes full

    __device__ __forceinline__ void next() {
        slot++;
        if (slot == COUNT) {
            slot = 0;
            parity ^= 1;
        }
    }
};

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

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
static __device__ inline void expect_bytes(unsigned long long *barrier, int bytes) {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
}

template <bool ONCE>
static __device__ inline void copy_bulk(void *shared, const void *global, int bytes,
                                        unsigned long long *barrier) {
    if (!ONCE) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                     " [%0], [%1], %2, [%3];" ::"r"(shared_address(shared)),
                     "l"(global), "r"(bytes), "r"(shared_address(barrier))
                     : "memory");
        return;
    }
    unsigned long long policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
                 ".L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(bytes), "r"(shared_address(barrier)), "l"(policy)
                 : "memory");
}
#endif

// Copies to shared memory, behind the warp's back: its lanes all call this with the same arguments,
// and may write there. `bytes`: a multiple of 16. COPY_ARRIVALS of `barrier`'s arrivals are those
// of one copy when it is there. ONCE: what is read once, and need not stay in the L2 cache.
template <bool ONCE = true>
static __device__ inline void copy_slot(void *shared, const void *global, int bytes,
                                        unsigned long long *barrier) {
#ifdef EMULATOR
    emulate_copy_slot(shared, global, bytes, barrier);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (threadIdx.x % WARP == 0) {
        expect_bytes(barrier, bytes);
        copy_bulk<ONCE>(shared, global, bytes, barrier);
    }
#else
    for (int i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16)
        copy_async((char *)shared + i, (const char *)global + i, true);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
                 : "memory");
#endif
}

// The same for `pieces` pieces of `bytes` bytes, at most WARP: `stride` apart in global, `apart` in
// shared memory.
template <bool ONCE = true>
static __device__ inline void copy_pieces(char *shared, int apart, const char *global,
                                          long long stride, int bytes, int pieces,
                                          unsigned long long *barrier) {
#ifdef EMULATOR
    emulate_copy_pieces(shared, apart, global, stride, bytes, pieces, barrier);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    int lane = threadIdx.x % WARP;
    if (lane == 0)
        expect_bytes(barrier, pieces * bytes);
    __syncwarp();
    if (lane < pieces)
        copy_bulk<ONCE>(shared + lane * apart, global + lane * stride, bytes, barrier);
#else
    int chunks = bytes / 16;
    for (int i = threadIdx.x % WARP; i < pieces * chunks; i += WARP)
        copy_async(shared + i / chunks * apart + i % chunks * 16,
                   global + i / chunks * stride + i % chunks * 16, true);
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
                 : "memory");
#endif
}

// The chunk of this lane, 4g + i, of a tile in shared memory that lies there as in the pack: chunk
// 8i + g. Half of the lanes begin with its second half, so that few meet in a bank.
static __device__ inline struct tile load_fragment(const struct tile *tile_in_shared) {
    int g = threadIdx.x % WARP / 4, i = threadIdx.x % 4;
    const struct columns *halves = (const struct columns *)(tile_in_shared + 8 * i + g);
    struct columns first = halves[i % 2], second = halves[1 - i % 2];
    struct columns low = i % 2 ? second : first, high = i % 2 ? first : second;
    return {low.x, low.y, high.x, high.y};
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
