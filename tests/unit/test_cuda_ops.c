/* Ops of the CUDA device, compiled for the processor (tests/emulated): the same bits as the CPU device in
 * f32, whole and example by example; its values in bf16; the values of f32 in f16; and the loader's refusals. */
#include "../grad/cases.h"
#include "../grad/linear_cases.h"

#include <setjmp.h>
#include <cmocka.h>

#include <time.h>
#include <unistd.h>

static uint64_t seed;

/* Without a C++ compiler there is nothing to test. */
static void need_library(void)
{
    if (access(EMULATED, R_OK) != 0) {
        print_message("skipped: no C++ compiler here, so no " EMULATED "\n");
        skip();
    }
}

/* Every case, then some of the matrix products' (which have no variants); and the large ones of keep.c, for bits alone. */
enum { LINEAR_CASES = 15, ALL_KINDS = CASE_KINDS + 1, WITH_LARGE = ALL_KINDS + 1 };
static int variants_of(int which) { return which < CASE_KINDS ? case_kinds[which].variants : which == CASE_KINDS ? LINEAR_CASES : KEEP_LARGE_QUICK; }

static opcase *any_case(int which, int variant, uint64_t from)
{
    if (which < CASE_KINDS)
        return case_make(&case_kinds[which], variant, from);
    opcase *c = malloc(sizeof *c);
    if (which > CASE_KINDS) {
        keep_large_case(c, variant, from);
        return c;
    }
    any_linear_case(c, from + (uint64_t)variant, variant % 3 ? 30 : 300, 300);
    size_t used = strlen(c->note);
    snprintf(c->note + used, sizeof c->note - used, ", %s seed %llu", c->name, (unsigned long long)(from + (uint64_t)variant));
    return c;
}

static void same_bits_as_cpu(void **state)
{
    (void)state;
    need_library();
    tm_device *cpu, *cuda;
    tm_error err;
    assert_int_equal(tm_cpu_device_create(2, TM_ISA_AUTO, &cpu, &err), TM_OK);
    if (tm_cuda_device_create(EMULATED, 0, &cuda, &err) != TM_OK)
        fail_msg("%s", err.message);
    for (int round = 0; round < 3; round++)
        for (int k = 0; k < (round ? ALL_KINDS : WITH_LARGE); k++)
            for (int variant = 0; variant < variants_of(k); variant++) {
                opcase *c = any_case(k, variant, seed + (uint64_t)round * 100);
                double **mine = case_values(c), **theirs = case_values(c);
                bool clean;
                uint64_t want = case_run(c, cpu, types_f32, false, theirs, &clean);
                uint64_t got = case_run(c, cuda, types_f32, false, mine, &clean);
                for (int i = 0; i < c->fields; i++) {
                    error_sum e = {0};
                    error_add(&e, mine[i], theirs[i], c->f[i].rows * c->f[i].cols);
                    if (e.difference != 0)
                        print_message("%s: %s differs by %g\n", c->note, c->f[i].name, error_relative(e));
                }
                assert_true(clean);
                if (got != want)
                    fail_msg("%s: bits differ from the CPU's", c->note);
                if (c->splits && case_run(c, cuda, types_f32, true, NULL, &clean) != want)
                    fail_msg("%s: bits differ example by example", c->note);
                values_free(mine);
                values_free(theirs);
                case_free(c);
            }
    tm_device_destroy(cuda);
    tm_device_destroy(cpu);
}

/* The largest relative distance of a field, and whose; of all gradients as one where the case wants that. */
static double farthest(const opcase *c, double **mine, double **theirs, const char **name)
{
    double most = 0;
    error_sum all = {0};
    for (int i = 0; i < c->fields; i++) {
        const field *f = &c->f[i];
        bool grad = false;
        for (int k = 0; k < c->n_ins; k++)
            grad |= c->ins[k].grad == i;
        if (grad && c->joint) {
            error_add(&all, mine[i], theirs[i], f->rows * f->cols);
            continue;
        }
        double e = distance(mine[i], theirs[i], f->rows * f->cols);
        if (!(e <= most) && !isnan(most)) {
            most = e;
            *name = f->name;
        }
    }
    if (!(error_relative(all) <= most) && !isnan(most)) {
        most = error_relative(all);
        *name = "all gradients";
    }
    return most;
}

