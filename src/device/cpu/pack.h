/* Packing: W rows (or columns) of a factor become a panel in which k runs outside and the W
 * elements lie side by side, converted to `real`. Where the factor has fewer left, zeros. */
#ifndef TM_DEVICE_CPU_PACK_H
#define TM_DEVICE_CPU_PACK_H

#include "device/cpu/gemm.h"
#include "device/cpu/simd.h"

/* r[i] lane j becomes r[j] lane i. */
#if defined(TM_SIMD_AVX512)
V16_FN void v16_transpose(v16 r[V16])
{
    v16 t[V16];
#pragma GCC unroll 8
    for (int i = 0; i < V16; i += 2) { /* pairs of rows */
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < V16; i += 4) { /* quads: r[i + j] holds columns j, 4 + j, 8 + j, 12 + j of rows i..i+3 */
#define PD(f, a, b) _mm512_castpd_ps(f(_mm512_castps_pd(a), _mm512_castps_pd(b)))
        r[i] = PD(_mm512_unpacklo_pd, t[i], t[i + 2]);
        r[i + 1] = PD(_mm512_unpackhi_pd, t[i], t[i + 2]);
        r[i + 2] = PD(_mm512_unpacklo_pd, t[i + 1], t[i + 3]);
        r[i + 3] = PD(_mm512_unpackhi_pd, t[i + 1], t[i + 3]);
#undef PD
    }
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) { /* 4 x 4 blocks of 128 bits */
        v16 a = _mm512_shuffle_f32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_f32x4(r[j], r[4 + j], 0xdd);
        v16 c = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0x88), d = _mm512_shuffle_f32x4(r[8 + j], r[12 + j], 0xdd);
        t[j] = _mm512_shuffle_f32x4(a, c, 0x88);
        t[4 + j] = _mm512_shuffle_f32x4(b, d, 0x88);
        t[8 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
        t[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < V16; i++)
        r[i] = t[i];
}
#else
V16_FN void v16_transpose(v16 r[V16])
{
    real flat[V16 * V16], turned[V16 * V16];
    for (int i = 0; i < V16; i++)
        v16_put(flat + i * V16, r[i]);
    for (int i = 0; i < V16; i++)
        for (int j = 0; j < V16; j++)
            turned[j * V16 + i] = flat[i * V16 + j];
    for (int i = 0; i < V16; i++)
        r[i] = v16_get(turned + i * V16);
}
#endif

/* Panel memory: stores are whole vectors, so the last one may run over by this many elements. */
enum { PACK_SLACK = V16 };

/* Elements fetched ahead: sixteen rows at once are more streams than hardware follows from memory. */
enum { TURN_AHEAD = 64 };

/* r[j] lane i = element (first + i, k + j), i < count, j < depth; zeros elsewhere. */
V16_FN void turned_block(v16 r[V16], const tm_gemm_factor *f, tm_dtype t, int64_t first, int count, int64_t k, int depth)
{
    int64_t element = t == TM_REAL ? (int64_t)sizeof(real) : t == TM_F32 ? 4 : 2;
    if (depth == V16) {
#pragma GCC unroll 16
        for (int i = 0; i < V16; i++) {
            if (i < count)
                __builtin_prefetch((const char *)f->data + ((first + i) * f->ld + k + TURN_AHEAD) * element);
            r[i] = i < count ? v16_load(f->data, t, (first + i) * f->ld + k) : v16_zero();
        }
    } else {
#pragma GCC unroll 16
        for (int i = 0; i < V16; i++)
            r[i] = i < count ? v16_load_n(f->data, t, (first + i) * f->ld + k, depth) : v16_zero();
    }
    v16_transpose(r);
}

