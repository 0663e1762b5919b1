/* LoRA (2106.09685) with rsLoRA (2312.03732), DoRA (2402.09353) and LoRA+ (2402.12354): which modules
 * get low-rank matrices, their first values, and the adapter folder that PEFT loads.
 *
 * Names are PEFT's: a parameter's key in the adapter file is "base_model.model." and its name here. */
#include "tune/tune.h"

#include "base/buf.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>

#define KEY_PREFIX "base_model.model."

static const char *short_name(const char *module)
{
    const char *dot = strrchr(module, '.');
    return dot ? dot + 1 : module;
}

/* --- The adapter's config: from the recipe, or from the adapter that is continued --- */

static tm_status all_linear(tm_tuning *t, tm_error *err)
{
    for (int s = 0; s < TM_SLOTS; s++) {
        const tm_linear *module = &t->model->block[0].slot[s];
        if (module->weight && !tm_names_contain(&t->adapter.target_modules, short_name(module->name)))
            TM_TRY(tm_names_add(&t->adapter.target_modules, short_name(module->name), err));
    }
    return TM_OK;
}

/* Whether a single string is a name or a regular expression: PEFT takes any single string for an
 * expression; a bare module name is what people mean when they write one. */
static bool is_plain_name(const char *text) { return text[strcspn(text, "\\.*+?[](){}|^$")] == 0; }

static tm_status targets_from_recipe(tm_tuning *t, tm_error *err)
{
    const tm_names *given = &t->recipe->lora_target_modules;
    tm_adapter_config *a = &t->adapter;
    if (given->count == 1 && strcmp(given->item[0], "all-linear") == 0)
        return all_linear(t, err);
    if (given->count == 1 && !is_plain_name(given->item[0])) {
        a->target_regex = tm_strdup(given->item[0], err);
        return a->target_regex ? TM_OK : TM_NO_MEMORY;
    }
    for (int64_t i = 0; i < given->count; i++)
        TM_TRY(tm_names_add(&a->target_modules, given->item[i], err));
    return given->count ? TM_OK : tm_fail(err, TM_RECIPE, "lora.target_modules is empty: expected all-linear, names or a regular expression");
}

static tm_status copy_patterns(const tm_string_map *map, const char *key, tm_pattern **out, int64_t *count, tm_error *err)
{
    TM_TRY(TM_NEW(out, map->keys.count, err));
    for (int64_t i = 0; i < map->keys.count; i++) {
        char *end;
        double value = strtod(map->values.item[i], &end);
        if (*end || !(value > 0))
            return tm_fail(err, TM_RECIPE, "%s.%s: found '%s', expected a positive number", key, map->keys.item[i], map->values.item[i]);
        (*out)[i].key = tm_strdup(map->keys.item[i], err);
        (*out)[i].value = value;
        *count = i + 1;
        if (!(*out)[i].key)
            return TM_NO_MEMORY;
    }
    return TM_OK;
}

static tm_status config_from_recipe(tm_tuning *t, tm_error *err)
{
    static const char *const biases[] = {"none", "all", "lora_only"};
    const tm_recipe *r = t->recipe;
    tm_adapter_config *a = &t->adapter;
    a->r = r->lora_r;
    a->alpha = r->lora_alpha;
    a->dropout = r->lora_dropout;
    a->use_rslora = r->lora_use_rslora;
    a->use_dora = r->lora_use_dora;
    a->inference_mode = true;
    a->fan_in_fan_out = t->model->config.family->conv1d;
    a->bias = tm_strdup(biases[r->lora_bias], err);
    a->task_type = tm_strdup("CAUSAL_LM", err);
    a->base_model = r->model ? tm_strdup(r->model, err) : NULL;
    if (!a->bias || !a->task_type || (r->model && !a->base_model))
        return TM_NO_MEMORY;
    for (int64_t i = 0; i < r->lora_modules_to_save.count; i++)
        TM_TRY(tm_names_add(&a->modules_to_save, r->lora_modules_to_save.item[i], err));
    TM_TRY(copy_patterns(&r->lora_rank_pattern, "lora.rank_pattern", &a->rank_pattern, &a->rank_patterns, err));
    TM_TRY(copy_patterns(&r->lora_alpha_pattern, "lora.alpha_pattern", &a->alpha_pattern, &a->alpha_patterns, err));
    return targets_from_recipe(t, err);
}

