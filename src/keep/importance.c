/* Files of importances: see importance.h. */
#include "keep/importance.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const char format[] = "temper importances 1";

enum { FACTS = 13, FACT_BYTES = 160 };

typedef struct fact {
    const char *key;
    char text[FACT_BYTES];
} fact;

static void list_facts(const tm_importance_facts *f, fact out[FACTS])
{
    const struct {
        const char *key, *text;
    } texts[] = {{"format", format}, {"kind", f->kind}, {"labels", f->labels}, {"space", f->space}, {"training", f->training},
                 {"model_sha256", f->model.hex}, {"start_sha256", f->start.hex}, {"data_sha256", f->data.hex}};
    for (int i = 0; i < 8; i++) {
        out[i].key = texts[i].key;
        snprintf(out[i].text, FACT_BYTES, "%s", texts[i].text);
    }
    static const char *const numbers[] = {"samples", "seed", "gamma", "weight", "tasks"};
    for (int i = 0; i < 5; i++)
        out[8 + i].key = numbers[i];
    snprintf(out[8].text, FACT_BYTES, "%lld", (long long)f->samples);
    snprintf(out[9].text, FACT_BYTES, "%016llx", (unsigned long long)f->seed);
    snprintf(out[10].text, FACT_BYTES, "%.17g", f->gamma);
    snprintf(out[11].text, FACT_BYTES, "%.17g", f->weight);
    snprintf(out[12].text, FACT_BYTES, "%lld", (long long)f->tasks);
}

/* --- Reading --- */

static tm_status check_tensor(const char *path, const tm_st_tensor *t, double *sum, tm_error *err)
{
    if (t->dtype != TM_F32 || t->ndim < 1 || t->ndim > 2 || !t->data)
        return tm_fail(err, TM_INPUT, "%s: tensor %s is %s with %d dimensions, expected F32 with 1 or 2", path, t->name, tm_dtype_name(t->dtype), (int)t->ndim);
    const char *bytes = t->data; /* may be unaligned */
    for (int64_t i = 0; i < t->count; i++) {
        float value;
        memcpy(&value, bytes + 4 * i, 4);
        if (!(value >= 0) || isinf(value))
            return tm_fail(err, TM_INPUT, "%s: element %lld of tensor %s is %g; importances are finite and not negative", path, (long long)i, t->name, (double)value);
        *sum += value;
    }
    return TM_OK;
}

static tm_status check_file(const char *path, const tm_safetensors *file, tm_error *err)
{
    const char *kind = tm_safetensors_metadata(file, "kind"), *says = tm_safetensors_metadata(file, "format");
    if (!says || strcmp(says, format) != 0 || !kind || (strcmp(kind, "fisher") != 0 && strcmp(kind, "path") != 0))
        return tm_fail(err, TM_INPUT, "%s: this is no file of importances (metadata: format %s, kind %s; expected %s, fisher or path): temper fisher writes one",
                       path, says ? says : "none", kind ? kind : "none", format);
    double sum = 0, count = 0;
    for (int64_t i = 0; i < tm_safetensors_count(file); i++) {
        TM_TRY(check_tensor(path, tm_safetensors_at(file, i), &sum, err));
        count += (double)tm_safetensors_at(file, i)->count;
    }
    if (!(fabs(sum / count - 1) < 1e-3))
        return tm_fail(err, TM_INPUT, "%s: the mean of the importances is %g, expected 1: lambda would mean something else; divide them by their mean", path, sum / count);
    return TM_OK;
}

tm_status tm_importances_open(const char *path, tm_safetensors **out, tm_error *err)
{
    TM_TRY(tm_safetensors_open(path, out, err));
    tm_status st = check_file(path, *out, err);
    if (st != TM_OK) {
        tm_safetensors_close(*out);
        *out = NULL;
    }
    return st;
}

tm_status tm_importances_find(const tm_safetensors *file, const char *path, const char *name, int64_t rows, int64_t cols, const tm_st_tensor **out, tm_error *err)
{
    const tm_st_tensor *t = *out = tm_safetensors_find(file, name);
    if (!t)
        return tm_fail(err, TM_INPUT, "%s: importances of %s are missing; temper fisher with this recipe makes them", path, name);
    int64_t found = t->ndim == 2 ? t->shape[0] : 1;
    if (found != rows || t->shape[t->ndim - 1] != cols)
        return tm_fail(err, TM_INPUT, "%s: tensor %s is [%lld, %lld], the model has [%lld, %lld]: these are importances of another model", path, name,
                       (long long)found, (long long)t->shape[t->ndim - 1], (long long)rows, (long long)cols);
    return TM_OK;
}

tm_status tm_importances_past(const tm_safetensors *file, const char *path, double *weight, int64_t *tasks, tm_error *err)
{
    const char *w = tm_safetensors_metadata(file, "weight"), *n = tm_safetensors_metadata(file, "tasks");
    char *end_w = NULL, *end_n = NULL;
    *weight = w ? strtod(w, &end_w) : 0;
    *tasks = n ? strtoll(n, &end_n, 10) : 0;
    if (!w || !n || *end_w || *end_n || !(*weight > 0) || isinf(*weight) || *tasks < 1 || *tasks > INT32_MAX)
        return tm_fail(err, TM_INPUT, "%s: metadata: weight is %s and tasks %s, expected a positive number and a whole number from 1", path, w ? w : "missing", n ? n : "missing");
    return TM_OK;
}

bool tm_importances_match(const tm_safetensors *file, const tm_importance_facts *facts)
{
    fact list[FACTS];
    list_facts(facts, list);
    for (int i = 0; i < FACTS; i++) {
        const char *found = tm_safetensors_metadata(file, list[i].key);
        if (!found || strcmp(found, list[i].text) != 0)
            return false;
    }
    return true;
}

/* --- Writing --- */

tm_status tm_importances_write(const char *path, const tm_st_tensor *tensors, int64_t count, const tm_importance_facts *facts, tm_error *err)
{
    fact list[FACTS];
    const char *metadata[2 * FACTS + 1] = {0};
    list_facts(facts, list);
    for (int i = 0; i < FACTS; i++) {
        metadata[2 * i] = list[i].key;
        metadata[2 * i + 1] = list[i].text;
    }
    return tm_safetensors_write(path, tensors, count, metadata, err);
}
