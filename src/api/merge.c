/* temper merge: adapters become part of the weights.
 *
 * 1. An adapter i makes W_i of a weight W: W + s B A; with DoRA m / ||W + s B A|| (W + s B A); a saved
 *    module or bias V itself. The result is W + sum of c_i (W_i - W): a scale moves on the straight line
 *    between base (0) and adapted model (1), for every kind of adapter.
 * 2. Computed in double and rounded once to the type the base stores; a tensor that nothing changes keeps
 *    its bytes.
 * 3. Every tensor of every adapter must find its place, or nothing is written. The result is built aside
 *    and moved into place when it is whole and its logits were looked at. */
#include "api/adapter_file.h"
#include "api/inference.h"
#include "api/logits.h"
#include "base/file.h"
#include "base/json.h"
#include "base/pool.h"
#include "io/hf.h"
#include "text/tokenizer_gguf.h"

#include <math.h>
#include <stdlib.h>

typedef struct change { /* by one adapter on one tensor */
    const tm_adapter_module *module; /* or ... */
    const tm_st_tensor *saved;
    double scale;
} change;

typedef struct merge {
    const tm_merge_request *request;
    tm_model_config config;
    bool known;              /* config is there: a family that temper computes */
    tm_safetensors *base;
    tm_adapter_file *adapter; /* [source_count] */
    tm_st_tensor *tensor;    /* [tensors] of the result */
    int64_t tensors;
    bool untied;             /* the head got weights of its own */
    int64_t changed;         /* tensors */
    int64_t *placed;         /* [source_count] modules and saved tensors that found their weight */
    char *head, *embed;      /* names of tensors; NULL: not known */
    char *aside;
    tm_buf text;
} merge;

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

/* What the adapters do to a tensor: list[source_count]; gives how many. Also counts what found its place. */
static int64_t changes_of(merge *m, const char *name, change *list)
{
    char module[512];
    int64_t count = 0;
    for (size_t i = 0; i < m->request->source_count; i++) {
        const tm_adapter_file *f = &m->adapter[i];
        change c = {.scale = m->request->sources[i].scale};
        if (weight_of(name, module, sizeof module))
            c.module = tm_adapter_file_find(f, module);
        for (int64_t k = 0; k < f->saveds; k++)
            if (strcmp(f->saved[k].name, name) == 0)
                c.saved = f->saved[k].tensor;
        m->placed[i] += (c.module != NULL) + (c.saved != NULL);
        if (c.module || c.saved)
            list[count++] = c;
    }
    return count;
}

static tm_status check_shape(const change *c, const tm_st_tensor *t, tm_error *err)
{
    bool float_type = t->dtype == TM_F64 || t->dtype == TM_F32 || t->dtype == TM_F16 || t->dtype == TM_BF16;
    if (!float_type)
        return tm_fail(err, TM_UNSUPPORTED,
                       "tensor %s of the base is stored as %s: only F64, F32, F16 and BF16 can be changed", t->name,
                       tm_dtype_name(t->dtype));
    if (c->module && c->saved && c->module->magnitude)
        return tm_fail(err, TM_INPUT, "tensor %s: the adapter both replaces it and adapts it with DoRA", t->name);
    if (c->saved && c->saved->count != t->count)
        return tm_fail(err, TM_INPUT, "tensor %s has %lld elements, the adapter's %s has %lld", t->name,
                       (long long)t->count, c->saved->name, (long long)c->saved->count);
    if (c->module && (t->ndim != 2 || t->shape[0] != c->module->delta.out || t->shape[1] != c->module->delta.in))
        return tm_fail(
            err, TM_INPUT,
            "tensor %s has shape [%lld, %lld], the adapter's matrices make [%lld, %lld]: another base model?", t->name,
            (long long)t->shape[0], (long long)(t->ndim > 1 ? t->shape[1] : 1), (long long)c->module->delta.out,
            (long long)c->module->delta.in);
    return TM_OK;
}

