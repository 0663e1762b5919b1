/* Ops over all trained tensors at once, as fast as memory: the bits of the plain kernels, which are the CPU's.
 * docs/math/optim.md, docs/formats/trail.md.
 *
 * Blocks of TM_TRAINED_BLOCK elements, counted through the whole list, are shared out among as many thread blocks as the
 * GPU runs at once; each finds the tensor of its first block in the list, which only the device knows. */
#include "device/cuda/half/vec.cuh"

enum { BLOCK = TM_TRAINED_BLOCK, THREADS = 256, ORDER_THREADS = 512, TILE = 2048, CHAINS = 8 };

TM_LANE int64_t elements_of(const tm_trained &t) { return t.value.rows * t.value.cols; }
TM_LANE int64_t blocks_of(const tm_trained &t) { return (elements_of(t) + BLOCK - 1) / BLOCK; }
TM_LANE int64_t all_blocks(const tm_trained *list, int64_t n) { return list[n - 1].first_block + blocks_of(list[n - 1]); }

/* The tensor that block b is in: the last whose first block is not beyond (of empty ones before it none). A warp
 * looks at 32 places at once. */
TM_LANE int64_t tensor_of(const tm_trained *list, int64_t n, int64_t b)
{
    int64_t low = 0, count = n; /* it is among these */
    while (count > 1) {
        int64_t step = (count + 31) / 32, i = low + threadIdx.x % 32 * step;
        unsigned below = __ballot_sync(~0u, i < low + count && list[i].first_block <= b);
        int64_t next = low + (31 - __clz((int)below)) * step; /* the first always is */
        count = low + count - next < step ? low + count - next : step;
        low = next;
    }
    return low;
}

/* f(tensor, begin, end, block) by all threads of a thread block together. */
template <class F> static __global__ void __launch_bounds__(THREADS) each_block(const tm_trained *list, int64_t n, F f)
{
    int64_t all = all_blocks(list, n), share = (all + gridDim.x - 1) / gridDim.x, b = blockIdx.x * share, last = b + share < all ? b + share : all;
    if (b >= last)
        return;
    int64_t i = tensor_of(list, n, b);
    for (; b < last; b++) {
        while (b >= list[i].first_block + blocks_of(list[i]))
            i++;
        const tm_trained &t = list[i];
        int64_t begin = (b - t.first_block) * BLOCK, end = elements_of(t);
        f(t, begin, begin + BLOCK < end ? begin + BLOCK : end, b);
    }
}

template <class F> static void run(tm_device *d, const char *op, int64_t n, const tm_trained *list, int per_processor, F f)
{
    tm_cuda *c = tm_cuda_of(d);
    if (n > 0)
        tm_cuda_launch(c, op, each_block<F>, (unsigned)(c->processors * per_processor), THREADS, 0, list, n, f);
}

/* --- Norm and clip --- */

/* A thread a chain of a block of elements: eight neighbours read 32 bytes at a time. */
static __global__ void __launch_bounds__(THREADS) square_chains(const tm_trained *list, int64_t n, double *partial)
{
    enum { AT_ONCE = 32 / CHAINS }; /* blocks a warp */
    int64_t all = all_blocks(list, n), warps = gridDim.x * (THREADS / 32), share = (all + warps * AT_ONCE - 1) / (warps * AT_ONCE) * AT_ONCE;
    int64_t b = (blockIdx.x * (THREADS / 32) + threadIdx.x / 32) * share, last = b + share < all ? b + share : all;
    if (b >= last)
        return;
    int64_t i = tensor_of(list, n, b);
    for (b += threadIdx.x % 32 / CHAINS; b - (int)threadIdx.x % 32 / CHAINS < last; b += AT_ONCE) {
        double sum = 0;
        if (b < last) {
            while (b >= list[i].first_block + blocks_of(list[i]))
                i++;
            const tm_trained &t = list[i];
            int64_t begin = (b - t.first_block) * BLOCK, end = elements_of(t), k = begin + threadIdx.x % CHAINS;
            if (end > begin + BLOCK)
                end = begin + BLOCK;
            if (t.grad.dtype == TM_F32) {
                const float *g = (const float *)t.grad.data;
#pragma unroll 16
                for (; k < end; k += CHAINS)
                    sum = fma((double)g[k], (double)g[k], sum); /* the product is exact */
            } else
                for (; k < end; k += CHAINS)
                    sum = fma((double)element(t.grad, k), (double)element(t.grad, k), sum);
        }
        /* ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)) */
        sum += __shfl_down_sync(~0u, sum, 4, CHAINS);
        sum += __shfl_down_sync(~0u, sum, 2, CHAINS);
        sum += __shfl_down_sync(~0u, sum, 1, CHAINS);
        if (b < last && threadIdx.x % CHAINS == 0 && b < TM_CUDA_PARTIALS)
            partial[b] = sum;
    }
}