static tm_status config_from_adapter(tm_tuning *t, tm_error *err)
{
    char path[4096];
    tm_adapter_config *a = &t->adapter;
    TM_TRY(tm_adapter_config_read(t->recipe->lora_init, a, err));
    if (snprintf(path, sizeof path, "%s/adapter_model.safetensors", t->recipe->lora_init) >= (int)sizeof path)
        return tm_fail(err, TM_RECIPE, "lora.init: the path is too long");
    if (a->target_regex && strcmp(a->target_regex, "all-linear") == 0) {
        free(a->target_regex);
        a->target_regex = NULL;
        TM_TRY(all_linear(t, err));
    }
    if (tm_names_contain(&t->recipe->given, "lora.dropout"))
        a->dropout = t->recipe->lora_dropout;
    a->inference_mode = true;
    a->fan_in_fan_out = t->model->config.family->conv1d; /* PEFT too goes by the module, not by the key */
    return tm_safetensors_open(path, &t->start, err);
}

/* --- Selecting --- */

static tm_status add_part(tm_tuning *t, const tm_linear *module, const char *suffix, tm_param_kind kind, int64_t rows, int64_t cols, tm_param **out, tm_error *err)
{
    char name[300];
    snprintf(name, sizeof name, "%s.%s", module->name, suffix);
    TM_TRY(tm_params_add(&t->model->params, name, kind, rows, cols, out, err));
    (*out)->ndim = kind == TM_PARAM_MAGNITUDE ? 1 : 2;
    (*out)->added = (*out)->trained = true;
    (*out)->replicas = t->model->replicas;
    return TM_OK;
}

static tm_status add_lora(tm_tuning *t, tm_linear *module, int64_t index, tm_error *err)
{
    const tm_adapter_config *a = &t->adapter;
    double r, alpha;
    TM_TRY(tm_adapter_pattern(a->rank_pattern, a->rank_patterns, module->name, (double)a->r, &r, err));
    TM_TRY(tm_adapter_pattern(a->alpha_pattern, a->alpha_patterns, module->name, a->alpha, &alpha, err));
    if (!(r >= 1) || r != floor(r) || r > (double)(1 << 20))
        return tm_fail(err, TM_RECIPE, "lora: rank of %s is %g, expected a whole number from 1", module->name, r);
    tm_lora *lora;
    TM_TRY(TM_NEW(&lora, 1, err));
    module->lora = lora;
    lora->r = (int32_t)r;
    lora->scale = (float)(a->use_rslora ? alpha / sqrt(r) : alpha / r);
    lora->dropout = (float)a->dropout;
    lora->module = (uint32_t)index;
    TM_TRY(add_part(t, module, "lora_A.weight", TM_PARAM_LORA_A, lora->r, module->in, &lora->a, err));
    TM_TRY(add_part(t, module, "lora_B.weight", TM_PARAM_LORA_B, module->out, lora->r, &lora->b, err));
    lora->b->lr_ratio = (float)t->recipe->lora_lr_ratio_b;
    return a->use_dora ? add_part(t, module, "lora_magnitude_vector", TM_PARAM_MAGNITUDE, 1, module->out, &lora->magnitude, err) : TM_OK;
}

/* Every name in the list must be found: a typing error must not train less than was asked for. */
static tm_status check_names(tm_tuning *t, const tm_names *names, const char *key, tm_error *err)
{
    const char *known[TM_SLOTS + 1];
    size_t knowns = 0;
    for (int s = 0; s < TM_SLOTS; s++)
        if (t->model->block[0].slot[s].weight)
            known[knowns++] = short_name(t->model->block[0].slot[s].name);
    known[knowns++] = short_name(t->model->head.name);
    for (int64_t k = 0; k < names->count; k++) {
        bool found = false;
        tm_linear *module;
        for (int64_t i = 0; (module = tm_model_linear(t->model, i)) && !found; i++) {
            size_t n = module->weight ? strlen(module->name) : 0, m = strlen(names->item[k]);
            found = n >= m && strcmp(module->name + n - m, names->item[k]) == 0 && (n == m || module->name[n - m - 1] == '.');
        }
        if (found)
            continue;
        const char *nearest = tm_nearest(names->item[k], known, knowns);
        return tm_fail(err, TM_RECIPE, "%s: the model has no linear module '%s'%s%s%s", key, names->item[k],
                       nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    }
    return TM_OK;
}

static tm_status train_head(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    if (m->head.weight == m->embed) { /* as PEFT: the saved head is a copy and no longer tied */
        TM_TRY(add_part(t, &m->head, "weight", TM_PARAM_MATRIX, m->head.out, m->head.in, &m->head.weight, err));
        m->head.weight->replicas = 1;
    }
    m->head.weight->trained = true;
    return TM_OK;
}

static tm_status train_saved_modules(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    for (int64_t k = 0; k < t->adapter.modules_to_save.count; k++) {
        const char *name = t->adapter.modules_to_save.item[k];
        bool found = false;
        if (strcmp(name, short_name(m->head.name)) == 0) {
            TM_TRY(train_head(t, err));
            continue;
        }
        for (int64_t i = 0; i < m->params.count; i++) {
            tm_param *p = m->params.item[i];
            const char *suffix = strrchr(p->name, '.');
            size_t n = suffix ? (size_t)(suffix - p->name) : 0, k2 = strlen(name);
            if (!p->added && n >= k2 && memcmp(p->name + n - k2, name, k2) == 0 && (n == k2 || p->name[n - k2 - 1] == '.'))
                found = p->trained = true;
        }
        if (!found)
            return tm_fail(err, TM_RECIPE, "lora.modules_to_save: the model has no module '%s' (lm_head, embed_tokens, norm, ... are)", name);
        if (m->embed->trained && m->head.weight == m->embed)
            return tm_fail(err, TM_UNSUPPORTED, "lora.modules_to_save: '%s' is tied to lm_head in this model; PEFT would untie them. Save lm_head instead", name);
    }
    return TM_OK;
}

static void train_biases(tm_tuning *t)
{
    bool all = strcmp(t->adapter.bias, "all") == 0, own = strcmp(t->adapter.bias, "lora_only") == 0;
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(t->model, i)); i++)
        if (module->bias && own && module->lora)
            module->bias->trained = true;
    for (int64_t i = 0; all && i < t->model->params.count; i++) /* those of norms too */
        if (t->model->params.item[i]->kind == TM_PARAM_BIAS)
            t->model->params.item[i]->trained = true;
}

