/* The matrix product: see gemm.h for what fixes its bits.
 *
 * C is cut into super-blocks whose packed factors fit the device's shared memory. For each, the threads pack
 * panels of MR rows of A (AW elements a step of k) and NR columns of B, then claim tiles of C: for every block
 * of k, every panel of A (it stays in the first-level cache) meets the tile's panels of B (they stay in the
 * second-level cache) in a micro-kernel that holds MR x NR sums in registers. With few rows of A (decoding)
 * every tile packs its own columns of B just before their only use. */
#include "device/cpu/gemm.h"

#include "device/cpu/pairs.h"

#if defined(TM_SIMD_AVX512)
enum { MR = 14, NV = 2, AW = 16 }; /* 28 sums, 2 columns of B, 1 broadcast: 31 of 32 registers */
#elif defined(TM_SIMD_AVX2)
enum { MR = 6, NV = 1, AW = 8 }; /* 12 sums, 2 + 1: 15 of 16 registers */
#else
enum { MR = 4, NV = 1, AW = 4 };
#endif

enum {
    NR = NV * V16,
    KC = TM_GEMM_KC,
    TILE_M = 8 * MR,       /* at most: A and B of a tile fit a second-level cache */
    TILE_N = 128,          /* at most; a multiple of NR */
    FEW_ROWS = 4 * MR,     /* at most: columns of B are packed by their tile */
    A_BYTES = 2 << 20, B_BYTES = 1 << 20, C_BYTES = TM_CPU_SHARED_BYTES - A_BYTES - B_BYTES,
    FETCH_C = 32,          /* steps of k before its use */
    PACK_STEPS = 32,       /* of k, a task that packs all panels */
    K_MAX = KC,            /* k of a super-block; with few rows: */
    K_MAX_FEW = A_BYTES / (int)sizeof(real) / (4 * AW) / KC * KC - KC,
};

/* How sums are made. SINGLE: one element of k a step. Of bf16 factors, DOUBLE: two steps of the same panels,
 * the later one first; DOT: the same bits from panels of pairs, half as many steps. */
typedef enum arithmetic { SINGLE, DOUBLE, DOT } arithmetic;

/* A product on its way: the current super-block. */
typedef struct job {
    const tm_gemm *g;
    tm_cpu *cpu;
    arithmetic kind;
    real *a, *b;              /* packed panels */
    int64_t a_stride, b_stride; /* elements of a panel */
    int64_t height;           /* rows of a panel in use: MR, less where that balances few rows */
    int64_t m0, m1, n0, n1, k0, k1, k_max;
    int64_t block, blocks;    /* the first block of k in the super-block, and how many */
    int64_t pack_a;           /* tasks that pack A */
    bool sweep_a, sweep_b;    /* packing tasks are steps of k for all panels, not panels */
    int64_t tile_m, tile_n, tiles_m; /* rows and columns of a tile, tiles above one another */
    real *sums;               /* C, or where its sums are kept until they are rounded: row m0, column n0 */
    int64_t sums_ld;          /* 0: in the thread's scratch, one tile */
    bool direct;              /* the sums are C itself */
    bool few_rows, thin, first, last; /* thin: B is not packed at all */
} job;

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

static inline int64_t block_count(const tm_gemm *g) { return g->block ? g->blocks : ceil_div(g->k, KC); }
static inline int64_t block_start(const tm_gemm *g, int64_t i) { return g->block ? g->block[i] : min64(i * KC, g->k); }

/* Where block i starts in a panel that starts with block `first`, in steps. Blocks of pairs do not share a step. */
static inline int64_t block_step(const job *j, int64_t first, int64_t i)
{
    int64_t k = block_start(j->g, i) - block_start(j->g, first);
    return j->kind == DOT ? (k + i - first) / 2 : k;
}

/* Sixteen sums, n of them in use: c = sum, or c += sum. */
V16_FN void put_sums(real *c, int n, v16 sum, bool add)
{
    if (n >= V16)
        v16_put(c, add ? v16_add(v16_get(c), sum) : sum);
    else if (n > 0)
        v16_put_n(c, n, add ? v16_add(v16_get_n(c, n), sum) : sum);
}

