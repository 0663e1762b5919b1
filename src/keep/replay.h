/* Which old examples a buffer keeps (keep.replay.buffer, keep.replay.select). Pure functions of what they are given. */
#ifndef TM_KEEP_REPLAY_H
#define TM_KEEP_REPLAY_H

#include "base/status.h"

#include <stdint.h>

/* Each sets keep[n] to true for `buffer` examples of n (for all where there are no more than that), false for the others. */

/* Every set of that size is as likely as another. */
tm_status tm_replay_random(uint64_t key, int64_t n, int64_t buffer, bool *keep, tm_error *err) TM_MUST_CHECK;
/* Algorithm R (Vitter 1985): the same chances; and when examples are added behind the others, each that is kept was kept
 * before or is new. */
tm_status tm_replay_reservoir(uint64_t key, int64_t n, int64_t buffer, bool *keep, tm_error *err) TM_MUST_CHECK;
/* k-center greedy (Gonzalez 1985): the one nearest to the mean of all, then again and again the one farthest from those
 * taken; of equal ones the first. state [n, width]. */
tm_status tm_replay_diverse(const float *state, int64_t width, int64_t n, int64_t buffer, bool *keep, tm_error *err) TM_MUST_CHECK;
/* Those of highest loss; of equal ones the first. */
tm_status tm_replay_hardest(const double *loss, int64_t n, int64_t buffer, bool *keep, tm_error *err) TM_MUST_CHECK;

#endif
