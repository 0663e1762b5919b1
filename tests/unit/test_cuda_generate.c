/* Single tokens on the GPU's own kernels for them (src/device/cuda/single.cu; half/single.cu), compiled for the processor,
 * or on a GPU (TEMPER_CUDA_LIBRARY names its library): products and attention against sums in double, every row alone and
 * among others to the bit, and whole texts. */
#include "../support/texts.h"

#include "device/compose.h"

enum { MOST_ROWS = 37, MOST_COLUMNS = 48, MOST_K = 640, MOST_RANK = 24 };

static tm_device *gpu;
static const char *library;

/* --- Values --- */

static double rounded(tm_dtype type, double x)
{
    float f = (float)x, back;
    uint16_t half;
    if (type == TM_F32)
        return f;
    tm_dtype_convert(&half, type, &f, TM_F32, 1);
    tm_dtype_convert(&back, TM_F32, &half, type, 1);
    return back;
}

static double value(tm_tensor t, int64_t row, int64_t col)
{
    double x;
    tm_dtype_convert(&x, TM_F64, (char *)t.data + tm_dtype_bytes(t.dtype, row * t.ld + col), t.dtype, 1);
    return x;
}

/* The tests' numbers lie in host memory, an op's on the device while it runs. */
static int64_t bytes_of(tm_tensor t) { return tm_dtype_bytes(t.dtype, t.rows * t.ld); }

static void *there(const void *from, int64_t bytes)
{
    void *to = NULL;
    if (from) {
        OK(tm_device_alloc(gpu, bytes, &to, err));
        gpu->calls->upload(gpu, to, from, bytes);
    }
    return to;
}

static tm_tensor put_there(tm_tensor t)
{
    t.data = there(t.data, bytes_of(t));
    return t;
}

static void leave(tm_tensor t) { tm_device_release(gpu, t.data, t.data ? bytes_of(t) : 0); }

static void bring_back(tm_tensor t, tm_tensor from)
{
    gpu->calls->download(gpu, t.data, from.data, bytes_of(t));
    OK(gpu->calls->sync(gpu, err));
    leave(from);
}

/* Rows lie `beyond` elements further apart than they are long. */
static tm_tensor matrix(tm_dtype type, int64_t rows, int64_t cols, int64_t beyond, dice *d)
{
    tm_tensor t = {NULL, type, rows, cols, cols + beyond};
    size_t bytes = (size_t)tm_dtype_bytes(type, rows * t.ld);
    t.data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(t.data, 0xff, bytes); /* NaN where nobody should look */
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; d && k < cols; k++) {
            double x = dice_spread(d);
            tm_dtype_convert((char *)t.data + tm_dtype_bytes(type, i * t.ld + k), type, &x, TM_F64, 1);
        }
    return t;
}

static tm_dtype any_half(dice *d) { return dice_in(d, 0, 1) ? TM_BF16 : TM_F16; }

/* What may lie between a sum in double and one in f32 that was rounded to `type`: terms are at most 1. */
static double slack(tm_dtype type, double terms, double size)
{
    return 1e-6 * terms + (type == TM_F32 ? 0 : fabs(size) * (type == TM_BF16 ? 0x1p-8 : 0x1p-11) + 1e-6);
}

static void same_row(tm_tensor all, int64_t row, tm_tensor alone, const char *what)
{
    int64_t from = tm_dtype_bytes(all.dtype, row * all.ld);
    if (memcmp((char *)all.data + from, alone.data, (size_t)tm_dtype_bytes(all.dtype, all.cols)) != 0)
        fail_msg("%s: row %d is another among others (seed %llu)", what, (int)row, (unsigned long long)seed);
}

/* --- Products --- */

typedef struct product {
    int64_t n, columns, K;
    tm_tensor x, w, bias, y, again;
    tm_lora_part part[3];
    int32_t parts;
} product;

