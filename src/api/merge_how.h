/* How several changes of one tensor join: the arithmetic of temper merge, on plain arrays.
 *
 * A change is dW = W_adapted - W, never A or B: the mean of two A and two B is no mean of what they do.
 * As PEFT's ties_svd and dare_linear_svd (before their SVD), so that a recipe for one holds for the other:
 *   ties: of each change the share `density` with the largest |dW| stays (trim); an element's sign is that of the
 *         sum of what stayed (or of the count of signs), zero counting as positive (elect); the mean, by the weights,
 *         of the changes that have this sign, over their number (disjoint mean). Yadav et al., 2306.01708.
 *   dare: each element stays with probability `density`, and is divided by it; then the weighted sum. Yu et al.,
 *         2311.03099. Which elements stay depends on seed, adapter, tensor and place alone. */
#ifndef TM_API_MERGE_HOW_H
#define TM_API_MERGE_HOW_H

#include "temper.h"

/* Sets all but the floor(density * n) largest of |x| to zero; of equal ones the first stay. */
void tm_merge_trim(float *x, int64_t n, double density);
/* Drops and rescales. key: of the adapter and the tensor. */
void tm_merge_drop(float *x, int64_t n, double density, uint64_t key);

/* One element of `count` trimmed changes: the disjoint mean. by_count: signs are counted, not summed. */
double tm_merge_disjoint(const double *change, const double *weight, int64_t count, bool by_count);

#endif
