/* Penalties that hold a model near what it was, and what measures importances. docs/math/keep.md.
 *
 * Invariants: a strength of 0 touches nothing, not even the sign of a zero. A penalty is summed in double: blocks (or
 * rows) whose sizes are constants, then groups of GROUP of them, then the groups, each in order; so its bits depend on
 * shapes alone. Memory for partial sums is the device's shared memory; where it is short an op works in rounds, which
 * never show in the bits. */
#include "device/cpu/math.h"
#include "device/cpu/pack.h"
#include "device/cpu/row.h"
#include "device/cpu/wide.h"

enum { BLOCK = 4096, GROUP = 64 };

static inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }

/* total, and n partial sums by groups. A round that is not the last has whole groups. */
static double add_groups(double total, const double *partial, int64_t n)
{
    for (int64_t i = 0; i < n;) {
        double sum = 0;
        for (int64_t end = min64(i + GROUP, n); i < end; i++)
            sum += partial[i];
        total += sum;
    }
    return total;
}

/* --- anchor --- */

typedef struct anchor_job {
    tm_tensor value, anchor, importance, grad;
    v16 strength;
    int64_t first, n; /* elements */
    double *partial;
} anchor_job;

static void anchor_block(void *context, int64_t task, int thread)
{
    const anchor_job local = *(const anchor_job *)context, *j = &local;
    (void)thread;
    v16d sum = v16d_zero();
    int64_t begin = j->first + task * BLOCK, end = min64(begin + BLOCK, j->n);
    for (int64_t i = begin; i < end; i += V16) {
        int lanes = lanes_at(end, i);
        v16 away = lanes_load(j->value, 0, i, lanes);
        if (j->anchor.data)
            away = v16_sub(away, lanes_load(j->anchor, 0, i, lanes));
        v16 pull = j->importance.data ? v16_mul(lanes_load(j->importance, 0, i, lanes), away) : away;
        lanes_store(j->grad, 0, i, lanes, v16_fma(j->strength, pull, lanes_load(j->grad, 0, i, lanes)));
        sum = v16d_add_product(sum, pull, away);
    }
    j->partial[task] = v16d_reduce(sum);
}

void TM_KERNEL(anchor)(tm_device *d, tm_tensor value, tm_tensor anchor, tm_tensor importance, double strength,
                       tm_tensor grad, double *penalty)
{
    enum { ROUND = TM_CPU_SHARED_BYTES / 8 / GROUP * GROUP };
    tm_cpu *cpu = tm_cpu_of(d);
    if (strength == 0)
        return;
    anchor_job j = {value, anchor, importance, grad, v16_set1((real)strength), 0, value.rows * value.cols, (double *)cpu->shared};
    double total = 0;
    for (; j.first < j.n; j.first += (int64_t)ROUND * BLOCK) {
        int64_t blocks = min64(ROUND, task_count(j.n - j.first, BLOCK));
        tm_pool_run(cpu->pool, anchor_block, &j, blocks);
        total = add_groups(total, j.partial, blocks);
    }
    *penalty += strength / 2 * total;
}

/* --- delta_anchor: tiles of dW that live in a thread's scratch --- */

enum { TILE_ROWS = GROUP, TILE_COLS = 256, RANKS = 64, MOST_RANKS = 2048, MOST_STRIPS = 64 };

typedef struct delta_job {
    const tm_cpu *cpu;
    const tm_lowrank *lr, *start; /* start: NULL, the delta is compared with 0 */
    tm_tensor importance, da, db;
    v16 factor;                   /* strength * scale */
    int64_t rank0, ranks;         /* of da and db, this time */
    int64_t row0, strips;         /* strips of TILE_ROWS rows, this time */
    int64_t col0, cols, width;    /* columns, this time; width: a multiple of TILE_COLS */
    real *partial;                /* [strips][ranks, width] of da */
    double *row_sum;              /* [strips * TILE_ROWS] */
} delta_job;

typedef struct tile {
    real b[TILE_ROWS * RANKS], a[RANKS * TILE_COLS];
    real delta[TILE_ROWS * TILE_COLS], before[TILE_ROWS * TILE_COLS];
    real turned[TILE_COLS * V16 + PACK_SLACK], sums[TILE_ROWS * V16];
} tile;
_Static_assert(sizeof(tile) <= TM_CPU_SCRATCH_BYTES, "a tile fits a thread's scratch");
_Static_assert(((int64_t)MOST_RANKS * TILE_COLS * sizeof(real)) + MOST_STRIPS * TILE_ROWS * 8 <= TM_CPU_SHARED_BYTES, "one strip fits");

