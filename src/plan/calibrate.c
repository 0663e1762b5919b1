/* Rates of a device, measured through its own ops: see calibrate.h. */
#include "plan/calibrate.h"

#include "base/buf.h"
#include "base/clock.h"
#include "plan/cost.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The type of activations that the device is at its best with. */
/* Numbers in [-1, 1] everywhere, whatever type they are read as: two bf16 make an f32. Not zeros: a GPU computes with
 * those at less power, so faster than with what a run has. */
static void fill(tm_device *d, char *memory, int64_t bytes)
{
    enum { PATTERN = 1 << 14 };
    uint32_t pattern[PATTERN], random = 1;
    for (int i = 0; i < PATTERN; i++) {
        random = random * 1664525u + 1013904223u;
        pattern[i] = (random & 0x80ff80ffu) | 0x3f003f00u;
    }
    int64_t done = bytes < (int64_t)sizeof pattern ? bytes : (int64_t)sizeof pattern;
    d->calls->upload(d, memory, pattern, done);
    for (int64_t n; done < bytes; done += n) {
        n = done < bytes - done ? done : bytes - done;
        d->calls->copy(d, memory + done, memory, n);
    }
}

enum { SIDE_FIRST = 128, SIDE_LAST = 16384 };
static const double budget_seconds = 0.020;

/* Seconds of one y = x w^T with all sides n; infinity when the device reports a failure. */
static double time_product(tm_device *d, int64_t n, char *memory)
{
    tm_dtype act = d->traits.act;
    int64_t bytes = tm_dtype_bytes(act, n * n);
    tm_tensor x = tm_tensor_make(memory, act, n, n), w = tm_tensor_make(memory + bytes, act, n, n);
    tm_tensor y = tm_tensor_make(memory + 2 * bytes, act, n, n);
    tm_rows rows = {.n = n, .replicas = 1};
    tm_error ignored;
    double start = tm_clock_seconds();
    TM_RUN(d, linear_forward, &rows, x, w, tm_tensor_none(), y);
    return d->calls->sync(d, &ignored) == TM_OK ? tm_clock_seconds() - start : INFINITY;
}

/* Best rate at one size; the first call warms up. *seconds: of the best call. */
static double best_rate(tm_device *d, int64_t n, double deadline, double *seconds)
{
    int64_t bytes = 3 * tm_dtype_bytes(d->traits.act, n * n);
    void *memory;
    tm_error ignored;
    *seconds = INFINITY;
    if (tm_device_alloc(d, bytes, &memory, &ignored) != TM_OK)
        return 0;
    fill(d, memory, bytes);
    for (int i = 0; i < 3 && (i < 2 || tm_clock_seconds() + *seconds < deadline); i++)
        *seconds = fmin(*seconds, time_product(d, n, memory));
    tm_device_release(d, memory, bytes);
    return 2.0 * (double)n * (double)n * (double)n / *seconds;
}

/* Sizes double while the next, eight times the work a call, fits into the time left: a fast device gets
 * a product large enough to show what it can do. */
double tm_device_peak_flops(tm_device *d)
{
    double deadline = tm_clock_seconds() + budget_seconds, best = 0, seconds = 0;
    int64_t peak_bytes = d->peak_bytes;
    for (int64_t n = SIDE_FIRST; n <= SIDE_LAST && tm_clock_seconds() + 16 * seconds < deadline; n *= 2)
        best = fmax(best, best_rate(d, n, deadline, &seconds));
    d->peak_bytes = peak_bytes;
    return best > 0 ? best : NAN;
}

/* --- Classes --- */

int tm_rank_class(int64_t rank) { return rank <= 16 ? 0 : rank <= 64 ? 1 : 2; }
int tm_head_class(int64_t head) { return head <= 64 ? 0 : head <= 128 ? 1 : 2; }

/* Where a size stands among classes that begin at 2^first and are 2^step apart: between *k and *k + 1, so far along. */
static double place(double size, int first, int step, int classes, int *k)
{
    double at = fmin(fmax((log2(size) - first) / step, 0), classes - 1);
    *k = at < classes - 1 ? (int)at : classes - 2;
    return at - *k;
}

