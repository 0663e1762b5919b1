/* linear, lowrank and dora: against plain double loops, against central differences, and bit by bit
 * over instruction sets, threads, packings and replicas. Seeds are printed with every failure. */
#include "../grad/opcase.h"

#include "base/philox.h"

#include <setjmp.h>
#include <cmocka.h>

static tm_device *device(int threads, tm_isa isa)
{
    tm_device *d;
    tm_error err;
    return tm_cpu_device_create(threads, isa, &d, &err) == TM_OK ? d : NULL;
}

/* --- linear: x w bias y | dy dx dw dbias --- */

enum { X, W, BIAS, Y, DY, DX, DW, DBIAS };

static tm_tensor present(tm_tensor t, bool is) { return is ? t : tm_tensor_none(); }

static void linear_run_forward(const opcase *c, const run_view *v)
{
    TM_RUN(v->device, linear_forward, &v->rows, v->t[X], v->t[W], present(v->t[BIAS], c->n), v->t[Y]);
}
static void linear_run_backward(const opcase *c, const run_view *v)
{
    TM_RUN(v->device, linear_backward_input, &v->rows, v->t[DY], v->t[W], c->accumulate, v->t[DX]);
    TM_RUN(v->device, linear_backward_weight, &v->rows, v->t[DY], v->t[X], v->t[DW], present(v->t[DBIAS], c->n));
}
static void linear_reference(const opcase *c, double *const *f)
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

static void linear_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest)
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

static tm_lowrank lowrank_of(const opcase *c, const run_view *v, const tm_step_params *step)
{
    return (tm_lowrank){.a = v->t[LA], .b = v->t[LB], .scale = c->scale, .dropout = c->p, .module = 11, .step = step};
}
static void lowrank_run_forward(const opcase *c, const run_view *v)
{
    tm_lowrank lr = lowrank_of(c, v, c->step);
    TM_RUN(v->device, lowrank_forward, &v->rows, &lr, v->t[LX], v->t[LXA], v->t[LY]);
}
static void lowrank_run_backward(const opcase *c, const run_view *v)
{
    tm_lowrank lr = lowrank_of(c, v, c->step);
    TM_RUN(v->device, lowrank_backward, &v->rows, &lr, v->t[LDY], v->t[LX], v->t[LXA], v->t[LDXA], v->t[LDA], v->t[LDB],
           v->t[LDX]);
}
static double kept(const opcase *c, int64_t replica, int64_t t, int64_t k)
{
    if (c->p <= 0)
        return 1;
    tm_philox w = tm_philox_at(c->step[replica].dropout_key, (uint32_t)k / 4, (uint32_t)c->layout.position[t],
                               c->layout.example[t], 11);
    return tm_philox_uniform(w.word[k % 4]) >= c->p ? 1 / (1 - c->p) : 0;
}
static void lowrank_reference(const opcase *c, double *const *f)
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

static void lowrank_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest, int64_t replicas)
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

static void dora_run_forward(const opcase *c, const run_view *v)
{
    TM_RUN(v->device, dora_forward, &v->rows, v->t[DU_], v->t[DMAG], v->t[DNORM], present(v->t[DB_], c->n), v->t[DY_]);
}
static void dora_run_backward(const opcase *c, const run_view *v)
{
    (void)c;
    TM_RUN(v->device, dora_backward, &v->rows, v->t[DDY], v->t[DU_], v->t[DMAG], v->t[DNORM], v->t[DDU], v->t[DDMAG]);
}
static void dora_reference(const opcase *c, double *const *f)
{
    int64_t N = c->f[DU_].cols;
    for (int64_t g = 0; g < c->layout.replicas; g++)
        for (int64_t t = c->layout.group[g]; t < c->layout.group[g + 1]; t++)
            for (int64_t n = 0; n < N; n++)
                f[DY_][t * N + n] = f[DMAG][g * N + n] / f[DNORM][g * N + n] * f[DU_][t * N + n] + (c->n ? f[DB_][n] : 0);
}

