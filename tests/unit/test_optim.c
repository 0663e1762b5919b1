/* Ops over all trained tensors: norm and clip, AdamW, SGD, the trail. Against figures of PyTorch 2, against double
 * loops, and to the bit across threads, instruction sets and a replica's neighbours. */
#include "../grad/opcase.h"

#include <setjmp.h>
#include <cmocka.h>

#include <time.h>

static uint64_t seed;

static tm_device *device(int threads, tm_isa isa)
{
    tm_device *d = NULL;
    tm_error err;
    return tm_cpu_device_create(threads, isa, &d, &err) == TM_OK ? d : NULL;
}

static const float start[4] = {0.5f, -1.25f, 2.0f, 0.0078125f}, slope[4] = {0.1f, -0.2f, 0.3f, 0};

/* Figures: torch.optim on [0.5, -1.25, 2, 2^-7], gradients s * [0.1, -0.2, 0.3, 0] with s = 1, -2, 3. */
static void as_pytorch(void **state)
{
    (void)state;
    static const float after_adamw[4] = {0.48764559626579285f, -1.2353978157043457f, 1.9831501245498657f, 0.007789086550474167f},
                       after_sgd[4] = {0.4952891767024994f, -1.2391771078109741f, 1.9830650091171265f, 0.00776870921254158f};
    tm_device *d = device(2, TM_ISA_AUTO);
    for (int sgd = 0; sgd < 2; sgd++) {
        float value[4], grad[4], m[4] = {0}, v[4] = {0};
        memcpy(value, start, sizeof value);
        tm_trained t = {tm_tensor_make(value, TM_F32, 2, 2), tm_tensor_make(grad, TM_F32, 2, 2), tm_tensor_make(m, TM_F32, 2, 2),
                        sgd ? tm_tensor_none() : tm_tensor_make(v, TM_F32, 2, 2), 0.1f, 1, 0, 0, 0};
        for (int step = 1; step <= 3; step++) {
            tm_step_params s = {.lr = 0.01, .bias1 = 1 - pow(0.9, step), .bias2 = 1 - pow(0.99, step), .clip = 1};
            for (int i = 0; i < 4; i++)
                grad[i] = slope[i] * (float)(step == 2 ? -2 : step);
            if (sgd) {
                TM_RUN(d, sgd, 1, &t, 0.9, step == 1, &s);
                continue;
            }
            TM_RUN(d, grad_norm, 1, &t, 1, 0.5, &s);
            assert_true(fabs(s.grad_norm - 0.37416577339172363 * step) < 1e-7);
            assert_true(fabs(s.clip - fmin(1, 0.5 / (s.grad_norm + 1e-6))) < 1e-12);
            TM_RUN(d, adamw, 1, &t, 0.9, 0.99, 1e-8, &s);
        }
        for (int i = 0; i < 4; i++)
            assert_true(fabsf(value[i] - (sgd ? after_sgd : after_adamw)[i]) <= 1.2e-7f * fabsf(value[i]));
    }
    tm_device_destroy(d);
}

static void trail_is_the_documented_sum(void **state)
{
    (void)state;
    double wide[4];
    uint16_t narrow[4];
    tm_dtype_convert(wide, TM_F64, start, TM_F32, 4);
    tm_dtype_convert(narrow, TM_BF16, start, TM_F32, 4);
    tm_trained t[3] = {{.value = tm_tensor_make((void *)start, TM_F32, 1, 4)},
                       {.value = tm_tensor_make(narrow, TM_BF16, 2, 2)},
                       {.value = tm_tensor_make(wide, TM_F64, 4, 1)}};
    static const tm_isa isas[] = {TM_ISA_SCALAR, TM_ISA_F64, TM_ISA_AVX2, TM_ISA_AVX512};
    for (int i = 0; i < 4; i++) {
        tm_device *d = device(2, isas[i]);
        if (!d)
            continue;
        uint64_t out[3];
        TM_RUN(d, trail, 3, t, out);
        assert_true(out[0] == 0x154bc0ad3fced909u && out[1] == 0xf59e501cacb77643u && out[2] == 0x49ff5449c819a97au);
        tm_device_destroy(d);
    }
}

