/* Reading an adapter as numbers: see adapter_file.h. Keys are those of contract "PEFT adapter layout". */
#include "api/adapter_file.h"

#include "base/file.h"
#include "io/adapter_kind.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char key_prefix[] = "base_model.model.";

typedef enum part { PART_A, PART_B, PART_EMBEDDING_A, PART_EMBEDDING_B, PART_MAGNITUDE, PART_NONE } part;

static const struct {
    const char *suffix;
    part part;
} suffixes[] = {
    {".lora_A.weight", PART_A},
    {".lora_B.weight", PART_B},
    {".lora_embedding_A", PART_EMBEDDING_A},
    {".lora_embedding_B", PART_EMBEDDING_B},
    {".lora_magnitude_vector", PART_MAGNITUDE},
    {".lora_magnitude_vector.weight", PART_MAGNITUDE},
};

/* Which part of which module a key is; *size: bytes of the module's name. */
static part part_of(const char *name, size_t *size)
{
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof suffixes / sizeof suffixes[0]; i++) {
        size_t m = strlen(suffixes[i].suffix);
        if (n > m && strcmp(name + n - m, suffixes[i].suffix) == 0) {
            *size = n - m;
            return suffixes[i].part;
        }
    }
    return PART_NONE;
}

static bool is_float(tm_dtype dtype)
{
    return dtype == TM_F64 || dtype == TM_F32 || dtype == TM_F16 || dtype == TM_BF16;
}

/* The tensor as floats; transposed when asked for. */
static tm_status read_floats(const tm_st_tensor *t, bool transpose, float **out, tm_error *err)
{
    if (!is_float(t->dtype))
        return tm_fail(err, TM_INPUT, "tensor %s is of type %s, expected a float type", t->name,
                       tm_dtype_name(t->dtype));
    float *value;
    TM_TRY(TM_NEW(out, t->count, err));
    tm_dtype_convert(*out, TM_F32, t->data, t->dtype, t->count);
    if (!transpose)
        return TM_OK;
    TM_TRY(TM_NEW(&value, t->count, err));
    int64_t rows = t->shape[0], cols = t->shape[1];
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++)
            value[k * rows + i] = (*out)[i * cols + k];
    free(*out);
    *out = value;
    return TM_OK;
}

static tm_status module_named(tm_adapter_file *f, const char *name, size_t size, tm_adapter_module **out, tm_error *err)
{
    /* Keys come in order of name, so the parts of a module stand together but for other modules' names
     * that begin alike. */
    for (int64_t i = f->modules - 1; i >= 0; i--)
        if (strlen(f->module[i].name) == size && memcmp(f->module[i].name, name, size) == 0) {
            *out = &f->module[i];
            return TM_OK;
        }
    TM_TRY(TM_GROW(&f->module, &f->module_capacity, f->modules + 1, err));
    *out = &f->module[f->modules];
    **out = (tm_adapter_module){.name = strndup(name, size)};
    f->modules++;
    return (*out)->name ? TM_OK : tm_fail(err, TM_NO_MEMORY, "out of memory for an adapter's names");
}

/* A weight stored [in, out] (fan_in_fan_out, embeddings) changes by (s B A)^T = s A^T B^T. */
static tm_status take_part(tm_adapter_file *f, part what, const char *module, size_t size, const tm_st_tensor *t,
                           tm_error *err)
{
    tm_adapter_module *m;
    TM_TRY(module_named(f, module, size, &m, err));
    bool is_a = what == PART_A || what == PART_EMBEDDING_A;
    bool transposed =
        what == PART_EMBEDDING_A || what == PART_EMBEDDING_B || (what != PART_MAGNITUDE && f->config.fan_in_fan_out);
    if (t->ndim != (what == PART_MAGNITUDE ? 1 : 2) || t->count == 0)
        return tm_fail(err, TM_INPUT, "tensor %s has %d dimensions and %lld elements", t->name, t->ndim,
                       (long long)t->count);
    if (what == PART_MAGNITUDE ? m->magnitude != NULL : is_a != transposed ? m->a != NULL : m->b != NULL)
        return tm_fail(err, TM_INPUT, "tensor %s: the module has two of its kind", t->name);
    if (what == PART_MAGNITUDE) {
        if (f->config.fan_in_fan_out)
            return tm_fail(err, TM_UNSUPPORTED, "tensor %s: DoRA with fan_in_fan_out is not supported", t->name);
        m->delta.out = m->delta.out ? m->delta.out : t->shape[0];
        return m->delta.out == t->shape[0] ? read_floats(t, false, &m->magnitude, err)
                                           : tm_fail(err, TM_INPUT, "tensor %s has %lld elements, lora_B has %lld rows",
                                                     t->name, (long long)t->shape[0], (long long)m->delta.out);
    }
    int64_t r = is_a ? t->shape[0] : t->shape[1], side = is_a ? t->shape[1] : t->shape[0];
    if (m->delta.r && m->delta.r != r)
        return tm_fail(err, TM_INPUT, "tensor %s has rank %lld, the other matrix of the module has %lld", t->name,
                       (long long)r, (long long)m->delta.r);
    m->delta.r = r;
    bool as_a = is_a != transposed;
    *(as_a ? &m->delta.in : &m->delta.out) = side;
    return read_floats(t, transposed, as_a ? &m->a : &m->b, err);
}

