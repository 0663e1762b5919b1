/* temper inspect: what is in a model, adapter or run folder. Reads files only. */
#include "api/inspect.h"

#include "base/file.h"
#include "io/adapter_kind.h"
#include "io/gguf.h"
#include "io/hf.h"
#include "model/config.h"
#include "text/tokenizer.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int64_t tm_module_layer(const char *module)
{
    for (const char *at = module; (at = strchr(at, '.')); at++)
        if (isdigit((unsigned char)at[1])) {
            size_t n = strspn(at + 1, "0123456789");
            if (at[1 + n] == '.' && n < 10)
                return atoll(at + 1);
        }
    return -1;
}

const char *tm_module_kind(const char *module)
{
    const char *dot = strrchr(module, '.');
    return dot ? dot + 1 : module;
}

/* --- A model --- */

static void put_count(tm_buf *out, double n)
{
    static const char *const unit[] = {"", " thousand", " million", " billion", " trillion"};
    int k = 0;
    for (; n >= 1000 && k < 4; k++)
        n /= 1000;
    tm_buf_printf(out, k ? "%.3g%s" : "%.0f%s", n, unit[k]);
}

static void put_config(tm_buf *out, const tm_model_config *c)
{
    tm_buf_printf(out, "family      %s (%s)\n", c->family->model_type, c->family->architecture);
    tm_buf_printf(
        out,
        "sizes       %lld layers, width %lld, feed-forward %lld, %lld heads of %lld (%lld for keys and values), vocabulary %lld, %lld positions\n",
        (long long)c->layers, (long long)c->width, (long long)c->ffn, (long long)c->heads, (long long)c->head_size,
        (long long)c->kv_heads, (long long)c->vocab, (long long)c->max_positions);
    tm_buf_printf(out, "head        %s\n", c->tied ? "tied to the embedding" : "has weights of its own");
}

typedef struct target { /* a kind of linear module */
    const char *kind;   /* borrowed from list */
    int64_t count, out, in;
} target;

/* Two-dimensional weights inside layers, by kind: what LoRA can be put on. */
static tm_status put_targets(tm_buf *out, const tm_safetensors *file, tm_error *err)
{
    enum { MOST = 64 };
    target list[MOST];
    tm_names kinds = {0};
    int64_t count = 0;
    tm_status st = TM_OK;
    for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        size_t n = strlen(t->name), m = strlen(".weight");
        char name[300];
        if (t->ndim != 2 || n <= m || n >= sizeof name || strcmp(t->name + n - m, ".weight") != 0 ||
            tm_module_layer(t->name) < 0)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)(n - m), t->name);
        int64_t k = 0;
        while (k < count && strcmp(list[k].kind, tm_module_kind(name)) != 0)
            k++;
        if (k == MOST)
            break;
        if (k == count) {
            TM_GO(tm_names_add(&kinds, tm_module_kind(name), err));
            list[count++] = (target){.kind = kinds.item[k], .out = t->shape[0], .in = t->shape[1]};
        }
        list[k].count++;
    }
    for (int64_t k = 0; k < count; k++)
        tm_buf_printf(out, "%-11s %lld x %s [%lld, %lld]\n", k ? "" : "targets", (long long)list[k].count, list[k].kind,
                      (long long)list[k].out, (long long)list[k].in);
out:
    tm_names_deinit(&kinds);
    return st;
}

static void put_dtypes(tm_buf *out, const tm_safetensors *file)
{
    enum { MOST = 32 };
    struct {
        const char *name;
        double elements;
    } type[MOST] = {{0}};
    int64_t bytes = 0, types = 0;
    double all = 0;
    for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        const char *name = t->storage ? t->storage : tm_dtype_name(t->dtype);
        int64_t k = 0;
        while (k < types && strcmp(type[k].name, name) != 0)
            k++;
        if (k == types && types < MOST)
            type[types++].name = name;
        if (k < MOST)
            type[k].elements += (double)t->count;
        bytes += t->bytes;
        all += (double)t->count;
    }
    tm_buf_text(out, "parameters  ");
    put_count(out, all);
    tm_buf_printf(out, " (%.0f) in %lld tensors, %.1f MB:", all, (long long)tm_safetensors_count(file),
                  (double)bytes / 1e6);
    for (int64_t k = 0; k < types; k++)
        tm_buf_printf(out, " %s %.4g %%", type[k].name, 100 * type[k].elements / all);
    tm_buf_char(out, '\n');
}

