/* Ops of the CPU device: values against the double reference in double, f32 and bf16; bits across
 * instruction sets, threads, packing and, for attention, a key/value cache; edges of single ops. */
#include "../grad/cases.h"

#include <setjmp.h>
#include <cmocka.h>

#include <time.h>

static uint64_t seed;

static tm_device *device(int threads, tm_isa isa)
{
    tm_device *d = NULL;
    tm_error err;
    if (tm_cpu_device_create(threads, isa, &d, &err) != TM_OK)
        return NULL; /* a processor without it */
    return d;
}

/* Largest relative L2 distance of a case's outputs from `want`; gradients from the double device. */
static double worst_distance(const opcase *c, double *const *got, double *const *want, bool gradients)
{
    double worst = 0;
    error_sum e = {0};
    int count = gradients ? c->n_ins : c->n_outs;
    for (int i = 0; i < count; i++) {
        int k = gradients ? c->ins[i].grad : c->outs[i].value;
        bool joint = gradients && c->joint; /* one of the gradients may be exactly 0: their sum is measured */
        if (!joint)
            e = (error_sum){0};
        error_add(&e, got[k], want[k], c->f[k].rows * c->f[k].cols);
        if (joint && i < count - 1)
            continue;
        if (!isnan(worst) && !(error_relative(e) <= worst))
            worst = error_relative(e);
    }
    return worst;
}

static void values(void **state)
{
    (void)state;
    static const types types_f16 = {TM_F32, TM_F32, TM_F16};
    static const struct {
        const char *name;
        tm_isa isa;
        const types *types;
        double forward, backward;
    } modes[] = {{"f64", TM_ISA_F64, &types_f64, 1e-12, 0},
                 {"f32", TM_ISA_AUTO, &types_f32, 1e-6, 4e-6},
                 {"bf16", TM_ISA_AUTO, &types_bf16, 6e-3, 1.2e-2},
                 {"f32, f16 weights", TM_ISA_AUTO, &types_f16, 1e-6, 4e-6}};
    enum { MODES = sizeof modes / sizeof *modes };
    double worst[2][MODES][CASE_KINDS] = {0};
    tm_device *devices[MODES];
    for (int m = 0; m < MODES; m++)
        assert_non_null(devices[m] = device(2, modes[m].isa));
    for (int k = 0; k < CASE_KINDS; k++)
        for (int variant = 0; variant < case_kinds[k].variants; variant++) {
            opcase *c = case_make(&case_kinds[k], variant, seed);
            double **reference = case_values(c), **exact = NULL;
            for (int m = 0; m < MODES; m++) {
                double **got = case_values(c);
                bool clean;
                case_run(c, devices[m], *modes[m].types, false, got, &clean);
                assert_true(clean);
                if (m == 0)
                    c->reference(c, reference); /* reads the hits of the run */
                double forward = worst_distance(c, got, reference, false);
                double backward = m && c->backward ? worst_distance(c, got, exact, true) : 0;
                if (!(forward <= modes[m].forward))
                    fail_msg("%s, %s: forward is %g off", c->note, modes[m].name, forward);
                if (!(backward <= modes[m].backward))
                    fail_msg("%s, %s: backward is %g off", c->note, modes[m].name, backward);
                worst[0][m][k] = fmax(worst[0][m][k], forward);
                worst[1][m][k] = fmax(worst[1][m][k], backward);
                if (m == 0)
                    exact = got;
                else
                    values_free(got);
            }
            values_free(reference);
            values_free(exact);
            case_free(c);
        }
    for (int k = 0; k < CASE_KINDS; k++)
        printf("%-10s forward f64 %.0e f32 %.1e bf16 %.1e, backward f32 %.1e bf16 %.1e\n", case_kinds[k].name,
               worst[0][0][k], worst[0][1][k], worst[0][2][k], worst[1][1][k], worst[1][2][k]);
    for (int m = 0; m < MODES; m++)
        tm_device_destroy(devices[m]);
}

