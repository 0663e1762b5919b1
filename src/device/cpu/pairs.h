/* Products of bf16 factors, in the arithmetic of AVX-512's vdpbf16ps: a step takes two neighbours of k,
 *
 *   sum <- a[k + 1] b[k + 1] + sum, rounded once; then sum <- a[k] b[k] + sum, rounded once,
 *
 * where numbers below 2^-126 count as zeros, in the factors and in every sum. A last element without a
 * neighbour has zeros as one. With that instruction panels hold pairs (low half: the even k); without it, or
 * where it turns out to do something else, the panels of `real` and two fused multiply-adds give its bits. */
#ifndef TM_DEVICE_CPU_PAIRS_H
#define TM_DEVICE_CPU_PAIRS_H

#include "device/cpu/pack.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

/* Numbers below 2^-126 are zeros until flush_end gets what flush_begin returned. Arithmetic in between must be
 * in functions of their own, or the compiler may move it. */
static inline uint64_t flush_begin(void)
{
    uint64_t old = 0;
#if defined(__x86_64__)
    enum { FLUSH_RESULTS = 0x8000, FLUSH_OPERANDS = 0x40 };
    old = _mm_getcsr();
    _mm_setcsr((unsigned)old | FLUSH_RESULTS | FLUSH_OPERANDS);
#elif defined(__aarch64__)
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    __asm__ volatile("msr fpcr, %0" ::"r"(old | 1u << 24) : "memory");
#endif
    return old;
}

static inline void flush_end(uint64_t old)
{
#if defined(__x86_64__)
    _mm_setcsr((unsigned)old);
#elif defined(__aarch64__)
    __asm__ volatile("msr fpcr, %0" ::"r"(old) : "memory");
#else
    (void)old;
#endif
}

/* n elements of `real`, rounded to bf16 in place. */
V16_FN void round_to_bf16(real *x, int64_t n)
{
    for (int64_t i = 0; i < n; i += V16) {
        int w = n - i < V16 ? (int)(n - i) : V16;
        uint16_t half[V16];
        v16_put_bf16(half, v16_get_n(x + i, w));
        v16_put_n(x + i, w, v16_get_bf16(half));
    }
}

#ifdef TM_SIMD_AVX512

/* Sixteen pairs in each factor: sum + their products. */
V16_FN v16 v16_dot(v16 a, v16 b, v16 sum)
{
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(a), (__m512bh)_mm512_castps_si512(b));
}

/* n elements from `at` on as bf16; zeros beyond. */
V16_FN __m256i halves(const tm_gemm_factor *f, tm_dtype t, int64_t at, int n)
{
    if (t == TM_BF16)
        return n == V16 ? _mm256_loadu_si256((const __m256i *)((const uint16_t *)f->data + at))
                        : _mm256_maskz_loadu_epi16(v16_first(n), (const uint16_t *)f->data + at);
    return v16_to_bf16(n == V16 ? v16_load(f->data, t, at) : v16_load_n(f->data, t, at, n));
}

