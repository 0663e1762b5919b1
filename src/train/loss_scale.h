/* The scale of the loss in runs whose activations are f16: gradients below 6e-8 would be zero there, so the loss's gradient
 * is multiplied by a power of two at its start and gradients of what is trained are divided by it again, in f32.
 * Moved as torch.amp.GradScaler moves its scale.
 *
 * Invariants:
 *  1. A replica has its own, moved by its own gradients alone.
 *  2. Powers of two change no bit but those that f16 would lose: a layout of a step stays one. */
#ifndef TM_TRAIN_LOSS_SCALE_H
#define TM_TRAIN_LOSS_SCALE_H

#include <stdbool.h>
#include <stdint.h>

enum { TM_LOSS_SCALE_GROWS_AFTER = 2000 }; /* steps without overflow: then it doubles */

typedef struct tm_loss_scale {
    double scale;    /* of the step at hand; 0: the run has none */
    int64_t good;    /* steps since it moved */
    int64_t skipped; /* steps that changed nothing: their gradients were not finite */
} tm_loss_scale;

/* After a step, with whether its gradients were finite. False: even unscaled they are not, and halving on would help
 * nobody. */
bool tm_loss_scale_move(tm_loss_scale *s, bool finite);

#endif