void tm_work_add_product(tm_work *work, tm_product kind, int64_t rows, int64_t out, int64_t inner)
{
    int o, i;
    double flops = 2.0 * (double)rows * (double)out * (double)inner;
    if (!(flops > 0))
        return;
    double p = place((double)rows * (double)out, TM_OUT_FIRST, TM_OUT_STEP, TM_OUTS, &o), q = place((double)inner, TM_INNER_FIRST, 1, TM_INNERS, &i);
    work->product[kind][o][i] += flops * (1 - p) * (1 - q);
    work->product[kind][o][i + 1] += flops * (1 - p) * q;
    work->product[kind][o + 1][i] += flops * p * (1 - q);
    work->product[kind][o + 1][i + 1] += flops * p * q;
}

static void terms_of(const tm_work *work, double out[TM_WORK_TERMS]) { memcpy(out, work, sizeof *work); }

double tm_seconds_of(const tm_calibration *c, const tm_work *work)
{
    double rate[TM_WORK_TERMS], amount[TM_WORK_TERMS], seconds = 0;
    terms_of(&c->rate, rate);
    terms_of(work, amount);
    for (int i = 0; i < TM_WORK_TERMS; i++)
        seconds += amount[i] > 0 ? amount[i] / rate[i] : 0;
    return seconds;
}

void tm_calibration_scale(tm_calibration *c, double flops, double bandwidth)
{
    double rate[TM_WORK_TERMS];
    tm_work before = c->rate;
    terms_of(&c->rate, rate);
    for (int i = 0; i < TM_WORK_TERMS; i++)
        rate[i] *= flops;
    memcpy(&c->rate, rate, sizeof c->rate);
    c->rate.bytes = before.bytes * bandwidth;
    c->rate.calls = before.calls;
    memcpy(c->rate.lowrank_ops, before.lowrank_ops, sizeof before.lowrank_ops);
    c->peak_flops *= flops;
}

/* --- Measuring --- */

enum { LENGTH = 2048, SMALL_LENGTH = 512 }; /* tokens of an example */

/* A device with memory for what is timed. The layout: `rows` rows of examples of `length` tokens. */
typedef struct bench {
    tm_device *d;
    tm_dtype act;
    char *memory;
    int64_t bytes, used;
    tm_rows rows;
    tm_spans spans;
    tm_step_params *step;
    tm_error *err;
    tm_status status; /* the first failure */
} bench;

static void *take(bench *b, int64_t bytes)
{
    void *at = b->memory + b->used;
    b->used += (bytes + TM_ALIGN - 1) / TM_ALIGN * TM_ALIGN;
    return at;
}
static tm_tensor matrix(bench *b, tm_dtype type, int64_t rows, int64_t cols) { return tm_tensor_make(take(b, tm_dtype_bytes(type, rows * cols)), type, rows, cols); }

static const int32_t *put(bench *b, const int32_t *values, int64_t n)
{
    void *at = take(b, n * 4);
    b->d->calls->upload(b->d, at, values, n * 4);
    return at;
}