static tm_status lora_select(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    TM_TRY(t->recipe->lora_init ? config_from_adapter(t, err) : config_from_recipe(t, err));
    TM_TRY(check_names(t, &t->adapter.target_modules, "lora.target_modules", err));
    int64_t adapted = 0;
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(m, i)); i++) {
        bool wanted;
        if (!module->weight)
            continue;
        TM_TRY(tm_adapter_targets(&t->adapter, module->name, &wanted, err));
        if (!wanted)
            continue;
        TM_TRY(add_lora(t, module, i, err));
        adapted++;
    }
    TM_TRY(train_saved_modules(t, err));
    train_biases(t);
    bool shared = t->adapter.modules_to_save.count || strcmp(t->adapter.bias, "none") != 0;
    if (m->replicas > 1 && shared)
        return tm_fail(err, TM_RECIPE, "lora: modules_to_save and bias work for one replica at a time");
    if (!adapted)
        return tm_fail(err, TM_RECIPE, "lora.target_modules: '%s' matches no linear module of the model", t->adapter.target_regex ? t->adapter.target_regex : "");
    return TM_OK;
}

/* --- First values --- */

/* Kaiming-uniform with a = sqrt(5), torch's default for linear layers: U(-1/sqrt(in), 1/sqrt(in)). */
static tm_status start_a(tm_tuning *t, const tm_lora *lora, int32_t replica, uint64_t seed, tm_error *err)
{
    tm_param *p = lora->a;
    int64_t n = tm_param_count(p);
    float *value, bound = (float)(1 / sqrt((double)p->cols));
    TM_TRY(TM_NEW(&value, n + 3, err));
    uint64_t key = tm_philox_key(seed, TM_PURPOSE_INIT, lora->module, 0);
    for (int64_t i = 0; i < n; i += 4) {
        tm_philox random = tm_philox_at(key, (uint32_t)(i / 4), 0, 0, 0);
        for (int k = 0; k < 4; k++)
            value[i + k] = (2 * tm_philox_uniform(random.word[k]) - 1) * bound;
    }
    tm_status st = tm_param_write(t->model, p, replica, value, TM_F32, err);
    free(value);
    return st;
}

/* DoRA: the magnitude starts at the norm of W + s B A. */
static tm_status start_magnitude(tm_tuning *t, const tm_linear *module, int32_t replica)
{
    tm_model *m = t->model;
    tm_lora *lora = module->lora;
    int64_t n = module->out;
    tm_lowrank lr = {.a = lora->a->value, .b = lora->b->value, .scale = lora->scale, .module = lora->module};
    TM_RUN(m->device, dora_norm, m->replicas, &lr, module->weight->value, lora->norm);
    tm_tensor norm = tm_tensor_cols(lora->norm, replica * n, n);
    TM_RUN(m->device, cast, norm, tm_param_part(lora->magnitude, lora->magnitude->value, replica));
    return TM_OK;
}

static void file_key(const tm_tuning *t, const tm_param *p, char key[512])
{
    /* PEFT keeps an adapted module's own bias one level down. */
    size_t n = strlen(p->name);
    if (p->kind == TM_PARAM_BIAS) {
        tm_linear *module;
        for (int64_t i = 0; (module = tm_model_linear(t->model, i)); i++)
            if (module->bias == p && module->lora) {
                snprintf(key, 512, KEY_PREFIX "%.*s.base_layer.bias", (int)(n - strlen(".bias")), p->name);
                return;
            }
    }
    snprintf(key, 512, KEY_PREFIX "%s", p->name);
}

