/* LoRA (2106.09685) with rsLoRA (2312.03732), DoRA (2402.09353) and LoRA+ (2402.12354): which modules
 * get low-rank matrices, their first values, and the adapter folder that PEFT loads.
 *
 * Names are PEFT's: a parameter's key in the adapter file is "base_model.model." and its name here. */
#include "tune/registers.h"

#include "base/buf.h"
#include "base/exact.h"
#include "base/philox.h"

#include <math.h>
#include <stdlib.h>


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

/* Registers live on the attention projections, unless the recipe says otherwise. */
static tm_status attention_targets(tm_tuning *t, tm_error *err)
{
    for (int s = TM_Q; s <= TM_O; s++) {
        const tm_linear *module = &t->model->block[0].slot[s];
        if (module->weight && !tm_names_contain(&t->adapter.target_modules, short_name(module->name)))
            TM_TRY(tm_names_add(&t->adapter.target_modules, short_name(module->name), err));
    }
    return TM_OK;
}

static tm_status targets_from_recipe(tm_tuning *t, tm_error *err)
{
    if (t->registers.count && !tm_names_contain(&t->recipe->given, "lora.target_modules"))
        return attention_targets(t, err);
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
    TM_TRY(tm_registers_name(t, &r->lora_registers, "lora.registers", err));
    bool plain = !r->lora_use_dora && r->lora_bias == TM_BIAS_NONE && !r->lora_modules_to_save.count && !r->lora_rank_pattern.keys.count && !r->lora_alpha_pattern.keys.count;
    if (t->registers.count && !plain)
        return tm_fail(err, TM_RECIPE, "lora.registers: a register is a plain LoRA adapter: no use_dora, bias, modules_to_save, rank_pattern, alpha_pattern");
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

/* An adapter that is continued keeps its shape; a recipe that says otherwise is told. */
static tm_status note_unused(tm_tuning *t, tm_error *err)
{
    const tm_recipe *r = t->recipe;
    const tm_adapter_config *a = &t->adapter;
    const struct {
        const char *key;
        double asked, is;
    } keys[] = {{"lora.r", (double)r->lora_r, (double)a->r}, {"lora.alpha", r->lora_alpha, a->alpha}, {"lora.use_rslora", r->lora_use_rslora, a->use_rslora}, {"lora.use_dora", r->lora_use_dora, a->use_dora}};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        char text[400];
        if (!tm_names_contain(&r->given, keys[i].key) || keys[i].asked == keys[i].is)
            continue;
        snprintf(text, sizeof text, "%s: %g is not used: the adapter that lora.init continues has %g, and keeps it", keys[i].key, keys[i].asked, keys[i].is);
        TM_TRY(tm_names_add(&t->notes, text, err));
    }
    return TM_OK;
}

static tm_status config_from_adapter(tm_tuning *t, tm_error *err)
{
    tm_adapter_config *a = &t->adapter;
    if (tm_registers_there(t->from))
        return tm_registers_open(t, err);
    TM_TRY(tm_adapter_config_read(t->from, a, err));
    if (a->target_regex && strcmp(a->target_regex, "all-linear") == 0) {
        free(a->target_regex);
        a->target_regex = NULL;
        TM_TRY(all_linear(t, err));
    }
    TM_TRY(note_unused(t, err));
    if (tm_names_contain(&t->recipe->given, "lora.dropout"))
        a->dropout = t->recipe->lora_dropout;
    a->inference_mode = true;
    a->fan_in_fan_out = t->model->config.family->conv1d; /* PEFT too goes by the module, not by the key */
    return tm_tuned_open(t, err);
}

/* --- Selecting --- */

static tm_status add_part(tm_tuning *t, const char *module, int32_t layer, const char *suffix, tm_param_kind kind, int64_t rows, int64_t cols, tm_param **out, tm_error *err)
{
    char name[300];
    snprintf(name, sizeof name, "%s.%s", module, suffix);
    TM_TRY(tm_params_add(&t->model->params, name, kind, rows, cols, out, err));
    (*out)->layer = layer;
    (*out)->ndim = kind == TM_PARAM_MAGNITUDE ? 1 : 2;
    (*out)->added = (*out)->trained = true;
    (*out)->replicas = t->model->replicas;
    return TM_OK;
}

