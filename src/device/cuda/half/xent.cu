/* Cross-entropy over rows of logits of 16 bits, and KL to a teacher: a block a row. docs/math/xent.md.
 *
 * The row is read once from memory: a first pass finds maximum and sum (each thread rescales its sum when its maximum
 * grows) and keeps what fits of the row in shared memory; the second pass, for gradient and KL, takes that and reads the rest
 * again, by then from the second-level cache. A thread's elements and the joining of threads depend on the number of
 * columns alone. Rows of any alignment: V is 8, or 1 where rows do not start at multiples of 16 bytes.
 *
 * The usual case (a gradient, no teacher, no cap) has a kernel in which a row's second pass goes together with the first
 * pass of the block's next row, so that memory is read and written all the time: xent_rows. A row's bits are the same. */
#include "device/cuda/half/fast.cuh"
#include "device/cuda/half/vec.cuh"
#include "device/cuda/math.cuh"

enum { THREADS = 512, WARPS = THREADS / 32, BATCH = 4, IN_REGISTERS = 10 };

struct xent_work {
    tm_tensor logits, weight, teacher, teacher_weight, loss, kl;
    float cap;
    const int32_t *target;
    int32_t *hit;
    bool grad;
    int kept; /* vectors of each row in shared memory */
};

/* V elements as they lie in memory, and as floats. */
template <int V> struct slice;
template <> struct slice<8> {
    typedef uint4 raw;
};
template <> struct slice<1> {
    typedef uint16_t raw;
};
template <class T> TM_LANE void spread(uint4 p, float (&v)[8])
{
    eight e = widen<T>(p);
    for (int i = 0; i < 8; i++)
        v[i] = e.v[i];
}
template <class T> TM_LANE void spread(uint16_t p, float (&v)[1]) { v[0] = widen<T>((uint32_t)p).x; }
template <class T> TM_LANE void gather(uint4 *to, const float (&v)[8]) { *to = narrow<T>(eight{{v[0], v[1], v[2], v[3], v[4], v[5], v[6], v[7]}}); }
template <class T> TM_LANE void gather(uint16_t *to, const float (&v)[1]) { *to = (uint16_t)narrow<T>(v[0], 0); }

template <bool CAP, int V> TM_LANE void cap_all(float cap, float inverse, float (&v)[V])
{
    if (CAP)
        for (int e = 0; e < V; e++)
            v[e] = cap * tanh_fast(v[e] * inverse);
}

/* exp(z - max) * inverse is a softmax; log-sum-exp is max + log_sum. */
struct tm_half_softmax {
    float max, log_sum, inverse;
};

/* Joins the threads' maxima and sums: a tree in each warp, then one over the warps. */
TM_LANE tm_half_softmax join(float max, float sum)
{
    __shared__ float2 of_warp[WARPS];
    float top = warp_max(max);
    sum = warp_sum(sum * exp2_fast((max - top) * LOG2_E));
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        of_warp[threadIdx.x / 32] = make_float2(top, sum);
    __syncthreads();
    float2 w = of_warp[threadIdx.x % WARPS]; /* each twice: half of the lanes count */
    if (threadIdx.x % 32 >= WARPS)
        w.y = 0;
    top = warp_max(w.x);
    sum = warp_sum(w.y * exp2_fast((w.x - top) * LOG2_E));
    return {top, log_of(sum), 1 / sum};
}

/* What a thread has seen of a row. */
struct tm_half_seen {
    float max, sum, want; /* of the target's logit */
    int target;
    bool lost;            /* an element before the target is as large, or one is larger */
};

TM_LANE tm_half_seen nothing_seen(int target, float want) { return {-3e38f, 0, want, target, false}; }

/* Vector i of a row. */
template <int V, bool CAP> TM_LANE void see(tm_half_seen &s, int i, float (&v)[V], float cap, float inverse)
{
    float top = v[0];
    for (int e = 1; e < V; e++)
        top = fmaxf(top, v[e]);
    if (i == s.target / V)
        for (int e = 0; e < V; e++)
            s.lost |= e < s.target % V ? v[e] >= s.want : v[e] > s.want;
    else
        s.lost |= i < s.target / V ? top >= s.want : top > s.want;
    cap_all<CAP, V>(cap, inverse, v);
    if (CAP)
        top = cap * tanh_fast(top * inverse);
    if (top > s.max) {
        s.sum *= exp2_fast((s.max - top) * LOG2_E);
        s.max = top;
    }
    float shift = s.max * -LOG2_E, more = 0;
    for (int e = 0; e < V; e++)
        more += exp2_fast(fmaf(v[e], LOG2_E, shift));
    s.sum += more;
}