/* One hash over instruction sets, threads and packing, f32 and bf16. */
static void bits(void **state)
{
    (void)state;
    static const struct {
        tm_isa isa;
        int threads;
        bool split;
    } ways[] = {{TM_ISA_AVX512, 1, false}, {TM_ISA_AVX512, 2, false}, {TM_ISA_AVX512, 3, true}, {TM_ISA_AVX512, 8, false},
                {TM_ISA_AVX2, 1, true},    {TM_ISA_AVX2, 2, false},   {TM_ISA_AVX2, 8, false},  {TM_ISA_SCALAR, 1, false},
                {TM_ISA_SCALAR, 2, true},  {TM_ISA_SCALAR, 3, false}};
    enum { WAYS = sizeof ways / sizeof *ways };
    static uint64_t hashes[2][CASE_KINDS][16];
    int devices = 0;
    for (int w = 0; w < WAYS; w++) {
        tm_device *d = device(ways[w].threads, ways[w].isa);
        if (!d)
            continue;
        for (int k = 0; k < CASE_KINDS; k++)
            for (int variant = 0; variant < case_kinds[k].variants; variant++)
                for (int t = 0; t < 2; t++) {
                    opcase *c = case_make(&case_kinds[k], variant, seed);
                    bool clean;
                    uint64_t hash = case_run(c, d, t ? types_bf16 : types_f32, ways[w].split && c->splits, NULL, &clean);
                    assert_true(clean);
                    if (!devices)
                        hashes[t][k][variant] = hash;
                    else if (hashes[t][k][variant] != hash)
                        fail_msg("%s, %s: other bits on %s%s", c->note, t ? "bf16" : "f32", d->detail,
                                 ways[w].split ? ", example by example" : "");
                    case_free(c);
                }
        tm_device_destroy(d);
        devices++;
    }
    assert_true(devices >= 3);
}

/* The functions of math.h on any float there is, through the activations: one instruction set scales by
 * powers of two unlike the others. */
static void bits_of_functions(void **state)
{
    (void)state;
    enum { ROWS = 64, COLS = 1024, N = ROWS * COLS };
    static const tm_isa isas[] = {TM_ISA_SCALAR, TM_ISA_AVX2, TM_ISA_AVX512};
    static float gate_up[ROWS][2 * COLS], h[3][N], dgate_up[3][2 * N], dh[N], again[N];
    int32_t chunk[2] = {0, ROWS};
    tm_rows rows = {.n = ROWS, .replicas = 1, .chunks = 1, .chunk = chunk, .group = chunk};
    rng r = {seed};
    for (int act = 0; act < 3; act++) {
        for (int i = 0; i < N; i++) {
            uint32_t any = (uint32_t)rng_next(&r);
            if (i & 1) /* of moderate size, where the functions bend */
                any = (any & 0x83ffffffu) | 0x3c000000u;
            memcpy(&gate_up[i / COLS][i % COLS], &any, 4);
            gate_up[i / COLS][COLS + i % COLS] = dh[i] = 1;
        }
        for (int k = 0; k < 3; k++) {
            tm_device *d = device(2, isas[k]);
            if (!d)
                continue;
            tm_tensor in = tm_tensor_make(gate_up, TM_F32, ROWS, 2 * COLS), g = tm_tensor_make(dh, TM_F32, ROWS, COLS);
            TM_RUN(d, glu_forward, &rows, (tm_activation)act, in, tm_tensor_make(h[k], TM_F32, ROWS, COLS));
            TM_RUN(d, glu_backward, &rows, (tm_activation)act, in, g, tm_tensor_make(dgate_up[k], TM_F32, ROWS, 2 * COLS), tm_tensor_make(again, TM_F32, ROWS, COLS));
            assert_memory_equal(again, h[k], sizeof again);
            for (int i = 0; i < N; i++)
                if (memcmp(&h[k][i], &h[0][i], 4) != 0 && !(isnan(h[k][i]) && isnan(h[0][i])))
                    fail_msg("activation %d of %a: %a, scalar %a", act, (double)gate_up[i / COLS][i % COLS], (double)h[k][i],
                             (double)h[0][i]);
            for (int i = 0; i < 2 * N; i++)
                if (memcmp(&dgate_up[k][i], &dgate_up[0][i], 4) != 0 && !(isnan(dgate_up[k][i]) && isnan(dgate_up[0][i])))
                    fail_msg("slope of activation %d: %a, scalar %a", act, (double)dgate_up[k][i], (double)dgate_up[0][i]);
            tm_device_destroy(d);
        }
    }
}

