/* The loss head: hidden states of the rows that predict a target, through the output matrix, a slice
 * of rows at a time, so that never more than the device's head_rows rows of logits exist. A slice is made of
 * whole chunks, so the head's own gradients are sums over chunks like any other. */
#include "model/model.h"

#define RUN(op, ...) TM_RUN(m->device, op, __VA_ARGS__)

static bool head_trained(const tm_model *m) { return tm_linear_group_trained(&m->head_group); }

/* Columns [first, first + n) of a vector. */
static tm_tensor part(tm_tensor vector, int64_t first, int64_t n) { return tm_tensor_cols(vector, first, n); }

static void head_forward(tm_model *m, const tm_rows *rows, tm_tensor x, tm_tensor logits)
{
    tm_linear_forward(&m->linear, &m->head_group, rows, x, &m->s_head, logits);
}

static void slice_loss(tm_model *m, const tm_batch *b, const tm_head_slice *slice, tm_tensor teacher, tm_tensor teacher_head, bool grad)
{
    const tm_rows *rows = &slice->rows;
    int64_t n = rows->n, first = slice->first;
    tm_tensor x = tm_tensor_rows(m->head_x, 0, n), logits = tm_tensor_rows(m->logits, 0, n), teacher_logits = tm_tensor_none();
    RUN(gather_rows, n, b->target_row + first, m->hidden, x);
    head_forward(m, rows, x, logits);
    if (teacher.data) {
        tm_tensor w = teacher_head.data ? teacher_head : m->head_group.weight, taught = tm_tensor_rows(m->teacher_x, 0, n);
        teacher_logits = tm_tensor_rows(m->teacher_logits, 0, n);
        RUN(gather_rows, n, b->teacher_row + first, teacher, taught);
        RUN(linear_forward, rows, taught, w, tm_tensor_none(), teacher_logits);
    }
    if (b->draws) /* the ids lie among what the batch uploads, and are written over */
        RUN(sample_targets, n, logits, m->config.head_cap, b->draw_key, (const uint32_t *)b->target_row + first, (int32_t *)(uintptr_t)(b->target + first));
    tm_tensor teacher_weight = b->any_teacher ? part(b->teacher_weight, first, n) : tm_tensor_none(), square_weight = b->any_square ? part(b->square_weight, first, n) : tm_tensor_none();
    RUN(xent, n, logits, m->config.head_cap, b->target + first, part(b->weight, first, n), teacher_logits, teacher_weight, square_weight, grad,
        part(b->loss, first, n), part(b->kl, first, n), b->hit + first);
    if (!grad)
        return;
    bool below = m->first_trained < m->config.layers || tm_norm_trained(&m->final_norm);
    tm_tensor dx = below ? tm_tensor_rows(m->dtarget, first, n) : tm_tensor_none();
    if (below || head_trained(m))
        tm_linear_backward(&m->linear, &m->head_group, rows, logits, x, &m->s_head, false, dx);
}

void tm_model_loss(tm_model *m, const tm_batch *b, tm_tensor teacher, tm_tensor teacher_head, bool grad)
{
    for (int64_t i = 0; i < b->slices; i++)
        slice_loss(m, b, &b->slice[i], teacher, teacher_head, grad);
    if (grad)
        RUN(scatter_rows, b->head_rows, b->target_row, m->dtarget, b->rows.n, m->dy);
}

void tm_model_gather_hidden(tm_model *m, const tm_batch *b, tm_tensor out)
{
    RUN(gather_rows, b->targets, b->target_row, m->hidden, out);
}

void tm_model_logits(tm_model *m, const tm_batch *b)
{
    head_forward(m, &b->rows, m->hidden, m->logits);
    if (m->config.head_cap > 0)
        RUN(softcap, b->rows.n, m->config.head_cap, m->logits);
}

void tm_model_likeliest(tm_model *m, const tm_batch *b)
{
    RUN(most_likely, b->rows.n, m->logits, b->hit);
}
