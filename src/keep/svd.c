/* Singular directions by the eigenvectors of the smaller Gram matrix: see svd.h.
 *
 *   G = X X^T, X = W or W^T, whichever has fewer rows      Householder reflections make it tridiagonal,
 *   G = Z diag(d) Z^T                                       QL with implicit shifts diagonal (Golub and Van Loan, 8.3)
 *   u_i = z_i, s_i v_i = X^T z_i
 *
 * Eigenvectors are as good as double makes them; squaring costs the small singular values, so the other side is made
 * orthogonal again where s_i is small against s_1. Sums have eight lanes in a fixed order, whatever the machine adds at once. */
#include "keep/svd.h"

#include "base/buf.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- Vectors --- */

enum { LANES = 8 };

static double dot(const double *x, const double *y, int64_t n)
{
    double lane[LANES] = {0}, rest = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int k = 0; k < LANES; k++)
            lane[k] += x[i + k] * y[i + k];
    for (; i < n; i++)
        rest += x[i] * y[i];
    return (((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]))) + rest;
}

/* y += a x */
static void add(double a, const double *x, double *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void scale(double a, double *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        x[i] *= a;
}

/* --- The eigenvectors of a symmetric matrix --- */

/* Makes g [n, n] tridiagonal: d[n] its diagonal, e[1 .. n-1] beside it. Reflection j is I - beta[j] h h^T with h in row j of g from
 * column j + 1 on. p: scratch [n]. */
static void tridiagonal(double *g, int64_t n, double *d, double *e, double *beta, double *p)
{
    for (int64_t j = 0; j < n; j++) {
        d[j] = g[j * n + j];
        beta[j] = 0;
        if (j + 1 == n)
            return;
        int64_t m = n - j - 1;
        double *h = g + j * n + j + 1, length = sqrt(dot(h, h, m));
        e[j + 1] = m > 1 && h[0] > 0 ? -length : m > 1 ? length : h[0];
        if (m == 1 || length == 0)
            continue;
        h[0] -= e[j + 1];
        beta[j] = 2 / dot(h, h, m);
        for (int64_t i = 0; i < m; i++)
            p[i] = beta[j] * dot(g + (j + 1 + i) * n + j + 1, h, m);
        add(-0.5 * beta[j] * dot(p, h, m), h, p, m);
        for (int64_t i = 0; i < m; i++) {
            double *row = g + (j + 1 + i) * n + j + 1;
            for (int64_t k = 0; k < m; k++)
                row[k] -= h[i] * p[k] + p[i] * h[k];
        }
    }
}

/* Rows of z [n, n] become the columns of the reflections' product. */
static void gather_reflections(const double *g, int64_t n, const double *beta, double *z)
{
    memset(z, 0, (size_t)(n * n) * sizeof *z);
    for (int64_t i = 0; i < n; i++)
        z[i * n + i] = 1;
    for (int64_t j = n - 2; j >= 0; j--) {
        const double *h = g + j * n + j + 1;
        for (int64_t i = j + 1; i < n && beta[j] != 0; i++) {
            double *row = z + i * n + j + 1;
            add(-beta[j] * dot(row, h, n - j - 1), h, row, n - j - 1);
        }
    }
}

static void rotate(double *a, double *b, double c, double s, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        double x = a[i], y = b[i];
        a[i] = c * x - s * y;
        b[i] = s * x + c * y;
    }
}

/* One sweep of QL from l to m, around the eigenvalue of the corner at l. */
static void sweep(double *d, double *e, double *z, int64_t n, int64_t l, int64_t m)
{
    double q = (d[l + 1] - d[l]) / (2 * e[l]), r = sqrt(q * q + 1), s = 1, c = 1, p = 0;
    q = d[m] - d[l] + e[l] / (q + copysign(r, q));
    for (int64_t i = m - 1; i >= l; i--) {
        double f = s * e[i], b = c * e[i];
        r = sqrt(f * f + q * q);
        e[i + 1] = r;
        if (r == 0) { /* deflated on the way */
            d[i + 1] -= p;
            e[m] = 0;
            return;
        }
        s = f / r;
        c = q / r;
        q = d[i + 1] - p;
        r = (d[i] - q) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = q + p;
        q = c * r - b;
        rotate(z + i * n, z + (i + 1) * n, c, s, n);
    }
    d[l] -= p;
    e[l] = q;
    e[m] = 0;
}

/* d: eigenvalues; rows of z: eigenvectors. e[i] couples i and i + 1 here. */
static tm_status diagonal(double *d, double *e, double *z, int64_t n, tm_error *err)
{
    double most = 0;
    for (int64_t i = 0; i < n; i++)
        most = fabs(d[i]) > most ? fabs(d[i]) : most;
    for (int64_t l = 0; l < n; l++)
        for (int tries = 0;; tries++) {
            int64_t m = l;
            while (m + 1 < n && fabs(e[m]) > 1e-16 * (fabs(d[m]) + fabs(d[m + 1])) + 1e-22 * most)
                m++;
            if (m == l)
                break;
            if (tries == 100)
                return tm_fail(err, TM_FAILED, "its singular values do not converge");
            sweep(d, e, z, n, l, m);
        }
    return TM_OK;
}

