/* Whether a merged model computes what its adapters do: logits of some tokens, of the merged folder as it was
 * written and of the base with the adapter on.
 *
 * With several adapters that are plain LoRA their sum is one adapter: its A are theirs above each other, its B theirs
 * side by side, scaled. It is written beside, used and removed, so the comparison goes through PEFT's layout and the
 * product of the model itself, not through what merged. What is no sum (TIES, DARE) has no such adapter, nor has a
 * whole model: then the logits say how far the result is from each source and from the base. */
#include "api/merge.h"

#include "api/inference.h"
#include "api/logits.h"
#include "base/file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>


/* --- The sum of adapters as one --- */

static void put_pair(const tm_linear_delta *d, double factor, bool transposed, int64_t at, int64_t rank, float *a, float *b)
{
    int64_t in = transposed ? d->out : d->in, out = transposed ? d->in : d->out;
    for (int64_t k = 0; k < d->r; k++) {
        for (int64_t i = 0; i < in; i++)
            a[(at + k) * in + i] = transposed ? d->b[i * d->r + k] : d->a[k * d->in + i];
        for (int64_t o = 0; o < out; o++)
            b[o * rank + at + k] = (float)(factor * d->scale * (transposed ? d->a[k * d->in + o] : d->b[o * d->r + k]));
    }
}

static tm_status add_matrix(tm_st_tensor *t, const char *module, const char *part, int64_t rows, int64_t cols, tm_error *err)
{
    tm_buf name = {0};
    float *value;
    tm_buf_printf(&name, "base_model.model.%s.%s.weight", module, part);
    *t = (tm_st_tensor){.name = name.data, .dtype = TM_F32, .ndim = 2, .shape = {rows, cols}};
    TM_TRY(tm_buf_check(&name, err));
    TM_TRY(TM_NEW(&value, rows * cols, err));
    t->data = value;
    return TM_OK;
}

/* The pair of a module, if adapters change it: two tensors more. */
static tm_status add_module(const tm_merge_work *m, const char *module, int64_t rank, tm_st_tensor *tensors, int64_t *count, tm_error *err)
{
    int64_t at = 0, n = *count;
    for (size_t i = 0; i < m->request->source_count; i++) {
        const tm_adapter_module *found = tm_adapter_file_find(&m->adapter[i], module);
        bool transposed = m->adapter[i].config.fan_in_fan_out;
        if (!found)
            continue;
        if (*count == n) {
            *count += 2;
            TM_TRY(add_matrix(&tensors[n], module, "lora_A", rank, transposed ? found->delta.out : found->delta.in, err));
            TM_TRY(add_matrix(&tensors[n + 1], module, "lora_B", transposed ? found->delta.in : found->delta.out, rank, err));
        }
        put_pair(&found->delta, m->request->sources[i].scale, transposed, at, rank, (float *)(uintptr_t)tensors[n].data,
                 (float *)(uintptr_t)tensors[n + 1].data);
        at += found->delta.r;
    }
    return TM_OK;
}

/* The largest sum of ranks of a module: the rank of the one adapter. */
static int64_t rank_of_sum(const tm_merge_work *m, tm_names *modules, tm_error *err)
{
    int64_t most = 0;
    for (size_t i = 0; i < m->request->source_count; i++)
        for (int64_t k = 0; k < m->adapter[i].modules; k++) {
            const char *name = m->adapter[i].module[k].name;
            int64_t rank = 0;
            if (tm_names_contain(modules, name))
                continue;
            if (tm_names_add(modules, name, err) != TM_OK)
                return -1;
            for (size_t j = 0; j < m->request->source_count; j++) {
                const tm_adapter_module *found = tm_adapter_file_find(&m->adapter[j], name);
                rank += found ? found->delta.r : 0;
            }
            most = rank > most ? rank : most;
        }
    return most;
}

static tm_status write_sum(const tm_merge_work *m, const char *dir, tm_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    tm_names modules = {0};
    tm_st_tensor *tensors = NULL;
    int64_t count = 0, rank;
    char *path = tm_path_join(dir, "adapter_model.safetensors", err);
    tm_status st = path ? TM_OK : TM_NO_MEMORY;
    if (st != TM_OK || (rank = rank_of_sum(m, &modules, err)) < 0)
        TM_GO(TM_NO_MEMORY);
    tm_adapter_config config = {.base_model = (char *)(uintptr_t)m->request->model, .task_type = "CAUSAL_LM", .bias = "none", .r = rank,
                                .alpha = (double)rank, .target_modules = modules, .inference_mode = true,
                                .fan_in_fan_out = m->adapter[0].config.fan_in_fan_out};
    TM_GO(TM_NEW(&tensors, 2 * modules.count, err));
    for (int64_t i = 0; i < modules.count; i++)
        TM_GO(add_module(m, modules.item[i], rank, tensors, &count, err));
    TM_GO(tm_dir_create(dir, err));
    TM_GO(tm_adapter_config_write(dir, &config, err));
    TM_GO(tm_safetensors_write(path, tensors, count, metadata, err));
out:
    for (int64_t i = 0; i < count; i++) {
        free((char *)(uintptr_t)tensors[i].name);
        free((void *)(uintptr_t)tensors[i].data);
    }
    free(tensors);
    free(path);
    tm_names_deinit(&modules);
    return st;
}

/* --- Logits --- */

/* A table of positions may end sooner. */
static int64_t look_tokens(const tm_merge_work *m)
{
    int64_t longest = tm_model_config_longest(&m->config);
    return longest < TM_LOOK_TOKENS ? longest : TM_LOOK_TOKENS;
}

