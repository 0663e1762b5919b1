/* Laboratory of the bf16 attention kernels (flash.cuh, flash90.cuh): variants of tile sizes held against a
 * plain kernel in double on fresh random inputs, and their rates.
 *
 *   make lab && build/lab/attention
 */
#include "device/cuda/half/flash90.cuh"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define CHECK(call)                                                                                        \
    do {                                                                                                   \
        cudaError_t e_ = (call);                                                                           \
        if (e_ != cudaSuccess) {                                                                           \
            printf("%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(e_));                             \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

/* --- Reference: a thread a query and head, or a key, head of its group and column block --- */

__device__ static double score_of(const flash_args &w, int64_t row, int head, int64_t key, int D, double *slope)
{
    int kv = head / (w.heads / w.kv_heads);
    double s = 0;
    for (int c = 0; c < D; c++)
        s += (double)__bfloat162float(w.q[row * w.ld_q + head * D + c]) * __bfloat162float(w.k[key * w.ld_k + kv * D + c]);
    s *= w.scale;
    *slope = 1;
    if (w.softcap > 0) {
        double t = tanh(s / w.softcap);
        *slope = 1 - t * t;
        s = w.softcap * t;
    }
    return s;
}

__device__ static bool sees(const flash_args &w, int position, int key) { return key <= position && (w.window == 0 || key > position - w.window); }

__device__ static int span_of(const flash_args &w, int64_t row)
{
    int e = 0;
    while (w.spans.query[e + 1] <= row)
        e++;
    return e;
}

__global__ void reference_forward(flash_args w, int D, double *out, double *lse)
{
    int64_t row = blockIdx.x;
    int head = blockIdx.y, kv = head / (w.heads / w.kv_heads), e = span_of(w, row);
    int64_t key0 = w.spans.key[e];
    int position = w.spans.keys[e] - (w.spans.query[e + 1] - w.spans.query[e]) + (int)(row - w.spans.query[e]);
    double sum = 0, slope;
    for (int j = 0; j <= position; j++)
        if (sees(w, position, j))
            sum += exp(score_of(w, row, head, key0 + j, D, &slope));
    lse[row * w.heads + head] = log(sum);
    for (int c = threadIdx.x; c < D; c += blockDim.x) {
        double o = 0;
        for (int j = 0; j <= position; j++)
            if (sees(w, position, j))
                o += exp(score_of(w, row, head, key0 + j, D, &slope)) / sum * __bfloat162float(w.v[(key0 + j) * w.ld_v + kv * D + c]);
        out[(row * w.heads + head) * D + c] = o;
    }
}

/* One query and head: dQ, and its share of dK and dV by atomics in double. */
__global__ void reference_backward(flash_args w, int D, const double *out, const double *lse, double *dq, double *dk, double *dv)
{
    int64_t row = blockIdx.x;
    int head = blockIdx.y, kv = head / (w.heads / w.kv_heads), e = span_of(w, row);
    int64_t key0 = w.spans.key[e];
    int position = w.spans.keys[e] - (w.spans.query[e + 1] - w.spans.query[e]) + (int)(row - w.spans.query[e]);
    double delta = 0;
    for (int c = 0; c < D; c++)
        delta += out[(row * w.heads + head) * D + c] * __bfloat162float(w.dout[row * w.ld_dout + head * D + c]);
    for (int j = threadIdx.x; j <= position; j += blockDim.x) {
        if (!sees(w, position, j))
            continue;
        double slope, p = exp(score_of(w, row, head, key0 + j, D, &slope) - lse[row * w.heads + head]), dp = 0;
        for (int c = 0; c < D; c++)
            dp += (double)__bfloat162float(w.dout[row * w.ld_dout + head * D + c]) * __bfloat162float(w.v[(key0 + j) * w.ld_v + kv * D + c]);
        double ds = p * (dp - delta) * slope * w.scale;
        for (int c = 0; c < D; c++) {
            atomicAdd(&dv[((key0 + j) * w.kv_heads + kv) * D + c], p * __bfloat162float(w.dout[row * w.ld_dout + head * D + c]));
            atomicAdd(&dk[((key0 + j) * w.kv_heads + kv) * D + c], ds * __bfloat162float(w.q[row * w.ld_q + head * D + c]));
            atomicAdd(&dq[(row * w.heads + head) * D + c], ds * __bfloat162float(w.k[(key0 + j) * w.ld_k + kv * D + c]));
        }
    }
}

__global__ void fill_random(bf16 *x, int64_t n, uint32_t seed, float scale)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) {
        uint64_t z = (i + 1) * 0x9E3779B97F4A7C15ull + seed * 0xD1B54A32D192ED03ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        float u = ((uint32_t)z + 1.0f) / 4294967808.0f, v = (uint32_t)(z >> 32) / 4294967296.0f;
        x[i] = __float2bfloat16(scale * sqrtf(-2 * logf(u)) * cospif(2 * v));
    }
}

template <class T> static T *device(int64_t n)
{
    T *p;
    CHECK(cudaMalloc(&p, n * sizeof(T)));
    CHECK(cudaMemset(p, 0xff, n * sizeof(T)));
    return p;
}

struct problem {
    flash_args w;
    int D;
    int64_t rows, keys; /* rows of q, of k */
    double pairs;
    float *delta;
    std::vector<void *> owned;
    const flash_list *list48, *list64, *list128, *list192;
};

template <int SIZE> static const flash_list *list_of(const problem &p);

static problem make(int D, int heads, int kv_heads, const std::vector<int> &lengths, int past, int window, float softcap, uint32_t seed)
{
    problem p = {};
    std::vector<int32_t> query(1, 0), key, keys;
    int32_t at = 0;
    for (int n : lengths) {
        query.push_back(query.back() + n);
        key.push_back(at);
        keys.push_back(n + past);
        at += n + past;
        for (int i = past; i < n + past; i++)
            p.pairs += window && i >= window ? window : i + 1;
    }
    p.rows = query.back();
    p.keys = at;
    p.D = D;
    flash_args &w = p.w;
    w.heads = heads;
    w.size = D;
    w.kv_heads = kv_heads;
    w.scale = 1 / sqrtf((float)D);
    w.softcap = softcap;
    w.window = window;
    int64_t width = past ? heads * D : (heads + 2 * kv_heads) * D, kv_width = past ? kv_heads * D : width;
    bf16 *q = device<bf16>(p.rows * width), *k = q + heads * D, *v = q + (heads + kv_heads) * D;
    fill_random<<<1024, 256>>>(q, p.rows * width, seed, 1);
    if (past) {
        k = device<bf16>(p.keys * kv_width);
        v = device<bf16>(p.keys * kv_width);
        fill_random<<<1024, 256>>>(k, p.keys * kv_width, seed + 1, 1);
        fill_random<<<1024, 256>>>(v, p.keys * kv_width, seed + 2, 1);
    }
    bf16 *dout = device<bf16>(p.rows * heads * D), *dqkv = device<bf16>(p.keys * (heads + 2 * kv_heads) * D);
    fill_random<<<1024, 256>>>(dout, p.rows * heads * D, seed + 3, 1);
    w.q = q;
    w.k = k;
    w.v = v;
    w.ld_q = width;
    w.ld_k = w.ld_v = kv_width;
    w.out = device<bf16>(p.rows * heads * D);
    w.lse = device<float>(p.rows * heads);
    p.delta = device<float>(p.rows * heads);
    w.delta = p.delta;
    w.dout = dout;
    w.ld_out = w.ld_dout = heads * D;
    w.ld_lse = w.ld_delta = heads;
    w.dq = dqkv;
    w.dk = dqkv + heads * D;
    w.dv = dqkv + (heads + kv_heads) * D;
    w.ld_dq = w.ld_dk = w.ld_dv = (heads + 2 * kv_heads) * D;
    int32_t *spans = device<int32_t>(query.size() + key.size() + keys.size());
    CHECK(cudaMemcpy(spans, query.data(), query.size() * 4, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(spans + query.size(), key.data(), key.size() * 4, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(spans + query.size() + key.size(), keys.data(), keys.size() * 4, cudaMemcpyHostToDevice));
    w.spans = {(int64_t)lengths.size(), spans, spans + query.size(), spans + query.size() + key.size()};
    p.owned = {q, dout, dqkv, w.out, w.lse, p.delta, spans};
    if (past) {
        p.owned.push_back((void *)k);
        p.owned.push_back((void *)v);
    }
    p.list48 = list_of<48>(p);
    p.list64 = list_of<64>(p);
    p.list128 = list_of<128>(p);
    p.list192 = list_of<192>(p);
    for (const void *list : {p.list48, p.list64, p.list128, p.list192})
        p.owned.push_back((void *)list);
    CHECK(cudaDeviceSynchronize());
    return p;
}

template <int SIZE> static const flash_list *list_of(const problem &p)
{
    flash_list *list = (flash_list *)device<flash_tile>(p.rows / SIZE + p.w.spans.n + 1);
    flash_list_make<SIZE><<<1, FLASH_LIST_THREADS>>>(p.w.spans, list);
    return list;
}

static flash_args listed(const problem &p, int size)
{
    flash_args w = p.w;
    w.list = size == 48 ? p.list48 : size == 64 ? p.list64 : size == 128 ? p.list128 : p.list192;
    return w;
}

static void drop(problem &p)
{
    for (void *o : p.owned)
        CHECK(cudaFree(o));
}

/* --- Variants --- */

template <class K> static void launch(K kernel, const flash_args &w, int64_t items, int threads, size_t shared)
{
    int blocks = 0;
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared));
    kernel<<<(unsigned)std::min<int64_t>(items, blocks * 132), threads, shared>>>(w);
    CHECK(cudaGetLastError());
}

template <int D, int BM, int BN, int WARPS> void run_forward(const problem &p)
{
    launch(flash_forward<bf16, D, BM, BN, WARPS>, listed(p, BM), (p.rows / BM + p.w.spans.n) * p.w.heads, WARPS * 32, (BM + 4 * BN) * (D + TILE_PAD) * 2);
}
template <int D, int BM, int BN, int WARPS> void run_kv(const problem &p)
{
    launch(flash_backward_kv<bf16, D, BM, BN, WARPS, 3>, listed(p, BN), (p.keys / BN + p.w.spans.n) * p.w.kv_heads, WARPS * 32, (2 * BN + 4 * BM) * (D + TILE_PAD) * 2 + 4 * BM * 4);
}
template <int D, int BM, int BN, int WARPS> void run_q(const problem &p)
{
    launch(flash_backward_q<bf16, D, BM, BN, WARPS>, listed(p, BM), (p.rows / BM + p.w.spans.n) * p.w.heads, WARPS * 32, (2 * BM + 4 * BN) * (D + TILE_PAD) * 2);
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

static flash90_args maps_of(const problem &p, int rows_q, int rows_k, int listed_rows)
{
    flash90_args all;
    const flash_args &w = p.w;
    all.w = listed(p, listed_rows);
    all.q = map_of(w.q, p.rows, w.heads * p.D, w.ld_q, rows_q);
    all.dout = map_of(w.dout, p.rows, w.heads * p.D, w.ld_dout, rows_q);
    all.k = map_of(w.k, p.keys, w.kv_heads * p.D, w.ld_k, rows_k);
    all.v = map_of(w.v, p.keys, w.kv_heads * p.D, w.ld_v, rows_k);
    return all;
}

template <class K> static void launch90(K kernel, const flash90_args &all, int64_t items, int threads, size_t shared)
{
    CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared));
    kernel<<<(unsigned)std::min<int64_t>(items, 132), threads, shared>>>(all);
    CHECK(cudaGetLastError());
}

