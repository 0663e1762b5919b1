/* Ops of the methods that keep skills, beyond their cases (tests/grad/keep_cases.h): what a strength of 0 leaves alone, zeros
 * at the start, invariance of LoRA's delta, sizes that take several rounds, and drawing of targets. */
#include "../grad/cases.h"

#include <setjmp.h>
#include <cmocka.h>

#include <time.h>

static uint64_t seed;

static tm_device *device(int threads, tm_isa isa)
{
    tm_device *d = NULL;
    tm_error err;
    return tm_cpu_device_create(threads, isa, &d, &err) == TM_OK ? d : NULL; /* NULL: a processor without it */
}

static const struct way {
    tm_isa isa;
    int threads;
} ways[] = {{TM_ISA_SCALAR, 1}, {TM_ISA_SCALAR, 3}, {TM_ISA_AVX2, 1}, {TM_ISA_AVX2, 8}, {TM_ISA_AVX512, 1}, {TM_ISA_AVX512, 3}, {TM_ISA_AVX512, 8}};
enum { WAYS = sizeof ways / sizeof *ways };

static tm_tensor of(float *p, int64_t rows, int64_t cols) { return tm_tensor_make(p, TM_F32, rows, cols); }

static void fill_normal(float *p, int64_t n, rng *r)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = (float)rng_normal(r);
}

/* Not the sign of a zero, not the bits of what is no number. */
static void strength_zero(void **state)
{
    (void)state;
    enum { OUTS = 5, INS = 19, R = 3 };
    rng random = {seed};
    tm_device *d = device(2, TM_ISA_AUTO);
    float a[R * INS], b[OUTS * R], f[OUTS * INS], w[OUTS * INS], gw[OUTS * INS], ga[R * INS], gb[OUTS * R], before[3][OUTS * INS];
    fill_normal(a, R * INS, &random);
    fill_normal(b, OUTS * R, &random);
    fill_normal(f, OUTS * INS, &random);
    fill_normal(w, OUTS * INS, &random);
    float *grads[] = {gw, ga, gb};
    const size_t bytes[] = {sizeof gw, sizeof ga, sizeof gb};
    for (int g = 0; g < 3; g++) {
        for (size_t i = 0; i < bytes[g] / 4; i++)
            grads[g][i] = i % 3 == 0 ? -0.0f : i % 3 == 1 ? NAN : (float)rng_normal(&random);
        memcpy(before[g], grads[g], bytes[g]);
    }
    double penalty = -0.0, was = penalty;
    w[0] = a[0] = NAN;
    tm_lowrank lr = {.a = of(a, R, INS), .b = of(b, OUTS, R), .scale = 2};
    TM_RUN(d, anchor, of(w, OUTS, INS), of(f, OUTS, INS), of(f, OUTS, INS), 0, of(gw, OUTS, INS), &penalty);
    TM_RUN(d, delta_anchor, &lr, &lr, of(f, OUTS, INS), 0, of(ga, R, INS), of(gb, OUTS, R), &penalty);
    TM_RUN(d, overlap, of(w, OUTS, INS), of(a, R, INS), 0, of(ga, R, INS), &penalty);
    for (int g = 0; g < 3; g++)
        assert_memory_equal(before[g], grads[g], bytes[g]);
    assert_memory_equal(&penalty, &was, sizeof was);
    tm_device_destroy(d);
}

/* At the start penalty and gradients are zero exactly, also where value and anchor are in bf16. */
static void nothing_at_the_start(void **state)
{
    (void)state;
    enum { OUTS = 70, INS = 300, R = 7 };
    rng random = {seed};
    static float a[R * INS], b[OUTS * R], f[OUTS * INS], w[OUTS * INS], grad[OUTS * INS], ga[R * INS], gb[OUTS * R];
    static uint16_t half[OUTS * INS];
    fill_normal(a, R * INS, &random);
    fill_normal(b, OUTS * R, &random);
    fill_normal(f, OUTS * INS, &random);
    fill_normal(w, OUTS * INS, &random);
    tm_dtype_convert(half, TM_BF16, w, TM_F32, OUTS * INS);
    for (int w0 = 0; w0 < WAYS; w0++) {
        tm_device *d = device(ways[w0].threads, ways[w0].isa);
        if (!d)
            continue;
        double penalty = 0;
        tm_lowrank lr = {.a = of(a, R, INS), .b = of(b, OUTS, R), .scale = 1.3f}; /* a scale that rounds */
        tm_tensor value = tm_tensor_make(half, TM_BF16, OUTS, INS);
        TM_RUN(d, anchor, value, of(w, OUTS, INS), of(f, OUTS, INS), 3, of(grad, OUTS, INS), &penalty);
        TM_RUN(d, anchor, of(w, OUTS, INS), value, tm_tensor_none(), 3, of(grad, OUTS, INS), &penalty);
        TM_RUN(d, delta_anchor, &lr, &lr, of(f, OUTS, INS), 3, of(ga, R, INS), of(gb, OUTS, R), &penalty);
        assert_true(penalty == 0);
        for (int i = 0; i < OUTS * INS; i++)
            assert_true(grad[i] == 0 && (i >= R * INS || ga[i] == 0) && (i >= OUTS * R || gb[i] == 0));
        tm_device_destroy(d);
    }
}