/* out[look_tokens * vocab]; scale: of the adapter. */
static tm_status logits_of(const tm_merge_work *m, const char *model, const char *adapter, double scale, float *out, tm_error *err)
{
    tm_inference inf;
    TM_TRY(tm_inference_open(&(tm_inference_settings){.model = model,
                                                      .adapter = adapter,
                                                      .threads = m->request->threads,
                                                      .max_tokens = look_tokens(m),
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
    tm_status st = tm_logits_look(&inf, look_tokens(m), out, err);
    tm_inference_close(&inf);
    return st;
}

static void put_difference(tm_merge_work *m, const char *what, const float *a, const float *b)
{
    int64_t vocab = m->config.vocab, tokens = look_tokens(m);
    double largest = 0, square = 0, kl = 0;
    for (int64_t t = 0; t < tokens; t++, a += vocab, b += vocab) {
        kl += tm_logits_kl(a, b, vocab);
        for (int64_t i = 0; i < vocab; i++) {
            double d = (double)b[i] - a[i];
            largest = fmax(largest, fabs(d));
            square += d * d;
        }
    }
    tm_buf_printf(&m->text, "logits against %s, %d tokens: largest difference %.2g, RMS %.2g, KL %.2g nats a token\n", what,
                  (int)tokens, largest, sqrt(square / (double)(tokens * vocab)), kl / (double)tokens);
}

/* Its tensors have names and shapes of their own. */
static bool adapts_embedding(const tm_merge_work *m, const tm_adapter_file *f)
{
    for (int64_t i = 0; i < f->modules; i++)
        if (m->embed && strncmp(m->embed, f->module[i].name, strlen(f->module[i].name)) == 0)
            return true;
    return false;
}

/* Why the sum of the adapters is no adapter that can be turned on; NULL: it is. */
static const char *no_sum(const tm_merge_work *m)
{
    const tm_merge_request *r = m->request;
    bool several = r->source_count > 1;
    for (size_t i = 0; i < r->source_count; i++) {
        const tm_adapter_file *f = &m->adapter[i];
        bool special = f->config.use_dora || f->saveds;
        if (several && (special || adapts_embedding(m, f)))
            return "DoRA, whole tensors or the embedding among several adapters";
        if (special && r->sources[i].scale != 1 && r->sources[i].scale != 0)
            return "a scale other than 1 with DoRA or whole tensors";
        if (f->config.fan_in_fan_out != m->adapter[0].config.fan_in_fan_out)
            return "adapters of different layouts";
    }
    return NULL;
}

static tm_status against_sum(tm_merge_work *m, float *a, const float *merged, tm_error *err)
{
    const tm_merge_source *s = m->request->sources;
    if (m->request->source_count == 1) {
        TM_TRY(logits_of(m, m->request->model, s->scale != 0 ? s->path : NULL, s->scale, a, err));
        put_difference(m, "the model with the adapter on", a, merged);
        return TM_OK;
    }
    tm_buf dir = {0};
    tm_error ignored;
    tm_buf_printf(&dir, "%s/.sum", m->aside);
    tm_status st = tm_buf_check(&dir, err);
    if (st == TM_OK)
        st = write_sum(m, dir.data, err);
    if (st == TM_OK)
        st = logits_of(m, m->request->model, dir.data, 1, a, err);
    tm_status removed = dir.data ? tm_dir_remove(dir.data, st == TM_OK ? err : &ignored) : TM_OK;
    tm_buf_deinit(&dir);
    if (st == TM_OK && removed == TM_OK)
        put_difference(m, "the model with the adapters on, added", a, merged);
    return st == TM_OK ? removed : st;
}

static tm_status against_each(tm_merge_work *m, float *a, const float *merged, tm_error *err)
{
    char what[300];
    TM_TRY(logits_of(m, m->request->model, NULL, 0, a, err));
    put_difference(m, "the base", a, merged);
    for (size_t i = 0; i < m->request->source_count; i++) {
        const tm_merge_source *s = &m->request->sources[i];
        TM_TRY(logits_of(m, s->model ? s->path : m->request->model, s->model ? NULL : s->path, 1, a, err));
        snprintf(what, sizeof what, "%.250s alone", s->path);
        put_difference(m, what, a, merged);
    }
    return TM_OK;
}

tm_status tm_merge_check(tm_merge_work *m, tm_error *err)
{
    float *a = NULL, *merged = NULL;
    tm_status st = TM_OK;
    bool sum = m->request->how == TM_MERGE_SUM;
    for (size_t i = 0; i < m->request->source_count; i++)
        sum &= !m->request->sources[i].model;
    const char *reason = !m->known ? "temper does not compute models of this family" : sum ? no_sum(m) : NULL;
    if (reason) {
        tm_buf_printf(&m->text, "logits were not compared: %s\n", reason);
        return TM_OK;
    }
    TM_GO(TM_NEW(&a, look_tokens(m) * m->config.vocab, err));
    TM_GO(TM_NEW(&merged, look_tokens(m) * m->config.vocab, err));
    st = logits_of(m, m->aside, NULL, 1, merged, err);
    if (st == TM_OK)
        st = sum ? against_sum(m, a, merged, err) : against_each(m, a, merged, err);
    if (st == TM_NO_FIT) {
        tm_buf_printf(&m->text, "logits were not compared: %s\n", err ? err->message : "no memory for it");
        st = TM_OK;
    }
out:
    free(a);
    free(merged);
    return st;
}