template <int D, int GROUPS, int BN, int STAGES> void run90_forward(const problem &p)
{
    constexpr int BM = 64 * GROUPS;
    launch90(flash90_forward<bf16, D, GROUPS, BN, STAGES, false>, maps_of(p, BM, BN, BM), (p.rows / BM + p.w.spans.n) * p.w.heads, 128 * GROUPS + 128, (2 * BM + 2 * STAGES * BN) * D * 2);
}
template <int D, int BM, int STAGES> void run90_kv(const problem &p)
{
    launch90(flash90_backward_kv<bf16, D, BM, STAGES, false>, maps_of(p, BM, 128, 128), (p.keys / 128 + p.w.spans.n) * p.w.kv_heads, 384, (2 * 128 + 2 * STAGES * BM) * D * 2 + 2 * STAGES * BM * 4);
}
template <int D, int BN, int STAGES> void run90_q(const problem &p)
{
    launch90(flash90_backward_q<bf16, D, BN, STAGES, false>, maps_of(p, 128, BN, 128), (p.rows / 128 + p.w.spans.n) * p.w.heads, 384, (4 * 128 + 2 * STAGES * BN) * D * 2);
}

struct kernel {
    const char *name;
    int D, kind; /* 0 forward, 1 dK dV, 2 dQ */
    void (*run)(const problem &);
};

