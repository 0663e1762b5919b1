/* temper export: a model, with an adapter in it or not, as a GGUF file.
 *
 * 1. Names, layouts and metadata are those of llama.cpp's convert_hf_to_gguf; which tensor gets which type,
 *    those of llama-quantize.
 * 2. An adapter is merged first, in a folder aside, by temper merge.
 * 3. The file is written beside its place, opened again as a model, and its logits are held against the
 *    source's (adapter on); only then it is moved into place. */
#include "api/export.h"

#include "api/inference.h"
#include "api/logits.h"
#include "base/file.h"
#include "base/pool.h"
#include "io/hf.h"
#include "text/tokenizer_gguf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct item { /* a tensor of the file */
    const tm_st_tensor *from; /* NULL: rope_freqs */
    tm_gguf_place place;
    char name[96];
} item;

typedef struct exporting {
    const tm_export_request *request;
    const char *model;          /* what is written: the model, or the merged folder */
    char *merged, *aside;       /* to be removed; NULL: none */
    const struct file_type *type;
    const tm_gguf_family *family;
    tm_model_config config;
    bool known;
    json_t *json;               /* config.json */
    tm_safetensors *file;
    item *item;                 /* [items] in the order of the file */
    int64_t items;
    tm_gguf_writer writer;
    tm_pool *pool;
    float *rope;                /* [head_size / 2] factors of llama3's scaling; NULL: none */
    /* the tensor that is being written */
    int64_t current;
    void *buffer;
    const void *values;
    float *scratch;             /* [threads, columns] */
    int64_t look;               /* tokens whose logits are compared */
    tm_buf text;
} exporting;

/* ---- types ---- */

typedef struct file_type {
    const char *name;
    tm_ggml matrix;
    uint32_t number; /* general.file_type */
    bool mixed;
    double bound;    /* of the largest KL against the source, nats; 0: none, it is only said */
} file_type;

/* A 32-bit file computes what its source does; 16 bits are told from damage by a wide margin. */
static const file_type file_types[] = {
    {"f32", TM_GGML_F32, 0, false, 1e-6},  {"f16", TM_GGML_F16, 1, false, 1e-2}, {"bf16", TM_GGML_BF16, 32, false, 1e-1},
    {"q8_0", TM_GGML_Q8_0, 7, false, 0},   {"q4_k_m", TM_GGML_Q4_K, 15, true, 0},
};

static tm_status find_type(const char *name, const file_type **out, tm_error *err)
{
    for (size_t i = 0; i < sizeof file_types / sizeof file_types[0]; i++)
        if (strcasecmp(file_types[i].name, name) == 0) {
            *out = &file_types[i];
            return TM_OK;
        }
    return tm_fail(err, TM_USAGE, "--type: found '%s', expected f32, f16, bf16, q8_0 or q4_k_m", name);
}

/* What a row of so many elements can be packed as. */
static tm_ggml fitting(tm_ggml type, int64_t row)
{
    if (row % tm_ggml_type_of(type)->block == 0)
        return type;
    if (type == TM_GGML_Q4_K)
        type = TM_GGML_Q5_0;
    else if (type == TM_GGML_Q5_K)
        type = TM_GGML_Q5_1;
    else if (type == TM_GGML_Q6_K)
        type = TM_GGML_Q8_0;
    return row % tm_ggml_type_of(type)->block == 0 ? type : TM_GGML_F16;
}