/* Logits with a cap; rows beyond the given ones stay. */
static void softcap(void **state)
{
    (void)state;
    enum { ROWS = 3, COLS = 37 };
    tm_device *d = device(2, TM_ISA_AUTO);
    rng r = {seed};
    float x[ROWS][COLS], y[ROWS][COLS];
    for (int i = 0; i < ROWS * COLS; i++)
        y[i / COLS][i % COLS] = x[i / COLS][i % COLS] = (float)(40 * rng_normal(&r));
    TM_RUN(d, softcap, 2, 30, tm_tensor_make(y, TM_F32, ROWS, COLS));
    for (int i = 0; i < ROWS * COLS; i++) {
        double value = (double)x[i / COLS][i % COLS], want = i / COLS < 2 ? 30 * tanh(value / 30) : value;
        assert_true(fabs((double)y[i / COLS][i % COLS] - want) <= 4e-6 * fabs(want));
    }
    tm_device_destroy(d);
}

/* The first of the largest, as the rule says it: what is not a number is below everything, and above it at the beginning. */
static void most_likely(void **state)
{
    (void)state;
    enum { MOST_ROWS = 9, MOST = 300 };
    static const tm_isa isas[] = {TM_ISA_AUTO, TM_ISA_SCALAR, TM_ISA_AVX2, TM_ISA_F64};
    static const tm_dtype of_logits[] = {TM_F32, TM_BF16, TM_F16};
    static const float values[] = {-INFINITY, -2, -1, -0.0f, 0, 1, 2, 2, INFINITY, NAN};
    static float z[MOST_ROWS * MOST];
    static double stored[MOST_ROWS * MOST];
    rng r = {seed};
    for (int round = 0; round < 60; round++) {
        tm_dtype type = isas[round % 4] == TM_ISA_F64 ? TM_F64 : of_logits[round % 3];
        int64_t rows = rng_in(&r, 1, MOST_ROWS), V = rng_in(&r, 1, MOST), ld = rng_in(&r, V, MOST), kinds = rng_in(&r, 1, 10);
        int32_t got[MOST_ROWS];
        tm_device *d = device(2, isas[round % 4]);
        if (!d)
            continue;
        for (int64_t i = 0; i < rows * ld; i++)
            z[i] = i % ld >= V ? INFINITY : round % 5 ? values[rng_in(&r, 0, kinds - 1)] : (float)rng_normal(&r);
        tm_dtype_convert(stored, type, z, TM_F32, rows * ld);
        tm_tensor logits = {stored, type, rows, V, ld};
        TM_RUN(d, most_likely, rows, logits, got);
        for (int64_t row = 0; row < rows; row++) {
            double line[MOST];
            int64_t want = 0;
            tm_dtype_convert(line, TM_F64, (char *)stored + tm_dtype_bytes(type, row * ld), type, V);
            for (int64_t i = 1; i < V; i++)
                if (!isnan(line[0]) && !isnan(line[i]) && line[i] > line[want])
                    want = i;
            if (got[row] != want)
                fail_msg("row %d of %lld: %d, expected %lld (round %d, seed %llu)", (int)row, (long long)V, got[row], (long long)want, round, (unsigned long long)seed);
        }
        tm_device_destroy(d);
    }
}

