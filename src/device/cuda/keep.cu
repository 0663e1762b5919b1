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

/* --- delta_anchor ---
 *
 * As many rows of dW - dW0 as there is room for are made once, a thread an element, and then read by all sums: the penalty a thread a row and lane
 * (neighbours read neighbours), dB a thread a row and rank, dA a thread a column and rank. Rounds end where a group of rows ends. */

enum { TILE_ROWS = GROUP, TILE_COLS = 256, AWAY_ROOM = (TM_CUDA_PARTIALS - EXTRA_AT) * 2 /* floats */ };

struct delta_terms {
    tm_tensor a, b, start_a, start_b, importance;
    float scale, start_scale, factor;
    const float *far; /* [rows of the round, in] */
    int64_t first;    /* row of the round */
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
    __device__ float made(int64_t row, int64_t col) const { return far[(row - first) * a.cols + col]; }
    __device__ float pull(int64_t row, int64_t col) const { return importance.data ? at(importance, row, col) * made(row, col) : made(row, col); }
    __device__ float moved(int64_t row, int64_t col) const { return factor * pull(row, col); }
};

TM_ON_DEVICE static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* What one round's rows add to dB and dA, and their partial sums of the penalty; in the order of src/device/cpu/keep.c. lanes: room for
 * LANES a row and tile. */
static void add_delta_round(tm_device *d, const delta_terms &m, int64_t count, double *lanes, tm_tensor da, tm_tensor db)
{
    double *all = partials_of(d);
    int64_t in = m.a.cols, r = m.a.rows, first = m.first, tiles = (in + TILE_COLS - 1) / TILE_COLS;
    tm_cuda_each(d, "delta_anchor", count * LANES, [=] __device__(int64_t item) {
        int64_t row = first + item / LANES, lane = item % LANES;
        for (int64_t tile = 0; tile < tiles; tile++) {
            double sum = 0;
            for (int64_t c = tile * TILE_COLS + lane; c < least(in, (tile + 1) * TILE_COLS); c += LANES)
                sum += (double)m.pull(row, c) * (double)m.made(row, c);
            lanes[(item / LANES * tiles + tile) * LANES + lane] = sum;
        }
    });
    tm_cuda_each(d, "delta_anchor", count, [=] __device__(int64_t row) {
        double sum = 0;
        for (int64_t tile = 0; tile < tiles; tile++)
            sum = sum + join_doubles(lanes + (row * tiles + tile) * LANES);
        all[PARTIAL_AT + row] = sum;
    });
    tm_cuda_each(d, "delta_anchor", count * r, [=] __device__(int64_t item) {
        int64_t row = first + item / r, k = item % r;
        float grad = at(db, row, k);
        for (int64_t col = 0; col < in; col += TILE_COLS) {
            float sum = 0;
            for (int64_t c = col; c < least(in, col + TILE_COLS); c++)
                sum = fmaf(m.moved(row, c), at(m.a, k, c), sum);
            grad += sum;
        }
        put(db, row, k, grad);
    });
    tm_cuda_each(d, "delta_anchor", in * r, [=] __device__(int64_t item) {
        int64_t col = item % in, k = item / in;
        float grad = at(da, k, col);
        for (int64_t row = first; row < first + count; row += TILE_ROWS) {
            float sum = 0;
            for (int64_t o = row; o < least(first + count, row + TILE_ROWS); o++)
                sum = fmaf(at(m.b, o, k), m.moved(o, col), sum);
            grad += sum;
        }
        put(da, k, col, grad);
    });
}