/* Values from the adapter that is continued: every trained tensor must be there, and nothing else. */
static tm_status start_from_file(tm_tuning *t, int32_t replica, tm_error *err)
{
    const char *dir = t->recipe->lora_init;
    int64_t used = 0;
    for (int64_t i = 0; i < t->model->params.count; i++) {
        tm_param *p = t->model->params.item[i];
        if (!p->trained)
            continue;
        char key[512];
        file_key(t, p, key);
        const tm_st_tensor *stored = tm_safetensors_find(t->start, key);
        if (!stored)
            return tm_fail(err, TM_INPUT, "%s/adapter_model.safetensors: tensor %s is missing", dir, key);
        bool fits = stored->count == tm_param_count(p) && (p->ndim == 1 || (stored->ndim == 2 && stored->shape[0] == p->rows));
        bool float_type = stored->dtype == TM_F32 || stored->dtype == TM_F16 || stored->dtype == TM_BF16 || stored->dtype == TM_F64;
        if (!fits || !float_type)
            return tm_fail(err, TM_INPUT, "%s/adapter_model.safetensors: tensor %s has shape [%lld, %lld] of %s, expected [%lld, %lld] of a float type", dir, key,
                           (long long)(stored->ndim ? stored->shape[0] : 0), (long long)(stored->ndim > 1 ? stored->shape[1] : 0), tm_dtype_name(stored->dtype),
                           (long long)p->rows, (long long)p->cols);
        TM_TRY(tm_param_write(t->model, p, replica, stored->data, stored->dtype, err));
        used++;
    }
    for (int64_t i = 0; i < tm_safetensors_count(t->start) && used != tm_safetensors_count(t->start); i++) {
        const char *name = tm_safetensors_at(t->start, i)->name;
        bool known = strncmp(name, KEY_PREFIX, strlen(KEY_PREFIX)) == 0;
        char key[512] = "";
        for (int64_t k = 0; known && k < t->model->params.count && strcmp(key, name) != 0; k++)
            if (t->model->params.item[k]->trained)
                file_key(t, t->model->params.item[k], key);
        if (strcmp(key, name) != 0)
            return tm_fail(err, TM_INPUT, "%s/adapter_model.safetensors: tensor %s does not belong to this adapter on this model", dir, name);
    }
    return TM_OK;
}

static tm_status lora_start(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    tm_model *m = t->model;
    if (m->head.weight->added) { /* a tied head that is saved apart starts as a copy */
        TM_RUN(m->device, cast, m->embed->value, m->head.weight->value);
    }
    if (t->start)
        return start_from_file(t, replica, err);
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(m, i)); i++) {
        if (!module->lora)
            continue;
        TM_TRY(start_a(t, module->lora, replica, seed, err));
        TM_RUN(m->device, fill, tm_param_part(module->lora->b, module->lora->b->value, replica), 0);
        if (module->lora->magnitude)
            TM_TRY(start_magnitude(t, module, replica));
    }
    return TM_OK;
}

/* --- Saving --- */

static tm_status lora_save(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    tm_model *m = t->model;
    tm_status st = TM_OK;
    tm_st_tensor *tensors = NULL;
    char(*keys)[512] = NULL;
    int64_t count = 0;
    char path[4096];
    TM_GO(TM_NEW(&tensors, m->params.count, err));
    TM_GO(tm_alloc((void **)&keys, (size_t)m->params.count, sizeof *keys, err));
    for (int64_t i = 0; i < m->params.count; i++) {
        tm_param *p = m->params.item[i];
        if (!p->trained)
            continue;
        float *value;
        TM_GO(TM_NEW(&value, tm_param_count(p), err));
        tm_st_tensor *out = &tensors[count];
        file_key(t, p, keys[count]);
        *out = (tm_st_tensor){.name = keys[count], .dtype = TM_F32, .ndim = p->ndim, .count = tm_param_count(p), .bytes = tm_param_count(p) * 4, .data = value};
        out->shape[0] = p->ndim == 1 ? p->cols : p->rows;
        out->shape[1] = p->cols;
        count++;
        TM_GO(tm_param_read(m, p, p->value, replica, value, TM_F32, err));
    }
    if (snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir) >= (int)sizeof path)
        TM_GO(tm_fail(err, TM_RECIPE, "out: the path is too long"));
    TM_GO(tm_safetensors_write(path, tensors, count, metadata, err));
    TM_GO(tm_adapter_config_write(dir, &t->adapter, err));
out:
    for (int64_t i = 0; i < count; i++)
        free((void *)(uintptr_t)tensors[i].data);
    free(tensors);
    free(keys);
    return st;
}

const tm_method tm_method_lora = {.name = "lora", .auto_lr = 2e-4, .adapter = true, .replicas = true, .select = lora_select, .start = lora_start, .save = lora_save};
