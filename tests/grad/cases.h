/* The ops with tensors in and out, each as cases of the harness (opcase.h): random odd shapes and
 * every option an op has. Used by test_ops (values, bits) and test_grad (derivatives). */
#ifndef TM_TESTS_GRAD_CASES_H
#define TM_TESTS_GRAD_CASES_H

#include "base/philox.h"
#include "keep_cases.h"
#include "opcase.h"
#include "reference.h"

#define RUN(op, ...) TM_RUN(v->device, op, __VA_ARGS__)

static inline int32_t *random_ids(opcase *c, int64_t n, int64_t below)
{
    c->ids = malloc(sizeof(int32_t) * (size_t)(n + 1));
    for (int64_t i = 0; i < n; i++)
        c->ids[i] = (int32_t)rng_in(&c->random, 0, below - 1);
    return c->ids;
}

/* --- embed --- */

enum { EMBED_TABLE, EMBED_Y, EMBED_DY, EMBED_DTABLE };

static inline void embed_forward(const opcase *c, const run_view *v)
{
    RUN(embed_forward, &v->rows, c->ids + v->first, v->t[EMBED_TABLE], c->scale, v->t[EMBED_Y]);
}

static inline void embed_backward(const opcase *c, const run_view *v)
{
    RUN(embed_backward, &v->rows, c->ids + v->first, v->t[EMBED_DY], c->scale, v->t[EMBED_DTABLE]);
}

static inline void embed_reference(const opcase *c, double *const *x)
{
    ref_embed(c->layout.tokens, c->f[EMBED_TABLE].cols, c->ids, x[EMBED_TABLE], (double)c->scale, x[EMBED_Y]);
}

static inline void embed_case(opcase *c, int variant)
{
    layout_random(&c->layout, &c->random, 40, 1);
    int64_t T = c->layout.tokens, C = rng_in(&c->random, 1, 150), V = rng_in(&c->random, 2, 60);
    c->scale = variant % 2 ? 1.0f : 2.5f;
    random_ids(c, T, V);
    for (int64_t t = 0; variant % 3 == 1 && t < T; t++) /* rows that are not from this table */
        if (rng_in(&c->random, 0, 2) == 0)
            c->ids[t] = -1;
    case_field(c, "table", WEIGHT, IN, V, C);
    case_field(c, "y", ACT, ADDED, T, C);
    case_field(c, "dy", ACT, IN, T, C);
    case_field(c, "dtable", REAL, ADDED, V, C);
    c->f[EMBED_TABLE].by_token = c->f[EMBED_DTABLE].by_token = false;
    case_out(c, EMBED_Y, EMBED_DY);
    case_in(c, EMBED_TABLE, EMBED_DTABLE);
    c->forward = embed_forward, c->backward = embed_backward, c->reference = embed_reference;
}

/* --- rmsnorm --- */

enum { NORM_X, NORM_DELTA, NORM_WEIGHT, NORM_SUM, NORM_RSTD, NORM_Y, NORM_DY, NORM_DX, NORM_DWEIGHT };

/* accumulate: with delta; ids[0]: weight gradient wanted */
static inline void rmsnorm_forward(const opcase *c, const run_view *v)
{
    RUN(rmsnorm_forward, &v->rows, v->t[NORM_X], c->accumulate ? v->t[NORM_DELTA] : tm_tensor_none(), v->t[NORM_WEIGHT],
        c->offset, c->eps, v->t[NORM_SUM], v->t[NORM_RSTD], v->t[NORM_Y]);
}

static inline void rmsnorm_backward(const opcase *c, const run_view *v)
{
    RUN(rmsnorm_backward, &v->rows, v->t[NORM_DY], v->t[NORM_SUM], v->t[NORM_WEIGHT], c->offset, v->t[NORM_RSTD], v->t[NORM_DX],
        c->n_ins == 1 ? tm_tensor_none() : v->t[NORM_DWEIGHT]);
}