/* --- Many tensors of several replicas --- */

enum { TENSORS = 9, REPLICAS = 3 };

typedef struct set {
    tm_trained t[TENSORS];
    int64_t n;
    tm_step_params step[REPLICAS];
} set;

static tm_tensor vector(int64_t n, rng *r, double scale)
{
    float *p = malloc(sizeof(float) * (size_t)(n + 1));
    for (int64_t i = 0; i < n; i++)
        p[i] = (float)(rng_normal(r) * scale);
    return tm_tensor_make(p, TM_F32, 1, n);
}

/* Tensor i belongs to replica i % 3; only `replica` when it is not negative. Values depend on i alone. */
static set set_make(int replica)
{
    static const int64_t sizes[TENSORS] = {1, 15, 4096, 4097, 17000, 0, 33, 8192, 100};
    set s = {0};
    for (int i = 0; i < TENSORS; i++) {
        rng r = {seed + (uint64_t)i};
        tm_trained t = {vector(sizes[i], &r, 1), vector(sizes[i], &r, 0.01), vector(sizes[i], &r, 0.01),
                        vector(sizes[i], &r, 0.001), i % 2 ? 0.1f : 0, i == 4 ? 16 : 1, replica < 0 ? i % REPLICAS : 0, 0, 0};
        for (int64_t k = 0; k < sizes[i]; k++)
            ((float *)t.v.data)[k] = fabsf(((float *)t.v.data)[k]);
        if (replica < 0 || i % REPLICAS == replica) {
            s.t[s.n++] = t;
            continue;
        }
        free(t.value.data);
        free(t.grad.data);
        free(t.m.data);
        free(t.v.data);
    }
    for (int k = 0; k < REPLICAS; k++)
        s.step[k] = (tm_step_params){.lr = 1e-3 * (1 + (replica < 0 ? k : replica)), .bias1 = 0.19, .bias2 = 0.002};
    return s;
}

static void set_free(set *s)
{
    for (int64_t i = 0; i < s->n; i++) {
        free(s->t[i].value.data);
        free(s->t[i].grad.data);
        free(s->t[i].m.data);
        free(s->t[i].v.data);
    }
}

/* Norm, AdamW and SGD; out[i]: trail of tensor i after each. */
static void set_run(set *s, tm_device *d, int replicas, uint64_t out[2][TENSORS])
{
    TM_RUN(d, grad_norm, s->n, s->t, replicas, 0.8, s->step);
    TM_RUN(d, adamw, s->n, s->t, 0.9, 0.999, 1e-8, s->step);
    TM_RUN(d, trail, s->n, s->t, out[0]);
    TM_RUN(d, sgd, s->n, s->t, 0.9, false, s->step);
    TM_RUN(d, trail, s->n, s->t, out[1]);
}

static void against_double_loops(void **state)
{
    (void)state;
    tm_device *d = device(2, TM_ISA_AUTO);
    set s = set_make(-1), before = set_make(-1);
    TM_RUN(d, grad_norm, s.n, s.t, REPLICAS, 0.8, s.step);
    for (int r = 0; r < REPLICAS; r++) {
        double sum = 0;
        for (int64_t i = 0; i < s.n; i++)
            for (int64_t k = 0; k < s.t[i].value.cols && s.t[i].replica == r; k++)
                sum += pow((double)((float *)s.t[i].grad.data)[k], 2);
        assert_true(fabs(s.step[r].grad_norm - sqrt(sum)) <= 1e-12 * sqrt(sum));
        assert_true(s.step[r].clip == fmin(1, 0.8 / (s.step[r].grad_norm + 1e-6)));
    }
    TM_RUN(d, adamw, s.n, s.t, 0.9, 0.999, 1e-8, s.step);
    for (int64_t i = 0; i < s.n; i++)
        for (int64_t k = 0; k < s.t[i].value.cols; k++) {
            const tm_step_params *p = &s.step[s.t[i].replica];
            double g = (double)((float *)before.t[i].grad.data)[k] * p->clip, m = (double)((float *)before.t[i].m.data)[k];
            double v = (double)((float *)before.t[i].v.data)[k], x = (double)((float *)before.t[i].value.data)[k];
            double lr = p->lr * (double)s.t[i].lr_ratio;
            x *= 1 - lr * (double)s.t[i].weight_decay;
            v = 0.999 * v + 0.001 * g * g;
            double factor = lr / p->bias1 / (sqrt(v) / sqrt(p->bias2) + 1e-8), size = fabs(x) + factor * (fabs(m) + fabs(g));
            x -= factor * (0.9 * m + 0.1 * g); /* single precision rounds the parts, not their difference */
            if (!(fabs((double)((float *)s.t[i].value.data)[k] - x) <= 3e-7 * size))
                fail_msg("seed %llu: tensor %d element %d: %.9g instead of %.9g", (unsigned long long)seed, (int)i, (int)k,
                         (double)((float *)s.t[i].value.data)[k], x);
        }
    set_free(&s);
    set_free(&before);
    tm_device_destroy(d);
}