#define FORWARD(D, BM, BN, W) {"forward " #BM "x" #BN " w" #W, D, 0, run_forward<D, BM, BN, W>}
#define KV(D, BM, BN, W) {"dk,dv   " #BM "x" #BN " w" #W, D, 1, run_kv<D, BM, BN, W>}
#define DQ(D, BM, BN, W) {"dq      " #BM "x" #BN " w" #W, D, 2, run_q<D, BM, BN, W>}

#define FORWARD90(D, G, BN, S) {"forward " #G " groups x" #BN " s" #S, D, 0, run90_forward<D, G, BN, S>}
#define KV90(D, BM, S) {"dk,dv   " #BM "x128 wgmma s" #S, D, 1, run90_kv<D, BM, S>}
#define DQ90(D, BN, S) {"dq      128x" #BN " wgmma s" #S, D, 2, run90_q<D, BN, S>}

static const kernel kernels[] = {
    FORWARD90(64, 2, 128, 3), FORWARD90(64, 3, 64, 4), FORWARD90(64, 2, 64, 4), FORWARD90(64, 3, 128, 3),
    KV90(64, 64, 4),
    DQ90(64, 128, 3), DQ90(64, 64, 4),
    FORWARD90(128, 2, 128, 2),
    KV90(128, 64, 3), KV90(128, 64, 4),
    DQ90(128, 64, 3),
#ifdef ALL
    FORWARD(80, 128, 64, 4), KV(80, 64, 64, 4), DQ(80, 64, 64, 4),
    FORWARD(96, 128, 64, 4), KV(96, 64, 64, 4), DQ(96, 64, 64, 4),
    FORWARD(256, 64, 32, 4), FORWARD(256, 64, 16, 4), DQ(256, 48, 16, 3),
#endif
};