static inline void rmsnorm_reference(const opcase *c, double *const *x)
{
    ref_rmsnorm(c->layout.tokens, c->f[NORM_X].cols, x[NORM_X], c->accumulate ? x[NORM_DELTA] : NULL, x[NORM_WEIGHT],
                (double)c->offset, (double)c->eps, x[NORM_SUM], x[NORM_RSTD], x[NORM_Y]);
}

static inline void rmsnorm_case(opcase *c, int variant)
{
    layout_random(&c->layout, &c->random, variant == 4 ? 300 : 20, 1);
    int64_t T = c->layout.tokens, C = rng_in(&c->random, 3, 200);
    c->eps = 1e-3f;
    c->offset = variant == 3 || variant == 4 ? 1 : 0;
    c->accumulate = variant & 1;
    case_field(c, "x", ACT, IN, T, C);
    case_field(c, "delta", ACT, IN, T, C);
    case_field(c, "weight", WEIGHT, IN, 1, C);
    case_field(c, "sum", ACT, OUT, T, C);
    case_field(c, "rstd", REAL, OUT, T, 1);
    case_field(c, "y", ACT, OUT, T, C);
    case_field(c, "dy", ACT, IN, T, C);
    case_field(c, "dx", ACT, ADDED, T, C);
    case_field(c, "dweight", REAL, ADDED, 1, C);
    c->f[NORM_RSTD].tight = true; /* a vector over tokens */
    if (variant & 2)
        c->f[NORM_SUM].alias = NORM_X;
    case_out(c, NORM_Y, NORM_DY);
    case_in(c, NORM_X, NORM_DX);
    if (variant != 1)
        case_in(c, NORM_WEIGHT, NORM_DWEIGHT);
    c->forward = rmsnorm_forward, c->backward = rmsnorm_backward, c->reference = rmsnorm_reference;
}

/* --- layernorm --- */

enum { LN_X, LN_DELTA, LN_WEIGHT, LN_BIAS, LN_SUM, LN_MEAN, LN_RSTD, LN_Y, LN_DY, LN_DX, LN_DWEIGHT, LN_DBIAS };

/* accumulate: with delta; n: with bias */
static inline void layernorm_forward(const opcase *c, const run_view *v)
{
    RUN(layernorm_forward, &v->rows, v->t[LN_X], c->accumulate ? v->t[LN_DELTA] : tm_tensor_none(), v->t[LN_WEIGHT],
        c->n ? v->t[LN_BIAS] : tm_tensor_none(), c->eps, v->t[LN_SUM], v->t[LN_MEAN], v->t[LN_RSTD], v->t[LN_Y]);
}

static inline void layernorm_backward(const opcase *c, const run_view *v)
{
    RUN(layernorm_backward, &v->rows, v->t[LN_DY], v->t[LN_SUM], v->t[LN_WEIGHT], v->t[LN_MEAN], v->t[LN_RSTD], v->t[LN_DX],
        c->n_ins == 1 ? tm_tensor_none() : v->t[LN_DWEIGHT], c->n_ins < 3 ? tm_tensor_none() : v->t[LN_DBIAS]);
}

static inline void layernorm_reference(const opcase *c, double *const *x)
{
    ref_layernorm(c->layout.tokens, c->f[LN_X].cols, x[LN_X], c->accumulate ? x[LN_DELTA] : NULL, x[LN_WEIGHT],
                  c->n ? x[LN_BIAS] : NULL, (double)c->eps, x[LN_SUM], x[LN_MEAN], x[LN_RSTD], x[LN_Y]);
}