/* What may differ: a sum in another order, then a rounding to 16 bits that goes the other way. */
static void sixteen_bits(void **state)
{
    (void)state;
    need_library();
    static const struct {
        types mine, theirs;
        double bound;
    } ways[] = {{{TM_BF16, TM_F32, TM_BF16}, {TM_BF16, TM_F32, TM_BF16}, 1e-3},
                {{TM_BF16, TM_F32, TM_F32}, {TM_BF16, TM_F32, TM_F32}, 1e-3},
                {{TM_F16, TM_F32, TM_F16}, {TM_F32, TM_F32, TM_F32}, 2e-3}};
    tm_device *cpu, *cuda;
    tm_error err;
    assert_int_equal(tm_cpu_device_create(2, TM_ISA_AUTO, &cpu, &err), TM_OK);
    assert_int_equal(tm_cuda_device_create(EMULATED, 0, &cuda, &err), TM_OK);
    for (size_t way = 0; way < sizeof ways / sizeof *ways; way++)
        for (int k = 0; k < ALL_KINDS; k++)
            for (int variant = 0; variant < variants_of(k); variant++) {
                opcase *c = any_case(k, variant, seed + way * 100);
                double **mine = case_values(c), **theirs = case_values(c);
                bool clean;
                case_run(c, cpu, ways[way].theirs, false, theirs, &clean);
                uint64_t hash = case_run(c, cuda, ways[way].mine, false, mine, &clean);
                assert_true(clean);
                const char *name = "";
                double e = farthest(c, mine, theirs, &name);
                if (!(e <= ways[way].bound))
                    fail_msg("%s, %s: %s is off by %g", c->note, tm_dtype_name(ways[way].mine.act), name, e);
                if (c->splits && case_run(c, cuda, ways[way].mine, true, NULL, &clean) != hash)
                    fail_msg("%s, %s: bits differ example by example", c->note, tm_dtype_name(ways[way].mine.act));
                values_free(mine);
                values_free(theirs);
                case_free(c);
            }
    tm_device_destroy(cuda);
    tm_device_destroy(cpu);
}

/* The ops over trained tensors, with weights in f32 and in bf16. */
static void trained_tensors(void **state)
{
    (void)state;
    need_library();
    enum { N = 3, MOST = 9000 };
    tm_device *d[2];
    tm_error err;
    assert_int_equal(tm_cpu_device_create(2, TM_ISA_AUTO, &d[0], &err), TM_OK);
    assert_int_equal(tm_cuda_device_create(EMULATED, 0, &d[1], &err), TM_OK);
    rng r = {seed};
    for (int round = 0; round < 6; round++) {
        tm_step_params step = {.lr = 1e-3, .bias1 = 0.1, .bias2 = 0.001, .dropout_key = rng_next(&r)}, after[2];
        int64_t size[N];
        for (int i = 0; i < N; i++)
            size[i] = rng_in(&r, 1, MOST);
        uint64_t from = rng_next(&r), sums[2][N];
        float *memory[2];
        for (int k = 0; k < 2; k++) {
            tm_trained t[N] = {{.replica = 0}};
            int64_t blocks = 0;
            rng same = {from};
            memory[k] = calloc(N * 4 * (MOST + 4), sizeof(float));
            for (int i = 0; i < N; i++) {
                float *p = memory[k] + i * 4 * (MOST + 4);
                tm_tensor *all[] = {&t[i].value, &t[i].grad, &t[i].m, &t[i].v};
                for (int f = 0; f < 4; f++, p += MOST + 4) {
                    *all[f] = tm_tensor_make(p, TM_F32, 1, size[i]);
                    for (int64_t e = 0; e < size[i]; e++)
                        p[e] = (float)fabs(rng_normal(&same)) * (f == 3 ? 1e-3f : 1);
                }
                if ((i + round) % 2) {
                    t[i].value.dtype = TM_BF16;
                    for (int64_t e = 0; e < size[i]; e++)
                        ((uint16_t *)t[i].value.data)[e] = tm_f32_to_bf16((float)rng_normal(&same));
                }
                t[i].lr_ratio = 1;
                t[i].weight_decay = 0.1f;
                t[i].index = (uint32_t)i;
                t[i].first_block = blocks;
                blocks += (size[i] + TM_TRAINED_BLOCK - 1) / TM_TRAINED_BLOCK;
            }
            after[k] = step;
            TM_RUN(d[k], grad_norm, N, t, 1, 1, &after[k]);
            TM_RUN(d[k], adamw, N, t, 0.9, 0.999, 1e-8, &after[k]);
            TM_RUN(d[k], sgd, N, t, 0.9, false, &after[k]);
            TM_RUN(d[k], trail, N, t, sums[k]);
        }
        if (memcmp(memory[0], memory[1], N * 4 * (MOST + 4) * sizeof(float)) != 0 || memcmp(sums[0], sums[1], sizeof sums[0]) != 0 || memcmp(&after[0], &after[1], sizeof step) != 0)
            fail_msg("seed %llu, round %d: bits differ from the CPU's", (unsigned long long)seed, round);
        free(memory[0]);
        free(memory[1]);
    }
    tm_device_destroy(d[1]);
    tm_device_destroy(d[0]);
}