static product any_product(dice *d)
{
    product p = {.n = dice_in(d, 1, MOST_ROWS), .columns = dice_in(d, 1, MOST_COLUMNS), .K = 8 * dice_in(d, 1, MOST_K / 8)};
    tm_dtype type = any_half(d), of_w[] = {type, TM_F32, any_half(d)}, of_y = dice_in(d, 0, 1) ? type : TM_F32;
    p.x = matrix(type, p.n, p.K, 8 * dice_in(d, 0, 2), d);
    p.w = matrix(of_w[dice_in(d, 0, 2)], p.columns, p.K, 8 * dice_in(d, 0, 2), d);
    p.bias = dice_in(d, 0, 1) ? matrix(TM_F32, 1, p.columns, 0, d) : tm_tensor_none();
    p.y = matrix(of_y, p.n, p.columns, dice_in(d, 0, 5), NULL);
    p.again = matrix(of_y, 1, p.columns, 0, NULL);
    p.parts = (int32_t)dice_in(d, 1, 3);
    for (int64_t i = 0, first = 0; i < p.parts; i++) { /* some columns may have no part */
        int64_t r = dice_in(d, 1, MOST_RANK), out = (p.columns - first) / (p.parts - i);
        p.part[i] = (tm_lora_part){.lr = {.a = matrix(TM_F32, r, p.K, 0, d), .b = matrix(TM_F32, out, r, 0, d), .scale = (float)dice_unit(d)}, .first = first, .xa = matrix(TM_F32, p.n, r, 0, NULL)};
        first += out;
    }
    return p;
}

static void drop_product(product *p)
{
    free(p->x.data);
    free(p->w.data);
    free(p->bias.data);
    free(p->y.data);
    free(p->again.data);
    for (int32_t i = 0; i < p->parts; i++) {
        free(p->part[i].lr.a.data);
        free(p->part[i].lr.b.data);
        free(p->part[i].xa.data);
    }
}

static double in_double(const product *p, int64_t t, int64_t n, bool low)
{
    double sum = p->bias.data ? value(p->bias, 0, n) : 0;
    for (int64_t k = 0; k < p->K; k++)
        sum += value(p->x, t, k) * rounded(p->x.dtype, value(p->w, n, k));
    for (int32_t i = 0; low && i < p->parts; i++) {
        const tm_lowrank *lr = &p->part[i].lr;
        int64_t row = n - p->part[i].first;
        for (int64_t j = 0; row >= 0 && row < lr->b.rows && j < lr->a.rows; j++) {
            double xa = 0;
            for (int64_t k = 0; k < p->K; k++)
                xa += value(p->x, t, k) * value(lr->a, j, k);
            sum += xa * lr->scale * value(lr->b, row, j);
        }
    }
    return sum;
}

static tm_rows rows_of(int64_t n) { return (tm_rows){.n = n, .replicas = 1, .single = true}; }

static void run_product(const product *p, const tm_rows *rows, tm_tensor x, tm_tensor y, bool low)
{
    tm_tensor in = put_there(x), w = put_there(p->w), bias = put_there(p->bias), out = put_there(y);
    if (low) {
        tm_lora_part part[3];
        for (int32_t i = 0; i < p->parts; i++) {
            part[i] = p->part[i];
            part[i].lr.a = put_there(part[i].lr.a);
            part[i].lr.b = put_there(part[i].lr.b);
            part[i].xa = put_there(part[i].xa);
        }
        TM_RUN(gpu, lora_forward, rows, in, w, bias, p->parts, part, out, TM_ACT_NONE, tm_tensor_none());
        for (int32_t i = 0; i < p->parts; i++) {
            leave(part[i].lr.a);
            leave(part[i].lr.b);
            leave(part[i].xa);
        }
    } else
        TM_RUN(gpu, linear_forward, rows, in, w, bias, out);
    bring_back(y, out);
    leave(in);
    leave(w);
    leave(bias);
}

static void products(void **state)
{
    (void)state;
    int64_t other = 0;
    for (int round = 0; round < 60; round += SPARSE)
        for (int low = 0; low < 2; low++) {
            dice d = {.key = seed + (uint64_t)(2 * round + low)};
            product p = any_product(&d);
            tm_rows rows = rows_of(p.n), one = rows_of(1), many = {.n = 1, .replicas = 1};
            run_product(&p, &rows, p.x, p.y, low);
            for (int64_t t = 0; t < p.n; t++)
                for (int64_t n = 0; n < p.columns; n++) {
                    double want = in_double(&p, t, n, low), got = value(p.y, t, n), terms = (double)p.K * (low ? 1 + MOST_RANK : 1);
                    if (!(fabs(got - want) <= slack(p.y.dtype, terms, want)))
                        fail_msg("%s %lldx%lldx%lld: (%d, %d) is %g, expected %g (seed %llu)", low ? "lora" : "linear", (long long)p.n, (long long)p.columns, (long long)p.K, (int)t, (int)n, got, want, (unsigned long long)seed);
                }
            for (int64_t t = 0; t < p.n; t++) {
                run_product(&p, &one, tm_tensor_rows(p.x, t, 1), p.again, low);
                same_row(p.y, t, p.again, low ? "lora" : "linear");
            }
            /* Rows that are not single go another way: their sums have another order. */
            run_product(&p, &many, tm_tensor_rows(p.x, p.n - 1, 1), p.again, low);
            if (p.y.dtype == TM_F32 && p.x.dtype == p.w.dtype)
                other += memcmp((char *)p.y.data + 4 * (p.n - 1) * p.y.ld, p.again.data, 4 * (size_t)p.columns) != 0;
            drop_product(&p);
        }
    assert_true(other > 0);
}