/* The penalty is of dW: the same for (c B, A / c), where a penalty of A and B apart is not; for a power of two to the bit. */
static void invariance(void **state)
{
    (void)state;
    enum { OUTS = 90, INS = 280, R = 9 };
    rng random = {seed};
    static float a[R * INS], b[OUTS * R], f[OUTS * INS], ga[R * INS], gb[OUTS * R];
    tm_device *d = device(2, TM_ISA_AUTO);
    fill_normal(f, OUTS * INS, &random);
    fill_normal(a, R * INS, &random);
    fill_normal(b, OUTS * R, &random);
    for (int i = 0; i < OUTS * INS; i++)
        f[i] = fabsf(f[i]);
    double first = 0, apart = 0;
    for (int turn = 0; turn < 3; turn++) {
        static float ca[R * INS], cb[OUTS * R];
        float c = turn == 0 ? 1 : turn == 1 ? 8 : 3.7f;
        for (int i = 0; i < R * INS; i++)
            ca[i] = a[i] / c;
        for (int i = 0; i < OUTS * R; i++)
            cb[i] = b[i] * c;
        double penalty = 0, factors = 0;
        tm_lowrank lr = {.a = of(ca, R, INS), .b = of(cb, OUTS, R), .scale = 0.5f};
        TM_RUN(d, delta_anchor, &lr, NULL, of(f, OUTS, INS), 1.5, of(ga, R, INS), of(gb, OUTS, R), &penalty);
        TM_RUN(d, anchor, lr.a, tm_tensor_none(), tm_tensor_none(), 1.5, of(ga, R, INS), &factors);
        if (turn == 0)
            first = penalty, apart = factors;
        if (turn == 1)
            assert_true(penalty == first);
        if (!(fabs(penalty - first) <= 1e-6 * first))
            fail_msg("penalty %.9g, with (c B, A / c) %.9g (seed %llu)", first, penalty, (unsigned long long)seed);
        assert_true(turn == 0 || factors < apart / 2);
    }
    tm_device_destroy(d);
}

/* Rounds never show in the bits; values against the reference in double. */
static void large(void **state)
{
    (void)state;
    for (int which = 0; which < KEEP_LARGE; which++) {
        opcase *c = malloc(sizeof *c);
        keep_large_case(c, which, seed);
        double **reference = case_values(c);
        c->reference(c, reference);
        uint64_t first = 0;
        for (int w = 0; w < WAYS; w++) {
            tm_device *d = device(ways[w].threads, ways[w].isa);
            if (!d)
                continue;
            double **got = case_values(c);
            bool clean;
            uint64_t hash = case_run(c, d, types_f32, false, got, &clean);
            assert_true(clean);
            double want = *reference[PENALTY], error = fabs(*got[PENALTY] - want) / want;
            if (!(error < 2e-6))
                fail_msg("%s: penalty %.9g, should be %.9g", c->note, *got[PENALTY], want);
            if (w == 0)
                first = hash;
            else if (hash != first)
                fail_msg("%s: other bits on %s", c->note, d->detail);
            values_free(got);
            tm_device_destroy(d);
        }
        values_free(reference);
        case_free(c);
    }
}

/* Gradients of the large cases, f32 against double (whose derivatives are checked on the small ones). */
static void large_gradients(void **state)
{
    (void)state;
    tm_device *single = device(2, TM_ISA_AUTO), *twice = device(2, TM_ISA_F64);
    for (int which = 0; which < KEEP_LARGE; which++) {
        opcase *c = malloc(sizeof *c);
        keep_large_case(c, which, seed);
        double **got = case_values(c), **want = case_values(c);
        bool clean;
        case_run(c, single, types_f32, false, got, &clean);
        case_run(c, twice, types_f64, false, want, &clean);
        for (int i = 0; i < c->n_ins; i++) {
            int g = c->ins[i].grad;
            double e = distance(got[g], want[g], c->f[g].rows * c->f[g].cols);
            bool kinks = which == 3 || which == 4; /* a sum near 0 may have the other sign */
            if (!(e < (kinks ? 0.1 : 1e-5)))
                fail_msg("%s: %s is off by %g", c->note, c->f[g].name, e);
        }
        values_free(got);
        values_free(want);
        case_free(c);
    }
    tm_device_destroy(single);
    tm_device_destroy(twice);
}

/* --- sample_targets --- */

static double uniform_at(uint64_t key, uint32_t place)
{
    tm_philox p = tm_philox_at(key, place, 0, 0, 0);
    return (double)(((uint64_t)p.word[1] << 32 | p.word[0]) >> 11) * 0x1p-53;
}

/* The same targets everywhere, and those of the inverse of the distribution function, summed id by id in double (but where the
 * random number lies within single precision of a border). */