/* Drawn targets: the CPU's, whatever the logits. */
static void drawn_targets(void **state)
{
    (void)state;
    need_library();
    enum { ROWS = 12, MOST = 3000 };
    static float z[ROWS * MOST];
    uint32_t place[ROWS];
    int32_t got[2][ROWS];
    tm_device *d[2];
    tm_error err;
    assert_int_equal(tm_cpu_device_create(2, TM_ISA_AUTO, &d[0], &err), TM_OK);
    assert_int_equal(tm_cuda_device_create(EMULATED, 0, &d[1], &err), TM_OK);
    rng r = {seed};
    for (int round = 0; round < 20; round++) {
        int64_t V = rng_in(&r, 1, MOST);
        for (int64_t i = 0; i < ROWS * V; i++)
            z[i] = i / V == 3 ? NAN : i / V == 4 && i % 7 ? -INFINITY : (float)(4 * rng_normal(&r));
        for (int i = 0; i < ROWS; i++)
            place[i] = (uint32_t)rng_next(&r);
        uint64_t key = rng_next(&r);
        for (int k = 0; k < 2; k++)
            TM_RUN(d[k], sample_targets, ROWS, tm_tensor_make(z, TM_F32, ROWS, V), round % 2 ? 5 : 0, key, round % 3 ? place : NULL, got[k]);
        assert_int_equal(d[1]->calls->sync(d[1], &err), TM_OK);
        if (memcmp(got[0], got[1], sizeof got[0]) != 0)
            fail_msg("seed %llu, round %d: other targets than the CPU's", (unsigned long long)seed, round);
    }
    tm_device_destroy(d[1]);
    tm_device_destroy(d[0]);
}

/* What does not fit the device's scratch at once is done in rounds: the CPU's bits across their borders. */
static void rounds(void **state)
{
    (void)state;
    need_library();
    enum { ROWS = 52, V = 1200000, OUTS = 400, INS = 20000, R = 2 }; /* room: 49 rows of such logits, 320 of such a matrix */
    tm_device *d[2];
    tm_error err;
    assert_int_equal(tm_cpu_device_create(2, TM_ISA_AUTO, &d[0], &err), TM_OK);
    assert_int_equal(tm_cuda_device_create(EMULATED, 0, &d[1], &err), TM_OK);
    rng r = {seed};
    float *z = malloc((size_t)(OUTS * INS + 5 * R * (INS + OUTS)) * sizeof *z);
    int32_t got[2][ROWS];
    for (int64_t i = 0; i < V; i++)
        z[i] = (float)((i + (int64_t)(seed % 4096)) * 2654435761u % 4096) * (1.0f / 512);
    tm_tensor logits = tm_tensor_make(z, TM_F32, ROWS, V);
    logits.ld = 0; /* one row of them for all, and a draw a row */
    for (int k = 0; k < 2; k++)
        TM_RUN(d[k], sample_targets, ROWS, logits, 0, seed, NULL, got[k]);
    assert_int_equal(d[1]->calls->sync(d[1], &err), TM_OK);
    if (memcmp(got[0], got[1], sizeof got[0]) != 0)
        fail_msg("seed %llu: other targets than the CPU's", (unsigned long long)seed);
    for (int i = 0; i < 4; i++) {
        float *a = z, *b = a + R * INS, *a0 = b + OUTS * R, *b0 = a0 + R * INS, *f = b0 + OUTS * R, *da = f + OUTS * INS, *db[2] = {da + 2 * R * INS, da + 2 * R * INS + OUTS * R};
        for (float *p = a; p < f; p++)
            *p = (float)rng_normal(&r);
        for (int64_t e = 0; e < OUTS * INS; e++)
            f[e] = (float)fabs(rng_normal(&r));
        double penalty[2] = {1, 1};
        for (int k = 0; k < 2; k++) {
            tm_lowrank now = {.a = tm_tensor_make(a, TM_F32, R, INS), .b = tm_tensor_make(b, TM_F32, OUTS, R), .scale = 0.5f}, start = {.a = tm_tensor_make(a0, TM_F32, R, INS), .b = tm_tensor_make(b0, TM_F32, OUTS, R), .scale = 0.5f};
            float *ga = da + k * R * INS;
            for (int64_t e = 0; e < R * INS; e++)
                ga[e] = 1;
            for (int64_t e = 0; e < OUTS * R; e++)
                db[k][e] = -1;
            TM_RUN(d[k], delta_anchor, &now, i % 2 ? &start : NULL, i / 2 ? tm_tensor_make(f, TM_F32, OUTS, INS) : tm_tensor_none(), 0.3, tm_tensor_make(ga, TM_F32, R, INS), tm_tensor_make(db[k], TM_F32, OUTS, R), &penalty[k]);
        }
        assert_int_equal(d[1]->calls->sync(d[1], &err), TM_OK);
        if (memcmp(da, da + R * INS, R * INS * sizeof *da) != 0 || memcmp(db[0], db[1], OUTS * R * sizeof *da) != 0 || penalty[0] != penalty[1])
            fail_msg("seed %llu, delta_anchor %d: bits differ from the CPU's", (unsigned long long)seed, i);
    }
    free(z);
    tm_device_destroy(d[1]);
    tm_device_destroy(d[0]);
}

