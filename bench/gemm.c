/* The matrix product beside the processor's peak and OpenBLAS (when libopenblas is found at run
 * time), in one run. usage: build/cpu/bench/gemm [threads] [avx512|avx2|scalar] [seconds a size] */
#include "device/cpu/gemm.h"

#include "peak.h"

#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

typedef void gemm_fn(tm_cpu *cpu, const tm_gemm *g);
gemm_fn tm_scalar_gemm, tm_avx2_gemm, tm_avx512_gemm;
typedef void sgemm_fn(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                      const float *b, int ldb, float beta, float *c, int ldc);

typedef struct isa {
    const char *name;
    tm_isa isa;
    gemm_fn *gemm;
} isa;

static const isa isas[] = {
    {"avx512", TM_ISA_AVX512, tm_avx512_gemm},
    {"avx2", TM_ISA_AVX2, tm_avx2_gemm},
    {"scalar", TM_ISA_SCALAR, tm_scalar_gemm},
};

/* --- Products --- */

typedef struct size {
    const char *kind; /* NT: forward; NN: input gradient; TN: weight gradient; then the type of all three matrices */
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
    {"NT bf16", 1024, 1024, 1024}, {"NN bf16", 1024, 1024, 1024}, {"TN bf16", 1024, 1024, 1024},
    {"NT bf16", 512, 512, 512},    {"NT bf16", 1024, 3072, 576},  {"NN bf16", 1024, 576, 3072},
    {"NT bf16", 1, 49152, 576},
};

/* Threads of OpenBLAS go on spinning after a call, for some 20 ms. */
enum { TURNS = 4, BLAS_SPINS_US = 50000 };

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

/* In memory of the device, as weights and activations are. */
static float *random_floats(tm_device *d, int64_t n)
{
    void *x;
    tm_error err;
    if (tm_device_alloc(d, n * 4, &x, &err) != TM_OK) {
        fprintf(stderr, "gemm: %s\n", err.message);
        exit(1);
    }
    uint32_t s = 12345;
    for (int64_t i = 0; i < n; i++) {
        s = s * 1664525u + 1013904223u;
        ((float *)x)[i] = (float)(s >> 8) * 0x1p-23f - 1;
    }
    return x;
}

static double timed(void (*call)(void *), void *context)
{
    double t = now();
    call(context);
    return now() - t;
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    const isa *chosen = NULL;
    for (size_t i = 0; i < sizeof isas / sizeof *isas && !chosen; i++)
        if (argc > 2 ? strcmp(argv[2], isas[i].name) == 0 : isas[i].isa == TM_ISA_AVX512)
            chosen = &isas[i];
    double seconds = argc > 3 ? atof(argv[3]) : 1;
    tm_device *device;
    tm_error err;
    if (!chosen || tm_cpu_device_create(threads, chosen->isa, &device, &err) != TM_OK) {
        fprintf(stderr, "gemm: %s\n", chosen ? err.message : "unknown instruction set");
        return 2;
    }
    bench_clock_for(tm_cpu_of(device)->pool);
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
    printf("%s; peak: fused multiply-adds on registers; GFLOP/s\n", device->detail);
    printf("%-27s %8s %8s %8s %9s %8s %10s\n", "m x n x k", "peak", "temper", "of peak", "OpenBLAS", "ratio", "GB/s of B");
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int64_t m = sizes[i].m, n = sizes[i].n, k = sizes[i].k;
        float *a = random_floats(device, m * k), *b = random_floats(device, n * k), *c = random_floats(device, m * n);
        bool bf16 = sizes[i].kind[2], ak = sizes[i].kind[0] == 'N', bk = sizes[i].kind[1] == 'T';
        r.g = (tm_gemm){.m = m, .n = n, .k = k, .a = {a, TM_F32, ak ? k : m, ak}, .b = {b, TM_F32, bk ? k : n, bk},
                        .c = c, .c_dtype = TM_F32, .ldc = n};
        if (bf16) { /* the arrays as they lie, read as bf16: small numbers of both signs */
            for (int64_t x = 0; x < m * k; x++)
                ((uint16_t *)a)[x] = tm_f32_to_bf16((float)(x * 37 % 201) * 0.01f - 1);
            for (int64_t x = 0; x < n * k; x++)
                ((uint16_t *)b)[x] = tm_f32_to_bf16((float)(x * 53 % 201) * 0.01f - 1);
            r.g.a.dtype = r.g.b.dtype = r.g.c_dtype = TM_BF16;
            r.g.bf16 = true;
        }
        double flops = 2.0 * (double)m * (double)n * (double)k * 1e-9, peak = 0, ours = INFINITY, theirs = INFINITY;
        for (int turn = 0; turn < TURNS; turn++) { /* in turn: the clock rate drifts */
            double end = now() + seconds / TURNS;
            do {
                peak = fmax(peak, 1e-9 * peak_rate(peak_of(chosen->isa, bf16 && r.cpu->bf16_dot), r.cpu->pool));
                ours = fmin(ours, timed(call_temper, &r));
            } while (now() < end);
            if (!r.sgemm || bf16)
                continue;
            end = now() + seconds / TURNS;
            do
                theirs = fmin(theirs, timed(call_blas, &r));
            while (now() < end);
            if (tm_pool_threads(r.cpu->pool) > 1)
                usleep(BLAS_SPINS_US);
        }
        printf("%-7s %6ldx%ldx%ld%*s %8.1f %8.1f %8.2f", sizes[i].kind, (long)m, (long)n, (long)k,
               (int)(12 - snprintf(NULL, 0, "%ldx%ld", (long)n, (long)k)), "", peak, flops / ours, flops / ours / peak);
        if (isfinite(theirs))
            printf(" %9.1f %8.2f", flops / theirs, theirs / ours);
        else
            printf(" %9s %8s", "-", "-");
        printf(" %10.1f\n", (bf16 ? 2e-9 : 4e-9) * (double)n * (double)k / ours);
        fflush(stdout);
        tm_device_release(device, a, m * k * 4);
        tm_device_release(device, b, n * k * 4);
        tm_device_release(device, c, m * n * 4);
    }
    tm_device_destroy(device);
    return 0;
}