/* Rows first .. first + count (count <= V16) into lanes; W elements a step of k. */
V16_FN void pack_turned(real *dst, int W, const tm_gemm_factor *f, tm_dtype t, int64_t first, int count, int64_t k0,
                        int64_t k1)
{
    for (int64_t k = k0; k < k1; k += V16) {
        int n = k1 - k < V16 ? (int)(k1 - k) : V16;
        v16 r[V16];
        turned_block(r, f, t, first, count, k, n);
        real *out = dst + (k - k0) * W;
        if (n == V16) {
#pragma GCC unroll 16
            for (int j = 0; j < V16; j++)
                v16_put(out + j * W, r[j]);
        } else {
#pragma GCC unroll 16
            for (int j = 0; j < V16; j++)
                if (j < n)
                    v16_put(out + j * W, r[j]);
        }
    }
}

/* Elements (i, k) with k outside in the factor too: steps [k0, k1) of all panels, `height` elements apart in the factor
 * and `stride` in dst. A few steps at once, all panels for each: the factor is read along its rows. Nothing is written
 * outside these steps, so that tasks may share a panel. */
enum { SWEEP = 16, SWEEP_AHEAD = 64 };

V16_FN void sweep_typed(real *dst, int64_t stride, int W, int64_t height, const tm_gemm_factor *f, tm_dtype t,
                        int64_t first, int64_t count, int64_t k0, int64_t k1)
{
    int64_t element = t == TM_REAL ? (int64_t)sizeof(real) : t == TM_F32 ? 4 : 2;
    for (int64_t k = k0; k < k1; k += SWEEP, dst += SWEEP * W) {
        int depth = k1 - k < SWEEP ? (int)(k1 - k) : SWEEP;
        real *panel = dst;
        for (int64_t i = 0; i < count; i += height, panel += stride)
            for (int p = 0; p < depth; p++) {
                int64_t at = (k + p) * f->ld + first + i;
#pragma GCC unroll 2
                for (int j = 0; j < W; j += V16) {
                    int64_t left = count - i - j;
                    __builtin_prefetch((const char *)f->data + (at + j + SWEEP_AHEAD) * element);
                    v16 x = left >= V16 ? v16_load(f->data, t, at + j)
                            : left > 0  ? v16_load_n(f->data, t, at + j, (int)left)
                                        : v16_zero();
                    if (p * W + V16 <= depth * W || W >= V16) /* a narrow panel's next steps are written next */
                        v16_put(panel + p * W + j, x);
                    else
                        v16_put_n(panel + p * W, W, x);
                }
            }
    }
}

V16_FN void pack_sweep(real *dst, int64_t stride, int W, int64_t height, const tm_gemm_factor *f, int64_t first,
                       int64_t count, int64_t k0, int64_t k1)
{
    if (f->dtype == TM_REAL)
        sweep_typed(dst, stride, W, height, f, TM_REAL, first, count, k0, k1);
    else if (f->dtype == TM_BF16)
        sweep_typed(dst, stride, W, height, f, TM_BF16, first, count, k0, k1);
    else
        sweep_typed(dst, stride, W, height, f, f->dtype, first, count, k0, k1);
}

V16_FN void pack_typed(real *dst, int W, const tm_gemm_factor *f, tm_dtype t, int64_t first, int64_t count, int64_t k0,
                       int64_t k1)
{
    for (int64_t i = 0; i < W; i += V16) {
        int64_t left = count - i < W - i ? count - i : W - i;
        int n = left < 0 ? 0 : left > V16 ? V16 : (int)left;
        pack_turned(dst + i, W, f, t, first + i, n, k0, k1);
    }
}

/* Elements [first, first + count) x [k0, k1) of f into a panel of width W >= count; W is a constant;
 * dst has room for W * (k1 - k0) + PACK_SLACK elements. */
V16_FN void pack_panel(real *dst, int W, const tm_gemm_factor *f, int64_t first, int64_t count, int64_t k0, int64_t k1)
{
    if (!f->k_inner)
        pack_sweep(dst, 0, W, W, f, first, count, k0, k1);
    else if (f->dtype == TM_REAL)
        pack_typed(dst, W, f, TM_REAL, first, count, k0, k1);
    else if (f->dtype == TM_BF16)
        pack_typed(dst, W, f, TM_BF16, first, count, k0, k1);
    else
        pack_typed(dst, W, f, f->dtype, first, count, k0, k1);
}

#endif