typedef struct row_work {
    const tm_st_tensor *from;
    char *to;
    const change *list;
    int64_t count, rows, cols;
    double *scratch; /* [threads * 3 * cols] */
} row_work;

static void add_change(const change *c, const row_work *w, int64_t row, const double *base, double *other, double *sum)
{
    if (c->saved) {
        int64_t offset = tm_dtype_bytes(c->saved->dtype, row * w->cols);
        tm_dtype_convert(other, TM_F64, (const char *)c->saved->data + offset, c->saved->dtype, w->cols);
    } else if (c->module->magnitude) {
        double square = 0;
        memcpy(other, base, (size_t)w->cols * sizeof *other);
        tm_linear_delta_add_row(&c->module->delta, row, 1, other);
        for (int64_t i = 0; i < w->cols; i++)
            square += other[i] * other[i];
        double factor = c->module->magnitude[row] / sqrt(square);
        for (int64_t i = 0; i < w->cols; i++)
            other[i] *= factor;
    } else
        memcpy(other, base, (size_t)w->cols * sizeof *other);
    /* In this order a scale of 1 alone gives `other` itself. */
    for (int64_t i = 0; i < w->cols; i++)
        sum[i] = sum[i] - c->scale * base[i] + c->scale * other[i];
    if (c->module && !c->module->magnitude) /* beside a saved one: PEFT's copy of an adapted embedding */
        tm_linear_delta_add_row(&c->module->delta, row, c->scale, sum);
}

static void merge_row(void *context, int64_t row, int thread)
{
    const row_work *w = context;
    double *base = w->scratch + 3 * w->cols * thread, *sum = base + w->cols, *other = sum + w->cols;
    int64_t offset = tm_dtype_bytes(w->from->dtype, row * w->cols);
    tm_dtype_convert(base, TM_F64, (const char *)w->from->data + offset, w->from->dtype, w->cols);
    memcpy(sum, base, (size_t)w->cols * sizeof *sum);
    for (int64_t i = 0; i < w->count; i++)
        if (w->list[i].scale != 0)
            add_change(&w->list[i], w, row, base, other, sum);
    tm_dtype_convert(w->to + offset, w->from->dtype, sum, TM_F64, w->cols);
}

/* Appends the tensor to the result under a name, changed by what the list says. */
static tm_status add_tensor(merge *m, tm_pool *pool, const char *name, const tm_st_tensor *from, const change *list,
                            int64_t count, tm_error *err)
{
    tm_st_tensor *out = &m->tensor[m->tensors];
    bool changes = false;
    for (int64_t i = 0; i < count; i++) {
        TM_TRY(check_shape(&list[i], from, err));
        changes |= list[i].scale != 0;
    }
    *out = *from;
    out->name = name;
    m->tensors++;
    if (!changes)
        return TM_OK;
    row_work w = {.from = from,
                  .list = list,
                  .count = count,
                  .cols = from->ndim > 1 ? from->shape[from->ndim - 1] : from->count};
    w.rows = w.cols ? from->count / w.cols : 0;
    TM_TRY(TM_NEW(&w.to, from->bytes, err));
    out->data = w.to;
    m->changed++;
    TM_TRY(TM_NEW(&w.scratch, 3 * w.cols * tm_pool_threads(pool), err));
    tm_pool_run(pool, merge_row, &w, w.rows);
    free(w.scratch);
    return TM_OK;
}

/* --- All tensors --- */

/* A tied head that an adapter changes, or whose embedding it changes, becomes a tensor of its own. */
static tm_status add_head(merge *m, tm_pool *pool, change *list, tm_error *err)
{
    const tm_st_tensor *embed = m->embed ? tm_safetensors_find(m->base, m->embed) : NULL;
    if (!m->known || !m->config.tied || !embed || tm_safetensors_find(m->base, m->head))
        return TM_OK;
    int64_t count = changes_of(m, m->head, list);
    for (int64_t i = 0; i < m->tensors; i++)
        m->untied |= m->tensor[i].data != embed->data && strcmp(m->tensor[i].name, m->embed) == 0;
    for (int64_t i = 0; i < count; i++)
        m->untied |= list[i].scale != 0;
    return m->untied ? add_tensor(m, pool, m->head, embed, list, count, err) : TM_OK;
}

