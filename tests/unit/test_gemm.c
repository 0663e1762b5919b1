/* The matrix product: its bits are those of the definition (blocks of fused multiply-add chains),
 * on every instruction set, for every thread count, whatever rows and columns stand beside. */
#include "device/cpu/gemm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>

typedef void gemm_fn(tm_cpu *cpu, const tm_gemm *g);
gemm_fn tm_scalar_gemm, tm_f64_gemm;
#ifdef __x86_64__
gemm_fn tm_avx2_gemm, tm_avx512_gemm;
#endif

static const struct isa {
    const char *name;
    tm_isa isa;
    gemm_fn *gemm;
} isas[] = {
    {"scalar", TM_ISA_SCALAR, tm_scalar_gemm},
#ifdef __x86_64__
    {"avx2", TM_ISA_AVX2, tm_avx2_gemm}, {"avx512", TM_ISA_AVX512, tm_avx512_gemm},
#endif
};
enum { ISAS = sizeof isas / sizeof *isas };

static uint64_t seed = 20240726;
static uint32_t random_word(void)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 32);
}
static int random_int(int from, int to) { return from + (int)(random_word() % (uint32_t)(to - from + 1)); }
static float random_float(void) { return (float)(random_word() >> 8) * 0x1p-23f - 1; }

/* An array of n elements, with a rim around it that must not be written. */
enum { RIM = 64 };
typedef struct array {
    char *base, *data;
    tm_dtype dtype;
    int64_t n;
} array;

static array array_make(tm_dtype dtype, int64_t n)
{
    array a = {.dtype = dtype, .n = n};
    size_t bytes = (size_t)tm_dtype_bytes(dtype, n);
    a.base = malloc(bytes + 2 * RIM);
    assert_non_null(a.base);
    memset(a.base, 0x5a, bytes + 2 * RIM);
    a.data = a.base + RIM;
    for (int64_t i = 0; i < n; i++) {
        float x = random_float();
        tm_dtype_convert(a.data + tm_dtype_bytes(dtype, i), dtype, &x, TM_F32, 1);
    }
    return a;
}

static void array_free(array *a)
{
    size_t bytes = (size_t)tm_dtype_bytes(a->dtype, a->n);
    for (int i = 0; i < RIM; i++) {
        assert_int_equal(a->base[i], 0x5a);
        assert_int_equal(a->data[bytes + (size_t)i], 0x5a);
    }
    free(a->base);
}

static float element(const void *data, tm_dtype dtype, int64_t i)
{
    float x;
    tm_dtype_convert(&x, TM_F32, (const char *)data + tm_dtype_bytes(dtype, i), dtype, 1);
    return x;
}
static float factor(const tm_gemm_factor *f, int64_t i, int64_t k)
{
    return element(f->data, f->dtype, f->k_inner ? i * f->ld + k : k * f->ld + i);
}

/* --- The arithmetic of bf16 products, in software --- */

static float flushed(float x) { return fabsf(x) < 0x1p-126f ? copysignf(0, x) : x; }

/* a b + c rounded once to 24 bits of any exponent; zero where that is below 2^-126. */
static float fma_flushed(float a, float b, float c)
{
    a = flushed(a), b = flushed(b), c = flushed(c);
    float x = fmaf(a, b, c);
    long double exact = (long double)a * b + c; /* 64 bits are enough to tell the side of 2^-126 - 2^-151 */
    return fabsl(exact) < 0x1p-126L - 0x1p-151L ? copysignf(0, x) : x;
}

static float bf16_factor(const tm_gemm_factor *f, int64_t i, int64_t k)
{
    return tm_bf16_to_f32(tm_f32_to_bf16(factor(f, i, k)));
}

static float bf16_block(const tm_gemm *g, int64_t m, int64_t n, int64_t k0, int64_t k1)
{
    float sum = 0;
    for (int64_t k = k0; k < k1; k += 2) {
        bool two = k + 1 < k1;
        sum = fma_flushed(two ? bf16_factor(&g->a, m, k + 1) : 0, two ? bf16_factor(&g->b, n, k + 1) : 0, sum);
        sum = fma_flushed(bf16_factor(&g->a, m, k), bf16_factor(&g->b, n, k), sum);
    }
    return sum;
}