V16_FN v16 pairs_of(__m256i even, __m256i odd)
{
    return _mm512_castsi512_ps(
        _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
}

/* 32 elements that lie along k, n of them there. */
V16_FN v16 pairs_along(const tm_gemm_factor *f, tm_dtype t, int64_t at, int n)
{
    if (t == TM_BF16)
        return _mm512_castsi512_ps(n == 2 * V16 ? _mm512_loadu_si512((const uint16_t *)f->data + at)
                                                : _mm512_maskz_loadu_epi16((__mmask32)((1ull << n) - 1),
                                                                           (const uint16_t *)f->data + at));
    __m256i low = halves(f, t, at, n < V16 ? n : V16);
    __m256i high = n > V16 ? halves(f, t, at + V16, n - V16) : _mm256_setzero_si256();
    return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
}

/* As pack_turned, in pairs. */
V16_FN void pack_turned_pairs(real *dst, int W, const tm_gemm_factor *f, tm_dtype t, int64_t first, int count,
                              int64_t k0, int64_t k1)
{
    int64_t element = t == TM_F32 ? 4 : 2;
    for (int64_t k = k0; k < k1; k += 2 * V16, dst += V16 * W) {
        int n = k1 - k < 2 * V16 ? (int)(k1 - k) : 2 * V16;
        v16 r[V16];
        if (n == 2 * V16) {
#pragma GCC unroll 16
            for (int i = 0; i < V16; i++) {
                if (i < count)
                    __builtin_prefetch((const char *)f->data + ((first + i) * f->ld + k + 2 * TURN_AHEAD) * element);
                r[i] = i < count ? pairs_along(f, t, (first + i) * f->ld + k, 2 * V16) : v16_zero();
            }
        } else {
#pragma GCC unroll 16
            for (int i = 0; i < V16; i++)
                r[i] = i < count ? pairs_along(f, t, (first + i) * f->ld + k, n) : v16_zero();
        }
        v16_transpose(r);
#pragma GCC unroll 16
        for (int j = 0; j < V16; j++)
            if (2 * j < n)
                v16_put(dst + j * W, r[j]);
    }
}

/* As sweep_typed, in pairs; W is a multiple of V16. */
V16_FN void sweep_pairs(real *dst, int64_t stride, int W, int64_t height, const tm_gemm_factor *f, tm_dtype t,
                        int64_t first, int64_t count, int64_t k0, int64_t k1)
{
    int64_t element = t == TM_F32 ? 4 : 2;
    for (int64_t k = k0; k < k1; k += SWEEP, dst += SWEEP / 2 * W) {
        int depth = k1 - k < SWEEP ? (int)(k1 - k) : SWEEP;
        real *panel = dst;
        for (int64_t i = 0; i < count; i += height, panel += stride)
            for (int p = 0; p < depth; p += 2) {
                int64_t at = (k + p) * f->ld + first + i;
#pragma GCC unroll 2
                for (int j = 0; j < W; j += V16) {
                    int64_t left = count - i - j;
                    int n = left >= V16 ? V16 : left > 0 ? (int)left : 0;
                    __builtin_prefetch((const char *)f->data + (at + j + SWEEP_AHEAD) * element);
                    __builtin_prefetch((const char *)f->data + (at + j + f->ld + SWEEP_AHEAD) * element);
                    __m256i even = n > 0 ? halves(f, t, at + j, n) : _mm256_setzero_si256();
                    __m256i odd = n > 0 && p + 1 < depth ? halves(f, t, at + j + f->ld, n) : _mm256_setzero_si256();
                    v16_put(panel + p / 2 * W + j, pairs_of(even, odd));
                }
            }
    }
}

V16_FN void pack_pairs_typed(real *dst, int W, const tm_gemm_factor *f, tm_dtype t, int64_t first, int64_t count,
                             int64_t k0, int64_t k1)
{
    if (!f->k_inner) {
        sweep_pairs(dst, 0, W, W, f, t, first, count, k0, k1);
        return;
    }
    for (int64_t i = 0; i < W; i += V16) {
        int64_t left = count - i;
        pack_turned_pairs(dst + i, W, f, t, first + i, left < 0 ? 0 : left > V16 ? V16 : (int)left, k0, k1);
    }
}

/* pack_panel and pack_sweep, in pairs: (k1 - k0 + 1) / 2 steps. */
static inline void pack_pairs(real *dst, int W, const tm_gemm_factor *f, int64_t first, int64_t count, int64_t k0,
                              int64_t k1)
{
    if (f->dtype == TM_BF16)
        pack_pairs_typed(dst, W, f, TM_BF16, first, count, k0, k1);
    else
        pack_pairs_typed(dst, W, f, f->dtype, first, count, k0, k1);
}

static inline void pack_pairs_sweep(real *dst, int64_t stride, int W, int64_t height, const tm_gemm_factor *f,
                                    int64_t first, int64_t count, int64_t k0, int64_t k1)
{
    if (f->dtype == TM_BF16)
        sweep_pairs(dst, stride, W, height, f, TM_BF16, first, count, k0, k1);
    else
        sweep_pairs(dst, stride, W, height, f, f->dtype, first, count, k0, k1);
}

#else /* no panels of pairs: never called */

V16_FN v16 v16_dot(v16 a, v16 b, v16 sum) { return v16_fma(a, b, sum); }
static inline void pack_pairs(real *dst, int W, const tm_gemm_factor *f, int64_t first, int64_t count, int64_t k0,
                              int64_t k1)
{
    (void)dst, (void)W, (void)f, (void)first, (void)count, (void)k0, (void)k1;
}
static inline void pack_pairs_sweep(real *dst, int64_t stride, int W, int64_t height, const tm_gemm_factor *f,
                                    int64_t first, int64_t count, int64_t k0, int64_t k1)
{
    (void)dst, (void)stride, (void)W, (void)height, (void)f, (void)first, (void)count, (void)k0, (void)k1;
}

#endif
#endif
