/* Laboratory of the Hopper matrix product (gemm90.cuh): against a plain kernel, and its rate.
 *
 *   make lab && build/lab/gemm
 */
#include "device/cuda/half/gemm90.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define CHECK(call)                                                                                        \
    do {                                                                                                   \
        cudaError_t e_ = (call);                                                                           \
        if (e_ != cudaSuccess) {                                                                           \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));                             \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

__global__ void fill_random(bf16 *x, int64_t n, uint32_t seed)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        float u = ((uint32_t)z + 1.0f) / 4294967808.0f, v = (uint32_t)(z >> 32) / 4294967296.0f;
        x[i] = __float2bfloat16(sqrtf(-2 * logf(u)) * cospif(2 * v));
    }
}

/* Sampled rows: every element of rows 0, step, 2 step, ... in double. */
__global__ void reference(const bf16 *a, const bf16 *b, const bf16 *la, const bf16 *lb, const bf16 *got, int m, int n, int k, int low, bool mn, int step, double *sums)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, row = i / n * step, col = i % n;
    if (row >= m)
        return;
    double s = 0;
    for (int j = 0; j < k; j++)
        s += (double)__bfloat162float(a[row * k + j]) * __bfloat162float(mn ? b[(int64_t)j * n + col] : b[col * k + j]);
    for (int j = 0; j < low; j++)
        s += (double)__bfloat162float(la[row * low + j]) * __bfloat162float(mn ? lb[(int64_t)j * n + col] : lb[col * low + j]);
    double d = s - __bfloat162float(got[row * n + col]);
    atomicAdd(&sums[0], d * d);
    atomicAdd(&sums[1], s * s);
}

template <class T> static T *device(int64_t n)
{
    T *p;
    CHECK(cudaMalloc(&p, n * sizeof(T)));
    CHECK(cudaMemset(p, 0xff, n * sizeof(T)));
    return p;
}

typedef CUresult (*encode_call)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
static encode_call encode;

/* Boxes of 64 columns and `rows` rows of x [height, width]. */
static CUtensorMap map_of(const bf16 *x, int64_t height, int64_t width, int64_t ld, int rows)
{
    CUtensorMap map;
    cuuint64_t size[2] = {(cuuint64_t)width, (cuuint64_t)height}, stride[1] = {(cuuint64_t)ld * 2};
    cuuint32_t box[2] = {64, (cuuint32_t)rows}, one[2] = {1, 1};
    CUresult r = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)x, size, stride, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS) {
        printf("tensor map: %d\n", (int)r);
        exit(1);
    }
    return map;
}

struct factors {
    bf16 *a, *b, *la, *lb, *c;
    int m, n, k, low;
};

