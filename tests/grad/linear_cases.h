/* linear, lowrank and dora as cases of the harness (opcase.h). Used by test_linear and test_cuda_ops. */
#ifndef TM_TESTS_GRAD_LINEAR_CASES_H
#define TM_TESTS_GRAD_LINEAR_CASES_H

#include "base/philox.h"
#include "opcase.h"

/* --- linear: x w bias y | dy dx dw dbias --- */

enum { X, W, BIAS, Y, DY, DX, DW, DBIAS };

static inline tm_tensor present(tm_tensor t, bool is) { return is ? t : tm_tensor_none(); }

static inline void linear_run_forward(const opcase *c, const run_view *v)
{
    TM_RUN(v->device, linear_forward, &v->rows, v->t[X], v->t[W], present(v->t[BIAS], c->n), v->t[Y]);
}
static inline void linear_run_backward(const opcase *c, const run_view *v)
{
    TM_RUN(v->device, linear_backward_input, &v->rows, v->t[DY], v->t[W], c->accumulate, v->t[DX]);
    TM_RUN(v->device, linear_backward_weight, &v->rows, v->t[DY], v->t[X], v->t[DW], present(v->t[DBIAS], c->n));
}
static inline void linear_reference(const opcase *c, double *const *f)
{
    int64_t T = c->f[X].rows, K = c->f[X].cols, N = c->f[Y].cols;
    for (int64_t t = 0; t < T; t++)
        for (int64_t n = 0; n < N; n++) {
            double sum = c->n ? f[BIAS][n] : 0;
            for (int64_t k = 0; k < K; k++)
                sum += f[X][t * K + k] * f[W][n * K + k];
            f[Y][t * N + n] = sum;
        }
}

static inline void linear_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest)
{
    case_init(c, "linear", seed);
    layout_random(&c->layout, &c->random, longest, 1);
    int64_t T = c->layout.tokens, K = rng_in(&c->random, 1, widest), N = rng_in(&c->random, 1, widest);
    c->n = rng_in(&c->random, 0, 1); /* with a bias */
    c->accumulate = rng_in(&c->random, 0, 1);
    case_field(c, "x", ACT, IN, T, K);
    case_field(c, "w", WEIGHT, IN, N, K);
    case_field(c, "bias", WEIGHT, IN, 1, N);
    case_field(c, "y", ACT, OUT, T, N);
    case_field(c, "dy", ACT, IN, T, N);
    case_field(c, "dx", ACT, c->accumulate ? ADDED : OUT, T, K);
    case_field(c, "dw", REAL, ADDED, N, K);
    case_field(c, "dbias", REAL, ADDED, 1, N);
    c->f[W].by_token = c->f[DW].by_token = c->f[BIAS].by_token = c->f[DBIAS].by_token = false;
    c->forward = linear_run_forward;
    c->backward = linear_run_backward;
    c->reference = linear_reference;
    case_out(c, Y, DY);
    case_in(c, X, DX);
    case_in(c, W, DW);
    if (c->n)
        case_in(c, BIAS, DBIAS);
    snprintf(c->note, sizeof c->note, "T %ld K %ld N %ld bias %ld accumulate %d", (long)T, (long)K, (long)N, (long)c->n,
             c->accumulate);
}

/* --- lowrank: x a b y0+ xa | dy dxa dx da db --- */

enum { LX, LA, LB, LY, LXA, LDY, LDXA, LDX, LDA, LDB };

static inline tm_lowrank lowrank_of(const opcase *c, const run_view *v, const tm_step_params *step)
{
    return (tm_lowrank){.a = v->t[LA], .b = v->t[LB], .scale = c->scale, .dropout = c->p, .module = 11, .step = step};
}
static inline void lowrank_run_forward(const opcase *c, const run_view *v)
{
    tm_lowrank lr = lowrank_of(c, v, c->step);
    TM_RUN(v->device, lowrank_forward, &v->rows, &lr, v->t[LX], v->t[LXA], v->t[LY]);
}
static inline void lowrank_run_backward(const opcase *c, const run_view *v)
{
    tm_lowrank lr = lowrank_of(c, v, c->step);
    TM_RUN(v->device, lowrank_backward, &v->rows, &lr, v->t[LDY], v->t[LX], v->t[LXA], v->t[LDXA], v->t[LDA], v->t[LDB],
           v->t[LDX]);
}
static inline double kept(const opcase *c, int64_t replica, int64_t t, int64_t k)
{
    if (c->p <= 0)
        return 1;
    tm_philox w = tm_philox_at(c->step[replica].dropout_key, (uint32_t)k / 4, (uint32_t)c->layout.position[t],
                               c->layout.example[t], 11);
    return tm_philox_uniform(w.word[k % 4]) >= c->p ? 1 / (1 - c->p) : 0;
}
static inline void lowrank_reference(const opcase *c, double *const *f)
{
    int64_t R = c->layout.replicas, K = c->f[LX].cols, N = c->f[LY].cols, r = c->f[LA].rows / R;
    for (int64_t g = 0; g < R; g++)
        for (int64_t t = c->layout.group[g]; t < c->layout.group[g + 1]; t++) {
            for (int64_t i = 0; i < r; i++) {
                double sum = 0;
                for (int64_t k = 0; k < K; k++)
                    sum += kept(c, g, t, k) * f[LX][t * K + k] * f[LA][(g * r + i) * K + k];
                f[LXA][t * r + i] = sum;
            }
            for (int64_t n = 0; n < N; n++)
                for (int64_t i = 0; i < r; i++)
                    f[LY][t * N + n] += c->scale * f[LXA][t * r + i] * f[LB][(g * N + n) * r + i];
        }
}