V16_FN void step(int rows, arithmetic kind, const real *restrict a, const real *restrict b, v16 sum[MR][NV])
{
    v16 column[NV];
#pragma GCC unroll 2
    for (int j = 0; j < NV; j++)
        column[j] = v16_get(b + j * V16);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        v16 row = v16_set1(a[i]);
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++)
            sum[i][j] = kind == DOT ? v16_dot(row, column[j], sum[i][j]) : v16_fma(row, column[j], sum[i][j]);
    }
}

/* k steps more of every sum. */
V16_FN void chain(int rows, arithmetic kind, const real *restrict a, const real *restrict b, int64_t k, v16 sum[MR][NV])
{
    if (kind == DOUBLE) {
        for (; k > 1; k -= 2, a += 2 * AW, b += 2 * NR) {
            step(rows, kind, a + AW, b + NR, sum);
            step(rows, kind, a, b, sum);
        }
        if (k == 0)
            return;
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) /* the neighbour that is not there */
#pragma GCC unroll 2
            for (int j = 0; j < NV; j++)
                sum[i][j] = v16_add(sum[i][j], v16_zero());
    }
    for (int64_t p = 0; p < k; p++, a += AW, b += NR)
        step(rows, kind, a, b, sum);
}

/* One block of k for `rows` rows and `cols` columns: c = sum, or c += sum. C is fetched shortly before its use:
 * the panels going by would push it out of the first-level cache again. */
V16_FN void micro(int rows, arithmetic kind, const real *restrict a, const real *restrict b, int64_t k,
                  real *restrict c, int64_t ldc, int cols, bool add)
{
    v16 sum[MR][NV];
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++)
            sum[i][j] = v16_zero();
    int64_t early = k > FETCH_C ? (k - FETCH_C) & ~1 : 0;
    chain(rows, kind, a, b, early, sum);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++)
            __builtin_prefetch(c + i * ldc + j * V16, 1);
    chain(rows, kind, a + early * AW, b + early * NR, k - early, sum);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++, c += ldc)
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++)
            put_sums(c + j * V16, cols - j * V16, sum[i][j], add);
}

V16_FN void micro_rows(int rows, arithmetic kind, const real *a, const real *b, int64_t k, real *c, int64_t ldc,
                       int cols, bool add)
{
    switch (rows) {
#define ROWS(n) case n: micro(n, kind, a, b, k, c, ldc, cols, add); break;
    ROWS(1) ROWS(2) ROWS(3)
#if defined(TM_SIMD_AVX512) || defined(TM_SIMD_AVX2)
    ROWS(4) ROWS(5)
#endif
#ifdef TM_SIMD_AVX512
    ROWS(6) ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12) ROWS(13)
#endif
#undef ROWS
    default: micro(MR, kind, a, b, k, c, ldc, cols, add); break;
    }
}

/* Never inlined: flush_begin's callers depend on it. */
typedef void micro_fn(int rows, const real *a, const real *b, int64_t k, real *c, int64_t ldc, int cols, bool add);
#define MICRO_FN(name, kind)                                                                              \
    static __attribute__((noinline)) void name(int rows, const real *a, const real *b, int64_t k, real *c, \
                                               int64_t ldc, int cols, bool add)                           \
    {                                                                                                     \
        micro_rows(rows, kind, a, b, k, c, ldc, cols, add);                                               \
    }
MICRO_FN(micro_single, SINGLE)
MICRO_FN(micro_double, DOUBLE)
#ifdef TM_SIMD_AVX512
MICRO_FN(micro_dot, DOT)
static micro_fn *const micro_of[] = {micro_single, micro_double, micro_dot};
#else
static micro_fn *const micro_of[] = {micro_single, micro_double};
#endif

/* A part of packing that is a few steps of k for all panels: k in [k0, k1), inside block `i`. */
typedef struct sweep {
    int64_t i, k0, k1;
} sweep;

static int64_t sweeps_of(const job *j, int64_t i)
{
    return ceil_div(block_start(j->g, i + 1) - block_start(j->g, i), PACK_STEPS);
}

static sweep sweep_at(const job *j, int64_t task)
{
    int64_t i = j->block;
    for (; task >= sweeps_of(j, i); i++)
        task -= sweeps_of(j, i);
    int64_t k0 = block_start(j->g, i) + task * PACK_STEPS;
    return (sweep){i, k0, min64(k0 + PACK_STEPS, block_start(j->g, i + 1))};
}