/* c[m,n] = a[m,k] b[k,n]: a chain over ascending k, from zero or (go_on) from what c holds. n is filled up to whole
 * vectors; element (i, k) of a is at a[i * a_row + k * a_k]. */
typedef struct product {
    int64_t m, n, k;
    const real *a;
    int64_t a_row, a_k;
    const real *b;
    int64_t ldb;
    real *c;
    int64_t ldc;
    bool go_on;
} product;

#if defined(TM_SIMD_AVX512)
enum { MR = 8, NV = 2 };
#else
enum { MR = 4, NV = 1 };
#endif

V16_FN void micro(const product *p, int64_t i0, int64_t n0, int rows, int vectors)
{
    v16 sum[2 * MR][NV];
    const real *a = p->a + i0 * p->a_row, *b = p->b + n0;
    real *c = p->c + i0 * p->ldc + n0;
    int64_t a_row = p->a_row, a_k = p->a_k, ldb = p->ldb, ldc = p->ldc;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            sum[i][v] = p->go_on ? v16_get(c + i * ldc + v * V16) : v16_zero();
    for (int64_t k = p->k; k; k--, a += a_k, b += ldb) {
        v16 column[NV];
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            column[v] = v16_get(b + v * V16);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            v16 row = v16_set1(a[i * a_row]);
#pragma GCC unroll 2
            for (int v = 0; v < vectors; v++)
                sum[i][v] = v16_fma(row, column[v], sum[i][v]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++)
            v16_put(c + i * ldc + v * V16, sum[i][v]);
}

/* Rows i .. i + rows of a and `vectors` vectors of b's columns from n on; rows at most MR, or 2 MR for one vector. */
#define MICRO_FN(name, vectors, LAST)                                               \
    static __attribute__((noinline)) void name(const product *p, int64_t i, int64_t n, int64_t rows) \
    {                                                                               \
        switch (rows) {                                                             \
        case 1: micro(p, i, n, 1, vectors); break;                                  \
        case 2: micro(p, i, n, 2, vectors); break;                                  \
        case 3: micro(p, i, n, 3, vectors); break;                                  \
            MORE_ROWS(vectors)                                                      \
        default: micro(p, i, n, LAST, vectors); break;                              \
        }                                                                           \
    }
#if defined(TM_SIMD_AVX512)
#define MORE_ROWS(vectors)                         \
    case 4: micro(p, i, n, 4, vectors); break;     \
    case 5: micro(p, i, n, 5, vectors); break;     \
    case 6: micro(p, i, n, 6, vectors); break;     \
    case 7: micro(p, i, n, 7, vectors); break;
#else
#define MORE_ROWS(vectors)
#endif
MICRO_FN(micro_wide, NV, MR)
#if defined(TM_SIMD_AVX512)
static __attribute__((noinline)) void micro_tall(const product *p, int64_t i, int64_t n) { micro(p, i, n, 2 * MR, 1); }
MICRO_FN(micro_narrow, 1, MR)
#endif

static void multiply(const product *p)
{
    int64_t n = 0;
    for (; n + NV * V16 <= p->n; n += NV * V16)
        for (int64_t i = 0; i < p->m; i += MR)
            micro_wide(p, i, n, min64(MR, p->m - i));
#if defined(TM_SIMD_AVX512)
    for (; n < p->n; n += V16) {
        int64_t i = 0;
        for (; i + 2 * MR <= p->m; i += 2 * MR)
            micro_tall(p, i, n);
        for (; i < p->m; i += MR)
            micro_narrow(p, i, n, min64(MR, p->m - i));
    }
#endif
}

/* A part of t as rows of `real`, filled up to whole vectors with zeros. */
static void copy_part(tm_tensor t, int64_t row, int64_t rows, int64_t col, int64_t cols, real *dst, int64_t ld)
{
    for (int64_t r = 0; r < rows; r++, dst += ld)
        for (int64_t i = 0; i < cols; i += V16)
            v16_put(dst + i, lanes_load(t, row + r, col + i, lanes_at(cols, i)));
}

static int64_t whole_vectors(int64_t n) { return (n + V16 - 1) / V16 * V16; }

/* d[rows, cols] = B A of a part of dW. */
static void delta_part(tile *t, const tm_lowrank *lr, int64_t row, int64_t rows, int64_t col, int64_t cols, real *d)
{
    for (int64_t j = 0; j < lr->a.rows; j += RANKS) {
        int64_t n = min64(RANKS, lr->a.rows - j);
        copy_part(lr->b, row, rows, j, n, t->b, RANKS);
        copy_part(lr->a, j, n, col, cols, t->a, TILE_COLS);
        multiply(&(product){rows, whole_vectors(cols), n, t->b, RANKS, 1, t->a, TILE_COLS, d, TILE_COLS, j > 0});
    }
}

/* One row of a tile: delta = strength scale F (scale B A - start); the row's sum of F D^2. */
static double weigh_row(const delta_job *j, int64_t row, int64_t col, int64_t cols, real *delta, const real *before)
{
    v16d sum = v16d_zero();
    v16 scale = v16_set1((real)j->lr->scale), start = j->start ? v16_set1((real)j->start->scale) : v16_zero();
    for (int64_t i = 0; i < cols; i += V16) {
        v16 away = v16_mul(scale, v16_get(delta + i));
        if (j->start)
            away = v16_sub(away, v16_mul(start, v16_get(before + i)));
        v16 pull = j->importance.data ? v16_mul(lanes_load(j->importance, row, col + i, lanes_at(cols, i)), away) : away;
        v16_put(delta + i, v16_mul(j->factor, pull));
        sum = v16d_add_product(sum, pull, away);
    }
    return v16d_reduce(sum);
}

/* db += M A^T and da's partial B^T M of one tile, M in t->delta. */
static void tile_gradients(const delta_job *j, tile *t, int64_t row, int64_t rows, int64_t col, int64_t cols, real *partial)
{
    tm_gemm_factor a = tm_gemm_rows_of(j->lr->a);
    int64_t end = j->rank0 + j->ranks;
    for (int64_t k = j->rank0; k < end; k += V16) {
        int n = lanes_at(end, k);
        pack_turned(t->turned, V16, &a, a.dtype, k, n, col, col + cols);
        multiply(&(product){rows, V16, cols, t->delta, TILE_COLS, 1, t->turned, V16, t->sums, V16, false});
        for (int64_t i = 0; i < rows; i++)
            lanes_store(j->db, row + i, k, n, v16_add(lanes_load(j->db, row + i, k, n), v16_get(t->sums + i * V16)));
    }
    for (int64_t k = j->rank0; k < end; k += RANKS) {
        int64_t n = min64(RANKS, end - k);
        copy_part(j->lr->b, row, rows, k, n, t->b, RANKS);
        multiply(&(product){n, whole_vectors(cols), rows, t->b, 1, RANKS, t->delta, TILE_COLS,
                            partial + (k - j->rank0) * j->width + col - j->col0, j->width, false});
    }
}

/* A strip of TILE_ROWS rows, tile by tile. */
static void delta_strip(void *context, int64_t task, int thread)
{
    const delta_job local = *(const delta_job *)context, *j = &local;
    tile *t = tm_cpu_scratch(j->cpu, thread);
    int64_t row = j->row0 + task * TILE_ROWS, rows = min64(TILE_ROWS, j->lr->b.rows - row);
    real *partial = j->partial + task * j->ranks * j->width;
    for (int64_t col = j->col0; col < j->col0 + j->cols; col += TILE_COLS) {
        int64_t cols = min64(TILE_COLS, j->col0 + j->cols - col);
        delta_part(t, j->lr, row, rows, col, cols, t->delta);
        if (j->start)
            delta_part(t, j->start, row, rows, col, cols, t->before);
        for (int64_t i = 0; i < rows; i++) {
            double *sum = &j->row_sum[task * TILE_ROWS + i];
            double before = col ? *sum : 0;
            *sum = before + weigh_row(j, row + i, col, cols, t->delta + i * TILE_COLS, t->before + i * TILE_COLS);
        }
        tile_gradients(j, t, row, rows, col, cols, partial);
    }
}

/* da += the strips' partial sums in order, for one rank and one tile of columns. */
static void join_strips(void *context, int64_t task, int thread)
{
    const delta_job local = *(const delta_job *)context, *j = &local;
    (void)thread;
    int64_t rank = task % j->ranks, first = task / j->ranks * TILE_COLS, end = min64(first + TILE_COLS, j->cols);
    for (int64_t i = first; i < end; i += V16) {
        int lanes = lanes_at(end, i);
        v16 sum = lanes_load(j->da, j->rank0 + rank, j->col0 + i, lanes);
        for (int64_t s = 0; s < j->strips; s++)
            sum = v16_add(sum, v16_get(j->partial + (s * j->ranks + rank) * j->width + i));
        lanes_store(j->da, j->rank0 + rank, j->col0 + i, lanes, sum);
    }
}

/* The gradients of the job's ranks; returns sum F D^2. Rounds: as many strips as keep the threads busy, as many columns
 * as there is room for then. */
static double delta_ranks(tm_cpu *cpu, delta_job *j)
{
    enum { ROOM = (TM_CPU_SHARED_BYTES - MOST_STRIPS * TILE_ROWS * 8) / (int)sizeof(real) };
    int64_t out = j->lr->b.rows, in = j->lr->a.cols, column = j->ranks * TILE_COLS; /* a tile's part of da */
    int64_t most = min64(min64(MOST_STRIPS, ROOM / column), task_count(out, TILE_ROWS));
    int64_t room = ROOM / (column * most) * TILE_COLS;
    double total = 0;
    j->row_sum = (double *)cpu->shared;
    j->partial = (real *)(j->row_sum + MOST_STRIPS * TILE_ROWS);
    for (j->row0 = 0; j->row0 < out; j->row0 += most * TILE_ROWS) {
        j->strips = min64(most, task_count(out - j->row0, TILE_ROWS));
        for (j->col0 = 0; j->col0 < in; j->col0 += room) {
            j->cols = min64(room, in - j->col0);
            int64_t tiles = task_count(j->cols, TILE_COLS);
            j->width = tiles * TILE_COLS;
            tm_pool_run(cpu->pool, delta_strip, j, j->strips);
            tm_pool_run(cpu->pool, join_strips, j, j->ranks * tiles);
        }
        total = add_groups(total, j->row_sum, min64(most * TILE_ROWS, out - j->row0));
    }
    return total;
}

void TM_KERNEL(delta_anchor)(tm_device *d, const tm_lowrank *lr, const tm_lowrank *start, tm_tensor importance,
                             double strength, tm_tensor da, tm_tensor db, double *penalty)
{
    if (strength == 0)
        return;
    tm_cpu *cpu = tm_cpu_of(d);
    delta_job j = {.cpu = cpu, .lr = lr, .start = start, .importance = importance, .da = da, .db = db,
                   .factor = v16_set1((real)(strength * (double)lr->scale))};
    for (; j.rank0 < lr->a.rows; j.rank0 += MOST_RANKS) {
        j.ranks = min64(MOST_RANKS, lr->a.rows - j.rank0);
        double total = delta_ranks(cpu, &j);
        if (j.rank0 == 0)
            *penalty += strength / 2 * total;
    }
}

/* --- overlap --- */

enum { OVERLAP_ROWS = 1024, OVERLAP_RANKS = 512 };
_Static_assert(OVERLAP_ROWS % GROUP == 0 && OVERLAP_ROWS * (8 + OVERLAP_RANKS * sizeof(real)) <= TM_CPU_SHARED_BYTES, "a round fits");

typedef struct overlap_job {
    tm_tensor old, a, da;
    v16 strength;
    int64_t row0, rows, rank0, ranks; /* this round's */
    real *sign;      /* [rows, OVERLAP_RANKS] of G */
    double *row_sum; /* [rows] */
} overlap_job;

static void overlap_row(void *context, int64_t task, int thread)
{
    const overlap_job local = *(const overlap_job *)context, *j = &local;
    (void)thread;
    double sum = j->rank0 ? j->row_sum[task] : 0;
    for (int64_t k = 0; k < j->ranks; k++) {
        real g;
#define DOT(i, lanes, acc) \
    acc = v16_fma(lanes_load(j->old, j->row0 + task, i, lanes), lanes_load(j->a, j->rank0 + k, i, lanes), acc)
        ROW_SUM(j->a.cols, DOT, g);
#undef DOT
        sum += fabs((double)g);
        j->sign[task * OVERLAP_RANKS + k] = (real)((g > 0) - (g < 0));
    }
    j->row_sum[task] = sum;
}

/* STRIP columns of one row of da: a chain through every GROUP rows of old_a, added in order. */
static void overlap_gradient(void *context, int64_t task, int thread)
{
    const overlap_job local = *(const overlap_job *)context, *j = &local;
    (void)thread;
    int64_t k = task % j->ranks, first = task / j->ranks * STRIP, end = min64(first + STRIP, j->a.cols);
    for (int64_t i = first; i < end; i += V16) {
        int lanes = lanes_at(end, i);
        v16 grad = lanes_load(j->da, j->rank0 + k, i, lanes);
        for (int64_t p = 0; p < j->rows;) {
            v16 sum = v16_zero();
            for (int64_t last = min64(p + GROUP, j->rows); p < last; p++)
                sum = v16_fma(v16_set1(j->sign[p * OVERLAP_RANKS + k]), lanes_load(j->old, j->row0 + p, i, lanes), sum);
            grad = v16_fma(j->strength, sum, grad);
        }
        lanes_store(j->da, j->rank0 + k, i, lanes, grad);
    }
}

void TM_KERNEL(overlap)(tm_device *d, tm_tensor old_a, tm_tensor a, double strength, tm_tensor da, double *penalty)
{
    if (strength == 0)
        return;
    tm_cpu *cpu = tm_cpu_of(d);
    overlap_job j = {.old = old_a, .a = a, .da = da, .strength = v16_set1((real)strength), .row_sum = (double *)cpu->shared};
    j.sign = (real *)(j.row_sum + OVERLAP_ROWS);
    double total = 0;
    for (; j.row0 < old_a.rows; j.row0 += OVERLAP_ROWS) {
        j.rows = min64(OVERLAP_ROWS, old_a.rows - j.row0);
        for (j.rank0 = 0; j.rank0 < a.rows; j.rank0 += OVERLAP_RANKS) {
            j.ranks = min64(OVERLAP_RANKS, a.rows - j.rank0);
            tm_pool_run(cpu->pool, overlap_row, &j, j.rows);
            tm_pool_run(cpu->pool, overlap_gradient, &j, j.ranks * task_count(a.cols, STRIP));
        }
        total = add_groups(total, j.row_sum, j.rows);
    }
    *penalty += strength * total;
}

/* --- square_add, path_add: elementwise --- */

typedef struct element_job {
    tm_tensor x, before, value, y; /* x: the gradient of path_add */
    v16 scale;
} element_job;

static void square_rows(void *context, int64_t task, int thread)
{
    const element_job local = *(const element_job *)context, *j = &local;
    (void)thread;
    int64_t size = task_rows(j->y.cols);
    for (int64_t t = task * size; t < task_end(task, size, j->y.rows); t++)
        for (int64_t i = 0; i < j->y.cols; i += V16) {
            int lanes = lanes_at(j->y.cols, i);
            v16 x = lanes_load(j->x, t, i, lanes);
            lanes_store(j->y, t, i, lanes, v16_fma(j->scale, v16_mul(x, x), lanes_load(j->y, t, i, lanes)));
        }
}

void TM_KERNEL(square_add)(tm_device *d, double scale, tm_tensor x, tm_tensor y)
{
    element_job j = {.x = x, .y = y, .scale = v16_set1((real)scale)};
    tm_pool_run(tm_cpu_of(d)->pool, square_rows, &j, task_count(y.rows, task_rows(y.cols)));
}

static void path_rows(void *context, int64_t task, int thread)
{
    const element_job local = *(const element_job *)context, *j = &local;
    (void)thread;
    int64_t size = task_rows(j->y.cols);
    for (int64_t t = task * size; t < task_end(task, size, j->y.rows); t++)
        for (int64_t i = 0; i < j->y.cols; i += V16) {
            int lanes = lanes_at(j->y.cols, i);
            v16 moved = v16_sub(lanes_load(j->value, t, i, lanes), lanes_load(j->before, t, i, lanes));
            lanes_store(j->y, t, i, lanes, v16_fnma(lanes_load(j->x, t, i, lanes), moved, lanes_load(j->y, t, i, lanes)));
        }
}

void TM_KERNEL(path_add)(tm_device *d, tm_tensor grad, tm_tensor before, tm_tensor value, tm_tensor y)
{
    element_job j = {.x = grad, .before = before, .value = value, .y = y};
    tm_pool_run(tm_cpu_of(d)->pool, path_rows, &j, task_count(y.rows, task_rows(y.cols)));
}

/* --- sample_targets --- */

enum { DRAW_BLOCK = 256 };

typedef struct draw_job {
    const tm_cpu *cpu;
    tm_tensor logits;
    real softcap; /* 0: none */
    uint64_t key;
    const uint32_t *place;
    int32_t *target;
} draw_job;

LANES_FN v16 seen_logits(const draw_job *j, int64_t row, int64_t i, int lanes)
{
    v16 z = lanes_load(j->logits, row, i, lanes), cap = v16_set1(j->softcap);
    return j->softcap > 0 ? v16_mul(cap, v16_tanh(v16_div(z, cap))) : z;
}

/* exp(z - max) of the lanes in use, 0 in the others. */
LANES_FN v16 shares(const draw_job *j, int64_t row, int64_t i, int lanes, v16 max)
{
    return v16_select(v16_first(lanes), v16_exp(v16_sub(seen_logits(j, row, i, lanes), max)), v16_zero());
}

/* The first id of block b at which the shares, added to `below` one by one, exceed u; the last of any share if none
 * does; -1 if there is none of any. */
static int32_t find_in_block(const draw_job *j, int64_t row, int64_t b, v16 max, double below, double u)
{
    int32_t last = -1;
    for (int64_t i = b * DRAW_BLOCK, end = min64(i + DRAW_BLOCK, j->logits.cols); i < end; i += V16) {
        real share[V16];
        int lanes = lanes_at(end, i);
        v16_put(share, shares(j, row, i, lanes, max));
        for (int k = 0; k < lanes; k++) {
            below += (double)share[k];
            if (share[k] > 0)
                last = (int32_t)(i + k);
            if (below > u)
                return last;
        }
    }
    return last;
}

static void draw_row(void *context, int64_t row, int thread)
{
    const draw_job local = *(const draw_job *)context, *j = &local;
    double *sum = tm_cpu_scratch(j->cpu, thread), total = 0, below = 0;
    int64_t V = j->logits.cols, blocks = task_count(V, DRAW_BLOCK), b = 0;
    v16 one = v16_set1(1), max = v16_set1(-INFINITY);
    for (int64_t i = 0; i < V; i += V16) {
        int lanes = lanes_at(V, i);
        max = v16_max(v16_select(v16_first(lanes), seen_logits(j, row, i, lanes), max), max);
    }
    max = v16_set1(v16_reduce_max(max));
    for (; b < blocks; b++) {
        v16d share_sum = v16d_zero();
        for (int64_t i = b * DRAW_BLOCK, end = min64(i + DRAW_BLOCK, V); i < end; i += V16)
            share_sum = v16d_add_product(share_sum, shares(j, row, i, lanes_at(end, i), max), one);
        total += sum[b] = v16d_reduce(share_sum);
    }
    tm_philox random = tm_philox_at(j->key, j->place ? j->place[row] : (uint32_t)row, 0, 0, 0);
    double u = (double)(((uint64_t)random.word[1] << 32 | random.word[0]) >> 11) * 0x1p-53 * total;
    for (b = 0; b < blocks && !(below + sum[b] > u); b++)
        below += sum[b];
    if (b == blocks) { /* rounding, or logits that are no numbers */
        u = INFINITY;
        while (b > 0 && !(sum[--b] > 0))
            ;
    }
    int32_t found = find_in_block(j, row, b, max, below, u);
    j->target[row] = found < 0 ? 0 : found;
}

void TM_KERNEL(sample_targets)(tm_device *d, int64_t n, tm_tensor logits, float softcap, uint64_t key,
                               const uint32_t *place, int32_t *target)
{
    draw_job j = {tm_cpu_of(d), logits, (real)softcap, key, place, target};
    tm_pool_run(tm_cpu_of(d)->pool, draw_row, &j, n);
}
