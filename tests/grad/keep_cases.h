/* Penalties and importances (keep.c) as cases of the harness: forward gives the penalty, backward the gradients; an op does
 * both at once, so what a run does not look at goes to spare fields. */
#ifndef TM_TESTS_GRAD_KEEP_CASES_H
#define TM_TESTS_GRAD_KEEP_CASES_H

#include "opcase.h"

#define KEEP_RUN(op, ...) TM_RUN(v->device, op, __VA_ARGS__)

/* The first fields of every penalty. The spare one takes what backward makes again. */
enum { PENALTY, DPENALTY, PENALTY_SPARE, KEEP_FIELDS };

static inline void keep_case_start(opcase *c)
{
    layout_init(&c->layout, 1, (int32_t[]){1}, 1); /* no tokens here */
    c->splits = false;
    case_field(c, "penalty", DOUBLE, ADDED, 1, 1);
    case_field(c, "dpenalty", DOUBLE, IN, 1, 1);
    case_field(c, "spare penalty", DOUBLE, ADDED, 1, 1);
    c->f[PENALTY].value[0] = 0.25;
    c->f[DPENALTY].value[0] = 1;
    case_out(c, PENALTY, DPENALTY);
}

static inline tm_tensor keep_present(tm_tensor t, bool is) { return is ? t : tm_tensor_none(); }

/* --- anchor; n: with an anchor, accumulate: with importances, cap: the strength --- */

enum { AN_VALUE = KEEP_FIELDS, AN_ANCHOR, AN_F, AN_GRAD, AN_SPARE };

static inline void anchor_any(const opcase *c, const run_view *v, int grad, int penalty)
{
    KEEP_RUN(anchor, v->t[AN_VALUE], keep_present(v->t[AN_ANCHOR], c->n), keep_present(v->t[AN_F], c->accumulate), (double)c->cap, v->t[grad], v->t[penalty].data);
}
static inline void anchor_forward(const opcase *c, const run_view *v) { anchor_any(c, v, AN_SPARE, PENALTY); }
static inline void anchor_backward(const opcase *c, const run_view *v) { anchor_any(c, v, AN_GRAD, PENALTY_SPARE); }

static inline void anchor_reference(const opcase *c, double *const *x)
{
    double sum = 0;
    for (int64_t i = 0; i < c->f[AN_VALUE].rows * c->f[AN_VALUE].cols; i++) {
        double away = x[AN_VALUE][i] - (c->n ? x[AN_ANCHOR][i] : 0);
        sum += (c->accumulate ? x[AN_F][i] : 1) * away * away;
    }
    *x[PENALTY] += (double)c->cap / 2 * sum;
}

static inline void anchor_sized(opcase *c, int variant, int64_t rows, int64_t cols)
{
    keep_case_start(c);
    c->n = variant & 1;
    c->accumulate = variant >> 1 & 1;
    c->cap = rows * cols > 10000 ? 0.001f : 0.75f;
    case_field(c, "value", ACT, IN, rows, cols);
    case_field(c, "anchor", ACT, IN, rows, cols);
    case_field(c, "importance", REAL, IN, rows, cols);
    case_field(c, "grad", REAL, ADDED, rows, cols);
    case_field(c, "spare grad", REAL, ADDED, rows, cols);
    for (int i = AN_VALUE; i <= AN_SPARE; i++)
        c->f[i].tight = true;
    for (int64_t i = 0; i < rows * cols; i++)
        c->f[AN_F].value[i] = fabs(c->f[AN_F].value[i]);
    case_in(c, AN_VALUE, AN_GRAD);
    c->forward = anchor_forward, c->backward = anchor_backward, c->reference = anchor_reference;
}
static inline void anchor_case(opcase *c, int variant)
{
    int64_t cols = rng_in(&c->random, 1, 300);
    anchor_sized(c, variant, rng_in(&c->random, 1, 40), cols);
}

/* --- delta_anchor; n: the start's rank, 0: none; accumulate: with importances; cap: the strength --- */

enum { DE_A = KEEP_FIELDS, DE_B, DE_A0, DE_B0, DE_F, DE_DA, DE_DB, DE_SPARE_DA, DE_SPARE_DB };

static inline void delta_any(const opcase *c, const run_view *v, int da, int db, int penalty)
{
    tm_lowrank lr = {.a = v->t[DE_A], .b = v->t[DE_B], .scale = c->scale}, start = {.a = v->t[DE_A0], .b = v->t[DE_B0], .scale = c->offset};
    KEEP_RUN(delta_anchor, &lr, c->n ? &start : NULL, keep_present(v->t[DE_F], c->accumulate), (double)c->cap, v->t[da], v->t[db], v->t[penalty].data);
}
static inline void delta_forward(const opcase *c, const run_view *v) { delta_any(c, v, DE_SPARE_DA, DE_SPARE_DB, PENALTY); }
static inline void delta_backward(const opcase *c, const run_view *v) { delta_any(c, v, DE_DA, DE_DB, PENALTY_SPARE); }

