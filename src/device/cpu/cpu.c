/* The CPU device: memory, and the choice of an instruction set. Results do not depend on the choice. */
#include "device/cpu/gemm.h"

#include "base/buf.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { HUGE_BYTES = 2 << 20 };

extern const tm_ops tm_scalar_table, tm_f64_table;
#ifdef __x86_64__
extern const tm_ops tm_avx2_table, tm_avx512_table;
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
static bool has_bf16_dot(tm_isa isa)
{
    return isa == TM_ISA_AVX512 && __builtin_cpu_supports("avx512bf16") && tm_avx512_bf16_dot_holds();
}
#else
static bool has_bf16_dot(tm_isa isa) { return (void)isa, false; }
#endif
static bool has_always(void) { return true; }

/* The widest first: AUTO takes the first that the processor has; f64 only on demand. */
static const struct isa {
    tm_isa isa;
    const char *name;
    const tm_ops *ops;
    bool (*has)(void);
} isas[] = {
#ifdef __x86_64__
    {TM_ISA_AVX512, "avx512", &tm_avx512_table, has_avx512},
    {TM_ISA_AVX2, "avx2", &tm_avx2_table, has_avx2},
#endif
    {TM_ISA_SCALAR, "scalar", &tm_scalar_table, has_always},
    {TM_ISA_F64, "f64", &tm_f64_table, has_always},
};

/* malloc with the start of the block kept in front of the aligned address. */
static tm_status cpu_alloc(tm_device *d, int64_t bytes, void **out, tm_error *err)
{
    (void)d;
    char *block;
    TM_TRY(tm_alloc((void **)&block, (size_t)bytes + TM_ALIGN + sizeof(void *), 1, err));
    uintptr_t start = ((uintptr_t)block + sizeof(void *) + TM_ALIGN - 1) & ~(uintptr_t)(TM_ALIGN - 1);
    ((void **)start)[-1] = block;
    uintptr_t huge = (start + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1), end = start + (uintptr_t)bytes;
    if (huge + HUGE_BYTES <= end) /* advice: fewer misses of address translation, no other effect */
        madvise((void *)huge, (end - huge) & ~(uintptr_t)(HUGE_BYTES - 1), MADV_HUGEPAGE);
    *out = (void *)start;
    return TM_OK;
}

static void cpu_release(tm_device *d, void *address)
{
    (void)d;
    free(((void **)address)[-1]);
}

static void cpu_copy(tm_device *d, void *dst, const void *src, int64_t bytes)
{
    (void)d;
    if (bytes)
        memmove(dst, src, (size_t)bytes);
}

static void cpu_zero(tm_device *d, void *dst, int64_t bytes)
{
    (void)d;
    if (bytes)
        memset(dst, 0, (size_t)bytes);
}

static tm_status cpu_sync(tm_device *d, tm_error *err)
{
    (void)d, (void)err;
    return TM_OK;
}

static void cpu_destroy(tm_device *d)
{
    tm_cpu *cpu = tm_cpu_of(d);
    if (cpu->scratch)
        tm_device_release(d, cpu->scratch, (int64_t)tm_pool_threads(cpu->pool) * TM_CPU_SCRATCH_BYTES);
    tm_device_release(d, cpu->shared, TM_CPU_SHARED_BYTES);
    tm_pool_destroy(cpu->pool);
    free(cpu);
}

static const tm_device_calls cpu_calls = {
    .alloc = cpu_alloc, .release = cpu_release, .upload = cpu_copy, .download = cpu_copy, .copy = cpu_copy,
    .zero = cpu_zero, .sync = cpu_sync, .destroy = cpu_destroy,
};

tm_status tm_cpu_device_create(int threads, tm_isa isa, tm_device **out, tm_error *err)
{
    const struct isa *found = NULL;
    for (size_t i = 0; i < sizeof isas / sizeof *isas && !found; i++)
        if (isa == TM_ISA_AUTO ? isas[i].has() : isas[i].isa == isa)
            found = &isas[i];
    if (!found || !found->has())
        return tm_fail(err, TM_USAGE, "instruction set %s: this processor does not have it",
                       found ? found->name : "of another architecture");
    tm_cpu *cpu;
    TM_TRY(TM_NEW(&cpu, 1, err));
    cpu->base = (tm_device){.ops = found->ops, .calls = &cpu_calls, .name = "cpu", .detail = cpu->detail,
                            .traits = tm_cpu_traits()};
    cpu->base.real = cpu->base.traits.real = cpu->base.traits.act = found->isa == TM_ISA_F64 ? TM_F64 : TM_F32;
    cpu->bf16_dot = has_bf16_dot(found->isa);
    tm_status st = TM_OK;
    TM_GO(tm_pool_create(threads, &cpu->pool, err));
    threads = tm_pool_threads(cpu->pool);
    TM_GO(tm_device_alloc(&cpu->base, (int64_t)threads * TM_CPU_SCRATCH_BYTES, (void **)&cpu->scratch, err));
    TM_GO(tm_device_alloc(&cpu->base, TM_CPU_SHARED_BYTES, (void **)&cpu->shared, err));
    snprintf(cpu->detail, sizeof cpu->detail, "%s, %d thread%s", found->name, threads, threads == 1 ? "" : "s");
    *out = &cpu->base;
    return TM_OK;
out:
    cpu_destroy(&cpu->base);
    return st;
}
