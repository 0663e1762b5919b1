/* Every op beside the matrix product, at the shape of a 135M-parameter llama: T 1024 in spans of 256,
 * C 576, H 9, K 3, D 64, F 1536, V 49152. Each is compared with the machine's limit: attention with the
 * peak of fused multiply-adds on registers, the others with copying as many bytes as they must move
 * (working set as large, so in the same cache). Low-rank deltas (delta_anchor: 1024 x 1024, rank 16; and overlap with 64 rows of old
 * ones) are compared with the peak too; linear forward stands beside them, at T 1024 and 1024 x 1024.
 * With one thread the time is the processor's own, so that other programs count less.
 * usage: build/cpu/bench/ops [threads] [avx512|avx2|scalar] [span length] [head size] [part of an op's name] */
#include "peak.h"

#include <stdio.h>
#include <stdlib.h>

enum { T = 1024, C = 576, H = 9, K = 3, F = 1536, V = 49152, TARGETS = 128, TRAINED = 16 << 20, SIDE = 1024, RANK = 16, OLD = 64, BLOCK_BYTES = 65536 };

static double best_of(void (*call)(void *), void *context)
{
    call(context);
    double best = 1e30, end = now() + 0.3;
    for (int i = 0; i < 5 || now() < end; i++) {
        double t = now();
        call(context);
        t = now() - t;
        best = t < best ? t : best;
    }
    return best;
}

/* --- Limits --- */

typedef struct copy {
    tm_pool *pool;
    char *from, *to;
    int64_t bytes;
} copy;

static void copy_task(void *context, int64_t task, int thread)
{
    const copy *c = context;
    (void)thread;
    int64_t start = task * BLOCK_BYTES, count = c->bytes - start < BLOCK_BYTES ? c->bytes - start : BLOCK_BYTES;
    memcpy(c->to + start, c->from + start, (size_t)count);
}

static void copy_all(void *context)
{
    copy *c = context;
    tm_pool_run(c->pool, copy_task, c, (c->bytes + BLOCK_BYTES - 1) / BLOCK_BYTES);
}

/* --- Ops --- */

typedef struct bench {
    tm_device *d;
    tm_rows rows;
    tm_spans spans;
    tm_attention a;
    tm_step_params step;
    tm_trained trained;
    int32_t *ids;
    tm_tensor x, y, z, w, dw, rstd, cos, sin, q, k, v, out, dq, dk, dv, lse, delta, gate_up, h, logits, teacher, weight, loss, kl, table;
    int32_t hit[TARGETS];
    tm_lowrank lr, start;
    tm_tensor importance, da, db, old, lx, ly;
    double penalty;
} bench;

static tm_tensor tensor(int64_t rows, int64_t cols)
{
    float *p = aligned_alloc(4096, (size_t)(rows * cols * 4 + 4095) / 4096 * 4096);
    uint32_t s = 12345;
    for (int64_t i = 0; p && i < rows * cols; i++) {
        s = s * 1664525u + 1013904223u;
        p[i] = (float)(s >> 8) * 0x1p-23f - 1;
    }
    return tm_tensor_make(p, TM_F32, rows, cols);
}

#define CALL(name, op, ...)                                 \
    static void name(void *context)                         \
    {                                                       \
        bench *b = context;                                 \
        TM_RUN(b->d, op, __VA_ARGS__);                      \
    }
CALL(embed_f, embed_forward, &b->rows, b->ids, b->table, 1, b->x)
CALL(embed_b, embed_backward, &b->rows, b->ids, b->x, 1, b->table)
CALL(norm_f, rmsnorm_forward, &b->rows, b->x, b->y, b->w, 0, 1e-5f, b->z, b->rstd, b->y)
CALL(norm_b, rmsnorm_backward, &b->rows, b->y, b->z, b->w, 0, b->rstd, b->x, tm_tensor_none())
CALL(norm_bw, rmsnorm_backward, &b->rows, b->y, b->z, b->w, 0, b->rstd, b->x, b->dw)
CALL(rope_f, rope_forward, &b->rows, b->q, H, b->cos, b->sin, tm_tensor_none(), 0, 0, tm_tensor_none(), b->dq)
CALL(rope_b, rope_backward, &b->rows, b->dq, H, b->cos, b->sin, tm_tensor_none(), 0, tm_tensor_none(), tm_tensor_none(), b->q, tm_tensor_none())
CALL(att_f, attention_forward, &b->spans, &b->a, b->q, b->k, b->v, b->out, b->lse)
CALL(att_b, attention_backward, &b->spans, &b->a, b->out, b->q, b->k, b->v, b->out, b->lse, b->delta, b->dq, b->dk, b->dv)
CALL(glu_f, glu_forward, &b->rows, TM_ACT_SILU, b->gate_up, b->h)
CALL(glu_b, glu_backward, &b->rows, TM_ACT_SILU, b->gate_up, b->h, b->gate_up, tm_tensor_none())
CALL(gelu_f, glu_forward, &b->rows, TM_ACT_GELU_TANH, b->gate_up, b->h)
CALL(xent_l, xent, TARGETS, b->logits, 0, b->ids, b->weight, tm_tensor_none(), tm_tensor_none(), tm_tensor_none(), false, b->loss, b->kl, b->hit)
CALL(xent_g, xent, TARGETS, b->logits, 0, b->ids, b->weight, tm_tensor_none(), tm_tensor_none(), tm_tensor_none(), true, b->loss, b->kl, b->hit)
CALL(xent_t, xent, TARGETS, b->logits, 0, b->ids, b->weight, b->teacher, b->weight, tm_tensor_none(), true, b->loss, b->kl, b->hit)
CALL(gather_b, gather_rows, T, b->ids, b->x, b->y)
CALL(scatter_b, scatter_rows, T, b->rows.position, b->x, T, b->y)
CALL(axpy_b, axpy, 0.5, b->x, b->y)
CALL(dropout_b, dropout, &b->rows, &b->step, 3, 0.05f, false, b->x, b->y)
CALL(norm_g, grad_norm, 1, &b->trained, 1, 1.0, &b->step)
CALL(adam_b, adamw, 1, &b->trained, 0.9, 0.999, 1e-8, &b->step)
CALL(sgd_b, sgd, 1, &b->trained, 0.9, false, &b->step)
static void trail_b(void *context)
{
    bench *b = context;
    uint64_t out;
    TM_RUN(b->d, trail, 1, &b->trained, &out);
}