/* The sum of group g of a tensor's blocks. */
TM_LANE double group_sum(const tm_trained &t, int64_t g, const double *partial)
{
    int64_t b = t.first_block + g * TM_TRAINED_GROUP, end = t.first_block + blocks_of(t);
    double sum = 0;
    if (end > b + TM_TRAINED_GROUP)
        end = b + TM_TRAINED_GROUP;
    if (end > TM_CUDA_PARTIALS)
        return NAN; /* no room: the run stops on it */
#pragma unroll 16
    for (; b < end; b++)
        sum += partial[b];
    return sum;
}

/* The groups of a replica's tensors, in the order of the list: every thread adds up some, the first joins them. */
static __global__ void __launch_bounds__(ORDER_THREADS) join_squares(const tm_trained *list, int64_t n, const double *partial, double max_norm, tm_step_params *step)
{
    __shared__ int64_t place[ORDER_THREADS + 1]; /* where a tensor's groups stand among those of this tile of tensors */
    __shared__ double tile[TILE];
    int r = blockIdx.x;
    double sum = 0;
    for (int64_t first = 0; first < n; first += ORDER_THREADS) {
        int64_t i = first + threadIdx.x;
        place[threadIdx.x + 1] = i < n && list[i].replica == r ? (blocks_of(list[i]) + TM_TRAINED_GROUP - 1) / TM_TRAINED_GROUP : 0;
        if (threadIdx.x == 0)
            place[0] = 0;
        __syncthreads();
        for (int reach = 1; reach < ORDER_THREADS; reach *= 2) {
            int64_t before = (int)threadIdx.x >= reach ? place[threadIdx.x + 1 - reach] : 0;
            __syncthreads();
            place[threadIdx.x + 1] += before;
            __syncthreads();
        }
        int64_t all = place[ORDER_THREADS];
        for (int64_t done = 0; done < all; done += TILE) {
            int64_t count = all - done < TILE ? all - done : TILE;
            for (int64_t k = threadIdx.x; k < count; k += ORDER_THREADS) {
                int low = 0, high = ORDER_THREADS; /* the tensor with place[low] <= done + k < place[low + 1] */
                while (high - low > 1) {
                    int middle = (low + high) / 2;
                    if (place[middle] <= done + k)
                        low = middle;
                    else
                        high = middle;
                }
                tile[k] = group_sum(list[first + low], done + k - place[low], partial);
            }
            __syncthreads();
            if (threadIdx.x == 0)
#pragma unroll 16
                for (int64_t k = 0; k < count; k++)
                    sum += tile[k];
            __syncthreads();
        }
    }
    if (threadIdx.x == 0) {
        sum = sqrt(sum);
        double clip = max_norm / (sum + 1e-6);
        step[r].grad_norm = sum;
        step[r].clip = max_norm <= 0 || clip > 1 ? 1 : clip;
    }
}

bool tm_half_grad_norm(tm_device *d, int64_t n, const tm_trained *t, int32_t replicas, double max_norm, tm_step_params *step)
{
    tm_cuda *c = tm_cuda_of(d);
    double *partial = (double *)c->partials;
    if (n > 0)
        tm_cuda_launch(c, "grad_norm", square_chains, (unsigned)(c->processors * 8), THREADS, 0, t, n, partial);
    tm_cuda_launch(c, "grad_norm", join_squares, (unsigned)replicas, ORDER_THREADS, 0, t, n, partial, max_norm, step);
    return true;
}

