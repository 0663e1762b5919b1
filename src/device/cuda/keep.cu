/* Penalties that hold a model near what it was, and what measures importances. docs/math/keep.md.
 *
 * Sums in double are those of src/device/cpu/keep.c: partial sums by blocks or rows, groups of GROUP of them, the groups
 * in order, in rounds of as many as there is room for. A strength of 0 touches nothing. */
#include "device/cuda/math.cuh"

enum {
    BLOCK = 4096, GROUP = 64, LANES = 16,
    ROUND = 1 << 17, /* partial sums at once; whole groups */
    GROUPS_AT = 1, PARTIAL_AT = GROUPS_AT + ROUND / GROUP, EXTRA_AT = PARTIAL_AT + ROUND, /* of the device's partials; 0: the total */
};
static_assert(EXTRA_AT + (int64_t)ROUND * LANES <= TM_CUDA_PARTIALS, "a round fits");

TM_LANE double join_doubles(double *lane)
{
    for (int step = LANES / 2; step; step /= 2)
        for (int i = 0; i < step; i++)
            lane[i] += lane[i + step];
    return lane[0];
}

static double *partials_of(tm_device *d) { return (double *)tm_cuda_of(d)->partials; }

/* The round's n partial sums join the total, which starts at 0 in the first round and after the last goes to *penalty, times
 * factor. */
static void add_groups(tm_device *d, const char *op, int64_t n, bool first, bool last, double factor, double *penalty)
{
    double *all = partials_of(d);
    int64_t groups = (n + GROUP - 1) / GROUP;
    tm_cuda_each(d, op, groups, [=] __device__(int64_t g) {
        double sum = 0;
        for (int64_t i = g * GROUP; i < n && i < (g + 1) * GROUP; i++)
            sum += all[PARTIAL_AT + i];
        all[GROUPS_AT + g] = sum;
    });
    tm_cuda_each(d, op, 1, [=] __device__(int64_t) {
        double total = first ? 0 : all[0];
        for (int64_t g = 0; g < groups; g++)
            total += all[GROUPS_AT + g];
        all[0] = total;
        if (last)
            *penalty += factor * total;
    });
}

/* --- anchor: a thread an element for the gradient, one a block and lane for the penalty --- */

struct anchor_terms {
    tm_tensor value, anchor, importance;
    __device__ float away(int64_t i) const { return anchor.data ? element(value, i) - element(anchor, i) : element(value, i); }
    __device__ float pull(int64_t i, float far) const { return importance.data ? element(importance, i) * far : far; }
};

void tm_cuda_anchor(tm_device *d, tm_tensor value, tm_tensor anchor, tm_tensor importance, double strength, tm_tensor grad, double *penalty)
{
    if (strength == 0 || !tm_cuda_floats(d, "anchor", {value, anchor, importance, grad}))
        return;
    anchor_terms a = {value, anchor, importance};
    float factor = (float)strength;
    int64_t n = value.rows * value.cols, blocks = (n + BLOCK - 1) / BLOCK;
    double *all = partials_of(d);
    tm_cuda_each(d, "anchor", n, [=] __device__(int64_t i) { put_element(grad, i, fmaf(factor, a.pull(i, a.away(i)), element(grad, i))); });
    for (int64_t first = 0; first < blocks; first += ROUND) {
        int64_t count = blocks - first < ROUND ? blocks - first : ROUND;
        tm_cuda_each(d, "anchor", count * LANES, [=] __device__(int64_t item) {
            int64_t begin = (first + item / LANES) * BLOCK;
            double sum = 0;
            for (int64_t i = begin + item % LANES; i < n && i < begin + BLOCK; i += LANES) {
                float far = a.away(i);
                sum += (double)a.pull(i, far) * (double)far;
            }
            all[EXTRA_AT + item] = sum;
        });
        tm_cuda_each(d, "anchor", count, [=] __device__(int64_t b) { all[PARTIAL_AT + b] = join_doubles(all + EXTRA_AT + b * LANES); });
        add_groups(d, "anchor", count, first == 0, first + ROUND >= blocks, strength / 2, penalty);
    }
}

/* --- delta_anchor: elements of dW are made again by every thread that needs them --- */

enum { TILE_ROWS = GROUP, TILE_COLS = 256, RANKS = 16 /* sums a thread holds */ };

