/* Rotary positions of heads of 16 bits, with or without a norm of every head. docs/math/rope.md.
 * A thread has eight pairs of a position in HEADS heads: their angles are read once. */
#include "device/cuda/half/vec.cuh"

enum { HEADS = 4, THREADS = 128, MOST_THREADS = 256 };

struct tm_half_rope {
    int64_t n;
    const int32_t *position;
    int heads, D, half, rows; /* rows a block */
    tm_tensor in, cos, sin, weight, rstd, out; /* backward: in is dy, out is dx */
    tm_tensor x;
    float offset, eps;
};

struct eight_pairs {
    eight low, high;
};

template <class T> TM_LANE eight_pairs pairs_at(const tm_tensor &t, int64_t i, int half)
{
    return {widen<T>(packed<T>(t, i)), widen<T>(packed<T>(t, i + half))};
}

TM_LANE void rotate(eight_pairs &p, const eight &c, const eight &s)
{
    for (int e = 0; e < 8; e++) {
        float low = p.low.v[e], high = p.high.v[e];
        p.low.v[e] = fmaf(-high, s.v[e], low * c.v[e]);
        p.high.v[e] = fmaf(low, s.v[e], high * c.v[e]);
    }
}

/* The sum over the threads of a head: `threads` neighbours, a power of two. */
TM_LANE float head_sum(float x, int threads)
{
    for (int step = threads / 2; step; step /= 2)
        x += __shfl_xor_sync(~0u, x, step);
    return x;
}

template <class T, bool NORM, bool BACKWARD> static __global__ void __launch_bounds__(MOST_THREADS) rope_heads(tm_half_rope w)
{
    int a_head = w.half / 8, groups = (w.heads + HEADS - 1) / HEADS, a_row = a_head * groups;
    int64_t t = blockIdx.x * (int64_t)w.rows + threadIdx.x / a_row;
    int group = threadIdx.x % a_row / a_head, i = threadIdx.x % a_head * 8;
    bool there = threadIdx.x < w.rows * a_row && t < w.n;
    if (!NORM && !there)
        return;
    if (!there)
        t = 0;
    int64_t p = w.position[t];
    eight c = load_eight(w.cos, p * w.cos.ld + i), s = load_eight(w.sin, p * w.sin.ld + i);
    eight_pairs factor;
    if (NORM) {
        factor = {load_eight(w.weight, i), load_eight(w.weight, i + w.half)};
        for (int e = 0; e < 8; e++) {
            factor.low.v[e] += w.offset;
            factor.high.v[e] += w.offset;
        }
    }
    if (BACKWARD)
        for (int e = 0; e < 8; e++)
            s.v[e] = -s.v[e];
#pragma unroll
    for (int k = 0; k < HEADS; k++) {
        int head = group + k * groups;
        bool mine = there && head < w.heads;
        if (!NORM && !mine)
            break;
        if (!mine)
            head = 0;
        int64_t at_in = t * w.in.ld + head * w.D + i, at_out = t * w.out.ld + head * w.D + i;
        eight_pairs v = pairs_at<T>(w.in, at_in, w.half);
        if (NORM && !BACKWARD) {
            float squares = 0;
            for (int e = 0; e < 8; e++)
                squares = fmaf(v.high.v[e], v.high.v[e], fmaf(v.low.v[e], v.low.v[e], squares));
            float r = 1 / sqrtf(head_sum(squares, a_head) / (float)w.D + w.eps);
            if (mine && i == 0)
                put(w.rstd, t, head, r);
            for (int e = 0; e < 8; e++) {
                v.low.v[e] = (v.low.v[e] * r) * factor.low.v[e];
                v.high.v[e] = (v.high.v[e] * r) * factor.high.v[e];
            }
        }
        rotate(v, c, s);
        if (NORM && BACKWARD) {
            eight_pairs x = pairs_at<T>(w.x, t * w.x.ld + head * w.D + i, w.half);
            float sum = 0, r = at(w.rstd, t, head);
            for (int e = 0; e < 8; e++) {
                v.low.v[e] *= factor.low.v[e];
                v.high.v[e] *= factor.high.v[e];
                sum = fmaf(v.high.v[e], x.high.v[e], fmaf(v.low.v[e], x.low.v[e], sum));
            }
            float q = head_sum(sum, a_head) * r / (float)w.D * r;
            for (int e = 0; e < 8; e++) {
                v.low.v[e] = r * fmaf(-q, x.low.v[e], v.low.v[e]);
                v.high.v[e] = r * fmaf(-q, x.high.v[e], v.high.v[e]);
            }
        }
        if (mine) {
            packed_at<T>(w.out, at_out) = narrow<T>(v.low);
            packed_at<T>(w.out, at_out + w.half) = narrow<T>(v.high);
        }
    }
}