/* Panels of a factor, columns or rows first .. first + count; W is a constant. */
V16_FN void pack_steps(const job *j, const sweep *s, real *dst, int64_t stride, int W, int64_t height,
                       const tm_gemm_factor *f, int64_t first, int64_t count)
{
    int64_t inside = s->k0 - block_start(j->g, s->i);
    dst += (block_step(j, j->block, s->i) + (j->kind == DOT ? inside / 2 : inside)) * W;
    if (j->kind == DOT) {
        pack_pairs_sweep(dst, stride, W, height, f, first, count, s->k0, s->k1);
        return;
    }
    pack_sweep(dst, stride, W, height, f, first, count, s->k0, s->k1);
    if (j->kind == DOUBLE && f->dtype != TM_BF16)
        for (int64_t i = 0; i < count; i += height, dst += stride)
            round_to_bf16(dst, (s->k1 - s->k0) * W);
}

/* One panel of a factor, blocks [from, to). */
V16_FN void pack_blocks(const job *j, real *panel, int W, const tm_gemm_factor *f, int64_t first, int64_t count,
                        int64_t from, int64_t to)
{
    if (j->kind == DOT) {
        for (int64_t i = from; i < to; i++)
            pack_pairs(panel + block_step(j, from, i) * W, W, f, first, count, block_start(j->g, i),
                       block_start(j->g, i + 1));
        return;
    }
    int64_t k0 = block_start(j->g, from), k1 = block_start(j->g, to);
    pack_panel(panel, W, f, first, count, k0, k1);
    if (j->kind == DOUBLE && f->dtype != TM_BF16)
        round_to_bf16(panel, (k1 - k0) * W);
}

static void pack_a(const job *j, int64_t task)
{
    if (j->sweep_a) {
        sweep s = sweep_at(j, task);
        pack_steps(j, &s, j->a, j->a_stride, AW, j->height, &j->g->a, j->m0, j->m1 - j->m0);
        return;
    }
    int64_t first = j->m0 + task * j->height;
    real *panel = j->a + task * j->a_stride;
    pack_blocks(j, panel, AW, &j->g->a, first, min64(j->height, j->m1 - first), j->block, j->block + j->blocks);
    if (j->g->scaled)
        for (int64_t i = 0; i < (j->k1 - j->k0) * AW; i++)
            panel[i] *= (real)j->g->scale;
}

/* Rows [t0, t1) and channels [c0, c1) of B after dropout; out has rows of ld >= c1 - c0, filled up with zeros. */
static void drop_rows(const tm_gemm *g, int64_t t0, int64_t t1, int64_t c0, int64_t c1, real *out, int64_t ld)
{
    tm_dropout_row row = g->drop_b->row;
    for (int64_t t = t0; t < t1; t++, out += ld) {
        row.position = (uint32_t)g->drop_b->position[t];
        row.example = g->drop_b->example[t];
        for (int64_t c = 0; c < ld; c += DROPOUT_UNIT) {
            v16 factor[2];
            dropout_unit(&row, (uint32_t)((c0 + c) / 4), factor);
            for (int half = 0; half < 2 && c + half * V16 < ld; half++) {
                int64_t at = c0 + c + half * V16, left = c1 - at;
                v16 x = left >= V16 ? v16_load(g->b.data, g->b.dtype, t * g->b.ld + at)
                        : left > 0  ? v16_load_n(g->b.data, g->b.dtype, t * g->b.ld + at, (int)left)
                                    : v16_zero();
                v16_put(out + (at - c0), v16_mul(x, factor[half]));
            }
        }
    }
}

/* Columns [n, n + count) of B, at most NR, for blocks [from, to); copy has room for NR * KC elements. */
static void pack_columns(const job *j, real *panel, int64_t n, int64_t count, int64_t from, int64_t to, real *copy)
{
    const tm_gemm *g = j->g;
    if (!g->drop_b) {
        pack_blocks(j, panel, NR, &g->b, n, count, from, to);
        return;
    }
    int64_t k0 = block_start(g, from), k1 = block_start(g, to);
    if (!g->b.k_inner) {
        drop_rows(g, k0, k1, n, n + count, panel, NR);
        return;
    }
    for (int64_t start = k0, end; start < k1; start = end) {
        end = min64(start + KC, k1);
        tm_gemm_factor dropped = {copy, TM_REAL, ceil_div(end - start, V16) * V16, true};
        drop_rows(g, n, n + count, start, end, copy, dropped.ld);
        pack_panel(panel + (start - k0) * NR, NR, &dropped, 0, count, 0, end - start);
    }
}

