/* A harness for checking ops: a case names an op's operands once and then runs in every way the
 * checks need: in double, f32 or bf16, on any instruction set and thread count, whole or one
 * example at a time, against the reference and against central differences.
 *
 * Invariants: values are drawn representable in bf16, so every dtype starts from the same numbers;
 * every buffer has padding columns and one more row, filled with a pattern that must survive. */
#ifndef TM_TESTS_GRAD_OPCASE_H
#define TM_TESTS_GRAD_OPCASE_H

#include "device/device.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_FIELDS = 24, MAX_EXAMPLES = 8, PAD_COLS = 3 };

/* --- Random numbers --- */

typedef struct rng {
    uint64_t state;
} rng;

static inline uint64_t rng_next(rng *r)
{
    uint64_t x = r->state += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static inline int64_t rng_in(rng *r, int64_t low, int64_t high) /* both included */
{
    return low + (int64_t)(rng_next(r) % (uint64_t)(high - low + 1));
}

static inline double rng_unit(rng *r) { return (double)(rng_next(r) >> 11) * 0x1p-53; }

/* Normal, rounded to bf16. */
static inline double rng_normal(rng *r)
{
    double u = rng_unit(r) + 1e-12, w = rng_unit(r);
    return (double)tm_bf16_to_f32(tm_f32_to_bf16((float)(sqrt(-2 * log(u)) * cos(2 * M_PI * w))));
}

/* --- Layouts --- */

typedef struct layout {
    int64_t examples, tokens, replicas;
    int32_t query[MAX_EXAMPLES + 1], keys[MAX_EXAMPLES], group[MAX_EXAMPLES + 1], group_chunk[MAX_EXAMPLES + 1];
    int32_t *position, *chunk;
    uint32_t *example;
    int64_t chunks;
} layout;

static inline void layout_init(layout *l, int64_t examples, const int32_t *length, int64_t replicas)
{
    *l = (layout){.examples = examples, .replicas = replicas};
    for (int64_t e = 0; e < examples; e++) {
        l->query[e + 1] = l->query[e] + length[e];
        l->keys[e] = length[e];
    }
    l->tokens = l->query[examples];
    l->position = malloc(sizeof(int32_t) * (size_t)(l->tokens + 1));
    l->example = malloc(sizeof(uint32_t) * (size_t)(l->tokens + 1));
    l->chunk = malloc(sizeof(int32_t) * (size_t)(l->tokens + 2));
    int64_t group = 0;
    for (int64_t e = 0; e < examples; e++) {
        while (group <= e * replicas / examples) { /* examples are shared out evenly */
            l->group[group] = l->query[e];
            l->group_chunk[group++] = (int32_t)l->chunks;
        }
        for (int32_t i = 0; i < length[e]; i++) {
            if (i % TM_CHUNK_TOKENS == 0)
                l->chunk[l->chunks++] = l->query[e] + i;
            l->position[l->query[e] + i] = i;
            l->example[l->query[e] + i] = (uint32_t)(100 + e);
        }
    }
    for (; group <= replicas; group++) {
        l->group[group] = (int32_t)l->tokens;
        l->group_chunk[group] = (int32_t)l->chunks;
    }
    l->chunk[l->chunks] = (int32_t)l->tokens;
}

static inline void layout_random(layout *l, rng *r, int64_t most, int64_t replicas)
{
    int32_t length[MAX_EXAMPLES];
    int64_t examples = rng_in(r, replicas, 5);
    for (int64_t e = 0; e < examples; e++)
        length[e] = (int32_t)rng_in(r, 1, most);
    layout_init(l, examples, length, replicas);
}

static inline void layout_deinit(layout *l)
{
    free(l->position);
    free(l->example);
    free(l->chunk);
}

static inline tm_rows layout_rows(const layout *l)
{
    return (tm_rows){.n = l->tokens, .replicas = (int32_t)l->replicas, .chunks = l->chunks, .position = l->position,
                     .example = l->example, .chunk = l->chunk, .group = l->group, .group_chunk = l->group_chunk};
}

static inline tm_spans layout_spans(const layout *l) { return (tm_spans){l->examples, l->query, l->query, l->keys, 0}; }

/* --- Cases --- */

typedef enum kind { ACT, REAL, WEIGHT, DOUBLE /* double on every device */ } kind;
typedef enum role { IN, OUT, ADDED } role; /* ADDED: +=, starts at random values */

typedef struct field {
    const char *name;
    kind kind;
    role role;
    int64_t rows, cols;
    bool by_token; /* one row a token: cut when a case runs example by example */
    int alias;     /* shares the storage of this field, -1: own */
    bool tight;    /* ld = cols (vectors, tensors of optimisers) */
    double *value;
} field;

typedef struct opcase opcase;

/* What a run sees: tensors on the device and the layout of the rows it works on. */
typedef struct run_view {
    tm_device *device;
    tm_rows rows;
    tm_spans spans;
    tm_tensor t[MAX_FIELDS];
    int64_t first; /* first token of the part that runs */
} run_view;

typedef struct grad_pair {
    int value, grad;
} grad_pair;

struct opcase {
    const char *name;
    uint64_t seed;
    rng random;
    layout layout;
    field f[MAX_FIELDS];
    int fields;
    void (*forward)(const opcase *c, const run_view *v);
    void (*backward)(const opcase *c, const run_view *v);   /* NULL: none */
    void (*reference)(const opcase *c, double *const *value); /* forward in double */
    grad_pair outs[4], ins[8]; /* (output, its gradient), (input, its gradient) */
    int n_outs, n_ins;
    bool joint;  /* gradients are measured together: cancellation can leave next to nothing of one */
    bool splits; /* rows of an example may run without the others */
    /* what ops take besides tensors */
    int32_t *ids;
    int64_t n, heads;
    float eps, scale, p, offset, cap;
    bool accumulate;
    tm_attention attention;
    tm_activation act;
    tm_step_params step[MAX_EXAMPLES];
    int32_t hit[4096];
    char note[256];
};

static inline void case_init(opcase *c, const char *name, uint64_t seed)
{
    *c = (opcase){.name = name, .seed = seed, .random = {seed}, .splits = true};
}

static inline void case_deinit(opcase *c)
{
    for (int i = 0; i < c->fields; i++)
        free(c->f[i].value);
    free(c->ids);
    layout_deinit(&c->layout);
}

static inline int case_field(opcase *c, const char *name, kind k, role r, int64_t rows, int64_t cols)
{
    field *f = &c->f[c->fields];
    *f = (field){.name = name, .kind = k, .role = r, .rows = rows, .cols = cols, .alias = -1,
                 .by_token = rows == c->layout.tokens && c->layout.tokens > 1, .tight = rows == 1};
    f->value = malloc(sizeof(double) * (size_t)(rows * cols + 1));
    for (int64_t i = 0; i < rows * cols; i++)
        f->value[i] = r == OUT ? 0 : rng_normal(&c->random);
    return c->fields++;
}

static inline void case_out(opcase *c, int value, int grad) { c->outs[c->n_outs++] = (grad_pair){value, grad}; }
static inline void case_in(opcase *c, int value, int grad) { c->ins[c->n_ins++] = (grad_pair){value, grad}; }

/* --- Running --- */

typedef struct types {
    tm_dtype act, real, weight;
} types;

static const types types_f64 = {TM_F64, TM_F64, TM_F64}, types_f32 = {TM_F32, TM_F32, TM_F32},
                   types_bf16 = {TM_BF16, TM_F32, TM_BF16};

static inline tm_dtype field_dtype(const field *f, types y)
{
    return f->kind == ACT ? y.act : f->kind == REAL ? y.real : f->kind == WEIGHT ? y.weight : TM_F64;
}

static inline int64_t field_ld(const field *f) { return f->tight ? f->cols : f->cols + PAD_COLS; }

typedef struct buffers {
    void *data[MAX_FIELDS];
    types types;
} buffers;

static inline int64_t field_bytes(const field *f, types y)
{
    return tm_dtype_bytes(field_dtype(f, y), (f->rows + 1) * field_ld(f));
}

static inline void must(tm_status st, const tm_error *err)
{
    if (st != TM_OK) {
        fprintf(stderr, "%s\n", err->message);
        abort();
    }
}

/* The case's values on the device, in the given types. */
static inline void buffers_init(buffers *b, const opcase *c, tm_device *d, types y)
{
    *b = (buffers){.types = y};
    tm_error err;
    for (int i = 0; i < c->fields; i++) {
        const field *f = &c->f[i];
        if (f->alias >= 0) {
            b->data[i] = b->data[f->alias];
            continue;
        }
        int64_t bytes = field_bytes(f, y), ld = field_ld(f), element = tm_dtype_bytes(field_dtype(f, y), 1);
        char *host = malloc((size_t)bytes);
        memset(host, 0x5a, (size_t)bytes);
        for (int64_t row = 0; row < f->rows; row++)
            if (f->role != OUT)
                tm_dtype_convert(host + row * ld * element, field_dtype(f, y), f->value + row * f->cols, TM_F64,
                                 f->cols);
        must(tm_device_alloc(d, bytes, &b->data[i], &err), &err);
        d->calls->upload(d, b->data[i], host, bytes);
        free(host);
    }
}

static inline void buffers_deinit(buffers *b, const opcase *c, tm_device *d)
{
    for (int i = 0; i < c->fields; i++)
        if (c->f[i].alias < 0)
            tm_device_release(d, b->data[i], field_bytes(&c->f[i], b->types));
}

static inline run_view buffers_view(const buffers *b, const opcase *c, tm_device *d)
{
    run_view v = {.device = d, .rows = layout_rows(&c->layout), .spans = layout_spans(&c->layout)};
    for (int i = 0; i < c->fields; i++) {
        const field *f = &c->f[i];
        v.t[i] = (tm_tensor){b->data[i], field_dtype(f, b->types), f->rows, f->cols, field_ld(f)};
    }
    return v;
}

/* The view of one example alone, with a layout of its own (position in `one`, released by the caller). */
static inline run_view view_example(const run_view *whole, const opcase *c, int64_t e, layout *one)
{
    const layout *l = &c->layout;
    int32_t first = l->query[e], count = l->query[e + 1] - first;
    layout_init(one, 1, &count, 1);
    for (int64_t i = 0; i < count; i++)
        one->example[i] = l->example[first + i];
    run_view v = *whole;
    v.rows = layout_rows(one);
    v.spans = layout_spans(one);
    v.first = first;
    for (int i = 0; i < c->fields; i++)
        if (c->f[i].by_token)
            v.t[i] = tm_tensor_rows(v.t[i], first, count);
    return v;
}

/* Reads a field back: values to `out` (rows * cols doubles, may be NULL), and a hash of its bytes. False
 * when padding was written. */
static inline bool buffers_read(const buffers *b, const opcase *c, tm_device *d, int i, double *out, uint64_t *hash)
{
    const field *f = &c->f[i];
    tm_dtype dtype = field_dtype(f, b->types);
    int64_t bytes = field_bytes(f, b->types), ld = field_ld(f), element = tm_dtype_bytes(dtype, 1);
    unsigned char *host = malloc((size_t)bytes);
    d->calls->download(d, host, b->data[i], bytes);
    bool clean = true;
    for (int64_t row = 0; row <= f->rows; row++) {
        int64_t used = row < f->rows ? f->cols * element : 0;
        if (out && used)
            tm_dtype_convert(out + row * f->cols, TM_F64, host + row * ld * element, dtype, f->cols);
        for (int64_t k = used; k < ld * element; k++)
            clean &= host[row * ld * element + k] == 0x5a;
        for (int64_t k = 0; hash && k < used; k++)
            *hash = (*hash ^ host[row * ld * element + k]) * 0x100000001b3u;
    }
    free(host);
    return clean;
}

/* Runs forward and backward, whole or example by example; values of every field to out[i] (NULL: not
 * wanted). Returns a hash of everything; *clean tells whether padding survived. */
static inline uint64_t case_run(const opcase *c, tm_device *d, types y, bool split, double **out, bool *clean)
{
    buffers b;
    buffers_init(&b, c, d, y);
    run_view v = buffers_view(&b, c, d);
    for (int64_t e = 0; e < (split ? c->layout.examples : 1); e++) {
        layout one = {0};
        run_view part = split ? view_example(&v, c, e, &one) : v;
        c->forward(c, &part);
        if (c->backward)
            c->backward(c, &part);
        layout_deinit(&one);
    }
    tm_error err;
    must(d->calls->sync(d, &err), &err);
    uint64_t hash = 0xcbf29ce484222325u;
    *clean = true;
    for (int i = 0; i < c->fields; i++)
        if (!buffers_read(&b, c, d, i, out ? out[i] : NULL, &hash)) {
            fprintf(stderr, "%s (seed %llu): op wrote outside of %s\n", c->name, (unsigned long long)c->seed, c->f[i].name);
            *clean = false;
        }
    buffers_deinit(&b, c, d);
    return hash;
}

static inline double **case_values(const opcase *c)
{
    double **v = calloc(MAX_FIELDS, sizeof *v);
    for (int i = 0; i < c->fields; i++) {
        size_t bytes = sizeof(double) * (size_t)(c->f[i].rows * c->f[i].cols + 1);
        v[i] = memcpy(malloc(bytes), c->f[i].value, bytes);
    }
    return v;
}

static inline void values_free(double **v)
{
    for (int i = 0; i < MAX_FIELDS; i++)
        free(v[i]);
    free(v);
}

/* Squares of differences and of the right values, over as many arrays as are added. */
typedef struct error_sum {
    double difference, norm;
} error_sum;

static inline void error_add(error_sum *e, const double *a, const double *b, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        bool same = a[i] == b[i] || (isnan(a[i]) && isnan(b[i])); /* also equal infinities */
        e->difference += same ? 0 : (a[i] - b[i]) * (a[i] - b[i]);
        e->norm += same && !isfinite(b[i]) ? 0 : b[i] * b[i];
    }
}

/* Relative L2 distance. */
static inline double error_relative(error_sum e) { return e.difference == 0 ? 0 : sqrt(e.difference / (e.norm + 1e-300)); }

static inline double distance(const double *a, const double *b, int64_t n)
{
    error_sum e = {0};
    error_add(&e, a, b, n);
    return error_relative(e);
}

#endif
