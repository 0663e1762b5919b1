/* Ops over all trained tensors at once. docs/math/optim.md, docs/formats/trail.md.
 *
 * Invariants: work is cut into blocks of BLOCK elements of one tensor; what must be summed leaves a partial
 * for every block, and one thread adds the partials in the order of tensors and blocks. So a replica's sums depend on
 * its own tensors alone, whoever stands between them. */
#include "device/cpu/row.h"

enum { BLOCK = TM_TRAINED_BLOCK };

typedef union partial {
    double norm;
    uint64_t trail;
} partial;

typedef struct work work;
struct work {
    const tm_trained *t;
    const int64_t *first; /* [n + 1] first block of each tensor of the batch */
    int64_t n;
    partial *partials;    /* a block */
    const tm_step_params *step;
    double beta1, beta2, eps, momentum;
    bool first_step;
    /* Elements [begin, begin + count) of a tensor. */
    void (*block)(const work *w, const tm_trained *t, int64_t begin, int64_t count, partial *out);
};

static inline int64_t elements(const tm_trained *t) { return t->value.rows * t->value.cols; }

static void one_block(void *context, int64_t task, int thread)
{
    const work *w = context;
    (void)thread;
    int64_t low = 0, high = w->n; /* the tensor with first[low] <= task < first[low + 1] */
    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (w->first[middle] <= task)
            low = middle;
        else
            high = middle;
    }
    int64_t begin = (task - w->first[low]) * BLOCK, n = elements(&w->t[low]);
    w->block(w, &w->t[low], begin, n - begin < BLOCK ? n - begin : BLOCK, w->partials + task);
}

/* Runs w->block over as many of the n tensors as the device's shared memory has room for the
 * bookkeeping of (at least one: 1.7 million blocks are more than a machine holds); returns how many. */
static int64_t run_batch(tm_device *d, work *w, const tm_trained *t, int64_t n)
{
    tm_cpu *cpu = tm_cpu_of(d);
    enum { TENSORS = 1 << 18, PARTIALS = (TM_CPU_SHARED_BYTES - (TENSORS + 1) * 8) / 8 };
    int64_t *first = (int64_t *)cpu->shared, done = 0, blocks = 0;
    w->partials = (partial *)(first + TENSORS + 1);
    for (; done < n && done < TENSORS; done++) {
        int64_t more = task_count(elements(&t[done]), BLOCK);
        if (done && blocks + more > PARTIALS)
            break;
        first[done] = blocks;
        blocks += more;
    }
    first[done] = blocks;
    w->first = first;
    w->t = t;
    w->n = done;
    tm_pool_run(cpu->pool, one_block, w, blocks);
    return done;
}

/* --- Unscaling, norm and clip --- */

static void unscale_block(const work *w, const tm_trained *t, int64_t begin, int64_t count, partial *out)
{
    (void)out;
    v16 factor = v16_set1((real)w->step[t->replica].unscale);
    for (int64_t i = begin; i < begin + count; i += V16) {
        int lanes = lanes_at(begin + count, i);
        lanes_store(t->grad, 0, i, lanes, v16_mul(lanes_load(t->grad, 0, i, lanes), factor));
    }
}

void TM_KERNEL(unscale)(tm_device *d, int64_t n, const tm_trained *t, const tm_step_params *step)
{
    for (int64_t done = 0; done < n;) {
        work w = {.block = unscale_block, .step = step};
        done += run_batch(d, &w, t + done, n - done);
    }
}

static void square_block(const work *w, const tm_trained *t, int64_t begin, int64_t count, partial *out)
{
    (void)w;
    double sum[8] = {0};
    tm_tensor g = t->grad;
    int64_t i = 0;
    if (g.dtype == TM_REAL) {
        const real *p = (const real *)g.data + begin;
        for (; i + 8 <= count; i += 8)
            for (int j = 0; j < 8; j++)
                sum[j] += (double)p[i + j] * (double)p[i + j];
    }
    for (; i < count; i++) {
        double x = (double)real_load(g.data, g.dtype, begin + i);
        sum[i % 8] += x * x;
    }
    out->norm = ((sum[0] + sum[4]) + (sum[2] + sum[6])) + ((sum[1] + sum[5]) + (sum[3] + sum[7]));
}

void TM_KERNEL(grad_norm)(tm_device *d, int64_t n, const tm_trained *t, int32_t replicas, double max_norm,
                          tm_step_params *step)
{
    for (int32_t r = 0; r < replicas; r++)
        step[r].grad_norm = 0;
    for (int64_t done = 0; done < n;) {
        work w = {.block = square_block};
        int64_t batch = run_batch(d, &w, t + done, n - done);
        for (int64_t i = 0; i < batch; i++)
            for (int64_t b = w.first[i]; b < w.first[i + 1];) {
                int64_t end = b + TM_TRAINED_GROUP < w.first[i + 1] ? b + TM_TRAINED_GROUP : w.first[i + 1];
                double sum = 0;
                for (; b < end; b++)
                    sum += w.partials[b].norm;
                step[t[done + i].replica].grad_norm += sum;
            }
        done += batch;
    }
    for (int32_t r = 0; r < replicas; r++) {
        step[r].grad_norm = sqrt(step[r].grad_norm);
        double clip = max_norm / (step[r].grad_norm + 1e-6);
        step[r].clip = max_norm <= 0 || clip > 1 ? 1 : clip; /* not-a-number stays */
    }
}

/* --- Updates: a tensor is one long row --- */