/* --- Attention with a cache --- */

static tm_tensor host(int64_t rows, int64_t cols, rng *r)
{
    float *p = malloc(sizeof(float) * (size_t)(rows * cols));
    for (int64_t i = 0; i < rows * cols; i++)
        p[i] = (float)rng_normal(r);
    return tm_tensor_make(p, TM_F32, rows, cols);
}

/* A span computed at once, against the same queries a few at a time with the keys so far. */
static void cache(void **state)
{
    (void)state;
    rng r = {seed};
    tm_device *d = device(2, TM_ISA_AUTO);
    for (int trial = 0; trial < 8; trial++) {
        int32_t D = (int32_t[]){64, 12, 50, 128}[trial % 4], T = (int32_t)rng_in(&r, 70, 200), H = 6, K = 2;
        tm_attention a = {H, K, D, 0.3f, trial & 1 ? 70 : 0, trial & 2 ? 2.0f : 0};
        tm_tensor q = host(T, H * D, &r), k = host(T, K * D, &r), v = host(T, K * D, &r);
        tm_tensor all = host(T, H * D, &r), part = host(T, H * D, &r), lse = host(T, H, &r), lse_part = host(T, H, &r);
        int32_t query[2] = {0, T}, key = 0, keys = T;
        TM_RUN(d, attention_forward, &(tm_spans){1, query, &key, &keys, 0}, &a, q, k, v, all, lse);
        for (int32_t done = 0; done < T;) {
            int32_t n = (int32_t)rng_in(&r, 1, done ? 3 : 40);
            n = n < T - done ? n : T - done;
            query[1] = n;
            keys = done + n;
            TM_RUN(d, attention_forward, &(tm_spans){1, query, &key, &keys, 0}, &a, tm_tensor_rows(q, done, n), k, v,
                   tm_tensor_rows(part, done, n), done % 2 ? tm_tensor_none() : tm_tensor_rows(lse_part, done, n));
            if (done % 2 == 0)
                assert_memory_equal((float *)lse_part.data + done * H, (float *)lse.data + done * H, (size_t)(4 * n * H));
            done += n;
        }
        assert_memory_equal(all.data, part.data, sizeof(float) * (size_t)(T * H * D));
        tm_tensor *mine[] = {&q, &k, &v, &all, &part, &lse, &lse_part};
        for (int i = 0; i < 7; i++)
            free(mine[i]->data);
    }
    tm_device_destroy(d);
}

/* One task for a whole span, or a task for each tile and block: the same bits (threads decide). */
static void backward_ways(void **state)
{
    (void)state;
    uint64_t first = 0;
    for (int way = 0; way < 2; way++) {
        opcase *c = malloc(sizeof *c);
        case_init(c, "attention", seed);
        attention_case(c, 0);
        int32_t length[] = {300, 77};
        opcase *fresh = malloc(sizeof *c);
        case_init(fresh, "attention", seed);
        layout_init(&fresh->layout, 2, length, 1);
        int64_t T = fresh->layout.tokens;
        fresh->attention = (tm_attention){4, 2, 20, 0.2f, 0, 0};
        for (int i = 0; i < c->fields; i++) {
            int64_t cols = i == ATT_K || i == ATT_V || i == ATT_DK || i == ATT_DV ? 40 : i == ATT_LSE || i == ATT_DELTA ? 4 : 80;
            case_field(fresh, c->f[i].name, c->f[i].kind, c->f[i].role, T, cols);
        }
        fresh->forward = attention_forward, fresh->backward = attention_backward;
        tm_device *d = device(way ? 8 : 1, TM_ISA_AUTO);
        bool clean;
        uint64_t hash = case_run(fresh, d, types_f32, false, NULL, &clean);
        assert_true(clean);
        if (way)
            assert_true(hash == first);
        first = hash;
        tm_device_destroy(d);
        case_free(c);
        case_free(fresh);
    }
}

