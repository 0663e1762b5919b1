/* What every op means, in the plainest double-precision loops there can be: the yardstick of the
 * op tests. Shares no code with src/device; matrices are contiguous row-major doubles. Only the
 * forward side is written out: backward passes are checked against central differences of it. */
#ifndef TM_TESTS_GRAD_REFERENCE_H
#define TM_TESTS_GRAD_REFERENCE_H

#include "device/device.h"

#include <math.h>
#include <stdlib.h>

/* embed.c: y = scale * table[ids] */
static inline void ref_embed(int64_t T, int64_t C, const int32_t *ids, const double *table, double scale, double *y)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t c = 0; ids[t] >= 0 && c < C; c++)
            y[t * C + c] = scale * table[ids[t] * C + c];
}

/* rmsnorm.c; delta may be NULL. */
static inline void ref_rmsnorm(int64_t T, int64_t C, const double *x, const double *delta, const double *weight,
                               double offset, double eps, double *sum, double *rstd, double *y)
{
    for (int64_t t = 0; t < T; t++) {
        double squares = 0;
        for (int64_t c = 0; c < C; c++) {
            double s = x[t * C + c] + (delta ? delta[t * C + c] : 0);
            sum[t * C + c] = s;
            squares += s * s;
        }
        rstd[t] = 1 / sqrt(squares / (double)C + eps);
        for (int64_t c = 0; c < C; c++)
            y[t * C + c] = sum[t * C + c] * rstd[t] * (weight[c] + offset);
    }
}

/* layernorm.c; delta and bias may be NULL. */
static inline void ref_layernorm(int64_t T, int64_t C, const double *x, const double *delta, const double *weight,
                                 const double *bias, double eps, double *sum, double *mean, double *rstd, double *y)
{
    for (int64_t t = 0; t < T; t++) {
        double total = 0, squares = 0;
        for (int64_t c = 0; c < C; c++)
            total += sum[t * C + c] = x[t * C + c] + (delta ? delta[t * C + c] : 0);
        mean[t] = total / (double)C;
        for (int64_t c = 0; c < C; c++)
            squares += (sum[t * C + c] - mean[t]) * (sum[t * C + c] - mean[t]);
        rstd[t] = 1 / sqrt(squares / (double)C + eps);
        for (int64_t c = 0; c < C; c++)
            y[t * C + c] = (sum[t * C + c] - mean[t]) * rstd[t] * weight[c] + (bias ? bias[c] : 0);
    }
}

/* rope.c; the first 2 * half columns of a head are rotated; weight may be NULL (no norm; rstd is then not written). */
static inline void ref_rope(int64_t T, int64_t H, int64_t D, int64_t half, const int32_t *position, const double *x,
                            const double *cosine, const double *sine, const double *weight, double offset, double eps,
                            double *rstd, double *y)
{
    double n[512];
    for (int64_t t = 0; t < T; t++)
        for (int64_t h = 0; h < H; h++) {
            const double *in = x + (t * H + h) * D;
            double *out = y + (t * H + h) * D, squares = 0;
            for (int64_t i = 0; i < D; i++)
                squares += in[i] * in[i];
            double r = 1 / sqrt(squares / (double)D + eps);
            for (int64_t i = 0; i < D; i++)
                out[i] = n[i] = weight ? in[i] * r * (weight[i] + offset) : in[i];
            if (weight)
                rstd[t * H + h] = r;
            for (int64_t i = 0; i < half; i++) {
                double c = cosine[position[t] * half + i], s = sine[position[t] * half + i];
                out[i] = n[i] * c - n[i + half] * s;
                out[i + half] = n[i + half] * c + n[i] * s;
            }
        }
}

