/* Attention in 16 bits: which kernels serve what, and their launches. Heads of 64 and 128 on Hopper: flash90.cuh; the
 * other multiples of 8 up to 256, and other GPUs: flash.cuh, with the columns of a head filled up with zeros to the
 * next size there is.
 *
 * The host knows a bound on the tiles only: that of a layout whose examples fill all rows. */
#include "device/cuda/half/flash90.cuh"
#include "device/cuda/half/half.h"

static bool aligned(const tm_tensor &t) { return (uintptr_t)t.data % 16 == 0 && t.ld % 8 == 0 && t.ld * 2 < (int64_t)1 << 40 && t.rows < INT32_MAX; }

static bool served(const tm_cuda *c, const tm_attention *a, std::initializer_list<tm_tensor> tensors)
{
    const tm_tensor &q = *tensors.begin();
    for (const tm_tensor &t : tensors)
        if (t.dtype != q.dtype || !aligned(t))
            return false;
    bool room = sizeof(flash_list) + q.rows * (int64_t)sizeof(flash_tile) <= TM_CUDA_PARTIALS * sizeof(*c->partials); /* make_list */
    return room && c->architecture >= 80 && tm_is_half(q.dtype) && a->head_size % 8 == 0 && a->head_size <= 256 && a->scale > 0;
}

static bool hopper(const tm_cuda *c, int head_size) { return c->architecture == 90 && (head_size == 64 || head_size == 128); }

static flash_args args_of(const tm_spans *spans, const tm_attention *a, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v, const tm_tensor &out, const tm_tensor &lse)
{
    flash_args w = {};
    w.q = (const bf16 *)q.data;
    w.k = (const bf16 *)k.data;
    w.v = (const bf16 *)v.data;
    w.out = (bf16 *)out.data;
    w.lse = (float *)lse.data;
    w.ld_q = q.ld;
    w.ld_k = k.ld;
    w.ld_v = v.ld;
    w.ld_out = out.ld;
    w.ld_lse = lse.ld;
    w.spans = *spans;
    w.heads = a->heads;
    w.kv_heads = a->kv_heads;
    w.size = a->head_size;
    w.scale = a->scale;
    w.softcap = a->softcap;
    w.window = a->window;
    return w;
}

/* --- Launching --- */

/* The address of the driver's function: the library links no driver, so that it loads without one. */
typedef CUresult (*encode_call)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *, const cuuint64_t *, const cuuint32_t *, const cuuint32_t *,
                                CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

static bool map_of(tm_cuda *c, CUtensorMap *map, const tm_tensor &x, int rows)
{
    cudaDriverEntryPointQueryResult found;
    encode_call encode = nullptr;
    cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", (void **)&encode, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
        tm_cuda_note(c, TM_FAILED, "attention", "the driver has no tensor maps");
        return false;
    }
    cuuint64_t size[2] = {(cuuint64_t)x.cols, (cuuint64_t)x.rows}, stride[1] = {(cuuint64_t)x.ld * 2};
    cuuint32_t box[2] = {SWIZZLED_COLUMNS, (cuuint32_t)rows}, one[2] = {1, 1};
    CUresult r = encode(map, x.dtype == TM_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, x.data, size, stride, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (r != CUDA_SUCCESS)
        tm_cuda_note(c, TM_FAILED, "attention", "the driver refuses a tensor map");
    return r == CUDA_SUCCESS;
}

/* As many blocks as run at once, or as there can be items. */
template <class Args> static void launch(tm_cuda *c, const char *op, void (*kernel)(Args), const Args &args, int64_t items, int threads, int shared)
{
    int64_t grid = (int64_t)tm_cuda_prepare(c, op, kernel, threads, shared) * c->processors;
    if (grid > 0 && items > 0)
        tm_cuda_launch(c, op, kernel, (unsigned)(items < grid ? items : grid), threads, (size_t)shared, args);
}

/* Tiles of `size` rows that spans over so many rows can have. */
static int64_t tiles_bound(const tm_spans *spans, int64_t rows, int size)
{
    int64_t bound = rows / size + spans->n;
    return bound < rows ? bound : rows;
}

/* The list of tiles stands where ops keep partial sums. */
static void make_list(tm_cuda *c, const char *op, flash_args *w, int size)
{
    flash_list *list = (flash_list *)c->partials;
    auto kernel = size == 48 ? flash_list_make<48> : size == 64 ? flash_list_make<64> : flash_list_make<128>;
    tm_cuda_launch(c, op, kernel, 1, FLASH_LIST_THREADS, 0, w->spans, list);
    w->list = list;
}

