/* Which methods there are: see keep.h. */
#include "keep/keep.h"

#include "keep/average.h"
#include "keep/monitor.h"
#include "keep/osf.h"
#include "keep/stm.h"
#include "keep/teacher.h"
#include "keep/wise.h"

/* In the order in which their hooks run. Each adds nothing where the recipe does not ask for it. */
static tm_status (*const methods[])(tm_trainer *, tm_error *) = {
    tm_stm_add,
    tm_teacher_add,
    tm_ewc_add,
    tm_l2sp_add,
    tm_orthogonal_add,
    tm_osf_add, /* the last that touches gradients */
    tm_average_add,
    tm_wise_add,
    NULL,
};

tm_status tm_keep_add(tm_trainer *t, tm_error *err)
{
    TM_TRY(tm_monitor_add(t, err));
    for (size_t i = 0; !t->run->evaluate && methods[i]; i++)
        TM_TRY(methods[i](t, err));
    return TM_OK;
}