static tm_status rank_and_scale(const tm_tuning *t, const char *module, int32_t *rank, float *scale, tm_error *err)
{
    const tm_adapter_config *a = &t->adapter;
    double r, alpha;
    TM_TRY(tm_adapter_pattern(a->rank_pattern, a->rank_patterns, module, (double)a->r, &r, err));
    TM_TRY(tm_adapter_pattern(a->alpha_pattern, a->alpha_patterns, module, a->alpha, &alpha, err));
    if (!(r >= 1) || r != floor(r) || r > (double)(1 << 20))
        return tm_fail(err, TM_RECIPE, "lora: rank of %s is %g, expected a whole number from 1", module, r);
    *rank = (int32_t)r;
    *scale = (float)(a->use_rslora ? alpha / sqrt(r) : alpha / r);
    return TM_OK;
}

/* index: the module's key for dropout and first values. */
static tm_status new_lora(tm_tuning *t, const char *module, int64_t index, tm_lora **out, tm_error *err)
{
    const tm_adapter_config *a = &t->adapter;
    TM_TRY(TM_NEW(out, 1, err));
    tm_lora *lora = *out;
    TM_TRY(rank_and_scale(t, module, &lora->r, &lora->scale, err));
    lora->dropout = (float)a->dropout;
    lora->module = (uint32_t)index;
    return TM_OK;
}

static tm_status add_lora(tm_tuning *t, tm_linear *module, int64_t index, tm_error *err)
{
    TM_TRY(new_lora(t, module->name, index, &module->lora, err));
    tm_lora *lora = module->lora;
    if (t->registers.count) {
        lora->gates = t->model->gates = (int32_t)t->registers.count;
        t->model->gate_width = lora->r;
        lora->r *= lora->gates;
    }
    TM_TRY(add_part(t, module->name, module->weight->layer, "lora_A.weight", TM_PARAM_LORA_A, lora->r, module->in, &lora->a, err));
    TM_TRY(add_part(t, module->name, module->weight->layer, "lora_B.weight", TM_PARAM_LORA_B, module->out, lora->r, &lora->b, err));
    lora->b->lr_ratio = (float)t->recipe->lora_lr_ratio_b;
    return t->adapter.use_dora ? add_part(t, module->name, module->weight->layer, "lora_magnitude_vector", TM_PARAM_MAGNITUDE, 1, module->out, &lora->magnitude, err) : TM_OK;
}

/* PEFT's Embedding layer. It knows no dropout; a tied head keeps the base's weights. */
static tm_status add_embedding(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    const char *name = m->config.family->embed;
    TM_TRY(new_lora(t, name, m->config.layers * TM_SLOTS + 1, &m->embed_lora, err));
    tm_lora *lora = m->embed_lora;
    lora->dropout = 0;
    if (t->adapter.use_dora)
        return tm_fail(err, TM_UNSUPPORTED, "lora.target_modules: %s with use_dora is not supported; leave it out, or use_dora: false", short_name(name));
    TM_TRY(add_part(t, name, -1, "lora_embedding_A", TM_PARAM_LORA_A, m->config.vocab, lora->r, &lora->a, err));
    TM_TRY(add_part(t, name, -1, "lora_embedding_B", TM_PARAM_LORA_B, m->config.width, lora->r, &lora->b, err));
    lora->a->turned = true;
    lora->b->lr_ratio = (float)t->recipe->lora_lr_ratio_b;
    return TM_OK;
}

static bool ends_as(const char *name, const char *end)
{
    size_t n = strlen(name), k = strlen(end);
    return n >= k && strcmp(name + n - k, end) == 0 && (n == k || name[n - k - 1] == '.');
}

