/* An adapter as a GGUF LoRA: contract "GGUF adapter layout". The loader computes alpha / rank * B A with one
 * alpha for the file, so what a module's scale has beyond that goes into its B; rows of B are permuted where
 * the architecture's rows of W are. */
#include "api/adapter_file.h"
#include "api/export.h"

#include "io/hf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct pair { /* of a module: A [r, in], B [out, r], as llama.cpp multiplies them */
    const tm_adapter_module *module;
    tm_gguf_place place;
    char name[96];
    int64_t in, out, r;
    double factor; /* on B */
} pair;

typedef struct exporting {
    const tm_gguf_family *family;
    tm_adapter_file file;
    tm_model_config config;
    tm_gguf_writer writer;
    pair *pair;
    int64_t pairs;
    double alpha;
    bool transposed; /* fan_in_fan_out: the file's delta is of W as it is stored, [in, out] */
} exporting;

static float value_a(const exporting *e, const pair *p, int64_t r, int64_t column)
{
    return e->transposed ? p->module->b[column * p->r + r] : p->module->a[r * p->in + column];
}

static float value_b(const exporting *e, const pair *p, int64_t row, int64_t r)
{
    tm_gguf_change change = p->place.row->change;
    if (change == TM_GGUF_PERMUTED_Q || change == TM_GGUF_PERMUTED_K)
        row = tm_gguf_permuted_row(row, e->config.head_size);
    float b = e->transposed ? p->module->a[r * p->out + row] : p->module->b[row * p->r + r];
    return (float)(b * p->factor);
}

static tm_status fill(void *context, int64_t tensor, int64_t row, int64_t rows, void *out, tm_error *err)
{
    const exporting *e = context;
    const pair *p = &e->pair[tensor / 2];
    const tm_gguf_tensor *to = &e->writer.tensor[tensor];
    int64_t cols = to->ne[0];
    float *x;
    TM_TRY(TM_NEW(&x, rows * cols, err));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t c = 0; c < cols; c++)
            x[i * cols + c] = tensor % 2 ? value_b(e, p, row + i, c) : value_a(e, p, row + i, c);
    tm_ggml_pack(to->type, x, out, rows * cols);
    free(x);
    return TM_OK;
}

static tm_status list_modules(exporting *e, const char *model, const char *adapter, tm_error *err)
{
    const tm_adapter_file *f = &e->file;
    char full[600];
    if (f->config.use_dora)
        return tm_fail(err, TM_UNSUPPORTED, "%s: DoRA cannot be said in a GGUF adapter; export the model with the adapter in it", adapter);
    if (f->saveds)
        return tm_fail(err, TM_UNSUPPORTED, "%s: it holds the whole tensor %s, which a GGUF adapter cannot; export the model with the adapter in it",
                       adapter, f->saved[0].name);
    TM_TRY(TM_NEW(&e->pair, f->modules, err));
    for (int64_t i = 0; i < f->modules; i++) {
        pair *p = &e->pair[e->pairs++];
        p->module = &f->module[i];
        snprintf(full, sizeof full, "%s.weight", p->module->name);
        if (!tm_gguf_place_hf(e->family, full, &p->place) || !strstr(p->place.row->hf, "%d"))
            return tm_fail(err, TM_UNSUPPORTED, "%s: module %s: a GGUF adapter of %s is for linear modules inside layers; export the model with the adapter in it",
                           adapter, p->module->name, model);
        p->place.suffix = ".weight";
        if (!tm_gguf_spell(p->place.row->gguf, &p->place, p->name, sizeof p->name))
            return tm_fail(err, TM_UNSUPPORTED, "%s: module %s has too long a name", adapter, p->module->name);
        p->in = e->transposed ? p->module->delta.out : p->module->delta.in;
        p->out = e->transposed ? p->module->delta.in : p->module->delta.out;
        p->r = p->module->delta.r;
        p->factor = (double)p->module->delta.scale / (e->alpha / (double)p->r);
    }
    return TM_OK;
}

static int by_place(const void *a, const void *b)
{
    const pair *x = a, *y = b;
    if (x->place.layer != y->place.layer)
        return x->place.layer < y->place.layer ? -1 : 1;
    return (x->place.row > y->place.row) - (x->place.row < y->place.row);
}