static inline void delta_reference(const opcase *c, double *const *x)
{
    int64_t out = c->f[DE_B].rows, in = c->f[DE_A].cols, r = c->f[DE_A].rows;
    double sum = 0;
    for (int64_t o = 0; o < out; o++)
        for (int64_t i = 0; i < in; i++) {
            double away = 0, before = 0;
            for (int64_t k = 0; k < r; k++)
                away += x[DE_B][o * r + k] * x[DE_A][k * in + i];
            for (int64_t k = 0; k < c->n; k++)
                before += x[DE_B0][o * c->n + k] * x[DE_A0][k * in + i];
            away = (double)c->scale * away - (double)c->offset * before;
            sum += (c->accumulate ? x[DE_F][o * in + i] : 1) * away * away;
        }
    *x[PENALTY] += (double)c->cap / 2 * sum;
}

static inline void delta_sized(opcase *c, int64_t out, int64_t in, int64_t r, int64_t start_rank, bool importance)
{
    keep_case_start(c);
    int64_t r0 = start_rank ? start_rank : 1;
    c->n = start_rank;
    c->accumulate = importance;
    c->scale = 2, c->offset = 1.5f;
    c->cap = (float)(1 / (double)(out * in));
    case_field(c, "a", WEIGHT, IN, r, in);
    case_field(c, "b", WEIGHT, IN, out, r);
    case_field(c, "a0", WEIGHT, IN, r0, in);
    case_field(c, "b0", WEIGHT, IN, out, r0);
    case_field(c, "importance", REAL, IN, importance ? out : 1, importance ? in : 1);
    case_field(c, "da", REAL, ADDED, r, in);
    case_field(c, "db", REAL, ADDED, out, r);
    case_field(c, "spare da", REAL, ADDED, r, in);
    case_field(c, "spare db", REAL, ADDED, out, r);
    for (int64_t i = 0; i < c->f[DE_F].rows * c->f[DE_F].cols; i++)
        c->f[DE_F].value[i] = fabs(c->f[DE_F].value[i]);
    case_in(c, DE_A, DE_DA);
    case_in(c, DE_B, DE_DB);
    c->forward = delta_forward, c->backward = delta_backward, c->reference = delta_reference;
}
static inline void delta_case(opcase *c, int variant)
{
    rng *r = &c->random;
    bool importance = variant & 1;
    int64_t rank = rng_in(r, 1, 20);
    if (variant == 6) /* ranks, rows and columns beyond a tile */
        delta_sized(c, rng_in(r, 65, 75), rng_in(r, 257, 280), rng_in(r, 65, 70), 66, true);
    else
        delta_sized(c, rng_in(r, 1, 90), rng_in(r, 1, 300), rank, variant < 2 ? 0 : variant < 4 ? rank : rng_in(r, 1, 20), importance);
}

/* --- overlap; cap: the strength --- */

enum { OV_OLD = KEEP_FIELDS, OV_A, OV_DA, OV_SPARE };

static inline void overlap_any(const opcase *c, const run_view *v, int da, int penalty)
{
    KEEP_RUN(overlap, v->t[OV_OLD], v->t[OV_A], (double)c->cap, v->t[da], v->t[penalty].data);
}
static inline void overlap_forward(const opcase *c, const run_view *v) { overlap_any(c, v, OV_SPARE, PENALTY); }
static inline void overlap_backward(const opcase *c, const run_view *v) { overlap_any(c, v, OV_DA, PENALTY_SPARE); }

/* Sum of magnitudes of old_a a^T; *least: the smallest of them. */
static inline double overlap_sum(const opcase *c, const double *old, const double *a, double *least)
{
    int64_t in = c->f[OV_A].cols;
    double sum = 0;
    *least = INFINITY;
    for (int64_t p = 0; p < c->f[OV_OLD].rows; p++)
        for (int64_t k = 0; k < c->f[OV_A].rows; k++) {
            double g = 0;
            for (int64_t i = 0; i < in; i++)
                g += old[p * in + i] * a[k * in + i];
            sum += fabs(g);
            *least = fmin(*least, fabs(g));
        }
    return sum;
}
static inline void overlap_reference(const opcase *c, double *const *x)
{
    double least;
    *x[PENALTY] += (double)c->cap * overlap_sum(c, x[OV_OLD], x[OV_A], &least);
}

