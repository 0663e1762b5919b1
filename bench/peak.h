/* What the benchmarks measure with and against: a clock, and how many multiply-adds the processor does at most,
 * in loops on twelve registers of the widest kind, where nothing waits for memory or for a sum. */
#ifndef TM_BENCH_PEAK_H
#define TM_BENCH_PEAK_H

#include "device/cpu/cpu.h"

#include <math.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

/* With one thread its own processor time, so that a busy machine distorts less. */
static clockid_t bench_clock = CLOCK_MONOTONIC;
static inline void bench_clock_for(const tm_pool *pool)
{
    if (tm_pool_threads(pool) == 1)
        bench_clock = CLOCK_THREAD_CPUTIME_ID;
}

static inline double now(void)
{
    struct timespec t;
    clock_gettime(bench_clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum { PEAK_SUMS = 12, PEAK_ROUNDS = 50000 };

#define PEAK_LOOP(name, vector, set1, fma, first)       \
    static float name(void)                             \
    {                                                   \
        vector s[PEAK_SUMS], x = set1(1e-3f), y = set1(0.999f); \
        for (int i = 0; i < PEAK_SUMS; i++)             \
            s[i] = set1((float)i);                      \
        for (int r = 0; r < PEAK_ROUNDS; r++)           \
            _Pragma("GCC unroll 12") for (int i = 0; i < PEAK_SUMS; i++) s[i] = fma; \
        for (int i = 1; i < PEAK_SUMS; i++)             \
            s[0] += s[i];                               \
        return first(s[0]);                             \
    }

#define PEAK_SELF(a) (a)
PEAK_LOOP(peak_scalar, float, PEAK_SELF, fmaf(s[i], y, x), PEAK_SELF)
#ifdef __x86_64__
__attribute__((target("avx2,fma")))
PEAK_LOOP(peak_avx2, __m256, _mm256_set1_ps, _mm256_fmadd_ps(s[i], y, x), _mm256_cvtss_f32)
__attribute__((target("avx512f")))
PEAK_LOOP(peak_avx512, __m512, _mm512_set1_ps, _mm512_fmadd_ps(s[i], y, x), _mm512_cvtss_f32)

__attribute__((target("avx512f,avx512bf16")))
PEAK_LOOP(peak_bf16, __m512, _mm512_set1_ps, _mm512_dpbf16_ps(s[i], (__m512bh)x, (__m512bh)y), _mm512_cvtss_f32)
#endif

typedef struct peak_loop {
    float (*call)(void);
    double flops; /* of a call */
} peak_loop;

/* bf16: of the dot product of pairs, where the processor has it. */
static inline peak_loop peak_of(tm_isa isa, bool bf16)
{
    double flops = 2.0 * PEAK_SUMS * PEAK_ROUNDS;
#ifdef __x86_64__
    if (isa == TM_ISA_AVX512 && bf16)
        return (peak_loop){peak_bf16, 32 * flops};
    if (isa == TM_ISA_AVX512)
        return (peak_loop){peak_avx512, 16 * flops};
    if (isa == TM_ISA_AVX2)
        return (peak_loop){peak_avx2, 8 * flops};
#endif
    (void)bf16;
    return (peak_loop){peak_scalar, flops};
}

static volatile float peak_sink;
static void peak_task(void *context, int64_t task, int thread)
{
    (void)task, (void)thread;
    peak_sink = ((const peak_loop *)context)->call();
}

/* Flop a second of all threads together, once measured (some milliseconds). */
static inline double peak_rate(peak_loop loop, tm_pool *pool)
{
    int tasks = 4 * tm_pool_threads(pool);
    double t = now();
    tm_pool_run(pool, peak_task, &loop, tasks);
    return loop.flops * tasks / (now() - t);
}

#endif
