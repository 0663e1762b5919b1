/* Gates of registers, an example: those of its data entry, unless a field of its row says otherwise.
 * docs/formats/registers.md. */
#include "train/trainer.h"

#include "base/buf.h"
#include "base/json.h"
#include "tune/registers.h"

#include <math.h>
#include <stdlib.h>

typedef struct filling {
    const tm_names *registers;
    const char *where;
    float *gates; /* [examples, K] */
} filling;

/* A row that says something says all: registers it does not name are off. */
static tm_status take_field(void *context, int64_t example, const json_t *value, tm_error *err)
{
    const filling *f = context;
    int64_t K = f->registers->count;
    float *gates = f->gates + example * K;
    const char *name, *text = json_string_value(value);
    const json_t *gate;
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
    if (!json_is_object(value))
        return tm_fail(err, TM_INPUT, "%s: the field of registers is neither a name nor an object of numbers", f->where);
    json_object_foreach((json_t *)value, name, gate) {
        char one[160];
        snprintf(one, sizeof one, "%.100s=%.9g", name, json_is_number(gate) ? json_number_value(gate) : NAN);
        TM_TRY(tm_registers_parse(f->registers, one, f->where, gates, err));
    }
    return TM_OK;
}

/* Examples of one source of a data set. */
static tm_status fill_source(const tm_trainer *t, const tm_dataset *data, int64_t source, const tm_data_entry *entry, float *gates, tm_error *err)
{
    const tm_names *registers = &t->tuning.registers;
    int64_t K = registers->count;
    char where[200];
    float own[K];
    memset(own, 0, sizeof own);
    snprintf(where, sizeof where, "registers of %.150s", entry->path);
    TM_TRY(tm_registers_gates(registers, &entry->registers, where, own, err));
    for (int64_t i = 0; i < tm_dataset_count(data); i++)
        if (tm_dataset_at(data, i)->source == source)
            memcpy(gates + i * K, own, sizeof own);
    filling f = {registers, where, gates};
    return entry->register_field ? tm_dataset_field(data, source, entry, entry->register_field, take_field, &f, err) : TM_OK;
}

static tm_status fill_set(const tm_trainer *t, const tm_dataset *data, const tm_data_entry *entry, float **out, tm_error *err)
{
    TM_TRY(TM_NEW(out, tm_dataset_count(data) * t->tuning.registers.count + 1, err));
    for (int64_t s = 0; s < tm_dataset_sources(data); s++)
        TM_TRY(fill_source(t, data, s, entry ? entry : &t->recipe->data[s], *out, err));
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
    for (int64_t i = 0; t->gates && i <= t->run->eval_count; i++)
        free(t->gates[i]);
    free(t->gates);
}

const float *tm_gates_of(const tm_trainer *t, int64_t set, int64_t example)
{
    return t->gates ? t->gates[set + 1] + example * t->tuning.registers.count : NULL;
}
