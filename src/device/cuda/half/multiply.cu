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
    w.h = p->h.data, w.h_ld = p->h.ld;
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
    if (tm_cuda_prepare(c, op, kernel, GEMM80_THREADS, GEMM80_SHARED))
        tm_cuda_launch(c, op, kernel, (unsigned)tiles, GEMM80_THREADS, GEMM80_SHARED, args_of(p));
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

/* Boxes of 128 bytes and `box_rows` rows of matrices in x, `apart` elements from one to the next (matrices 0: one, in two
 * dimensions); what lies outside counts as zeros. */
static bool map_of(CUtensorMap *map, const tm_tensor &x, int64_t rows, int64_t columns, int64_t matrices, int64_t apart, int box_rows)
{
    int64_t size = x.dtype == TM_F32 ? 4 : 2;
    CUtensorMapDataType type = x.dtype == TM_F32 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32 : x.dtype == TM_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    cuuint64_t sizes[3] = {(cuuint64_t)columns, (cuuint64_t)rows, (cuuint64_t)matrices}, strides[2] = {(cuuint64_t)(x.ld * size), (cuuint64_t)(apart * size)};
    cuuint32_t box[3] = {(cuuint32_t)(128 / size), (cuuint32_t)box_rows, 1}, one[3] = {1, 1, 1};
    return encoder()(map, type, matrices ? 3 : 2, x.data, sizes, strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                     CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

static bool map_a(CUtensorMap *map, const tm_tensor &a, int64_t m, int64_t k, bool turned)
{
    return turned ? map_of(map, a, k, m, 0, 0, GEMM90_DEPTH) : map_of(map, a, m, k, 0, 0, GEMM90_ROWS);
}

static bool map_b(CUtensorMap *map, const tm_tensor &b, int64_t n, int64_t k, int64_t matrices, bool turned, int box_rows)
{
    return turned ? map_of(map, b, k, n, matrices, k * b.ld, GEMM90_DEPTH) : map_of(map, b, n, k, matrices, n * b.ld, box_rows);
}

/* All maps of a product; `halves`: 2 where gate and up are matrices of their own, otherwise 1. */
static bool map_all(gemm90_args *g, const tm_half_product *p, int box_rows, int halves)
{
    int64_t n = p->n / halves;
    if (!map_a(&g->a, p->a, p->m, p->k, p->a_turned) || !map_b(&g->b, p->b, n, p->k, halves, p->b_turned, box_rows) || !map_of(&g->out, p->out, p->m, n, halves, n, 64))
        return false;
    if (g->w.low && (!map_a(&g->low_a, p->low_a, p->m, g->w.low, p->a_turned) || !map_b(&g->low_b, p->low_b, n, g->w.low, g->w.replicas * halves, p->b_turned, box_rows)))
        return false;
    return halves == 1 || map_of(&g->h, p->h, p->m, n, 1, n, 64);
}

template <class T, int BN, bool A_TURNED, bool B_TURNED, bool GLU = false> static void launch90(tm_cuda *c, const char *op, const tm_half_product *p, int splits)
{
    gemm90_args g = {};
    g.w = args_of(p);
    if (!map_all(&g, p, GLU ? BN / 2 : BN, GLU ? 2 : 1)) {
        tm_cuda_note(c, TM_FAILED, op, "the driver refuses a tensor map");
        return;
    }
    auto kernel = gemm90<T, BN, A_TURNED, B_TURNED, GLU>;
    constexpr int SHARED = gemm90_sizes<BN>::SHARED;
    int64_t tiles = row_tiles(p, GEMM90_ROWS) * ((p->n + BN - 1) / BN + GLU), most = c->processors;
    int64_t blocks = (p->k + GEMM90_DEPTH - 1) / GEMM90_DEPTH;
    g.splits = (int)(splits < blocks ? splits : blocks);
    if (g.splits > 1) {
        g.done = (int *)c->partials;
        tm_cuda_check(c, op, cudaMemsetAsync(g.done, 0, (size_t)tiles * 2 * sizeof(int), c->stream));
        tiles *= g.splits;
    }
    if (tm_cuda_prepare(c, op, kernel, 384, SHARED))
        tm_cuda_launch(c, op, kernel, (unsigned)(tiles < most ? tiles : most), 384, SHARED, g);
}

template <class T, int BN> static void multiply90_wide(tm_cuda *c, const char *op, const tm_half_product *p, int splits)
{
    if (p->a_turned)
        launch90<T, BN, true, true>(c, op, p, splits);
    else if (p->b_turned)
        launch90<T, BN, false, true>(c, op, p, 1);
    else
        launch90<T, BN, false, false>(c, op, p, 1);
}

/* The width of tiles, and into how many sums a weight's gradient is split. */
struct plan90 {
    int width, splits;
};

/* A weight's gradient [m, n] has few outputs and many rows k to sum over: the split whose tiles fill the processors best,
 * by a model in blocks of k (64 rows x 256 columns) for the 132 processors of an H100 or H200, so that only sizes decide.
 * A tile's start and store take 8 of them; splits that end together wait for one another, 6 each (measured with 1,000
 * rows). From 8,192 rows on the split is that of 8,192, without such waits: so it is the faster (docs/decisions.md). */
static plan90 plan_weight(int64_t m, int64_t n, int64_t k)
{
    plan90 best = {256, 1};
    double least = 1e30, blocks = (double)(((k < 8192 ? k : 8192) + GEMM90_DEPTH - 1) / GEMM90_DEPTH), wait = k < 8192 ? 6 : 0;
    for (int width : {256, 128})
        for (int splits = 1; splits <= 16; splits++) {
            int64_t tiles = (m + 127) / 128 * ((n + width - 1) / width), waves = (tiles * splits + 131) / 132;
            double block = width == 256 ? 1 : 0.54, cost = (double)waves * block * (blocks / splits + 8) + (waves == 1 ? wait * (splits - 1) : 0);
            if (tiles * 2 * (int64_t)sizeof(int) <= (int64_t)TM_CUDA_PARTIALS * 8 && cost < least) {
                best = {width, splits};
                least = cost;
            }
        }
    return best;
}

/* Otherwise tiles of 256 columns unless more than a twelfth of them would be empty. */
static plan90 plan_of(const tm_half_product *p)
{
    if (p->a_turned)
        return plan_weight(p->m, p->n, p->k);
    return {(p->n + 255) / 256 * 256 - p->n > p->n / 12 ? 128 : 256, 1};
}

/* Whether h comes out of the product itself; otherwise the op of its own follows. */
static bool activates(const tm_half_product *p)
{
    return p->h.data && p->activation == TM_ACT_SILU && p->n % 16 == 0 && !p->a_turned && !p->b_turned && !p->add && p->out.dtype == p->a.dtype && p->h.dtype == p->a.dtype && aligned(p->h);
}

template <class T> static void multiply90(tm_cuda *c, const char *op, const tm_half_product *p)
{
    if (activates(p)) {
        launch90<T, 256, false, false, true>(c, op, p, 1);
        return;
    }
    plan90 plan = plan_of(p);
    if (plan.width == 128)
        multiply90_wide<T, 128>(c, op, p, plan.splits);
    else
        multiply90_wide<T, 256>(c, op, p, plan.splits);
}

/* What the tensor copy engine takes. */
static bool copies(tm_cuda *c, const tm_half_product *p)
{
    return c->architecture == 90 && p->b_turned >= p->a_turned && p->n % 8 == 0 && p->k > 0 && (p->a_turned || p->k % 8 == 0) && encoder();
}

template <class T> static bool multiply(tm_cuda *c, const char *op, const tm_half_product *p)
{
    bool whole = aligned(p->a) && aligned(p->b) && aligned(p->low_a) && aligned(p->low_b);
    if (copies(c, p) && whole && aligned(p->out)) {
        multiply90<T>(c, op, p);
        return activates(p);
    }
    whole ? multiply80<T, true>(c, op, p) : multiply80<T, false>(c, op, p);
    return false;
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
    bool activated = p->a.dtype == TM_BF16 ? multiply<bf16>(c, op, p) : multiply<f16>(c, op, p);
    if (p->h.data && !activated) {
        tm_rows rows = {};
        rows.n = p->m;
        TM_RUN(d, glu_forward, &rows, p->activation, p->out, p->h);
    }
    return true;
}
