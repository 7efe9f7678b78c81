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

// The same to f16, which has three bits more of a number between 6e-5 and 65,504.
static __device__ inline unsigned to_f16(float even, float odd) {
#ifdef EMULATOR
    return emulate_f16(even) | emulate_f16(odd) << 16;
#else
    unsigned word;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(odd), "f"(even));
    return word;
#endif
}

// The f16 of 16 bits.
static __device__ inline float from_f16(unsigned bits) {
#ifdef EMULATOR
    return f16_to_float((unsigned short)bits);
#else
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
    return value;
#endif
}

// What the operands of a product are.
enum number { BF16, F16 };

template <enum number NUMBER> static __device__ inline unsigned to_numbers(float even, float odd) {
    return NUMBER == F16 ? to_f16(even, odd) : to_bf16(even, odd);
}

// sum [16, 8] += a [16, 16] x b [16, 8]; sum[0], sum[1]: row g, columns 2i, 2i+1; sum[2], sum[3]:
// row g + 8.
template <enum number NUMBER = BF16>
static __device__ inline void multiply(float (&sum)[4], const struct tile &a,
                                       const struct columns &b) {
#ifdef EMULATOR
    unsigned words[] = {a.x, a.z, a.y, a.w, b.x, b.y};
    emulate_product(sum, words, NUMBER == F16);
#else
    if constexpr (NUMBER == F16)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b.x), "r"(b.y));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
            "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(a.x), "r"(a.z), "r"(a.y), "r"(a.w), "r"(b.x), "r"(b.y));
#endif
}

static __device__ inline unsigned shared_address(const void *shared) {
#ifdef EMULATOR
    return emulate_shared_address(shared);
#else
    return (unsigned)__cvta_generic_to_shared(shared);
#endif
}

// Two words side by side, for `multiply`: by an instruction that does not change them. Where they
// are only copied, the assembler does that again for each product.
static __device__ __forceinline__ struct columns pair_of(float x, float y) {
    const unsigned zero = gridDim.y - 1;
    return {__float_as_uint(x) ^ zero, __float_as_uint(y) ^ zero};
}

// Four 8 x 8 matrices of 16-bit numbers from shared memory: lane 8m + r gives the address of row r
// of matrix m, 16 bytes; lane 4g + i gets elements 2i, 2i+1 of row g of matrices 0 to 3 in x to w.
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
                 : "r"(shared_address(row)));
    return t;
#endif
}

#ifndef EMULATOR
// start_bf16 and start_f16 for as many columns as are used here.
#include "cuda_warpgroup_products.cu"
#endif

// Where a warpgroup's product finds its columns in shared memory: a matrix descriptor for 16 k of
// them, each 16 bytes of a column a chunk. Of blocks of activations (input_word), which begin at
// multiples of 1,024 bytes; 16 k are 32 bytes further than those before.
static __device__ inline unsigned long long swizzled_columns(const void *at) {
    const unsigned long long swizzle = 1; // in rows of 128 bytes
    return swizzle << 62 | 1024ull / 16 << 32 | 1ull << 16 | shared_address(at) / 16;
}

// Of columns one after the other, the next 8 k `apart` bytes further.
static __device__ inline unsigned long long plain_columns(const void *at, int apart) {
    return 128ull / 16 << 32 | (unsigned long long)(apart / 16) << 16 | shared_address(at) / 16;
}

// The same of what lies `bytes` bytes further.
static __device__ inline unsigned long long further(unsigned long long columns, int bytes) {
    return (columns & ~0xffffffffull) | ((unsigned)columns + bytes / 16);
}