/* What is not rotated: columns from 2 * half on, 16 bytes a thread. */
template <class T> static __global__ void __launch_bounds__(THREADS) copy_rest(tm_half_rope w)
{
    int rest = w.D / 8 - w.half / 4;
    int64_t k = blockIdx.x * (int64_t)THREADS + threadIdx.x, head = k / rest % w.heads, t = k / rest / w.heads, i = head * w.D + 2 * w.half + k % rest * 8;
    if (t < w.n)
        packed_at<T>(w.out, t * w.out.ld + i) = packed<T>(w.in, t * w.in.ld + i);
}

template <bool BACKWARD> static void run(tm_device *d, const char *op, tm_half_rope w)
{
    tm_cuda *c = tm_cuda_of(d);
    int a_row = w.half / 8 * ((w.heads + HEADS - 1) / HEADS);
    w.rows = a_row < THREADS ? THREADS / a_row : 1;
    unsigned threads = (unsigned)(w.rows * a_row + 31) / 32 * 32, blocks = (unsigned)((w.n + w.rows - 1) / w.rows);
    if (w.n <= 0)
        return;
    tm_half_typed(w.in.dtype, [&](auto element) {
        typedef decltype(element) T;
        if (w.weight.data)
            tm_cuda_launch(c, op, rope_heads<T, true, BACKWARD>, blocks, threads, 0, w);
        else
            tm_cuda_launch(c, op, rope_heads<T, false, BACKWARD>, blocks, threads, 0, w);
        int64_t rest = w.n * w.heads * (w.D / 8 - w.half / 4);
        if (rest > 0 && w.in.data != w.out.data)
            tm_cuda_launch(c, op, copy_rest<T>, (unsigned)((rest + THREADS - 1) / THREADS), THREADS, 0, w);
    });
}

/* With a norm the threads of a head are a part of a warp, and the whole head is rotated. */
static bool serves(int64_t heads, const tm_half_rope &w)
{
    int a_head = w.half / 8;
    int64_t a_row = a_head * ((heads + HEADS - 1) / HEADS);
    if (w.half % 8 || w.D % 8 || a_row > MOST_THREADS || !a_head || !tm_half_fits({w.in, w.cos, w.sin, w.weight, w.out, w.x}))
        return false;
    return !w.weight.data || (w.D == 2 * w.half && a_head <= 32 && (a_head & (a_head - 1)) == 0);
}

bool tm_half_rope_forward(tm_device *d, const tm_rows *rows, tm_tensor x, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, float offset, float eps, tm_tensor rstd, tm_tensor y)
{
    tm_half_rope w = {rows->n, rows->position, (int)heads, (int)(x.cols / heads), (int)cos.cols, 0, x, cos, sin, norm_weight, rstd, y, {}, offset, eps};
    if (!tm_half_alike({x, y}) || !serves(heads, w))
        return false;
    run<false>(d, "rope_forward", w);
    return true;
}

/* Of the norm's weight: columns c .. c + 7 of a head (the fold). */
template <class T> struct head_weight_term {
    tm_half_rope w;
    __device__ void operator()(int64_t t, int64_t c, int64_t head, eight &total) const
    {
        int64_t i = c < w.half ? c : c - w.half, p = w.position[t], from = t * w.in.ld + head * w.D + i;
        eight_pairs g = pairs_at<T>(w.in, from, w.half);
        eight cosine = load_eight(w.cos, p * w.cos.ld + i), sine = load_eight(w.sin, p * w.sin.ld + i), x = widen<T>(packed<T>(w.x, t * w.x.ld + head * w.D + c));
        float r = at(w.rstd, t, head);
        for (int e = 0; e < 8; e++)
            sine.v[e] = -sine.v[e];
        rotate(g, cosine, sine);
        for (int e = 0; e < 8; e++)
            total.v[e] = fmaf(c < w.half ? g.low.v[e] : g.high.v[e], x.v[e] * r, total.v[e]);
    }
};

bool tm_half_rope_backward(tm_device *d, const tm_rows *rows, tm_tensor dy, int64_t heads, tm_tensor cos, tm_tensor sin, tm_tensor norm_weight, float offset, tm_tensor rstd, tm_tensor x, tm_tensor dx, tm_tensor dnorm_weight)
{
    tm_half_rope w = {rows->n, rows->position, (int)heads, (int)(dy.cols / heads), (int)cos.cols, 0, dy, cos, sin, norm_weight, rstd, dx, x, offset, 0};
    if (!tm_half_alike({dy, dx, x}) || !serves(heads, w))
        return false;
    if (dnorm_weight.data) /* first: dx may overwrite dy */
        tm_half_typed(dy.dtype, [&](auto element) { sum_rows(d, "rope_backward", rows, false, w.D, heads, dnorm_weight, head_weight_term<decltype(element)>{w}); });
    run<true>(d, "rope_backward", w);
    return true;
}
