/* L2-SP (1802.01483): lambda/2 |theta - theta*|^2: EWC without importances. */
#include "keep/anchor.h"
#include "keep/keep.h"

tm_status tm_l2sp_add(tm_trainer *t, tm_error *err)
{
    const tm_recipe *r = t->recipe;
    if (r->l2sp_lambda == 0 || r->method == TM_METHOD_NONE)
        return TM_OK;
    return tm_anchor_add(t, &(tm_anchor_settings){.name = "l2sp", .key = "keep.l2sp", .strength = r->l2sp_lambda, .replicas = true}, err);
}