static void dora_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest, int64_t replicas)
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

static void any_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest)
{
    uint64_t which = seed % 5;
    if (which < 2)
        linear_case(c, seed, longest, widest);
    else if (which < 4)
        lowrank_case(c, seed, longest, widest, seed % 3 == 0 ? 1 : (int64_t)(seed % 3) + 1);
    else
        dora_case(c, seed, longest, widest, (int64_t)(seed % 3) + 1);
    print_message("  %s seed %llu: %s\n", c->name, (unsigned long long)seed, c->note);
}

/* --- Checks --- */

/* Forward in double, f32 and bf16 against the reference, from the same values. */
static void forward_is_right(void **state)
{
    (void)state;
    static const struct { types y; tm_isa isa; double bound; } kinds[] = {
        {{TM_F64, TM_F64, TM_F64}, TM_ISA_F64, 1e-13}, {{TM_F32, TM_F32, TM_F32}, TM_ISA_AUTO, 2e-6},
        {{TM_BF16, TM_F32, TM_BF16}, TM_ISA_AUTO, 4e-3}, {{TM_F32, TM_F32, TM_F16}, TM_ISA_AUTO, 2e-6},
    };
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        tm_device *d = device(2, kinds[k].isa);
        assert_non_null(d);
        for (uint64_t seed = 1; seed <= 30; seed++) {
            opcase c;
            any_case(&c, seed * 7 + k * 1000, 40, 700);
            double **want = case_values(&c), **got = case_values(&c);
            c.reference(&c, want);
            bool clean;
            case_run(&c, d, kinds[k].y, false, got, &clean);
            assert_true(clean);
            for (int i = 0; i < c.n_outs; i++) {
                field *f = &c.f[c.outs[i].value];
                double off = distance(got[c.outs[i].value], want[c.outs[i].value], f->rows * f->cols);
                if (off > kinds[k].bound)
                    print_message("  %s of %s: off by %g\n", f->name, c.name, off);
                assert_true(off <= kinds[k].bound);
            }
            values_free(want);
            values_free(got);
            case_deinit(&c);
        }
        tm_device_destroy(d);
    }
}

/* sum over outputs of output * its gradient, computed on the double device. */
static double loss_of(const opcase *c, tm_device *d)
{
    double **v = case_values(c), loss = 0;
    opcase forward_only = *c;
    forward_only.backward = NULL;
    bool clean;
    case_run(&forward_only, d, types_f64, false, v, &clean);
    for (int i = 0; i < c->n_outs; i++) {
        const field *f = &c->f[c->outs[i].value];
        for (int64_t e = 0; e < f->rows * f->cols; e++)
            loss += v[c->outs[i].value][e] * c->f[c->outs[i].grad].value[e];
    }
    values_free(v);
    return loss;
}

/* Every gradient against central differences in double, for a sample of elements. The ops are
 * linear in each input, so the differences are exact up to rounding. */
static void backward_is_right(void **state)
{
    (void)state;
    tm_device *d = device(2, TM_ISA_F64);
    assert_non_null(d);
    for (uint64_t seed = 1; seed <= 25; seed++) {
        opcase c;
        any_case(&c, 90000 + seed, 20, 60);
        double **got = case_values(&c);
        bool clean;
        case_run(&c, d, types_f64, false, got, &clean);
        assert_true(clean);
        for (int i = 0; i < c.n_ins; i++) {
            field *f = &c.f[c.ins[i].value], *g = &c.f[c.ins[i].grad];
            for (int s = 0; s < 25; s++) {
                int64_t e = rng_in(&c.random, 0, f->rows * f->cols - 1);
                double *value = &f->value[e], old = *value, h = 0.5;
                *value = old + h;
                double up = loss_of(&c, d);
                *value = old - h;
                double slope = (up - loss_of(&c, d)) / (2 * h);
                *value = old;
                double have = got[c.ins[i].grad][e] - (g->role == ADDED ? g->value[e] : 0);
                if (fabs(have - slope) > 1e-9 * (1 + fabs(slope)))
                    print_message("  %s element %ld: %.12g, differences give %.12g\n", g->name, (long)e, have, slope);
                assert_true(fabs(have - slope) <= 1e-9 * (1 + fabs(slope)));
            }
        }
        values_free(got);
        case_deinit(&c);
    }
    tm_device_destroy(d);
}