struct delta_terms {
    tm_tensor a, b, start_a, start_b, importance;
    float scale, start_scale, factor;
    static __device__ float product(const tm_tensor &a, const tm_tensor &b, int64_t row, int64_t col)
    {
        float sum = 0;
        for (int64_t k = 0; k < a.rows; k++)
            sum = fmaf(at(b, row, k), at(a, k, col), sum);
        return sum;
    }
    __device__ float away(int64_t row, int64_t col) const
    {
        float x = scale * product(a, b, row, col);
        return start_a.data ? x - start_scale * product(start_a, start_b, row, col) : x;
    }
    __device__ float pull(int64_t row, int64_t col, float far) const { return importance.data ? at(importance, row, col) * far : far; }
    __device__ float moved(int64_t row, int64_t col) const { return factor * pull(row, col, away(row, col)); }
};

TM_ON_DEVICE static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

void tm_cuda_delta_anchor(tm_device *d, const tm_lowrank *lr, const tm_lowrank *start, tm_tensor importance, double strength, tm_tensor da, tm_tensor db, double *penalty)
{
    tm_lowrank none = {};
    const tm_lowrank *before = start ? start : &none;
    if (strength == 0 || !tm_cuda_floats(d, "delta_anchor", {lr->a, lr->b, before->a, before->b, importance, da, db}))
        return;
    delta_terms m = {lr->a, lr->b, before->a, before->b, importance, lr->scale, before->scale, (float)(strength * (double)lr->scale)};
    int64_t out = lr->b.rows, in = lr->a.cols, r = lr->a.rows, steps = (r + RANKS - 1) / RANKS;
    double *all = partials_of(d);
    for (int64_t first = 0; first < out; first += ROUND) {
        int64_t count = out - first < ROUND ? out - first : ROUND;
        tm_cuda_each(d, "delta_anchor", count, [=] __device__(int64_t row) {
            double sum = 0;
            for (int64_t col = 0; col < in; col += TILE_COLS) {
                double lane[LANES] = {};
                for (int64_t c = col; c < least(in, col + TILE_COLS); c++) {
                    float far = m.away(first + row, c);
                    lane[c % LANES] += (double)m.pull(first + row, c, far) * (double)far;
                }
                sum = sum + join_doubles(lane);
            }
            all[PARTIAL_AT + row] = sum;
        });
        add_groups(d, "delta_anchor", count, first == 0, first + ROUND >= out, strength / 2, penalty);
    }
    tm_cuda_each(d, "delta_anchor", out * steps, [=] __device__(int64_t item) {
        int64_t row = item % out, from = item / out * RANKS, count = least(r - from, RANKS);
        for (int64_t col = 0; col < in; col += TILE_COLS) {
            float sum[RANKS] = {};
            for (int64_t c = col; c < least(in, col + TILE_COLS); c++) {
                float x = m.moved(row, c);
                for (int64_t k = 0; k < count; k++)
                    sum[k] = fmaf(x, at(m.a, from + k, c), sum[k]);
            }
            for (int64_t k = 0; k < count; k++)
                put(db, row, from + k, at(db, row, from + k) + sum[k]);
        }
    });
    tm_cuda_each(d, "delta_anchor", in * steps, [=] __device__(int64_t item) {
        int64_t col = item % in, from = item / in * RANKS, count = least(r - from, RANKS);
        for (int64_t row = 0; row < out; row += TILE_ROWS) {
            float sum[RANKS] = {};
            for (int64_t o = row; o < least(out, row + TILE_ROWS); o++) {
                float x = m.moved(o, col);
                for (int64_t k = 0; k < count; k++)
                    sum[k] = fmaf(at(m.b, o, from + k), x, sum[k]);
            }
            for (int64_t k = 0; k < count; k++)
                put(da, from + k, col, at(da, from + k, col) + sum[k]);
        }
    });
}

/* --- overlap --- */

enum { OVERLAP_ROWS = 1024, OVERLAP_RANKS = 512 };

void tm_cuda_overlap(tm_device *d, tm_tensor old_a, tm_tensor a, double strength, tm_tensor da, double *penalty)
{
    if (strength == 0 || !tm_cuda_floats(d, "overlap", {old_a, a, da}))
        return;
    double *all = partials_of(d);
    float *product = (float *)(all + EXTRA_AT), factor = (float)strength;
    for (int64_t row0 = 0; row0 < old_a.rows; row0 += OVERLAP_ROWS) {
        int64_t rows = least(OVERLAP_ROWS, old_a.rows - row0);
        for (int64_t rank0 = 0; rank0 < a.rows; rank0 += OVERLAP_RANKS) {
            int64_t ranks = least(OVERLAP_RANKS, a.rows - rank0);
            tm_cuda_each(d, "overlap", rows * ranks, [=] __device__(int64_t i) {
                int64_t p = row0 + i / ranks, k = rank0 + i % ranks;
                product[i] = row_sum(a.cols, [&](int64_t c, float sum) { return fmaf(at(old_a, p, c), at(a, k, c), sum); });
            });
            tm_cuda_each(d, "overlap", rows, [=] __device__(int64_t p) {
                double sum = rank0 ? all[PARTIAL_AT + p] : 0;
                for (int64_t k = 0; k < ranks; k++)
                    sum += fabs((double)product[p * ranks + k]);
                all[PARTIAL_AT + p] = sum;
            });
            tm_cuda_each(d, "overlap", ranks * a.cols, [=] __device__(int64_t i) {
                int64_t k = i / a.cols, c = i % a.cols;
                float grad = at(da, rank0 + k, c);
                for (int64_t p = 0; p < rows;) {
                    float sum = 0;
                    for (int64_t last = least(p + GROUP, rows); p < last; p++) {
                        float g = product[p * ranks + k];
                        sum = fmaf((float)((g > 0) - (g < 0)), at(old_a, row0 + p, c), sum);
                    }
                    grad = fmaf(factor, sum, grad);
                }
                put(da, rank0 + k, c, grad);
            });
        }
        add_groups(d, "overlap", rows, row0 == 0, row0 + OVERLAP_ROWS >= old_a.rows, strength, penalty);
    }
}

