/* temper merge: adapters become part of the weights, or whole models that came from the base do.
 *
 * 1. A tensor that nothing changes keeps its bytes; one that adapters change is computed when it is written
 *    (merge_tensor.c), so no second model stands in memory.
 * 2. Every tensor of every source must find its place, or nothing is written. The result is built aside
 *    and moved into place when it is whole and its logits were looked at (merge_check.c). */
#include "api/merge.h"

#include "base/file.h"
#include "base/json.h"
#include "io/hf.h"
#include "text/tokenizer_gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- One tensor --- */

static const char *weight_of(const char *tensor, char *module, size_t size)
{
    size_t n = strlen(tensor), m = strlen(".weight");
    if (n <= m || strcmp(tensor + n - m, ".weight") != 0 || n - m >= size)
        return NULL;
    memcpy(module, tensor, n - m);
    module[n - m] = 0;
    return module;
}

const char *tm_merge_own_name(const tm_merge_work *m, const char *name, char *buffer, size_t size)
{
    return m->known && tm_family_own(m->config.family, name, buffer, size) ? buffer : name;
}

static const tm_st_tensor *find_embed(const tm_merge_work *m)
{
    char other[512];
    const tm_st_tensor *found = m->embed ? tm_safetensors_find(m->base, m->embed) : NULL;
    for (int i = 0; m->known && !found && tm_family_alias(m->config.family, m->embed, i, other, sizeof other); i++)
        found = tm_safetensors_find(m->base, other);
    return found;
}

static bool same_bytes(const tm_st_tensor *a, const tm_st_tensor *b) { return a->dtype == b->dtype && a->count == b->count && memcmp(a->data, b->data, (size_t)a->bytes) == 0; }

/* What the sources do to the tensor `from` of the base, called `name`: list[source_count]; gives how many. Also counts what found its place. */
static int64_t changes_of(tm_merge_work *m, const char *name, const tm_st_tensor *from, tm_merge_change *list)
{
    char module[512];
    int64_t count = 0;
    for (size_t i = 0; i < m->request->source_count; i++) {
        const tm_adapter_file *f = &m->adapter[i];
        tm_merge_change c = {.scale = m->request->sources[i].scale, .source = i};
        if (weight_of(name, module, sizeof module))
            c.module = tm_adapter_file_find(f, module);
        for (int64_t k = 0; k < f->saveds; k++)
            if (strcmp(f->saved[k].name, name) == 0)
                c.saved = f->saved[k].tensor;
        m->placed[i] += (c.module != NULL) + (c.saved != NULL);
        if (c.module || (c.saved && !same_bytes(c.saved, from)))
            list[count++] = c;
    }
    return count;
}

static bool is_float(const tm_st_tensor *t) { return t->dtype == TM_F64 || t->dtype == TM_F32 || t->dtype == TM_F16 || t->dtype == TM_BF16; }

static tm_status check_shape(const tm_merge_change *c, bool tuned, const tm_st_tensor *t, tm_error *err)
{
    const tm_st_tensor *stored = is_float(t) && c->saved ? c->saved : t;
    if (!is_float(stored))
        return tm_fail(err, TM_UNSUPPORTED, "tensor %s of %s is stored as %s: only F64, F32, F16 and BF16 can be changed", t->name,
                       stored == t ? "the base" : "a source", tm_dtype_name(stored->dtype));
    if (c->module && c->saved && c->module->magnitude)
        return tm_fail(err, TM_INPUT, "tensor %s: the adapter both replaces it and adapts it with DoRA", t->name);
    if (c->saved && (c->saved->count != t->count || c->saved->shape[0] != t->shape[0]))
        return tm_fail(err, TM_INPUT, "tensor %s has %lld elements in %lld rows, the %s has %lld in %lld: another base model?", t->name, (long long)t->count,
                       (long long)t->shape[0], tuned ? "tuned model's" : "adapter's", (long long)c->saved->count, (long long)c->saved->shape[0]);
    if (c->module && (t->ndim != 2 || t->shape[0] != c->module->delta.out || t->shape[1] != c->module->delta.in))
        return tm_fail(
            err, TM_INPUT,
            "tensor %s has shape [%lld, %lld], the adapter's matrices make [%lld, %lld]: another base model?", t->name,
            (long long)t->shape[0], (long long)(t->ndim > 1 ? t->shape[1] : 1), (long long)c->module->delta.out,
            (long long)c->module->delta.in);
    return TM_OK;
}