/* The definition, straight; double_sum gets the same sum in double. */
static float expected(const tm_gemm *g, const void *old_c, int64_t m, int64_t n, double *double_sum, double *size)
{
    float c = g->accumulate ? element(old_c, g->c_dtype, m * g->ldc + n) : 0;
    *double_sum = c;
    *size = fabs((double)c);
    int64_t blocks = g->block ? g->blocks : (g->k + TM_GEMM_KC - 1) / TM_GEMM_KC;
    for (int64_t i = 0; i < blocks; i++) {
        int64_t k0 = g->block ? g->block[i] : i * TM_GEMM_KC;
        int64_t k1 = g->block ? g->block[i + 1] : k0 + TM_GEMM_KC < g->k ? k0 + TM_GEMM_KC : g->k;
        float sum = 0;
        for (int64_t k = k0; k < k1; k++) {
            float a = factor(&g->a, m, k), b = factor(&g->b, n, k);
            sum = fmaf(a, b, sum);
            *double_sum += (double)a * b;
            *size += fabs((double)a * b);
        }
        if (g->bf16) {
            sum = bf16_block(g, m, n, k0, k1);
            c = i == 0 && !g->accumulate ? sum : flushed(flushed(c) + sum);
            continue;
        }
        c = i == 0 && !g->accumulate ? sum : c + sum;
    }
    if (g->bias.data) {
        float bias = element(g->bias.data, g->bias.dtype, n);
        c += bias;
        *double_sum += bias;
        *size += fabs((double)bias);
    }
    return c;
}

static tm_dtype random_dtype(bool f16)
{
    static const tm_dtype types[] = {TM_F32, TM_F32, TM_BF16, TM_F16};
    return types[random_int(0, f16 ? 3 : 2)];
}

typedef struct problem {
    tm_gemm g;
    array a, b, c, bias;
    int32_t block[40];
    bool wild; /* numbers of any size */
} problem;

static void problem_make(problem *p, int m, int n, int k, bool ragged, bool bf16)
{
    uint64_t start = seed;
    *p = (problem){.g = {.m = m, .n = n, .k = k, .accumulate = random_int(0, 1)}};
    tm_gemm *g = &p->g;
    g->a.k_inner = random_int(0, 1);
    g->b.k_inner = random_int(0, 1);
    g->bf16 = bf16;
    g->a.ld = (g->a.k_inner ? k : m) + random_int(0, 1) * random_int(1, 20);
    g->b.ld = (g->b.k_inner ? k : n) + random_int(0, 1) * random_int(1, 20);
    g->ldc = n + random_int(0, 1) * random_int(1, 20);
    g->a.dtype = random_dtype(false);
    g->b.dtype = random_dtype(true);
    g->c_dtype = random_dtype(false);
    p->a = array_make(g->a.dtype, g->a.ld * (g->a.k_inner ? m - 1 : k - 1) + (g->a.k_inner ? k : m));
    p->b = array_make(g->b.dtype, g->b.ld * (g->b.k_inner ? n - 1 : k - 1) + (g->b.k_inner ? k : n));
    p->c = array_make(g->c_dtype, g->ldc * (m - 1) + n);
    p->bias = array_make(TM_F32, n);
    g->a.data = p->a.data;
    g->b.data = p->b.data;
    if (random_int(0, 2) == 0)
        g->bias = tm_tensor_make(p->bias.data, TM_F32, 1, n);
    if (ragged) {
        for (int at = 0; at < k; g->blocks++) {
            at += random_int(1, g->blocks < 30 ? 256 : TM_GEMM_KC);
            p->block[g->blocks + 1] = at < k ? at : k;
            assert_true(g->blocks < 39);
        }
        g->block = p->block;
    }
    print_message("  %d x %d x %d%s%s, seed %llu\n", m, n, k, ragged ? " ragged" : "", bf16 ? " bf16" : "", (unsigned long long)start);
}

static void problem_free(problem *p)
{
    array_free(&p->a);
    array_free(&p->b);
    array_free(&p->c);
    array_free(&p->bias);
}

static tm_cpu *device(int threads, tm_isa isa)
{
    tm_device *d;
    tm_error err;
    return tm_cpu_device_create(threads, isa, &d, &err) == TM_OK ? tm_cpu_of(d) : NULL;
}