CALL(linear_b, linear_forward, &b->rows, b->lx, b->importance, tm_tensor_none(), b->ly)
CALL(anchor_b, anchor, b->trained.value, b->trained.m, b->trained.v, 1e-9, b->trained.grad, &b->penalty)
CALL(delta_b, delta_anchor, &b->lr, NULL, tm_tensor_none(), 1e-9, b->da, b->db, &b->penalty)
CALL(delta_i, delta_anchor, &b->lr, NULL, b->importance, 1e-9, b->da, b->db, &b->penalty)
CALL(delta_s, delta_anchor, &b->lr, &b->start, b->importance, 1e-9, b->da, b->db, &b->penalty)
CALL(overlap_b, overlap, b->old, b->lr.a, 1e-9, b->da, &b->penalty)
CALL(square_b, square_add, 1e-9, b->trained.grad, b->trained.m)
CALL(path_b, path_add, b->trained.grad, b->trained.m, b->trained.value, b->trained.v)
CALL(sample_b, sample_targets, TARGETS, b->logits, 0, 7, NULL, b->hit)

static void setup(bench *b, int64_t span, int64_t D)
{
    int64_t spans = T / span, chunks = 0;
    int32_t *position = malloc(T * 4), *query = calloc((size_t)spans + 1, 4), *keys = malloc((size_t)spans * 4);
    int32_t *chunk = malloc(T * 4), *group = calloc(2, 4), *group_chunk = calloc(2, 4);
    uint32_t *example = malloc(T * 4);
    b->ids = malloc(T * 4);
    for (int32_t t = 0; t < T; t++) {
        position[t] = (int32_t)(t % span);
        example[t] = (uint32_t)(t / span);
        b->ids[t] = (t * 37) % T;
        if (position[t] % TM_CHUNK_TOKENS == 0)
            chunk[chunks++] = t;
    }
    for (int64_t e = 0; e < spans; e++) {
        query[e + 1] = (int32_t)((e + 1) * span);
        keys[e] = (int32_t)span;
    }
    chunk[chunks] = group[1] = T;
    group_chunk[1] = (int32_t)chunks;
    b->rows = (tm_rows){T, 1, chunks, position, example, chunk, group, group_chunk, false};
    b->spans = (tm_spans){spans, query, query, keys, 0};
    b->a = (tm_attention){H, K, (int32_t)D, 1 / sqrtf((float)D), 0, 0};
    tm_tensor *wide[] = {&b->x, &b->y, &b->z}, *heads[] = {&b->q, &b->out, &b->dq}, *kv[] = {&b->k, &b->v, &b->dk, &b->dv};
    for (int i = 0; i < 3; i++)
        *wide[i] = tensor(T, C), *heads[i] = tensor(T, H * D);
    for (int i = 0; i < 4; i++)
        *kv[i] = tensor(T, K * D);
    b->w = tensor(1, C), b->dw = tensor(1, C), b->rstd = tensor(1, T);
    b->cos = tensor(T, D / 2), b->sin = tensor(T, D / 2), b->lse = tensor(T, H), b->delta = tensor(T, H);
    b->gate_up = tensor(T, 2 * F), b->h = tensor(T, F);
    b->logits = tensor(TARGETS, V), b->teacher = tensor(TARGETS, V), b->weight = tensor(1, TARGETS);
    b->loss = tensor(1, TARGETS), b->kl = tensor(1, TARGETS), b->table = tensor(V, C);
    b->trained = (tm_trained){tensor(1, TRAINED), tensor(1, TRAINED), tensor(1, TRAINED), tensor(1, TRAINED), 0.01f, 1, 0, 0, 0};
    TM_RUN(b->d, fill, b->trained.v, 0.01);
    b->lr = (tm_lowrank){.a = tensor(RANK, SIDE), .b = tensor(SIDE, RANK), .scale = 2};
    b->start = (tm_lowrank){.a = tensor(RANK, SIDE), .b = tensor(SIDE, RANK), .scale = 2};
    b->importance = tensor(SIDE, SIDE), b->da = tensor(RANK, SIDE), b->db = tensor(SIDE, RANK), b->old = tensor(OLD, SIDE);
    b->lx = tensor(T, SIDE), b->ly = tensor(T, SIDE);
    b->step = (tm_step_params){.lr = 1e-9, .bias1 = 1, .bias2 = 1, .clip = 1};
}

