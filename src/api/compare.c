/* temper compare: how far adapters, models or runs are from the first one.
 *
 * 1. Adapters are compared by what they add, dW = s B A, through r x r products; two factorisations of
 *    one dW are equal. Models are compared tensor by tensor. Both in double.
 * 2. relative = ||A - B|| / ||A||, cosine = <A, B> / (||A|| ||B||), over a module, a layer, or all.
 * 3. PyTorch's folders have the same layout and are read the same way. */
#include "api/compare.h"

#include "api/inspect.h"
#include "base/file.h"
#include "io/adapter_kind.h"
#include "io/gguf.h"
#include "io/hf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct products { /* of two vectors */
    double aa, bb, ab, dd; /* dd: ||a - b||^2 */
} products;

typedef struct entry {
    const char *name; /* borrowed from the files */
    products p;
} entry;

typedef struct comparison { /* of one path with the first */
    const char *kind;       /* "adapter", "model"; NULL: weights cannot be compared */
    const char *note;       /* what else to know; NULL: nothing */
    tm_adapter_file adapter[2];
    tm_safetensors *model[2];
    entry *entry;
    size_t count, capacity;
    int64_t alone[2];       /* tensors that one side alone has */
} comparison;

static void add(products *sum, const products *p)
{
    sum->aa += p->aa;
    sum->bb += p->bb;
    sum->ab += p->ab;
    sum->dd += p->dd;
}

static double relative(const products *p) { return p->dd == 0 ? 0 : sqrt(p->dd / p->aa); }
static double cosine(const products *p) { return p->aa == 0 || p->bb == 0 ? NAN : p->ab / sqrt(p->aa) / sqrt(p->bb); }

static tm_status add_entry(comparison *c, const char *name, const products *p, tm_error *err)
{
    TM_TRY(TM_GROW(&c->entry, &c->capacity, c->count + 1, err));
    c->entry[c->count++] = (entry){name, *p};
    return TM_OK;
}

/* --- Weights --- */

static bool is_float(tm_dtype d) { return d == TM_F64 || d == TM_F32 || d == TM_F16 || d == TM_BF16; }

/* Piece by piece, so that models larger than memory can be compared. */
static products tensor_products(const tm_st_tensor *a, const tm_st_tensor *b)
{
    enum { PIECE = 4096 };
    double x[PIECE], y[PIECE];
    products p = {0};
    for (int64_t at = 0; at < a->count; at += PIECE) {
        int64_t n = a->count - at < PIECE ? a->count - at : PIECE;
        tm_dtype_convert(x, TM_F64, (const char *)a->data + tm_dtype_bytes(a->dtype, at), a->dtype, n);
        tm_dtype_convert(y, TM_F64, (const char *)b->data + tm_dtype_bytes(b->dtype, at), b->dtype, n);
        for (int64_t i = 0; i < n; i++)
            add(&p, &(products){x[i] * x[i], y[i] * y[i], x[i] * y[i], (x[i] - y[i]) * (x[i] - y[i])});
    }
    return p;
}

static tm_status compare_tensor(comparison *c, const char *name, const tm_st_tensor *a, const tm_st_tensor *b,
                                tm_error *err)
{
    if (a->count != b->count)
        return tm_fail(err, TM_INPUT, "tensor %s has %lld elements in one and %lld in the other", name,
                       (long long)a->count, (long long)b->count);
    if (!is_float(a->dtype) || !is_float(b->dtype))
        return TM_OK;
    products p = tensor_products(a, b);
    return add_entry(c, name, &p, err);
}

static tm_status compare_models(comparison *c, const char *a, const char *b, tm_error *err)
{
    c->kind = "model";
    for (int i = 0; i < 2; i++) {
        TM_TRY(tm_hf_open_weights(i ? b : a, &c->model[i], err));
        TM_TRY(tm_safetensors_unpack(c->model[i], err));
    }
    for (int64_t i = 0; i < tm_safetensors_count(c->model[0]); i++) {
        const tm_st_tensor *t = tm_safetensors_at(c->model[0], i), *other = tm_safetensors_find(c->model[1], t->name);
        if (other)
            TM_TRY(compare_tensor(c, t->name, t, other, err));
        else
            c->alone[0]++;
    }
    c->alone[1] = tm_safetensors_count(c->model[1]) - (tm_safetensors_count(c->model[0]) - c->alone[0]);
    return TM_OK;
}