static inline void lowrank_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest, int64_t replicas)
{
    case_init(c, "lowrank", seed);
    layout_random(&c->layout, &c->random, longest, replicas);
    int64_t T = c->layout.tokens, K = rng_in(&c->random, 1, widest), N = rng_in(&c->random, 1, widest), R = replicas;
    static const int64_t ranks[] = {1, 4, 8, 16, 20, 64};
    int64_t r = ranks[rng_in(&c->random, 0, 5)];
    c->scale = (float)rng_in(&c->random, 1, 5) / 2;
    c->p = rng_in(&c->random, 0, 1) ? 0.3f : 0;
    for (int64_t g = 0; g < R; g++)
        c->step[g].dropout_key = rng_next(&c->random);
    case_field(c, "x", ACT, IN, T, K);
    case_field(c, "a", REAL, IN, R * r, K);
    case_field(c, "b", REAL, IN, R * N, r);
    case_field(c, "y", ACT, ADDED, T, N);
    case_field(c, "xa", REAL, OUT, T, r);
    case_field(c, "dy", ACT, IN, T, N);
    case_field(c, "dxa", REAL, OUT, T, r);
    case_field(c, "dx", ACT, ADDED, T, K);
    case_field(c, "da", REAL, ADDED, R * r, K);
    case_field(c, "db", REAL, ADDED, R * N, r);
    c->f[LA].by_token = c->f[LB].by_token = c->f[LDA].by_token = c->f[LDB].by_token = false;
    c->forward = lowrank_run_forward;
    c->backward = lowrank_run_backward;
    c->reference = lowrank_reference;
    case_out(c, LY, LDY);
    case_in(c, LX, LDX);
    case_in(c, LA, LDA);
    case_in(c, LB, LDB);
    c->splits = R == 1;
    snprintf(c->note, sizeof c->note, "T %ld K %ld N %ld r %ld R %ld p %g scale %g", (long)T, (long)K, (long)N, (long)r,
             (long)R, (double)c->p, (double)c->scale);
}

/* --- dora: u magnitude norm bias y | dy du dmagnitude --- */

enum { DU_, DMAG, DNORM, DB_, DY_, DDY, DDU, DDMAG };

static inline void dora_run_forward(const opcase *c, const run_view *v)
{
    TM_RUN(v->device, dora_forward, &v->rows, v->t[DU_], v->t[DMAG], v->t[DNORM], present(v->t[DB_], c->n), v->t[DY_]);
}
static inline void dora_run_backward(const opcase *c, const run_view *v)
{
    (void)c;
    TM_RUN(v->device, dora_backward, &v->rows, v->t[DDY], v->t[DU_], v->t[DMAG], v->t[DNORM], v->t[DDU], v->t[DDMAG]);
}
static inline void dora_reference(const opcase *c, double *const *f)
{
    int64_t N = c->f[DU_].cols;
    for (int64_t g = 0; g < c->layout.replicas; g++)
        for (int64_t t = c->layout.group[g]; t < c->layout.group[g + 1]; t++)
            for (int64_t n = 0; n < N; n++)
                f[DY_][t * N + n] = f[DMAG][g * N + n] / f[DNORM][g * N + n] * f[DU_][t * N + n] + (c->n ? f[DB_][n] : 0);
}

static inline void dora_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest, int64_t replicas)
{
    case_init(c, "dora", seed);
    layout_random(&c->layout, &c->random, longest, replicas);
    int64_t T = c->layout.tokens, N = rng_in(&c->random, 1, widest), R = replicas;
    c->n = rng_in(&c->random, 0, 1);
    case_field(c, "u", ACT, IN, T, N);
    case_field(c, "magnitude", REAL, IN, 1, R * N);
    case_field(c, "norm", REAL, IN, 1, R * N);
    case_field(c, "bias", WEIGHT, IN, 1, N);
    case_field(c, "y", ACT, OUT, T, N);
    case_field(c, "dy", ACT, IN, T, N);
    case_field(c, "du", ACT, OUT, T, N);
    case_field(c, "dmagnitude", REAL, ADDED, 1, R * N);
    for (int64_t i = 0; i < R * N; i++)
        c->f[DNORM].value[i] = 1 + fabs(c->f[DNORM].value[i]);
    c->forward = dora_run_forward;
    c->backward = dora_run_backward;
    c->reference = dora_reference;
    case_out(c, DY_, DDY);
    case_in(c, DU_, DDU);
    case_in(c, DMAG, DDMAG);
    c->splits = R == 1;
    snprintf(c->note, sizeof c->note, "T %ld N %ld R %ld bias %ld", (long)T, (long)N, (long)R, (long)c->n);
}

/* Any of the three, by the seed. */
static inline void any_linear_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest)
{
    uint64_t which = seed % 5;
    if (which < 2)
        linear_case(c, seed, longest, widest);
    else if (which < 4)
        lowrank_case(c, seed, longest, widest, seed % 3 == 0 ? 1 : (int64_t)(seed % 3) + 1);
    else
        dora_case(c, seed, longest, widest, (int64_t)(seed % 3) + 1);
}

#endif
