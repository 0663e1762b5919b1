/* Gates of registers, an example: those of its data entry, unless a field of its row says otherwise, for the
 * whole row or for spans of its tokens. docs/formats/registers.md. */
#include "train/trainer.h"

#include "base/buf.h"
#include "base/json.h"
#include "tune/registers.h"
#include "tune/router.h"

#include <math.h>
#include <stdlib.h>

struct tm_gate_set {
    float *whole;    /* [examples, K] */
    float **by_token; /* [examples] of [n, K]; NULL: the whole row has the same */
    int64_t examples;
};

typedef struct filling {
    const tm_names *registers;
    const char *where;
    const tm_dataset *data;
    struct tm_gate_set *set;
} filling;

static tm_status set_numbers(const filling *f, const json_t *object, float *gates, tm_error *err)
{
    const char *name;
    const json_t *gate;
    json_object_foreach((json_t *)object, name, gate) {
        char one[160];
        if (strcmp(name, "from") == 0 || strcmp(name, "to") == 0)
            continue;
        snprintf(one, sizeof one, "%.100s=%.9g", name, json_is_number(gate) ? json_number_value(gate) : NAN);
        TM_TRY(tm_registers_parse(f->registers, one, f->where, gates, err));
    }
    return TM_OK;
}

/* [{"from": 3, "to": 9, NAME: NUMBER, ...}, ...]: tokens from .. to - 1 of the example; others are off. */
static tm_status take_spans(const filling *f, int64_t example, const json_t *list, tm_error *err)
{
    int64_t K = f->registers->count, n = tm_dataset_at(f->data, example)->n;
    float **gates = &f->set->by_token[example];
    size_t i;
    const json_t *span;
    TM_TRY(TM_NEW(gates, n * K, err));
    json_array_foreach((json_t *)list, i, span) {
        const json_t *from = json_object_get(span, "from"), *to = json_object_get(span, "to");
        if (!json_is_integer(from) || !json_is_integer(to) || json_integer_value(from) < 0 || json_integer_value(to) < json_integer_value(from))
            return tm_fail(err, TM_INPUT, "%s: span %zu: expected whole numbers 0 <= from <= to", f->where, i);
        for (int64_t t = json_integer_value(from); t < json_integer_value(to) && t < n; t++) /* a row that was cut has fewer tokens */
            TM_TRY(set_numbers(f, span, *gates + t * K, err));
    }
    return TM_OK;
}

/* A row that says something says all: registers it does not name are off. */
static tm_status take_field(void *context, int64_t example, const json_t *value, tm_error *err)
{
    const filling *f = context;
    int64_t K = f->registers->count;
    float *gates = f->set->whole + example * K;
    const char *text = json_string_value(value);
    if (!value || json_is_null(value))
        return TM_OK;
    memset(gates, 0, (size_t)K * sizeof *gates);
    if (text && !strchr(text, '=')) {
        char one[128];
        snprintf(one, sizeof one, "%.100s=1", text);
        return tm_registers_parse(f->registers, one, f->where, gates, err);
    }
    if (text)
        return tm_registers_parse(f->registers, text, f->where, gates, err);
    if (json_is_array(value))
        return take_spans(f, example, value, err);
    if (!json_is_object(value))
        return tm_fail(err, TM_INPUT, "%s: the field of registers is neither a name, nor an object of numbers, nor a list of spans", f->where);
    return set_numbers(f, value, gates, err);
}

/* Examples of one source of a data set. */
static tm_status fill_source(const tm_trainer *t, const tm_dataset *data, int64_t source, const tm_data_entry *entry, struct tm_gate_set *set, tm_error *err)
{
    const tm_names *registers = &t->tuning.registers;
    int64_t K = registers->count;
    char where[200];
    float own[K];
    memset(own, 0, sizeof own);
    snprintf(where, sizeof where, "registers of %.150s", entry->path ? entry->path : "the rehearsal");
    TM_TRY(tm_registers_gates(registers, &entry->registers, where, own, err));
    for (int64_t i = 0; i < tm_dataset_count(data); i++)
        if (tm_dataset_at(data, i)->source == source)
            memcpy(set->whole + i * K, own, sizeof own);
    filling f = {registers, where, data, set};
    return entry->register_field ? tm_dataset_field(data, source, entry, entry->register_field, take_field, &f, err) : TM_OK;
}

static tm_status fill_set(const tm_trainer *t, const tm_dataset *data, const tm_data_entry *entry, struct tm_gate_set *out, tm_error *err)
{
    TM_TRY(TM_NEW(&out->whole, tm_dataset_count(data) * t->tuning.registers.count + 1, err));
    TM_TRY(TM_NEW(&out->by_token, tm_dataset_count(data) + 1, err));
    out->examples = tm_dataset_count(data);
    static const tm_data_entry rehearsal = {.weight = 1}; /* says nothing: the base speaks */
    for (int64_t s = 0; s < tm_dataset_sources(data); s++)
        TM_TRY(fill_source(t, data, s, entry ? entry : s < t->recipe->data_count ? &t->recipe->data[s] : &rehearsal, out, err));
    return TM_OK;
}