static inline void overlap_sized(opcase *c, int64_t q, int64_t r, int64_t in)
{
    keep_case_start(c);
    c->cap = 0.5f;
    case_field(c, "old a", WEIGHT, IN, q, in);
    case_field(c, "a", WEIGHT, IN, r, in);
    case_field(c, "da", REAL, ADDED, r, in);
    case_field(c, "spare da", REAL, ADDED, r, in);
    case_in(c, OV_A, OV_DA);
    c->forward = overlap_forward, c->backward = overlap_backward, c->reference = overlap_reference;
}
static inline void overlap_case(opcase *c, int variant)
{
    int64_t r = rng_in(&c->random, 1, 6), in = rng_in(&c->random, 20, 200);
    overlap_sized(c, variant == 2 ? 70 : rng_in(&c->random, 1, 12), r, in);
    double least = 0;
    while (overlap_sum(c, c->f[OV_OLD].value, c->f[OV_A].value, &least), least < 4e-3) /* away from kinks */
        for (int64_t i = 0; i < r * in; i++)
            c->f[OV_A].value[i] = rng_normal(&c->random);
}

/* --- square_add, path_add: no derivatives --- */

enum { SQ_X, SQ_Y };
static inline void square_forward(const opcase *c, const run_view *v) { KEEP_RUN(square_add, (double)c->scale, v->t[SQ_X], v->t[SQ_Y]); }
static inline void square_reference(const opcase *c, double *const *x)
{
    for (int64_t i = 0; i < c->f[SQ_X].rows * c->f[SQ_X].cols; i++)
        x[SQ_Y][i] += (double)c->scale * x[SQ_X][i] * x[SQ_X][i];
}
static inline void square_case(opcase *c, int variant)
{
    layout_init(&c->layout, 1, (int32_t[]){1}, 1);
    c->splits = false;
    int64_t rows = rng_in(&c->random, 1, 40), cols = rng_in(&c->random, 1, variant ? 3000 : 100);
    c->scale = 0.25f;
    case_field(c, "x", REAL, IN, rows, cols);
    case_field(c, "y", REAL, ADDED, rows, cols);
    case_out(c, SQ_Y, SQ_X);
    c->forward = square_forward, c->reference = square_reference;
}

enum { PATH_GRAD, PATH_BEFORE, PATH_VALUE, PATH_Y };
static inline void path_forward(const opcase *c, const run_view *v)
{
    (void)c;
    KEEP_RUN(path_add, v->t[PATH_GRAD], v->t[PATH_BEFORE], v->t[PATH_VALUE], v->t[PATH_Y]);
}
static inline void path_reference(const opcase *c, double *const *x)
{
    for (int64_t i = 0; i < c->f[PATH_Y].rows * c->f[PATH_Y].cols; i++)
        x[PATH_Y][i] -= x[PATH_GRAD][i] * (x[PATH_VALUE][i] - x[PATH_BEFORE][i]);
}
static inline void path_case(opcase *c, int variant)
{
    layout_init(&c->layout, 1, (int32_t[]){1}, 1);
    c->splits = false;
    int64_t rows = rng_in(&c->random, 1, 40), cols = rng_in(&c->random, 1, variant ? 3000 : 100);
    case_field(c, "grad", REAL, IN, rows, cols);
    case_field(c, "before", WEIGHT, IN, rows, cols);
    case_field(c, "value", ACT, IN, rows, cols);
    case_field(c, "y", REAL, ADDED, rows, cols);
    case_out(c, PATH_Y, PATH_GRAD);
    c->forward = path_forward, c->reference = path_reference;
}

/* --- Sizes beyond what an op does at once: rounds, groups, blocks of ranks. Bits and loose values only. --- */

enum { KEEP_LARGE = 7, KEEP_LARGE_QUICK = 5 /* also on an emulated GPU */ };
static inline void keep_large_case(opcase *c, int which, uint64_t seed)
{
    case_init(c, "keep, large", seed + (uint64_t)which);
    switch (which) {
    case 0: anchor_sized(c, 3, 3, 100003); break;         /* groups of blocks */
    case 1: delta_sized(c, 4200, 20, 3, 2, true); break;  /* rounds of strips */
    case 2: delta_sized(c, 3, 5, 2100, 2, true); break;   /* rounds of ranks */
    case 3: overlap_sized(c, 1100, 3, 5); break;          /* rounds of rows */
    case 4: overlap_sized(c, 70, 600, 9); break;          /* rounds of ranks */
    case 5: delta_sized(c, 2, 800, 2000, 0, false); break; /* rounds of columns */
    default: delta_sized(c, 130, 300, 600, 0, true); break; /* fewer strips at once */
    }
    snprintf(c->note, sizeof c->note, "large case %d of keep, seed %llu", which, (unsigned long long)seed);
}

#endif