static tm_status put_tokenizer(tm_buf *out, const char *dir, tm_error *err)
{
    tm_error problem;
    tm_tokenizer *tok;
    tm_buf_text(out, "tokenizer   ");
    if (!tm_tokenizer_is_in(dir)) {
        tm_buf_text(out, "none\n");
        return TM_OK;
    }
    tm_status st = tm_tokenizer_open(dir, &tok, &problem);
    if (st == TM_NO_MEMORY || st == TM_IO) {
        *err = problem;
        return st;
    }
    if (st != TM_OK) {
        tm_buf_printf(out, "cannot be used: %s\n", problem.message);
        return TM_OK;
    }
    int32_t special[] = {tm_tokenizer_bos(tok), tm_tokenizer_eos(tok)};
    tm_buf_printf(out, "%d ids", tm_tokenizer_vocab_size(tok));
    for (int k = 0; k < 2; k++)
        if (special[k] >= 0)
            tm_buf_printf(out, ", %s %s (%d)", k ? "EOS" : "BOS", tm_tokenizer_token(tok, special[k]), special[k]);
    tm_buf_char(out, '\n');
    tm_tokenizer_close(tok);
    return TM_OK;
}

static tm_status inspect_model(const char *dir, tm_buf *out, tm_error *err)
{
    tm_model_config config;
    tm_safetensors *file;
    tm_error problem;
    tm_buf_printf(out, "model       %s\n", dir);
    tm_status st = tm_model_config_read(dir, &config, &problem);
    if (st == TM_OK) {
        put_config(out, &config);
        tm_model_config_deinit(&config);
    } else if (st == TM_UNSUPPORTED)
        tm_buf_printf(out, "family      cannot be trained: %s\n", problem.message);
    else {
        *err = problem;
        return st;
    }
    st = tm_hf_open_weights(dir, &file, &problem);
    if (st == TM_OK) {
        put_dtypes(out, file);
        st = put_tokenizer(out, dir, err);
        if (st == TM_OK)
            st = put_targets(out, file, err);
        tm_safetensors_close(file);
    } else if (st == TM_NO_MEMORY || st == TM_IO || tm_dir_has(dir, "model.safetensors") ||
               tm_dir_has(dir, "model.safetensors.index.json")) {
        *err = problem; /* weights that are there are whole, or it is an error */
    } else { /* a plan can do with the config alone */
        tm_buf_printf(out, "weights     %s\n", problem.message);
        st = put_tokenizer(out, dir, err);
    }
    return st;
}

/* --- An adapter --- */

/* Norms of dW as a table: a row a layer, a column a kind of module. */
static tm_status put_norms(tm_buf *out, const tm_adapter_file *f, tm_error *err)
{
    tm_names kinds = {0};
    int64_t last = -1;
    tm_status st = TM_OK;
    for (int64_t i = 0; i < f->modules; i++) {
        const char *kind = tm_module_kind(f->module[i].name);
        int64_t layer = tm_module_layer(f->module[i].name);
        if (!tm_names_contain(&kinds, kind))
            TM_GO(tm_names_add(&kinds, kind, err));
        last = layer > last ? layer : last;
    }
    tm_buf_text(out, "norm of dW (Frobenius), a row a layer\n     ");
    for (int64_t k = 0; k < kinds.count; k++)
        tm_buf_printf(out, " %10s", kinds.item[k]);
    tm_buf_char(out, '\n');
    for (int64_t layer = -1; layer <= last; layer++) {
        tm_buf row = {0};
        bool any = false;
        tm_buf_printf(&row, layer < 0 ? "    -" : "%5lld", (long long)layer);
        for (int64_t k = 0; k < kinds.count; k++) {
            const tm_adapter_module *found = NULL;
            for (int64_t i = 0; i < f->modules; i++)
                if (tm_module_layer(f->module[i].name) == layer &&
                    strcmp(tm_module_kind(f->module[i].name), kinds.item[k]) == 0)
                    found = &f->module[i];
            any |= found != NULL;
            if (found)
                tm_buf_printf(&row, " %10.4g", sqrt(tm_linear_delta_dot(&found->delta, &found->delta)));
            else
                tm_buf_printf(&row, " %10s", "-");
        }
        out->failed |= row.failed;
        if (any)
            tm_buf_printf(out, "%s\n", tm_buf_str(&row));
        tm_buf_deinit(&row);
    }
out:
    tm_names_deinit(&kinds);
    return st;
}