/* The first and last eighth of the layers and every third between. */
static bool more_bits(int64_t layer, int64_t layers)
{
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

static bool begins(const char *name, const char *word) { return strncmp(name, word, strlen(word)) == 0; }

static tm_ggml mixed_type(const exporting *e, const item *t, int64_t row)
{
    const char *name = t->place.row->gguf;
    bool tied = e->config.tied;
    if (strcmp(name, "output") == 0 || (tied && strcmp(name, "token_embd") == 0))
        return row % 256 ? TM_GGML_Q8_0 : TM_GGML_Q6_K;
    if (strcmp(name, "blk.%d.attn_v") == 0 || strcmp(name, "blk.%d.attn_qkv") == 0) {
        /* 70B models share a v among eight heads: it costs little there. */
        bool shared = e->config.layers == 80 && (strcmp(e->family->architecture, "qwen2") == 0 ||
                                                 (strcmp(e->family->architecture, "llama") == 0 && e->config.heads != e->config.kv_heads));
        return more_bits(t->place.layer, e->config.layers) ? TM_GGML_Q6_K : shared ? TM_GGML_Q5_K : TM_GGML_Q4_K;
    }
    if (strcmp(name, "blk.%d.ffn_down") == 0)
        return more_bits(t->place.layer, e->config.layers) ? TM_GGML_Q6_K : TM_GGML_Q4_K;
    return TM_GGML_Q4_K;
}

static tm_ggml type_of(const exporting *e, const item *t, int64_t row)
{
    size_t n = strlen(t->name), m = strlen("_norm.weight");
    bool norm = n > m && strcmp(t->name + n - m, "_norm.weight") == 0;
    if (!t->from || t->from->ndim < 2 || norm || strcmp(t->place.suffix, ".weight") != 0 || begins(t->name, "position_embd"))
        return TM_GGML_F32;
    return fitting(e->type->mixed ? mixed_type(e, t, row) : e->type->matrix, row);
}

/* ---- tensors ---- */

static int by_place(const void *a, const void *b)
{
    const item *x = a, *y = b;
    if (x->place.layer != y->place.layer)
        return x->place.layer < y->place.layer ? -1 : 1;
    if (x->place.row != y->place.row)
        return x->place.row < y->place.row ? -1 : 1;
    return strcmp(y->place.suffix, x->place.suffix); /* .weight before .bias */
}

static bool harmless(const exporting *e, const char *name)
{
    size_t n = strlen(name);
    static const char *const ends[] = {".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"};
    for (size_t i = 0; i < 3; i++) {
        size_t m = strlen(ends[i]);
        if (n > m && strcmp(name + n - m, ends[i]) == 0)
            return true;
    }
    return e->config.tied && begins(name, e->config.family->head);
}

/* Also under the names that files give tensors of the same model. */
static bool place(const exporting *e, const char *name, tm_gguf_place *out)
{
    const tm_family *family = e->config.family;
    size_t n = family->prefix ? strlen(family->prefix) : 0;
    if (tm_gguf_place_hf(e->family, name, out))
        return true;
    for (int i = 0; i < TM_FAMILY_ALIASES && family->also[i]; i++) {
        char full[256];
        size_t m = strlen(family->also[i]);
        if (strncmp(name, family->also[i], m) != 0)
            continue;
        int size = snprintf(full, sizeof full, "%s%s", n ? family->prefix : "", name + m);
        if (size > 0 && size < (int)sizeof full && tm_gguf_place_hf(e->family, full, out)) {
            out->suffix = name + strlen(name) - strlen(out->suffix); /* of the name that lasts */
            return true;
        }
    }
    return false;
}

static tm_status list_tensors(exporting *e, tm_error *err)
{
    int64_t count = tm_safetensors_count(e->file);
    TM_TRY(TM_NEW(&e->item, count + 1, err));
    for (int64_t i = 0; i < count; i++) {
        item *t = &e->item[e->items];
        t->from = tm_safetensors_at(e->file, i);
        if (harmless(e, t->from->name) || tm_family_beside(e->config.family, t->from->name))
            continue;
        if (!place(e, t->from->name, &t->place) || !tm_gguf_spell(t->place.row->gguf, &t->place, t->name, sizeof t->name))
            return tm_fail(err, TM_UNSUPPORTED, "%s: tensor %s has no name in architecture %s", e->model, t->from->name, e->family->architecture);
        e->items++;
    }
    qsort(e->item, (size_t)e->items, sizeof *e->item, by_place);
    if (e->rope)
        e->item[e->items++] = (item){.name = "rope_freqs.weight"};
    return TM_OK;
}

static tm_status add_tensors(exporting *e, tm_error *err)
{
    for (int64_t i = 0; i < e->items; i++) {
        const item *t = &e->item[i];
        int64_t ne[TM_GGUF_MAX_DIMS] = {e->config.rope[0].size / 2};
        int32_t ndim = t->from ? t->from->ndim : 1;
        if (ndim < 1 || ndim > 2)
            return tm_fail(err, TM_UNSUPPORTED, "%s: tensor %s has %d dimensions", e->model, t->from->name, ndim);
        for (int k = 0; t->from && k < ndim; k++)
            ne[k] = t->from->shape[t->place.row->change == TM_GGUF_TRANSPOSED ? k : ndim - 1 - k];
        TM_TRY(tm_gguf_add_tensor(&e->writer, t->name, type_of(e, t, ne[0]), ndim, ne, err));
    }
    return TM_OK;
}

/* Where element (row, column) of the file's matrix lies in the source: offset of the row's first element
 * and the distance to the next. */
typedef struct packing {
    const exporting *e;
    const item *t;
    const tm_gguf_tensor *to;
    int64_t first;
    char *out;
    int64_t head_size;
    int not_finite, too_large; /* set by any thread */
} packing;

static void pack_row(void *context, int64_t index, int thread)
{
    packing *p = context;
    const tm_st_tensor *from = p->t->from;
    int64_t row = p->first + index, cols = p->to->ne[0], rows = p->to->count / cols;
    float *x = p->e->scratch + thread * cols;
    const char *values = p->e->values;
    int64_t one = tm_dtype_bytes(from->dtype, 1);
    tm_gguf_change change = p->t->place.row->change;
    if (change == TM_GGUF_TRANSPOSED && from->ndim == 2)
        for (int64_t c = 0; c < cols; c++)
            tm_dtype_convert(x + c, TM_F32, values + (c * rows + row) * one, from->dtype, 1);
    else {
        int64_t source = p->head_size && from->ndim == 2 ? tm_gguf_permuted_row(row, p->head_size) : row;
        tm_dtype_convert(x, TM_F32, values + source * cols * one, from->dtype, cols);
        if (p->head_size && from->ndim == 1)
            for (int64_t c = 0; c < cols; c++)
                tm_dtype_convert(x + c, TM_F32, values + tm_gguf_permuted_row(c, p->head_size) * one, from->dtype, 1);
    }
    for (int64_t c = 0; c < cols; c++) {
        if (change == TM_GGUF_PLUS_ONE)
            x[c] += 1;
        if (!isfinite(x[c]))
            __atomic_store_n(&p->not_finite, 1, __ATOMIC_RELAXED);
        else if (fabsf(x[c]) >= 65520)
            __atomic_store_n(&p->too_large, 1, __ATOMIC_RELAXED);
    }
    if (p->not_finite)
        return;
    tm_ggml_pack(p->to->type, x, p->out + index * (cols / p->to->type->block * p->to->type->bytes), cols);
}

static tm_status fill(void *context, int64_t tensor, int64_t row, int64_t rows, void *out, tm_error *err)
{
    exporting *e = context;
    const item *t = &e->item[tensor];
    const tm_gguf_tensor *to = &e->writer.tensor[tensor];
    if (!t->from) {
        memcpy(out, e->rope, (size_t)to->bytes);
        return TM_OK;
    }
    if (e->current != tensor) {
        free(e->buffer);
        free(e->scratch);
        e->buffer = e->scratch = NULL;
        e->current = tensor;
        TM_TRY(tm_st_values(t->from, &e->buffer, &e->values, err));
        TM_TRY(TM_NEW(&e->scratch, to->ne[0] * tm_pool_threads(e->pool), err));
    }
    tm_gguf_change change = t->place.row->change;
    packing p = {.e = e, .t = t, .to = to, .first = row, .out = out};
    p.head_size = change == TM_GGUF_PERMUTED_Q || change == TM_GGUF_PERMUTED_K ? e->config.head_size : 0;
    tm_pool_run(e->pool, pack_row, &p, rows);
    if (p.not_finite)
        return tm_fail(err, TM_INPUT, "%s: tensor %s holds a value that is not finite", e->model, t->from->name);
    if (p.too_large && to->type->type != TM_GGML_F32 && to->type->type != TM_GGML_BF16)
        return tm_fail(err, TM_UNSUPPORTED, "%s: tensor %s holds values beyond 65504, which 16-bit floats and block scales cannot; export as bf16 or f32",
                       e->model, t->from->name);
    return TM_OK;
}

/* ---- metadata ---- */

/* "7.2B", "494M": a number of parameters as people say it. */
static void size_label(double n, char label[32])
{
    static const struct {
        double unit;
        char letter;
    } units[] = {{1e12, 'T'}, {1e9, 'B'}, {1e6, 'M'}, {1e3, 'K'}};
    size_t k = 0;
    while (k < 3 && n < units[k].unit)
        k++;
    n /= units[k].unit;
    snprintf(label, 32, n < 9.95 ? "%.1f%c" : "%.0f%c", n, units[k].letter);
}

static tm_status put_meta(exporting *e, tm_error *err)
{
    char label[32];
    double elements = 0;
    bool tokenizer;
    for (int64_t i = 0; i < e->items; i++)
        elements += e->item[i].from ? (double)e->item[i].from->count : 0;
    size_label(elements, label);
    tm_gguf_put_word(&e->writer, "general.architecture", e->family->architecture);
    tm_gguf_put_word(&e->writer, "general.type", "model");
    const char *name = json_string_value(json_object_get(e->json, "_name_or_path"));
    if (name && *name) {
        const char *slash = strrchr(name, '/');
        tm_gguf_put_word(&e->writer, "general.name", slash && slash[1] ? slash + 1 : name);
    }
    tm_gguf_put_word(&e->writer, "general.size_label", label);
    tm_gguf_put_u32(&e->writer, "general.file_type", e->type->number);
    tm_gguf_put_u32(&e->writer, "general.quantization_version", 2);
    TM_TRY(tm_export_config(&e->writer, e->family, &e->config, e->model, err));
    TM_TRY(tm_tokenizer_put_gguf(&e->writer, e->model, e->json, e->config.vocab, &tokenizer, err));
    int64_t positions = tm_export_positions(e->family, &e->config);
    if (positions < e->config.max_positions)
        tm_buf_printf(&e->text, "the file's context is %lld tokens, the model's sliding window: llama.cpp has none in architecture %s\n",
                      (long long)positions, e->family->architecture);
    if (!tokenizer)
        tm_buf_printf(&e->text, "%s has no tokenizer: the file has no tokenizer\n", e->model);
    return TM_OK;
}

/* ---- what it computes ---- */

static tm_status logits_of(const exporting *e, const char *model, const char *adapter, float *out, tm_error *err)
{
    tm_inference inf;
    TM_TRY(tm_inference_open(&(tm_inference_settings){.model = model, .adapter = adapter, .threads = e->request->threads,
                                                      .max_tokens = e->look, .logits = true}, &inf, err));
    tm_status st = tm_logits_look(&inf, e->look, out, err);
    tm_inference_close(&inf);
    return st;
}

static tm_status judge(exporting *e, const float *a, const float *b, tm_error *err)
{
    int64_t vocab = e->config.vocab, same = 0;
    double difference = 0, sum = 0, largest = 0;
    for (int64_t t = 0; t < e->look; t++, a += vocab, b += vocab) {
        double kl = tm_logits_kl(a, b, vocab);
        sum += kl;
        largest = kl > largest || isnan(kl) ? kl : largest;
        same += tm_logits_top(a, vocab) == tm_logits_top(b, vocab);
        for (int64_t i = 0; i < vocab; i++)
            difference = fmax(difference, fabs((double)b[i] - a[i]));
    }
    tm_buf_printf(&e->text, "read back; logits against the source on %lld tokens: KL %.2g nats a token (largest %.2g), largest difference %.2g, same first choice %lld times\n",
                  (long long)e->look, sum / (double)e->look, largest, difference, (long long)same);
    if (e->type->bound > 0 && !(largest <= e->type->bound))
        return tm_fail(err, TM_FAILED, "%s: the file computes something else than its source: a KL of %.2g nats, expected at most %g for %s; it was not kept",
                       e->request->gguf, largest, e->type->bound, e->type->name);
    return TM_OK;
}

static tm_status look_at_logits(exporting *e, tm_error *err)
{
    float *a = NULL, *b = NULL;
    tm_status st;
    int64_t positions = tm_export_positions(e->family, &e->config), n;
    e->look = positions < TM_LOOK_TOKENS ? positions : TM_LOOK_TOKENS;
    n = e->look * e->config.vocab;
    TM_GO(TM_NEW(&a, n, err));
    TM_GO(TM_NEW(&b, n, err));
    st = logits_of(e, e->request->model, e->request->adapter, a, err);
    if (st == TM_OK)
        st = logits_of(e, e->aside, NULL, b, err);
    if (st == TM_NO_FIT) {
        tm_buf_printf(&e->text, "logits were not compared: %s\n", err ? err->message : "no memory for it");
        st = TM_OK;
    } else if (st == TM_OK)
        st = judge(e, a, b, err);
out:
    free(a);
    free(b);
    return st;
}

/* ---- the command ---- */

static char *beside(const char *path, const char *end, tm_error *err)
{
    tm_buf name = {0};
    tm_buf_printf(&name, "%s%s", path, end);
    if (tm_buf_check(&name, err) != TM_OK)
        tm_buf_deinit(&name);
    return name.data;
}

static tm_status merge_first(exporting *e, tm_error *err)
{
    const tm_export_request *r = e->request;
    tm_merge_source source = {.path = r->adapter, .scale = 1};
    char *text;
    e->merged = beside(r->gguf, ".merged", err);
    if (!e->merged)
        return TM_NO_MEMORY;
    TM_TRY(tm_dir_remove(e->merged, err));
    TM_TRY(tm_merge(&(tm_merge_request){.model = r->model, .out = e->merged, .sources = &source, .source_count = 1, .threads = r->threads}, &text, err));
    free(text);
    e->model = e->merged;
    return TM_OK;
}

static tm_status make_rope(exporting *e, tm_error *err)
{
    const tm_rope_config *rope = &e->config.rope[0];
    tm_rope_config plain = *rope;
    int64_t half = rope->size / 2;
    float *scaled = NULL;
    tm_status st;
    if (e->config.ropes == 0 || rope->kind != TM_ROPE_LLAMA3)
        return TM_OK;
    plain.kind = TM_ROPE_DEFAULT;
    TM_GO(TM_NEW(&e->rope, half, err));
    TM_GO(TM_NEW(&scaled, half, err));
    tm_rope_frequencies(&plain, 0, false, e->rope);
    tm_rope_frequencies(rope, 0, false, scaled);
    for (int64_t i = 0; i < half; i++)
        e->rope[i] /= scaled[i];
out:
    free(scaled);
    return st;
}

static tm_status open_source(exporting *e, tm_error *err)
{
    TM_TRY(tm_hf_json(e->model, "config.json", &e->json, err));
    TM_TRY(tm_model_config_read(e->model, &e->config, err));
    e->known = true;
    e->family = tm_gguf_family_of(e->config.family->model_type);
    if (!e->family)
        return tm_fail(err, TM_UNSUPPORTED, "%s: models of type %s cannot be written as GGUF yet", e->model, e->config.family->model_type);
    TM_TRY(make_rope(e, err));
    TM_TRY(tm_hf_open_weights(e->model, &e->file, err));
    return tm_pool_create(e->request->threads, &e->pool, err);
}

static void close_all(exporting *e)
{
    tm_error ignored;
    tm_pool_destroy(e->pool);
    tm_gguf_writer_deinit(&e->writer);
    tm_safetensors_close(e->file);
    json_decref(e->json);
    if (e->known)
        tm_model_config_deinit(&e->config);
    if (e->merged && tm_dir_remove(e->merged, &ignored) != TM_OK)
        ignored = (tm_error){0}; /* left for the next export to remove */
    if (e->aside && tm_dir_remove(e->aside, &ignored) != TM_OK)
        ignored = (tm_error){0};
    free(e->merged);
    free(e->aside);
    free(e->item);
    free(e->rope);
    free(e->buffer);
    free(e->scratch);
    tm_buf_deinit(&e->text);
}

static tm_status export_model(exporting *e, tm_error *err)
{
    if (e->request->adapter)
        TM_TRY(merge_first(e, err));
    TM_TRY(open_source(e, err));
    TM_TRY(list_tensors(e, err));
    TM_TRY(put_meta(e, err));
    TM_TRY(add_tensors(e, err));
    e->aside = beside(e->request->gguf, ".unchecked", err);
    if (!e->aside)
        return TM_NO_MEMORY;
    TM_TRY(tm_gguf_write(&e->writer, e->aside, fill, e, err));
    TM_TRY(look_at_logits(e, err));
    TM_TRY(tm_path_move(e->aside, e->request->gguf, err));
    return TM_OK;
}

tm_status tm_export(const tm_export_request *r, char **text, tm_error *err)
{
    exporting e = {.request = r, .model = r->model, .current = -1};
    tm_status st;
    *text = NULL;
    TM_GO(find_type(r->type ? r->type : r->adapter_only ? "f32" : "f16", &e.type, err));
    if (tm_path_is_dir(r->gguf))
        TM_GO(tm_fail(err, TM_USAGE, "--gguf: %s is a folder, expected a file to write", r->gguf));
    if (r->adapter_only) {
        if (!r->adapter)
            TM_GO(tm_fail(err, TM_USAGE, "--adapter-only: --adapter DIR is missing"));
        if (tm_ggml_type_of(e.type->matrix)->unpack)
            TM_GO(tm_fail(err, TM_USAGE, "--type %s: adapters are written as f32, f16 or bf16", r->type));
        TM_GO(tm_export_adapter(r->model, r->adapter, r->gguf, e.type->matrix, &e.text, err));
    } else
        TM_GO(export_model(&e, err));
    TM_GO(tm_buf_check(&e.text, err));
    *text = e.text.data ? e.text.data : tm_strdup("", err);
    e.text = (tm_buf){0};
    st = *text ? TM_OK : TM_NO_MEMORY;
out:
    close_all(&e);
    return st;
}