/* Every name in the list must be found: a typing error must not train less than was asked for. */
static tm_status check_names(tm_tuning *t, const tm_names *names, const char *key, tm_error *err)
{
    const char *known[TM_SLOTS + 2], *embed = t->model->config.family->embed;
    size_t knowns = 0;
    for (int s = 0; s < TM_SLOTS; s++)
        if (t->model->block[0].slot[s].weight)
            known[knowns++] = short_name(t->model->block[0].slot[s].name);
    known[knowns++] = short_name(t->model->head.name);
    known[knowns++] = short_name(embed);
    for (int64_t k = 0; k < names->count; k++) {
        bool found = ends_as(embed, names->item[k]);
        tm_linear *module;
        for (int64_t i = 0; (module = tm_model_linear(t->model, i)) && !found; i++)
            found = module->weight && ends_as(module->name, names->item[k]);
        if (found)
            continue;
        const char *nearest = tm_nearest(names->item[k], known, knowns);
        return tm_fail(err, TM_RECIPE, "%s: the model has no linear module or embedding '%s'%s%s%s", key, names->item[k],
                       nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
    }
    return TM_OK;
}

/* Nor may a pattern of a rank or an alpha be of no module that is adapted. */
static tm_status check_patterns(tm_tuning *t, const tm_pattern *patterns, int64_t count, const char *key, tm_error *err)
{
    for (int64_t k = 0; k < count; k++) {
        double found = NAN;
        tm_linear *module;
        if (t->model->embed_lora)
            TM_TRY(tm_adapter_pattern(&patterns[k], 1, t->model->config.family->embed, NAN, &found, err));
        for (int64_t i = 0; isnan(found) && (module = tm_model_linear(t->model, i)); i++)
            if (module->lora)
                TM_TRY(tm_adapter_pattern(&patterns[k], 1, module->name, NAN, &found, err));
        if (isnan(found))
            return tm_fail(err, TM_RECIPE, "%s: '%s' matches no module that is adapted", key, patterns[k].key);
    }
    return TM_OK;
}

/* As PEFT without ensure_weight_tying: when a tied table or head is saved apart, the other keeps the
 * base's weights. The head gets a matrix of its own, a copy of the table. */
static tm_status untie(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    if (m->head.weight != m->embed)
        return TM_OK;
    TM_TRY(add_part(t, m->head.name, -1, "weight", TM_PARAM_MATRIX, m->head.out, m->head.in, &m->head.weight, err));
    m->head.weight->replicas = 1;
    m->head.weight->trained = false;
    m->head.weight->dtype = m->embed->dtype;
    return tm_names_add(&t->notes, "lora.modules_to_save: the model's embedding and head are tied; what is saved is trained apart, the other keeps the base's weights", err);
}

static tm_status train_head(tm_tuning *t, tm_error *err)
{
    tm_model *m = t->model;
    TM_TRY(untie(t, err));
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
        if (m->embed->trained)
            TM_TRY(untie(t, err));
    }
    return TM_OK;
}

/* An adapted module, or one whose weight stands for it (tm_method_beneath). */
static bool is_adapted(const tm_tuning *t, const tm_linear *module)
{
    return module->lora || (t->method == &tm_method_beneath && module->weight && module->weight->trained);
}

static void train_biases(tm_tuning *t)
{
    bool all = strcmp(t->adapter.bias, "all") == 0, own = strcmp(t->adapter.bias, "lora_only") == 0;
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(t->model, i)); i++)
        if (module->bias && own && is_adapted(t, module))
            module->bias->trained = true;
    for (int64_t i = 0; all && i < t->model->params.count; i++) /* those of norms too */
        if (t->model->params.item[i]->kind == TM_PARAM_BIAS)
            t->model->params.item[i]->trained = true;
}

/* The modules that the config names: each gets low-rank matrices, or is trained itself (tm_method_beneath). */
static tm_status take_modules(tm_tuning *t, bool beneath, int64_t *adapted, tm_error *err)
{
    tm_model *m = t->model;
    tm_linear *module;
    *adapted = 0;
    for (int64_t i = 0; (module = tm_model_linear(m, i)); i++) {
        bool wanted;
        if (!module->weight)
            continue;
        TM_TRY(tm_adapter_targets(&t->adapter, module->name, &wanted, err));
        if (!wanted)
            continue;
        if (!beneath)
            TM_TRY(add_lora(t, module, i, err));
        else if (module == &m->head)
            TM_TRY(train_head(t, err));
        else
            module->weight->trained = true;
        ++*adapted;
    }
    return TM_OK;
}

static tm_status select_modules(tm_tuning *t, bool beneath, tm_error *err)
{
    tm_model *m = t->model;
    TM_TRY(t->from ? config_from_adapter(t, err) : config_from_recipe(t, err));
    TM_TRY(check_names(t, &t->adapter.target_modules, "lora.target_modules", err));
    int64_t adapted;
    bool embedding;
    TM_TRY(take_modules(t, beneath, &adapted, err));
    TM_TRY(tm_adapter_targets(&t->adapter, m->config.family->embed, &embedding, err));
    if (t->registers.count && (embedding || m->head.lora))
        return tm_fail(err, TM_RECIPE, "lora.target_modules: registers are for modules inside the blocks, not for embedding and head");
    if (embedding && !beneath)
        TM_TRY(add_embedding(t, err));
    adapted += embedding;
    if (!t->from && !beneath) {
        TM_TRY(check_patterns(t, t->adapter.rank_pattern, t->adapter.rank_patterns, "lora.rank_pattern", err));
        TM_TRY(check_patterns(t, t->adapter.alpha_pattern, t->adapter.alpha_patterns, "lora.alpha_pattern", err));
    }
    TM_TRY(train_saved_modules(t, err));
    train_biases(t);
    if (!adapted)
        return tm_fail(err, TM_RECIPE, "lora.target_modules: '%s' matches no linear module or embedding of the model", t->adapter.target_regex ? t->adapter.target_regex : "");
    return TM_OK;
}

