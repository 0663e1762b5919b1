/* temper bench: what this machine can do, measured through the device's own ops. Every figure is the best
 * of what was seen in its share of the time: other work on the machine only ever takes away. */
#include "api/job.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/json.h"
#include "plan/calibrate.h"
#include "text/tokenizer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct rate {
    const char *key, *label, *unit;
    double value;
} rate;

static const double share_seconds = 0.3;

/* --- Products of 1024 x 1024 x 1024, as training has them --- */

enum { SIDE = 1024 };
typedef enum product { FORWARD, INPUT, WEIGHT } product;

/* The type that the device computes in when it is left the choice. */
static double product_rate(tm_device *d, product which, char *memory, const tm_rows *rows)
{
    tm_dtype act = d->traits.act;
    int64_t bytes = tm_dtype_bytes(d->real, SIDE * SIDE);
    tm_tensor a = tm_tensor_make(memory, act, SIDE, SIDE), b = tm_tensor_make(memory + bytes, act, SIDE, SIDE);
    tm_tensor c = tm_tensor_make(memory + 2 * bytes, which == WEIGHT ? d->real : act, SIDE, SIDE);
    double best = INFINITY, end = tm_clock_seconds() + share_seconds;
    tm_error ignored;
    do {
        double start = tm_clock_seconds();
        if (which == FORWARD)
            TM_RUN(d, linear_forward, rows, a, b, tm_tensor_none(), c);
        else if (which == INPUT)
            TM_RUN(d, linear_backward_input, rows, a, b, false, c);
        else
            TM_RUN(d, linear_backward_weight, rows, a, b, c, tm_tensor_none());
        if (d->calls->sync(d, &ignored) != TM_OK)
            return NAN;
        best = fmin(best, tm_clock_seconds() - start);
    } while (tm_clock_seconds() < end);
    return 2.0 * SIDE * SIDE * SIDE / best * 1e-9;
}

static tm_status measure_products(tm_device *d, rate *out, tm_error *err)
{
    enum { CHUNKS = SIDE / TM_CHUNK_TOKENS };
    int32_t layout[CHUNKS + 1 + 2 + 2];
    for (int i = 0; i <= CHUNKS; i++)
        layout[i] = i * TM_CHUNK_TOKENS;
    memcpy(layout + CHUNKS + 1, (int32_t[]){0, SIDE, 0, CHUNKS}, 4 * sizeof *layout);
    int64_t bytes = 3 * tm_dtype_bytes(d->real, SIDE * SIDE), all = bytes + (int64_t)sizeof layout;
    void *memory;
    TM_TRY(tm_device_alloc(d, all, &memory, err));
    d->calls->zero(d, memory, bytes);
    const int32_t *there = (const int32_t *)((char *)memory + bytes); /* the device's: ops read it there */
    d->calls->upload(d, (char *)memory + bytes, layout, sizeof layout);
    tm_rows rows = {.n = SIDE, .replicas = 1, .chunks = CHUNKS, .chunk = there, .group = there + CHUNKS + 1, .group_chunk = there + CHUNKS + 3};
    for (int i = 0; i < 3; i++)
        out[i].value = product_rate(d, (product)i, memory, &rows);
    tm_device_release(d, memory, all);
    return TM_OK;
}

/* --- Memory: y += a x reads two streams and writes one --- */

static tm_status measure_memory(tm_device *d, rate *out, tm_error *err)
{
    enum { ELEMENTS = 32 << 20 };
    tm_dtype act = d->traits.act;
    int64_t bytes = 2 * tm_dtype_bytes(act, ELEMENTS);
    void *memory;
    TM_TRY(tm_device_alloc(d, bytes, &memory, err));
    d->calls->zero(d, memory, bytes);
    tm_tensor x = tm_tensor_make(memory, act, 1, ELEMENTS),
              y = tm_tensor_make((char *)memory + bytes / 2, act, 1, ELEMENTS);
    double best = INFINITY, end = tm_clock_seconds() + share_seconds;
    tm_status st = TM_OK;
    do {
        double start = tm_clock_seconds();
        TM_RUN(d, axpy, 0.5, x, y);
        st = d->calls->sync(d, err);
        best = fmin(best, tm_clock_seconds() - start);
    } while (st == TM_OK && tm_clock_seconds() < end);
    tm_device_release(d, memory, bytes);
    out->value = 1.5 * (double)bytes / best * 1e-9;
    return st;
}