static void draws_invert_the_distribution(void **state)
{
    (void)state;
    enum { ROWS = 40 };
    static const int64_t sizes[] = {1, 5, 16, 255, 256, 257, 1000, 5003};
    static const float caps[] = {0, 3};
    rng random = {seed};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int k = 0; k < 4; k++) {
            int64_t V = sizes[s], ld = V + 3;
            float *z = malloc(sizeof(float) * (size_t)(ROWS * ld)), cap = caps[k % 2];
            uint32_t place[ROWS];
            int32_t got[ROWS], first[ROWS];
            uint64_t key = rng_next(&random);
            bool placed = k / 2, started = false;
            for (int64_t i = 0; i < ROWS * ld; i++)
                z[i] = (float)(3 * rng_normal(&random));
            for (int i = 0; i < ROWS; i++)
                place[i] = (uint32_t)rng_next(&random);
            for (int w = 0; w < WAYS; w++) {
                tm_device *d = device(ways[w].threads, ways[w].isa);
                if (!d)
                    continue;
                TM_RUN(d, sample_targets, ROWS, ((tm_tensor){z, TM_F32, ROWS, V, ld}), cap, key, placed ? place : NULL, got);
                if (!started)
                    memcpy(first, got, sizeof got);
                else
                    assert_memory_equal(first, got, sizeof got);
                started = true;
                tm_device_destroy(d);
            }
            double *x = malloc(sizeof(double) * (size_t)V);
            for (int row = 0; row < ROWS; row++) {
                for (int64_t i = 0; i < V; i++)
                    x[i] = (double)z[row * ld + i];
                ref_softcap(V, (double)cap, x, x);
                double lse = ref_lse(V, x), below = 0, u = uniform_at(key, placed ? place[row] : (uint32_t)row);
                assert_true(got[row] >= 0 && got[row] < V);
                for (int32_t i = 0; i < got[row]; i++)
                    below += exp(x[i] - lse);
                if (!(u >= below - 1e-6 && u <= below + exp(x[got[row]] - lse) + 1e-6))
                    fail_msg("V %lld: u %.9g gave id %d, whose share is [%.9g, +%.3g] (seed %llu)", (long long)V, u, got[row], below,
                             exp(x[got[row]] - lse), (unsigned long long)seed);
            }
            free(x);
            free(z);
        }
}

/* Counts of many draws against the enumerated probabilities: chi-square with 6 degrees of freedom. */
static void draws_follow_the_probabilities(void **state)
{
    (void)state;
    enum { V = 7, DRAWS = 200000 };
    rng random = {seed};
    float row[V], *z = malloc(sizeof(float) * DRAWS * V);
    int32_t *got = malloc(sizeof(int32_t) * DRAWS);
    double p[V], x[V], chi = 0;
    int64_t count[V] = {0};
    for (int i = 0; i < V; i++)
        x[i] = (double)(row[i] = (float)rng_normal(&random));
    for (int i = 0; i < DRAWS; i++)
        memcpy(z + i * V, row, sizeof row);
    tm_device *d = device(2, TM_ISA_AUTO);
    TM_RUN(d, sample_targets, DRAWS, of(z, DRAWS, V), 0, rng_next(&random), NULL, got);
    for (int i = 0; i < DRAWS; i++)
        count[got[i]]++;
    for (int i = 0; i < V; i++) {
        p[i] = exp(x[i] - ref_lse(V, x));
        chi += ((double)count[i] - DRAWS * p[i]) * ((double)count[i] - DRAWS * p[i]) / (DRAWS * p[i]);
    }
    if (!(chi < 45)) /* once in 20 million seeds */
        fail_msg("chi-square %g (seed %llu)", chi, (unsigned long long)seed);
    free(z);
    free(got);
    tm_device_destroy(d);
}

/* Logits that leave one id, that are no numbers or nothing at all: an id of the vocabulary, and a possible one where there is one. */
static void draws_at_edges(void **state)
{
    (void)state;
    enum { V = 600, ROWS = 5 };
    static float z[ROWS][V];
    int32_t got[ROWS];
    tm_device *d = device(2, TM_ISA_AUTO);
    for (uint64_t key = 0; key < 50; key++) {
        for (int i = 0; i < V; i++) {
            z[0][i] = i == 431 ? 0 : -INFINITY;
            z[1][i] = i == 77 ? 1e30f : -1e30f;
            z[2][i] = NAN;
            z[3][i] = -INFINITY;
            z[4][i] = i < 300 ? -INFINITY : i == 599 ? -200 : 0; /* the last has no share in single precision */
        }
        TM_RUN(d, sample_targets, ROWS, of(z[0], ROWS, V), 0, seed + key, NULL, got);
        assert_int_equal(got[0], 431);
        assert_int_equal(got[1], 77);
        for (int i = 2; i < ROWS; i++)
            assert_true(got[i] >= 0 && got[i] < V);
        assert_true(got[4] >= 300 && got[4] < 599);
    }
    tm_device_destroy(d);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL); /* a seed to repeat */
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strength_zero),  cmocka_unit_test(nothing_at_the_start),          cmocka_unit_test(invariance),
        cmocka_unit_test(large),          cmocka_unit_test(large_gradients),               cmocka_unit_test(draws_invert_the_distribution),
        cmocka_unit_test(draws_at_edges), cmocka_unit_test(draws_follow_the_probabilities),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
