/* The low-rank delta of a linear module, y += scale * (dropout(x) A^T) B^T, and its gradients, for
 * every replica's rows with the replica's own A and B. docs/math/lowrank.md.
 *
 * Four of the five products have the rank as one side of C; they run with the rank as the short side
 * m of gemm.h, so that x and dy pass through the first-level cache once and are not packed twice. */
#include "device/cpu/gemm.h"

/* One replica's part of the op: its rows, and its slices of A and B. */
typedef struct part {
    int64_t first, rows; /* of tm_rows */
    const int32_t *chunk;
    int64_t chunks;
    tm_tensor a, b;
    tm_gemm_dropout drop; /* for matrices that start at row `first` */
} part;

static int32_t rank_of(const tm_rows *rows, const tm_lowrank *lr) { return (int32_t)(lr->a.rows / rows->replicas); }

static tm_tensor slice(tm_tensor t, int64_t replicas, int64_t replica)
{
    int64_t each = t.rows / replicas;
    return tm_tensor_rows(t, replica * each, each);
}

static part part_of(const tm_rows *rows, const tm_lowrank *lr, int32_t replica)
{
    part p = {.first = rows->group[replica], .rows = rows->group[replica + 1] - rows->group[replica],
              .chunk = rows->chunk + rows->group_chunk[replica],
              .chunks = rows->group_chunk[replica + 1] - rows->group_chunk[replica],
              .a = slice(lr->a, rows->replicas, replica), .b = slice(lr->b, rows->replicas, replica)};
    if (lr->dropout > 0) {
        p.drop = (tm_gemm_dropout){rows->position + p.first, rows->example + p.first,
                                   tm_dropout_begin(lr->module, lr->dropout)};
        p.drop.row.key = lr->step[replica].dropout_key;
    }
    return p;
}

static tm_gemm product(int64_t m, int64_t n, int64_t k, tm_gemm_factor a, tm_gemm_factor b, tm_tensor c)
{
    return (tm_gemm){.m = m, .n = n, .k = k, .a = a, .b = b, .c = c.data, .c_dtype = c.dtype, .ldc = c.ld};
}

void TM_KERNEL(lowrank_forward)(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor x, tm_tensor xa,
                                tm_tensor y)
{
    int64_t r = rank_of(rows, lr);
    for (int32_t i = 0; i < rows->replicas; i++) {
        part p = part_of(rows, lr, i);
        tm_tensor xi = tm_tensor_rows(x, p.first, p.rows), xai = tm_tensor_rows(xa, p.first, p.rows);
        tm_tensor yi = tm_tensor_rows(y, p.first, p.rows);
        tm_gemm g = product(r, p.rows, x.cols, tm_gemm_rows_of(p.a), tm_gemm_rows_of(xi), xai);
        g.c_turned = true;
        g.drop_b = lr->dropout > 0 ? &p.drop : NULL;
        TM_KERNEL(gemm)(tm_cpu_of(d), &g);
        g = product(p.rows, y.cols, r, tm_gemm_rows_of(xai), tm_gemm_rows_of(p.b), yi);
        g.scaled = true;
        g.scale = lr->scale;
        g.accumulate = true;
        TM_KERNEL(gemm)(tm_cpu_of(d), &g);
    }
}

static void backward_part(tm_cpu *cpu, const part *p, const tm_lowrank *lr, tm_tensor dy, tm_tensor x, tm_tensor xa,
                          tm_tensor dxa, tm_tensor da, tm_tensor db, tm_tensor dx)
{
    int64_t r = p->a.rows;
    const tm_gemm_dropout *drop = lr->dropout > 0 ? &p->drop : NULL;
    tm_tensor dyi = tm_tensor_rows(dy, p->first, p->rows), dxai = tm_tensor_rows(dxa, p->first, p->rows);
    tm_gemm g = product(r, p->rows, dy.cols, tm_gemm_cols_of(p->b), tm_gemm_rows_of(dyi), dxai);
    g.scaled = true;
    g.scale = lr->scale;
    g.c_turned = true;
    TM_KERNEL(gemm)(cpu, &g);
    if (da.data) { /* rows of k are counted from the micro-batch's first, as the chunks are */
        tm_gemm_dropout whole = p->drop;
        if (drop) {
            whole.position -= p->first;
            whole.example -= p->first;
        }
        g = product(r, x.cols, p->rows, tm_gemm_cols_of(dxa), tm_gemm_cols_of(x), da);
        g.block = p->chunk;
        g.blocks = p->chunks;
        g.drop_b = drop ? &whole : NULL;
        g.accumulate = true;
        TM_KERNEL(gemm)(cpu, &g);
    }
    if (db.data) {
        g = product(r, dy.cols, p->rows, tm_gemm_cols_of(xa), tm_gemm_cols_of(dy), db);
        g.block = p->chunk;
        g.blocks = p->chunks;
        g.scaled = true;
        g.scale = lr->scale;
        g.c_turned = true;
        g.accumulate = true;
        TM_KERNEL(gemm)(cpu, &g);
    }
    if (dx.data) {
        g = product(p->rows, dx.cols, r, tm_gemm_rows_of(dxai), tm_gemm_cols_of(p->a),
                    tm_tensor_rows(dx, p->first, p->rows));
        g.drop_c = drop;
        g.accumulate = true;
        TM_KERNEL(gemm)(cpu, &g);
    }
}

void TM_KERNEL(lowrank_backward)(tm_device *d, const tm_rows *rows, const tm_lowrank *lr, tm_tensor dy, tm_tensor x,
                                 tm_tensor xa, tm_tensor dxa, tm_tensor da, tm_tensor db, tm_tensor dx)
{
    for (int32_t i = 0; i < rows->replicas; i++) {
        part p = part_of(rows, lr, i);
        backward_part(tm_cpu_of(d), &p, lr, dy, x, xa, dxa, da.data ? slice(da, rows->replicas, i) : da,
                      db.data ? slice(db, rows->replicas, i) : db, dx);
    }
}
