/* Which device a recipe asks for. */
#include "api/job.h"

#include "base/env.h"

#include <stdlib.h>

static tm_status open_cpu(int64_t threads, tm_device **out, tm_error *err)
{
    static const struct {
        const char *name;
        tm_isa isa;
    } forced[] = {{"scalar", TM_ISA_SCALAR}, {"avx2", TM_ISA_AVX2}, {"avx512", TM_ISA_AVX512}};
    const char *name = tm_env("TEMPER_ISA");
    tm_isa isa = TM_ISA_AUTO;
    for (size_t i = 0; name && i < 3; i++)
        if (strcmp(name, forced[i].name) == 0)
            isa = forced[i].isa;
    if (name && *name && isa == TM_ISA_AUTO)
        return tm_fail(err, TM_USAGE, "TEMPER_ISA: found '%s', expected scalar, avx2 or avx512", name);
    return tm_cpu_device_create((int)threads, isa, out, err);
}

/* The GPU's number in cuda or cuda:N; -1: another name. */
static int gpu_index(const char *name)
{
    if (strcmp(name, "cuda") == 0)
        return 0;
    if (strncmp(name, "cuda:", 5) != 0 || name[5] < '0' || name[5] > '9')
        return -1;
    char *end;
    long index = strtol(name + 5, &end, 10);
    return *end || index > 1023 ? -1 : (int)index;
}

tm_status tm_device_open(const char *name, int64_t threads, tm_device **out, char *no_gpu, tm_error *err)
{
    const char *instead = tm_env("TEMPER_DEVICE"), *library = tm_env("TEMPER_CUDA_LIBRARY");
    bool automatic = !name || strcmp(name, "auto") == 0;
    if (automatic && instead && *instead) {
        name = instead;
        automatic = strcmp(name, "auto") == 0;
    }
    if (automatic) {
        tm_error why;
        if (!tm_cuda_driver())
            return open_cpu(threads, out, err);
        if (tm_cuda_device_create(library, 0, out, &why) == TM_OK)
            return TM_OK;
        if (no_gpu)
            snprintf(no_gpu, 512, "%.500s", why.message);
        return open_cpu(threads, out, err);
    }
    if (strcmp(name, "cpu") == 0)
        return open_cpu(threads, out, err);
    int index = gpu_index(name);
    if (index < 0)
        return tm_fail(err, TM_RECIPE, "device: found '%s', expected auto, cpu, cuda or cuda:N", name);
    return tm_cuda_device_create(library, index, out, err);
}