/* One hash over instruction sets, threads, whole or example by example. */
static void same_bits_everywhere(void **state)
{
    (void)state;
    static const struct { const char *name; tm_isa isa; } isas[] = {
        {"scalar", TM_ISA_SCALAR}, {"avx2", TM_ISA_AVX2}, {"avx512", TM_ISA_AVX512}};
    static const int threads[] = {1, 2, 3, 8};
    enum { CASES = 12 };
    uint64_t first[CASES][2] = {{0}};
    int skipped = 0;
    for (int i = 0; i < 3; i++)
        for (int t = 0; t < 4; t++) {
            tm_device *d = device(threads[t], isas[i].isa);
            if (!d) {
                if (t == 0)
                    print_message("skip: no %s on this processor\n", isas[i].name);
                skipped += t == 0;
                continue;
            }
            for (int k = 0; k < CASES; k++) {
                opcase c;
                any_case(&c, 500 + (uint64_t)k, k < 4 ? 600 : 60, k < 4 ? 50 : 900);
                for (int bf16 = 0; bf16 < 2; bf16++)
                    for (int split = 0; split <= (c.splits && t < 2); split++) {
                        bool clean;
                        uint64_t hash = case_run(&c, d, bf16 ? types_bf16 : types_f32, split, NULL, &clean);
                        assert_true(clean);
                        if (!first[k][bf16])
                            first[k][bf16] = hash;
                        if (hash != first[k][bf16])
                            print_message("  %s, %d threads, bf16 %d, split %d differ\n", isas[i].name, threads[t], bf16, split);
                        assert_true(hash == first[k][bf16]);
                    }
                case_deinit(&c);
            }
            tm_device_destroy(d);
        }
    assert_true(skipped < 3);
}

/* Replica g of a pack, alone: its rows, its slices of what belongs to replicas. */
static void run_replica(const opcase *c, const run_view *whole, int32_t g)
{
    const layout *l = &c->layout;
    run_view v = *whole;
    int64_t R = l->replicas, first = l->group[g], count = l->group[g + 1] - first;
    int32_t group[2] = {0, (int32_t)count}, group_chunk[2] = {0, l->group_chunk[g + 1] - l->group_chunk[g]};
    int32_t *chunk = malloc(sizeof *chunk * (size_t)(group_chunk[1] + 1));
    for (int32_t i = 0; i <= group_chunk[1]; i++)
        chunk[i] = l->chunk[l->group_chunk[g] + i] - (int32_t)first;
    v.rows = (tm_rows){.n = count, .replicas = 1, .chunks = group_chunk[1], .position = l->position + first,
                       .example = l->example + first, .chunk = chunk, .group = group, .group_chunk = group_chunk};
    for (int i = 0; i < c->fields; i++) {
        const field *f = &c->f[i];
        if (f->by_token)
            v.t[i] = tm_tensor_rows(v.t[i], first, count);
        else if (f->rows > 1)
            v.t[i] = tm_tensor_rows(v.t[i], g * (f->rows / R), f->rows / R);
        else if (f->cols == R * c->f[0].cols && i != DB_)
            v.t[i] = tm_tensor_cols(v.t[i], g * (f->cols / R), f->cols / R);
    }
    opcase one = *c;
    one.step[0] = c->step[g];
    c->forward(&one, &v);
    c->backward(&one, &v);
    free(chunk);
}