int main(int argc, char **argv)
{
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    const char *name = argc > 2 ? argv[2] : "avx512";
    tm_isa isa = !strcmp(name, "avx512") ? TM_ISA_AVX512 : !strcmp(name, "avx2") ? TM_ISA_AVX2 : TM_ISA_SCALAR;
    int64_t span = argc > 3 ? atoi(argv[3]) : 256, D = argc > 4 ? atoi(argv[4]) : 64;
    const char *only = argc > 5 ? argv[5] : "";
    tm_error err;
    static bench b;
    if (tm_cpu_device_create(threads, isa, &b.d, &err) != TM_OK) {
        fprintf(stderr, "ops: %s\n", err.message);
        return 2;
    }
    bench_clock_for(tm_cpu_of(b.d)->pool);
    setup(&b, span, D);
    double pairs = 0.5 * (double)span * (double)(span + 1) * (double)(T / span) * H; /* (query, key) pairs that see each other */
    double row = 4.0 * T * C, logits = 4.0 * TARGETS * V, trained = 4.0 * TRAINED, side = 2.0 * SIDE * SIDE;
    const struct {
        const char *name;
        void (*call)(void *);
        double flops, bytes; /* one of the two */
    } list[] = {
        {"attention forward", att_f, 4.0 * (double)D * pairs, 0}, {"attention backward", att_b, 10.0 * (double)D * pairs, 0},
        {"embed forward", embed_f, 0, 2 * row},       {"embed backward", embed_b, 0, 3 * row},
        {"rmsnorm forward", norm_f, 0, 4 * row},      {"rmsnorm backward", norm_b, 0, 4 * row},
        {"rmsnorm backward + w", norm_bw, 0, 6 * row}, {"rope forward", rope_f, 0, 2 * row},
        {"rope backward", rope_b, 0, 2 * row},        {"silu forward", glu_f, 0, 4.0 * T * 3 * F},
        {"silu backward", glu_b, 0, 4.0 * T * 5 * F}, {"gelu_tanh forward", gelu_f, 0, 4.0 * T * 3 * F},
        {"xent loss", xent_l, 0, logits},             {"xent gradient", xent_g, 0, 3 * logits},
        {"xent with teacher", xent_t, 0, 6 * logits}, {"gather", gather_b, 0, 2 * row},
        {"scatter", scatter_b, 0, 3 * row},           {"axpy", axpy_b, 0, 3 * row},
        {"dropout", dropout_b, 0, 2 * row},           {"grad_norm", norm_g, 0, trained},
        {"adamw", adam_b, 0, 7 * trained},            {"sgd", sgd_b, 0, 5 * trained},
        {"trail", trail_b, 0, trained},                {"anchor", anchor_b, 0, 5 * trained},
        {"square_add", square_b, 0, 3 * trained},     {"path_add", path_b, 0, 5 * trained},
        {"sample_targets", sample_b, 0, 2 * logits},  {"linear forward", linear_b, side * T, 0},
        {"delta_anchor", delta_b, side * 3 * RANK, 0}, {"delta_anchor + F", delta_i, side * 3 * RANK, 0},
        {"delta_anchor + start", delta_s, side * 4 * RANK, 0}, {"overlap", overlap_b, 4.0 * OLD * RANK * SIDE, 0},
    };
    tm_pool *pool = tm_cpu_of(b.d)->pool;
    double most = 0; /* a second */
    for (int i = 0; i < 50; i++)
        most = fmax(most, peak_rate(peak_of(isa, false), pool));
    printf("%s; peak %.0f GFLOP/s; spans of %lld, heads of %lld\n", b.d->detail, most * 1e-9, (long long)span, (long long)D);
    printf("%-22s %9s %10s %8s %10s\n", "op", "ms", "GFLOP/s", "GB/s", "of limit");
    copy c = {.pool = pool, .from = b.table.data, .to = b.trained.value.data};
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        if (!strstr(list[i].name, only))
            continue;
        double t = best_of(list[i].call, &b), limit = list[i].flops / most;
        if (list[i].bytes > 0) {
            double room = 4.0 * TRAINED, repeat = fmax(1, list[i].bytes / 2 / room);
            c.bytes = (int64_t)fmin(room, list[i].bytes / 2);
            limit = best_of(copy_all, &c) * repeat;
        }
        printf("%-22s %9.3f %10.1f %8.1f %10.2f\n", list[i].name, t * 1e3, list[i].flops / t * 1e-9, list[i].bytes / t * 1e-9, limit / t);
        fflush(stdout);
    }
    tm_device_destroy(b.d);
    return 0;
}
