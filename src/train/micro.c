/* A micro-batch of a training step: queued op by op, or, where the host would be slower than the device, recorded once
 * and replayed.
 *
 * A graph has one shape, so its micro-batches are laid out at their capacity (tm_batch.fixed). What is computed for
 * padding reaches no result: bits are those of ops queued one by one (tests/unit/test_cuda_ops.c). */
#include "train/micro.h"

/* From here on a device is busy long enough with an op for the host to queue the next. */
enum { GRAPH_TOKENS = 4096 };

/* Whether one graph can serve the run: nothing in a micro-batch may depend on the host but what is uploaded before it,
 * no teacher may be asked before it, and no sum may run over rows (a trained matrix: its gradient's rows of padding), or be cut by the data (a trained
 * output matrix: slices of whole chunks). */
static bool graphs_serve(const tm_trainer *t)
{
    const tm_model *m = &t->model;
    if (!t->device->calls->graph_begin || t->batch.max_tokens > GRAPH_TOKENS || t->recipe->graphs == TM_GRAPHS_NONE)
        return false;
    if (t->teacher.used || m->row_index || t->gates || m->stash_end > m->stash_first || tm_linear_group_trained(&m->head_group) || tm_embed_trained(m))
        return false;
    for (int64_t i = 0; i < m->params.count; i++) {
        const tm_param *p = m->params.item[i];
        if (p->trained && !p->added && p->ndim == 2)
            return false;
    }
    return true;
}

/* Padding costs what tokens cost: a batch that is mostly padding is better queued as it is. */
static bool full_enough(const tm_trainer *t, const tm_batch_item *items, int64_t count)
{
    int64_t rows = 0;
    for (int64_t i = 0; i < count; i++)
        rows += tm_batch_item_rows(&t->batch, &items[i]);
    return rows * 4 >= t->batch.max_tokens * 3;
}

static void queue_ops(void *context)
{
    tm_trainer *t = context;
    tm_model_forward(&t->model, &t->batch);
    tm_model_loss(&t->model, &t->batch, t->batch.any_teacher ? t->teacher.hidden : tm_tensor_none(), t->teacher.head, true);
    tm_model_backward(&t->model, &t->batch);
}

void tm_micro_queue(tm_trainer *t, tm_batch_item *items, int64_t count)
{
    tm_teacher_ask(t, items, count);
    tm_batch_fill(&t->batch, items, count);
    queue_ops(t);
}

tm_status tm_micro_run(tm_trainer *t, tm_batch_item *items, int64_t count, tm_error *err)
{
    if (!graphs_serve(t) || !full_enough(t, items, count)) {
        tm_micro_queue(t, items, count);
        return TM_OK;
    }
    t->batch.fixed = true;
    tm_batch_fill(&t->batch, items, count);
    t->batch.fixed = false;
    return tm_replay_run(t->device, &t->replay, queue_ops, t, err);
}

void tm_micro_drop(tm_trainer *t) { tm_replay_drop(t->device, &t->replay); }