static void refusals(void **state)
{
    (void)state;
    need_library();
    tm_device *d;
    tm_error err;
    assert_int_equal(tm_cuda_device_create("/nowhere/libtemper-cuda.so", 0, &d, &err), TM_UNSUPPORTED);
    assert_non_null(strstr(err.message, "/nowhere/libtemper-cuda.so"));
    assert_int_equal(tm_cuda_device_create("libm.so.6", 0, &d, &err), TM_UNSUPPORTED);
    assert_non_null(strstr(err.message, "another version"));
    assert_int_equal(tm_cuda_device_create(EMULATED, 7, &d, &err), TM_UNSUPPORTED);
    assert_non_null(strstr(err.message, "GPU 7"));
    assert_null(d);
}

/* What is not there yet ends the run at the next sync, once. */
static void missing_types(void **state)
{
    (void)state;
    need_library();
    tm_device *d;
    tm_error err;
    assert_int_equal(tm_cuda_device_create(EMULATED, 0, &d, &err), TM_OK);
    double wide[4] = {0};
    tm_tensor t = tm_tensor_make(wide, TM_F64, 1, 4);
    TM_RUN(d, fill, t, 1);
    assert_int_equal(d->calls->sync(d, &err), TM_UNSUPPORTED);
    assert_non_null(strstr(err.message, "fill"));
    assert_int_equal(d->calls->sync(d, &err), TM_OK);
    tm_device_destroy(d);
}

static void graphs(void **state)
{
    (void)state;
    need_library();
    tm_device *d;
    tm_error err;
    tm_graph *g;
    float value[3] = {1, 2, 3}, got[3];
    void *x;
    assert_int_equal(tm_cuda_device_create(EMULATED, 0, &d, &err), TM_OK);
    assert_int_equal(d->used_bytes, tm_cuda_own_bytes()); /* what plans for a GPU that is not here count */
    assert_int_equal(tm_device_alloc(d, sizeof value, &x, &err), TM_OK);
    tm_tensor t = tm_tensor_make(x, TM_F32, 1, 3);
    d->calls->upload(d, x, value, sizeof value);
    assert_int_equal(d->calls->graph_begin(d, &err), TM_OK);
    TM_RUN(d, axpy, 1, t, t);
    assert_int_equal(d->calls->graph_end(d, &g, &err), TM_OK);
    assert_int_equal(g->nodes, 1);
    d->calls->download(d, got, x, sizeof got);
    assert_memory_equal(got, value, sizeof got); /* recorded, not run */
    d->calls->graph_run(d, g);
    d->calls->graph_run(d, g);
    d->calls->download(d, got, x, sizeof got);
    for (int i = 0; i < 3; i++)
        assert_true(got[i] == 4 * value[i]);
    d->calls->graph_destroy(d, g);
    /* an upload cannot be part of a graph: the recording fails */
    assert_int_equal(d->calls->graph_begin(d, &err), TM_OK);
    d->calls->upload(d, x, value, sizeof value);
    assert_int_equal(d->calls->graph_end(d, &g, &err), TM_FAILED);
    assert_null(g);
    tm_device_release(d, x, sizeof value);
    tm_device_destroy(d);
}

int main(void)
{
    seed = (uint64_t)time(NULL);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits_as_cpu),
        cmocka_unit_test(sixteen_bits),
        cmocka_unit_test(trained_tensors),
        cmocka_unit_test(drawn_targets), cmocka_unit_test(rounds),
        cmocka_unit_test(refusals),
        cmocka_unit_test(missing_types),
        cmocka_unit_test(graphs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
