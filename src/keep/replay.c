/* Buffers of old examples: see replay.h. Random numbers belong to (key, example), so a buffer depends on nothing else. */
#include "keep/replay.h"

#include "base/buf.h"
#include "base/philox.h"
#include "text/dataset.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Whether everything is kept; keep[] is set then, and cleared otherwise. */
static bool keeps_all(int64_t n, int64_t buffer, bool *keep)
{
    memset(keep, buffer >= n, (size_t)n * sizeof *keep);
    return buffer >= n;
}

tm_status tm_replay_random(uint64_t key, int64_t n, int64_t buffer, bool *keep, tm_error *err)
{
    int64_t *order;
    if (keeps_all(n, buffer, keep))
        return TM_OK;
    TM_TRY(TM_NEW(&order, n, err));
    tm_permutation(key, n, order);
    for (int64_t i = 0; i < buffer; i++)
        keep[order[i]] = true;
    free(order);
    return TM_OK;
}

tm_status tm_replay_reservoir(uint64_t key, int64_t n, int64_t buffer, bool *keep, tm_error *err)
{
    int64_t *place;
    if (keeps_all(n, buffer, keep) || buffer < 1)
        return TM_OK;
    TM_TRY(TM_NEW(&place, buffer, err));
    for (int64_t i = 0; i < n; i++) {
        tm_philox r = tm_philox_at(key, (uint32_t)i, (uint32_t)((uint64_t)i >> 32), 0, 0);
        int64_t at = i < buffer ? i : (int64_t)tm_philox_below(r.word[0], r.word[1], (uint64_t)i + 1);
        if (at < buffer)
            place[at] = i;
    }
    for (int64_t i = 0; i < buffer; i++)
        keep[place[i]] = true;
    free(place);
    return TM_OK;
}

static double distance(const float *a, const double *b, int64_t width)
{
    double sum = 0;
    for (int64_t c = 0; c < width; c++)
        sum += (a[c] - b[c]) * (a[c] - b[c]);
    return sum;
}

static void mean_state(const float *state, int64_t width, int64_t n, double *out)
{
    memset(out, 0, (size_t)width * sizeof *out);
    for (int64_t i = 0; i < n * width; i++)
        out[i % width] += state[i] / (double)n;
}

tm_status tm_replay_diverse(const float *state, int64_t width, int64_t n, int64_t buffer, bool *keep, tm_error *err)
{
    double *center = NULL, *far = NULL;
    int64_t next = 0;
    tm_status st;
    if (keeps_all(n, buffer, keep) || buffer < 1)
        return TM_OK;
    TM_GO(TM_NEW(&center, width, err));
    TM_GO(TM_NEW(&far, n, err));
    mean_state(state, width, n, center);
    for (int64_t i = 0; i < n; i++) {
        far[i] = distance(state + i * width, center, width);
        next = far[i] < far[next] ? i : next;
    }
    for (int64_t i = 0; i < n; i++)
        far[i] = INFINITY;
    for (int64_t taken = 0; taken < buffer; taken++) {
        int64_t last = next;
        keep[last] = true;
        for (int64_t c = 0; c < width; c++)
            center[c] = state[last * width + c];
        next = -1;
        for (int64_t i = 0; i < n; i++) {
            double d = keep[i] ? -1 : distance(state + i * width, center, width);
            far[i] = d < far[i] ? d : far[i];
            if (!keep[i] && (next < 0 || far[i] > far[next]))
                next = i;
        }
    }
out:
    free(center);
    free(far);
    return st;
}

typedef struct hard {
    double loss;
    int64_t example;
} hard;

static int by_loss(const void *a, const void *b)
{
    const hard *x = a, *y = b;
    if (x->loss != y->loss)
        return x->loss < y->loss ? 1 : -1;
    return x->example < y->example ? -1 : 1;
}

tm_status tm_replay_hardest(const double *loss, int64_t n, int64_t buffer, bool *keep, tm_error *err)
{
    hard *all;
    if (keeps_all(n, buffer, keep))
        return TM_OK;
    TM_TRY(TM_NEW(&all, n, err));
    for (int64_t i = 0; i < n; i++)
        all[i] = (hard){loss[i], i};
    qsort(all, (size_t)n, sizeof *all, by_loss);
    for (int64_t i = 0; i < buffer; i++)
        keep[all[i].example] = true;
    free(all);
    return TM_OK;
}