static tm_status lora_select(tm_tuning *t, tm_error *err)
{
    TM_TRY(select_modules(t, false, err));
    bool shared = t->adapter.modules_to_save.count || strcmp(t->adapter.bias, "none") != 0;
    if (t->model->replicas > 1 && shared)
        return tm_fail(err, TM_RECIPE, "lora: modules_to_save and bias work for one replica at a time");
    return TM_OK;
}

/* --- First values --- */

/* n standard normals; value has room for n + 1. */
void tm_fill_normal(float *value, int64_t n, uint64_t key)
{
    for (int64_t i = 0; i < n; i += 2) {
        double z[2];
        tm_normals(tm_philox_at(key, (uint32_t)(i / 2), (uint32_t)(i >> 33), 0, 0).word, z);
        value[i] = (float)z[0];
        value[i + 1] = (float)z[1];
    }
}

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

/* PEFT's Embedding layer begins with A zero and B normal. */
static tm_status start_embedding(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    const tm_lora *lora = t->model->embed_lora;
    float *value;
    int64_t n = tm_param_count(lora->b);
    TM_RUN(t->model->device, fill, tm_param_part(lora->a, lora->a->value, replica), 0);
    TM_TRY(TM_NEW(&value, n + 1, err));
    tm_fill_normal(value, n, tm_philox_key(seed, TM_PURPOSE_INIT, lora->module, 0));
    tm_status st = tm_param_write(t->model, lora->b, replica, value, TM_F32, err);
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

static void file_key(const tm_tuning *t, const tm_param *p, char key[TM_TUNED_KEY])
{
    /* PEFT keeps an adapted module's own bias one level down. */
    size_t n = strlen(p->name);
    if (p->kind == TM_PARAM_BIAS) {
        tm_linear *module;
        for (int64_t i = 0; (module = tm_model_linear(t->model, i)); i++)
            if (module->bias == p && is_adapted(t, module)) {
                snprintf(key, TM_TUNED_KEY, TM_PEFT_PREFIX "%.*s.base_layer.bias", (int)(n - strlen(".bias")), p->name);
                return;
            }
    }
    snprintf(key, TM_TUNED_KEY, TM_PEFT_PREFIX "%s", p->name);
}

static tm_status lora_start(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    tm_model *m = t->model;
    if (t->from)
        return t->registers.count ? tm_registers_read(t, replica, err) : tm_tuned_read(t, replica, err);
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(m, i)); i++) {
        if (!module->lora)
            continue;
        TM_TRY(start_a(t, module->lora, replica, seed, err));
        TM_RUN(m->device, fill, tm_param_part(module->lora->b, module->lora->b->value, replica), 0);
        if (module->lora->magnitude)
            TM_TRY(start_magnitude(t, module, replica));
    }
    return m->embed_lora ? start_embedding(t, replica, seed, err) : TM_OK;
}

/* --- Saving --- */

static tm_status lora_save(tm_tuning *t, int32_t replica, const char *dir, tm_error *err)
{
    if (t->registers.count)
        return tm_registers_write(t, replica, dir, err);
    TM_TRY(tm_tuned_write(t, replica, dir, err));
    return tm_adapter_config_write(dir, &t->adapter, err);
}

const tm_method tm_method_lora = {.name = "lora", .auto_lr = 2e-4, .adapter = true, .replicas = true, .file = "adapter_model.safetensors",
                                  .select = lora_select, .start = lora_start, .save = lora_save, .key = file_key};

/* --- The weights beneath --- */