/* --- Single ops --- */

static void cast_axpy_fill(void **state)
{
    (void)state;
    rng r = {seed};
    tm_device *d = device(2, TM_ISA_AUTO);
    tm_tensor x = host(7, 33, &r), y = host(7, 33, &r), z = host(7, 33, &r);
    uint16_t half[7 * 40];
    for (int i = 0; i < 7 * 33; i++)
        ((float *)x.data)[i] *= 1.2345f;
    static const tm_dtype small[] = {TM_BF16, TM_F16};
    for (int t = 0; t < 2; t++) {
        tm_tensor h = {half, small[t], 7, 33, 40};
        TM_RUN(d, cast, x, h);
        TM_RUN(d, cast, h, z);
        for (int i = 0; i < 7 * 33; i++) {
            float v = ((float *)x.data)[i];
            assert_true(((float *)z.data)[i] == (t ? tm_f16_to_f32(tm_f32_to_f16(v)) : tm_bf16_to_f32(tm_f32_to_bf16(v))));
        }
    }
    TM_RUN(d, cast, y, z);
    TM_RUN(d, axpy, 0.3, x, z);
    for (int i = 0; i < 7 * 33; i++)
        assert_true(((float *)z.data)[i] == fmaf(0.3f, ((float *)x.data)[i], ((float *)y.data)[i]));
    TM_RUN(d, fill, tm_tensor_cols(z, 3, 18), -2.5);
    for (int i = 0; i < 7 * 33; i++)
        assert_true((((float *)z.data)[i] == -2.5f) == (i % 33 >= 3 && i % 33 < 21));
    free(x.data);
    free(y.data);
    free(z.data);
    tm_device_destroy(d);
}

/* Rows without weight give zero gradient whatever is in them; equal teachers give exactly 0; far-off logits stay
 * finite; the first of equal maxima is the argmax. */
static void xent_edges(void **state)
{
    (void)state;
    enum { V = 37, N = 5 };
    tm_device *d = device(1, TM_ISA_AUTO);
    rng r = {seed};
    tm_tensor z = host(N, V, &r), w = host(N, V, &r);
    float *logits = z.data, *teacher = w.data, weight[N] = {1, 0, 1, 1, 1}, tw[N] = {0.5f, 0, 1, 1, 1}, loss[N], kl[N];
    int32_t target[N] = {3, 4, 5, 6, 7}, hit[N];
    memcpy(teacher, logits, V * sizeof(float));                /* row 0: the same */
    logits[V] = NAN;                                           /* row 1: damaged, without weight */
    for (int i = 0; i < V; i++) {
        logits[2 * V + i] = teacher[2 * V + i] = i == 5 ? 3e4f : -3e4f; /* row 2: certain */
        logits[3 * V + i] = i == 6 ? 2 : i == 9 ? 2 : 0;                 /* row 3: a tie, target first */
        logits[4 * V + i] = i == 7 ? 2 : i == 2 ? 2 : i > 30 ? -INFINITY : 0; /* row 4: target second; masked */
        teacher[4 * V + i] = i > 30 ? -INFINITY : teacher[4 * V + i];
    }
    tm_tensor wt = tm_tensor_make(weight, TM_F32, 1, N), twt = tm_tensor_make(tw, TM_F32, 1, N);
    TM_RUN(d, xent, N, z, 0, target, wt, w, twt, tm_tensor_none(), true, tm_tensor_make(loss, TM_F32, 1, N), tm_tensor_make(kl, TM_F32, 1, N), hit);
    assert_true(kl[0] == 0 && loss[2] == 0 && kl[2] == 0 && hit[3] == 1 && hit[4] == 0 && hit[2] == 1);
    for (int i = 0; i < V; i++)
        assert_true(logits[V + i] == 0);
    for (int row = 2; row < N; row++)
        for (int i = 0; i < V; i++)
            assert_true(isfinite(logits[row * V + i]));
    assert_true(isfinite(kl[4]) && kl[4] > 0 && isfinite(loss[4]));
    free(logits);
    free(teacher);
    tm_device_destroy(d);
}

