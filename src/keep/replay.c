/* Buffers of old examples: see replay.h. Random numbers belong to (key, example), so a buffer depends on nothing else. */
#include "keep/replay.h"

#include "base/buf.h"
#include "base/philox.h"
#include "text/dataset.h"

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