/* --- Attention --- */

static double attended(const tm_spans *s, const tm_attention *a, tm_tensor q, tm_tensor k, tm_tensor v, int64_t e, int64_t head, int64_t c, double *lse)
{
    int64_t D = a->head_size, kv = head / (a->heads / a->kv_heads), last = s->keys[e] - 1, first = a->window > 0 && last >= a->window ? last - a->window + 1 : 0;
    double sum = 0, out = 0;
    for (int64_t j = first; j <= last; j++) {
        double score = 0;
        for (int64_t i = 0; i < D; i++)
            score += value(q, e, head * D + i) * value(k, s->key[e] + j, kv * D + i);
        score *= a->scale;
        score = a->softcap > 0 ? a->softcap * tanh(score / a->softcap) : score;
        sum += exp(score);
        out += exp(score) * value(v, s->key[e] + j, kv * D + c);
    }
    *lse = log(sum);
    return out / sum;
}

static void run_attention(const tm_spans *s, const tm_attention *a, tm_tensor q, tm_tensor k, tm_tensor v, tm_tensor out, tm_tensor lse)
{
    int64_t n = s->n * (int64_t)sizeof(int32_t);
    tm_spans spans = *s;
    void *query = there(s->query, n + 4), *key = there(s->key, n), *keys = there(s->keys, n);
    spans.query = query;
    spans.key = key;
    spans.keys = keys;
    tm_tensor at_q = put_there(q), at_k = put_there(k), at_v = put_there(v), at_out = put_there(out), at_lse = put_there(lse);
    TM_RUN(gpu, attention_forward, &spans, a, at_q, at_k, at_v, at_out, at_lse);
    bring_back(out, at_out);
    bring_back(lse, at_lse);
    leave(at_q);
    leave(at_k);
    leave(at_v);
    tm_device_release(gpu, query, n + 4);
    tm_device_release(gpu, key, n);
    tm_device_release(gpu, keys, n);
}

static void attention(void **state)
{
    (void)state;
    static const int32_t sizes[] = {8, 16, 64, 72, 128, 256}, groups[] = {1, 2, 3, 4, 7};
    enum { SLOTS = 19, CACHE = 600 };
    for (int round = 0; round < 24; round += SPARSE) {
        dice d = {.key = seed + 1000 + (uint64_t)round};
        tm_dtype type = any_half(&d);
        int64_t n = dice_in(&d, 1, SLOTS);
        tm_attention a = {.kv_heads = (int32_t)dice_in(&d, 1, 2), .head_size = sizes[round % 6], .scale = 0.5f, .window = dice_in(&d, 0, 1) ? (int32_t)dice_in(&d, 1, 400) : 0,
                          .softcap = dice_in(&d, 0, 1) ? 1.5f : 0};
        a.heads = a.kv_heads * groups[dice_in(&d, 0, 4)];
        int64_t columns = a.heads * a.head_size, of_keys = a.kv_heads * a.head_size;
        int32_t query[SLOTS + 1], key[SLOTS], keys[SLOTS], none = 0;
        tm_tensor q = matrix(type, n, columns, 0, &d), k = matrix(type, n * CACHE, of_keys, 8, &d), v = matrix(type, n * CACHE, of_keys, 0, &d);
        tm_tensor out = matrix(type, n, columns, 0, NULL), lse = matrix(TM_F32, n, a.heads, 0, NULL), alone = matrix(type, 1, columns, 0, NULL), alone_lse = matrix(TM_F32, 1, a.heads, 0, NULL);
        for (int32_t e = 0; e <= n; e++)
            query[e] = e;
        for (int32_t e = 0; e < n; e++) {
            key[e] = (int32_t)((n - 1 - e) * CACHE);
            keys[e] = (int32_t)(dice_in(&d, 0, 2) ? dice_in(&d, 1, CACHE) : dice_in(&d, 1, 40));
        }
        tm_spans spans = {n, query, key, keys, CACHE};
        run_attention(&spans, &a, q, k, v, out, lse);
        for (int64_t e = 0; e < n; e++) {
            for (int64_t head = 0; head < a.heads; head++)
                for (int64_t c = 0; c < a.head_size; c += 7) {
                    double want_lse, want = attended(&spans, &a, q, k, v, e, head, c, &want_lse), got = value(out, e, head * a.head_size + c);
                    if (!(fabs(got - want) <= slack(type, 20, want)) || !(fabs(value(lse, e, head) - want_lse) <= 1e-4))
                        fail_msg("text %d of %d, head %d: %g, expected %g; %g, expected %g (round %d, seed %llu)", (int)e, (int)n, (int)head, got, want, value(lse, e, head), want_lse, round, (unsigned long long)seed);
                    c += round % 2 ? 30 : 0;
                }
            tm_spans one = {1, (const int32_t[]){none, 1}, key + e, keys + e, CACHE};
            run_attention(&one, &a, tm_tensor_rows(q, e, 1), k, v, alone, alone_lse);
            same_row(out, e, alone, "attention");
            same_row(lse, e, alone_lse, "attention's sums");
            if (!e) { /* a cache for longer texts: so long that few are computed at a time */
                tm_spans wide = spans;
                tm_tensor again = matrix(type, n, columns, 0, NULL), again_lse = matrix(TM_F32, n, a.heads, 0, NULL);
                wide.single = CACHE << dice_in(&d, 1, 5);
                run_attention(&wide, &a, q, k, v, again, again_lse);
                if (memcmp(out.data, again.data, (size_t)bytes_of(out)) || memcmp(lse.data, again_lse.data, (size_t)bytes_of(lse)))
                    fail_msg("attention of few texts at a time is another (round %d, seed %llu)", round, (unsigned long long)seed);
                free(again.data);
                free(again_lse.data);
            }
        }
        tm_tensor all[] = {q, k, v, out, lse, alone, alone_lse};
        for (size_t i = 0; i < sizeof all / sizeof *all; i++)
            free(all[i].data);
    }
}

