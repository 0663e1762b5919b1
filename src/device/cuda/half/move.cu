/* Rows in and out, and elementwise helpers, eight elements a thread; each tensor f32, bf16 or f16. docs/math/dropout.md. */
#include "device/cuda/half/fast.cuh"
#include "device/cuda/half/vec.cuh"

enum { THREADS = 128, MOST_ROWS = 65535 };

/* f(row, column) for every eighth column of n rows: blocks of THREADS vectors of a row, or of several short rows. */
template <class F> static __global__ void __launch_bounds__(THREADS) each_eight(int64_t n, int64_t vectors, int64_t rows, F f)
{
    int64_t t = blockIdx.x * rows, i = blockIdx.y * (int64_t)THREADS + threadIdx.x;
    if (rows > 1) {
        t += (int)threadIdx.x / (int)vectors;
        i = (int)threadIdx.x % (int)vectors;
        if (threadIdx.x >= rows * vectors)
            return;
    }
    if (t < n && i < vectors)
        f(t, 8 * i);
}

template <class F> static bool over_rows(tm_device *d, const char *op, int64_t n, int64_t columns, F f)
{
    int64_t vectors = columns / 8, rows = vectors && vectors <= THREADS / 2 ? THREADS / vectors : 1;
    if (n <= 0 || !vectors)
        return true;
    if ((vectors + THREADS - 1) / THREADS > MOST_ROWS)
        return false;
    dim3 grid((unsigned)((n + rows - 1) / rows), (unsigned)((vectors + THREADS - 1) / THREADS));
    tm_cuda_launch(tm_cuda_of(d), op, each_eight<F>, grid, THREADS, 0, n, vectors, rows, f);
    return true;
}

/* A matrix without gaps is one long row, which any number of columns may have. */
static bool is_flat(const tm_tensor &t) { return t.ld == t.cols; }
static tm_tensor one_row(tm_tensor t)
{
    t.cols *= t.rows;
    t.ld = t.cols;
    t.rows = 1;
    return t;
}

/* Rows of FLAT elements of what is flat: grids have room for more of these than for columns. */
static bool fold(tm_tensor *x, tm_tensor *y)
{
    enum { FLAT = 4096 };
    if (!is_flat(*y) || (x && !is_flat(*x)) || y->rows * y->cols % 8)
        return tm_half_fits({*y}) && (!x || tm_half_fits({*x}));
    int64_t all = y->rows * y->cols, width = all % FLAT == 0 ? FLAT : 8;
    for (tm_tensor *t : {x, y})
        if (t) {
            *t = one_row(*t);
            t->rows = all / width;
            t->cols = t->ld = width;
        }
    return tm_half_fits({*y}) && (!x || tm_half_fits({*x}));
}

bool tm_half_gather_rows(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, tm_tensor y)
{
    if (!tm_half_fits({x, y}))
        return false;
    return over_rows(d, "gather_rows", n, y.cols, [=] __device__(int64_t t, int64_t c) {
        int64_t source = index ? index[t] : t;
        store_eight(y, t * y.ld + c, source >= 0 ? load_eight(x, source * x.ld + c) : eight{});
    });
}

bool tm_half_scatter_rows(tm_device *d, int64_t n, const int32_t *index, tm_tensor x, int64_t rows_y, tm_tensor y)
{
    if (!tm_half_fits({x, y}))
        return false;
    y.rows = rows_y;
    if (is_flat(y))
        d->calls->zero(d, y.data, tm_dtype_bytes(y.dtype, rows_y * y.cols));
    else
        over_rows(d, "scatter_rows", rows_y, y.cols, [=] __device__(int64_t t, int64_t c) { store_eight(y, t * y.ld + c, eight{}); });
    return over_rows(d, "scatter_rows", n, y.cols, [=] __device__(int64_t t, int64_t c) {
        int64_t target = index[t];
        if (target >= 0)
            store_eight(y, target * y.ld + c, load_eight(x, t * x.ld + c));
    });
}

bool tm_half_cast(tm_device *d, tm_tensor x, tm_tensor y)
{
    x.rows = y.rows;
    if (x.cols != y.cols || !fold(&x, &y))
        return false;
    return over_rows(d, "cast", y.rows, y.cols, [=] __device__(int64_t t, int64_t c) { store_eight(y, t * y.ld + c, load_eight(x, t * x.ld + c)); });
}

bool tm_half_axpy(tm_device *d, double a, tm_tensor x, tm_tensor y)
{
    float factor = (float)a;
    x.rows = y.rows;
    if (x.cols != y.cols || !fold(&x, &y))
        return false;
    return over_rows(d, "axpy", y.rows, y.cols, [=] __device__(int64_t t, int64_t c) {
        eight add = load_eight(x, t * x.ld + c), to = load_eight(y, t * y.ld + c);
        for (int e = 0; e < 8; e++)
            to.v[e] = fmaf(factor, add.v[e], to.v[e]);
        store_eight(y, t * y.ld + c, to);
    });
}

bool tm_half_fill(tm_device *d, tm_tensor y, double value)
{
    eight all;
    for (float &v : all.v)
        v = (float)value;
    if (!fold(nullptr, &y))
        return false;
    return over_rows(d, "fill", y.rows, y.cols, [=] __device__(int64_t t, int64_t c) { store_eight(y, t * y.ld + c, all); });
}

bool tm_half_dropout(tm_device *d, const tm_rows *rows, const tm_step_params *step, uint32_t module, float p, bool accumulate, tm_tensor x, tm_tensor y)
{
    if (!tm_half_fits({x, y}))
        return false;
    tm_rows r = *rows;
    tm_cuda_drop drop = tm_cuda_drop_of(module, p);
    return over_rows(d, "dropout", r.n, y.cols, [=] __device__(int64_t t, int64_t c) {
        eight in = load_eight(x, t * x.ld + c), out = accumulate ? load_eight(y, t * y.ld + c) : eight{};
        uint64_t key = step[replica_of(r, t)].dropout_key;
        for (int half = 0; half < 2; half++) {
            tm_philox random = tm_philox_at(key, (uint32_t)(c / 4 + half), (uint32_t)r.position[t], r.example[t], drop.module);
            for (int e = 0; e < 4; e++) {
                float kept = in.v[4 * half + e] * (random.word[e] >> 8 >= drop.threshold ? drop.scale : 0);
                out.v[4 * half + e] = accumulate ? out.v[4 * half + e] + kept : kept;
            }
        }
        store_eight(y, t * y.ld + c, out);
    });
}

bool tm_half_softcap(tm_device *d, int64_t n, float cap, tm_tensor x)
{
    if (!tm_half_alike({x}) || !tm_half_fits({x}))
        return false;
    float inverse = 1 / cap;
    return over_rows(d, "softcap", n, x.cols, [=] __device__(int64_t t, int64_t c) {
        eight z = load_eight(x, t * x.ld + c);
        for (int e = 0; e < 8; e++)
            z.v[e] = cap * tanh_fast(z.v[e] * inverse);
        store_eight(x, t * x.ld + c, z);
    });
}
