/* linear, lowrank and dora: against plain double loops, against central differences, and bit by bit
 * over instruction sets, threads, packings and replicas. Seeds are printed with every failure. */
#include "../grad/linear_cases.h"

#include <setjmp.h>
#include <cmocka.h>

static tm_device *device(int threads, tm_isa isa)
{
    tm_device *d;
    tm_error err;
    return tm_cpu_device_create(threads, isa, &d, &err) == TM_OK ? d : NULL;
}

static void any_case(opcase *c, uint64_t seed, int64_t longest, int64_t widest)
{
    any_linear_case(c, seed, longest, widest);
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

/* lora is linear, then lowrank on the columns of each part, then the activation: the same bits as these one by one. */
static void lora_is_its_parts(void **state)
{
    (void)state;
    enum { T = 37, K = 29, N = 22, R = 3, PARTS = 2, FIRST = 6, COLUMNS = 10, ALL = 8000 };
    tm_device *d = device(2, TM_ISA_AUTO);
    rng r = {77};
    float memory[2][ALL], start[ALL];
    int32_t position[T], chunk[2] = {0, T}, group[2] = {0, T}, group_chunk[2] = {0, 1};
    uint32_t example[T] = {0};
    tm_rows rows = {.n = T, .replicas = 1, .chunks = 1, .position = position, .example = example, .chunk = chunk, .group = group, .group_chunk = group_chunk};
    tm_step_params step = {.dropout_key = 5};
    for (int i = 0; i < T; i++)
        position[i] = i;
    for (int i = 0; i < ALL; i++)
        start[i] = (float)rng_normal(&r);
    for (int whole = 0; whole < 2; whole++) {
        memcpy(memory[whole], start, sizeof start);
        float *at = memory[whole];
        tm_tensor x, w, bias, y, h, dx;
        tm_lora_part part[PARTS];
#define TAKE(rows_, cols_) (at += (rows_) * (cols_), tm_tensor_make(at - (rows_) * (cols_), TM_F32, rows_, cols_))
        x = TAKE(T, K), w = TAKE(N, K), bias = TAKE(1, N), y = TAKE(T, N), h = TAKE(T, N / 2), dx = TAKE(T, K);
        for (int i = 0; i < PARTS; i++) {
            part[i] = (tm_lora_part){.lr = {.a = TAKE(R, K), .b = TAKE(COLUMNS, R), .scale = 0.5f, .dropout = i ? 0.3f : 0, .module = (uint32_t)i, .step = &step}, .first = i * FIRST};
            part[i].xa = TAKE(T, R), part[i].dxa = TAKE(T, R), part[i].da = TAKE(R, K), part[i].db = TAKE(COLUMNS, R);
        }
        assert_true(at <= memory[whole] + ALL);
        if (whole) {
            TM_RUN(d, lora_forward, &rows, x, w, bias, PARTS, part, y, TM_ACT_SILU, h);
            TM_RUN(d, lora_backward, &rows, y, x, w, true, PARTS, part, dx);
            continue;
        }
        TM_RUN(d, linear_forward, &rows, x, w, bias, y);
        for (int i = 0; i < PARTS; i++)
            TM_RUN(d, lowrank_forward, &rows, &part[i].lr, x, part[i].xa, tm_tensor_cols(y, part[i].first, COLUMNS));
        TM_RUN(d, glu_forward, &rows, TM_ACT_SILU, y, h);
        TM_RUN(d, linear_backward_input, &rows, y, w, true, dx);
        for (int i = 0; i < PARTS; i++)
            TM_RUN(d, lowrank_backward, &rows, &part[i].lr, tm_tensor_cols(y, part[i].first, COLUMNS), x, part[i].xa, part[i].dxa, part[i].da, part[i].db, dx);
    }
    assert_memory_equal(memory[0], memory[1], sizeof start);
    assert_memory_not_equal(memory[0], start, sizeof start);
    tm_device_destroy(d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forward_is_right), cmocka_unit_test(backward_is_right), cmocka_unit_test(same_bits_everywhere),
        cmocka_unit_test(replicas_are_alone), cmocka_unit_test(dora_norms), cmocka_unit_test(lora_is_its_parts),
    };
    return cmocka_run_group_tests_name("linear", tests, NULL, NULL);
}