/* Maximum and sum of a row. *beaten: whether an element stands before the target and is as large, or is larger. */
template <class T, int V, bool CAP> TM_LANE tm_half_softmax first_pass(const tm_tensor &z, int64_t row, float cap, typename slice<V>::raw *kept, int count, int target, float want, bool *beaten)
{
    typedef typename slice<V>::raw raw;
    const raw *p = (const raw *)((const T *)z.data + row * z.ld);
    int vectors = (int)(z.cols / V);
    float inverse = CAP ? 1 / cap : 0;
    tm_half_seen s = nothing_seen(target, want);
    for (int first = threadIdx.x; first < vectors; first += BATCH * THREADS) {
        raw part[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++)
            if (first + k * THREADS < vectors)
                part[k] = p[first + k * THREADS];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int i = first + k * THREADS;
            if (i >= vectors)
                continue;
            if (i < count)
                kept[i] = part[k];
            float v[V];
            spread<T>(part[k], v);
            see<V, CAP>(s, i, v, cap, inverse);
        }
    }
    if (beaten)
        *beaten = s.lost;
    return join(s.max, s.sum);
}

/* p' (log p' - log p) - p' + p, which is >= 0; x, y: logits less their maxima. */
TM_LANE float kl_term(float x, float y, float p, float q, float log_sums)
{
    float apart = (x - y) - log_sums, near = q * exp_rest(apart), far = (p - q) - q * apart;
    return q == 0 ? p : fabsf(apart) < 0.34f ? near : far;
}

template <class T, int V, bool CAP, bool TEACHER> static __global__ void __launch_bounds__(THREADS) xent_row(xent_work w)
{
    typedef typename slice<V>::raw raw;
    TM_SHARED(unsigned char, memory, 16);
    raw *kept = (raw *)memory, *kept_teacher = kept + w.kept;
    int64_t row = blockIdx.x;
    int target = w.target[row], vectors = (int)(w.logits.cols / V);
    float want = at(w.logits, row, target), wanted = want, cap = w.cap, inverse = CAP ? 1 / cap : 0;
    if (CAP)
        wanted = cap * tanh_fast(want * inverse);
    bool lost;
    tm_half_softmax model = first_pass<T, V, CAP>(w.logits, row, cap, kept, w.kept, target, want, &lost), teacher = {};
    lost = __syncthreads_or(lost);
    if (TEACHER)
        teacher = first_pass<T, V, CAP>(w.teacher, row, cap, kept_teacher, w.kept, 0, 0, nullptr);
    if (threadIdx.x == 0) {
        put(w.loss, 0, row, model.log_sum + (model.max - wanted));
        w.hit[row] = !lost;
    }
    if (!TEACHER && !w.grad)
        return;
    float a = w.grad ? at(w.weight, 0, row) : 0, b = w.grad && TEACHER && w.teacher_weight.data ? at(w.teacher_weight, 0, row) : 0;
    bool none = a == 0 && b == 0;
    raw *z = (raw *)((T *)w.logits.data + row * w.logits.ld);
    const raw *other = (const raw *)((const T *)w.teacher.data + row * w.teacher.ld);
    float shift = model.max * -LOG2_E, other_shift = teacher.max * -LOG2_E, log_sums = model.log_sum - teacher.log_sum, kl[1] = {0};
    for (int first = threadIdx.x; first < vectors; first += BATCH * THREADS) {
        raw part[BATCH], beside[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int i = first + k * THREADS;
            if (i < vectors) {
                part[k] = i < w.kept ? kept[i] : z[i];
                if (TEACHER)
                    beside[k] = i < w.kept ? kept_teacher[i] : other[i];
            }
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int i = first + k * THREADS;
            if (i >= vectors)
                continue;
            float v[V], u[V], g[V];
            spread<T>(part[k], v);
            cap_all<CAP, V>(cap, inverse, v);
            if (TEACHER) {
                spread<T>(beside[k], u);
                cap_all<CAP, V>(cap, inverse, u);
            }
            for (int e = 0; e < V; e++) {
                float p = exp2_fast(fmaf(v[e], LOG2_E, shift)) * model.inverse;
                g[e] = a * (i * V + e == target ? p - 1 : p);
                if (TEACHER) {
                    float q = exp2_fast(fmaf(u[e], LOG2_E, other_shift)) * teacher.inverse;
                    kl[0] += kl_term(v[e] - model.max, u[e] - teacher.max, p, q, log_sums);
                    g[e] = fmaf(b, p - q, g[e]);
                }
                if (CAP) {
                    float th = v[e] * inverse;
                    g[e] *= fmaf(-th, th, 1);
                }
                if (none)
                    g[e] = 0;
            }
            if (w.grad)
                gather<T>(z + i, g);
        }
    }
    if (TEACHER) {
        block_sum<THREADS, 1>(kl);
        if (threadIdx.x == 0)
            put(w.kl, 0, row, kl[0]);
    }
}