/* Runs p on one device and returns C, fresh. */
static void *run(problem *p, gemm_fn *gemm, tm_cpu *cpu)
{
    size_t bytes = (size_t)tm_dtype_bytes(p->c.dtype, p->c.n);
    array c = array_make(p->c.dtype, p->c.n);
    memcpy(c.data, p->c.data, bytes);
    p->g.c = c.data;
    gemm(cpu, &p->g);
    volatile float small = 0x1p-140f;
    assert_true(small * 2 > 0); /* the caller's arithmetic is as it was */
    void *copy = malloc(bytes);
    assert_non_null(copy);
    memcpy(copy, c.data, bytes);
    array_free(&c);
    return copy;
}

/* Every element, or a sample of large products, equals the definition; padding keeps its bytes. */
static void compare(const problem *p, const void *c)
{
    const tm_gemm *g = &p->g;
    int64_t all = g->m * g->n, step = all * g->k > 3000000 ? all * g->k / 3000000 + 1 : 1;
    for (int64_t i = random_int(0, (int)(step - 1)); i < all; i += step) {
        int64_t m = i / g->n, n = i % g->n, at = m * g->ldc + n;
        double sum, size;
        float want = expected(g, p->c.data, m, n, &sum, &size);
        double near = g->bf16 ? 2e-2 : 1e-5; /* the definition itself is a sum */
        assert_true(p->wild || fabs((double)want - sum) <= near * size + 1e-30);
        if (isnan(want) && isnan(element(c, g->c_dtype, at)))
            continue;
        char rounded[4];
        tm_dtype_convert(rounded, g->c_dtype, &want, TM_F32, 1);
        assert_memory_equal((const char *)c + tm_dtype_bytes(g->c_dtype, at), rounded, tm_dtype_bytes(g->c_dtype, 1));
    }
    for (int64_t m = 0; m + 1 < g->m; m++) {
        int64_t at = tm_dtype_bytes(g->c_dtype, m * g->ldc + g->n);
        assert_memory_equal((const char *)c + at, p->c.data + at, tm_dtype_bytes(g->c_dtype, g->ldc - g->n));
    }
}

static const int shapes[][3] = {
    {1, 1, 1},     {1, 33, 500},  {2, 16, 384},   {5, 31, 385},  {14, 32, 16},    {13, 100, 400}, {57, 129, 770},
    {113, 257, 90}, {60, 300, 17}, {250, 40, 391}, {3, 1000, 64}, {130, 20, 2100}, {70, 130, 4000},
};
enum { SHAPES = sizeof shapes / sizeof *shapes };

/* All instruction sets and thread counts give the bits of the definition. */
static void bits_of_the_definition(void **state)
{
    (void)state;
    static const int threads[] = {1, 2, 3, 8};
    int ran = 0;
    for (size_t i = 0; i < ISAS; i++)
        for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
            tm_cpu *cpu = device(threads[t], isas[i].isa);
            if (!cpu) {
                print_message("skip: no %s on this processor\n", isas[i].name);
                break;
            }
            ran++;
            for (int s = 0; s < SHAPES; s++) {
                problem p;
                bool ragged = random_int(0, 1);
                problem_make(&p, shapes[s][0], shapes[s][1], shapes[s][2], ragged, false);
                void *c = run(&p, isas[i].gemm, cpu);
                compare(&p, c);
                free(c);
                problem_free(&p);
            }
            tm_device_destroy(&cpu->base);
        }
    assert_true(ran >= 4);
}

/* Numbers of any size: around 2^-126, zeros, now and then one that is infinite or none. */
static void make_wild(problem *p)
{
    array *arrays[] = {&p->a, &p->b, &p->c};
    int tiny = random_int(-130, -40);
    for (int k = 0; k < 3; k++)
        for (int64_t i = 0; i < arrays[k]->n; i++) {
            float x = ldexpf(random_float(), k == 2 ? random_int(-130, -120) : k == 1 ? -126 - tiny + random_int(-6, 6) : tiny + random_int(-6, 6));
            uint32_t kind = random_word() % 4096;
            x = kind == 0 ? INFINITY : kind == 1 ? NAN : kind < 300 ? copysignf(0, x) : x;
            tm_dtype_convert(arrays[k]->data + tm_dtype_bytes(arrays[k]->dtype, i), arrays[k]->dtype, &x, TM_F32, 1);
        }
    p->wild = true;
}