static tm_status compare_module(comparison *c, const tm_adapter_module *a, const tm_adapter_module *b, tm_error *err)
{
    products p = {0};
    if (a && b && (a->delta.out != b->delta.out || a->delta.in != b->delta.in))
        return tm_fail(err, TM_INPUT,
                       "module %s is [%lld, %lld] in one and [%lld, %lld] in the other: adapters of different models",
                       a->name, (long long)a->delta.out, (long long)a->delta.in, (long long)b->delta.out,
                       (long long)b->delta.in);
    p.aa = a ? tm_linear_delta_dot(&a->delta, &a->delta) : 0;
    p.bb = b ? tm_linear_delta_dot(&b->delta, &b->delta) : 0;
    p.ab = a && b ? tm_linear_delta_dot(&a->delta, &b->delta) : 0;
    p.dd = fmax(0, p.aa - 2 * p.ab + p.bb);
    return add_entry(c, a ? a->name : b->name, &p, err);
}

static tm_status compare_adapters(comparison *c, const char *dir_a, const char *dir_b, tm_error *err)
{
    tm_adapter_file *a = &c->adapter[0], *b = &c->adapter[1];
    c->kind = "adapter";
    TM_TRY(tm_adapter_file_open(dir_a, a, err));
    TM_TRY(tm_adapter_file_open(dir_b, b, err));
    if (a->config.use_dora || b->config.use_dora)
        c->note = "DoRA: its s B A is compared, its magnitudes are not";
    for (int64_t i = 0; i < a->modules; i++)
        TM_TRY(compare_module(c, &a->module[i], tm_adapter_file_find(b, a->module[i].name), err));
    for (int64_t i = 0; i < b->modules; i++)
        if (!tm_adapter_file_find(a, b->module[i].name))
            TM_TRY(compare_module(c, NULL, &b->module[i], err));
    int64_t both = 0;
    for (int64_t i = 0; i < a->saveds; i++)
        for (int64_t k = 0; k < b->saveds; k++)
            if (strcmp(a->saved[i].name, b->saved[k].name) == 0) {
                both++;
                TM_TRY(compare_tensor(c, a->saved[i].name, a->saved[i].tensor, b->saved[k].tensor, err));
            }
    c->alone[0] = a->saveds - both;
    c->alone[1] = b->saveds - both;
    return TM_OK;
}

static tm_status compare_weights(comparison *c, const char *a, const char *b, tm_error *err)
{
    bool adapters = tm_dir_has(a, "adapter_config.json") && tm_dir_has(b, "adapter_config.json");
    bool models = (tm_gguf_is(a) || tm_dir_has(a, "config.json")) && (tm_gguf_is(b) || tm_dir_has(b, "config.json"));
    tm_adapter_kind kind[2] = {TM_ADAPTER_LORA, TM_ADAPTER_LORA};
    if (adapters) {
        TM_TRY(tm_adapter_kind_of(a, &kind[0], err));
        TM_TRY(tm_adapter_kind_of(b, &kind[1], err));
        bool matrices = kind[0] == TM_ADAPTER_LORA && kind[1] == TM_ADAPTER_LORA; /* others: with --data alone */
        return matrices ? compare_adapters(c, a, b, err) : TM_OK;
    }
    return models ? compare_models(c, a, b, err) : TM_OK;
}

static void close_comparison(comparison *c)
{
    for (int i = 0; i < 2; i++) {
        tm_adapter_file_close(&c->adapter[i]);
        tm_safetensors_close(c->model[i]);
    }
    free(c->entry);
}

/* --- Writing --- */

static void put_field(tm_buf *out, const char *key, double value)
{
    tm_buf_printf(out, ", \"%s\": ", key);
    tm_json_put_number(out, value);
}

static void put_products(tm_buf *out, const products *p)
{
    put_field(out, "norm_a", sqrt(p->aa));
    put_field(out, "norm_b", sqrt(p->bb));
    put_field(out, "relative_l2", p->aa > 0 ? relative(p) : p->bb > 0 ? INFINITY : 0);
    put_field(out, "cosine", cosine(p));
}

static products sum_of(const comparison *c, int64_t layer, bool all, bool *any)
{
    products sum = {0};
    *any = false;
    for (size_t i = 0; i < c->count; i++)
        if (all || tm_module_layer(c->entry[i].name) == layer) {
            add(&sum, &c->entry[i].p);
            *any = true;
        }
    return sum;
}