/* A row whose gradient is due. */
struct tm_half_due {
    int64_t row;
    tm_half_softmax model;
    float weight;
    int target;
};

template <class T> TM_LANE void give_gradient(const tm_half_due &d, uint4 *z, int i, uint4 raw)
{
    float v[8], shift = d.model.max * -LOG2_E;
    spread<T>(raw, v);
    for (int e = 0; e < 8; e++) {
        float p = exp2_fast(fmaf(v[e], LOG2_E, shift)) * d.model.inverse;
        v[e] = d.weight == 0 ? 0 : d.weight * (8 * i + e == d.target ? p - 1 : p);
    }
    gather<T>(z + i, v);
}

/* COUNT vectors from k on of a thread: the gradient of those that `from` holds (or, NULL, memory), then the next row's are
 * fetched in their place. All loads first. */
template <class T, bool DUE, bool NEXT, int COUNT> TM_LANE void turn_over(int k, int vectors, const tm_half_due &due, uint4 *z, const uint4 *next, tm_half_seen &seen, uint4 *held, int step)
{
    uint4 fresh[COUNT], old[COUNT];
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        int i = threadIdx.x + (k + j) * THREADS;
        if (NEXT && i < vectors)
            fresh[j] = next[i];
        if (DUE && i < vectors)
            old[j] = held ? held[j * step] : z[i];
    }
#pragma unroll
    for (int j = 0; j < COUNT; j++) {
        int i = threadIdx.x + (k + j) * THREADS;
        if (i >= vectors)
            continue;
        if (DUE)
            give_gradient<T>(due, z, i, old[j]);
        if (NEXT) {
            float v[8];
            spread<T>(fresh[j], v);
            see<8, false>(seen, i, v, 0, 0);
            if (held)
                held[j * step] = fresh[j];
        }
    }
}

/* Gradient of the row that is due (DUE) and first pass of the next (NEXT). Of a thread's vectors the first w.kept / THREADS
 * are in shared memory, the next IN_REGISTERS in registers, the rest nowhere. */
template <class T, bool DUE, bool NEXT> TM_LANE void both_passes(const xent_work &w, const tm_half_due &due, int64_t row, tm_half_seen &seen, uint4 *kept, uint4 (&mine)[IN_REGISTERS])
{
    int vectors = (int)(w.logits.cols / 8), in_memory = w.kept / THREADS, all = (vectors + THREADS - 1) / THREADS, k = 0;
    uint4 *z = (uint4 *)((T *)w.logits.data + due.row * w.logits.ld);
    const uint4 *next = (const uint4 *)((const T *)w.logits.data + row * w.logits.ld);
    for (; k < in_memory; k += BATCH)
        turn_over<T, DUE, NEXT, BATCH>(k, vectors, due, z, next, seen, kept + threadIdx.x + k * THREADS, THREADS);
    if (k < all)
#pragma unroll
        for (int r = 0; r < IN_REGISTERS; r += 2)
            turn_over<T, DUE, NEXT, 2>(k + r, vectors, due, z, next, seen, mine + r, 1);
    for (k += IN_REGISTERS; k < all; k += BATCH)
        turn_over<T, DUE, NEXT, BATCH>(k, vectors, due, z, next, seen, nullptr, 0);
}