static tm_status inspect_adapter(const char *dir, tm_buf *out, tm_error *err);

/* A bank: its names, then its first register, which says what holds for all. */
static tm_status inspect_bank(const char *dir, tm_buf *out, tm_error *err)
{
    json_t *json = NULL;
    char *path = tm_path_join(dir, "registers.json", err), *first = NULL;
    tm_status st = path ? tm_json_read(path, &json, err) : TM_NO_MEMORY;
    const json_t *list = json_object_get(json, "registers");
    const char *name = json_string_value(json_array_get(list, 0));
    if (st == TM_OK && !name)
        st = tm_fail(err, TM_INPUT, "%s: \"registers\" is no list of names", path);
    tm_buf_printf(out, "bank        %s\nregisters  ", dir);
    for (size_t i = 0; i < json_array_size(list); i++)
        tm_buf_printf(out, " %s", json_string_value(json_array_get(list, i)) ? json_string_value(json_array_get(list, i)) : "?");
    tm_buf_printf(out, "\nrouter      %s\n\n", tm_dir_has(dir, "router.safetensors") ? "yes" : "none");
    if (st == TM_OK && !(first = tm_path_join(dir, name, err)))
        st = TM_NO_MEMORY;
    if (st == TM_OK)
        st = inspect_adapter(first, out, err);
    json_decref(json);
    free(path);
    free(first);
    return st;
}