/* --- Updates --- */

/* Whether what is there of them can be read four by four. */
TM_LANE bool in_fours(const tm_trained &t)
{
    return ((uintptr_t)t.value.data | (uintptr_t)t.grad.data | (uintptr_t)t.m.data | (uintptr_t)t.v.data) % 16 == 0;
}

/* Four elements of a float type, i a multiple of 4. */
TM_LANE float4 load_four(const tm_tensor &t, int64_t i)
{
    if (t.dtype == TM_F32)
        return *(const float4 *)((const float *)t.data + i);
    uint2 p = *(const uint2 *)((const uint16_t *)t.data + i);
    float2 a = t.dtype == TM_BF16 ? widen<bf16>(p.x) : widen<f16>(p.x), b = t.dtype == TM_BF16 ? widen<bf16>(p.y) : widen<f16>(p.y);
    return make_float4(a.x, a.y, b.x, b.y);
}

TM_LANE void store_four(const tm_tensor &t, int64_t i, float4 v)
{
    if (t.dtype == TM_F32)
        *(float4 *)((float *)t.data + i) = v;
    else if (t.dtype == TM_BF16)
        *(uint2 *)((uint16_t *)t.data + i) = make_uint2(narrow<bf16>(v.x, v.y), narrow<bf16>(v.z, v.w));
    else
        *(uint2 *)((uint16_t *)t.data + i) = make_uint2(narrow<f16>(v.x, v.y), narrow<f16>(v.z, v.w));
}

/* Weights in bf16 are rounded at random. */
TM_LANE void store_weights(const tm_trained &t, const tm_step_params *s, int64_t i, float4 v)
{
    if (t.value.dtype != TM_BF16) {
        store_four(t.value, i, v);
        return;
    }
    tm_philox r = tm_rounding_words(s, t.index, (uint64_t)i / 4);
    uint32_t a = tm_f32_to_bf16_at_random(v.x, r.word[0]), b = tm_f32_to_bf16_at_random(v.y, r.word[1]);
    uint32_t c = tm_f32_to_bf16_at_random(v.z, r.word[2]), d = tm_f32_to_bf16_at_random(v.w, r.word[3]);
    *(uint2 *)((uint16_t *)t.value.data + i) = make_uint2(a | b << 16, c | d << 16);
}

struct unscale_block {
    const tm_step_params *step;

    __device__ void operator()(const tm_trained &t, int64_t begin, int64_t end, int64_t) const
    {
        float f = (float)step[t.replica].unscale;
        bool whole = end - begin == BLOCK && (uintptr_t)t.grad.data % 16 == 0;
        for (int64_t i = begin + 4 * threadIdx.x; whole && i < end; i += 4 * THREADS) {
            float4 g = load_four(t.grad, i);
            store_four(t.grad, i, make_float4(g.x * f, g.y * f, g.z * f, g.w * f));
        }
        for (int64_t i = begin + threadIdx.x; !whole && i < end; i += THREADS)
            put_element(t.grad, i, element(t.grad, i) * f);
    }
};

bool tm_half_unscale(tm_device *d, int64_t n, const tm_trained *t, const tm_step_params *step)
{
    run(d, "unscale", n, t, 4, unscale_block{step});
    return true;
}

struct adamw_block {
    const tm_step_params *step;
    double beta1, beta2, eps;

    struct factors {
        float clip, decay, new1, new2, beta2, root2, eps, rate;
    };

    TM_LANE void update(const factors &f, float g, float &p, float &m, float &v)
    {
        g *= f.clip;
        p *= f.decay;
        m = fmaf(f.new1, g - m, m);
        v = fmaf(f.new2 * g, g, v * f.beta2);
        p = p + (f.rate * m) / (sqrtf(v) / f.root2 + f.eps);
    }