/* --- Singular directions --- */

typedef struct svd_work {
    int64_t n, m, k;  /* X is [n, m], n <= m */
    double *x, *g, *z, *d, *e, *beta, *p;
    int64_t *order;   /* eigenvalues descending */
} svd_work;

static void sort(svd_work *w)
{
    for (int64_t i = 0; i < w->n; i++) { /* stable: equal values keep their order */
        int64_t j = i;
        for (; j > 0 && w->d[w->order[j - 1]] < w->d[i]; j--)
            w->order[j] = w->order[j - 1];
        w->order[j] = i;
    }
}

/* Takes out of y what the i rows of v before it have; twice is enough. Returns its length. */
static double orthogonal(const double *v, int64_t i, double *y, int64_t m)
{
    for (int pass = 0; pass < 2; pass++)
        for (int64_t j = 0; j < i; j++)
            add(-dot(v + j * m, y, m), v + j * m, y, m);
    return sqrt(dot(y, y, m));
}

/* The long side: row i of y [k, m], and s. *next: the first unit vector that was not tried yet. */
static void long_side(const svd_work *w, int64_t i, double *y, double *s, int64_t *next)
{
    double *row = y + i * w->m;
    const double *z = w->z + w->order[i] * w->n;
    memset(row, 0, (size_t)w->m * sizeof *row);
    for (int64_t j = 0; j < w->n; j++)
        add(z[j], w->x + j * w->m, row, w->m);
    double length = sqrt(dot(row, row, w->m));
    s[i] = length;
    if (length < 1e-2 * s[0] || s[0] == 0)
        length = orthogonal(y, i, row, w->m);
    if (!(length > 1e-9 * s[0])) { /* its singular value is nothing: any direction that is left */
        s[i] = 0;
        do {
            memset(row, 0, (size_t)w->m * sizeof *row);
            row[(*next)++ % w->m] = 1;
            length = orthogonal(y, i, row, w->m);
        } while (length * length * (double)w->m < 0.5);
    }
    scale(1 / length, row, w->m);
}

static tm_status take(svd_work *w, tm_error *err)
{
    TM_TRY(TM_NEW(&w->x, w->n * w->m, err));
    TM_TRY(TM_NEW(&w->g, w->n * w->n, err));
    TM_TRY(TM_NEW(&w->z, w->n * w->n, err));
    TM_TRY(TM_NEW(&w->d, w->n, err));
    TM_TRY(TM_NEW(&w->e, w->n + 1, err));
    TM_TRY(TM_NEW(&w->beta, w->n, err));
    TM_TRY(TM_NEW(&w->p, w->n, err));
    return TM_NEW(&w->order, w->n, err);
}

static tm_status compute(svd_work *w, double *near, double *s, double *far, tm_error *err)
{
    int64_t n = w->n, next = 0;
    double all = 0;
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j <= i; j++)
            w->g[i * n + j] = w->g[j * n + i] = dot(w->x + i * w->m, w->x + j * w->m, w->m);
        all += w->g[i * n + i];
    }
    if (!isfinite(all))
        return tm_fail(err, TM_INPUT, "not all of its values are finite");
    tridiagonal(w->g, n, w->d, w->e, w->beta, w->p);
    gather_reflections(w->g, n, w->beta, w->z);
    memmove(w->e, w->e + 1, (size_t)(n - 1) * sizeof *w->e);
    w->e[n - 1] = 0;
    TM_TRY(diagonal(w->d, w->e, w->z, n, err));
    sort(w);
    for (int64_t i = 0; i < w->k; i++) {
        memcpy(near + i * n, w->z + w->order[i] * n, (size_t)n * sizeof *near);
        long_side(w, i, far, s, &next);
    }
    return TM_OK;
}

double tm_svd_work(int64_t rows, int64_t cols, int64_t k)
{
    double n = (double)(rows < cols ? rows : cols), m = (double)(rows < cols ? cols : rows);
    return n * n * m + 2 * (double)k * n * m + 3 * n * n * n;
}

tm_status tm_svd_top(const float *w, int64_t rows, int64_t cols, int64_t k, double *u, double *s, double *v, tm_error *err)
{
    bool wide = rows <= cols;
    svd_work work = {.n = wide ? rows : cols, .m = wide ? cols : rows, .k = k};
    tm_status st = TM_OK;
    TM_GO(take(&work, err));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++)
            work.x[wide ? i * cols + j : j * rows + i] = w[i * cols + j];
    st = compute(&work, wide ? u : v, s, wide ? v : u, err);
out:
    free(work.x);
    free(work.g);
    free(work.z);
    free(work.d);
    free(work.e);
    free(work.beta);
    free(work.p);
    free(work.order);
    return st;
}
