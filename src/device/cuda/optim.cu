/* Ops over all trained tensors at once. docs/math/optim.md, docs/formats/trail.md.
 *
 * The list of tensors is the host's; it is uploaded when it differs from the last one, so that a run
 * uploads it once. Blocks of TM_CUDA_BLOCK elements leave partial sums, which one thread a replica (or a
 * tensor) adds in the order of tensors and blocks. */
#include "device/cuda/cuda.cuh"

/* The list on the device; false: there is none (noted). */
static bool upload_list(tm_cuda *c, const char *op, int64_t n, const tm_trained *t)
{
    int64_t blocks = 0;
    if (n > TM_CUDA_TENSORS) {
        tm_cuda_note(c, TM_UNSUPPORTED, op, "more than 65,536 trained tensors");
        return false;
    }
    for (int64_t i = 0; i < n; i++) {
        if (!tm_cuda_f32(&c->base, op, {t[i].value, t[i].grad, t[i].m, t[i].v}))
            return false;
        int64_t elements = t[i].value.rows * t[i].value.cols;
        c->list[i] = {(float *)t[i].value.data, (float *)t[i].grad.data, (float *)t[i].m.data, (float *)t[i].v.data, elements, blocks,
                      t[i].weight_decay, t[i].lr_ratio, t[i].replica, 0};
        blocks += (elements + TM_CUDA_BLOCK - 1) / TM_CUDA_BLOCK;
    }
    if (blocks > TM_CUDA_PARTIALS) {
        tm_cuda_note(c, TM_UNSUPPORTED, op, "more than 4 billion trained elements");
        return false;
    }
    if (n == c->list_count && memcmp(c->list, c->last, (size_t)n * sizeof *c->list) == 0)
        return true;
    if (c->recording) {
        tm_cuda_note(c, TM_FAILED, op, "the list of trained tensors changed while a graph was recorded");
        return false;
    }
    memcpy(c->last, c->list, (size_t)n * sizeof *c->list);
    c->list_count = n;
    c->list_blocks = blocks;
    tm_cuda_check(c, op, cudaMemcpyAsync(c->device_list, c->last, (size_t)n * sizeof *c->list, cudaMemcpyHostToDevice, c->stream));
    return true;
}

/* The tensor that a block belongs to. */
TM_LANE const tm_cuda_trained &tensor_of(const tm_cuda_trained *list, int64_t n, int64_t block)
{
    int64_t low = 0, high = n;
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (list[middle].first <= block)
            low = middle;
        else
            high = middle;
    }
    return list[low];
}

/* f(tensor, begin, end, block) for every block. */
template <class F> static void each_block(tm_cuda *c, const char *op, F f)
{
    const tm_cuda_trained *list = c->device_list;
    int64_t n = c->list_count;
    tm_cuda_each(&c->base, op, c->list_blocks, [=] __device__(int64_t block) {
        const tm_cuda_trained &t = tensor_of(list, n, block);
        int64_t begin = (block - t.first) * TM_CUDA_BLOCK, end = begin + TM_CUDA_BLOCK;
        f(t, begin, end < t.n ? end : t.n, block);
    });
}

/* f(tensor, element) for every element. */
template <class F> static void each_element(tm_cuda *c, const char *op, F f)
{
    const tm_cuda_trained *list = c->device_list;
    int64_t n = c->list_count;
    tm_cuda_each(&c->base, op, c->list_blocks * TM_CUDA_BLOCK, [=] __device__(int64_t item) {
        const tm_cuda_trained &t = tensor_of(list, n, item / TM_CUDA_BLOCK);
        int64_t i = item - t.first * TM_CUDA_BLOCK;
        if (i < t.n)
            f(t, i);
    });
}

struct tm_cuda_square_block {
    double *partial;
    __device__ void operator()(const tm_cuda_trained &t, int64_t begin, int64_t end, int64_t block) const
    {
        double sum[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int64_t i = begin; i < end; i++)
            sum[(i - begin) % 8] += (double)t.grad[i] * (double)t.grad[i];
        partial[block] = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
    }
};

