/* Ops over all trained tensors at once. docs/math/optim.md, docs/formats/trail.md.
 *
 * A fixed number of threads a tensor share its blocks or elements, so a launch depends on the number of
 * tensors alone: the host never looks into the list. Blocks leave partial sums, which one thread a
 * replica (or a tensor) adds in the order of tensors and blocks. */
#include "device/cuda/cuda.cuh"

enum { BLOCK = TM_TRAINED_BLOCK, BLOCK_THREADS = 64, ELEMENT_THREADS = 1024 };

TM_LANE int64_t elements_of(const tm_trained &t) { return t.value.rows * t.value.cols; }
TM_LANE int64_t blocks_of(const tm_trained &t) { return (elements_of(t) + BLOCK - 1) / BLOCK; }

/* f(tensor, begin, end, block) for every block. */
template <class F> static void each_block(tm_device *d, const char *op, int64_t n, const tm_trained *list, F f)
{
    tm_cuda_each(d, op, n * BLOCK_THREADS, [=] __device__(int64_t item) {
        const tm_trained &t = list[item / BLOCK_THREADS];
        int64_t all = elements_of(t);
        for (int64_t b = item % BLOCK_THREADS; b < blocks_of(t); b += BLOCK_THREADS)
            if (t.first_block + b < TM_CUDA_PARTIALS)
                f(t, b * BLOCK, (b + 1) * BLOCK < all ? (b + 1) * BLOCK : all, t.first_block + b);
    });
}

/* f(tensor, i) for every element. */
template <class F> static void each_element(tm_device *d, const char *op, int64_t n, const tm_trained *list, F f)
{
    tm_cuda_each(d, op, n * ELEMENT_THREADS, [=] __device__(int64_t item) {
        const tm_trained &t = list[item / ELEMENT_THREADS];
        for (int64_t i = item % ELEMENT_THREADS; i < elements_of(t); i += ELEMENT_THREADS)
            f(t, i);
    });
}

struct tm_cuda_unscale_element {
    const tm_step_params *step;
    __device__ void operator()(const tm_trained &t, int64_t i) const { put_element(t.grad, i, element(t.grad, i) * (float)step[t.replica].unscale); }
};

void tm_cuda_unscale(tm_device *d, int64_t n, const tm_trained *t, const tm_step_params *step)
{
    each_element(d, "unscale", n, t, tm_cuda_unscale_element{step});
}

struct tm_cuda_square_block {
    double *partial;
    __device__ void operator()(const tm_trained &t, int64_t begin, int64_t end, int64_t block) const
    {
        double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int64_t i = begin; i < end; i++)
            sum[(i - begin) % 8] += (double)element(t.grad, i) * (double)element(t.grad, i);
        partial[block] = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
    }
};

void tm_cuda_grad_norm(tm_device *d, int64_t n, const tm_trained *t, int32_t replicas, double max_norm, tm_step_params *step)
{
    double *partial = (double *)tm_cuda_of(d)->partials;
    each_block(d, "grad_norm", n, t, tm_cuda_square_block{partial});
    tm_cuda_each(d, "grad_norm", replicas, [=] __device__(int64_t r) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            if (t[i].replica == r)
                for (int64_t b = 0; b < blocks_of(t[i]);) {
                    double group = 0;
                    for (int64_t end = b + TM_TRAINED_GROUP; b < end && b < blocks_of(t[i]); b++)
                        group += t[i].first_block + b < TM_CUDA_PARTIALS ? partial[t[i].first_block + b] : NAN; /* no room: the run stops on it */
                    sum += group;
                }
        sum = sqrt(sum);
        double clip = max_norm / (sum + 1e-6);
        step[r].grad_norm = sum;
        step[r].clip = max_norm <= 0 || clip > 1 ? 1 : clip;
    });
}

struct tm_cuda_adamw_element {
    const tm_step_params *step;
    double beta1, beta2, eps;
    __device__ void operator()(const tm_trained &t, int64_t i) const
    {
        const tm_step_params *s = &step[t.replica];
        if (!is_finite(s->grad_norm))
            return;
        double lr = s->lr * (double)t.lr_ratio;
        float decay = (float)(1 - lr * (double)t.weight_decay), new1 = (float)(1 - beta1), new2 = (float)(1 - beta2);
        float g = element(t.grad, i) * (float)s->clip, p = element(t.value, i) * decay, before = element(t.m, i);
        float m = fmaf(new1, g - before, before), v = fmaf(new2 * g, g, element(t.v, i) * (float)beta2);
        float root = sqrtf(v) / (float)sqrt(s->bias2) + (float)eps;
        put_element(t.m, i, m);
        put_element(t.v, i, v);
        p = p + ((float)(-lr / s->bias1) * m) / root;
        if (t.value.dtype == TM_BF16)
            ((uint16_t *)t.value.data)[i] = tm_f32_to_bf16_at_random(p, tm_rounding_words(s, t.index, (uint64_t)i / 4).word[i % 4]);
        else
            put_element(t.value, i, p);
    }
};

void tm_cuda_adamw(tm_device *d, int64_t n, const tm_trained *t, double beta1, double beta2, double eps, const tm_step_params *step)
{
    each_element(d, "adamw", n, t, tm_cuda_adamw_element{step, beta1, beta2, eps});
}

struct tm_cuda_sgd_element {
    const tm_step_params *step;
    double momentum;
    bool first;
    __device__ void operator()(const tm_trained &t, int64_t i) const
    {
        const tm_step_params *s = &step[t.replica];
        if (!is_finite(s->grad_norm))
            return;
        float g = element(t.grad, i) * (float)s->clip, p = element(t.value, i);
        if (t.weight_decay != 0)
            g = fmaf(t.weight_decay, p, g);
        if (t.m.data) {
            if (!first)
                g = element(t.m, i) * (float)momentum + g;
            put_element(t.m, i, g);
        }
        put_element(t.value, i, fmaf((float)(-s->lr * (double)t.lr_ratio), g, p));
    }
};

void tm_cuda_sgd(tm_device *d, int64_t n, const tm_trained *t, double momentum, bool first, const tm_step_params *step)
{
    each_element(d, "sgd", n, t, tm_cuda_sgd_element{step, momentum, first});
}

TM_LANE uint64_t mix(uint64_t bits, uint64_t index)
{
    uint64_t x = bits + (index + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

struct tm_cuda_trail_block {
    uint64_t *partial;
    __device__ void operator()(const tm_trained &t, int64_t begin, int64_t end, int64_t block) const
    {
        uint64_t sum = 0;
        for (int64_t i = begin; i < end; i++) {
            bool whole = t.value.dtype == TM_F32;
            sum += mix(whole ? ((const uint32_t *)t.value.data)[i] : ((const uint16_t *)t.value.data)[i], (uint64_t)i);
        }
        partial[block] = sum;
    }
};

void tm_cuda_trail(tm_device *d, int64_t n, const tm_trained *t, uint64_t *out)
{
    uint64_t *partial = tm_cuda_of(d)->partials;
    each_block(d, "trail", n, t, tm_cuda_trail_block{partial});
    tm_cuda_each(d, "trail", n, [=] __device__(int64_t i) {
        uint64_t sum = 0;
        for (int64_t b = t[i].first_block; b < t[i].first_block + blocks_of(t[i]) && b < TM_CUDA_PARTIALS; b++)
            sum += partial[b];
        out[i] = sum;
    });
}