/* Room for `bytes` beside a layout of `rows` rows. */
static bool open_bench(bench *b, int64_t rows, int64_t length, int64_t bytes)
{
    int32_t *v = NULL;
    int64_t examples = rows / length, per = (length + TM_CHUNK_TOKENS - 1) / TM_CHUNK_TOKENS;
    enum { LENT = 64 << 20 };
    b->bytes = bytes + 4 * rows * 4 + LENT + (1 << 20);
    b->used = 0;
    b->memory = NULL;
    if (b->status != TM_OK || (b->status = tm_device_alloc(b->d, b->bytes, (void **)&b->memory, b->err)) != TM_OK)
        return false;
    b->status = TM_NEW(&v, rows + 2, b->err);
    if (b->status != TM_OK)
        return false;
    fill(b->d, b->memory, b->bytes);
    b->rows = (tm_rows){.n = rows, .replicas = 1, .chunks = examples * per};
    memset(v, 0, (size_t)rows * 4);
    b->rows.example = (const uint32_t *)put(b, v, rows);
    for (int64_t i = 0; i < rows; i++)
        v[i] = (int32_t)(i % length);
    b->rows.position = put(b, v, rows);
    for (int64_t i = 0; i <= b->rows.chunks; i++)
        v[i] = (int32_t)(i / per * length + i % per * TM_CHUNK_TOKENS);
    b->rows.chunk = put(b, v, b->rows.chunks + 1);
    b->rows.group = put(b, (int32_t[]){0, (int32_t)rows}, 2);
    b->rows.group_chunk = put(b, (int32_t[]){0, (int32_t)b->rows.chunks}, 2);
    b->spans.n = examples;
    for (int64_t i = 0; i <= examples; i++)
        v[i] = (int32_t)(i * length);
    b->spans.query = put(b, v, examples + 1);
    b->spans.key = put(b, v, examples);
    for (int64_t i = 0; i < examples; i++)
        v[i] = (int32_t)length;
    b->spans.keys = put(b, v, examples);
    b->step = take(b, sizeof *b->step);
    b->d->calls->zero(b->d, b->step, sizeof *b->step);
    if (b->d->calls->lend && b->d->traits.borrows)
        b->d->calls->lend(b->d, take(b, LENT), LENT);
    free(v);
    return true;
}

static void close_bench(bench *b)
{
    if (b->d->calls->lend && b->d->traits.borrows)
        b->d->calls->lend(b->d, NULL, 0);
    tm_device_release(b->d, b->memory, b->bytes);
}

typedef void (*timed_call)(bench *b, const void *context);

enum { RECORDED = 100 }; /* calls of a graph at most */

/* `calls` of them, recorded where the device can: a host queues small work more slowly than a device does it. NULL: cannot. */
static tm_graph *record(bench *b, timed_call call, const void *context, int calls)
{
    const tm_device_calls *does = b->d->calls;
    tm_graph *graph = NULL;
    if (!does->graph_begin || b->status != TM_OK || (b->status = does->graph_begin(b->d, b->err)) != TM_OK)
        return NULL;
    for (int i = 0; i < calls; i++)
        call(b, context);
    b->status = does->graph_end(b->d, &graph, b->err);
    return graph;
}

/* Seconds of a round of `times` times `calls` calls. */
static double time_round(bench *b, timed_call call, const void *context, tm_graph *graph, int calls, int times)
{
    double start = tm_clock_seconds();
    for (int k = 0; k < times; k++)
        if (graph)
            b->d->calls->graph_run(b->d, graph);
        else
            for (int i = 0; i < calls; i++)
                call(b, context);
    if (b->status == TM_OK)
        b->status = b->d->calls->sync(b->d, b->err);
    return tm_clock_seconds() - start;
}

static int fitting(double seconds, double each, int most) { return each > 0 && seconds / each < most ? (int)(seconds / each) + 1 : most; }

/* Seconds a call. On a CPU the best of some rounds, since other work on the machine only ever takes away; of a device with graphs, which
 * has the machine to itself but slows down as it gets hot, the last one. */
static double time_calls(bench *b, timed_call call, const void *context)
{
    enum { ROUNDS = 4 };
    bool hot = b->d->calls->graph_begin != NULL;
    double round_seconds = hot ? 0.012 : 0.004, seconds = INFINITY;
    (void)time_round(b, call, context, NULL, 1, 1);
    double once = time_round(b, call, context, NULL, 2, 1) / 2;
    int calls = fitting(round_seconds, once, RECORDED);
    tm_graph *graph = record(b, call, context, calls);
    once = time_round(b, call, context, graph, calls, 1) / calls;
    int times = fitting(round_seconds, once * calls, 1000);
    for (int i = 0; i < ROUNDS && b->status == TM_OK; i++) {
        double now = time_round(b, call, context, graph, calls, times) / ((double)calls * times);
        seconds = hot ? now : fmin(seconds, now);
    }
    if (graph)
        b->d->calls->graph_destroy(b->d, graph);
    return seconds;
}

/* --- Products --- */

typedef struct product {
    tm_product kind;
    tm_tensor x, w, y, dw;
} product;

