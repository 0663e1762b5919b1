/* Laboratory of the Hopper matrix product (gemm90.cuh): variants of it, as a library that gemm.py drives beside
 * PyTorch's cuBLAS.
 *
 *   make lab && python3 bench/lab/gemm.py
 */
#include "device/cuda/half/multiply.cu"

void tm_cuda_note(tm_cuda *, tm_status, const char *what, const char *why) { printf("%s: %s\n", what, why); }

struct variant {
    const char *name;
    int turned; /* 0: forward, 1: input gradient, 2: weight gradient */
    void (*run)(tm_cuda *, const char *, const tm_half_product *);
};
#define VARIANT(BN, STAGES, CLUSTER)                                                     \
    {#BN " s" #STAGES " c" #CLUSTER, 0, launch90<bf16, BN, false, false, STAGES, CLUSTER>}, \
    {#BN " s" #STAGES " c" #CLUSTER, 1, launch90<bf16, BN, false, true, STAGES, CLUSTER>},  \
    {#BN " s" #STAGES " c" #CLUSTER, 2, launch90<bf16, BN, true, true, STAGES, CLUSTER>}
static const variant variants[] = {VARIANT(256, 4, 1), VARIANT(256, 4, 2), VARIANT(128, 5, 1), VARIANT(128, 5, 2)};

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char *lab_name(int i) { return i < (int)(sizeof variants / sizeof *variants) ? variants[i].name : nullptr; }
EXPORT int lab_turned(int i) { return variants[i].turned; }

/* c [m, n]: bf16, or f32 added to in the weight gradient. */
EXPORT void lab_run(int i, int64_t m, int64_t n, int64_t k, void *a, void *b, void *out, void *stream)
{
    static tm_cuda c;
    if (!c.processors)
        cudaDeviceGetAttribute(&c.processors, cudaDevAttrMultiProcessorCount, 0);
    c.stream = (cudaStream_t)stream;
    bool at = variants[i].turned == 2, bt = variants[i].turned > 0;
    tm_half_product p = {};
    p.m = m, p.n = n, p.k = k, p.a_turned = at, p.b_turned = bt, p.add = at;
    p.a = at ? tm_tensor_make(a, TM_BF16, k, m) : tm_tensor_make(a, TM_BF16, m, k);
    p.b = bt ? tm_tensor_make(b, TM_BF16, k, n) : tm_tensor_make(b, TM_BF16, n, k);
    p.out = tm_tensor_make(out, at ? TM_F32 : TM_BF16, m, n);
    variants[i].run(&c, "lab", &p);
}