static tm_status take_saved(tm_adapter_file *f, const char *name, const tm_st_tensor *t, tm_error *err)
{
    static const char base[] = ".base_layer.";
    if (!is_float(t->dtype))
        return tm_fail(err, TM_INPUT, "tensor %s is of type %s, expected a float type", t->name,
                       tm_dtype_name(t->dtype));
    if (strstr(name, ".lora_"))
        return tm_fail(err, TM_INPUT, "tensor %s: its name is none of a LoRA adapter", t->name);
    TM_TRY(TM_GROW(&f->saved, &f->saved_capacity, f->saveds + 1, err));
    char *copy = tm_strdup(name, err), *at = copy ? strstr(copy, base) : NULL;
    if (!copy)
        return TM_NO_MEMORY;
    if (at) /* PEFT keeps an adapted module's own bias one level down */
        memmove(at + 1, at + sizeof base - 1, strlen(at + sizeof base - 1) + 1);
    f->saved[f->saveds++] = (tm_adapter_saved){copy, t};
    return TM_OK;
}

static tm_status settle_module(const tm_adapter_file *f, tm_adapter_module *m, tm_error *err)
{
    const tm_adapter_config *c = &f->config;
    double r, alpha;
    if (!m->a || !m->b)
        return tm_fail(err, TM_INPUT, "module %s: lora_A and lora_B are expected, one is missing", m->name);
    if (c->use_dora != (m->magnitude != NULL))
        return tm_fail(err, TM_INPUT, "module %s: use_dora is %s, but lora_magnitude_vector is %s", m->name,
                       c->use_dora ? "true" : "false", m->magnitude ? "there" : "missing");
    TM_TRY(tm_adapter_pattern(c->rank_pattern, c->rank_patterns, m->name, (double)c->r, &r, err));
    TM_TRY(tm_adapter_pattern(c->alpha_pattern, c->alpha_patterns, m->name, c->alpha, &alpha, err));
    if (r != (double)m->delta.r)
        return tm_fail(err, TM_INPUT, "module %s has rank %lld, adapter_config.json says %g", m->name,
                       (long long)m->delta.r, r);
    m->delta.a = m->a;
    m->delta.b = m->b;
    m->delta.scale = c->use_rslora ? alpha / sqrt(r) : alpha / r;
    return TM_OK;
}

static tm_status read_tensors(tm_adapter_file *f, tm_error *err)
{
    for (int64_t i = 0; i < tm_safetensors_count(f->file); i++) {
        const tm_st_tensor *t = tm_safetensors_at(f->file, i);
        size_t prefix = sizeof key_prefix - 1, size;
        if (strncmp(t->name, key_prefix, prefix) != 0)
            return tm_fail(err, TM_INPUT, "tensor %s: expected a name that begins with %s", t->name, key_prefix);
        part what = part_of(t->name + prefix, &size);
        TM_TRY(what == PART_NONE ? take_saved(f, t->name + prefix, t, err)
                                 : take_part(f, what, t->name + prefix, size, t, err));
    }
    for (int64_t i = 0; i < f->modules; i++)
        TM_TRY(settle_module(f, &f->module[i], err));
    return f->modules || f->saveds ? TM_OK : tm_fail(err, TM_INPUT, "the file has no tensors");
}

/* Why an adapter cannot become part of the base's matrices, nor be compared as changes of them. */
static const char *no_matrices(tm_adapter_kind kind)
{
    switch (kind) {
    case TM_ADAPTER_PROMPT: return "it changes no weight of the base, so there is nothing to merge or to compare with one";
    case TM_ADAPTER_HOULSBY: return "it adds layers that a folder of the base's family has no place for, so it cannot be merged";
    case TM_ADAPTER_BITFIT: return "the base's family has no biases in transformers, so it cannot be merged; use it as --adapter";
    default: return "it depends on gates; merge one of its registers, at a scale that is its gate: --adapter DIR/NAME:GATE";
    }
}

tm_status tm_adapter_file_open(const char *dir, tm_adapter_file *out, tm_error *err)
{
    *out = (tm_adapter_file){0};
    tm_status st = TM_OK;
    tm_adapter_kind kind;
    TM_TRY(tm_adapter_kind_of(dir, &kind, err));
    if (kind != TM_ADAPTER_LORA)
        return tm_fail(err, TM_UNSUPPORTED, "%s: %s: %s", dir, tm_adapter_kind_name(kind), no_matrices(kind));
    char *path = tm_path_join(dir, "adapter_model.safetensors", err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(tm_adapter_config_read(dir, &out->config, err));
    TM_GO(tm_safetensors_open(path, &out->file, err));
    st = read_tensors(out, err);
    if (st != TM_OK)
        tm_fail_prefix(err, st, "%s", path);
out:
    free(path);
    if (st != TM_OK)
        tm_adapter_file_close(out);
    return st;
}

void tm_adapter_file_close(tm_adapter_file *f)
{
    for (int64_t i = 0; i < f->modules; i++) {
        free(f->module[i].name);
        free(f->module[i].a);
        free(f->module[i].b);
        free(f->module[i].magnitude);
    }
    for (int64_t i = 0; i < f->saveds; i++)
        free(f->saved[i].name);
    free(f->module);
    free(f->saved);
    tm_safetensors_close(f->file);
    tm_adapter_config_deinit(&f->config);
    *f = (tm_adapter_file){0};
}

tm_adapter_module *tm_adapter_file_find(const tm_adapter_file *f, const char *module)
{
    for (int64_t i = 0; i < f->modules; i++)
        if (strcmp(f->module[i].name, module) == 0)
            return &f->module[i];
    return NULL;
}