static bool says_something(const tm_data_entry *e) { return e->registers.keys.count || e->register_field; }

tm_status tm_gates_set(tm_trainer *t, tm_error *err)
{
    const tm_run *run = t->run;
    if (!t->tuning.registers.count) {
        for (int64_t i = 0; i < t->recipe->data_count; i++)
            if (says_something(&t->recipe->data[i]))
                return tm_fail(err, TM_RECIPE, "data.%lld: gates of registers, but lora.registers names none", (long long)i);
        return TM_OK;
    }
    TM_TRY(TM_NEW(&t->gates, run->eval_count + 1, err));
    if (run->data)
        TM_TRY(fill_set(t, run->data, NULL, &t->gates[0], err));
    for (int64_t i = 0; i < run->eval_count; i++) {
        const tm_data_entry *entry = &run->evals[i].entry->data; /* rows held out of the data have theirs */
        TM_TRY(fill_set(t, run->evals[i].data, entry->path ? entry : NULL, &t->gates[i + 1], err));
    }
    return TM_OK;
}

void tm_gates_drop(tm_trainer *t)
{
    for (int64_t i = 0; t->gates && i <= t->run->eval_count; i++) {
        struct tm_gate_set *set = &t->gates[i];
        for (int64_t k = 0; set->by_token && k < set->examples; k++)
            free(set->by_token[k]);
        free(set->by_token);
        free(set->whole);
    }
    free(t->gates);
}

void tm_gates_give(const tm_trainer *t, int64_t set, int64_t example, tm_batch_item *item)
{
    if (!t->gates)
        return;
    const struct tm_gate_set *s = &t->gates[set + 1];
    item->gates_by_token = s->by_token[example] != NULL;
    item->gates = item->gates_by_token ? s->by_token[example] : s->whole + example * t->tuning.registers.count;
}

/* --- The router --- */

enum { ROUTED = 4096 }; /* examples that it learns from, evenly over the data */

tm_status tm_prompt_state(tm_trainer *t, const tm_example *e, void *raw, float *rows, float *out, tm_error *err)
{
    tm_model *m = &t->model;
    int64_t C = m->config.width, prompt = e->n;
    for (int32_t i = e->n - 1; e->weight && i > 0; i--)
        prompt = e->weight[i] > 0 ? i : prompt;
    tm_batch_item item = {.ids = e->ids, .n = (int32_t)prompt, .scale = 1};
    tm_batch_fill(&t->batch, &item, 1);
    tm_model_forward(m, &t->batch);
    m->device->calls->download(m->device, raw, m->hidden.data, tm_dtype_bytes(m->hidden.dtype, prompt * C));
    tm_dtype_convert(rows, TM_F32, raw, m->hidden.dtype, prompt * C);
    for (int64_t c = 0; c < C; c++) {
        double sum = 0;
        for (int64_t i = prompt > 1; i < prompt; i++) /* the first token's state says nothing of the text */
            sum += rows[i * C + c];
        out[c] = (float)(sum / (double)prompt);
    }
    return m->device->calls->sync(m->device, err);
}

tm_status tm_gates_route(tm_trainer *t, const char *dir, tm_error *err)
{
    const tm_dataset *data = t->run->data;
    int64_t C = t->model.config.width, K = t->tuning.registers.count, all = tm_dataset_count(data), count = all < ROUTED ? all : ROUTED, used = 0;
    float *h = NULL, *gates = NULL, *rows = NULL;
    void *raw = NULL;
    tm_router router = {0};
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&h, count * C, err));
    TM_GO(TM_NEW(&gates, count * K, err));
    TM_GO(TM_NEW(&rows, t->batch.max_tokens * C, err));
    TM_GO(tm_alloc(&raw, (size_t)(t->batch.max_tokens * C), 8, err));
    t->model.linear.base_only = true;
    t->model.linear.step = NULL;
    for (int64_t i = 0; i < count && st == TM_OK; i++) {
        int64_t example = i * all / count;
        if (t->gates[0].by_token[example])
            continue;
        memcpy(gates + used * K, t->gates[0].whole + example * K, (size_t)K * sizeof *gates);
        st = tm_prompt_state(t, tm_dataset_at(data, example), raw, rows, h + used++ * C, err);
    }
    t->model.linear.base_only = false;
    TM_GO(st);
    TM_GO(tm_router_fit(h, gates, used, C, K, 1e-2, &router, err));
    TM_GO(tm_router_write(&router, dir, err));
out:
    tm_router_deinit(&router);
    free(h);
    free(gates);
    free(rows);
    free(raw);
    return st;
}