static void run_product(bench *b, const void *context)
{
    const product *p = context;
    if (p->kind == TM_PRODUCT_FORWARD)
        TM_RUN(b->d, linear_forward, &b->rows, p->x, p->w, tm_tensor_none(), p->y);
    else if (p->kind == TM_PRODUCT_INPUT)
        TM_RUN(b->d, linear_backward_input, &b->rows, p->y, p->w, false, p->x);
    else
        TM_RUN(b->d, linear_backward_weight, &b->rows, p->y, p->x, p->dw, tm_tensor_none());
}

/* A size takes the rate of the next smaller one when a call would last longer than this. */
static const double longest_call = 0.05;

/* Square results of `side` x `side`, a sum of `inner` each. */
static double product_rate(bench *b, tm_product kind, int64_t side, int64_t inner)
{
    bool weight = kind == TM_PRODUCT_WEIGHT;
    int64_t rows = weight ? inner : side, in = kind == TM_PRODUCT_FORWARD ? inner : side, out = kind == TM_PRODUCT_INPUT ? inner : side;
    if (!open_bench(b, rows, rows < LENGTH ? rows : LENGTH, tm_dtype_bytes(b->act, rows * (in + out)) + tm_dtype_bytes(weight ? b->d->real : b->act, in * out)))
        return NAN;
    product p = {.kind = kind, .x = matrix(b, b->act, rows, in), .y = matrix(b, b->act, rows, out)};
    *(weight ? &p.dw : &p.w) = matrix(b, weight ? b->d->real : b->act, out, in);
    double rate = 2.0 * (double)side * (double)side * (double)inner / time_calls(b, run_product, &p);
    close_bench(b);
    return rate;
}

/* Large products for a while: a GPU reaches the rate that its power allows. */
static void heat(bench *b)
{
    double end = tm_clock_seconds() + 0.15;
    while (tm_clock_seconds() < end && b->status == TM_OK)
        (void)product_rate(b, TM_PRODUCT_FORWARD, 8192, 4096);
}

static void measure_products(bench *b, bool fast, tm_work *rate)
{
    for (int k = 0; k < TM_PRODUCTS; k++)
        for (int o = 0; o < TM_OUTS; o++) {
            if (fast)
                heat(b);
            for (int i = 0; i < TM_INNERS; i++) {
                int64_t side = (int64_t)1 << ((TM_OUT_FIRST + o * TM_OUT_STEP) / 2), inner = (int64_t)1 << (TM_INNER_FIRST + i);
                double before = i ? rate->product[k][o][i - 1] : o ? rate->product[k][o - 1][i] : INFINITY;
                bool lasts = 2.0 * (double)side * (double)side * (double)inner / before > longest_call;
                rate->product[k][o][i] = lasts ? before : product_rate(b, (tm_product)k, side, inner);
            }
        }
}

/* --- Low-rank deltas: what two of them add to the product of their group --- */

typedef struct delta {
    tm_tensor x, w, y, dx;
    tm_lora_part part[2];
    bool backward, alone;
} delta;

static void run_delta(bench *b, const void *context)
{
    const delta *p = context;
    if (p->alone)
        run_product(b, &(product){.kind = p->backward ? TM_PRODUCT_INPUT : TM_PRODUCT_FORWARD, .x = p->backward ? p->dx : p->x, .w = p->w, .y = p->y});
    else if (p->backward)
        TM_RUN(b->d, lora_backward, &b->rows, p->y, p->x, p->w, false, 2, p->part, p->dx);
    else
        TM_RUN(b->d, lora_forward, &b->rows, p->x, p->w, tm_tensor_none(), 2, p->part, p->y, TM_ACT_NONE, tm_tensor_none());
}