/* A weight of 16 bits would stand still below half its spacing: it is rounded at random, without bias. */
static void store_at_random(const tm_trained *t, const tm_step_params *s, int64_t i, int lanes, v16 p)
{
    real x[V16];
    tm_philox words = {{0}};
    v16_put(x, p);
    for (int k = 0; k < lanes; k++) {
        if (k % 4 == 0)
            words = tm_rounding_words(s, t->index, (uint64_t)(i + k) / 4);
        ((uint16_t *)t->value.data)[i + k] = tm_f32_to_bf16_at_random((float)x[k], words.word[k % 4]);
    }
}

static void adamw_block(const work *w, const tm_trained *t, int64_t begin, int64_t count, partial *out)
{
    (void)out;
    const tm_step_params *s = &w->step[t->replica];
    if (!isfinite(s->grad_norm))
        return;
    double lr = s->lr * (double)t->lr_ratio;
    v16 clip = v16_set1((real)s->clip), decay = v16_set1((real)(1 - lr * (double)t->weight_decay));
    v16 new1 = v16_set1((real)(1 - w->beta1)), beta2 = v16_set1((real)w->beta2), new2 = v16_set1((real)(1 - w->beta2));
    v16 root2 = v16_set1((real)sqrt(s->bias2)), eps = v16_set1((real)w->eps), rate = v16_set1((real)(-lr / s->bias1));
    for (int64_t i = begin; i < begin + count; i += V16) {
        int lanes = lanes_at(begin + count, i);
        v16 g = v16_mul(lanes_load(t->grad, 0, i, lanes), clip), p = v16_mul(lanes_load(t->value, 0, i, lanes), decay);
        v16 m = lanes_load(t->m, 0, i, lanes), v = lanes_load(t->v, 0, i, lanes);
        m = v16_fma(new1, v16_sub(g, m), m);
        v = v16_fma(v16_mul(new2, g), g, v16_mul(v, beta2));
        v16 root = v16_add(v16_div(v16_sqrt(v), root2), eps);
        p = v16_add(p, v16_div(v16_mul(rate, m), root));
        lanes_store(t->m, 0, i, lanes, m);
        lanes_store(t->v, 0, i, lanes, v);
        if (t->value.dtype == TM_BF16)
            store_at_random(t, s, i, lanes, p);
        else
            lanes_store(t->value, 0, i, lanes, p);
    }
}

static void sgd_block(const work *w, const tm_trained *t, int64_t begin, int64_t count, partial *out)
{
    (void)out;
    const tm_step_params *s = &w->step[t->replica];
    if (!isfinite(s->grad_norm))
        return;
    v16 clip = v16_set1((real)s->clip), decay = v16_set1((real)t->weight_decay), momentum = v16_set1((real)w->momentum);
    v16 rate = v16_set1((real)(-s->lr * (double)t->lr_ratio));
    for (int64_t i = begin; i < begin + count; i += V16) {
        int lanes = lanes_at(begin + count, i);
        v16 g = v16_mul(lanes_load(t->grad, 0, i, lanes), clip), p = lanes_load(t->value, 0, i, lanes);
        if (t->weight_decay != 0)
            g = v16_fma(decay, p, g);
        if (t->m.data) {
            if (!w->first_step)
                g = v16_add(v16_mul(lanes_load(t->m, 0, i, lanes), momentum), g);
            lanes_store(t->m, 0, i, lanes, g);
        }
        lanes_store(t->value, 0, i, lanes, v16_fma(rate, g, p));
    }
}

void TM_KERNEL(adamw)(tm_device *d, int64_t n, const tm_trained *t, double beta1, double beta2, double eps,
                      const tm_step_params *step)
{
    for (int64_t done = 0; done < n;) {
        work w = {.block = adamw_block, .step = step, .beta1 = beta1, .beta2 = beta2, .eps = eps};
        done += run_batch(d, &w, t + done, n - done);
    }
}

void TM_KERNEL(sgd)(tm_device *d, int64_t n, const tm_trained *t, double momentum, bool first, const tm_step_params *step)
{
    for (int64_t done = 0; done < n;) {
        work w = {.block = sgd_block, .step = step, .momentum = momentum, .first_step = first};
        done += run_batch(d, &w, t + done, n - done);
    }
}

/* --- The trail --- */

V16_FN uint64_t mix(uint64_t bits, uint64_t index)
{
    uint64_t x = bits + (index + 1) * 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static void trail_block(const work *w, const tm_trained *t, int64_t begin, int64_t count, partial *out)
{
    (void)w;
    uint64_t sum = 0;
    int bits = tm_dtype_bits(t->value.dtype);
    if (bits == 64) {
        const uint64_t *p = (const uint64_t *)t->value.data + begin;
        for (int64_t i = 0; i < count; i++)
            sum += mix(p[i], (uint64_t)(begin + i));
    } else if (bits == 32) {
        const uint32_t *p = (const uint32_t *)t->value.data + begin;
        for (int64_t i = 0; i < count; i++)
            sum += mix(p[i], (uint64_t)(begin + i));
    } else {
        const uint16_t *p = (const uint16_t *)t->value.data + begin;
        for (int64_t i = 0; i < count; i++)
            sum += mix(p[i], (uint64_t)(begin + i));
    }
    out->trail = sum;
}

void TM_KERNEL(trail)(tm_device *d, int64_t n, const tm_trained *t, uint64_t *out)
{
    for (int64_t done = 0; done < n;) {
        work w = {.block = trail_block};
        int64_t batch = run_batch(d, &w, t + done, n - done);
        for (int64_t i = 0; i < batch; i++) {
            out[done + i] = 0;
            for (int64_t b = w.first[i]; b < w.first[i + 1]; b++)
                out[done + i] += w.partials[b].trail;
        }
        done += batch;
    }
}
