/* EWC (1612.00796): lambda/2 sum F (theta - theta*)^2, F the importances of old skills (importance.h), theta* the weights when the run
 * begins. The file is the recipe's, or the one that was measured before the run (tm_run.importances). */
#include "keep/anchor.h"
#include "keep/keep.h"

tm_status tm_ewc_add(tm_trainer *t, tm_error *err)
{
    const tm_recipe *r = t->recipe;
    if (r->ewc_lambda == 0 || r->method == TM_METHOD_NONE)
        return TM_OK;
    bool apart = r->method == TM_METHOD_LORA && r->ewc_space == TM_EWC_FACTORS;
    /* Importances of A and B are those of one replica's own A. */
    return tm_anchor_add(t, &(tm_anchor_settings){.name = "ewc.space: factors", .key = "keep.ewc", .strength = r->ewc_lambda, .importances = true, .apart = apart, .replicas = !apart}, err);
}