/* A KL far below what single precision adds up: the model is the teacher moved by 1e-4. */
static void xent_small_kl(void **state)
{
    (void)state;
    enum { V = 1000 };
    tm_device *d = device(1, TM_ISA_AUTO);
    rng r = {seed};
    tm_tensor z = host(1, V, &r), w = host(1, V, &r);
    float *logits = z.data, *teacher = w.data, one = 1, loss, kl;
    double a[V], b[V], want_loss, want_kl;
    int32_t target = 1, hit;
    for (int i = 0; i < V; i++) {
        logits[i] = teacher[i] + 1e-4f * (float)rng_normal(&r);
        a[i] = (double)logits[i];
        b[i] = (double)teacher[i];
    }
    tm_tensor wt = tm_tensor_make(&one, TM_F32, 1, 1);
    TM_RUN(d, xent, 1, z, 0, &target, wt, w, tm_tensor_none(), tm_tensor_none(), false, tm_tensor_make(&loss, TM_F32, 1, 1),
           tm_tensor_make(&kl, TM_F32, 1, 1), &hit);
    ref_xent(1, V, a, 0, &target, b, NULL, &want_loss, &want_kl, &hit);
    assert_true(want_kl < 1e-7);
    if (!(fabs((double)kl - want_kl) < 0.01 * want_kl))
        fail_msg("kl %g instead of %g (seed %llu)", (double)kl, want_kl, (unsigned long long)seed);
    free(logits);
    free(teacher);
    tm_device_destroy(d);
}

/* Nothing to do is done: no rows, no examples, no columns. */
static void empty(void **state)
{
    (void)state;
    tm_device *d = device(2, TM_ISA_AUTO);
    int32_t zero[2] = {0, 0};
    tm_rows rows = {.n = 0, .replicas = 1, .chunks = 0, .chunk = zero, .group = zero, .group_chunk = zero};
    float x[64] = {0};
    tm_tensor t = tm_tensor_make(x, TM_F32, 0, 64), w = tm_tensor_make(x, TM_F32, 1, 64);
    TM_RUN(d, rmsnorm_forward, &rows, t, tm_tensor_none(), w, 0, 1e-5f, t, t, t);
    TM_RUN(d, rmsnorm_backward, &rows, t, t, w, 0, t, t, tm_tensor_none());
    TM_RUN(d, glu_forward, &rows, TM_ACT_SILU, t, t);
    TM_RUN(d, gather_rows, 0, zero, t, t);
    TM_RUN(d, xent, 0, t, 0, zero, t, tm_tensor_none(), tm_tensor_none(), tm_tensor_none(), true, t, t, zero);
    tm_attention a = {1, 1, 64, 1, 0, 0};
    TM_RUN(d, attention_forward, &(tm_spans){0, zero, zero, zero, 0}, &a, t, t, t, t, t);
    TM_RUN(d, attention_backward, &(tm_spans){1, zero, zero, zero, 0}, &a, t, t, t, t, t, t, t, t, t, t);
    for (int i = 0; i < 64; i++)
        assert_true(x[i] == 0);
    tm_device_destroy(d);
}

int main(int argc, char **argv)
{
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : (uint64_t)time(NULL); /* a seed to repeat */
    printf("seed %llu\n", (unsigned long long)seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values),        cmocka_unit_test(bits),          cmocka_unit_test(cache),
        cmocka_unit_test(backward_ways), cmocka_unit_test(cast_axpy_fill), cmocka_unit_test(xent_edges),
        cmocka_unit_test(xent_small_kl), cmocka_unit_test(empty),          cmocka_unit_test(bits_of_functions),
        cmocka_unit_test(softcap),       cmocka_unit_test(most_likely),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