/* Seconds of the op less those of its product alone: what the deltas add. What cannot be told apart counts as a hundredth. NaN: no memory. */
static double delta_seconds(bench *b, int64_t rows, int64_t side, int64_t r, float dropout, bool backward)
{
    tm_dtype act = b->act, real = b->d->real;
    if (!open_bench(b, rows, rows < LENGTH ? rows : LENGTH, tm_dtype_bytes(act, 4 * rows * side + 2 * side * side) + 8 * tm_dtype_bytes(real, (rows + 2 * side) * r)))
        return NAN;
    delta p = {.x = matrix(b, act, rows, side), .w = matrix(b, act, 2 * side, side), .y = matrix(b, act, rows, 2 * side), .dx = matrix(b, act, rows, side), .backward = backward, .alone = true};
    for (int k = 0; k < 2; k++)
        p.part[k] = (tm_lora_part){.lr = {.a = matrix(b, real, r, side), .b = matrix(b, real, side, r), .scale = 1, .dropout = dropout, .module = (uint32_t)k, .step = b->step}, .first = k * side,
                                   .xa = matrix(b, real, rows, r), .dxa = matrix(b, real, rows, r), .da = matrix(b, real, r, side), .db = matrix(b, real, side, r)};
    double alone = time_calls(b, run_delta, &p);
    p.alone = false;
    double both = time_calls(b, run_delta, &p);
    close_bench(b);
    return fmax(both - alone, 0.01 * both);
}

static double delta_flops(int64_t rows, int64_t side, int64_t r, bool backward) { return (backward ? 2.0 : 1.0) * 2 * 2.0 * (double)rows * (double)r * 2.0 * (double)side; }

/* Time is a line in the operations: two sizes at the smallest rank give what an op takes whatever its size; the rates are those of the larger
 * size less that. At most half of it: differences of times are noisy, and what does not grow is wrong by more where rows are many. */
static void measure_lowrank(bench *b, int64_t rows, int64_t side, tm_work *rate)
{
    static const int32_t rank[TM_RANKS] = {16, 64, 256};
    for (int backward = 0; backward < 2; backward++) {
        double few = (double)(rows / 16), many = (double)rows;
        double small = delta_seconds(b, rows / 16, side, rank[0], 0, backward), large = delta_seconds(b, rows, side, rank[0], 0, backward);
        double once = fmin(fmax((small * many - large * few) / (many - few), 0.01 * small), large / 2);
        rate->lowrank_ops[backward] = 1 / once;
        for (int i = 0; i < TM_RANKS; i++)
            for (int drops = 0; drops < 2; drops++) {
                double seconds = i == 0 && !drops ? large : delta_seconds(b, rows, side, rank[i], drops ? 0.05f : 0, backward);
                rate->lowrank[drops][backward][i] = delta_flops(rows, side, rank[i], backward) / fmax(seconds - once, seconds / 2);
            }
    }
}

/* --- Attention --- */

typedef struct heads {
    tm_attention a;
    tm_tensor q, k, v, out, lse, dq, dk, dv, dout, delta;
    bool backward;
} heads;

static void run_attention(bench *b, const void *context)
{
    const heads *p = context;
    if (p->backward)
        TM_RUN(b->d, attention_backward, &b->spans, &p->a, p->dout, p->q, p->k, p->v, p->out, p->lse, p->delta, p->dq, p->dk, p->dv);
    else
        TM_RUN(b->d, attention_forward, &b->spans, &p->a, p->q, p->k, p->v, p->out, p->lse);
}

static void measure_attention(bench *b, int64_t rows, int64_t length, int32_t count, tm_work *rate)
{
    static const int32_t size[TM_HEADS] = {64, 128, 256};
    for (int i = 0; i < TM_HEADS; i++) {
        int64_t n = (int64_t)count * size[i];
        if (!open_bench(b, rows, length, 8 * tm_dtype_bytes(b->act, rows * n) + 2 * tm_dtype_bytes(b->d->real, rows * count)))
            return;
        heads p = {.a = {.heads = count, .kv_heads = count, .head_size = size[i], .scale = 1}};
        tm_tensor *const wide[] = {&p.q, &p.k, &p.v, &p.out, &p.dq, &p.dk, &p.dv, &p.dout};
        for (int k = 0; k < 8; k++)
            *wide[k] = matrix(b, b->act, rows, n);
        p.lse = matrix(b, b->d->real, rows, count);
        p.delta = matrix(b, b->d->real, rows, count);
        double pairs = (double)rows * ((double)length + 1) / 2;
        for (int backward = 0; backward < 2; backward++) {
            p.backward = backward;
            rate->attention[backward][i] = (backward ? 10 : 4) * pairs * (double)n / time_calls(b, run_attention, &p);
        }
        close_bench(b);
    }
}