/* --- square_add, path_add --- */

void tm_cuda_square_add(tm_device *d, double scale, tm_tensor x, tm_tensor y)
{
    if (!tm_cuda_floats(d, "square_add", {x, y}))
        return;
    float factor = (float)scale;
    tm_cuda_each(d, "square_add", y.rows * y.cols, [=] __device__(int64_t i) {
        int64_t t = i / y.cols, c = i % y.cols;
        float v = at(x, t, c);
        put(y, t, c, fmaf(factor, v * v, at(y, t, c)));
    });
}

void tm_cuda_path_add(tm_device *d, tm_tensor grad, tm_tensor before, tm_tensor value, tm_tensor y)
{
    if (!tm_cuda_floats(d, "path_add", {grad, before, value, y}))
        return;
    tm_cuda_each(d, "path_add", y.rows * y.cols, [=] __device__(int64_t i) {
        int64_t t = i / y.cols, c = i % y.cols;
        put(y, t, c, fmaf(-at(grad, t, c), at(value, t, c) - at(before, t, c), at(y, t, c)));
    });
}

/* --- sample_targets: a thread a row --- */

struct draw_terms {
    tm_tensor logits;
    float cap;
    int64_t row;
    float max;
    enum { IDS = 256 };
    __device__ float seen(int64_t i) const
    {
        float z = at(logits, row, i);
        return cap > 0 ? cap * tanh_of(z / cap) : z;
    }
    __device__ float share(int64_t i) const { return exp_of(seen(i) - max); }
    __device__ double block(int64_t b) const
    {
        double lane[LANES] = {};
        for (int64_t i = b * IDS; i < least(logits.cols, (b + 1) * IDS); i++)
            lane[i % LANES] += (double)share(i);
        return join_doubles(lane);
    }
    /* The first id of block b at which the shares, added to `below` one by one, exceed u; the last of any share if none
     * does; -1 if there is none of any. */
    __device__ int32_t find(int64_t b, double below, double u) const
    {
        int32_t last = -1;
        for (int64_t i = b * IDS; i < least(logits.cols, (b + 1) * IDS); i++) {
            float s = share(i);
            below += (double)s;
            if (s > 0)
                last = (int32_t)i;
            if (below > u)
                return last;
        }
        return last;
    }
};

void tm_cuda_sample_targets(tm_device *d, int64_t n, tm_tensor logits, float softcap, uint64_t key, const uint32_t *place, int32_t *target)
{
    if (!tm_cuda_floats(d, "sample_targets", {logits}))
        return;
    tm_cuda_each(d, "sample_targets", n, [=] __device__(int64_t row) {
        draw_terms draw = {logits, softcap, row, -INFINITY};
        int64_t blocks = (logits.cols + draw_terms::IDS - 1) / draw_terms::IDS, b = 0;
        double total = 0, below = 0;
        for (int64_t i = 0; i < logits.cols; i++)
            draw.max = larger(draw.seen(i), draw.max);
        for (int64_t k = 0; k < blocks; k++)
            total += draw.block(k);
        tm_philox random = tm_philox_at(key, place ? place[row] : (uint32_t)row, 0, 0, 0);
        double u = (double)(((uint64_t)random.word[1] << 32 | random.word[0]) >> 11) * 0x1p-53 * total;
        for (; b < blocks; b++) {
            double sum = draw.block(b);
            if (below + sum > u)
                break;
            below += sum;
        }
        if (b == blocks) { /* rounding, or logits that are no numbers */
            u = INFINITY;
            while (b > 0 && !(draw.block(--b) > 0))
                ;
        }
        int32_t found = draw.find(b, below, u);
        target[row] = found < 0 ? 0 : found;
    });
}