template <class T, int D, int BM, int BN, int WARPS> static void forward(tm_cuda *c, flash_args w, int64_t rows)
{
    make_list(c, "attention_forward", &w, BM);
    launch(c, "attention_forward", flash_forward<T, D, BM, BN, WARPS>, w, tiles_bound(&w.spans, rows, BM) * w.heads, WARPS * 32, (BM + 4 * BN) * (D + TILE_PAD) * 2);
}

template <class T, int D, int BM, int BN, int WARPS, int PARTS = 3> static void backward_kv(tm_cuda *c, const flash_args &w, int64_t rows)
{
    launch(c, "attention_backward", flash_backward_kv<T, D, BM, BN, WARPS, PARTS>, w, tiles_bound(&w.spans, rows, BN) * w.kv_heads, WARPS * 32,
           (2 * BN + 4 * BM) * (D + TILE_PAD) * 2 + 4 * BM * 4);
}

template <class T, int D, int BM, int BN, int WARPS> static void backward_q(tm_cuda *c, const flash_args &w, int64_t rows)
{
    launch(c, "attention_backward", flash_backward_q<T, D, BM, BN, WARPS>, w, tiles_bound(&w.spans, rows, BM) * w.heads, WARPS * 32,
           (2 * BM + 4 * BN) * (D + TILE_PAD) * 2);
}

template <class T, int D, int GROUPS, int BN, int STAGES, bool CAP> static void forward90(tm_cuda *c, flash90_args *all, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v)
{
    constexpr int BM = 64 * GROUPS;
    make_list(c, "attention_forward", &all->w, BM);
    if (map_of(c, &all->q, q, BM) && map_of(c, &all->k, k, BN) && map_of(c, &all->v, v, BN))
        launch(c, "attention_forward", flash90_forward<T, D, GROUPS, BN, STAGES, CAP>, *all, tiles_bound(&all->w.spans, q.rows, BM) * all->w.heads, 128 * GROUPS + 128,
               (2 * BM + 2 * STAGES * BN) * D * 2);
}

template <class T, int D, int BM, int STAGES, bool CAP> static void backward_kv90(tm_cuda *c, flash90_args *all, const tm_tensor &dout, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v)
{
    if (map_of(c, &all->q, q, BM) && map_of(c, &all->dout, dout, BM) && map_of(c, &all->k, k, 128) && map_of(c, &all->v, v, 128))
        launch(c, "attention_backward", flash90_backward_kv<T, D, BM, STAGES, CAP>, *all, tiles_bound(&all->w.spans, q.rows, 128) * all->w.kv_heads, 384,
               (2 * 128 + 2 * STAGES * BM) * D * 2 + 2 * STAGES * BM * 4);
}

template <class T, int D, int BN, int STAGES, bool CAP> static void backward_q90(tm_cuda *c, flash90_args *all, const tm_tensor &dout, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v)
{
    if (map_of(c, &all->q, q, 128) && map_of(c, &all->dout, dout, 128) && map_of(c, &all->k, k, BN) && map_of(c, &all->v, v, BN))
        launch(c, "attention_backward", flash90_backward_q<T, D, BN, STAGES, CAP>, *all, tiles_bound(&all->w.spans, q.rows, 128) * all->w.heads, 384,
               (4 * 128 + 2 * STAGES * BN) * D * 2);
}

/* --- The ops --- */

template <class T, bool CAP> static void forward_hopper(tm_cuda *c, const flash_args &w, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v)
{
    flash90_args all = {w};
    if (w.size == 64)
        forward90<T, 64, 2, 128, 3, CAP>(c, &all, q, k, v);
    else
        forward90<T, 128, 2, 128, 2, CAP>(c, &all, q, k, v);
}

template <class T> static void forward_any(tm_cuda *c, const flash_args &w, int64_t rows)
{
    if (w.size <= 64)
        forward<T, 64, 128, 64, 4>(c, w, rows);
    else if (w.size <= 80)
        forward<T, 80, 128, 64, 4>(c, w, rows);
    else if (w.size <= 96)
        forward<T, 96, 64, 64, 4>(c, w, rows);
    else if (w.size <= 128)
        forward<T, 128, 128, 32, 4>(c, w, rows);
    else
        forward<T, 256, 64, 32, 4>(c, w, rows);
}

template <class T> static void forward_typed(tm_cuda *c, const flash_args &w, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v)
{
    if (!hopper(c, w.size))
        forward_any<T>(c, w, q.rows);
    else if (w.softcap > 0)
        forward_hopper<T, true>(c, w, q, k, v);
    else
        forward_hopper<T, false>(c, w, q, k, v);
}