static tm_status beneath_select(tm_tuning *t, tm_error *err)
{
    TM_TRY(select_modules(t, true, err));
    bool embedding;
    TM_TRY(tm_adapter_targets(&t->adapter, t->model->config.family->embed, &embedding, err));
    const char *what = embedding ? "on the embedding" : t->adapter.use_dora ? "with use_dora" : t->registers.count ? "with registers" : NULL;
    return what ? tm_fail(err, TM_UNSUPPORTED, "importances of dW are of plain LoRA on linear modules; LoRA %s has none: change lora, or take keep.ewc.space: factors", what) : TM_OK;
}

/* A tensor of the adapter as floats; TM_INPUT unless it is [rows, cols]. */
static tm_status read_factor(const tm_tuning *t, const char *module, const char *part, int64_t rows, int64_t cols, float **out, tm_error *err)
{
    char key[TM_TUNED_KEY];
    snprintf(key, sizeof key, TM_PEFT_PREFIX "%s.%s.weight", module, part);
    const tm_st_tensor *stored = tm_safetensors_find(t->start, key);
    bool floats = stored && (stored->dtype == TM_F32 || stored->dtype == TM_F16 || stored->dtype == TM_BF16 || stored->dtype == TM_F64);
    if (!floats || stored->ndim != 2 || stored->shape[0] != rows || stored->shape[1] != cols)
        return tm_fail(err, TM_INPUT, "%s/%s: tensor %s is missing or of another shape, expected floats [%lld, %lld]", t->from, t->method->file, key, (long long)rows, (long long)cols);
    TM_TRY(TM_NEW(out, stored->count, err));
    tm_dtype_convert(*out, TM_F32, stored->data, stored->dtype, stored->count);
    return TM_OK;
}

/* W += scale B A, in double. */
static tm_status merge_module(tm_tuning *t, tm_linear *module, tm_error *err)
{
    tm_linear_delta delta = {.out = module->out, .in = module->in};
    float *a = NULL, *b = NULL, *weight = NULL, scale;
    double *row = NULL;
    int32_t r;
    TM_TRY(rank_and_scale(t, module->name, &r, &scale, err));
    tm_status st = TM_OK;
    TM_GO(read_factor(t, module->name, "lora_A", r, module->in, &a, err));
    TM_GO(read_factor(t, module->name, "lora_B", module->out, r, &b, err));
    TM_GO(TM_NEW(&weight, module->out * module->in, err));
    TM_GO(TM_NEW(&row, module->in, err));
    delta.a = a;
    delta.b = b;
    delta.r = r;
    delta.scale = scale;
    TM_GO(tm_param_read(t->model, module->weight, module->weight->value, 0, weight, TM_F32, err));
    for (int64_t i = 0; i < module->out; i++) {
        for (int64_t k = 0; k < module->in; k++)
            row[k] = weight[i * module->in + k];
        tm_linear_delta_add_row(&delta, i, 1, row);
        for (int64_t k = 0; k < module->in; k++)
            weight[i * module->in + k] = (float)row[k];
    }
    TM_GO(tm_param_write(t->model, module->weight, 0, weight, TM_F32, err));
out:
    free(a);
    free(b);
    free(weight);
    free(row);
    return st;
}

static tm_status beneath_start(tm_tuning *t, int32_t replica, uint64_t seed, tm_error *err)
{
    tm_model *m = t->model;
    (void)replica, (void)seed;
    if (m->head.weight->added)
        TM_RUN(m->device, cast, m->embed->value, m->head.weight->value);
    if (!t->from)
        return TM_OK;
    tm_linear *module;
    for (int64_t i = 0; (module = tm_model_linear(m, i)); i++) {
        bool adapted = false;
        if (module->weight)
            TM_TRY(tm_adapter_targets(&t->adapter, module->name, &adapted, err));
        if (adapted)
            TM_TRY(merge_module(t, module, err));
        else if (module->weight && module->weight->trained && module->weight != m->embed) /* modules_to_save */
            TM_TRY(tm_tuned_read_param(t, module->weight, 0, err));
    }
    for (int64_t i = 0; i < m->params.count; i++) /* and what else is trained as it is */
        if (m->params.item[i]->trained && m->params.item[i]->kind != TM_PARAM_MATRIX)
            TM_TRY(tm_tuned_read_param(t, m->params.item[i], 0, err));
    return TM_OK;
}

const tm_method tm_method_beneath = {.name = "weights beneath LoRA", .auto_lr = 1e-5, .file = "adapter_model.safetensors", .select = beneath_select,
                                     .start = beneath_start, .key = file_key};