static void same_bits(void **state)
{
    (void)state;
    static const struct {
        tm_isa isa;
        int threads;
    } ways[] = {{TM_ISA_AVX512, 1}, {TM_ISA_AVX512, 3}, {TM_ISA_AVX2, 2}, {TM_ISA_SCALAR, 8}, {TM_ISA_SCALAR, 1}};
    uint64_t first[2][TENSORS], norms[REPLICAS];
    int done = 0;
    for (int w = 0; w < 5; w++) {
        tm_device *d = device(ways[w].threads, ways[w].isa);
        if (!d)
            continue;
        uint64_t out[2][TENSORS];
        set s = set_make(-1);
        set_run(&s, d, REPLICAS, done ? out : first);
        for (int r = 0; r < REPLICAS; r++) {
            if (done)
                assert_memory_equal(&norms[r], &s.step[r].grad_norm, 8);
            memcpy(&norms[r], &s.step[r].grad_norm, 8);
        }
        if (done++)
            assert_memory_equal(out, first, sizeof first);
        set_free(&s);
        for (int r = 0; r < REPLICAS; r++) { /* each replica alone */
            uint64_t alone[2][TENSORS];
            s = set_make(r);
            set_run(&s, d, 1, alone);
            assert_memory_equal(&norms[r], &s.step[0].grad_norm, 8);
            for (int64_t i = 0; i < s.n; i++)
                assert_true(alone[0][i] == first[0][i * REPLICAS + r] && alone[1][i] == first[1][i * REPLICAS + r]);
            set_free(&s);
        }
        tm_device_destroy(d);
    }
}

/* A gradient that is not a number makes the norm not a number; no clipping when max_norm is 0. */
static void norms_at_the_edge(void **state)
{
    (void)state;
    tm_device *d = device(2, TM_ISA_AUTO);
    float g[3] = {1e30f, 1e30f, 0};
    tm_trained t = {.value = tm_tensor_make(g, TM_F32, 1, 3), .grad = tm_tensor_make(g, TM_F32, 1, 3)};
    tm_step_params s = {0};
    TM_RUN(d, grad_norm, 1, &t, 1, 0, &s);
    assert_true(s.clip == 1 && fabs(s.grad_norm - sqrt(2) * (double)1e30f) < 1e20); /* squares do not overflow */
    g[1] = NAN;
    TM_RUN(d, grad_norm, 1, &t, 1, 1, &s);
    assert_true(isnan(s.grad_norm) && isnan(s.clip));
    TM_RUN(d, grad_norm, 0, &t, 1, 1, &s);
    assert_true(s.grad_norm == 0 && s.clip == 1);
    tm_device_destroy(d);
}