/* --- A tokenizer, one thread --- */

static tm_status measure_tokenizer(const tm_bench_request *r, rate *out, tm_error *err)
{
    enum { PIECE = 1 << 20 };
    tm_tokenizer *tok = NULL;
    tm_tokens *scratch = NULL;
    tm_ids ids = {0};
    tm_map map = {0};
    tm_status st = TM_OK;
    TM_GO(tm_tokenizer_open(r->tokenizer, &tok, err));
    TM_GO(tm_tokens_create(tok, &scratch, err));
    TM_GO(tm_map_open(r->text, &map, err));
    size_t size = map.size < PIECE ? map.size : PIECE;
    double best = INFINITY, end = tm_clock_seconds() + share_seconds;
    do {
        double start = tm_clock_seconds();
        ids.count = 0;
        TM_GO(tm_tokenizer_encode(tok, scratch, map.data, size, false, &ids, err));
        best = fmin(best, tm_clock_seconds() - start);
    } while (tm_clock_seconds() < end);
    out->value = (double)size / best * 1e-6;
out:
    tm_map_close(&map);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
    tm_tokenizer_close(tok);
    return st;
}

static void put_rates(tm_buf *out, const tm_device *d, const rate *rates, size_t count, const char *calibration, bool json)
{
    tm_buf_text(out, json ? "{\"device\": " : "");
    if (json)
        tm_json_put_string(out, d->detail);
    else
        tm_buf_printf(out, "%s: %s\n", d->name, d->detail);
    for (size_t i = 0; i < count; i++) {
        if (isnan(rates[i].value))
            continue;
        if (!json) {
            tm_buf_printf(out, "  %-44s %10.1f %s\n", rates[i].label, rates[i].value, rates[i].unit);
            continue;
        }
        tm_buf_printf(out, ", \"%s\": ", rates[i].key);
        tm_json_put_number(out, rates[i].value);
    }
    if (calibration && json) {
        tm_buf_text(out, ", \"calibration\": ");
        tm_json_put_string(out, calibration);
    } else if (calibration)
        tm_buf_printf(out, "kept for plan and train in %s\n", calibration);
    tm_buf_text(out, json ? "}\n" : "");
}

tm_status tm_bench(const tm_bench_request *r, char **text, tm_error *err)
{
    enum { LIMIT, PRODUCTS, MEMORY = PRODUCTS + 3, TOKENIZER, COUNT };
    rate rates[COUNT] = {
        {"limit_gflops", "limit that training is shown against", "GFLOP/s", 0},
        {"forward_gflops", "product 1024^3, forward", "GFLOP/s", NAN},
        {"input_gradient_gflops", "product 1024^3, input gradient", "GFLOP/s", NAN},
        {"weight_gradient_gflops", "product 1024^3, weight gradient", "GFLOP/s", NAN},
        {"memory_gb_s", "memory, two streams read and one written", "GB/s", NAN},
        {"tokenizer_mb_s", "tokenizer, one thread", "MB/s", NAN},
    };
    tm_recipe *recipe = NULL;
    tm_device *d = NULL;
    tm_buf out = {0};
    tm_status st = TM_OK;
    tm_calibration calibration;
    char *path = NULL;
    *text = NULL;
    TM_GO(tm_recipe_load(NULL, NULL, 0, &recipe, err));
    TM_GO(tm_device_open(recipe->device, r->threads, &d, NULL, err));
    for (int i = 0; i < 5; i++)
        rates[LIMIT].value = fmax(rates[LIMIT].value, tm_device_peak_flops(d) * 1e-9);
    TM_GO(measure_products(d, rates + PRODUCTS, err));
    TM_GO(measure_memory(d, &rates[MEMORY], err));
    if (r->tokenizer)
        TM_GO(measure_tokenizer(r, &rates[TOKENIZER], err));
    if (r->calibrate) {
        TM_GO(tm_calibration_path(&path, err));
        TM_GO(tm_calibrate(d, &calibration, err));
        TM_GO(tm_calibration_write(path, d, &calibration, err));
    }
    put_rates(&out, d, rates, COUNT, path, r->json);
    TM_GO(tm_buf_check(&out, err));
    *text = out.data;
    out = (tm_buf){0};
out:
    free(path);
    tm_buf_deinit(&out);
    tm_device_destroy(d);
    tm_recipe_destroy(recipe);
    return st;
}
