/* The matrix product beside the processor's peak and OpenBLAS (when libopenblas is found at run
 * time), in one run. usage: build/cpu/bench/gemm [threads] [avx512|avx2|scalar] [seconds a size] */
#include "device/cpu/gemm.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

typedef void gemm_fn(tm_cpu *cpu, const tm_gemm *g);
gemm_fn tm_scalar_gemm, tm_avx2_gemm, tm_avx512_gemm;
typedef void sgemm_fn(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                      const float *b, int ldb, float beta, float *c, int ldc);

/* With one thread its own processor time, so that a busy machine distorts less. */
static clockid_t clock_used = CLOCK_MONOTONIC;
static double now(void)
{
    struct timespec t;
    clock_gettime(clock_used, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* --- Peak: fused multiply-adds on registers alone --- */

enum { PEAK_ROUNDS = 200000, PEAK_SUMS = 12 };

__attribute__((target("avx512f"))) static float peak_avx512(void)
{
    __m512 s[PEAK_SUMS], x = _mm512_set1_ps(1e-3f), y = _mm512_set1_ps(0.999f);
    for (int i = 0; i < PEAK_SUMS; i++)
        s[i] = _mm512_set1_ps((float)i);
    for (int r = 0; r < PEAK_ROUNDS; r++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            s[i] = _mm512_fmadd_ps(s[i], y, x);
    for (int i = 1; i < PEAK_SUMS; i++)
        s[0] = _mm512_add_ps(s[0], s[i]);
    return _mm512_cvtss_f32(s[0]);
}

__attribute__((target("avx2,fma"))) static float peak_avx2(void)
{
    __m256 s[PEAK_SUMS], x = _mm256_set1_ps(1e-3f), y = _mm256_set1_ps(0.999f);
    for (int i = 0; i < PEAK_SUMS; i++)
        s[i] = _mm256_set1_ps((float)i);
    for (int r = 0; r < PEAK_ROUNDS; r++)
#pragma GCC unroll 12
        for (int i = 0; i < PEAK_SUMS; i++)
            s[i] = _mm256_fmadd_ps(s[i], y, x);
    for (int i = 1; i < PEAK_SUMS; i++)
        s[0] = _mm256_add_ps(s[0], s[i]);
    return _mm256_cvtss_f32(s[0]);
}

static float peak_scalar(void)
{
    float s[PEAK_SUMS];
    for (int i = 0; i < PEAK_SUMS; i++)
        s[i] = (float)i;
    for (int r = 0; r < PEAK_ROUNDS / 16; r++)
        for (int i = 0; i < PEAK_SUMS; i++)
            s[i] = fmaf(s[i], 0.999f, 1e-3f);
    return s[0] + s[PEAK_SUMS - 1];
}

typedef struct isa {
    const char *name;
    tm_isa isa;
    gemm_fn *gemm;
    float (*peak)(void);
    double flops; /* of one call of peak */
} isa;

static const isa isas[] = {
    {"avx512", TM_ISA_AVX512, tm_avx512_gemm, peak_avx512, 32.0 * PEAK_SUMS * PEAK_ROUNDS},
    {"avx2", TM_ISA_AVX2, tm_avx2_gemm, peak_avx2, 16.0 * PEAK_SUMS * PEAK_ROUNDS},
    {"scalar", TM_ISA_SCALAR, tm_scalar_gemm, peak_scalar, 2.0 * PEAK_SUMS * (PEAK_ROUNDS / 16)},
};

static volatile float sink;
static void peak_task(void *context, int64_t task, int thread)
{
    (void)task, (void)thread;
    sink = ((const isa *)context)->peak();
}

static double peak_gflops(const isa *i, tm_cpu *cpu, double seconds)
{
    double best = 1e30, end = now() + seconds;
    int threads = tm_pool_threads(cpu->pool);
    while (now() < end) {
        double t = now();
        tm_pool_run(cpu->pool, peak_task, (void *)i, threads * 8);
        t = now() - t;
        best = t < best ? t : best;
    }
    return i->flops * threads * 8 / best * 1e-9;
}

/* --- Products --- */

typedef struct size {
    const char *kind; /* NT: forward; NN: input gradient; TN: weight gradient */
    int m, n, k;
} size;

static const size sizes[] = {
    {"NT", 1024, 1024, 1024}, {"NN", 1024, 1024, 1024}, {"TN", 1024, 1024, 1024},
    {"NT", 512, 512, 512},
    {"NT", 1024, 576, 576},   {"NT", 1024, 960, 576},   {"NT", 1024, 3072, 576}, {"NT", 1024, 576, 1536},
    {"NN", 1024, 576, 576},   {"NN", 1024, 576, 960},   {"NN", 1024, 576, 3072}, {"NN", 1024, 1536, 576},
    {"TN", 576, 576, 1024},   {"TN", 3072, 576, 1024},  {"TN", 576, 1536, 1024},
    {"NT", 1024, 49152, 576}, {"NN", 1024, 576, 49152}, {"NT", 256, 49152, 576},  {"NN", 256, 576, 49152},
    {"NT", 1, 576, 576},      {"NT", 1, 1536, 576},     {"NT", 1, 49152, 576},   {"NT", 8, 49152, 576},
};

static double best_of(double seconds, void (*call)(void *), void *context)
{
    call(context);
    double best = 1e30, end = now() + seconds;
    do {
        double t = now();
        call(context);
        t = now() - t;
        best = t < best ? t : best;
    } while (now() < end);
    return best;
}

typedef struct run {
    const isa *isa;
    tm_cpu *cpu;
    tm_gemm g;
    sgemm_fn *sgemm;
} run;

static void call_temper(void *context)
{
    run *r = context;
    r->isa->gemm(r->cpu, &r->g);
}

static void call_blas(void *context)
{
    run *r = context;
    const tm_gemm *g = &r->g;
    enum { ROW_MAJOR = 101, PLAIN = 111, TRANSPOSED = 112 };
    r->sgemm(ROW_MAJOR, g->a.k_inner ? PLAIN : TRANSPOSED, g->b.k_inner ? TRANSPOSED : PLAIN, (int)g->m, (int)g->n,
             (int)g->k, 1, g->a.data, (int)g->a.ld, g->b.data, (int)g->b.ld, 0, g->c, (int)g->ldc);
}

static float *random_floats(int64_t n)
{
    float *x = aligned_alloc(4096, (size_t)(n * 4 + 4095) / 4096 * 4096);
    uint32_t s = 12345;
    for (int64_t i = 0; x && i < n; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(s >> 8) * 0x1p-23f - 1;
    }
    return x;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    const isa *chosen = NULL;
    for (size_t i = 0; i < sizeof isas / sizeof *isas && !chosen; i++)
        if (argc > 2 ? strcmp(argv[2], isas[i].name) == 0 : isas[i].isa == TM_ISA_AVX512)
            chosen = &isas[i];
    double seconds = argc > 3 ? atof(argv[3]) : 0.5;
    tm_device *device;
    tm_error err;
    if (!chosen || tm_cpu_device_create(threads, chosen->isa, &device, &err) != TM_OK) {
        fprintf(stderr, "gemm: %s\n", chosen ? err.message : "unknown instruction set");
        return 2;
    }
    if (tm_pool_threads(tm_cpu_of(device)->pool) == 1)
        clock_used = CLOCK_THREAD_CPUTIME_ID;
    run r = {.isa = chosen, .cpu = tm_cpu_of(device)};
    if (chosen->isa == TM_ISA_AVX512) /* OpenBLAS takes chips newer than itself for a Haswell */
        setenv("OPENBLAS_CORETYPE", "SkylakeX", 1);
    unsetenv("OPENBLAS_L2_SIZE");
    void *blas = dlopen("libopenblas.so.0", RTLD_NOW);
    if (blas) {
        r.sgemm = (sgemm_fn *)dlsym(blas, "cblas_sgemm");
        void (*set_threads)(int) = (void (*)(int))dlsym(blas, "openblas_set_num_threads");
        set_threads(tm_pool_threads(r.cpu->pool));
    }
    double peak = peak_gflops(chosen, r.cpu, 1.0);
    printf("%s; peak %.1f GFLOP/s (fused multiply-adds on registers)\n", device->detail, peak);
    printf("%-22s %10s %8s %10s %8s %8s\n", "m x n x k", "GFLOP/s", "of peak", "OpenBLAS", "ratio", "GB/s of B");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t m = sizes[i].m, n = sizes[i].n, k = sizes[i].k;
        float *a = random_floats(m * k), *b = random_floats(n * k), *c = random_floats(m * n);
        bool ak = sizes[i].kind[0] == 'N', bk = sizes[i].kind[1] == 'T';
        if (strcmp(sizes[i].kind, "TN") == 0)
            ak = bk = false;
        r.g = (tm_gemm){.m = m, .n = n, .k = k, .a = {a, TM_F32, ak ? k : m, ak}, .b = {b, TM_F32, bk ? k : n, bk},
                        .c = c, .c_dtype = TM_F32, .ldc = n};
        double flops = 2.0 * (double)m * (double)n * (double)k * 1e-9;
        double ours = best_of(seconds, call_temper, &r), theirs = r.sgemm ? best_of(seconds, call_blas, &r) : NAN;
        printf("%s %6ldx%ldx%ld%*s %10.1f %8.2f %10.1f %8.2f %8.1f\n", sizes[i].kind, (long)m, (long)n, (long)k,
               (int)(12 - snprintf(NULL, 0, "%ldx%ld", (long)n, (long)k)), "", flops / ours, flops / ours / peak,
               flops / theirs, theirs / ours, 4e-9 * (double)n * (double)k / ours);
        fflush(stdout);
        free(a), free(b), free(c);
    }
    tm_device_destroy(device);
    return 0;
}