template <class T> static std::vector<T> fetch(const T *p, int64_t n)
{
    std::vector<T> v(n);
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

/* Relative L2 of columns [first, first + width) of got [rows, ld]. */
static double distance(const std::vector<double> &want, const bf16 *got, int64_t rows, int64_t ld, int64_t width)
{
    double d2 = 0, w2 = 0;
    std::vector<bf16> g = fetch(got, (rows - 1) * ld + width);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t c = 0; c < width; c++) {
            double w = want[r * width + c], x = __bfloat162float(g[r * ld + c]);
            d2 += (w - x) * (w - x);
            w2 += w * w;
        }
    return sqrt(d2 / w2);
}

static void delta_of(const problem &p)
{
    unsigned blocks = 132 * 16;
    if (p.D <= 64)
        flash_delta<bf16, 8><<<blocks, 256>>>(p.w, p.delta);
    else if (p.D <= 128)
        flash_delta<bf16, 16><<<blocks, 256>>>(p.w, p.delta);
    else
        flash_delta<bf16, 32><<<blocks, 256>>>(p.w, p.delta);
}

static void check(int D, int heads, int kv_heads, const std::vector<int> &lengths, int past, int window, float softcap, uint32_t seed)
{
    problem p = make(D, heads, kv_heads, lengths, past, window, softcap, seed);
    int64_t nq = p.rows * heads * D, nk = p.keys * kv_heads * D;
    double *out = device<double>(nq), *lse = device<double>(p.rows * heads), *dq = device<double>(nq), *dk = device<double>(nk), *dv = device<double>(nk);
    CHECK(cudaMemset(dq, 0, nq * 8));
    CHECK(cudaMemset(dk, 0, nk * 8));
    CHECK(cudaMemset(dv, 0, nk * 8));
    reference_forward<<<dim3((unsigned)p.rows, heads), 64>>>(p.w, D, out, lse);
    reference_backward<<<dim3((unsigned)p.rows, heads), 64>>>(p.w, D, out, lse, dq, dk, dv);
    CHECK(cudaDeviceSynchronize());
    std::vector<double> r_out = fetch(out, nq), r_lse = fetch(lse, p.rows * heads), r_dq = fetch(dq, nq), r_dk = fetch(dk, nk), r_dv = fetch(dv, nk);
    printf("check D %d H %d K %d spans %zu rows %lld past %d window %d cap %g\n", D, heads, kv_heads, lengths.size(), (long long)p.rows, past, window, softcap);
    for (const kernel &k : kernels) {
        if (k.D != D || (k.kind && past))
            continue;
        k.run(p);
        CHECK(cudaDeviceSynchronize());
        if (k.kind == 0) {
            double worst = 0;
            std::vector<float> l = fetch(p.w.lse, p.rows * heads);
            for (size_t i = 0; i < l.size(); i++)
                worst = fmax(worst, fabs(l[i] - r_lse[i]));
            double d = distance(r_out, p.w.out, p.rows, p.w.ld_out, heads * D);
            printf("  %-24s out %.2e lse %.1e %s\n", k.name, d, worst, d < 4e-3 && worst < 1e-3 ? "ok" : "WRONG");
            delta_of(p);
        } else if (k.kind == 1) {
            double a = distance(r_dk, p.w.dk, p.keys, p.w.ld_dk, kv_heads * D), b = distance(r_dv, p.w.dv, p.keys, p.w.ld_dv, kv_heads * D);
            printf("  %-24s dk %.2e dv %.2e %s\n", k.name, a, b, a < 8e-3 && b < 6e-3 ? "ok" : "WRONG");
        } else {
            double a = distance(r_dq, p.w.dq, p.rows, p.w.ld_dq, heads * D);
            printf("  %-24s dq %.2e %s\n", k.name, a, a < 8e-3 ? "ok" : "WRONG");
        }
    }
    for (double *x : {out, lse, dq, dk, dv})
        CHECK(cudaFree(x));
    drop(p);
}

