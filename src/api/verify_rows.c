/* Whether the matrix products of a run keep a row's bits whatever stands beside it: the promise that packing, micro-batches and
 * replicas rest on. For every shape of the run's model, forward and input gradient: rows multiplied together, and the same rows in
 * batches of several sizes that begin at several places, must be equal to the bit. On any device. */
#include "api/verify_rows.h"

#include "base/buf.h"
#include "base/philox.h"

#include <stdlib.h>

enum { ROWS = 400, PARTS = 5, BLOCK_ROWS = 256 /* of a weight, repeated */ };
static const int64_t parts[PARTS][2] = {{0, 1}, {17, 1}, {1, 17}, {100, 256}, {143, 257}}; /* first row, rows */

typedef struct bench {
    tm_device *d;
    tm_dtype act;
    char *memory, *x, *w, *y, *scratch; /* device; x and y: [ROWS, longest] */
    int32_t *layout;                    /* device */
    int64_t bytes;
    char *together, *apart;             /* host: results */
} bench;

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

/* Numbers in [-1, 1] of a dtype. */
static void put_numbers(tm_dtype dtype, int64_t n, uint64_t key, void *out)
{
    for (int64_t i = 0; i < n; i++) {
        float value = (float)(2 * tm_philox_uniform(tm_philox_at(key, (uint32_t)i, (uint32_t)(i >> 32), 0, 0).word[0]) - 1);
        tm_dtype_convert((char *)out + tm_dtype_bytes(dtype, i), dtype, &value, TM_F32, 1);
    }
}

/* One product over rows [first, first + n) of x into y, and y's bytes. */
static tm_status multiply(bench *b, const tm_row_shape *s, bool backward, int64_t first, int64_t n, void *out, tm_error *err)
{
    tm_device *d = b->d;
    int32_t layout[2 + ROWS / TM_CHUNK_TOKENS + 1 + 4], chunks = 0;
    for (int64_t at = 0; at < n; at += TM_CHUNK_TOKENS)
        layout[chunks++] = (int32_t)at;
    layout[chunks] = (int32_t)n;
    memcpy(layout + chunks + 1, (int32_t[]){0, (int32_t)n, 0, chunks}, 4 * sizeof *layout);
    d->calls->upload(d, b->layout, layout, (int64_t)sizeof *layout * (chunks + 5));
    tm_rows rows = {.n = n, .replicas = 1, .chunks = chunks, .chunk = b->layout, .group = b->layout + chunks + 1, .group_chunk = b->layout + chunks + 3};
    int64_t in = backward ? s->out : s->in, to = backward ? s->in : s->out;
    tm_tensor x = tm_tensor_rows(tm_tensor_make(b->x, b->act, ROWS, in), first, n), y = tm_tensor_make(b->y, b->act, n, to), w = tm_tensor_make(b->w, s->dtype, s->out, s->in);
    if (backward)
        TM_RUN(d, linear_backward_input, &rows, x, w, false, y);
    else
        TM_RUN(d, linear_forward, &rows, x, w, tm_tensor_none(), y);
    d->calls->download(d, out, b->y, tm_dtype_bytes(b->act, n * to));
    return d->calls->sync(d, err);
}

static tm_status compare(bench *b, const tm_row_shape *s, bool backward, bool *equal, tm_error *err)
{
    int64_t row = tm_dtype_bytes(b->act, backward ? s->in : s->out);
    TM_TRY(multiply(b, s, backward, 0, ROWS, b->together, err));
    for (int i = 0; i < PARTS; i++) {
        TM_TRY(multiply(b, s, backward, parts[i][0], parts[i][1], b->apart, err));
        *equal &= memcmp(b->apart, b->together + parts[i][0] * row, (size_t)(parts[i][1] * row)) == 0;
    }
    return TM_OK;
}

/* Weights of a shape, block by block. */
static tm_status fill(bench *b, const tm_row_shape *s, tm_error *err)
{
    void *block;
    int64_t in_block = s->out < BLOCK_ROWS ? s->out : BLOCK_ROWS;
    TM_TRY(tm_alloc(&block, (size_t)tm_dtype_bytes(s->dtype, in_block * s->in), 1, err));
    put_numbers(s->dtype, in_block * s->in, 2, block);
    for (int64_t r = 0; r < s->out; r += in_block)
        b->d->calls->upload(b->d, b->w + tm_dtype_bytes(s->dtype, r * s->in), block, tm_dtype_bytes(s->dtype, (s->out - r < in_block ? s->out - r : in_block) * s->in));
    tm_status st = b->d->calls->sync(b->d, err); /* the block is free again */
    free(block);
    return st;
}

static int64_t aligned(int64_t bytes) { return (bytes + TM_ALIGN - 1) / TM_ALIGN * TM_ALIGN; }

static tm_status open_bench(bench *b, const tm_row_shape *shape, int count, tm_error *err)
{
    int64_t side = 0, weight = 0, half = 0;
    for (int i = 0; i < count; i++) {
        side = larger(side, larger(shape[i].in, shape[i].out));
        weight = larger(weight, tm_dtype_bytes(shape[i].dtype, shape[i].in * shape[i].out));
        half = larger(half, 2 * shape[i].in * shape[i].out);
    }
    int64_t rows = aligned(tm_dtype_bytes(b->act, ROWS * side)), layout = 4096, scratch = b->d->traits.borrows ? aligned(half) + (1 << 20) : 0;
    weight = aligned(weight);
    b->bytes = 2 * rows + weight + layout + scratch;
    void *memory;
    TM_TRY(tm_device_alloc(b->d, b->bytes, &memory, err));
    b->memory = memory;
    b->x = b->memory;
    b->y = b->x + rows;
    b->w = b->y + rows;
    b->layout = (int32_t *)(b->w + weight);
    b->scratch = b->w + weight + layout;
    if (scratch && b->d->calls->lend)
        b->d->calls->lend(b->d, b->scratch, scratch);
    TM_TRY(tm_alloc((void **)&b->together, (size_t)rows, 1, err));
    TM_TRY(tm_alloc((void **)&b->apart, (size_t)rows, 1, err));
    put_numbers(b->act, ROWS * side, 1, b->together);
    b->d->calls->upload(b->d, b->x, b->together, tm_dtype_bytes(b->act, ROWS * side));
    return b->d->calls->sync(b->d, err);
}

tm_status tm_verify_rows(tm_device *device, tm_dtype act, const tm_row_shape *shape, int count, int *kept, tm_error *err)
{
    bench b = {.d = device, .act = act};
    *kept = 0;
    tm_status st = open_bench(&b, shape, count, err);
    for (int i = 0; i < count && st == TM_OK; i++) {
        st = fill(&b, &shape[i], err);
        for (int backward = 0; backward < 2 && st == TM_OK; backward++) {
            bool equal = true;
            st = compare(&b, &shape[i], backward, &equal, err);
            *kept += equal;
        }
    }
    if (device->calls->lend)
        device->calls->lend(device, NULL, 0);
    tm_device_release(device, b.memory, b.bytes);
    free(b.together);
    free(b.apart);
    return st;
}