static void replicas_are_alone(void **state)
{
    (void)state;
    tm_device *d = device(2, TM_ISA_AUTO);
    assert_non_null(d);
    for (uint64_t seed = 1; seed <= 16; seed++) {
        opcase c;
        if (seed % 4)
            lowrank_case(&c, 7000 + seed, 300, 500, 3);
        else
            dora_case(&c, 7000 + seed, 300, 500, 3);
        print_message("  %s seed %llu: %s\n", c.name, (unsigned long long)(7000 + seed), c.note);
        for (int bf16 = 0; bf16 < 2; bf16++) {
            types y = bf16 ? types_bf16 : types_f32;
            bool clean;
            uint64_t packed = case_run(&c, d, y, false, NULL, &clean), alone = 0xcbf29ce484222325u;
            buffers b;
            buffers_init(&b, &c, d, y);
            run_view v = buffers_view(&b, &c, d);
            for (int32_t g = 0; g < 3; g++)
                run_replica(&c, &v, g);
            for (int i = 0; i < c.fields; i++)
                clean &= buffers_read(&b, &c, d, i, NULL, &alone);
            assert_true(clean);
            assert_true(packed == alone);
            buffers_deinit(&b, &c, d);
        }
        case_deinit(&c);
    }
    tm_device_destroy(d);
}

/* Row norms of w + scale B A, on every device. */
static void dora_norms(void **state)
{
    (void)state;
    enum { R = 2, OUT_ = 37, IN_ = 131, RANK = 5 };
    rng random = {77};
    double a[R * RANK * IN_], b[R * OUT_ * RANK], w[OUT_ * IN_], want[R * OUT_];
    for (int i = 0; i < R * RANK * IN_; i++)
        a[i] = rng_normal(&random);
    for (int i = 0; i < R * OUT_ * RANK; i++)
        b[i] = rng_normal(&random);
    for (int i = 0; i < OUT_ * IN_; i++)
        w[i] = rng_normal(&random);
    for (int n = 0; n < R * OUT_; n++) {
        double sum = 0;
        for (int k = 0; k < IN_; k++) {
            double v = w[n % OUT_ * IN_ + k];
            for (int i = 0; i < RANK; i++)
                v += 0.5 * b[n * RANK + i] * a[(n / OUT_ * RANK + i) * IN_ + k];
            sum += v * v;
        }
        want[n] = sqrt(sum);
    }
    static const tm_isa isas[] = {TM_ISA_F64, TM_ISA_SCALAR, TM_ISA_AVX2, TM_ISA_AVX512};
    float bits[R * OUT_] = {0};
    for (int k = 0; k < 4; k++) {
        tm_device *d = device(1 + k, isas[k]);
        if (!d)
            continue;
        tm_dtype real = d->real;
        void *da = malloc(sizeof a), *db = malloc(sizeof b), *norm = malloc(sizeof want), *dw = malloc(sizeof w);
        tm_dtype_convert(da, real, a, TM_F64, R * RANK * IN_);
        tm_dtype_convert(db, real, b, TM_F64, R * OUT_ * RANK);
        tm_dtype_convert(dw, TM_BF16, w, TM_F64, OUT_ * IN_); /* exact: drawn so */
        tm_lowrank lr = {.a = tm_tensor_make(da, real, R * RANK, IN_), .b = tm_tensor_make(db, real, R * OUT_, RANK),
                         .scale = 0.5f};
        TM_RUN(d, dora_norm, R, &lr, tm_tensor_make(dw, TM_BF16, OUT_, IN_), tm_tensor_make(norm, real, 1, R * OUT_));
        double got[R * OUT_];
        tm_dtype_convert(got, TM_F64, norm, real, R * OUT_);
        assert_true(distance(got, want, R * OUT_) < (real == TM_F64 ? 1e-14 : 1e-6));
        if (real == TM_F32) {
            if (bits[0] == 0)
                memcpy(bits, norm, sizeof bits);
            assert_memory_equal(bits, norm, sizeof bits);
        }
        free(da), free(db), free(norm), free(dw);
        tm_device_destroy(d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_right), cmocka_unit_test(backward_is_right), cmocka_unit_test(same_bits_everywhere),
        cmocka_unit_test(replicas_are_alone), cmocka_unit_test(dora_norms),
    };
    return cmocka_run_group_tests_name("linear", tests, NULL, NULL);
}