static inline void layernorm_case(opcase *c, int variant)
{
    layout_random(&c->layout, &c->random, variant == 4 ? 300 : 20, 1);
    int64_t T = c->layout.tokens, C = rng_in(&c->random, 5, 200);
    c->eps = 1e-3f;
    c->accumulate = variant & 1;
    c->n = variant != 5;
    case_field(c, "x", ACT, IN, T, C);
    case_field(c, "delta", ACT, IN, T, C);
    case_field(c, "weight", WEIGHT, IN, 1, C);
    case_field(c, "bias", WEIGHT, IN, 1, C);
    case_field(c, "sum", ACT, OUT, T, C);
    case_field(c, "mean", REAL, OUT, T, 1);
    case_field(c, "rstd", REAL, OUT, T, 1);
    case_field(c, "y", ACT, OUT, T, C);
    case_field(c, "dy", ACT, IN, T, C);
    case_field(c, "dx", ACT, ADDED, T, C);
    case_field(c, "dweight", REAL, ADDED, 1, C);
    case_field(c, "dbias", REAL, ADDED, 1, C);
    c->f[LN_MEAN].tight = c->f[LN_RSTD].tight = true;
    for (int64_t i = 0; i < T * C; i++)
        c->f[LN_X].value[i] += 2; /* a mean to take away */
    if (variant & 2)
        c->f[LN_SUM].alias = LN_X;
    case_out(c, LN_Y, LN_DY);
    case_in(c, LN_X, LN_DX);
    if (variant != 1)
        case_in(c, LN_WEIGHT, LN_DWEIGHT);
    if (variant != 1 && c->n)
        case_in(c, LN_BIAS, LN_DBIAS);
    c->forward = layernorm_forward, c->backward = layernorm_backward, c->reference = layernorm_reference;
}

/* --- rope --- */

enum { ROPE_X, ROPE_COS, ROPE_SIN, ROPE_WEIGHT, ROPE_RSTD, ROPE_Y, ROPE_DY, ROPE_DX, ROPE_DWEIGHT };

/* accumulate: with norm */
static inline void rope_forward(const opcase *c, const run_view *v)
{
    RUN(rope_forward, &v->rows, v->t[ROPE_X], c->heads, v->t[ROPE_COS], v->t[ROPE_SIN],
        c->accumulate ? v->t[ROPE_WEIGHT] : tm_tensor_none(), c->offset, c->eps, c->accumulate ? v->t[ROPE_RSTD] : tm_tensor_none(),
        v->t[ROPE_Y]);
}

static inline void rope_backward(const opcase *c, const run_view *v)
{
    bool norm = c->accumulate;
    RUN(rope_backward, &v->rows, v->t[ROPE_DY], c->heads, v->t[ROPE_COS], v->t[ROPE_SIN],
        norm ? v->t[ROPE_WEIGHT] : tm_tensor_none(), c->offset, norm ? v->t[ROPE_RSTD] : tm_tensor_none(),
        norm ? v->t[ROPE_X] : tm_tensor_none(), v->t[ROPE_DX], norm ? v->t[ROPE_DWEIGHT] : tm_tensor_none());
}

static inline void rope_reference(const opcase *c, double *const *x)
{
    ref_rope(c->layout.tokens, c->heads, c->f[ROPE_X].cols / c->heads, c->f[ROPE_COS].cols, c->layout.position, x[ROPE_X],
             x[ROPE_COS], x[ROPE_SIN], c->accumulate ? x[ROPE_WEIGHT] : NULL, (double)c->offset, (double)c->eps, x[ROPE_RSTD], x[ROPE_Y]);
}