static tm_status name_leftover(merge *m, size_t source, tm_error *err)
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
                   m->request->sources[source].adapter, name, m->request->model);
}

static tm_status merge_tensors(merge *m, tm_error *err)
{
    tm_pool *pool = NULL;
    change *list = NULL;
    tm_status st = TM_OK;
    int64_t count = tm_safetensors_count(m->base);
    TM_GO(tm_pool_create(m->request->threads, &pool, err));
    TM_GO(TM_NEW(&m->tensor, count + 1, err));
    TM_GO(TM_NEW(&list, m->request->source_count, err));
    for (int64_t i = 0; i < count; i++) {
        const tm_st_tensor *from = tm_safetensors_at(m->base, i);
        int64_t changes = changes_of(m, from->name, list);
        TM_GO(add_tensor(m, pool, from->name, from, list, changes, err));
    }
    TM_GO(add_head(m, pool, list, err));
    for (size_t i = 0; i < m->request->source_count; i++)
        if (m->placed[i] != m->adapter[i].modules + m->adapter[i].saveds)
            TM_GO(name_leftover(m, i, err));
out:
    free(list);
    tm_pool_destroy(pool);
    return st;
}

/* --- The folder --- */

static tm_status untie_config(const merge *m, tm_error *err)
{
    json_t *json = NULL;
    char *text = NULL, *path = tm_path_join(m->aside, "config.json", err);
    tm_status st = path ? tm_json_read(path, &json, err) : TM_NO_MEMORY;
    if (st == TM_OK) {
        int failed = json_object_set_new(json, "tie_word_embeddings", json_false());
        text = failed ? NULL : json_dumps(json, JSON_INDENT(2) | JSON_REAL_PRECISION(16));
        st = text ? tm_file_write(path, text, strlen(text), err)
                  : tm_fail(err, TM_NO_MEMORY, "out of memory for config.json");
    }
    free(text);
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

static tm_status write_folder(merge *m, tm_error *err)
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

/* --- What it computes --- */

enum { LOOK_TOKENS = 32 };

static tm_status logits_of(const merge *m, const char *model, const char *adapter, double scale, int64_t vocab,
                           float *out, tm_error *err)
{
    tm_inference inf;
    int32_t ids[LOOK_TOKENS];
    for (int i = 0; i < LOOK_TOKENS; i++)
        ids[i] = (int32_t)((uint64_t)(i + 1) * 2654435761u % (uint64_t)vocab);
    TM_TRY(tm_inference_open(&(tm_inference_settings){.model = model,
                                                      .adapter = adapter,
                                                      .threads = m->request->threads,
                                                      .max_tokens = LOOK_TOKENS,
                                                      .logits = true},
                             &inf, err));
    for (int64_t i = 0; adapter && i < inf.model.config.layers * TM_SLOTS; i++) {
        tm_lora *lora = inf.model.block[i / TM_SLOTS].slot[i % TM_SLOTS].lora;
        if (lora)
            lora->scale = (float)(lora->scale * scale);
    }
    tm_lora *ends[] = {inf.model.head.lora, inf.model.embed_lora};
    for (int i = 0; i < 2; i++)
        if (adapter && ends[i])
            ends[i]->scale = (float)(ends[i]->scale * scale);
    tm_batch_item item = {.ids = ids, .n = LOOK_TOKENS, .scale = 1};
    tm_batch_fill(&inf.batch, &item, 1);
    tm_model_forward(&inf.model, &inf.batch);
    tm_model_logits(&inf.model, &inf.batch);
    inf.device->calls->download(inf.device, out, inf.model.logits.data, LOOK_TOKENS * vocab * 4);
    tm_status st = inf.device->calls->sync(inf.device, err);
    tm_inference_close(&inf);
    return st;
}

static void compare_logits(merge *m, const float *a, const float *b, int64_t vocab)
{
    double largest = 0, square = 0, kl = 0;
    for (int64_t t = 0; t < LOOK_TOKENS; t++, a += vocab, b += vocab) {
        kl += tm_logits_kl(a, b, vocab);
        for (int64_t i = 0; i < vocab; i++) {
            double d = (double)b[i] - a[i];
            largest = fmax(largest, fabs(d));
            square += d * d;
        }
    }
    tm_buf_printf(
        &m->text,
        "logits against the model with the adapter on, %d tokens: largest difference %.2g, RMS %.2g, KL %.2g nats a token\n",
        LOOK_TOKENS, largest, sqrt(square / (double)(LOOK_TOKENS * vocab)), kl / LOOK_TOKENS);
}

/* Why the logits cannot be looked at; NULL: they can. */
static const char *not_comparable(const merge *m)
{
    const tm_merge_source *s = m->request->sources;
    if (!m->known)
        return "temper does not compute models of this family";
    if (m->request->source_count > 1)
        return "more than one adapter";
    if (s[0].scale != 1 && (m->adapter[0].config.use_dora || m->adapter[0].saveds))
        return "a scale other than 1 with DoRA or whole tensors";
    return NULL;
}

static tm_status look_at_logits(merge *m, tm_error *err)
{
    const char *reason = not_comparable(m);
    int64_t vocab = m->config.vocab;
    float *a = NULL, *b = NULL;
    tm_status st = TM_OK;
    if (reason) {
        tm_buf_printf(&m->text, "logits were not compared: %s\n", reason);
        return TM_OK;
    }
    TM_GO(TM_NEW(&a, LOOK_TOKENS * vocab, err));
    TM_GO(TM_NEW(&b, LOOK_TOKENS * vocab, err));
    st = logits_of(m, m->request->model, m->request->sources[0].scale != 0 ? m->request->sources[0].adapter : NULL,
                   m->request->sources[0].scale, vocab, a, err);
    if (st == TM_OK)
        st = logits_of(m, m->aside, NULL, 1, vocab, b, err);
    if (st == TM_NO_FIT) {
        tm_buf_printf(&m->text, "logits were not compared: %s\n", err->message);
        st = TM_OK;
    } else if (st == TM_OK)
        compare_logits(m, a, b, vocab);
out:
    free(a);
    free(b);
    return st;
}

/* --- The command --- */

static tm_status open_all(merge *m, tm_error *err)
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
        TM_TRY(tm_adapter_file_open(r->sources[i].adapter, &m->adapter[i], err));
    return TM_OK;
}

static void close_all(merge *m)
{
    tm_error ignored;
    for (int64_t i = 0; i < m->tensors; i++) {
        const tm_st_tensor *from = tm_safetensors_find(m->base, m->tensor[i].name);
        const tm_st_tensor *embed = m->embed ? tm_safetensors_find(m->base, m->embed) : NULL;
        if (!(from && from->data == m->tensor[i].data) && !(embed && embed->data == m->tensor[i].data))
            free((void *)(uintptr_t)m->tensor[i].data);
    }
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
    merge m = {.request = request};
    tm_status st = TM_OK;
    *text = NULL;
    TM_GO(open_all(&m, err));
    TM_GO(merge_tensors(&m, err));
    TM_GO(write_folder(&m, err));
    tm_buf_printf(&m.text, "%lld of %lld tensors changed%s\n", (long long)m.changed, (long long)m.tensors,
                  m.untied ? "; the head has weights of its own now" : "");
    TM_GO(look_at_logits(&m, err));
    TM_GO(tm_buf_check(&m.text, err));
    TM_GO(tm_path_move(m.aside, request->out, err));
    *text = m.text.data;
    m.text = (tm_buf){0};
out:
    close_all(&m);
    return st;
}
