/* A whole model that came from the base as a source of a merge: an adapter of nothing but whole tensors, under the names that
 * adapters give them. So every way of joining changes holds for models too; a sum with one of them is WiSE-FT.
 *
 * A tied model has no head of its own: its embedding stands for it, where the base's head has weights. */
#include "api/merge.h"

#include "io/hf.h"

#include <stdlib.h>

static const tm_st_tensor *find_saved(const tm_adapter_file *f, const char *name)
{
    for (int64_t i = 0; name && i < f->saveds; i++)
        if (strcmp(f->saved[i].name, name) == 0)
            return f->saved[i].tensor;
    return NULL;
}

static tm_status take(tm_adapter_file *f, const char *name, const tm_st_tensor *tensor, tm_error *err)
{
    TM_TRY(TM_GROW(&f->saved, &f->saved_capacity, f->saveds + 1, err));
    char *copy = tm_strdup(name, err);
    if (!copy)
        return TM_NO_MEMORY;
    f->saved[f->saveds++] = (tm_adapter_saved){copy, tensor};
    return TM_OK;
}

/* Every weight of the base, or the merge would leave it where it was without a word. */
static tm_status check_whole(const tm_merge_work *m, const tm_adapter_file *f, const char *path, tm_error *err)
{
    char buffer[512];
    for (int64_t i = 0; i < tm_safetensors_count(m->base); i++) {
        const char *name = tm_merge_own_name(m, tm_safetensors_at(m->base, i)->name, buffer, sizeof buffer);
        if (!find_saved(f, name) && !(m->known && tm_family_beside(m->config.family, name)))
            return tm_fail(err, TM_INPUT, "%s: tensor %s of %s is missing: expected a model that was trained from it", path, name, m->request->model);
    }
    return TM_OK;
}

tm_status tm_merge_open_model(const tm_merge_work *m, const char *path, tm_adapter_file *out, tm_error *err)
{
    char buffer[512];
    *out = (tm_adapter_file){0};
    TM_TRY(tm_hf_open_weights(path, &out->file, err));
    TM_TRY(tm_safetensors_unpack(out->file, err));
    for (int64_t i = 0; i < tm_safetensors_count(out->file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(out->file, i);
        TM_TRY(take(out, tm_merge_own_name(m, t->name, buffer, sizeof buffer), t, err));
    }
    const tm_st_tensor *embed = find_saved(out, m->embed);
    if (m->known && embed && !find_saved(out, m->head)) {
        out->tied = true;
        TM_TRY(take(out, m->head, embed, err));
    }
    return check_whole(m, out, path, err);
}