static inline void rope_case(opcase *c, int variant)
{
    static const int64_t sizes[] = {8, 12, 50, 64, 128, 2};
    layout_random(&c->layout, &c->random, variant == 5 ? 300 : 15, 1);
    int64_t T = c->layout.tokens, D = sizes[rng_in(&c->random, 0, 5)], P = 300;
    int64_t half = variant >= 6 ? rng_in(&c->random, 1, D / 2) : D / 2;
    c->heads = rng_in(&c->random, 1, 5);
    c->eps = 1e-2f;
    c->accumulate = variant & 1;
    c->offset = variant == 3 || variant == 7 ? 1 : 0;
    case_field(c, "x", ACT, IN, T, c->heads * D);
    case_field(c, "cos", REAL, IN, P, half);
    case_field(c, "sin", REAL, IN, P, half);
    case_field(c, "weight", WEIGHT, IN, 1, D);
    case_field(c, "rstd", REAL, OUT, T, c->heads);
    case_field(c, "y", ACT, OUT, T, c->heads * D);
    case_field(c, "dy", ACT, IN, T, c->heads * D);
    case_field(c, "dx", ACT, OUT, T, c->heads * D);
    case_field(c, "dweight", REAL, ADDED, 1, D);
    c->f[ROPE_COS].by_token = c->f[ROPE_SIN].by_token = false;
    if (variant == 2 || variant == 8)
        c->f[ROPE_Y].alias = ROPE_X;
    if (variant & 2)
        c->f[ROPE_DX].alias = ROPE_DY;
    case_out(c, ROPE_Y, ROPE_DY);
    case_in(c, ROPE_X, ROPE_DX);
    if (c->accumulate)
        case_in(c, ROPE_WEIGHT, ROPE_DWEIGHT);
    c->forward = rope_forward, c->backward = rope_backward, c->reference = rope_reference;
}

/* --- attention --- */

enum { ATT_Q, ATT_K, ATT_V, ATT_OUT, ATT_LSE, ATT_DOUT, ATT_DELTA, ATT_DQ, ATT_DK, ATT_DV };

static inline void attention_forward(const opcase *c, const run_view *v)
{
    RUN(attention_forward, &v->spans, &c->attention, v->t[ATT_Q], v->t[ATT_K], v->t[ATT_V], v->t[ATT_OUT], v->t[ATT_LSE]);
}

static inline void attention_backward(const opcase *c, const run_view *v)
{
    RUN(attention_backward, &v->spans, &c->attention, v->t[ATT_DOUT], v->t[ATT_Q], v->t[ATT_K], v->t[ATT_V], v->t[ATT_OUT],
        v->t[ATT_LSE], v->t[ATT_DELTA], v->t[ATT_DQ], v->t[ATT_DK], v->t[ATT_DV]);
}

static inline void attention_reference(const opcase *c, double *const *x)
{
    tm_spans spans = layout_spans(&c->layout);
    ref_attention(&spans, &c->attention, x[ATT_Q], x[ATT_K], x[ATT_V], x[ATT_OUT], x[ATT_LSE]);
}

static inline void attention_case(opcase *c, int variant)
{
    static const int32_t sizes[] = {8, 12, 50, 64, 128, 1, 16, 80};
    layout_random(&c->layout, &c->random, variant % 4 == 3 ? 200 : 40, 1);
    int32_t D = sizes[(variant + 3) % 8], K = (int32_t)rng_in(&c->random, 1, 3), G = (int32_t)rng_in(&c->random, 1, 4);
    int64_t T = c->layout.tokens;
    c->attention = (tm_attention){.heads = K * G, .kv_heads = K, .head_size = D, .scale = 1 / sqrtf((float)D),
                                  .window = variant % 3 == 1 ? (int32_t)rng_in(&c->random, 1, 90) : 0,
                                  .softcap = variant % 5 == 2 ? 1.5f : 0};
    case_field(c, "q", ACT, IN, T, K * G * D);
    case_field(c, "k", ACT, IN, T, K * D);
    case_field(c, "v", ACT, IN, T, K * D);
    case_field(c, "out", ACT, OUT, T, K * G * D);
    case_field(c, "lse", REAL, OUT, T, K * G);
    case_field(c, "dout", ACT, IN, T, K * G * D);
    case_field(c, "delta", REAL, OUT, T, K * G);
    case_field(c, "dq", ACT, OUT, T, K * G * D);
    case_field(c, "dk", ACT, OUT, T, K * D);
    case_field(c, "dv", ACT, OUT, T, K * D);
    case_out(c, ATT_OUT, ATT_DOUT);
    case_in(c, ATT_Q, ATT_DQ);
    case_in(c, ATT_K, ATT_DK);
    case_in(c, ATT_V, ATT_DV);
    c->joint = true; /* with a window of 1 the gradients of q and k are 0 */
    c->forward = attention_forward, c->backward = attention_backward, c->reference = attention_reference;
}

