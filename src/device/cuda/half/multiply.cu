/* tm_half_multiply: which kernel takes a product, and its launch. The choice depends on the architecture, the types,
 * n, k and alignments, never on m: so a row's bits do not either. */
#include "device/cuda/half/gemm80.cuh"
#include "device/cuda/half/gemm90.cuh"
#include "device/cuda/half/half.h"

/* Row tiles of `height` rows at most: where replicas have rows of their own, each may begin a tile more. */
static int64_t row_tiles(const tm_half_product *p, int64_t height)
{
    return (p->m + height - 1) / height + (p->low_a.data && p->replicas > 1 ? p->replicas - 1 : 0);
}

static tiles_args args_of(const tm_half_product *p)
{
    tiles_args w = {};
    w.a = p->a.data, w.a_ld = p->a.ld;
    w.b = p->b.data, w.b_ld = p->b.ld;
    w.out = p->out.data, w.ld = p->out.ld;
    w.m = (int)p->m, w.n = (int)p->n, w.k = (int)p->k;
    w.bias = p->bias.data;
    w.bias_type = p->bias.dtype == TM_BF16 ? 1 : p->bias.dtype == TM_F16 ? 2 : 0;
    w.add = p->add;
    w.wide = p->out.dtype == TM_F32;
    w.replicas = 1;
    if (p->low_a.data) {
        w.low_a = p->low_a.data, w.low_a_ld = p->low_a.ld;
        w.low_b = p->low_b.data, w.low_b_ld = p->low_b.ld;
        w.low = (int)p->low_a.cols;
        w.replicas = p->replicas > 1 ? p->replicas : 1;
        w.group = p->group;
    }
    return w;
}

/* Whether rows of t begin at multiples of 16 bytes. */
static bool aligned(const tm_tensor &t)
{
    return !t.data || ((uintptr_t)t.data % 16 == 0 && t.ld * (t.dtype == TM_F32 ? 4 : 2) % 16 == 0);
}

/* --- mma.sync --- */

template <class T, bool A_TURNED, bool B_TURNED, bool ALIGNED> static void launch80(tm_cuda *c, const char *op, const tm_half_product *p)
{
    auto kernel = gemm80<T, A_TURNED, B_TURNED, ALIGNED>;
    int64_t tiles = row_tiles(p, GEMM80_SIDE) * ((p->n + GEMM80_SIDE - 1) / GEMM80_SIDE);
    tm_cuda_check(c, op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, GEMM80_SHARED));
    kernel<<<(unsigned)tiles, GEMM80_THREADS, GEMM80_SHARED, c->stream>>>(args_of(p));
    tm_cuda_check(c, op, cudaGetLastError());
}

template <class T, bool ALIGNED> static void multiply80(tm_cuda *c, const char *op, const tm_half_product *p)
{
    if (p->a_turned)
        p->b_turned ? launch80<T, true, true, ALIGNED>(c, op, p) : launch80<T, true, false, ALIGNED>(c, op, p);
    else
        p->b_turned ? launch80<T, false, true, ALIGNED>(c, op, p) : launch80<T, false, false, ALIGNED>(c, op, p);
}

/* --- Hopper --- */

typedef CUresult (*encode_call)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's encoder of tensor maps; NULL: none. */
static encode_call encoder()
{
    static const encode_call found = [] {
        cudaDriverEntryPointQueryResult result;
        void *call = nullptr;
        return cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &call, 12000, cudaEnableDefault, &result) == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_call)call : nullptr;
    }();
    return found;
}