static void pack_b(const job *j, int64_t task, int thread)
{
    if (j->sweep_b) {
        sweep s = sweep_at(j, task);
        pack_steps(j, &s, j->b, j->b_stride, NR, NR, &j->g->b, j->n0, j->n1 - j->n0);
        return;
    }
    int64_t first = j->n0 + task * NR;
    pack_columns(j, j->b + task * j->b_stride, first, min64(NR, j->n1 - first), j->block, j->block + j->blocks,
                 tm_cpu_scratch(j->cpu, thread));
}

/* Tasks: panels or steps of A, then those of B. */
static void pack(void *context, int64_t task, int thread)
{
    const job *j = context;
    if (task < j->pack_a)
        pack_a(j, task);
    else
        pack_b(j, task - j->pack_a, thread);
}

typedef struct tile {
    int64_t m0, m1, n0, n1; /* of C */
    real *sums;             /* row m0, column n0 */
    int64_t ld;
} tile;

/* Blocks [from, to) of k, together at most KC wide, for one panel of A and one of B (which starts with block
 * b_first): row m, column n of C. */
static void run_panels(const job *j, const tile *t, const real *b, int64_t b_first, int64_t m, int64_t n, int64_t from,
                       int64_t to, bool add)
{
    int rows = (int)min64(j->height, t->m1 - m), cols = (int)min64(NR, t->n1 - n);
    const real *a = j->a + (m - j->m0) / j->height * j->a_stride;
    real *c = t->sums + (m - t->m0) * t->ld + (n - t->n0);
    for (int64_t i = from; i < to; i++, add = true) {
        int64_t width = block_start(j->g, i + 1) - block_start(j->g, i);
        micro_of[j->kind](rows, a + block_step(j, j->block, i) * AW, b + block_step(j, b_first, i) * NR,
                          j->kind == DOT ? ceil_div(width, 2) : width, c, t->ld, cols, add);
    }
}

V16_FN void round_vectors(v16 r[V16])
{
#pragma GCC unroll 16
    for (int i = 0; i < V16; i++) {
        uint16_t half[V16];
        v16_put_bf16(half, r[i]);
        r[i] = v16_get_bf16(half);
    }
}

/* One or two rows of A (decoding) and NR columns of B: B goes from memory through a transpose in registers
 * straight into the sums. */
V16_FN void thin_block(int rows, bool pairs, const real *a, const tm_gemm_factor *f, tm_dtype t, int64_t n, int cols,
                       int64_t k0, int64_t k1, real *c, int64_t ldc, bool add)
{
    v16 sum[2][NV];
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV; j++)
            sum[i][j] = v16_zero();
    for (int64_t k = k0; k < k1; k += V16, a += V16 * AW) {
        int depth = (int)min64(V16, k1 - k);
#pragma GCC unroll 2
        for (int j = 0; j < NV; j++) {
            v16 r[V16];
            turned_block(r, f, t, n + j * V16, cols - j * V16, k, depth);
            if (pairs && t != TM_BF16)
                round_vectors(r);
            if (depth == V16) {
#pragma GCC unroll 16
                for (int p = 0; p < V16; p++)
                    for (int i = 0, q = pairs ? p ^ 1 : p; i < rows; i++)
                        sum[i][j] = v16_fma(v16_set1(a[q * AW + i]), r[q], sum[i][j]);
            } else {
#pragma GCC unroll 16
                for (int p = 0; p < V16; p++)
                    for (int i = 0, q = pairs ? p ^ 1 : p; i < rows; i++)
                        if (q < depth)
                            sum[i][j] = v16_fma(v16_set1(a[q * AW + i]), r[q], sum[i][j]);
                        else if (pairs && p < depth) /* the neighbour that is not there */
                            sum[i][j] = v16_add(sum[i][j], v16_zero());
            }
        }
    }
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < NV && cols > j * V16; j++)
            put_sums(c + i * ldc + j * V16, (int)min64(V16, cols - j * V16), sum[i][j], add);
}