template <int BN, bool MN, int STAGES> static void launch(const factors &f, int sms)
{
    gemm90_args w = {};
    w.a = map_of(f.a, f.m, f.k, f.k, 128);
    w.b = MN ? map_of(f.b, f.k, f.n, f.n, 64) : map_of(f.b, f.n, f.k, f.k, BN);
    if (f.low) {
        w.low_a = map_of(f.la, f.m, f.low, f.low, 128);
        w.low_b = MN ? map_of(f.lb, f.low, f.n, f.n, 64) : map_of(f.lb, f.n, f.low, f.low, BN);
    }
    w.c = map_of(f.c, f.m, f.n, f.n, 64);
    w.m = f.m;
    w.n = f.n;
    w.k = f.k;
    w.low_k = f.low;
    int shared = STAGES * (128 + BN) * 64 * 2 + 2 * GEMM90_OUT_BYTES;
    CHECK(cudaFuncSetAttribute(gemm90<BN, MN, STAGES>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
    int tiles = (f.m + 127) / 128 * ((f.n + BN - 1) / BN);
    gemm90<BN, MN, STAGES><<<std::min(tiles, sms), 384, shared>>>(w);
    CHECK(cudaGetLastError());
}

struct variant {
    const char *name;
    bool mn;
    void (*run)(const factors &, int);
};
static const variant variants[] = {
    {"128x256 s4", false, launch<256, false, 4>}, {"128x128 s5", false, launch<128, false, 5>},
    {"128x256 s4", true, launch<256, true, 4>},   {"128x128 s5", true, launch<128, true, 5>},
};

static void shape(int m, int n, int k, int low, bool check, int sms)
{
    factors f = {device<bf16>((int64_t)m * k), device<bf16>((int64_t)n * k), low ? device<bf16>((int64_t)m * low) : nullptr, low ? device<bf16>((int64_t)n * low) : nullptr,
                 device<bf16>((int64_t)m * n), m, n, k, low};
    fill_random<<<1024, 256>>>(f.a, (int64_t)m * k, 1);
    fill_random<<<1024, 256>>>(f.b, (int64_t)n * k, 2);
    if (low) {
        fill_random<<<1024, 256>>>(f.la, (int64_t)m * low, 3);
        fill_random<<<1024, 256>>>(f.lb, (int64_t)n * low, 4);
    }
    double *sums = device<double>(2);
    for (const variant &v : variants) {
        CHECK(cudaMemset(f.c, 0xff, (int64_t)m * n * 2));
        v.run(f, sms);
        CHECK(cudaDeviceSynchronize());
        printf("%6d %6d %6d %3d %s %-10s", m, n, k, low, v.mn ? "NN" : "NT", v.name);
        if (check) {
            double h[2];
            int step = m > 512 ? m / 64 + 1 : 1;
            CHECK(cudaMemset(sums, 0, 16));
            reference<<<(unsigned)(((int64_t)((m + step - 1) / step) * n + 127) / 128), 128>>>(f.a, f.b, f.la, f.lb, f.c, m, n, k, low, v.mn, step, sums);
            CHECK(cudaMemcpy(h, sums, 16, cudaMemcpyDeviceToHost));
            double d = sqrt(h[0] / h[1]);
            printf(" error %.2e %s", d, d < 2.5e-3 ? "ok" : "WRONG");
        }
        cudaEvent_t from, to;
        CHECK(cudaEventCreate(&from));
        CHECK(cudaEventCreate(&to));
        std::vector<float> ms;
        for (int i = 0; i < 12; i++) {
            CHECK(cudaEventRecord(from));
            v.run(f, sms);
            CHECK(cudaEventRecord(to));
            CHECK(cudaEventSynchronize(to));
            float t;
            CHECK(cudaEventElapsedTime(&t, from, to));
            if (i >= 3)
                ms.push_back(t);
        }
        std::sort(ms.begin(), ms.end());
        printf("  %7.3f ms %5.0f TFLOP/s\n", ms[ms.size() / 2], 2.0 * m * n * (k + low) / ms[ms.size() / 2] * 1e-9);
    }
    for (bf16 *p : {f.a, f.b, f.la, f.lb, f.c})
        CHECK(cudaFree(p));
    CHECK(cudaFree(sums));
}

int main()
{
    cudaDriverEntryPointQueryResult found;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault, &found));
    cudaDeviceProp p;
    CHECK(cudaGetDeviceProperties(&p, 0));
    int sms = p.multiProcessorCount;
    shape(300, 520, 200, 0, true, sms);
    shape(1000, 896, 896, 16, true, sms);
    shape(517, 1152, 896, 48, true, sms);
    shape(8192, 8192, 8192, 0, true, sms);
    shape(8192, 4608, 3584, 0, true, sms);
    shape(8192, 4608, 3584, 48, true, sms);
    shape(8192, 3584, 3584, 0, false, sms);
    shape(8192, 37888, 3584, 0, false, sms);
    shape(8192, 37888, 3584, 32, false, sms);
    shape(8192, 3584, 18944, 0, false, sms);
    shape(16384, 17920, 1536, 0, false, sms);
    shape(16384, 1536, 8960, 0, false, sms);
    shape(16384, 2048, 1536, 0, false, sms);
    shape(16384, 9728, 896, 0, false, sms);
    shape(16384, 896, 4864, 0, false, sms);
    shape(16384, 1152, 896, 0, false, sms);
    shape(1024, 9728, 896, 0, false, sms);
    shape(2048, 151936, 3584, 0, false, sms);
    return 0;
}
