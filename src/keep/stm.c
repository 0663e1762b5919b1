/* Selective token masking: see stm.h.
 *
 * 1. One teacher-forced pass of the base over the task's data (never the rehearsal's), when weights are loaded and nothing
 *    was trained. Losses do not depend on the layout, so the mask depends on model, data and recipe alone.
 * 2. The mask is kept in the run folder (stm.bin, docs/formats/run-folder.md): a resumed run reads it; one that was made
 *    of other data or settings is made anew. The token cache stays as it is.
 * 3. An example without targets left stays in the order and gives no loss. */
#include "keep/stm.h"

#include "base/exact.h"
#include "base/json.h"
#include "keep/keep.h"

#include <math.h>
#include <stdlib.h>

typedef struct mask {
    uint8_t *bits;
    int64_t targets, masked;
} mask;

/* Of a run's data without rehearsal. */
static int64_t task_examples(const tm_run *run) { return tm_dataset_first(run->data, run->rehearsal_from); }
static size_t mask_bytes(int64_t targets) { return (size_t)(targets + 7) / 8; }

/* --- Choosing --- */

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

static void set_bit(uint8_t *bits, int64_t i, int64_t *count)
{
    bits[i / 8] |= (uint8_t)(1 << i % 8);
    ++*count;
}

tm_status tm_stm_choose(const float *loss, int64_t n, double threshold, double fraction, uint8_t *bits, int64_t *masked, tm_error *err)
{
    *masked = 0;
    memset(bits, 0, mask_bytes(n));
    for (int64_t i = 0; i < n && threshold > 0; i++)
        if (tm_exp(loss[i]) > threshold)
            set_bit(bits, i, masked);
    int64_t take = (int64_t)floor(fraction * (double)n), equal;
    if (threshold > 0 || take < 1)
        return TM_OK;
    float *sorted;
    TM_TRY(TM_NEW(&sorted, n, err));
    memcpy(sorted, loss, (size_t)n * sizeof *loss);
    qsort(sorted, (size_t)n, sizeof *sorted, descending);
    float last = sorted[take - 1];
    for (equal = 0; equal < take && sorted[take - 1 - equal] == last;)
        equal++;
    free(sorted);
    for (int64_t i = 0; i < n; i++)
        if (loss[i] > last || (loss[i] == last && equal-- > 0))
            set_bit(bits, i, masked);
    return TM_OK;
}

/* --- The file --- */

/* What the mask is of; the counts of a mask behind it make the first line of its file. */
static void put_subject(const tm_trainer *t, int64_t targets, tm_buf *out)
{
    const tm_run *run = t->run;
    uint64_t hash = 0;
    for (int64_t i = 0; i < task_examples(run); i++) {
        const tm_example *e = tm_dataset_at(run->data, i);
        hash = tm_tokens_hash(hash, e->ids, e->weight, e->n);
    }
    tm_buf_printf(out, "{\"temper_stm\": 1, \"threshold\": ");
    tm_json_put_number(out, t->recipe->stm_threshold);
    tm_buf_text(out, ", \"fraction\": ");
    tm_json_put_number(out, t->recipe->stm_fraction);
    tm_buf_printf(out, ", \"data\": \"%016llx\", \"examples\": %lld, \"targets\": %lld", (unsigned long long)hash, (long long)task_examples(run), (long long)targets);
}

static tm_status write_mask(const mask *m, const tm_buf *subject, const char *path, tm_error *err)
{
    tm_buf out = {0};
    tm_buf_printf(&out, "%s, \"masked\": %lld}\n", tm_buf_str(subject), (long long)m->masked);
    tm_buf_add(&out, (const char *)m->bits, mask_bytes(m->targets));
    tm_status st = tm_buf_check(&out, err);
    if (st == TM_OK)
        st = tm_file_write(path, out.data, out.size, err);
    tm_buf_deinit(&out);
    return st;
}