static __attribute__((noinline)) void thin_blocks(const job *j, const tile *t, int64_t n, int64_t from, int64_t to,
                                                  bool add)
{
    const tm_gemm_factor *f = &j->g->b;
    int cols = (int)min64(NR, t->n1 - n);
    bool one = t->m1 - t->m0 == 1, pairs = j->kind == DOUBLE;
    real *c = t->sums + (n - t->n0);
    for (int64_t i = from; i < to; i++, add = true) {
        int64_t k0 = block_start(j->g, i), k1 = block_start(j->g, i + 1);
        const real *a = j->a + (k0 - j->k0) * AW;
        if (pairs && one && f->dtype == TM_BF16)
            thin_block(1, true, a, f, TM_BF16, n, cols, k0, k1, c, t->ld, add);
        else if (pairs)
            thin_block(one ? 1 : 2, true, a, f, f->dtype, n, cols, k0, k1, c, t->ld, add);
        else if (one && f->dtype == TM_REAL)
            thin_block(1, false, a, f, TM_REAL, n, cols, k0, k1, c, t->ld, add);
        else if (one)
            thin_block(1, false, a, f, f->dtype, n, cols, k0, k1, c, t->ld, add);
        else
            thin_block(2, false, a, f, f->dtype, n, cols, k0, k1, c, t->ld, add);
    }
}

/* The same for all panels of a tile. A panel of A stays in the first-level cache while B's pass by;
 * with few rows it is the other way round, and B's are packed here, for their only use. */
static void run_blocks(const job *j, const tile *t, int64_t from, int64_t to, bool add, real *scratch)
{
    if (j->few_rows) {
        for (int64_t n = t->n0; n < t->n1; n += NR) {
            if (j->thin) {
                thin_blocks(j, t, n, from, to, add);
                continue;
            }
            pack_columns(j, scratch, n, min64(NR, t->n1 - n), from, to, scratch + NR * KC);
            for (int64_t m = t->m0; m < t->m1; m += j->height)
                run_panels(j, t, scratch, from, m, n, from, to, add);
        }
        return;
    }
    for (int64_t m = t->m0; m < t->m1; m += MR)
        for (int64_t n = t->n0; n < t->n1; n += NR)
            run_panels(j, t, j->b + (n - j->n0) / NR * j->b_stride, j->block, m, n, from, to, add);
}

/* A turned C: blocks of 16 x 16 of it, through the transpose. */
static void turned_tile(const tm_gemm *g, const tile *t, bool store)
{
    for (int64_t m = t->m0; m < t->m1; m += V16)
        for (int64_t n = t->n0; n < t->n1; n += V16) {
            int height = (int)min64(V16, t->m1 - m), width = (int)min64(V16, t->n1 - n);
            real *sums = t->sums + (m - t->m0) * t->ld + (n - t->n0);
            v16 r[V16];
            for (int i = 0; i < V16; i++)
                r[i] = store ? i < height ? v16_get_n(sums + i * t->ld, width) : v16_zero()
                             : i < width ? v16_load_n(g->c, g->c_dtype, (n + i) * g->ldc + m, height) : v16_zero();
            v16_transpose(r);
            for (int i = 0; i < (store ? width : height); i++)
                if (store)
                    v16_store_n(g->c, g->c_dtype, (n + i) * g->ldc + m, height, r[i]);
                else
                    v16_put_n(sums + i * t->ld, width, r[i]);
        }
}

/* Old values into the sums. */
static void load_tile(const tm_gemm *g, const tile *t)
{
    if (g->c_turned) {
        turned_tile(g, t, false);
        return;
    }
    for (int64_t m = t->m0; m < t->m1; m++)
        for (int64_t n = t->n0; n < t->n1; n += V16) {
            int w = (int)min64(V16, t->n1 - n);
            v16_put_n(t->sums + (m - t->m0) * t->ld + (n - t->n0), w, v16_load_n(g->c, g->c_dtype, m * g->ldc + n, w));
        }
}

/* Sixteen finished sums, of width w, into C. */
V16_FN void store_sums(const tm_gemm *g, int64_t m, int64_t n, int w, v16 sum)
{
    if (w == V16)
        v16_store(g->c, g->c_dtype, m * g->ldc + n, sum);
    else
        v16_store_n(g->c, g->c_dtype, m * g->ldc + n, w, sum);
}