/* Products of bf16 factors: the bits of vdpbf16ps on every instruction set, with that instruction and without. */
static void bf16_bits(void **state)
{
    (void)state;
    static const int threads[] = {1, 3};
    for (size_t i = 0; i < ISAS; i++)
        for (size_t t = 0; t < sizeof threads / sizeof *threads; t++) {
            tm_cpu *cpu = device(threads[t], isas[i].isa);
            if (!cpu) {
                print_message("skip: no %s on this processor\n", isas[i].name);
                break;
            }
            bool dot = cpu->bf16_dot;
            print_message("%s: vdpbf16ps %s\n", isas[i].name, dot ? "used" : "not used");
            for (int s = 0; s < 3 * SHAPES; s++) {
                problem p;
                const int *shape = shapes[s % SHAPES];
                problem_make(&p, shape[0], shape[1], shape[2] + random_int(0, 1), random_int(0, 1), true);
                if (s / SHAPES == 1)
                    make_wild(&p);
                cpu->bf16_dot = dot && s / SHAPES != 2;
                void *c = run(&p, isas[i].gemm, cpu);
                compare(&p, c);
                if (cpu->bf16_dot) {
                    cpu->bf16_dot = false;
                    void *other = run(&p, isas[i].gemm, cpu);
                    compare(&p, other);
                    free(other);
                }
                free(c);
                problem_free(&p);
            }
            problem p; /* what follows on the same threads keeps its small numbers */
            problem_make(&p, 150, 130, 40, false, false);
            make_wild(&p);
            void *c = run(&p, isas[i].gemm, cpu);
            compare(&p, c);
            free(c);
            problem_free(&p);
            tm_device_destroy(&cpu->base);
        }
}

/* On factors that are bf16 already, the two arithmetics differ by the rounding of sums alone. */
static void bf16_parity(void **state)
{
    (void)state;
    tm_cpu *cpu = device(2, TM_ISA_AUTO);
    assert_non_null(cpu);
    gemm_fn *gemm = tm_scalar_gemm;
    for (size_t i = 0; i < ISAS; i++)
        if (strncmp(cpu->base.detail, isas[i].name, strlen(isas[i].name)) == 0)
            gemm = isas[i].gemm;
    enum { M = 65, N = 130, K = 1537 };
    array a = array_make(TM_BF16, M * K), b = array_make(TM_BF16, N * K), c[] = {array_make(TM_F32, M * N), array_make(TM_F32, M * N)};
    for (int k = 0; k < 2; k++) {
        tm_gemm g = {.m = M, .n = N, .k = K, .a = {a.data, TM_BF16, K, true}, .b = {b.data, TM_BF16, K, true}, .bf16 = k,
                     .c = c[k].data, .c_dtype = TM_F32, .ldc = N};
        gemm(cpu, &g);
    }
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < M * N; i++) {
        double x = element(c[0].data, TM_F32, i), y = element(c[1].data, TM_F32, i);
        difference += (x - y) * (x - y);
        norm += x * x;
    }
    assert_true(difference > 0); /* another order of sums, or it is not the other arithmetic */
    assert_true(sqrt(difference / norm) < 1e-6);
    array_free(&a);
    array_free(&b);
    array_free(&c[0]);
    array_free(&c[1]);
    tm_device_destroy(&cpu->base);
}

/* More rows and columns than the shared memory holds at once. */
static void larger_than_memory(void **state)
{
    (void)state;
    tm_cpu *cpu = device(2, TM_ISA_AUTO);
    assert_non_null(cpu);
    gemm_fn *gemm = tm_scalar_gemm;
    for (size_t i = 0; i < ISAS; i++)
        if (strncmp(cpu->base.detail, isas[i].name, strlen(isas[i].name)) == 0)
            gemm = isas[i].gemm;
    static const int large[][3] = {{1300, 1200, 2000}, {40, 9000, 2100}, {8000, 70, 401}, {70, 8000, 300}};
    for (size_t s = 0; s < sizeof large / sizeof *large; s++) {
        problem p;
        problem_make(&p, large[s][0], large[s][1], large[s][2], s == 1, s == 2);
        void *c = run(&p, gemm, cpu);
        compare(&p, c);
        free(c);
        problem_free(&p);
    }
    tm_device_destroy(&cpu->base);
}