void tm_cuda_delta_anchor(tm_device *d, const tm_lowrank *lr, const tm_lowrank *start, tm_tensor importance, double strength, tm_tensor da, tm_tensor db, double *penalty)
{
    tm_lowrank none = {};
    const tm_lowrank *before = start ? start : &none;
    if (strength == 0 || !tm_cuda_floats(d, "delta_anchor", {lr->a, lr->b, before->a, before->b, importance, da, db}))
        return;
    delta_terms m = {lr->a, lr->b, before->a, before->b, importance, lr->scale, before->scale, (float)(strength * (double)lr->scale), nullptr, 0};
    int64_t out = lr->b.rows, in = lr->a.cols, tiles = (in + TILE_COLS - 1) / TILE_COLS;
    /* A row takes `in` floats and LANES doubles a tile. */
    int64_t round = least(AWAY_ROOM / (in + 2 * LANES * tiles) / GROUP * GROUP, ROUND);
    if (round < GROUP) { /* more than 50,000 inputs */
        tm_cuda_note(tm_cuda_of(d), TM_UNSUPPORTED, "delta_anchor", "a matrix of more inputs than there is room for");
        return;
    }
    for (m.first = 0; m.first < out; m.first += round) {
        int64_t count = least(out - m.first, round), first = m.first;
        double *lanes = partials_of(d) + EXTRA_AT;
        float *far = (float *)(lanes + count * tiles * LANES);
        const delta_terms now = m;
        m.far = far;
        tm_cuda_each(d, "delta_anchor", count * in, [=] __device__(int64_t i) { far[i] = now.away(first + i / in, i % in); });
        add_delta_round(d, m, count, lanes, da, db);
        add_groups(d, "delta_anchor", count, first == 0, first + round >= out, strength / 2, penalty);
    }
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

/* --- sample_targets: a thread a lane of a block of ids for the largest and for the sums, one a row for the draw among the sums --- */

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

/* Scratch of a round: lanes [rows, blocks, LANES], at first floats, the largest; sum and max [rows, blocks], at last a row's largest at [row, 0]. */
struct draw_room {
    double *lanes, *sum;
    float *max;
    int64_t blocks;
};

static void sum_shares(tm_device *d, const char *op, int64_t first, int64_t count, tm_tensor logits, float cap, draw_room room)
{
    enum { IDS = draw_terms::IDS };
    int64_t blocks = room.blocks;
    float *largest = (float *)room.lanes;
    tm_cuda_each(d, op, count * blocks * LANES, [=] __device__(int64_t item) {
        draw_terms draw = {logits, cap, first + item / LANES / blocks, -INFINITY};
        int64_t b = item / LANES % blocks;
        for (int64_t i = b * IDS + item % LANES; i < least(logits.cols, (b + 1) * IDS); i += LANES)
            draw.max = larger(draw.seen(i), draw.max);
        largest[item] = draw.max;
    });
    tm_cuda_each(d, op, count * blocks, [=] __device__(int64_t item) {
        float max = -INFINITY;
        for (int i = 0; i < LANES; i++)
            max = larger(largest[item * LANES + i], max);
        room.max[item] = max;
    });
    tm_cuda_each(d, op, count, [=] __device__(int64_t row) {
        float max = -INFINITY;
        for (int64_t b = 0; b < blocks; b++)
            max = larger(room.max[row * blocks + b], max);
        room.max[row * blocks] = max;
    });
    tm_cuda_each(d, op, count * blocks * LANES, [=] __device__(int64_t item) {
        int64_t row = item / LANES / blocks, b = item / LANES % blocks;
        draw_terms draw = {logits, cap, first + row, room.max[row * blocks]};
        double sum = 0;
        for (int64_t i = b * IDS + item % LANES; i < least(logits.cols, (b + 1) * IDS); i += LANES)
            sum += (double)draw.share(i);
        room.lanes[item] = sum;
    });
    tm_cuda_each(d, op, count * blocks, [=] __device__(int64_t item) { room.sum[item] = join_doubles(room.lanes + item * LANES); });
}

void tm_cuda_sample_targets(tm_device *d, int64_t n, tm_tensor logits, float softcap, uint64_t key, const uint32_t *place, int32_t *target)
{
    const char *op = "sample_targets";
    if (!tm_cuda_floats(d, op, {logits}))
        return;
    int64_t blocks = (logits.cols + draw_terms::IDS - 1) / draw_terms::IDS, rows = (TM_CUDA_PARTIALS - PARTIAL_AT) / (blocks * (LANES + 2));
    if (rows < 1) { /* tens of millions of ids */
        tm_cuda_note(tm_cuda_of(d), TM_UNSUPPORTED, op, "more ids than there is room for");
        return;
    }
    for (int64_t first = 0; first < n; first += rows) {
        int64_t count = least(rows, n - first);
        double *lanes = partials_of(d) + PARTIAL_AT, *sums = lanes + count * blocks * LANES;
        draw_room room = {lanes, sums, (float *)(sums + count * blocks), blocks};
        sum_shares(d, op, first, count, logits, softcap, room);
        tm_cuda_each(d, op, count, [=] __device__(int64_t at) {
            int64_t row = first + at, b = 0;
            const double *sum = room.sum + at * blocks;
            draw_terms draw = {logits, softcap, row, room.max[at * blocks]};
            double total = 0, below = 0;
            for (int64_t k = 0; k < blocks; k++)
                total += sum[k];
            tm_philox random = tm_philox_at(key, place ? place[row] : (uint32_t)row, 0, 0, 0);
            double u = (double)(((uint64_t)random.word[1] << 32 | random.word[0]) >> 11) * 0x1p-53 * total;
            for (; b < blocks; b++) {
                if (below + sum[b] > u)
                    break;
                below += sum[b];
            }
            if (b == blocks) { /* rounding, or logits that are no numbers */
                u = INFINITY;
                while (b > 0 && !(sum[--b] > 0))
                    ;
            }
            int32_t found = draw.find(b, below, u);
            target[row] = found < 0 ? 0 : found;
        });
    }
}