/* Dropout of the sums, which are then added to C. */
static void store_dropped(const tm_gemm *g, const tile *t)
{
    tm_dropout_row row = g->drop_c->row;
    for (int64_t m = t->m0; m < t->m1; m++) {
        const real *sums = t->sums + (m - t->m0) * t->ld - t->n0;
        row.position = (uint32_t)g->drop_c->position[m];
        row.example = g->drop_c->example[m];
        for (int64_t n = t->n0; n < t->n1; n += DROPOUT_UNIT) {
            v16 factor[2];
            dropout_unit(&row, (uint32_t)(n / 4), factor);
            for (int half = 0; half < 2 && n + half * V16 < t->n1; half++) {
                int64_t at = n + half * V16;
                int w = (int)min64(V16, t->n1 - at);
                v16 sum = v16_mul(v16_get_n(sums + at, w), factor[half]);
                if (g->accumulate)
                    sum = v16_add(v16_load_n(g->c, g->c_dtype, m * g->ldc + at, w), sum);
                store_sums(g, m, at, w, sum);
            }
        }
    }
}

/* The finished sums into C. */
static void store_tile(const tm_gemm *g, const tile *t)
{
    for (int64_t m = t->m0; m < t->m1; m++)
        for (int64_t n = t->n0; n < t->n1; n += V16) {
            int w = (int)min64(V16, t->n1 - n);
            v16 sum = v16_get_n(t->sums + (m - t->m0) * t->ld + (n - t->n0), w);
            if (g->bias.data)
                sum = v16_add(sum, v16_load_n(g->bias.data, g->bias.dtype, n, w));
            store_sums(g, m, n, w, sum);
        }
}

static void run_tile(void *context, int64_t task, int thread)
{
    const job *j = context;
    const tm_gemm *g = j->g;
    real *scratch = tm_cpu_scratch(j->cpu, thread);
    tile t;
    t.m0 = j->m0 + task % j->tiles_m * j->tile_m;
    t.m1 = min64(t.m0 + j->tile_m, j->m1);
    t.n0 = j->n0 + task / j->tiles_m * j->tile_n;
    t.n1 = min64(t.n0 + j->tile_n, j->n1);
    t.ld = j->sums_ld ? j->sums_ld : TILE_N;
    t.sums = j->sums_ld ? j->sums + (t.m0 - j->m0) * t.ld + (t.n0 - j->n0) : scratch;
    scratch += TILE_M * TILE_N;
    bool onto_old = g->accumulate && !g->drop_c; /* dropped sums are added when they are stored */
    if (j->first && onto_old && !j->direct)
        load_tile(g, &t);
    bool add = onto_old || !j->first;
    uint64_t flushed = j->kind == SINGLE ? 0 : flush_begin();
    for (int64_t from = j->block, to; from < j->block + j->blocks; from = to, add = true) {
        int64_t start = block_start(g, from);
        for (to = from + 1; to < j->block + j->blocks && block_start(g, to + 1) - start <= KC;)
            to++;
        run_blocks(j, &t, from, to, add, scratch);
    }
    if (j->kind != SINGLE)
        flush_end(flushed);
    if (j->last && g->c_turned)
        turned_tile(g, &t, true);
    else if (j->last && g->drop_c)
        store_dropped(g, &t);
    else if (j->last && (g->bias.data || !j->direct))
        store_tile(g, &t);
}

/* The widest run of blocks from `block` on that a super-block may hold. */
static int64_t blocks_from(const tm_gemm *g, int64_t block, int64_t k_max)
{
    int64_t end = block + 1, all = block_count(g);
    while (end < all && block_start(g, end + 1) - block_start(g, block) <= k_max)
        end++;
    return end - block;
}

/* Cuts n into nearly even parts of at most `most`, each a whole number of units; the size of one. */
static int64_t even_part(int64_t n, int64_t most, int64_t unit)
{
    int64_t units = ceil_div(n, unit), parts = ceil_div(units, most / unit);
    return ceil_div(units, parts) * unit;
}