bool tm_half_attention_forward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse)
{
    tm_cuda *c = tm_cuda_of(d);
    if (!served(c, a, {q, k, v, out}))
        return false;
    flash_args w = args_of(spans, a, q, k, v, out, lse);
    if (q.dtype == TM_BF16)
        forward_typed<bf16>(c, w, q, k, v);
    else
        forward_typed<f16>(c, w, q, k, v);
    return true;
}

template <class T> static void delta_of(tm_cuda *c, const flash_args &w, float *delta, int64_t rows)
{
    enum { THREADS = 256 };
    int lanes = w.size <= 64 ? 8 : w.size <= 128 ? 16 : 32;
    int64_t need = (rows + 7) / 8, most = (int64_t)c->processors * 16;
    auto kernel = lanes == 8 ? flash_delta<T, 8> : lanes == 16 ? flash_delta<T, 16> : flash_delta<T, 32>;
    tm_cuda_launch(c, "attention_backward", kernel, (unsigned)(need < most ? need : most), THREADS, 0, w, delta);
}

template <class T, bool CAP> static void backward_hopper(tm_cuda *c, const flash_args &w, const tm_tensor &dout, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v)
{
    flash90_args all = {w};
    make_list(c, "attention_backward", &all.w, 128);
    if (w.size == 64) {
        backward_kv90<T, 64, 64, 4, CAP>(c, &all, dout, q, k, v);
        backward_q90<T, 64, 128, 3, CAP>(c, &all, dout, q, k, v);
    } else {
        backward_kv90<T, 128, 64, 4, CAP>(c, &all, dout, q, k, v);
        backward_q90<T, 128, 64, 3, CAP>(c, &all, dout, q, k, v);
    }
}

template <class T> static void backward_any(tm_cuda *c, flash_args w, int64_t rows)
{
    make_list(c, "attention_backward", &w, w.size <= 128 ? 64 : 48);
    if (w.size <= 64) {
        backward_kv<T, 64, 64, 64, 4>(c, w, rows);
        backward_q<T, 64, 64, 64, 4>(c, w, rows);
    } else if (w.size <= 80) {
        backward_kv<T, 80, 64, 64, 4>(c, w, rows);
        backward_q<T, 80, 64, 64, 4>(c, w, rows);
    } else if (w.size <= 96) {
        backward_kv<T, 96, 64, 64, 4>(c, w, rows);
        backward_q<T, 96, 64, 64, 4>(c, w, rows);
    } else if (w.size <= 128) {
        backward_kv<T, 128, 32, 64, 4>(c, w, rows);
        backward_q<T, 128, 64, 32, 4>(c, w, rows);
    } else {
        backward_kv<T, 256, 16, 48, 3, 1>(c, w, rows);
        backward_kv<T, 256, 16, 48, 3, 2>(c, w, rows);
        backward_q<T, 256, 48, 16, 3>(c, w, rows);
    }
}

template <class T> static void backward_typed(tm_cuda *c, const flash_args &w, float *delta, const tm_tensor &dout, const tm_tensor &q, const tm_tensor &k, const tm_tensor &v)
{
    delta_of<T>(c, w, delta, q.rows);
    if (!hopper(c, w.size))
        backward_any<T>(c, w, q.rows);
    else if (w.softcap > 0)
        backward_hopper<T, true>(c, w, dout, q, k, v);
    else
        backward_hopper<T, false>(c, w, dout, q, k, v);
}

bool tm_half_attention_backward(tm_device *d, const tm_spans *spans, const tm_attention *a, tm_tensor dout, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse, tm_tensor delta, tm_tensor dq, tm_tensor dk, tm_tensor dv)
{
    tm_cuda *c = tm_cuda_of(d);
    if (!served(c, a, {dout, q, k, v, out, dq, dk, dv}))
        return false;
    if (q.rows <= 0)
        return true;
    flash_args w = args_of(spans, a, q, k, v, out, lse);
    w.dout = (const bf16 *)dout.data;
    w.delta = (const float *)delta.data;
    w.dq = (bf16 *)dq.data;
    w.dk = (bf16 *)dk.data;
    w.dv = (bf16 *)dv.data;
    w.ld_dout = dout.ld;
    w.ld_delta = delta.ld;
    w.ld_dq = dq.ld;
    w.ld_dk = dk.ld;
    w.ld_dv = dv.ld;
    if (q.dtype == TM_BF16)
        backward_typed<bf16>(c, w, (float *)delta.data, dout, q, k, v);
    else
        backward_typed<f16>(c, w, (float *)delta.data, dout, q, k, v);
    return true;
}