static void list_and_delta(const problem &p)
{
    flash_list_make<128><<<1, FLASH_LIST_THREADS>>>(p.w.spans, (flash_list *)p.list128);
    delta_of(p);
}
static void list_alone(const problem &p) { flash_list_make<128><<<1, FLASH_LIST_THREADS>>>(p.w.spans, (flash_list *)p.list128); }

static void rate(int D, int heads, int kv_heads, int batch, int length)
{
    problem p = make(D, heads, kv_heads, std::vector<int>(batch, length), 0, 0, 0, 1);
    printf("rate D %d H %d K %d, %d x %d\n", D, heads, kv_heads, batch, length);
    for (const kernel &k : kernels) {
        if (k.D != D)
            continue;
        cudaEvent_t from, to;
        CHECK(cudaEventCreate(&from));
        CHECK(cudaEventCreate(&to));
        std::vector<float> ms;
        for (int i = 0; i < 9; i++) {
            CHECK(cudaEventRecord(from));
            k.run(p);
            CHECK(cudaEventRecord(to));
            CHECK(cudaEventSynchronize(to));
            float t;
            CHECK(cudaEventElapsedTime(&t, from, to));
            if (i >= 2)
                ms.push_back(t);
        }
        std::sort(ms.begin(), ms.end());
        double products = k.kind == 0 ? 2 : k.kind == 1 ? 4 : 3, flops = products * 2 * p.pairs * heads * D;
        printf("  %-24s %7.3f ms %6.0f TFLOP/s\n", k.name, ms[ms.size() / 2], flops / ms[ms.size() / 2] * 1e-9);
        if (k.kind == 0)
            delta_of(p);
    }
    for (void (*run)(const problem &) : {list_alone, list_and_delta}) {
        float best = 1e9f;
        for (int i = 0; i < 9; i++) {
            cudaEvent_t from, to;
            CHECK(cudaEventCreate(&from));
            CHECK(cudaEventCreate(&to));
            CHECK(cudaEventRecord(from));
            run(p);
            CHECK(cudaEventRecord(to));
            CHECK(cudaEventSynchronize(to));
            float t;
            CHECK(cudaEventElapsedTime(&t, from, to));
            best = std::min(best, t);
        }
        printf("  %-24s %7.3f ms\n", run == list_alone ? "list" : "list, delta", best);
    }
    drop(p);
}

int main(int argc, char **argv)
{
    cudaDriverEntryPointQueryResult found;
    CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault, &found));
    check(64, 14, 2, {200, 1, 64, 129, 333}, 0, 0, 0, 11);
    check(128, 7, 1, {257, 64, 130, 700}, 0, 0, 0, 15);
#ifdef ALL
    check(80, 4, 2, {257, 64}, 0, 0, 0, 17);
    check(96, 4, 2, {257, 64}, 0, 0, 0, 18);
    check(256, 4, 1, {257, 64}, 0, 60, 50, 19);
#endif
    rate(64, 14, 2, 8, 2048);
    rate(64, 14, 2, 64, 256);
    rate(128, 28, 4, 4, 2048);
    rate(128, 28, 4, 1, 8192);
    rate(128, 28, 4, 64, 256);
#ifdef ALL
    rate(256, 8, 4, 4, 2048);
    rate(64, 14, 2, 4, 256);
    rate(64, 14, 2, 512, 32);
    rate(64, 14, 2, 4096, 4);
#endif
    return 0;
}
