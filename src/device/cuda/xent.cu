/* Cross-entropy of one target a row, and KL or mean square to a teacher: a thread a row. docs/math/xent.md. The likeliest of a
 * row: a warp a piece of it, then a warp for the pieces. */
#include "device/cuda/math.cuh"
#include "device/cuda/warp.cuh"

/* softmax of a row is exp(z - max) * inverse; log-sum-exp is max + log_sum. */
struct tm_cuda_softmax {
    float max, log_sum, inverse;
    float top; /* the largest logit without cap */
};

/* A logit as the loss sees it. */
TM_LANE float capped(float cap, float z) { return cap > 0 ? cap * tanh_of(z / cap) : z; }

TM_LANE tm_cuda_softmax softmax_of(const tm_tensor &z, float cap, int64_t row)
{
    float top = -INFINITY;
    for (int64_t i = 0; i < z.cols; i++)
        top = larger(at(z, row, i), top);
    float max = capped(cap, top);
    float sum = row_sum(z.cols, [&](int64_t i, float a) { return a + exp_of(capped(cap, at(z, row, i)) - max); });
    return {max, log_of(sum), 1 / sum, top};
}

TM_LANE bool is_hit(const tm_tensor &z, int64_t row, int32_t target, float max)
{
    for (int64_t v = 0; v < target; v++)
        if (at(z, row, v) == max)
            return false;
    return at(z, row, target) == max;
}

/* p' (log p' - log p) - p' + p, which is >= 0. */
TM_LANE float kl_term(const tm_cuda_softmax &model, const tm_cuda_softmax &teacher, float z, float w)
{
    float x = z - model.max, y = w - teacher.max, p = exp_of(x) * model.inverse, q = exp_of(y) * teacher.inverse;
    float apart = (x - model.log_sum) - (y - teacher.log_sum);
    float term = fabsf(apart) < 0.34f ? q * exp_rest(apart) : (p - q) - q * apart;
    return q == 0 ? p : term;
}

void tm_cuda_xent(tm_device *d, int64_t n, tm_tensor logits, float softcap, const int32_t *target, tm_tensor weight, tm_tensor teacher, tm_tensor teacher_weight, tm_tensor square_weight, bool grad, tm_tensor loss, tm_tensor kl, int32_t *hit)
{
    if (!tm_cuda_floats(d, "xent", {logits, weight, teacher, teacher_weight, square_weight, loss, kl}))
        return;
    tm_cuda_each(d, "xent", n, [=] __device__(int64_t row) {
        tm_tensor z = logits;
        int64_t want = target[row];
        tm_cuda_softmax model = softmax_of(z, softcap, row), other = {0, 0, 0, 0};
        put(loss, 0, row, model.log_sum + (model.max - capped(softcap, at(z, row, want))));
        hit[row] = is_hit(z, row, (int32_t)want, model.top);
        float c = teacher.data && square_weight.data ? at(square_weight, 0, row) : 0;
        if (c != 0)
            put(kl, 0, row, row_sum(z.cols, [&](int64_t i, float a) { float apart = capped(softcap, at(z, row, i)) - capped(softcap, at(teacher, row, i)); return fmaf(apart, apart, a); }) / (float)z.cols);
        else if (teacher.data) {
            other = softmax_of(teacher, softcap, row);
            put(kl, 0, row, row_sum(z.cols, [&](int64_t i, float a) { return a + kl_term(model, other, capped(softcap, at(z, row, i)), capped(softcap, at(teacher, row, i))); }));
        }
        if (!grad)
            return;
        float a = at(weight, 0, row), b = c == 0 && teacher.data && teacher_weight.data ? at(teacher_weight, 0, row) : 0, cc = c * (2 / (float)z.cols);
        for (int64_t i = 0; i < z.cols; i++) {
            if (a == 0 && b == 0 && c == 0) {
                put(z, row, i, 0);
                continue;
            }
            float zz = capped(softcap, at(z, row, i)), p = exp_of(zz - model.max) * model.inverse, g = a * (i == want ? p - 1 : p);
            if (b != 0)
                g = fmaf(b, p - exp_of(capped(softcap, at(teacher, row, i)) - other.max) * other.inverse, g);
            if (c != 0)
                g = fmaf(cc, zz - capped(softcap, at(teacher, row, i)), g);
            if (softcap > 0) {
                float th = zz / softcap;
                g = g * fmaf(-th, th, 1);
            }
            put(z, row, i, g);
        }
    });
}

void tm_cuda_softcap(tm_device *d, int64_t n, float cap, tm_tensor x)
{
    if (!tm_cuda_floats(d, "softcap", {x}))
        return;
    tm_cuda_each(d, "softcap", n * x.cols, [=] __device__(int64_t i) {
        put(x, i / x.cols, i % x.cols, capped(cap, at(x, i / x.cols, i % x.cols)));
    });
}

/* --- most_likely --- */

/* Orders as logits do and, of equals, the first id highest: so the largest is the same in whatever order it is looked for. */
TM_LANE uint64_t likelihood(float z, int64_t id)
{
    uint32_t bits;
    z = z + 0.0f; /* one zero */
    memcpy(&bits, &z, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 1u << 31;
    if (z != z)
        bits = id == 0 ? UINT32_MAX : 0;
    return (uint64_t)bits << 32 | (uint32_t)~id;
}

TM_LANE void largest_of_lanes(by_lane<uint64_t> &x)
{
    join_all(x, [](uint64_t a, uint64_t b) { return a > b ? a : b; });
}

void tm_cuda_most_likely(tm_device *d, int64_t n, tm_tensor logits, int32_t *id)
{
    const char *op = "most_likely";
    if (!tm_cuda_floats(d, op, {logits}))
        return;
    int64_t V = logits.cols, piece = 32 * LANES;
    while (n * ((V + piece - 1) / piece) > TM_CUDA_PARTIALS)
        piece *= 2;
    int64_t pieces = (V + piece - 1) / piece;
    uint64_t *found = tm_cuda_of(d)->partials;
    tm_cuda_warps(d, op, n * pieces, [=] __device__(int64_t i) {
        int64_t row = i / pieces, from = i % pieces * piece, to = from + piece < V ? from + piece : V;
        by_lane<uint64_t> most;
        EACH_LANE(lane) {
            most[lane] = 0;
            for (int64_t k = from + lane; k < to; k += LANES) {
                uint64_t it = likelihood(at(logits, row, k), k);
                most[lane] = it > most[lane] ? it : most[lane];
            }
        }
        largest_of_lanes(most);
        EACH_LANE(lane)
        if (lane == 0)
            found[i] = most[lane];
    });
    tm_cuda_warps(d, op, n, [=] __device__(int64_t row) {
        by_lane<uint64_t> most;
        EACH_LANE(lane) {
            most[lane] = 0;
            for (int64_t k = lane; k < pieces; k += LANES) {
                uint64_t it = found[row * pieces + k];
                most[lane] = it > most[lane] ? it : most[lane];
            }
        }
        largest_of_lanes(most);
        EACH_LANE(lane)
        if (lane == 0)
            id[row] = (int32_t) ~(uint32_t)most[lane];
    });
}
