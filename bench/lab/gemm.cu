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
template <int BN, bool A_TURNED, bool B_TURNED, int SPLITS> static void launch(tm_cuda *c, const char *op, const tm_half_product *p)
{
    launch90<bf16, BN, A_TURNED, B_TURNED>(c, op, p, SPLITS);
}
#define VARIANT(BN) {#BN, 0, launch<BN, false, false, 1>}, {#BN, 1, launch<BN, false, true, 1>}
#define WEIGHT(BN, SPLITS) {#BN " / " #SPLITS, 2, launch<BN, true, true, SPLITS>}
static const variant variants[] = {
    {"chosen", 0, multiply90<bf16>}, {"chosen", 1, multiply90<bf16>}, {"chosen", 2, multiply90<bf16>},
    {"sm_80", 0, multiply80<bf16, true>}, {"sm_80", 1, multiply80<bf16, true>}, {"sm_80", 2, multiply80<bf16, true>},
    VARIANT(256), VARIANT(128),
    WEIGHT(256, 1), WEIGHT(256, 2), WEIGHT(256, 4), WEIGHT(256, 8), WEIGHT(192, 1), WEIGHT(192, 2), WEIGHT(192, 4), WEIGHT(192, 8),
    WEIGHT(128, 1), WEIGHT(128, 2), WEIGHT(128, 4), WEIGHT(128, 8),
};

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT const char *lab_name(int i) { return i < (int)(sizeof variants / sizeof *variants) ? variants[i].name : nullptr; }
EXPORT int lab_turned(int i) { return variants[i].turned; }

/* c [m, n]: bf16, or f32 added to in the weight gradient. */
EXPORT void lab_run(int i, int64_t m, int64_t n, int64_t k, void *a, void *b, void *out, void *stream)
{
    static tm_cuda c;
    if (!c.processors) {
        cudaDeviceGetAttribute(&c.processors, cudaDevAttrMultiProcessorCount, 0);
        cudaMalloc(&c.sums, TM_CUDA_TENSORS * 8);
    }
    c.stream = (cudaStream_t)stream;
    bool at = variants[i].turned == 2, bt = variants[i].turned > 0;
    tm_half_product p = {};
    p.m = m, p.n = n, p.k = k, p.a_turned = at, p.b_turned = bt, p.add = at;
    p.a = at ? tm_tensor_make(a, TM_BF16, k, m) : tm_tensor_make(a, TM_BF16, m, k);
    p.b = bt ? tm_tensor_make(b, TM_BF16, k, n) : tm_tensor_make(b, TM_BF16, n, k);
    p.out = tm_tensor_make(out, at ? TM_F32 : TM_BF16, m, n);
    variants[i].run(&c, "lab", &p);
}
