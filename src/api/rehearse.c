/* Rehearsal: see rehearse.h. */
#include "api/rehearse.h"

#include "base/philox.h"
#include "keep/replay.h"

#include <stdlib.h>

void tm_rehearsal_of(const tm_recipe *r, bool evaluate, tm_rehearsal *out)
{
    *out = (tm_rehearsal){.replay = !evaluate && r->replay_path && r->replay_fraction > 0};
    if (out->replay)
        out->fraction[out->count++] = r->replay_fraction;
}

void tm_rehearsal_entries(const tm_rehearsal *rehearsal, const tm_recipe *r, tm_data_entry *entries)
{
    if (rehearsal->replay)
        *entries = (tm_data_entry){.path = r->replay_path, .format = r->replay_format, .weight = 1};
}

tm_status tm_rehearsal_select(const tm_rehearsal *rehearsal, const tm_recipe *r, const tm_seeds *seeds, tm_dataset *data, tm_error *err)
{
    if (!rehearsal->replay || !r->replay_buffer)
        return TM_OK;
    int64_t source = r->data_count, n = tm_dataset_stats_of(data, source)->examples;
    uint64_t key = tm_philox_key(seeds->subset, TM_PURPOSE_REHEARSAL, UINT32_MAX, 0);
    bool *keep;
    tm_status st;
    TM_TRY(TM_NEW(&keep, n, err));
    if (r->replay_select == TM_SELECT_RESERVOIR)
        TM_GO(tm_replay_reservoir(key, n, r->replay_buffer, keep, err));
    else
        TM_GO(tm_replay_random(key, n, r->replay_buffer, keep, err));
    tm_dataset_keep(data, source, keep);
out:
    free(keep);
    return st;
}