/* --- glu --- */

enum { GLU_IN, GLU_H, GLU_DH, GLU_DIN, GLU_AGAIN };

/* n: backward gives h again; in place of dh where that field is an alias */

static inline void glu_forward(const opcase *c, const run_view *v)
{
    RUN(glu_forward, &v->rows, c->act, v->t[GLU_IN], v->t[GLU_H]);
}

static inline void glu_backward(const opcase *c, const run_view *v)
{
    RUN(glu_backward, &v->rows, c->act, v->t[GLU_IN], v->t[GLU_DH], v->t[GLU_DIN], c->n ? v->t[GLU_AGAIN] : tm_tensor_none());
}

static inline void glu_reference(const opcase *c, double *const *x)
{
    ref_glu(c->layout.tokens, c->f[GLU_H].cols, c->f[GLU_IN].cols != c->f[GLU_H].cols, c->act, x[GLU_IN], x[GLU_H]);
}

static inline void glu_case(opcase *c, int variant)
{
    layout_random(&c->layout, &c->random, 30, 1);
    bool gated = variant < 6;
    int64_t T = c->layout.tokens, F = rng_in(&c->random, 1, 130), W = gated ? 2 * F : F;
    c->act = (tm_activation)(variant % 3);
    case_field(c, "gate_up", ACT, IN, T, W);
    case_field(c, "h", ACT, OUT, T, F);
    case_field(c, "dh", ACT, IN, T, F);
    case_field(c, "dgate_up", ACT, OUT, T, W);
    for (int64_t i = 0; i < T * W; i++)
        c->f[GLU_IN].value[i] *= 2;
    c->n = variant % 2;
    if (c->n)
        case_field(c, "h again", ACT, OUT, T, F);
    if (variant == 5)
        c->f[GLU_AGAIN].alias = GLU_DH;
    if (variant % 6 >= 3)
        c->f[GLU_DIN].alias = GLU_IN;
    case_out(c, GLU_H, GLU_DH);
    case_in(c, GLU_IN, GLU_DIN);
    c->forward = glu_forward, c->backward = glu_backward, c->reference = glu_reference;
}

/* --- xent --- */

enum { X_LOGITS, X_TEACHER, X_WEIGHT, X_TWEIGHT, X_SQUARE, X_LOSS, X_KL, X_DLOGITS };

/* accumulate: with a teacher; n: some rows by the mean square, whose weight stands in both vectors as the harness sees one. Losses are vectors: rows of the harness are single numbers. */
static inline void xent_any(const opcase *c, const run_view *v, int logits, bool grad)
{
    bool teacher = c->accumulate;
    opcase *mutable = (opcase *)c;
    RUN(xent, v->t[logits].rows, v->t[logits], c->cap, c->ids + v->first, v->t[X_WEIGHT],
        teacher ? v->t[X_TEACHER] : tm_tensor_none(), teacher ? v->t[X_TWEIGHT] : tm_tensor_none(), c->n ? v->t[X_SQUARE] : tm_tensor_none(), grad, v->t[X_LOSS],
        v->t[X_KL], mutable->hit + v->first);
}
static inline void xent_forward(const opcase *c, const run_view *v) { xent_any(c, v, X_LOGITS, false); }
static inline void xent_backward(const opcase *c, const run_view *v) { xent_any(c, v, X_DLOGITS, true); }

