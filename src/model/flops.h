/* Operations of a training step that are of use: what it is held against when a share of a device's limit is said. What is computed
 * twice (recomputation) counts once, and rows that only fill a fixed batch do not count. */
#ifndef TM_MODEL_FLOPS_H
#define TM_MODEL_FLOPS_H

#include "model/model.h"

/* Floating-point operations: 2 a weight forward, 2 for the input gradient where something below is trained, 2 for the gradient of a
 * trained weight. After the tuning method chose what is trained. */
typedef struct tm_flops {
    double token, target; /* of the blocks, a row; of the output matrix, a target */
} tm_flops;
tm_flops tm_flops_of(const tm_model *model);
/* Of attention over an example of so many rows. */
double tm_flops_attention(const tm_model *model, int64_t length);

#endif