void tm_cuda_grad_norm(tm_device *d, int64_t n, const tm_trained *t, int32_t replicas, double max_norm, tm_step_params *step)
{
    tm_cuda *c = tm_cuda_of(d);
    if (!upload_list(c, "grad_norm", n, t))
        return;
    double *partial = (double *)c->partials;
    const tm_cuda_trained *list = c->device_list;
    int64_t blocks = c->list_blocks;
    each_block(c, "grad_norm", tm_cuda_square_block{partial});
    tm_cuda_each(d, "grad_norm", replicas, [=] __device__(int64_t r) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++)
            if (list[i].replica == r)
                for (int64_t b = list[i].first; b < (i + 1 < n ? list[i + 1].first : blocks); b++)
                    sum += partial[b];
        sum = sqrt(sum);
        double clip = max_norm / (sum + 1e-6);
        step[r].grad_norm = sum;
        step[r].clip = max_norm <= 0 || clip > 1 ? 1 : clip;
    });
}

struct tm_cuda_adamw_element {
    const tm_step_params *step;
    double beta1, beta2, eps;
    __device__ void operator()(const tm_cuda_trained &t, int64_t i) const
    {
        const tm_step_params *s = &step[t.replica];
        double lr = s->lr * (double)t.lr_ratio;
        float decay = (float)(1 - lr * (double)t.weight_decay), new1 = (float)(1 - beta1), new2 = (float)(1 - beta2);
        float g = t.grad[i] * (float)s->clip, p = t.value[i] * decay;
        float m = fmaf(new1, g - t.m[i], t.m[i]), v = fmaf(new2 * g, g, t.v[i] * (float)beta2);
        float root = sqrtf(v) / (float)sqrt(s->bias2) + (float)eps;
        t.m[i] = m;
        t.v[i] = v;
        t.value[i] = p + ((float)(-lr / s->bias1) * m) / root;
    }
};

void tm_cuda_adamw(tm_device *d, int64_t n, const tm_trained *t, double beta1, double beta2, double eps, const tm_step_params *step)
{
    tm_cuda *c = tm_cuda_of(d);
    if (upload_list(c, "adamw", n, t))
        each_element(c, "adamw", tm_cuda_adamw_element{step, beta1, beta2, eps});
}

struct tm_cuda_sgd_element {
    const tm_step_params *step;
    double momentum;
    bool first;
    __device__ void operator()(const tm_cuda_trained &t, int64_t i) const
    {
        const tm_step_params *s = &step[t.replica];
        float g = t.grad[i] * (float)s->clip, p = t.value[i];
        if (t.weight_decay != 0)
            g = fmaf(t.weight_decay, p, g);
        if (t.m) {
            if (!first)
                g = t.m[i] * (float)momentum + g;
            t.m[i] = g;
        }
        t.value[i] = fmaf((float)(-s->lr * (double)t.lr_ratio), g, p);
    }
};

void tm_cuda_sgd(tm_device *d, int64_t n, const tm_trained *t, double momentum, bool first, const tm_step_params *step)
{
    tm_cuda *c = tm_cuda_of(d);
    if (upload_list(c, "sgd", n, t))
        each_element(c, "sgd", tm_cuda_sgd_element{step, momentum, first});
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
    __device__ void operator()(const tm_cuda_trained &t, int64_t begin, int64_t end, int64_t block) const
    {
        uint64_t sum = 0;
        for (int64_t i = begin; i < end; i++) {
            uint32_t bits;
            memcpy(&bits, &t.value[i], 4);
            sum += mix(bits, (uint64_t)i);
        }
        partial[block] = sum;
    }
};

/* out is the host's: the one op that waits. */
void tm_cuda_trail(tm_device *d, int64_t n, const tm_trained *t, uint64_t *out)
{
    tm_cuda *c = tm_cuda_of(d);
    if (!upload_list(c, "trail", n, t))
        return;
    uint64_t *partial = c->partials, *sums = c->sums;
    const tm_cuda_trained *list = c->device_list;
    int64_t blocks = c->list_blocks;
    each_block(c, "trail", tm_cuda_trail_block{partial});
    tm_cuda_each(d, "trail", n, [=] __device__(int64_t i) {
        uint64_t sum = 0;
        for (int64_t b = list[i].first; b < (i + 1 < n ? list[i + 1].first : blocks); b++)
            sum += partial[b];
        sums[i] = sum;
    });
    d->calls->download(d, out, sums, n * 8);
}