static inline void xent_reference(const opcase *c, double *const *x)
{
    int32_t hit[4096];
    ref_xent(c->layout.tokens, c->f[X_LOGITS].cols, x[X_LOGITS], (double)c->cap, c->ids, c->accumulate ? x[X_TEACHER] : NULL,
             c->n ? x[X_SQUARE] : NULL, x[X_LOSS], x[X_KL], hit);
    for (int64_t i = 0; i < c->layout.tokens; i++)
        if (hit[i] != c->hit[i])
            x[X_LOSS][i] = NAN; /* makes the comparison fail */
}

static inline void xent_case(opcase *c, int variant)
{
    layout_random(&c->layout, &c->random, 12, 1);
    int64_t T = c->layout.tokens, V = variant == 4 ? 5001 : rng_in(&c->random, 2, 200);
    c->cap = variant >= 6 && variant < 10 ? 5 : 0;
    c->accumulate = variant & 1;
    c->n = variant >= 8 || variant == 3;
    random_ids(c, T, V);
    case_field(c, "logits", ACT, IN, T, V);
    case_field(c, "teacher", ACT, IN, T, V);
    case_field(c, "weight", REAL, IN, T, 1);
    case_field(c, "teacher_weight", REAL, IN, T, 1);
    case_field(c, "square_weight", REAL, IN, T, 1);
    case_field(c, "loss", REAL, OUT, T, 1);
    case_field(c, "kl", REAL, OUT, T, 1);
    case_field(c, "dlogits", ACT, ADDED, T, V);
    for (int i = X_WEIGHT; i <= X_KL; i++)
        c->f[i].tight = true;
    for (int64_t i = 0; i < T; i++)
    {
        c->f[X_WEIGHT].value[i] = i % 5 == 3 ? 0 : c->f[X_WEIGHT].value[i];
        c->f[X_SQUARE].value[i] = i % 3 == 1 ? 0 : c->f[X_TWEIGHT].value[i];
    }
    for (int64_t i = 0; i < T * V; i++) {
        double z = c->f[X_LOGITS].value[i] *= 4;
        c->f[X_TEACHER].value[i] *= 2;
        c->f[X_DLOGITS].value[i] = z; /* backward overwrites its copy of the logits */
    }
    case_out(c, X_LOSS, X_WEIGHT);
    if (c->accumulate)
        case_out(c, X_KL, X_TWEIGHT);
    case_in(c, X_LOGITS, X_DLOGITS);
    c->forward = xent_forward, c->backward = xent_backward, c->reference = xent_reference;
}

/* --- dropout: the derivative checks that backward has the mask of forward --- */

enum { DROP_X, DROP_Y, DROP_DY, DROP_DX };

static inline void dropout_forward(const opcase *c, const run_view *v)
{
    RUN(dropout, &v->rows, c->step, 7, c->p, false, v->t[DROP_X], v->t[DROP_Y]);
}

static inline void dropout_backward(const opcase *c, const run_view *v)
{
    RUN(dropout, &v->rows, c->step, 7, c->p, c->accumulate, v->t[DROP_DY], v->t[DROP_DX]);
}

static inline void dropout_reference(const opcase *c, double *const *x)
{
    int64_t C = c->f[DROP_X].cols, replica = 0;
    for (int64_t t = 0; t < c->layout.tokens; t++) {
        while (t >= c->layout.group[replica + 1])
            replica++;
        for (int64_t i = 0; i < C; i++) {
            tm_philox r = tm_philox_at(c->step[replica].dropout_key, (uint32_t)(i / 4), (uint32_t)c->layout.position[t],
                                       c->layout.example[t], 7);
            bool keep = tm_philox_uniform(r.word[i % 4]) >= c->p;
            x[DROP_Y][t * C + i] = keep ? x[DROP_X][t * C + i] * (double)(1.0f / (1.0f - c->p)) : 0;
        }
    }
}