/* Block b has the rows b, b + gridDim.x, ... */
template <class T> static __global__ void __launch_bounds__(THREADS, 1) xent_rows(xent_work w, int64_t n)
{
    TM_SHARED(unsigned char, memory, 16);
    uint4 *kept = (uint4 *)memory, mine[IN_REGISTERS];
    tm_half_due due = {};
    tm_half_seen seen = {};
    for (int64_t row = blockIdx.x; row < n; row += gridDim.x) {
        int target = w.target[row];
        seen = nothing_seen(target, at(w.logits, row, target));
        if (row == blockIdx.x)
            both_passes<T, false, true>(w, due, row, seen, kept, mine);
        else
            both_passes<T, true, true>(w, due, row, seen, kept, mine);
        due = {row, join(seen.max, seen.sum), at(w.weight, 0, row), target};
        int lost = __syncthreads_or(seen.lost);
        if (threadIdx.x == 0) {
            put(w.loss, 0, row, due.model.log_sum + (due.model.max - seen.want));
            w.hit[row] = !lost;
        }
    }
    if (blockIdx.x < n)
        both_passes<T, true, false>(w, due, due.row, seen, kept, mine);
}

template <class T> static void launch_rows(tm_cuda *c, int64_t n, xent_work w)
{
    enum { STATIC = 2048, BATCH_VECTORS = BATCH * THREADS };
    int most = c->shared_most;
    int64_t vectors = w.logits.cols / 8, room = (most - STATIC) / 16 / BATCH_VECTORS, want = (vectors + BATCH_VECTORS - 1) / BATCH_VECTORS;
    w.kept = (int)((want < room ? want : room) * BATCH_VECTORS);
    if (tm_cuda_prepare(c, "xent", xent_rows<T>, THREADS, most - STATIC))
        tm_cuda_launch(c, "xent", xent_rows<T>, (unsigned)(n < c->processors ? n : c->processors), THREADS, (size_t)w.kept * 16, w, n);
}

template <class T, int V, bool CAP, bool TEACHER> static void launch(tm_cuda *c, int64_t n, xent_work w)
{
    enum { STATIC = 2048 };
    int most = c->shared_most;
    int64_t vectors = w.logits.cols / V, each = sizeof(typename slice<V>::raw) * (TEACHER ? 2 : 1);
    int64_t room = (most - STATIC) / each;
    w.kept = (int)(!w.grad && !TEACHER ? 0 : vectors < room ? vectors : room) / 8 * 8;
    auto *kernel = xent_row<T, V, CAP, TEACHER>;
    if (tm_cuda_prepare(c, "xent", kernel, THREADS, most - STATIC))
        tm_cuda_launch(c, "xent", kernel, (unsigned)n, THREADS, (size_t)(w.kept * each), w);
}

template <class T, int V> static void choose(tm_cuda *c, int64_t n, const xent_work &w)
{
    if (w.cap > 0 && w.teacher.data)
        launch<T, V, true, true>(c, n, w);
    else if (w.cap > 0)
        launch<T, V, true, false>(c, n, w);
    else if (w.teacher.data)
        launch<T, V, false, true>(c, n, w);
    else
        launch<T, V, false, false>(c, n, w);
}

bool tm_half_xent(tm_device *d, int64_t n, tm_tensor logits, float softcap, const int32_t *target, tm_tensor weight, tm_tensor teacher, tm_tensor teacher_weight, tm_tensor square_weight, bool grad, tm_tensor loss, tm_tensor kl, int32_t *hit)
{
    if (square_weight.data || !tm_half_alike({logits, teacher}))
        return false;
    bool whole = tm_half_fits({logits, teacher}) && logits.ld % 8 == 0 && (!teacher.data || teacher.ld % 8 == 0);
    xent_work w = {logits, weight, teacher, teacher_weight, loss, kl, softcap, target, hit, grad, 0};
    if (n > 0)
        tm_half_typed(logits.dtype, [&](auto element) {
            typedef decltype(element) T;
            if (whole && grad && !teacher.data && softcap <= 0)
                launch_rows<T>(tm_cuda_of(d), n, w);
            else if (whole)
                choose<T, 8>(tm_cuda_of(d), n, w);
            else
                choose<T, 1>(tm_cuda_of(d), n, w);
        });
    return true;
}