static int64_t last_layer(const comparison *c)
{
    int64_t last = -1;
    for (size_t i = 0; i < c->count; i++)
        last = tm_module_layer(c->entry[i].name) > last ? tm_module_layer(c->entry[i].name) : last;
    return last;
}

static void put_weights_json(tm_buf *out, const comparison *c)
{
    bool any, first = true;
    products sum = sum_of(c, 0, true, &any);
    tm_buf_printf(out, ", \"kind\": \"%s\", \"alone_a\": %lld, \"alone_b\": %lld", c->kind, (long long)c->alone[0],
                  (long long)c->alone[1]);
    put_products(out, &sum);
    tm_buf_text(out, ", \"layers\": [");
    for (int64_t layer = -1; layer <= last_layer(c); layer++) {
        sum = sum_of(c, layer, false, &any);
        if (!any)
            continue;
        tm_buf_printf(out, "%s{\"layer\": %lld", first ? "" : ", ", (long long)layer);
        put_products(out, &sum);
        tm_buf_char(out, '}');
        first = false;
    }
    tm_buf_text(out, "], \"tensors\": [");
    for (size_t i = 0; i < c->count; i++) {
        tm_buf_text(out, i ? ", {\"name\": " : "{\"name\": ");
        tm_json_put_string(out, c->entry[i].name);
        put_products(out, &c->entry[i].p);
        tm_buf_char(out, '}');
    }
    tm_buf_char(out, ']');
}

static void put_row(tm_buf *out, const char *name, const products *p)
{
    tm_buf_printf(out, "  %-8s %11.5g %11.5g %11.4g %9.5f\n", name, sqrt(p->aa), sqrt(p->bb), relative(p), cosine(p));
}

static void put_weights(tm_buf *out, const comparison *c)
{
    bool any;
    char name[24];
    size_t same = 0;
    for (size_t i = 0; i < c->count; i++)
        same += c->entry[i].p.dd == 0;
    tm_buf_printf(out, "  %zu %s, %zu of them equal\n", c->count,
                  strcmp(c->kind, "adapter") == 0 ? "changes dW = s B A (and whole tensors)" : "tensors", same);
    if (c->alone[0] || c->alone[1])
        tm_buf_printf(out, "  tensors that one side alone has: %lld and %lld\n", (long long)c->alone[0],
                      (long long)c->alone[1]);
    if (c->note)
        tm_buf_printf(out, "  %s\n", c->note);
    tm_buf_printf(out, "  %-8s %11s %11s %11s %9s\n", "layer", "norm A", "norm B", "|A-B|/|A|", "cosine");
    for (int64_t layer = -1; layer <= last_layer(c); layer++) {
        products sum = sum_of(c, layer, false, &any);
        snprintf(name, sizeof name, "%lld", (long long)layer);
        if (any)
            put_row(out, layer < 0 ? "others" : name, &sum);
    }
    products sum = sum_of(c, 0, true, &any);
    put_row(out, "all", &sum);
}

static void put_tokens(tm_buf *out, const tm_token_scores *s, bool json)
{
    double share = s->targets ? (double)s->agree / (double)s->targets : NAN;
    if (!json) {
        tm_buf_printf(out, "  tokens: %.2f %% agree on top (%lld of %lld), mean KL(A || B) %.3g nats, loss %.4f\n",
                      100 * share, (long long)s->agree, (long long)s->targets, s->kl, s->loss);
        tm_buf_printf(out, "  flips: %lld right in A and wrong in B, %lld the other way\n", (long long)s->to_wrong,
                      (long long)s->to_right);
        return;
    }
    tm_buf_printf(
        out, ", \"tokens\": {\"targets\": %lld, \"agree\": %lld, \"right_to_wrong\": %lld, \"wrong_to_right\": %lld",
        (long long)s->targets, (long long)s->agree, (long long)s->to_wrong, (long long)s->to_right);
    put_field(out, "agreement", share);
    put_field(out, "kl", s->kl);
    put_field(out, "loss", s->loss);
    tm_buf_char(out, '}');
}