/* attention.c; lse may be NULL. */
static inline void ref_attention(const tm_spans *spans, const tm_attention *a, const double *q, const double *k,
                                 const double *v, double *out, double *lse)
{
    int64_t H = a->heads, K = a->kv_heads, D = a->head_size, G = H / K;
    for (int64_t e = 0; e < spans->n; e++) {
        int64_t queries = spans->query[e + 1] - spans->query[e], keys = spans->keys[e];
        double *p = malloc(sizeof(double) * (size_t)keys);
        for (int64_t i = 0; i < queries; i++)
            for (int64_t h = 0; h < H; h++) {
                int64_t t = spans->query[e] + i, at = keys - queries + i;
                const double *query = q + (t * H + h) * D;
                double max = -INFINITY, sum = 0;
                for (int64_t j = 0; j < keys; j++) {
                    bool seen = j <= at && (a->window <= 0 || j > at - a->window);
                    double s = 0;
                    for (int64_t c = 0; c < D; c++)
                        s += query[c] * k[((spans->key[e] + j) * K + h / G) * D + c];
                    s *= (double)a->scale;
                    if (a->softcap > 0)
                        s = (double)a->softcap * tanh(s / (double)a->softcap);
                    p[j] = seen ? s : -INFINITY;
                    max = fmax(max, p[j]);
                }
                for (int64_t j = 0; j < keys; j++)
                    sum += p[j] = exp(p[j] - max);
                for (int64_t c = 0; c < D; c++) {
                    double o = 0;
                    for (int64_t j = 0; j < keys; j++)
                        o += p[j] / sum * v[((spans->key[e] + j) * K + h / G) * D + c];
                    out[(t * H + h) * D + c] = o;
                }
                if (lse)
                    lse[t * H + h] = max + log(sum);
            }
        free(p);
    }
}

static inline double ref_act(tm_activation act, double g)
{
    switch (act) {
    case TM_ACT_SILU: return g / (1 + exp(-g));
    case TM_ACT_GELU_TANH: return g * 0.5 * (1 + tanh(sqrt(2 / M_PI) * (g + 0.044715 * g * g * g)));
    default: return g * 0.5 * erfc(-g / sqrt(2));
    }
}

/* glu.c */
static inline void ref_glu(int64_t T, int64_t F, bool gated, tm_activation act, const double *gate_up, double *h)
{
    for (int64_t t = 0; t < T; t++)
        for (int64_t f = 0; f < F; f++)
            h[t * F + f] = gated ? ref_act(act, gate_up[t * 2 * F + f]) * gate_up[t * 2 * F + F + f] : ref_act(act, gate_up[t * F + f]);
}

static inline double ref_lse(int64_t V, const double *z)
{
    double max = -INFINITY, sum = 0;
    for (int64_t v = 0; v < V; v++)
        max = fmax(max, z[v]);
    for (int64_t v = 0; v < V; v++)
        sum += exp(z[v] - max);
    return max + log(sum);
}

static inline void ref_softcap(int64_t n, double cap, const double *x, double *y)
{
    for (int64_t i = 0; i < n; i++)
        y[i] = cap > 0 ? cap * tanh(x[i] / cap) : x[i];
}

/* xent.c; teacher may be NULL (kl is then not written); rows whose square (may be NULL) is not 0: the mean square. */
static inline void ref_xent(int64_t n, int64_t V, const double *logits, double cap, const int32_t *target,
                            const double *teacher, const double *square, double *loss, double *kl, int32_t *hit)
{
    double *z = malloc(sizeof(double) * (size_t)(2 * V)), *w = z + V;
    for (int64_t i = 0; i < n; i++) {
        ref_softcap(V, cap, logits + i * V, z);
        double lse = ref_lse(V, z);
        int64_t best = 0;
        for (int64_t v = 1; v < V; v++)
            if (z[v] > z[best])
                best = v;
        loss[i] = lse - z[target[i]];
        hit[i] = best == target[i];
        if (teacher) {
            ref_softcap(V, cap, teacher + i * V, w);
            double lse_t = ref_lse(V, w), sum = 0;
            for (int64_t v = 0; v < V; v++)
                if (square && square[i] != 0)
                    sum += (z[v] - w[v]) * (z[v] - w[v]) / (double)V;
                else if (w[v] > -INFINITY)
                    sum += exp(w[v] - lse_t) * ((w[v] - lse_t) - (z[v] - lse));
            kl[i] = sum;
        }
    }
    free(z);
}

#endif