/* A row has the same bits alone as among others. */
static void rows_alone(void **state)
{
    (void)state;
    tm_cpu *cpu = device(2, TM_ISA_SCALAR);
    assert_non_null(cpu);
    problem p;
    problem_make(&p, 90, 70, 500, false, false);
    p.g.a.k_inner = true;
    p.g.a.ld = 500;
    array_free(&p.a);
    p.a = array_make(p.g.a.dtype, 90 * 500);
    p.g.a.data = p.a.data;
    void *whole = run(&p, tm_scalar_gemm, cpu);
    static const int parts[][2] = {{0, 1}, {89, 1}, {17, 3}, {5, 60}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        problem part = p;
        int64_t at = tm_dtype_bytes(p.g.c_dtype, parts[i][0] * p.g.ldc);
        part.g.m = parts[i][1];
        part.g.a.data = p.a.data + tm_dtype_bytes(p.g.a.dtype, (int64_t)parts[i][0] * 500);
        part.c.data = p.c.data + at;
        part.c.n = (parts[i][1] - 1) * p.g.ldc + p.g.n;
        void *c = run(&part, tm_scalar_gemm, cpu);
        assert_memory_equal(c, (char *)whole + at, tm_dtype_bytes(p.g.c_dtype, part.c.n));
        free(c);
    }
    free(whole);
    problem_free(&p);
    tm_device_destroy(&cpu->base);
}

/* The double build is double all through. */
static void double_build(void **state)
{
    (void)state;
    tm_cpu *cpu = device(2, TM_ISA_F64);
    assert_non_null(cpu);
    assert_int_equal(cpu->base.real, TM_F64);
    enum { M = 37, N = 45, K = 900 };
    array a = array_make(TM_F64, M * K), b = array_make(TM_F64, N * K), c = array_make(TM_F64, M * N);
    tm_gemm g = {.m = M, .n = N, .k = K, .a = {a.data, TM_F64, K, true}, .b = {b.data, TM_F64, K, true},
                 .c = c.data, .c_dtype = TM_F64, .ldc = N};
    tm_f64_gemm(cpu, &g);
    for (int m = 0; m < M; m++)
        for (int n = 0; n < N; n++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += ((double *)a.data)[m * K + k] * ((double *)b.data)[n * K + k];
            assert_true(fabs(((double *)c.data)[m * N + n] - sum) < 1e-12);
        }
    array_free(&a);
    array_free(&b);
    array_free(&c);
    tm_device_destroy(&cpu->base);
}

/* The device counts what it hands out, and refuses an instruction set that is not there. */
static void device_counts(void **state)
{
    (void)state;
    tm_device *d;
    tm_error err;
    assert_int_equal(tm_cpu_device_create(3, TM_ISA_AUTO, &d, &err), TM_OK);
    int64_t base = 3 * (int64_t)TM_CPU_SCRATCH_BYTES + TM_CPU_SHARED_BYTES;
    assert_int_equal(d->used_bytes, base);
    assert_int_equal(d->real, TM_F32);
    void *p;
    assert_int_equal(tm_device_alloc(d, 1000, &p, &err), TM_OK);
    assert_int_equal((uintptr_t)p % TM_ALIGN, 0);
    assert_int_equal(d->used_bytes, base + 1000);
    tm_device_release(d, p, 1000);
    assert_int_equal(d->used_bytes, base);
    assert_int_equal(d->peak_bytes, base + 1000);
    assert_int_equal(tm_device_alloc(d, INT64_MAX / 2, &p, &err), TM_NO_MEMORY);
    tm_device_destroy(d);
    assert_int_equal(tm_cpu_device_create(1, (tm_isa)99, &d, &err), TM_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bits_of_the_definition), cmocka_unit_test(bf16_bits), cmocka_unit_test(bf16_parity),
        cmocka_unit_test(larger_than_memory), cmocka_unit_test(rows_alone),
        cmocka_unit_test(double_build), cmocka_unit_test(device_counts),
    };
    return cmocka_run_group_tests_name("gemm", tests, NULL, NULL);
}
