/* Which methods there are: see keep.h. */
#include "keep/keep.h"

#include "keep/monitor.h"

static tm_status (*const methods[])(tm_trainer *, tm_error *) = {
#define X(name, text) tm_##name##_add,
    TM_KEEP_METHODS(X)
#undef X
};

tm_status tm_keep_add(tm_trainer *t, tm_error *err)
{
    TM_TRY(tm_monitor_add(t, err));
    for (size_t i = 0; !t->run->evaluate && i < sizeof methods / sizeof *methods; i++)
        TM_TRY(methods[i](t, err));
    return TM_OK;
}