/* --- Memory, by ops that do little else --- */

typedef struct stream {
    tm_tensor x, sum, y, weight, rstd, gate_up, dgate_up, h;
} stream;

/* What a block does beside its products, or most of it. */
static void run_stream(bench *b, const void *context)
{
    const stream *p = context;
    TM_RUN(b->d, rmsnorm_forward, &b->rows, p->x, p->y, p->weight, 0, 1e-6f, p->sum, p->rstd, p->y);
    TM_RUN(b->d, glu_forward, &b->rows, TM_ACT_SILU, p->gate_up, p->h);
    TM_RUN(b->d, glu_backward, &b->rows, TM_ACT_SILU, p->gate_up, p->h, p->dgate_up, tm_tensor_none());
    TM_RUN(b->d, rmsnorm_backward, &b->rows, p->y, p->sum, p->weight, 0, p->rstd, p->x, tm_tensor_none());
}

static void run_nothing(bench *b, const void *context)
{
    const stream *p = context;
    TM_RUN(b->d, fill, tm_tensor_make(p->rstd.data, b->d->real, 1, 16), 1);
}

static void measure_memory(bench *b, int64_t rows, int64_t width, tm_work *rate)
{
    int64_t ffn = 3 * width;
    tm_dtype act = b->act, real = b->d->real;
    tm_work work = {0};
    tm_device *costing, *device = b->d;
    if (b->status != TM_OK || (b->status = tm_costing_device_create(device->traits, &work, &costing, b->err)) != TM_OK)
        return;
    if (open_bench(b, rows, rows < LENGTH ? rows : LENGTH, tm_dtype_bytes(act, rows * (3 * width + 5 * ffn)) + tm_dtype_bytes(real, rows + width))) {
        stream p = {.x = matrix(b, act, rows, width), .sum = matrix(b, act, rows, width), .y = matrix(b, act, rows, width), .weight = matrix(b, real, 1, width),
                    .rstd = matrix(b, real, 1, rows), .gate_up = matrix(b, act, rows, 2 * ffn), .dgate_up = matrix(b, act, rows, 2 * ffn), .h = matrix(b, act, rows, ffn)};
        b->d = costing; /* says how many bytes that is */
        run_stream(b, &p);
        b->d = device;
        rate->bytes = work.bytes / time_calls(b, run_stream, &p);
        rate->calls = 1 / time_calls(b, run_nothing, &p);
        close_bench(b);
    }
    tm_device_destroy(costing);
}

tm_status tm_calibrate(tm_device *d, tm_calibration *out, tm_error *err)
{
    bench b = {.d = d, .act = d->traits.act, .err = err};
    int64_t peak_bytes = d->peak_bytes;
    *out = (tm_calibration){.reserve = -1};
    for (int i = 0; i < 5; i++)
        out->peak_flops = fmax(out->peak_flops, tm_device_peak_flops(d));
    bool fast = out->peak_flops > 1e13; /* a GPU: its rates grow with the rows, and small work shows nothing */
    measure_products(&b, fast, &out->rate);
    if (fast)
        heat(&b);
    measure_lowrank(&b, fast ? 8192 : SMALL_LENGTH, fast ? 2048 : 256, &out->rate);
    measure_attention(&b, fast ? 8192 : SMALL_LENGTH, fast ? LENGTH : SMALL_LENGTH, fast ? 16 : 4, &out->rate);
    measure_memory(&b, fast ? 8192 : SMALL_LENGTH, fast ? 4096 : 1024, &out->rate);
    d->peak_bytes = peak_bytes;
    if (d->calls->memory) {
        int64_t free_bytes, all;
        d->calls->memory(d, &free_bytes, &all);
        out->reserve = all - free_bytes > d->used_bytes ? all - free_bytes - d->used_bytes : -1;
    }
    double rate[TM_WORK_TERMS];
    terms_of(&out->rate, rate);
    for (int i = 0; i < TM_WORK_TERMS && b.status == TM_OK; i++)
        if (!(rate[i] > 0) || !isfinite(rate[i]))
            return tm_fail(err, TM_FAILED, "the device's rates could not be measured");
    return b.status;
}