/* Boxes of 128 bytes and `box_rows` rows of x [matrices, rows, columns]; what lies outside counts as zeros. */
static bool map_of(CUtensorMap *map, const tm_tensor &x, int64_t rows, int64_t columns, int64_t matrices, int box_rows, bool matrix)
{
    int64_t size = x.dtype == TM_F32 ? 4 : 2;
    CUtensorMapDataType type = x.dtype == TM_F32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : x.dtype == TM_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    cuuint64_t sizes[3] = {(cuuint64_t)columns, (cuuint64_t)rows, (cuuint64_t)matrices}, strides[2] = {(cuuint64_t)(x.ld * size), (cuuint64_t)(rows * x.ld * size)};
    cuuint32_t box[3] = {(cuuint32_t)(128 / size), (cuuint32_t)box_rows, 1}, one[3] = {1, 1, 1};
    return encoder()(map, type, matrix ? 2 : 3, x.data, sizes, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

static bool map_a(CUtensorMap *map, const tm_tensor &a, int64_t m, int64_t k, bool turned)
{
    return turned ? map_of(map, a, k, m, 1, GEMM90_DEPTH, true) : map_of(map, a, m, k, 1, GEMM90_ROWS, true);
}

static bool map_b(CUtensorMap *map, const tm_tensor &b, int64_t n, int64_t k, int64_t matrices, bool turned, int share)
{
    return turned ? map_of(map, b, k, n, matrices, GEMM90_DEPTH, false) : map_of(map, b, n, k, matrices, share, false);
}

template <class T, int BN, bool A_TURNED, bool B_TURNED, int STAGES, int CLUSTER> static void launch90(tm_cuda *c, const char *op, const tm_half_product *p)
{
    gemm90_args g = {};
    g.w = args_of(p);
    bool mapped = map_a(&g.a, p->a, p->m, p->k, A_TURNED) && map_b(&g.b, p->b, p->n, p->k, 1, B_TURNED, BN / CLUSTER) && map_of(&g.out, p->out, p->m, p->n, 1, 64, true);
    if (mapped && g.w.low)
        mapped = map_a(&g.low_a, p->low_a, p->m, g.w.low, A_TURNED) && map_b(&g.low_b, p->low_b, p->n, g.w.low, g.w.replicas, B_TURNED, BN / CLUSTER);
    if (!mapped) {
        tm_cuda_note(c, TM_FAILED, op, "the driver refuses a tensor map");
        return;
    }
    auto kernel = gemm90<T, BN, A_TURNED, B_TURNED, STAGES, CLUSTER>;
    constexpr int SHARED = gemm90_shared<BN, STAGES>();
    int64_t tiles = row_tiles(p, GEMM90_ROWS * CLUSTER) * ((p->n + BN - 1) / BN) * CLUSTER, most = c->processors / CLUSTER * CLUSTER;
    tm_cuda_check(c, op, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED));
    kernel<<<(unsigned)(tiles < most ? tiles : most), 384, SHARED, c->stream>>>(g);
    tm_cuda_check(c, op, cudaGetLastError());
}

template <class T, int BN, int STAGES> static void multiply90_wide(tm_cuda *c, const char *op, const tm_half_product *p)
{
    if (p->a_turned)
        launch90<T, BN, true, true, STAGES, 1>(c, op, p);
    else if (p->b_turned)
        launch90<T, BN, false, true, STAGES, 1>(c, op, p);
    else
        launch90<T, BN, false, false, STAGES, 1>(c, op, p);
}

/* Tiles of 256 columns unless more than a twelfth would be empty. */
template <class T> static void multiply90(tm_cuda *c, const char *op, const tm_half_product *p)
{
    if ((p->n + 255) / 256 * 256 - p->n > p->n / 12)
        multiply90_wide<T, 128, 5>(c, op, p);
    else
        multiply90_wide<T, 256, 4>(c, op, p);
}

/* What the tensor copy engine takes. */
static bool copies(tm_cuda *c, const tm_half_product *p)
{
    return c->architecture == 90 && p->b_turned >= p->a_turned && p->n % 8 == 0 && p->k > 0 && (p->a_turned || p->k % 8 == 0) && encoder();
}

bool tm_half_multiply(tm_device *d, const char *op, const tm_half_product *p)
{
    tm_cuda *c = tm_cuda_of(d);
    if (!tm_is_half(p->a.dtype) || p->b.dtype != p->a.dtype || (p->out.dtype != p->a.dtype && p->out.dtype != TM_F32) || c->architecture < 80)
        return false;
    if (p->low_a.data && (p->a_turned || p->low_a.dtype != p->a.dtype || p->low_b.dtype != p->a.dtype || p->low_a.cols % 16))
        return false;
    if (p->m <= 0 || p->n <= 0)
        return true;
    bool bf16_factors = p->a.dtype == TM_BF16, whole = aligned(p->a) && aligned(p->b) && aligned(p->low_a) && aligned(p->low_b);
    if (copies(c, p) && whole && aligned(p->out))
        bf16_factors ? multiply90<bf16>(c, op, p) : multiply90<f16>(c, op, p);
    else if (whole)
        bf16_factors ? multiply80<bf16, true>(c, op, p) : multiply80<f16, true>(c, op, p);
    else
        bf16_factors ? multiply80<bf16, false>(c, op, p) : multiply80<f16, false>(c, op, p);
    return true;
}