/* --- The likeliest --- */

static void likeliest(void **state)
{
    (void)state;
    static const double values[] = {-INFINITY, -2, -1, -0.0, 0, 1, 2, 2, INFINITY, NAN};
    static const tm_dtype types[] = {TM_F32, TM_BF16, TM_F16};
    enum { MOST = 3000 };
    static float line[MOST];
    for (int round = 0; round < 40; round += SPARSE) {
        dice d = {.key = seed + 2000 + (uint64_t)round};
        int64_t n = dice_in(&d, 1, MOST_ROWS), V = dice_in(&d, 1, round % 2 ? 40 : MOST), kinds = dice_in(&d, 1, 10);
        tm_tensor z = matrix(types[round % 3], n, V, dice_in(&d, 0, 3), &d);
        for (int64_t i = 0; round % 4 && i < n * V; i++)
            tm_dtype_convert((char *)z.data + tm_dtype_bytes(z.dtype, i / V * z.ld + i % V), z.dtype, &values[dice_in(&d, 0, kinds - 1)], TM_F64, 1);
        int32_t got[MOST_ROWS], *ids = there(got, sizeof got);
        tm_tensor at = put_there(z);
        TM_RUN(gpu, most_likely, n, at, ids);
        gpu->calls->download(gpu, got, ids, sizeof got);
        OK(gpu->calls->sync(gpu, err));
        for (int64_t t = 0; t < n; t++) {
            tm_dtype_convert(line, TM_F32, (char *)z.data + tm_dtype_bytes(z.dtype, t * z.ld), z.dtype, V);
            if (got[t] != tm_most_likely(line, V))
                fail_msg("row %d of %lldx%lld: %d, expected %d (round %d, seed %llu)", (int)t, (long long)n, (long long)V, got[t], tm_most_likely(line, V), round, (unsigned long long)seed);
        }
        leave(at);
        tm_device_release(gpu, ids, sizeof got);
        free(z.data);
    }
}

/* --- Whole texts --- */

static void alone_and_among_others(void **state)
{
    (void)state;
    for (int f = 0; f < FAMILIES; f += SPARSE) {
        machine m;
        telling alone, among;
        dice d = {.key = seed + 3000 + (uint64_t)f};
        invent(&alone, &d);
        among = alone;
        machine_open(&m, scratch(families[f][0]), "none", TM_BF16, (layout){PREFIX + PROMPT, 1, 1, library});
        OK(tell(&m, &alone, err));
        machine_close(&m);
        shuffle(&among, &d);
        machine_open(&m, scratch(families[f][0]), "none", TM_BF16, (layout){dice_in(&d, PREFIX, 2 * PROMPT), dice_in(&d, 2, TEXTS), 1, library});
        OK(tell(&m, &among, err));
        same_stories(&alone, &among, families[f][0]);
        machine_close(&m);
    }
}

/* --- Graphs of single tokens --- */