    __device__ void operator()(const tm_trained &t, int64_t begin, int64_t end, int64_t) const
    {
        const tm_step_params *s = &step[t.replica];
        if (!is_finite(s->grad_norm))
            return;
        double lr = s->lr * (double)t.lr_ratio;
        factors f = {(float)s->clip, (float)(1 - lr * (double)t.weight_decay), (float)(1 - beta1), (float)(1 - beta2), (float)beta2, (float)sqrt(s->bias2), (float)eps, (float)(-lr / s->bias1)};
        enum { N = BLOCK / 4 / THREADS };
        if (end - begin == BLOCK && in_fours(t)) {
            float4 g[N], p[N], m[N], v[N];
#pragma unroll
            for (int k = 0; k < N; k++) {
                int64_t i = begin + 4 * (threadIdx.x + k * THREADS);
                g[k] = load_four(t.grad, i);
                p[k] = load_four(t.value, i);
                m[k] = load_four(t.m, i);
                v[k] = load_four(t.v, i);
            }
#pragma unroll
            for (int k = 0; k < N; k++) {
                int64_t i = begin + 4 * (threadIdx.x + k * THREADS);
                update(f, g[k].x, p[k].x, m[k].x, v[k].x);
                update(f, g[k].y, p[k].y, m[k].y, v[k].y);
                update(f, g[k].z, p[k].z, m[k].z, v[k].z);
                update(f, g[k].w, p[k].w, m[k].w, v[k].w);
                store_weights(t, s, i, p[k]);
                store_four(t.m, i, m[k]);
                store_four(t.v, i, v[k]);
            }
            return;
        }
        for (int64_t i = begin + threadIdx.x; i < end; i += THREADS) {
            float p = element(t.value, i), m = element(t.m, i), v = element(t.v, i);
            update(f, element(t.grad, i), p, m, v);
            if (t.value.dtype == TM_BF16)
                ((uint16_t *)t.value.data)[i] = tm_f32_to_bf16_at_random(p, tm_rounding_words(s, t.index, (uint64_t)i / 4).word[i % 4]);
            else
                put_element(t.value, i, p);
            put_element(t.m, i, m);
            put_element(t.v, i, v);
        }
    }
};

bool tm_half_adamw(tm_device *d, int64_t n, const tm_trained *t, double beta1, double beta2, double eps, const tm_step_params *step)
{
    run(d, "adamw", n, t, 4, adamw_block{step, beta1, beta2, eps});
    return true;
}

struct sgd_block {
    const tm_step_params *step;
    double momentum;
    bool first;

    TM_LANE float4 combine(float a, float4 x, float4 y) /* a x + y */
    {
        return make_float4(fmaf(a, x.x, y.x), fmaf(a, x.y, y.y), fmaf(a, x.z, y.z), fmaf(a, x.w, y.w));
    }

    __device__ void operator()(const tm_trained &t, int64_t begin, int64_t end, int64_t) const
    {
        const tm_step_params *s = &step[t.replica];
        if (!is_finite(s->grad_norm))
            return;
        float clip = (float)s->clip, rate = (float)(-s->lr * (double)t.lr_ratio), mu = (float)momentum;
        bool remembers = t.m.data != nullptr, whole = end - begin == BLOCK && in_fours(t);
        for (int64_t i = begin + 4 * threadIdx.x; whole && i < end; i += 4 * THREADS) {
            float4 g = load_four(t.grad, i), p = load_four(t.value, i), m = remembers && !first ? load_four(t.m, i) : make_float4(0, 0, 0, 0);
            g = make_float4(g.x * clip, g.y * clip, g.z * clip, g.w * clip);
            if (t.weight_decay != 0)
                g = combine(t.weight_decay, p, g);
            if (remembers && !first)
                g = make_float4(m.x * mu + g.x, m.y * mu + g.y, m.z * mu + g.z, m.w * mu + g.w);
            if (remembers)
                store_four(t.m, i, g);
            store_four(t.value, i, combine(rate, g, p));
        }
        for (int64_t i = begin + threadIdx.x; !whole && i < end; i += THREADS) {
            float g = element(t.grad, i) * clip, p = element(t.value, i);
            if (t.weight_decay != 0)
                g = fmaf(t.weight_decay, p, g);
            if (remembers && !first)
                g = element(t.m, i) * mu + g;
            if (remembers)
                put_element(t.m, i, g);
            put_element(t.value, i, fmaf(rate, g, p));
        }
    }
};

