/* The feed-forward's activation in 16 bits: a thread eight columns of ROWS rows. docs/math/glu.md. */
#include "device/cuda/half/activate.cuh"
#include "device/cuda/half/vec.cuh"

enum { THREADS = 256 };

struct tm_half_glu {
    int64_t n, F;
    bool gated;
    tm_tensor gate_up, h, dgate_up, again; /* backward: h is dh, again is h */
};

template <class T, int ACT, int ROWS> static __global__ void __launch_bounds__(THREADS) glu_forward(tm_half_glu w)
{
    int64_t i = 8 * (blockIdx.x * (int64_t)THREADS + threadIdx.x), first = blockIdx.y * (int64_t)ROWS;
    if (i >= w.F)
        return;
    uint4 gate[ROWS], up[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (first + k < w.n) {
            gate[k] = packed<T>(w.gate_up, (first + k) * w.gate_up.ld + i);
            if (w.gated)
                up[k] = packed<T>(w.gate_up, (first + k) * w.gate_up.ld + w.F + i);
        }
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (first + k < w.n) {
            eight g = widen<T>(gate[k]);
            for (int e = 0; e < 8; e++)
                g.v[e] = activate<ACT>(g.v[e]).x;
            if (w.gated) {
                eight u = widen<T>(up[k]);
                for (int e = 0; e < 8; e++)
                    g.v[e] *= u.v[e];
            }
            packed_at<T>(w.h, (first + k) * w.h.ld + i) = narrow<T>(g);
        }
}

template <class T, int ACT, int ROWS> static __global__ void __launch_bounds__(THREADS) glu_backward(tm_half_glu w)
{
    int64_t i = 8 * (blockIdx.x * (int64_t)THREADS + threadIdx.x), first = blockIdx.y * (int64_t)ROWS;
    if (i >= w.F)
        return;
    uint4 gate[ROWS], up[ROWS], dh[ROWS];
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (first + k < w.n) {
            gate[k] = packed<T>(w.gate_up, (first + k) * w.gate_up.ld + i);
            dh[k] = packed<T>(w.h, (first + k) * w.h.ld + i);
            if (w.gated)
                up[k] = packed<T>(w.gate_up, (first + k) * w.gate_up.ld + w.F + i);
        }
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (first + k < w.n) {
            eight g = widen<T>(gate[k]), in = widen<T>(dh[k]), u = {}, dup;
            if (w.gated)
                u = widen<T>(up[k]);
            for (int e = 0; e < 8; e++) {
                float2 a = activate<ACT>(g.v[e]);
                g.v[e] = w.gated ? (in.v[e] * u.v[e]) * a.y : in.v[e] * a.y;
                dup.v[e] = in.v[e] * a.x;
                u.v[e] = w.gated ? a.x * u.v[e] : a.x;
            }
            packed_at<T>(w.dgate_up, (first + k) * w.dgate_up.ld + i) = narrow<T>(g);
            if (w.gated)
                packed_at<T>(w.dgate_up, (first + k) * w.dgate_up.ld + w.F + i) = narrow<T>(dup);
            if (w.again.data)
                packed_at<T>(w.again, (first + k) * w.again.ld + i) = narrow<T>(u);
        }
}

template <class T, int ACT> static void launch(tm_cuda *c, bool forward, tm_half_glu w)
{
    enum { FORWARD_ROWS = 4, BACKWARD_ROWS = 2, MOST = 65535 };
    int64_t rows = forward ? FORWARD_ROWS : BACKWARD_ROWS, all = w.n;
    for (int64_t done = 0; done < all; done += MOST * rows) { /* a grid's height has a limit */
        w.n = all - done < MOST * rows ? all - done : MOST * rows;
        dim3 grid((unsigned)((w.F / 8 + THREADS - 1) / THREADS), (unsigned)((w.n + rows - 1) / rows));
        if (forward)
            tm_cuda_launch(c, "glu_forward", glu_forward<T, ACT, FORWARD_ROWS>, grid, THREADS, 0, w);
        else
            tm_cuda_launch(c, "glu_backward", glu_backward<T, ACT, BACKWARD_ROWS>, grid, THREADS, 0, w);
        for (tm_tensor *t : {&w.gate_up, &w.h, &w.dgate_up, &w.again})
            *t = tm_tensor_rows(*t, MOST * rows, t->rows);
    }
}

static bool run(tm_device *d, bool forward, tm_activation act, const tm_half_glu &w)
{
    tm_cuda *c = tm_cuda_of(d);
    if (!tm_half_alike({w.gate_up, w.h, w.dgate_up, w.again}) || !tm_half_fits({w.gate_up, w.h, w.dgate_up, w.again}))
        return false;
    tm_half_typed(w.h.dtype, [&](auto element) {
        typedef decltype(element) T;
        switch (act) {
        case TM_ACT_SILU: launch<T, TM_ACT_SILU>(c, forward, w); break;
        case TM_ACT_GELU_TANH: launch<T, TM_ACT_GELU_TANH>(c, forward, w); break;
        case TM_ACT_GELU: launch<T, TM_ACT_GELU>(c, forward, w); break;
        case TM_ACT_RELU: launch<T, TM_ACT_RELU>(c, forward, w); break;
        default: launch<T, TM_ACT_NONE>(c, forward, w); break;
        }
    });
    return true;
}

bool tm_half_glu_forward(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor h)
{
    return run(d, true, act, {rows->n, h.cols, gate_up.cols != h.cols, gate_up, h, {}, {}});
}

bool tm_half_glu_backward(tm_device *d, const tm_rows *rows, tm_activation act, tm_tensor gate_up, tm_tensor dh, tm_tensor dgate_up, tm_tensor h)
{
    return run(d, false, act, {rows->n, dh.cols, gate_up.cols != dh.cols, gate_up, dh, dgate_up, h});
}
