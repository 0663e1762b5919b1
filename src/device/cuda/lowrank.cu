/* The low-rank delta of a linear module, y += scale * (dropout(x) A^T) B^T, and its gradients, for every
 * replica's rows with the replica's own A and B. docs/math/lowrank.md.
 *
 * One launch serves all replicas: a thread finds the replica of its row (or of its gradient) in
 * rows.group, on the device. */
#include "device/cuda/cuda.cuh"

/* What every kernel here captures: sizes of one replica, and dropout. */
struct tm_cuda_lowrank {
    tm_rows rows;
    tm_tensor a, b;
    int64_t r, in, out;
    float scale;
    bool drops;
    tm_cuda_drop dropout;
    const tm_step_params *step;
};

static tm_cuda_lowrank lowrank_of(const tm_rows *rows, const tm_lowrank *lr)
{
    return {*rows, lr->a, lr->b, lr->a.rows / rows->replicas, lr->a.cols, lr->b.rows / rows->replicas, lr->scale,
            lr->dropout > 0, tm_cuda_drop_of(lr->module, lr->dropout), lr->step};
}

TM_LANE float factor_of(const tm_cuda_lowrank &l, int32_t replica, int64_t t, int64_t channel)
{
    return dropout_factor(l.dropout, l.step[replica].dropout_key, l.rows, t, channel);
}

void tm_cuda_lowrank_forward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor x, tm_tensor xa, tm_tensor y)
{
    if (!tm_cuda_floats(d, "lowrank_forward", {lr->a, lr->b, x, xa, y}))
        return;
    tm_cuda_lowrank l = lowrank_of(rows, lr);
    tm_cuda_each(d, "lowrank_forward", l.rows.n * l.r, [=] __device__(int64_t i) {
        int64_t t = i / l.r, j = i % l.r;
        int32_t replica = replica_of(l.rows, t);
        put(xa, t, j, product_sum(l.in, nullptr, [&](int64_t k) { return at(l.a, replica * l.r + j, k); },
                                  [&](int64_t k) { return l.drops ? factor_of(l, replica, t, k) * at(x, t, k) : at(x, t, k); }));
    });
    tm_cuda_each(d, "lowrank_forward", l.rows.n * l.out, [=] __device__(int64_t i) {
        int64_t t = i / l.out, n = i % l.out, row = replica_of(l.rows, t) * l.out + n;
        float old = at(y, t, n);
        put(y, t, n, product_sum(l.r, &old, [&](int64_t j) { return at(xa, t, j) * l.scale; }, [&](int64_t j) { return at(l.b, row, j); }));
    });
}

void tm_cuda_lowrank_backward(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor dy, tm_tensor x, tm_tensor xa, tm_tensor dxa, tm_tensor da, tm_tensor db, tm_tensor dx)
{
    if (!tm_cuda_floats(d, "lowrank_backward", {lr->a, lr->b, dy, x, xa, dxa, da, db, dx}))
        return;
    tm_cuda_lowrank l = lowrank_of(rows, lr);
    int64_t replicas = l.rows.replicas;
    tm_cuda_each(d, "lowrank_backward", l.rows.n * l.r, [=] __device__(int64_t i) {
        int64_t t = i / l.r, j = i % l.r, first = replica_of(l.rows, t) * l.out;
        put(dxa, t, j, product_sum(l.out, nullptr, [&](int64_t n) { return at(l.b, first + n, j) * l.scale; }, [&](int64_t n) { return at(dy, t, n); }));
    });
    if (da.data)
        tm_cuda_each(d, "lowrank_backward", replicas * l.r * l.in, [=] __device__(int64_t i) {
            int64_t row = i / l.in, k = i % l.in, j = row % l.r;
            int32_t replica = (int32_t)(row / l.r);
            const int32_t *chunks = l.rows.group_chunk + replica;
            put(da, row, k, chunk_sum(l.rows.chunk, chunks[0], chunks[1], at(da, row, k), [&](int64_t t, float s) {
                return fmaf(at(dxa, t, j), l.drops ? factor_of(l, replica, t, k) * at(x, t, k) : at(x, t, k), s);
            }));
        });
    if (db.data)
        tm_cuda_each(d, "lowrank_backward", replicas * l.out * l.r, [=] __device__(int64_t i) {
            int64_t row = i / l.r, j = i % l.r, n = row % l.out;
            const int32_t *chunks = l.rows.group_chunk + row / l.out;
            put(db, row, j, chunk_sum(l.rows.chunk, chunks[0], chunks[1], at(db, row, j), [&](int64_t t, float s) {
                return fmaf(at(xa, t, j) * l.scale, at(dy, t, n), s);
            }));
        });
    if (dx.data)
        tm_cuda_each(d, "lowrank_backward", l.rows.n * l.in, [=] __device__(int64_t i) {
            int64_t t = i / l.in, k = i % l.in;
            int32_t replica = replica_of(l.rows, t);
            float old = at(dx, t, k);
            auto row = [&](int64_t j) { return at(dxa, t, j); };
            auto col = [&](int64_t j) { return at(l.a, replica * l.r + j, k); };
            put(dx, t, k, l.drops ? old + product_sum(l.r, nullptr, row, col) * factor_of(l, replica, t, k) : product_sum(l.r, &old, row, col));
        });
}