/* The current super-block: its panels of B, those of A unless they are there already, its tiles. */
static void run_super_block(job *j, bool new_a)
{
    int64_t m = j->m1 - j->m0, n = j->n1 - j->n0;
    j->tile_m = even_part(m, TILE_M, j->height);
    j->tile_n = even_part(n, TILE_N, NR);
    j->tiles_m = ceil_div(m, j->tile_m);
    int64_t sweeps = 0;
    for (int64_t i = j->block; i < j->block + j->blocks; i++)
        sweeps += sweeps_of(j, i);
    j->pack_a = !new_a ? 0 : j->sweep_a ? sweeps : ceil_div(m, j->height);
    int64_t tasks_b = j->few_rows ? 0 : j->sweep_b ? sweeps : ceil_div(n, NR);
    tm_pool_run(j->cpu->pool, pack, j, j->pack_a + tasks_b);
    tm_pool_run(j->cpu->pool, run_tile, j, j->tiles_m * ceil_div(n, j->tile_n));
}

/* All k for rows [m0, m1) and columns [n0, n1) of C, n_max columns at a time. */
static void run_strip(job *j, int64_t n0, int64_t n1, int64_t n_max)
{
    const tm_gemm *g = j->g;
    int64_t all = block_count(g);
    bool one_tile = !j->direct && all <= blocks_from(g, 0, j->k_max);
    for (j->block = 0; j->block < all; j->block += j->blocks) {
        j->blocks = blocks_from(g, j->block, j->k_max);
        j->k0 = block_start(g, j->block);
        j->k1 = block_start(g, j->block + j->blocks);
        j->first = j->block == 0;
        j->last = j->block + j->blocks == all;
        for (j->n0 = n0; j->n0 < n1; j->n0 = j->n1) {
            j->n1 = min64(j->n0 + n_max, n1);
            if (j->direct)
                j->sums = (real *)g->c + j->m0 * g->ldc + j->n0;
            else
                j->sums = (real *)(j->cpu->shared + A_BYTES + B_BYTES) + (j->n0 - n0);
            j->sums_ld = j->direct ? g->ldc : one_tile ? 0 : n1 - n0;
            run_super_block(j, j->n0 == n0);
        }
    }
}

void TM_KERNEL(gemm)(tm_cpu *cpu, const tm_gemm *g)
{
    if (g->m <= 0 || g->n <= 0 || g->k <= 0)
        return;
    job j = {.g = g, .cpu = cpu, .a = (real *)cpu->shared, .b = (real *)(cpu->shared + A_BYTES)};
    j.few_rows = g->m <= FEW_ROWS;
    j.thin = g->m <= 2 && g->b.k_inner && !g->drop_b;
    j.kind = !g->bf16 ? SINGLE : cpu->bf16_dot && !j.thin ? DOT : DOUBLE;
    j.k_max = j.few_rows ? K_MAX_FEW : K_MAX;
    j.height = j.few_rows ? ceil_div(g->m, ceil_div(g->m, MR)) : MR;
    j.direct = g->c_dtype == TM_REAL && !g->c_turned && !g->drop_c;
    int64_t width = min64(g->k, j.k_max);
    j.a_stride = ceil_div(AW * width + PACK_SLACK, V16) * V16;
    j.b_stride = NR * width + NR; /* panels side by side do not share their places in a cache */
    j.sweep_a = !g->a.k_inner && !g->scaled;
    j.sweep_b = !g->b.k_inner && !g->drop_b;
    int64_t m_max = j.few_rows ? FEW_ROWS : A_BYTES / (int64_t)sizeof(real) / j.a_stride * MR;
    int64_t n_max = j.few_rows ? ceil_div(g->n, NR) * NR : B_BYTES / (int64_t)sizeof(real) / j.b_stride * NR;
    m_max = even_part(g->m, m_max, MR);
    int64_t strip = ceil_div(g->n, NR) * NR;
    if (!j.direct && g->k > j.k_max) /* sums wait in shared memory for the next super-block of k */
        strip = even_part(g->n, C_BYTES / (int64_t)sizeof(real) / m_max / NR * NR, NR);
    for (j.m0 = 0; j.m0 < g->m; j.m0 = j.m1) {
        j.m1 = min64(j.m0 + m_max, g->m);
        for (int64_t n = 0; n < g->n; n += strip)
            run_strip(&j, n, min64(n + strip, g->n), even_part(min64(strip, g->n - n), n_max, NR));
    }
}