/* Gradients of a replica times its own factor; a replica without a finite norm is left as it was by both optimisers. */
static void unscaled_and_skipped(void **state)
{
    (void)state;
    for (int isa = TM_ISA_AUTO; isa <= TM_ISA_AVX512; isa++) {
        tm_device *d = device(2, (tm_isa)isa);
        if (!d)
            continue;
        set s = set_make(-1), before = set_make(-1);
        for (int r = 0; r < REPLICAS; r++)
            s.step[r].unscale = 1.0 / (1 << (4 * r));
        TM_RUN(d, unscale, s.n, s.t, s.step);
        for (int64_t i = 0; i < s.n; i++)
            for (int64_t k = 0; k < s.t[i].value.cols; k++)
                assert_true(((float *)s.t[i].grad.data)[k] == ((float *)before.t[i].grad.data)[k] / (float)(1 << (4 * s.t[i].replica)));
        ((float *)s.t[1].grad.data)[7] = isa % 2 ? INFINITY : NAN; /* of replica 1 */
        uint64_t out[2][TENSORS], was[TENSORS];
        TM_RUN(d, trail, before.n, before.t, was);
        set_run(&s, d, REPLICAS, out);
        for (int64_t i = 0; i < s.n; i++) {
            size_t bytes = (size_t)s.t[i].value.cols * 4;
            bool same = out[0][i] == was[i] && out[1][i] == was[i] && memcmp(s.t[i].m.data, before.t[i].m.data, bytes) == 0 && memcmp(s.t[i].v.data, before.t[i].v.data, bytes) == 0;
            assert_true(same == (s.t[i].replica == 1 || bytes == 0));
        }
        set_free(&s);
        set_free(&before);
        tm_device_destroy(d);
    }
}

/* Weights in bf16 that move by a quarter of their spacing: right in the mean, one of two neighbours each, the same bits on
 * every instruction set, others in the next step and in another tensor. */
static void rounded_at_random(void **state)
{
    (void)state;
    enum { N = 100003 };
    uint16_t *first = malloc(N * 2), *value = malloc(N * 2);
    float *grad = malloc(N * 4), *m = malloc(N * 4), *v = malloc(N * 4);
    static const tm_isa isas[] = {TM_ISA_SCALAR, TM_ISA_AVX2, TM_ISA_AVX512, TM_ISA_AUTO, TM_ISA_AUTO};
    for (int way = 0; way < 5; way++) {
        tm_device *d = device(1 + way, isas[way]);
        if (!d)
            continue;
        for (int i = 0; i < N; i++) {
            value[i] = tm_f32_to_bf16(i % 2 ? -1 : 1);
            grad[i] = i % 2 ? -0.5f : 0.5f;
            m[i] = v[i] = 0;
        }
        tm_trained t = {.value = tm_tensor_make(value, TM_BF16, 1, N), .grad = tm_tensor_make(grad, TM_F32, 1, N), .m = tm_tensor_make(m, TM_F32, 1, N),
                        .v = tm_tensor_make(v, TM_F32, 1, N), .lr_ratio = 1, .index = way == 3};
        tm_step_params s = {.lr = 0x1p-10, .bias1 = 0.1, .bias2 = 0.001, .clip = 1, .dropout_key = seed + (way == 4)};
        TM_RUN(d, adamw, 1, &t, 0.9, 0.999, 1e-8, &s);
        double sum = 0;
        for (int i = 0; i < N; i++) {
            float x = tm_bf16_to_f32(value[i]) * (i % 2 ? -1 : 1);
            assert_true(x == 1 || x == 1 - 0x1p-8f);
            sum += (double)x;
        }
        double right = N * (1 - 0x1p-10), deviation = sqrt(N * 0.25 * 0.75) * 0x1p-8;
        if (!(fabs(sum - right) < 6 * deviation))
            fail_msg("seed %llu: the mean is off by %g deviations", (unsigned long long)seed, (sum - right) / deviation);
        if (way == 0)
            memcpy(first, value, N * 2);
        assert_true((memcmp(first, value, N * 2) != 0) == (way > 2));
        tm_device_destroy(d);
    }
    free(first);
    free(value);
    free(grad);
    free(m);
    free(v);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL); /* a seed to repeat */
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_pytorch), cmocka_unit_test(trail_is_the_documented_sum), cmocka_unit_test(against_double_loops),
        cmocka_unit_test(same_bits),  cmocka_unit_test(norms_at_the_edge), cmocka_unit_test(unscaled_and_skipped),
        cmocka_unit_test(rounded_at_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
