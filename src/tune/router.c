/* Routers: see router.h. On the host, in double, one thread: the same bits everywhere. */
#include "tune/router.h"

#include "base/buf.h"
#include "base/file.h"
#include "io/safetensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Solves A X = B in place: A [n, n] symmetric and positive definite, B [n, m]. False: it is not. */
static bool solve(double *a, int64_t n, double *b, int64_t m)
{
    for (int64_t j = 0; j < n; j++) { /* A = L L^T */
        for (int64_t k = 0; k < j; k++)
            a[j * n + j] -= a[j * n + k] * a[j * n + k];
        if (!(a[j * n + j] > 0))
            return false;
        a[j * n + j] = sqrt(a[j * n + j]);
        for (int64_t i = j + 1; i < n; i++) {
            for (int64_t k = 0; k < j; k++)
                a[i * n + j] -= a[i * n + k] * a[j * n + k];
            a[i * n + j] /= a[j * n + j];
        }
    }
    for (int64_t c = 0; c < m; c++) {
        for (int64_t i = 0; i < n; i++) {
            for (int64_t k = 0; k < i; k++)
                b[i * m + c] -= a[i * n + k] * b[k * m + c];
            b[i * m + c] /= a[i * n + i];
        }
        for (int64_t i = n - 1; i >= 0; i--) {
            for (int64_t k = i + 1; k < n; k++)
                b[i * m + c] -= a[k * n + i] * b[k * m + c];
            b[i * m + c] /= a[i * n + i];
        }
    }
    return true;
}

/* What makes the mean square of h one: a mean over many tokens is shorter than one over few. */
static double scale_of(const float *h, int64_t width)
{
    double square = 0;
    for (int64_t i = 0; i < width; i++)
        square += (double)h[i] * h[i];
    return square > 0 ? sqrt((double)width / square) : 0;
}

/* (X^T X + n lambda s I) W = X^T G, X with a column of ones whose weight is not held small; s = mean of h^2. */
tm_status tm_router_fit(const float *h, const float *gates, int64_t n, int64_t width, int64_t count, double lambda, tm_router *out, tm_error *err)
{
    int64_t D = width + 1;
    double *a = NULL, *b = NULL, square = 0;
    tm_status st = TM_OK;
    *out = (tm_router){.width = width, .gates = count};
    TM_GO(TM_NEW(&a, D * D, err));
    TM_GO(TM_NEW(&b, D * count, err));
    TM_GO(TM_NEW(&out->weight, count * D, err));
    for (int64_t t = 0; t < n; t++) {
        const float *x = h + t * width, *g = gates + t * count;
        double scale = scale_of(x, width);
        for (int64_t i = 0; i < D; i++) {
            double xi = i < width ? scale * x[i] : 1;
            square += i < width ? xi * xi : 0;
            for (int64_t k = 0; k <= i; k++)
                a[i * D + k] += xi * (k < width ? scale * x[k] : 1);
            for (int64_t k = 0; k < count; k++)
                b[i * count + k] += xi * g[k];
        }
    }
    for (int64_t i = 0; i < width; i++)
        a[i * D + i] += lambda * square / (double)width;
    if (!(square > 0) || !solve(a, D, b, count))
        TM_GO(tm_fail(err, TM_INPUT, "the router has nothing to learn from: %lld examples", (long long)n));
    for (int64_t i = 0; i < D; i++)
        for (int64_t k = 0; k < count; k++)
            out->weight[k * D + i] = (float)b[i * count + k]; /* as the file will have it */
out:
    free(a);
    free(b);
    if (st != TM_OK)
        tm_router_deinit(out);
    return st;
}

void tm_router_deinit(tm_router *router)
{
    free(router->weight);
    *router = (tm_router){0};
}

void tm_router_gates(const tm_router *r, const float *h, float *gates)
{
    for (int64_t k = 0; k < r->gates; k++) {
        const double *w = r->weight + k * (r->width + 1);
        double sum = w[r->width], scale = scale_of(h, r->width);
        for (int64_t i = 0; i < r->width; i++)
            sum += w[i] * scale * h[i];
        gates[k] = (float)sum;
    }
}

static char *router_path(const char *dir, tm_error *err) { return tm_path_join(dir, "router.safetensors", err); }

bool tm_router_there(const char *dir)
{
    tm_error ignored;
    char *path = router_path(dir, &ignored);
    bool there = path && tm_path_exists(path);
    free(path);
    return there;
}

tm_status tm_router_write(const tm_router *r, const char *dir, tm_error *err)
{
    static const char *const metadata[] = {"format", "pt", NULL};
    tm_status st = TM_OK;
    float *weight = NULL, *bias = NULL;
    char *path = router_path(dir, err);
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(TM_NEW(&weight, r->gates * r->width, err));
    TM_GO(TM_NEW(&bias, r->gates, err));
    for (int64_t k = 0; k < r->gates; k++) {
        for (int64_t i = 0; i < r->width; i++)
            weight[k * r->width + i] = (float)r->weight[k * (r->width + 1) + i];
        bias[k] = (float)r->weight[k * (r->width + 1) + r->width];
    }
    tm_st_tensor tensors[] = {{.name = "bias", .dtype = TM_F32, .ndim = 1, .shape = {r->gates}, .count = r->gates, .bytes = r->gates * 4, .data = bias},
                              {.name = "weight", .dtype = TM_F32, .ndim = 2, .shape = {r->gates, r->width}, .count = r->gates * r->width, .bytes = r->gates * r->width * 4, .data = weight}};
    TM_GO(tm_safetensors_write(path, tensors, 2, metadata, err));
out:
    free(weight);
    free(bias);
    free(path);
    return st;
}

tm_status tm_router_read(const char *dir, int64_t width, int64_t count, tm_router *out, tm_error *err)
{
    tm_safetensors *file = NULL;
    tm_status st = TM_OK;
    char *path = router_path(dir, err);
    *out = (tm_router){.width = width, .gates = count};
    if (!path)
        return TM_NO_MEMORY;
    TM_GO(tm_safetensors_open(path, &file, err));
    const tm_st_tensor *weight = tm_safetensors_find(file, "weight"), *bias = tm_safetensors_find(file, "bias");
    bool fits = weight && bias && weight->dtype == TM_F32 && bias->dtype == TM_F32 && weight->ndim == 2 && weight->shape[0] == count && weight->shape[1] == width && bias->count == count;
    if (!fits)
        TM_GO(tm_fail(err, TM_INPUT, "%s: expected weight [%lld, %lld] and bias [%lld] of F32", path, (long long)count, (long long)width, (long long)count));
    TM_GO(TM_NEW(&out->weight, count * (width + 1), err));
    for (int64_t k = 0; k < count; k++) {
        for (int64_t i = 0; i < width; i++)
            out->weight[k * (width + 1) + i] = ((const float *)weight->data)[k * width + i];
        out->weight[k * (width + 1) + width] = ((const float *)bias->data)[k];
    }
out:
    tm_safetensors_close(file);
    free(path);
    if (st != TM_OK)
        tm_router_deinit(out);
    return st;
}