/* The device's calls, counted; or without graphs. */
static struct {
    tm_device_calls calls;
    const tm_device_calls *real;
    int64_t recorded, replayed, uploads, upload_bytes;
} watched;

static tm_status begin_watched(tm_device *d, tm_error *problem)
{
    watched.recorded++;
    return watched.real->graph_begin(d, problem);
}

static void run_watched(tm_device *d, tm_graph *graph)
{
    watched.replayed++;
    watched.real->graph_run(d, graph);
}

static void upload_watched(tm_device *d, void *dst, const void *src, int64_t bytes)
{
    watched.uploads++;
    watched.upload_bytes += bytes;
    watched.real->upload(d, dst, src, bytes);
}

static void watch(machine *m, bool graphs)
{
    watched.real = m->device->calls;
    watched.calls = *watched.real;
    watched.calls.graph_begin = graphs ? begin_watched : NULL;
    watched.calls.graph_run = run_watched;
    watched.calls.upload = upload_watched;
    watched.recorded = watched.replayed = watched.uploads = watched.upload_bytes = 0;
    m->device->calls = &watched.calls;
}

static void unwatch(machine *m) { m->device->calls = watched.real; }

/* Texts of other lengths that end at other times, windows, adapters, gates, a trained prompt: the same bits. */
static void graphs_change_nothing(void **state)
{
    (void)state;
    static const char *const methods[] = {"none", "lora", "prompt", "bank", "dora", "adapter"};
    static const float gates[] = {0.75f, -1.5f};
    int64_t replayed = 0;
    for (int f = 0; f < FAMILIES; f++)
        for (int k = 0; k < 6; k += SPARSE) {
            machine m;
            telling plain, again;
            dice d = {.key = seed + 4000 + (uint64_t)(6 * f + k)};
            invent(&plain, &d);
            plain.gates = k == 3 ? gates : NULL;
            plain.likeliest = dice_in(&d, 0, 1);
            again = plain;
            machine_open(&m, scratch(families[f][0]), methods[k], f % 3 ? TM_BF16 : TM_F32, (layout){dice_in(&d, PREFIX, 2 * PROMPT), dice_in(&d, 1, TEXTS), 1, library});
            watch(&m, false);
            OK(tell(&m, &plain, err));
            assert_int_equal(watched.replayed, 0);
            unwatch(&m);
            watch(&m, true);
            OK(tell(&m, &again, err));
            replayed += watched.replayed;
            unwatch(&m);
            same_stories(&plain, &again, families[f][0]);
            machine_close(&m);
        }
    assert_true(replayed > 0);
}

/* Three texts side by side, of which one ends after every four tokens: each number of texts is queued once, recorded, and
 * run three times. A step uploads once, and no more than its texts need. */
static void a_graph_for_every_number_of_texts(void **state)
{
    (void)state;
    machine m;
    telling t = {.count = 3, .refuse_at = -1, .likeliest = true};
    for (int64_t i = 0; i < t.count; i++) {
        t.story[i] = (story){.prompt = {(int32_t)i}, .n = 1, .most = 4 * (i + 1), .stop = -1};
        t.order[i] = i;
    }
    machine_open(&m, scratch("llama"), "none", TM_BF16, (layout){200, 3, 1, library});
    watch(&m, true);
    OK(tell(&m, &t, err));
    assert_int_equal(watched.recorded, 3);
    assert_int_equal(watched.replayed, 9);
    assert_int_equal(watched.uploads, 12);
    assert_true(watched.upload_bytes <= 12 * 200);
    unwatch(&m);
    machine_close(&m);
}

static int open_gpu(void **state)
{
    tm_error problem;
    if (access(library, R_OK) != 0) {
        print_message("skip: no C++ compiler here, so no %s\n", library);
        exit(0);
    }
    return texts_begin(state) || tm_cuda_device_create(library, 0, &gpu, &problem) != TM_OK;
}

static int close_gpu(void **state)
{
    tm_device_destroy(gpu);
    return scratch_end(state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(products), cmocka_unit_test(attention), cmocka_unit_test(likeliest), cmocka_unit_test(alone_and_among_others),
                                       cmocka_unit_test(graphs_change_nothing), cmocka_unit_test(a_graph_for_every_number_of_texts)};
    const char *named = getenv("TEMPER_CUDA_LIBRARY"), *libraries[] = {named ? named : EMULATED, EMULATED_FAST};
    int failed = 0;
    for (int i = 0; i < (named ? 1 : 2); i++) {
        library = libraries[i];
        failed += cmocka_run_group_tests_name(i ? "cuda_generate, tensor cores" : "cuda_generate", tests, open_gpu, close_gpu);
    }
    return failed;
}
