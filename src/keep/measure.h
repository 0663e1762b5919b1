/* Measuring importances: a trainer of old data that learns nothing lasting. Its recipe says how: keep.ewc.importance,
 * keep.ewc.fisher. docs/math/ewc.md has the formulas.
 *
 * fisher: the diagonal of the Fisher information, a sum over examples of the squared gradient of the log-likelihood of the example's
 *         targets together; the run's steps are single examples.
 * path:   what every weight contributed to the fall of the loss in a short training, over the way it went. */
#ifndef TM_KEEP_MEASURE_H
#define TM_KEEP_MEASURE_H

#include "keep/importance.h"
#include "train/trainer.h"

/* tm_run.add_hooks of a run that measures; one replica. */
tm_status tm_measure_add(tm_trainer *t, tm_error *err) TM_MUST_CHECK;

/* Loads the weights and measures over the run's order; asks run->interrupted and tells run->progress, t->step being what is done. */
tm_status tm_measure_run(tm_trainer *t, tm_error *err) TM_MUST_CHECK;

/* The sum of squares (fisher) or the path integral of trained tensor i, [rows, cols] in device->real; a view. */
tm_tensor tm_measure_sum(const tm_trainer *t, int64_t i);

/* Whether what is measured could be added to the file at old: before it is measured. */
tm_status tm_measure_check(tm_trainer *t, const char *old, tm_error *err) TM_MUST_CHECK;

/* Writes them with mean 1. old|NULL: a file that they are added to, by facts->gamma; fills facts' weight and tasks. *mean: of what was
 * measured, before. */
tm_status tm_measure_write(tm_trainer *t, const char *path, tm_importance_facts *facts, const char *old, double *mean, tm_error *err) TM_MUST_CHECK;

#endif