bool tm_half_sgd(tm_device *d, int64_t n, const tm_trained *t, double momentum, bool first, const tm_step_params *step)
{
    run(d, "sgd", n, t, 8, sgd_block{step, momentum, first});
    return true;
}

/* --- The trail --- */

/* mix of docs/formats/trail.md; *place is (index + 1) times the constant that it begins with. */
static constexpr uint64_t STRIDE = 0x9E3779B97F4A7C15u;

TM_LANE uint64_t mix(uint32_t bits, uint64_t place)
{
    uint64_t x = bits + place;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

TM_LANE uint64_t mix_block(const tm_trained &t, int64_t begin, int64_t end)
{
    uint64_t sum = 0, place = (uint64_t)(begin + 4 * threadIdx.x + 1) * STRIDE;
    if (t.value.dtype == TM_F32 && end - begin == BLOCK && (uintptr_t)t.value.data % 16 == 0) {
        enum { N = BLOCK / 4 / THREADS };
        const uint4 *p = (const uint4 *)((const uint32_t *)t.value.data + begin) + threadIdx.x;
        uint4 v[N];
#pragma unroll
        for (int k = 0; k < N; k++)
            v[k] = p[k * THREADS];
#pragma unroll
        for (int k = 0; k < N; k++, place += 4 * THREADS * STRIDE)
            sum += (mix(v[k].x, place) + mix(v[k].y, place + STRIDE)) + (mix(v[k].z, place + 2 * STRIDE) + mix(v[k].w, place + 3 * STRIDE));
        return sum;
    }
    for (int64_t i = begin + threadIdx.x; i < end; i += THREADS)
        sum += mix(t.value.dtype == TM_F32 ? ((const uint32_t *)t.value.data)[i] : ((const uint16_t *)t.value.data)[i], (uint64_t)(i + 1) * STRIDE);
    return sum;
}

/* Adds the sum of a warp: integers wrap, so any order gives the same bits. */
TM_LANE void add_up(uint64_t sum, uint64_t *out)
{
    for (int step = 16; step; step /= 2)
        sum += __shfl_xor_sync(~0u, (unsigned long long)sum, step);
    if (threadIdx.x % 32 == 0 && sum)
        atomicAdd((unsigned long long *)out, (unsigned long long)sum);
}

/* As each_block; a tensor's sum leaves the registers when the next tensor begins. */
static __global__ void __launch_bounds__(THREADS) trail_sums(const tm_trained *list, int64_t n, uint64_t *out)
{
    int64_t all = all_blocks(list, n), share = (all + gridDim.x - 1) / gridDim.x, b = blockIdx.x * share, last = b + share < all ? b + share : all;
    if (b >= last)
        return;
    int64_t i = tensor_of(list, n, b);
    uint64_t sum = 0;
    for (; b < last; b++) {
        if (b >= list[i].first_block + blocks_of(list[i])) {
            add_up(sum, out + i);
            sum = 0;
            while (b >= list[i].first_block + blocks_of(list[i]))
                i++;
        }
        int64_t begin = (b - list[i].first_block) * BLOCK, end = elements_of(list[i]);
        sum += mix_block(list[i], begin, begin + BLOCK < end ? begin + BLOCK : end);
    }
    add_up(sum, out + i);
}

bool tm_half_trail(tm_device *d, int64_t n, const tm_trained *t, uint64_t *out)
{
    tm_cuda *c = tm_cuda_of(d);
    d->calls->zero(d, out, n * 8);
    if (n > 0)
        tm_cuda_launch(c, "trail", trail_sums, (unsigned)(c->processors * 8), THREADS, 0, t, n, out);
    return true;
}
