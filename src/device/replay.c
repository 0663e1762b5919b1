/* Recording and replaying: see replay.h. */
#include "device/replay.h"

tm_status tm_replay_run(tm_device *d, tm_replay *r, void (*queue)(void *context), void *context, tm_error *err)
{
    const tm_device_calls *calls = d->calls;
    if (!r->graph && (r->times++ == 0 || !calls->graph_begin)) {
        queue(context);
        return TM_OK;
    }
    if (!r->graph) {
        TM_TRY(calls->graph_begin(d, err));
        queue(context);
        TM_TRY(calls->graph_end(d, &r->graph, err));
    }
    calls->graph_run(d, r->graph);
    return TM_OK;
}

void tm_replay_drop(tm_device *d, tm_replay *r)
{
    if (r->graph)
        d->calls->graph_destroy(d, r->graph);
    *r = (tm_replay){0};
}