/* Appends the tensor to the result under a name, changed by what the list says. */
static tm_status add_tensor(tm_merge_work *m, const char *name, const tm_st_tensor *from, const tm_merge_change *list,
                            int64_t count, tm_error *err)
{
    tm_st_tensor *out = &m->tensor[m->tensors];
    tm_merge_tensor *change = &m->change[m->tensors];
    *out = *from;
    out->name = name;
    *change = (tm_merge_tensor){.merge = m, .from = from};
    m->tensors++;
    for (int64_t i = 0; i < count; i++)
        TM_TRY(check_shape(&list[i], m->request->sources[list[i].source].model, from, err));
    TM_TRY(TM_NEW(&change->list, count, err));
    for (int64_t i = 0; i < count; i++)
        if (list[i].scale != 0)
            change->list[change->count++] = list[i];
    if (!change->count)
        return TM_OK;
    out->data = NULL;
    out->give = tm_merge_compute;
    out->source = change;
    m->changed++;
    return TM_OK;
}

/* --- All tensors --- */

/* A tied head that an adapter changes, or whose embedding it changes, becomes a tensor of its own. */
static tm_status add_head(tm_merge_work *m, tm_merge_change *list, tm_error *err)
{
    const tm_st_tensor *embed = find_embed(m);
    if (!m->known || !m->config.tied || !embed || tm_safetensors_find(m->base, m->head))
        return TM_OK;
    int64_t count = changes_of(m, m->head, embed, list);
    bool tied = true; /* all sources are models that are tied as well: so is what they make */
    for (size_t i = 0; i < m->request->source_count; i++)
        tied &= m->adapter[i].tied;
    if (tied)
        return TM_OK;
    for (int64_t i = 0; i < m->tensors; i++)
        m->untied |= m->change[i].count && strcmp(m->tensor[i].name, embed->name) == 0;
    for (int64_t i = 0; i < count; i++)
        m->untied |= list[i].scale != 0;
    return m->untied ? add_tensor(m, m->head, embed, list, count, err) : TM_OK;
}

static tm_status name_leftover(tm_merge_work *m, size_t source, tm_error *err)
{
    const tm_adapter_file *f = &m->adapter[source];
    char name[600];
    for (int64_t i = 0; i < f->modules + f->saveds; i++) {
        bool module = i < f->modules;
        snprintf(name, sizeof name, "%s%s", module ? f->module[i].name : f->saved[i - f->modules].name,
                 module ? ".weight" : "");
        if (!tm_safetensors_find(m->base, name) && !(m->head && m->config.tied && strcmp(name, m->head) == 0))
            break;
    }
    return tm_fail(err, TM_INPUT, "%s: it changes %s, which %s does not have: another base model?",
                   m->request->sources[source].path, name, m->request->model);
}

static tm_status merge_tensors(tm_merge_work *m, tm_error *err)
{
    tm_merge_change *list = NULL;
    tm_status st = TM_OK;
    int64_t count = tm_safetensors_count(m->base);
    TM_GO(tm_pool_create(m->request->threads, &m->pool, err));
    TM_GO(TM_NEW(&m->tensor, count + 1, err));
    TM_GO(TM_NEW(&m->change, count + 1, err));
    TM_GO(TM_NEW(&list, m->request->source_count, err));
    for (int64_t i = 0; i < count; i++) {
        const tm_st_tensor *from = tm_safetensors_at(m->base, i);
        char own[512];
        int64_t changes = changes_of(m, tm_merge_own_name(m, from->name, own, sizeof own), from, list);
        TM_GO(add_tensor(m, from->name, from, list, changes, err));
    }
    TM_GO(add_head(m, list, err));
    for (size_t i = 0; i < m->request->source_count; i++)
        if (m->placed[i] != m->adapter[i].modules + m->adapter[i].saveds)
            TM_GO(name_leftover(m, i, err));
out:
    free(list);
    return st;
}

/* --- The folder --- */

static tm_status untie_config(const tm_merge_work *m, tm_error *err)
{
    json_t *json = NULL;
    char *path = tm_path_join(m->aside, "config.json", err);
    tm_status st = path ? tm_json_read(path, &json, err) : TM_NO_MEMORY;
    if (st == TM_OK) {
        int failed = json_object_set_new(json, "tie_word_embeddings", json_false());
        st = tm_json_write(path, failed ? NULL : json, JSON_INDENT(2) | JSON_REAL_PRECISION(16), err);
    }
    json_decref(json);
    free(path);
    return st;
}