/* An adapter that is no LoRA: what it is and how large. */
static tm_status inspect_other(const char *dir, tm_adapter_kind kind, tm_buf *out, tm_error *err)
{
    tm_safetensors *file;
    double elements = 0;
    char *path = tm_path_join(dir, tm_adapter_kind_file(kind), err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = tm_safetensors_open(path, &file, err);
    free(path);
    TM_TRY(st);
    for (int64_t i = 0; i < tm_safetensors_count(file); i++)
        elements += (double)tm_safetensors_at(file, i)->count;
    tm_buf_printf(out, "adapter     %s\nmethod      %s\ntensors     %lld\nparameters  ", dir, tm_adapter_kind_name(kind), (long long)tm_safetensors_count(file));
    put_count(out, elements);
    tm_buf_char(out, '\n');
    tm_safetensors_close(file);
    return TM_OK;
}

static tm_status inspect_adapter(const char *dir, tm_buf *out, tm_error *err)
{
    tm_adapter_file f;
    tm_adapter_kind kind;
    TM_TRY(tm_adapter_kind_of(dir, &kind, err));
    if (kind == TM_ADAPTER_REGISTERS)
        return inspect_bank(dir, out, err);
    if (kind != TM_ADAPTER_LORA)
        return inspect_other(dir, kind, out, err);
    TM_TRY(tm_adapter_file_open(dir, &f, err));
    const tm_adapter_config *c = &f.config;
    double elements = 0;
    for (int64_t i = 0; i < tm_safetensors_count(f.file); i++)
        elements += (double)tm_safetensors_at(f.file, i)->count;
    tm_buf_printf(out, "adapter     %s\nbase        %s\n", dir, c->base_model ? c->base_model : "not named");
    tm_buf_printf(out, "method      %s%s, r %lld, alpha %g, dropout %g, bias %s\n", c->use_dora ? "DoRA" : "LoRA",
                  c->use_rslora ? " (rsLoRA)" : "", (long long)c->r, c->alpha, c->dropout, c->bias ? c->bias : "none");
    tm_buf_printf(out, "modules     %lld", (long long)f.modules);
    if (c->target_regex)
        tm_buf_printf(out, ": %s", c->target_regex);
    for (int64_t i = 0; i < c->target_modules.count; i++)
        tm_buf_printf(out, "%s%s", i ? ", " : ": ", c->target_modules.item[i]);
    tm_buf_text(out, "\nparameters  ");
    put_count(out, elements);
    tm_buf_char(out, '\n');
    for (int64_t i = 0; i < f.saveds; i++)
        tm_buf_printf(out, "%-11s %s\n", i ? "" : "whole", f.saved[i].name);
    tm_status st = f.modules ? put_norms(out, &f, err) : TM_OK;
    tm_adapter_file_close(&f);
    return st;
}

/* --- A run --- */

static const char *text_at(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "?";
}

static double number_at(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static tm_status inspect_run(const char *dir, tm_buf *out, tm_error *err)
{
    json_t *run = NULL, *e;
    size_t i;
    TM_TRY(tm_json_read_in(dir, "run.json", &run, err));
    const json_t *recipe = json_object_get(run, "recipe"), *device = json_object_get(run, "device");
    tm_buf_printf(out, "run         %s: %s, by temper %s on %s (%s)\n", dir, text_at(run, "status"),
                  text_at(run, "temper"), text_at(device, "name"), text_at(device, "detail"));
    tm_buf_printf(out, "model       %s, method %s\n", text_at(recipe, "model"), text_at(recipe, "method"));
    json_array_foreach(json_object_get(recipe, "data"), i, e)
        tm_buf_printf(out, "%-11s %s\n", i ? "" : "data", text_at(e, "path"));
    tm_buf_printf(out, "steps       %.0f of %.0f; %.0f tokens (%.0f targets), %.1f s\n", number_at(run, "steps_done"),
                  number_at(run, "steps"), number_at(run, "tokens"), number_at(run, "targets"),
                  number_at(run, "seconds"));
    tm_buf_printf(out, "parameters  %.0f, trained %.0f\n", number_at(run, "parameters"),
                  number_at(run, "trained_parameters"));
    tm_buf_printf(out, "memory      planned %.1f MB, used %.1f MB\n", number_at(run, "planned_bytes") / 1e6,
                  number_at(run, "peak_bytes") / 1e6);
    json_array_foreach(json_object_get(run, "evals"), i, e)
        tm_buf_printf(out, "%-11s %s %s: %.4f at the start, %.4f at the end, best %.4f%s\n", i ? "" : "evaluation",
                      text_at(e, "name"), text_at(e, "metric"), number_at(e, "first"), number_at(e, "last"),
                      number_at(e, "best"), json_is_true(json_object_get(e, "probe")) ? " (old skill)" : "");
    json_array_foreach(json_object_get(run, "warnings"), i, e)
        tm_buf_printf(out, "%-11s %s\n", i ? "" : "warnings", json_string_value(e) ? json_string_value(e) : "?");
    json_decref(run);
    return TM_OK;
}

/* --- A GGUF file --- */

static bool ends_with(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

static tm_status inspect_gguf_adapter(const tm_gguf *g, const char *path, tm_buf *out, tm_error *err)
{
    tm_gguf_text architecture;
    double alpha, elements = 0;
    int64_t least = INT64_MAX, most = 0;
    TM_TRY(tm_gguf_get_text(g, "general.architecture", &architecture, err));
    TM_TRY(tm_gguf_get_number(g, "adapter.lora.alpha", 0, &alpha, err));
    for (int64_t i = 0; i < tm_gguf_tensors(g); i++) {
        const tm_gguf_tensor *t = tm_gguf_tensor_at(g, i);
        elements += (double)t->count;
        if (ends_with(t->name, ".lora_b")) {
            least = t->ne[0] < least ? t->ne[0] : least;
            most = t->ne[0] > most ? t->ne[0] : most;
        }
    }
    tm_buf_printf(out, "adapter     %s: a GGUF LoRA for llama.cpp, alpha %g, r %lld", path, alpha, (long long)(most ? least : 0));
    if (most > least)
        tm_buf_printf(out, " to %lld", (long long)most);
    tm_buf_printf(out, "\nbase        architecture %.*s\nmodules     %lld\nparameters  ", (int)(architecture.size < 60 ? architecture.size : 60),
                  architecture.text ? architecture.text : "", (long long)tm_gguf_tensors(g) / 2);
    put_count(out, elements);
    tm_buf_char(out, '\n');
    return TM_OK;
}

static tm_status inspect_gguf(const char *path, tm_buf *out, tm_error *err)
{
    tm_gguf *g;
    tm_gguf_text type;
    TM_TRY(tm_gguf_open(path, &g, err));
    tm_status st = tm_gguf_get_text(g, "general.type", &type, err);
    bool adapter = st == TM_OK && type.size == 7 && memcmp(type.text, "adapter", 7) == 0;
    if (adapter)
        st = inspect_gguf_adapter(g, path, out, err);
    tm_gguf_close(g);
    return st != TM_OK || adapter ? st : inspect_model(path, out, err);
}

/* --- Which is it? --- */

/* A file of tensors by itself: what is in it, and that it is whole. */
static tm_status inspect_safetensors(const char *path, tm_buf *out, tm_error *err)
{
    enum { SHOWN = 200 };
    tm_safetensors *file;
    TM_TRY(tm_safetensors_open(path, &file, err));
    tm_buf_printf(out, "tensors     %s\n", path);
    put_dtypes(out, file);
    for (int64_t i = 0; i < tm_safetensors_count(file) && i < SHOWN; i++) {
        const tm_st_tensor *t = tm_safetensors_at(file, i);
        tm_buf_printf(out, "            %-5s [", tm_dtype_name(t->dtype));
        for (int k = 0; k < t->ndim; k++)
            tm_buf_printf(out, "%s%lld", k ? ", " : "", (long long)t->shape[k]);
        tm_buf_printf(out, "]  %s\n", t->name);
    }
    if (tm_safetensors_count(file) > SHOWN)
        tm_buf_printf(out, "            and %lld more\n", (long long)(tm_safetensors_count(file) - SHOWN));
    tm_safetensors_close(file);
    return TM_OK;
}

static tm_status inspect_folder(const tm_inspect_request *r, tm_buf *out, tm_error *err)
{
    bool run = tm_dir_has(r->path, "run.json"), adapter = tm_dir_has(r->path, "adapter_config.json") || tm_dir_has(r->path, "registers.json"),
         model = tm_dir_has(r->path, "config.json");
    bool ours = run || adapter || model;
    if (!ours && r->model)
        return tm_inspect_data(r, false, out, err); /* a folder of data files */
    if (r->batch)
        return tm_fail(err, TM_USAGE, "%s is a folder: --batch shows examples of a data file or a recipe", r->path);
    if (!ours)
        return tm_fail(err, TM_INPUT, "%s: found none of run.json, adapter_config.json, config.json", r->path);
    if (run)
        TM_TRY(inspect_run(r->path, out, err));
    if (run && (adapter || model))
        tm_buf_char(out, '\n');
    if (adapter)
        TM_TRY(inspect_adapter(r->path, out, err));
    return model ? inspect_model(r->path, out, err) : TM_OK;
}

tm_status tm_inspect(const tm_inspect_request *r, char **text, tm_error *err)
{
    tm_buf out = {0};
    tm_status st = TM_OK;
    *text = NULL;
    if (!tm_path_exists(r->path) && !strpbrk(r->path, "*?["))
        TM_GO(tm_fail(err, TM_INPUT, "%s: no such file or folder", r->path));
    if (tm_path_is_dir(r->path))
        st = inspect_folder(r, &out, err);
    else if (tm_gguf_is(r->path))
        st = inspect_gguf(r->path, &out, err);
    else if (ends_with(r->path, ".safetensors"))
        st = inspect_safetensors(r->path, &out, err);
    else
        st = tm_inspect_data(r, ends_with(r->path, ".yaml") || ends_with(r->path, ".yml"), &out, err);
    if (st == TM_OK)
        st = tm_buf_check(&out, err);
    if (st == TM_OK) {
        *text = out.data;
        out = (tm_buf){0};
    }
out:
    tm_buf_deinit(&out);
    return st;
}
