/* Kernels whose item is a warp: 32 lanes that each have a part of a sum, written so that the processor can run them too
 * (tests/emulated), lane after lane.
 *
 *   by_lane<float> x;             a value a lane
 *   EACH_LANE(lane) x[lane] = ..  what every lane does by itself: on the GPU for its own, here for all
 *   sum_lanes(x)                  everybody has the sum of all, in one order
 *
 * Between two EACH_LANE nothing but these functions may look at another lane. */
#ifndef TM_DEVICE_CUDA_WARP_CUH
#define TM_DEVICE_CUDA_WARP_CUH

#include "device/cuda/cuda.cuh"

enum { LANES = 32 };

#ifdef TM_CUDA_EMULATED

template <class T> struct by_lane {
    T all[LANES];
    T &operator[](int lane) { return all[lane]; }
};

#define EACH_LANE(lane) for (int lane = 0; lane < LANES; lane++)

template <class T, class F> TM_LANE void join_all(by_lane<T> &x, F join)
{
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++)
            x.all[i] = join(x.all[i], x.all[i + step]);
    for (int i = 1; i < LANES; i++)
        x.all[i] = x.all[0];
}

#define UNROLL
#define UNROLL_BY(times)

/* The value of one lane, for all. */
TM_LANE float of_lane(by_lane<float> &x, int lane) { return x.all[lane]; }
/* The value that all lanes have. */
template <class T> TM_LANE T common(by_lane<T> &x) { return x.all[0]; }

/* f(i) for i < n: a warp each. */
template <class F> static inline void tm_cuda_warps(tm_device *d, const char *op, int64_t n, F f) { tm_cuda_each(d, op, n, f); }

#else

#define UNROLL _Pragma("unroll")
#define UNROLL_BY(times) _Pragma(TM_UNROLL_TEXT(unroll times))
#define TM_UNROLL_TEXT(text) #text

template <class T> struct by_lane {
    T own;
    __device__ T &operator[](int) { return own; }
};

#define EACH_LANE(lane) for (int lane = (int)threadIdx.x % LANES, once = 1; once; once = 0)

/* Lane i and i ^ step join to the same value, as the function is commutative. */
template <class T, class F> TM_LANE void join_all(by_lane<T> &x, F join)
{
    UNROLL for (int step = LANES / 2; step; step /= 2)
        x.own = join(x.own, __shfl_xor_sync(~0u, x.own, step));
}

TM_LANE float of_lane(by_lane<float> &x, int lane) { return __shfl_sync(~0u, x.own, lane); }
template <class T> TM_LANE T common(by_lane<T> &x) { return x.own; }

/* Blocks are whole warps, and all lanes of one have the same i. */
template <class F> static inline void tm_cuda_warps(tm_device *d, const char *op, int64_t n, F f)
{
    tm_cuda_each(d, op, n * LANES, [=] __device__(int64_t thread) { f(thread / LANES); });
}

#endif

TM_LANE void sum_lanes(by_lane<float> &x)
{
    join_all(x, [](float a, float b) { return a + b; });
}

TM_LANE void max_lanes(by_lane<float> &x)
{
    join_all(x, [](float a, float b) { return a > b ? a : b; });
}

#endif