static tm_status add_tensors(exporting *e, tm_ggml type, tm_error *err)
{
    for (int64_t i = 0; i < e->pairs; i++) {
        const pair *p = &e->pair[i];
        char name[128];
        snprintf(name, sizeof name, "%s.lora_a", p->name);
        TM_TRY(tm_gguf_add_tensor(&e->writer, name, type, 2, (int64_t[]){p->in, p->r}, err));
        snprintf(name, sizeof name, "%s.lora_b", p->name);
        TM_TRY(tm_gguf_add_tensor(&e->writer, name, type, 2, (int64_t[]){p->r, p->out}, err));
    }
    return TM_OK;
}

static tm_status floats_of(const tm_gguf *g, const char *module, const char *end, int64_t count, float **out, tm_error *err)
{
    char name[128];
    snprintf(name, sizeof name, "%s%s", module, end);
    const tm_gguf_tensor *t = tm_gguf_tensor_find(g, name);
    if (!t || t->count != count)
        return tm_fail(err, TM_FAILED, "%s: tensor %s was not written as it should be", tm_gguf_name(g), name);
    TM_TRY(TM_NEW(out, count, err));
    tm_ggml_unpack(t->type, t->data, *out, count);
    return TM_OK;
}

/* Adds ||dW of the file - dW of the adapter||^2 and ||dW||^2 of a module. */
static tm_status compare_module(const exporting *e, const tm_gguf *g, const pair *p, double sum[2], tm_error *err)
{
    float *a = NULL, *b = NULL;
    tm_status st;
    TM_GO(floats_of(g, p->name, ".lora_a", p->r * p->in, &a, err));
    TM_GO(floats_of(g, p->name, ".lora_b", p->out * p->r, &b, err));
    for (int64_t row = 0; row < p->out; row++)
        for (int64_t c = 0; c < p->in; c++) {
            double wrote = 0, meant = 0;
            for (int64_t k = 0; k < p->r; k++) {
                wrote += (double)b[row * p->r + k] * a[k * p->in + c];
                meant += (double)value_b(e, p, row, k) * value_a(e, p, k, c);
            }
            wrote *= e->alpha / (double)p->r;
            meant *= e->alpha / (double)p->r;
            sum[0] += (wrote - meant) * (wrote - meant);
            sum[1] += meant * meant;
        }
out:
    free(a);
    free(b);
    return st;
}

static tm_status read_back(const exporting *e, const char *path, tm_buf *text, tm_error *err)
{
    tm_gguf *g;
    double sum[2] = {0, 0};
    TM_TRY(tm_gguf_open(path, &g, err));
    tm_status st = TM_OK;
    for (int64_t i = 0; i < e->pairs && st == TM_OK; i++)
        st = compare_module(e, g, &e->pair[i], sum, err);
    tm_gguf_close(g);
    if (st == TM_OK)
        tm_buf_printf(text, "%lld modules; read back: dW differs by %.2g of its norm\n", (long long)e->pairs,
                      sum[1] > 0 ? sqrt(sum[0] / sum[1]) : sqrt(sum[0]));
    return st;
}

tm_status tm_export_adapter(const char *model, const char *adapter, const char *path, tm_ggml type, tm_buf *text, tm_error *err)
{
    exporting e = {0};
    tm_status st;
    TM_GO(tm_model_config_read(model, &e.config, err));
    e.family = tm_gguf_family_of(e.config.family->model_type);
    if (!e.family)
        TM_GO(tm_fail(err, TM_UNSUPPORTED, "%s: models of type %s cannot be written as GGUF yet", model, e.config.family->model_type));
    TM_GO(tm_adapter_file_open(adapter, &e.file, err));
    e.alpha = e.file.config.alpha != 0 ? e.file.config.alpha : 1; /* the loader takes 0 for "no scaling" */
    e.transposed = e.file.config.fan_in_fan_out;
    TM_GO(list_modules(&e, model, adapter, err));
    qsort(e.pair, (size_t)e.pairs, sizeof *e.pair, by_place);
    tm_gguf_put_word(&e.writer, "general.architecture", e.family->architecture);
    tm_gguf_put_word(&e.writer, "general.type", "adapter");
    tm_gguf_put_u32(&e.writer, "general.file_type", type == TM_GGML_F32 ? 0 : type == TM_GGML_F16 ? 1 : 32);
    tm_gguf_put_word(&e.writer, "adapter.type", "lora");
    tm_gguf_put_f32(&e.writer, "adapter.lora.alpha", (float)e.alpha);
    TM_GO(add_tensors(&e, type, err));
    TM_GO(tm_gguf_write(&e.writer, path, fill, &e, err));
    st = read_back(&e, path, text, err);
out:
    tm_gguf_writer_deinit(&e.writer);
    tm_adapter_file_close(&e.file);
    if (e.config.family)
        tm_model_config_deinit(&e.config);
    free(e.pair);
    return st;
}