/* *found false: there is no such file, or it is not of this data and these settings, or damaged. */
static tm_status read_mask(mask *m, const tm_buf *subject, const char *path, bool *found, tm_error *err)
{
    tm_map map;
    *found = false;
    if (!tm_path_exists(path))
        return TM_OK;
    TM_TRY(tm_map_open(path, &map, err));
    const char *end = memchr(map.data, '\n', map.size);
    size_t head = end ? (size_t)(end - map.data) + 1 : 0, bytes = mask_bytes(m->targets);
    if (head > subject->size && memcmp(map.data, subject->data, subject->size) == 0 && map.size - head == bytes) {
        memcpy(m->bits, map.data + head, bytes);
        for (int64_t i = 0; i < m->targets; i++)
            m->masked += m->bits[i / 8] >> (i % 8) & 1;
        *found = true;
    }
    tm_map_close(&map);
    return TM_OK;
}

/* --- The hook --- */

static tm_status compute_mask(tm_trainer *t, mask *m, tm_error *err)
{
    float *loss;
    TM_TRY(TM_NEW(&loss, m->targets + 1, err));
    tm_status st = tm_trainer_base_losses(t, t->run->data, 0, task_examples(t->run), loss, err);
    if (st == TM_OK)
        st = tm_stm_choose(loss, m->targets, t->recipe->stm_threshold, t->recipe->stm_fraction, m->bits, &m->masked, err);
    free(loss);
    return st;
}

static tm_status keep_mask(const tm_trainer *t, const mask *m, const tm_buf *subject, tm_error *err)
{
    for (int32_t r = 0; r < t->run->replicas; r++) {
        char *path = tm_path_join(t->run->folder[r]->dir, "stm.bin", err);
        tm_status st = path ? write_mask(m, subject, path, err) : TM_NO_MEMORY;
        free(path);
        TM_TRY(st);
    }
    return TM_OK;
}

static tm_status say(tm_trainer *t, const mask *m, tm_error *err)
{
    double share = m->targets ? 100 * (double)m->masked / (double)m->targets : 0;
    char which[64];
    if (t->recipe->stm_threshold > 0)
        snprintf(which, sizeof which, "whose perplexity under the base exceeds %g", t->recipe->stm_threshold);
    else
        snprintf(which, sizeof which, "of highest perplexity under the base");
    return tm_trainer_warn(t, err, "keep.stm: %.1f %% of the targets (%lld of %lld), those %s, give no loss; %s", share,
                           (long long)m->masked, (long long)m->targets, which,
                           m->masked < m->targets ? "this blocks new facts too" : "nothing of the data is learned: a larger keep.stm.threshold, or keep.stm.fraction in its place, leaves some");
}

static tm_status stm_base(void *state, tm_trainer *t, tm_error *err)
{
    (void)state;
    const tm_run *run = t->run;
    mask m = {0};
    tm_buf subject = {0};
    char *path = NULL;
    bool found;
    tm_status st = TM_OK;
    for (int64_t i = 0; i < task_examples(run); i++)
        m.targets += tm_dataset_at(run->data, i)->targets;
    TM_GO(tm_alloc((void **)&m.bits, mask_bytes(m.targets) + 1, 1, err));
    put_subject(t, m.targets, &subject);
    TM_GO(tm_buf_check(&subject, err));
    path = tm_path_join(run->folder[0]->dir, "stm.bin", err);
    TM_GO(path ? TM_OK : TM_NO_MEMORY);
    TM_GO(read_mask(&m, &subject, path, &found, err));
    if (!found) {
        TM_GO(compute_mask(t, &m, err));
        TM_GO(keep_mask(t, &m, &subject, err));
    }
    if (m.masked)
        TM_GO(tm_dataset_mask(run->data, run->rehearsal_from, m.bits, err));
    TM_GO(say(t, &m, err));
out:
    free(path);
    free(m.bits);
    tm_buf_deinit(&subject);
    return st;
}

tm_status tm_stm_add(tm_trainer *t, tm_error *err)
{
    const tm_recipe *r = t->recipe;
    if (!(r->stm_threshold > 0) && !(r->stm_fraction > 0))
        return TM_OK;
    if (r->stm_threshold > 0 && r->stm_fraction > 0)
        return tm_fail(err, TM_RECIPE, "keep.stm: found both threshold and fraction; expected one of them");
    return tm_trainer_add_hook(t, &(tm_hook){.name = "stm", .replicas = true, .base = stm_base}, err);
}
