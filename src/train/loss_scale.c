/* The course of the loss's scale: see loss_scale.h. */
#include "train/loss_scale.h"

bool tm_loss_scale_move(tm_loss_scale *s, bool finite)
{
    if (!finite) {
        s->scale *= 0.5;
        s->good = 0;
        s->skipped++;
        return s->scale >= 1;
    }
    if (++s->good == TM_LOSS_SCALE_GROWS_AFTER) {
        s->scale *= 2;
        s->good = 0;
    }
    return true;
}
