/* CUDA's words for the processor: a kernel is an ordinary function that runs once a thread, and a thread is a fiber that
 * simt.cpp switches to and from. See there for what is emulated, and how.
 *
 * A variable of __shared__ memory is thread-local: a block runs on one thread of the system from beginning to end, so
 * blocks that run at the same time each have their own. */
#ifndef TM_TESTS_EMULATED_SIMT_H
#define TM_TESTS_EMULATED_SIMT_H

#define TM_CUDA_EMULATED
#define __CUDA_ARCH_FEAT_SM90_ALL 1
#define __host__
#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __shared__ static thread_local

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define VECTOR2(T, name) struct alignas(2 * sizeof(T)) name##2 { T x, y; }; static inline name##2 make_##name##2(T x, T y) { return {x, y}; }
#define VECTOR4(T, name) struct alignas(4 * sizeof(T)) name##4 { T x, y, z, w; }; static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
VECTOR2(float, float) VECTOR2(int, int) VECTOR2(unsigned, uint) VECTOR2(double, double)
VECTOR4(float, float) VECTOR4(int, int) VECTOR4(unsigned, uint)
#undef VECTOR2
#undef VECTOR4
struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

/* --- Where a thread is --- */

enum : uintptr_t { EMULATED_STACK = 1 << 18 }; /* a fiber's stack, which begins at a multiple of its size */
enum { EMULATED_PROCESSORS = 3 };

struct emulated_place {
    uint3 thread, block;
    dim3 threads, grid;
};
static inline const emulated_place &emulated_here() { return *(const emulated_place *)((uintptr_t)__builtin_frame_address(0) & ~(EMULATED_STACK - 1)); }
#define threadIdx (emulated_here().thread)
#define blockIdx (emulated_here().block)
#define blockDim (emulated_here().threads)
#define gridDim (emulated_here().grid)

/* --- The engine --- */

/* thread(argument) by every thread of a grid, all done on return. `shared`: bytes of what TM_SHARED declares. */
void emulated_run(const char *op, dim3 grid, dim3 threads, size_t shared, void (*thread)(void *), void *argument);
/* Bytes of such memory that launches of a kernel may ask for; false: more than there is. */
bool emulated_allow_shared(void *kernel, int bytes);
int emulated_shared_allowed(void *kernel);
/* Says what is wrong with the kernel, where and with which seed, and ends the program. */
[[noreturn]] void emulated_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

void *emulated_shared_memory(size_t alignment);
uint32_t emulated_shared_address(const void *p);
/* Until `threads` threads (0: all) have come to the barrier; wait false: comes, and goes on. Returns the sum of values. */
int emulated_barrier(int number, int threads, bool wait, int value);
/* The warp meets: every lane's x, of lane `from`. */
uint64_t emulated_exchange(unsigned mask, uint64_t x, int from);
unsigned emulated_ballot(unsigned mask, bool x);
void emulated_meet(unsigned mask);
/* A read of what another block may write: others run before. */
int emulated_look(const int *at);

/* --- CUDA's functions --- */

#define TM_SHARED(T, name, alignment) T *name = (T *)emulated_shared_memory(alignment)
#define __trap() emulated_fail("trap")
#define __cvta_generic_to_shared(p) emulated_shared_address(p)

static inline void __syncthreads() { emulated_barrier(0, 0, true, 0); }
static inline int __syncthreads_or(int x) { return emulated_barrier(0, 0, true, x != 0) != 0; }
static inline void __syncwarp(unsigned mask = ~0u) { emulated_meet(mask); }
static inline unsigned __ballot_sync(unsigned mask, bool x) { return emulated_ballot(mask, x); }
static inline bool __any_sync(unsigned mask, bool x) { return emulated_ballot(mask, x) != 0; }
template <class T> static inline T __shfl_sync(unsigned mask, T x, int from)
{
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof x);
    bits = emulated_exchange(mask, bits, from % 32);
    memcpy(&x, &bits, sizeof x);
    return x;
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T x, int by) { return __shfl_sync(mask, x, (int)(threadIdx.x % 32) ^ by); }
template <class T> static inline T __shfl_down_sync(unsigned mask, T x, int by, int width = 32)
{
    int lane = (int)(threadIdx.x % 32);
    return __shfl_sync(mask, x, lane % width + by < width ? lane + by : lane);
}

template <class T> static inline T atomicAdd(T *to, T x) { return __atomic_fetch_add(to, x, __ATOMIC_SEQ_CST); }
static inline double atomicAdd(double *to, double x)
{
    double old, sum;
    __atomic_load(to, &old, __ATOMIC_SEQ_CST);
    do
        sum = old + x;
    while (!__atomic_compare_exchange(to, &old, &sum, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    return old;
}
template <class T> static inline T atomicMax(T *to, T x)
{
    T old = *to;
    while (old < x && !__atomic_compare_exchange_n(to, &old, x, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
        ;
    return old;
}

template <class T> static inline T min(T a, T b) { return b < a ? b : a; }
template <class T> static inline T max(T a, T b) { return a < b ? b : a; }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline float __uint_as_float(unsigned x)
{
    float y;
    memcpy(&y, &x, 4);
    return y;
}
static inline long long __double_as_longlong(double x)
{
    long long y;
    memcpy(&y, &x, 8);
    return y;
}
static inline float cospif(float x) { return (float)cos(x * 3.14159265358979323846); }

#endif