static inline void dropout_case(opcase *c, int variant)
{
    layout_random(&c->layout, &c->random, 30, variant == 3 ? 3 : 1);
    int64_t T = c->layout.tokens, C = variant == 2 ? 2050 : rng_in(&c->random, 1, 200);
    static const float p[] = {0.25f, 0, 0.1f, 0.5f};
    c->p = p[variant % 4];
    c->accumulate = variant & 1;
    c->splits = c->layout.replicas == 1;
    for (int r = 0; r < MAX_EXAMPLES; r++)
        c->step[r].dropout_key = rng_next(&c->random);
    case_field(c, "x", ACT, IN, T, C);
    case_field(c, "y", ACT, OUT, T, C);
    case_field(c, "dy", ACT, IN, T, C);
    case_field(c, "dx", ACT, c->accumulate ? ADDED : OUT, T, C);
    case_out(c, DROP_Y, DROP_DY);
    case_in(c, DROP_X, DROP_DX);
    c->forward = dropout_forward, c->backward = dropout_backward, c->reference = dropout_reference;
}

/* --- gather and scatter: each is the other's transpose --- */

enum { GS_X, GS_Y, GS_DY, GS_DX };

static inline void gather_forward(const opcase *c, const run_view *v) { RUN(gather_rows, c->n, c->ids, v->t[GS_X], v->t[GS_Y]); }
static inline void gather_backward(const opcase *c, const run_view *v)
{
    RUN(scatter_rows, c->n, c->ids, v->t[GS_DY], v->t[GS_DX].rows, v->t[GS_DX]);
}

static inline void gather_reference(const opcase *c, double *const *x)
{
    int64_t C = c->f[GS_X].cols;
    for (int64_t i = 0; i < c->n * C; i++)
        x[GS_Y][i] = x[GS_X][c->ids[i / C] * C + i % C];
}

static inline void gather_case(opcase *c, int variant)
{
    (void)variant;
    layout_random(&c->layout, &c->random, 30, 1);
    int64_t T = c->layout.tokens, C = rng_in(&c->random, 1, 100);
    c->splits = false;
    c->ids = malloc(sizeof(int32_t) * (size_t)T);
    for (int64_t t = 0; t < T; t++)
        if (rng_unit(&c->random) < 0.5)
            c->ids[c->n++] = (int32_t)t;
    case_field(c, "x", ACT, IN, T, C);
    case_field(c, "y", ACT, OUT, c->n, C);
    case_field(c, "dy", ACT, IN, c->n, C);
    case_field(c, "dx", ACT, OUT, T, C);
    case_out(c, GS_Y, GS_DY);
    case_in(c, GS_X, GS_DX);
    c->forward = gather_forward, c->backward = gather_backward, c->reference = gather_reference;
}

/* --- Every case --- */

typedef struct case_kind {
    const char *name;
    void (*make)(opcase *c, int variant);
    int variants;
} case_kind;

static const case_kind case_kinds[] = {
    {"embed", embed_case, 3},   {"rmsnorm", rmsnorm_case, 5},     {"layernorm", layernorm_case, 6}, {"rope", rope_case, 10},
    {"glu", glu_case, 12},      {"attention", attention_case, 16}, {"xent", xent_case, 12},
    {"dropout", dropout_case, 4}, {"gather", gather_case, 3},
    {"anchor", anchor_case, 4}, {"delta_anchor", delta_case, 7},  {"overlap", overlap_case, 3},
    {"square_add", square_case, 2}, {"path_add", path_case, 2},
};
enum { CASE_KINDS = sizeof case_kinds / sizeof *case_kinds };

static inline opcase *case_make(const case_kind *k, int variant, uint64_t seed)
{
    opcase *c = malloc(sizeof *c);
    case_init(c, k->name, seed + (uint64_t)variant * 1000003);
    k->make(c, variant);
    snprintf(c->note, sizeof c->note, "%s variant %d seed %llu", k->name, variant, (unsigned long long)seed);
    return c;
}

static inline void case_free(opcase *c)
{
    case_deinit(c);
    free(c);
}

#endif