static tm_status check_out(const char *out, tm_error *err)
{
    char **names;
    size_t count;
    if (!tm_path_exists(out))
        return TM_OK;
    if (!tm_path_is_dir(out))
        return tm_fail(err, TM_USAGE, "%s is a file: expected a new folder for the merged model", out);
    TM_TRY(tm_dir_list(out, &names, &count, err));
    tm_names_free(names, count);
    return count ? tm_fail(err, TM_USAGE, "%s is not empty: expected a new folder for the merged model", out) : TM_OK;
}

static tm_status write_folder(tm_merge_work *m, tm_error *err)
{
    size_t n = strlen(m->request->out);
    while (n > 1 && m->request->out[n - 1] == '/')
        n--;
    tm_buf name = {0};
    tm_buf_printf(&name, "%.*s.partial", (int)n, m->request->out);
    TM_TRY(tm_buf_check(&name, err));
    m->aside = name.data;
    TM_TRY(tm_dir_remove(m->aside, err));
    TM_TRY(tm_dir_create(m->aside, err));
    TM_TRY(tm_hf_copy_files(m->request->model, m->aside, err));
    TM_TRY(tm_tokenizer_write(m->request->model, m->aside, err));
    if (m->untied)
        TM_TRY(untie_config(m, err));
    return tm_hf_write_model(m->aside, m->tensor, m->tensors, TM_HF_SHARD_BYTES, err);
}

/* --- The command --- */

static tm_status open_all(tm_merge_work *m, tm_error *err)
{
    const tm_merge_request *r = m->request;
    tm_error why;
    TM_TRY(check_out(r->out, err));
    TM_TRY(tm_hf_open_weights(r->model, &m->base, err));
    TM_TRY(tm_safetensors_unpack(m->base, err));
    tm_status st = tm_model_config_read(r->model, &m->config, &why);
    m->known = st == TM_OK;
    if (st != TM_OK && st != TM_UNSUPPORTED) {
        *err = why;
        return st;
    }
    if (m->known) {
        tm_buf head = {0}, embed = {0};
        tm_buf_printf(&head, "%s.weight", m->config.family->head);
        tm_buf_printf(&embed, "%s.weight", m->config.family->embed);
        m->head = head.data;
        m->embed = embed.data;
        if (head.failed || embed.failed)
            return tm_fail(err, TM_NO_MEMORY, "out of memory for names");
    }
    TM_TRY(TM_NEW(&m->placed, r->source_count, err));
    TM_TRY(TM_NEW(&m->adapter, r->source_count, err));
    for (size_t i = 0; i < r->source_count; i++)
        TM_TRY(r->sources[i].model ? tm_merge_open_model(m, r->sources[i].path, &m->adapter[i], err)
                                   : tm_adapter_file_open(r->sources[i].path, &m->adapter[i], err));
    return TM_OK;
}

static void close_all(tm_merge_work *m)
{
    tm_error ignored;
    for (int64_t i = 0; i < m->tensors; i++)
        free(m->change[i].list);
    free(m->change);
    tm_pool_destroy(m->pool);
    free(m->tensor);
    for (size_t i = 0; m->adapter && i < m->request->source_count; i++)
        tm_adapter_file_close(&m->adapter[i]);
    free(m->adapter);
    free(m->placed);
    tm_safetensors_close(m->base);
    if (m->known)
        tm_model_config_deinit(&m->config);
    free(m->head);
    free(m->embed);
    if (m->aside && tm_dir_remove(m->aside, &ignored) != TM_OK)
        ignored = (tm_error){0}; /* what could not be removed is left for the next merge to remove */
    free(m->aside);
    tm_buf_deinit(&m->text);
}

tm_status tm_merge(const tm_merge_request *request, char **text, tm_error *err)
{
    tm_merge_work m = {.request = request};
    tm_status st = TM_OK;
    *text = NULL;
    if (request->source_count > TM_MERGE_MOST)
        TM_GO(tm_fail(err, TM_USAGE, "%zu sources: at most %d can be merged at once", request->source_count, TM_MERGE_MOST));
    if (!(request->density >= 0 && request->density <= 1))
        TM_GO(tm_fail(err, TM_USAGE, "density %g: expected a share from 0 to 1", request->density));
    TM_GO(open_all(&m, err));
    TM_GO(merge_tensors(&m, err));
    TM_GO(write_folder(&m, err));
    tm_buf_printf(&m.text, "%lld of %lld tensors changed%s\n", (long long)m.changed, (long long)m.tensors,
                  m.untied ? "; the head has weights of its own now" : "");
    TM_GO(tm_merge_check(&m, err));
    TM_GO(tm_buf_check(&m.text, err));
    TM_GO(tm_path_move(m.aside, request->out, err));
    *text = m.text.data;
    m.text = (tm_buf){0};
out:
    close_all(&m);
    return st;
}