// Products of a warpgroup, four warps, run behind the threads' backs: between the start of one and
// the wait for its group, neither `sum` nor `a` may be touched nor what lies at b be changed.
// sum [64, 8 BLOCKS] += a [64, 16] x b [16, 8 BLOCKS]: rows 16w to 16w + 15 are warp w's, sum[j] of
// columns 8j to 8j + 7 and a as in multiply. One instruction for all columns: it reads `a` once.
template <enum number NUMBER, int BLOCKS>
static __device__ inline void multiply_warpgroup(float (&sum)[BLOCKS][4], const struct tile &a,
                                                 unsigned long long b) {
#ifdef EMULATOR
    emulate_warpgroup_product(sum, BLOCKS, &a.x, b, NUMBER == F16);
#else
    if constexpr (NUMBER == F16)
        start_f16(sum, a, b);
    else
        start_bf16(sum, a, b);
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

// Keeps the compiler from using sums before they are complete.
template <int BLOCKS> static __device__ inline void keep(float (&sum)[BLOCKS][4]) {
#ifndef EMULATOR
#pragma unroll
    for (int i = 0; i < BLOCKS * 4; i++)
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

// x, of which the compiler does not know what it is: what is added to it stays a constant.
static __device__ __forceinline__ unsigned opaque(unsigned x) {
#ifndef EMULATOR
    asm volatile("" : "+r"(x));
#endif
    return x;
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

// The same for 4 bytes.
static __device__ inline void copy_word_async(void *shared, const void *global) {
#ifdef EMULATOR
    emulate_copy(shared, global, 4, true);
#else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(shared_address(shared)),
                 "l"(global)
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

static __device__ inline float2 without_round(const float2 &value) {
    return make_float2(value.x, without_round(value.y));
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

static __device__ inline unsigned strange(const float2 &value, unsigned round,
                                          unsigned others = 0) {
    return strange(value.y, round, others);
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

static __device__ inline float2 look(const float2 *from, unsigned round) {
    float2 value;
#ifdef EMULATOR
    emulate_look(&from->x, &value.x, 2, round);
#else
    (void)round;
    asm volatile("{ .reg .b64 a; ld.relaxed.gpu.global.b64 a, [%2]; mov.b64 {%0, %1}, a; }"
                 : "=f"(value.x), "=f"(value.y)
                 : "l"(from));
#endif
    return value;
}

// Two numbers side by side that were told one by one.
static __device__ inline float2 look_twice(const float *from, unsigned round) {
#ifdef EMULATOR
    return make_float2(look(from, round), look(from + 1, round));
#else
    (void)round;
    float2 value;
    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];"
                 : "=f"(value.x), "=f"(value.y)
                 : "l"(from));
    return value;
#endif
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

static __device__ inline void tell_nothing(float2 &value, unsigned round) {
    value = make_float2(0, with_round(0, round));
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

// Whether the last phase of this parity has ended. If so, it is as if it had been waited for.
static __device__ inline bool has_ended(unsigned long long *barrier, unsigned parity) {
#ifdef EMULATOR
    return emulate_test_barrier(barrier, parity);
#else
    unsigned ended;
    asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; "
                 "selp.u32 %0, 1, 0, p; }"
                 : "=r"(ended)
                 : "r"(shared_address(barrier)), "r"(parity)
                 : "memory");
    return ended;
#endif
}

// Waits until the last phase of this parity has ended. Then this thread sees what those who arrived
// saw before, and what was copied.
static __device__ inline void wait_barrier(unsigned long long *barrier, unsigned parity) {
#ifdef EMULATOR
    emulate_wait_barrier(barrier, parity);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    unsigned ended;
    do // the hardware lets the thread sleep a while
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; "
                     "selp.u32 %0, 1, 0, p; }"
                     : "=r"(ended)
                     : "r"(shared_address(barrier)), "r"(parity)
                     : "memory");
    while (!ended);
#else
    while (!has_ended(barrier, parity))
        ;
#endif
}

// Whether copies that a barrier tells the end of are bulk copies, each started by one thread: from
// compute capability 9.0 on.
#if defined(EMULATOR) || (defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900)
enum { BULK_COPIES = 1 };
#else
enum { BULK_COPIES = 0 };
#endif
enum { COPY_ARRIVALS = BULK_COPIES ? 1 : WARP };

// An arrival; but the phase does not end before so many bytes are copied.
static __device__ inline void expect_bytes(unsigned long long *barrier, int bytes) {
#ifdef EMULATOR
    emulate_expect_bytes(barrier, bytes);
#else
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                     shared_address(barrier)),
                 "r"(bytes)
                 : "memory");
#endif
}

// ONCE: what is read once, and need not stay in the L2 cache.
template <bool ONCE>
static __device__ inline void copy_bulk(void *shared, const void *global, int bytes,
                                        unsigned long long *barrier) {
#ifdef EMULATOR
    emulate_copy_bulk(shared, global, bytes, barrier);
#else
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
#endif
}

// Copies to shared memory, behind the warp's back: its lanes all call this with the same arguments,
// and may write there. Between begin_copies, which says how many bytes there are in all, and
// end_copies come parts of them, multiples of 16 bytes. COPY_ARRIVALS of `barrier`'s arrivals are
// those of all parts when they are there.
static __device__ inline void begin_copies(unsigned long long *barrier, int bytes) {
    if constexpr (BULK_COPIES)
        if (threadIdx.x % WARP == 0)
            expect_bytes(barrier, bytes);
}

template <bool ONCE = true>
static __device__ inline void copy_part(void *shared, const void *global, int bytes,
                                        unsigned long long *barrier) {
    if constexpr (BULK_COPIES) {
        if (threadIdx.x % WARP == 0)
            copy_bulk<ONCE>(shared, global, bytes, barrier);
    } else {
        for (int i = threadIdx.x % WARP * 16; i < bytes; i += WARP * 16)
            copy_async((char *)shared + i, (const char *)global + i, true);
    }
}

static __device__ inline void end_copies(unsigned long long *barrier) {
#ifndef EMULATOR
    if constexpr (!BULK_COPIES)
        asm volatile(
            "cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier))
            : "memory");
#endif
}

// One part.
template <bool ONCE = true>
static __device__ inline void copy_slot(void *shared, const void *global, int bytes,
                                        unsigned long long *barrier) {
    begin_copies(barrier, bytes);
    copy_part<ONCE>(shared, global, bytes, barrier);
    end_copies(barrier);
}

// `pieces` parts of `bytes` bytes, at most WARP: `stride` apart in global, `apart` in shared
// memory.
template <bool ONCE = true>
static __device__ inline void copy_pieces(char *shared, int apart, const char *global,
                                          long long stride, int bytes, int pieces,
                                          unsigned long long *barrier) {
    begin_copies(barrier, pieces * bytes);
    if constexpr (BULK_COPIES) {
        int lane = threadIdx.x % WARP;
        __syncwarp();
        if (lane < pieces)
            copy_bulk<ONCE>(shared + lane * apart, global + lane * stride, bytes, barrier);
    } else {
        int chunks = bytes / 16;
        for (int i = threadIdx.x % WARP; i < pieces * chunks; i += WARP)
            copy_async(shared + i / chunks * apart + i % chunks * 16,
                       global + i / chunks * stride + i % chunks * 16, true);
    }
    end_copies(barrier);
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