/* Results of a run, out of its run.json. */
static tm_status put_run(tm_buf *out, const char *dir, bool json, tm_error *err)
{
    static const char *const keys[] = {"steps_done", "tokens", "trained_parameters", "seconds", "peak_bytes"};
    json_t *run = NULL, *e;
    size_t i;
    TM_TRY(tm_json_read_in(dir, "run.json", &run, err));
    const char *status = json_string_value(json_object_get(run, "status")), *name;
    tm_buf_text(out, json ? ", \"run\": {\"status\": " : "  run: ");
    if (json)
        tm_json_put_string(out, status ? status : "");
    else
        tm_buf_text(out, status ? status : "?");
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        double value = json_number_value(json_object_get(run, keys[k]));
        if (json)
            put_field(out, keys[k], value);
        else
            tm_buf_printf(out, ", %s %.10g", keys[k], value);
    }
    tm_buf_text(out, json ? ", \"evals\": {" : "\n");
    json_array_foreach(json_object_get(run, "evals"), i, e) {
        name = json_string_value(json_object_get(e, "name"));
        const char *metric = json_string_value(json_object_get(e, "metric"));
        double first = json_number_value(json_object_get(e, "first")),
               last = json_number_value(json_object_get(e, "last"));
        if (!json) {
            tm_buf_printf(out, "  %s %s: %.4f, from %.4f\n", name ? name : "?", metric ? metric : "?", last, first);
            continue;
        }
        tm_buf_text(out, i ? ", " : "");
        tm_json_put_string(out, name ? name : "");
        tm_buf_text(out, ": {\"metric\": ");
        tm_json_put_string(out, metric ? metric : "");
        put_field(out, "first", first);
        put_field(out, "last", last);
        tm_buf_char(out, '}');
    }
    tm_buf_text(out, json ? "}}" : "");
    json_decref(run);
    return TM_OK;
}

/* --- The command --- */

/* What is said of path i: its run, and (i > 0) how it differs from the first. */
static tm_status put_path(tm_buf *out, const tm_compare_request *r, size_t i, const tm_token_scores *scores,
                          bool *anything, tm_error *err)
{
    comparison c = {0};
    const char *path = r->paths[i];
    tm_status st = TM_OK;
    if (r->json) {
        tm_buf_text(out, i ? ",\n {\"path\": " : " {\"path\": ");
        tm_json_put_string(out, path);
    } else
        tm_buf_printf(out, "%s%c  %s\n", i ? "\n" : "", i < 26 ? 'A' + (char)i : '?', path);
    if (tm_dir_has(path, "run.json")) {
        TM_GO(put_run(out, path, r->json, err));
        *anything |= i > 0 && tm_dir_has(r->paths[0], "run.json");
    }
    if (i)
        TM_GO(compare_weights(&c, r->paths[0], path, err));
    if (c.kind) {
        (r->json ? put_weights_json : put_weights)(out, &c);
        *anything = true;
    }
    if (scores && i) {
        put_tokens(out, &scores[i], r->json);
        *anything = true;
    } else if (scores && !r->json)
        tm_buf_printf(out, "  loss %.4f over %lld targets\n", scores[0].loss, (long long)scores[0].targets);
    else if (scores)
        put_field(out, "loss", scores[0].loss);
    tm_buf_text(out, r->json ? "}" : "");
out:
    close_comparison(&c);
    return st;
}

tm_status tm_compare(const tm_compare_request *r, char **text, tm_error *err)
{
    tm_buf out = {0};
    tm_token_scores *scores = NULL;
    bool anything = false;
    tm_status st = TM_OK;
    *text = NULL;
    for (size_t i = 0; i < r->path_count; i++)
        if (!tm_dir_has(r->paths[i], "adapter_config.json") && !tm_dir_has(r->paths[i], "config.json") &&
            !tm_dir_has(r->paths[i], "run.json") && !tm_gguf_is(r->paths[i]))
            TM_GO(tm_fail(
                err, TM_INPUT,
                "%s: expected an adapter, model or run folder, or a GGUF file; found none of adapter_config.json, config.json, run.json",
                r->paths[i]));
    if (r->data) {
        TM_GO(TM_NEW(&scores, r->path_count, err));
        TM_GO(tm_compare_tokens(r, scores, err));
    }
    tm_buf_text(&out, r->json ? "[\n" : "");
    for (size_t i = 0; i < r->path_count; i++)
        TM_GO(put_path(&out, r, i, scores, &anything, err));
    tm_buf_text(&out, r->json ? "\n]\n" : "");
    if (!anything)
        TM_GO(tm_fail(err, TM_USAGE,
                      "%s and %s have no weights of one kind: an adapter and a model are compared with --data FILE",
                      r->paths[0], r->paths[1]));
    TM_GO(tm_buf_check(&out, err));
    *text = out.data;
    out = (tm_buf){0};
out:
    free(scores);
    tm_buf_deinit(&out);
    return st;
}
