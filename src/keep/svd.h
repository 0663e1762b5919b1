/* The largest singular directions of a matrix. Bits depend on the matrix alone. */
#ifndef TM_KEEP_SVD_H
#define TM_KEEP_SVD_H

#include "base/status.h"

/* Of w [rows, cols], row-major, the k <= min(rows, cols) largest: u [k, rows] and v [k, cols] with orthonormal rows, s [k]
 * descending. Where singular values are 0 (or lost against the largest) the directions complete the basis. TM_INPUT: a
 * value is not finite. Messages name no matrix. */
tm_status tm_svd_top(const float *w, int64_t rows, int64_t cols, int64_t k, double *u, double *s, double *v, tm_error *err) TM_MUST_CHECK;

/* What that takes, in operations of its long sums of products; the others are counted as so many of those (docs/math/osf.md). */
double tm_svd_work(int64_t rows, int64_t cols, int64_t k);

#endif
