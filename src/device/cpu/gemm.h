/* Matrix product of the CPU device: C[m,n] (+)= A[m,k] B[k,n] (+ bias).
 *
 * The bits of an output depend on its row of A, its column of B and the blocks of k, on nothing
 * else: inside a block one fused multiply-add chain over ascending k, starting from zero; the
 * blocks' sums are added in order (to the old C first when accumulating). So m, n, threads, tiles
 * and the instruction set may change freely. Storage types are converted to `real` when packed;
 * a C of narrower type is rounded once, at the end. With `bf16` a chain is that of pairs.h, and blocks
 * are added with the same flush to zero. Low-rank products need more: a scale, dropout
 * on the way in or out, C turned so that the rank is always the short side m. */
#ifndef TM_DEVICE_CPU_GEMM_H
#define TM_DEVICE_CPU_GEMM_H

#include "device/cpu/cpu.h"
#include "device/cpu/dropout.h"

enum { TM_GEMM_KC = 384 }; /* a block of k, unless blocks are given */

/* One factor: element (i, k) with i the row of A or the column of B. */
typedef struct tm_gemm_factor {
    const void *data;
    tm_dtype dtype;
    int64_t ld;
    bool k_inner; /* data[i * ld + k]; otherwise data[k * ld + i] */
} tm_gemm_factor;

/* Dropout of a matrix of tokens x channels: the rows' places, and what tm_dropout_begin gave. */
typedef struct tm_gemm_dropout {
    const int32_t *position;
    const uint32_t *example;
    tm_dropout_row row;
} tm_gemm_dropout;

typedef struct tm_gemm {
    int64_t m, n, k;
    tm_gemm_factor a, b;
    bool bf16; /* factors are rounded to bf16 and multiplied in pairs (pairs.h); not with scale or dropout */
    bool scaled;   /* A's elements are multiplied by scale when they are packed */
    double scale; /* the same layout in every build */
    /* On B's elements (tokens are its ld rows); on the sums before they are added to C or stored. */
    const tm_gemm_dropout *drop_b, *drop_c;
    /* [blocks + 1] ascending bounds of k (they may start anywhere; k is their span), each block at most
     * TM_GEMM_KC; NULL: every TM_GEMM_KC. */
    const int32_t *block;
    int64_t blocks;
    void *c; /* [m, n] */
    tm_dtype c_dtype;
    int64_t ldc;
    bool c_turned; /* element (i, j) at c[j * ldc + i] */
    bool accumulate;
    tm_tensor bias; /* [1, n]|0, added after the last block */
} tm_gemm;

static inline tm_gemm_factor tm_gemm_rows_of(tm_tensor t) { return (tm_gemm_factor){t.data, t.dtype, t.ld, true}; }
static inline tm_gemm_factor tm_gemm_cols_of(tm_tensor t) { return (tm_gemm_factor){t.data, t.dtype, t.ld, false}; }

/* Whether this processor's vdpbf16ps does what pairs.h says (src/device/cpu/bf16_dot.c); AVX-512 only. */
bool tm_avx512_bf16_dot_holds(void);

#ifdef TM_KERNEL_ISA
/* Uses the shared memory of the device: one product at a time, not from inside a task. */
void TM_KERNEL(gemm)(tm_cpu *cpu, const tm_gemm *g);
#endif

#endif
