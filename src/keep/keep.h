/* Methods that keep skills: each is one file here and one line of this table. */
#ifndef TM_KEEP_KEEP_H
#define TM_KEEP_KEEP_H

#include "train/trainer.h"

/* X(file and key keep.NAME, what it is), in the order in which their hooks run. */
#define TM_KEEP_METHODS(X)                                                                                                 \
    X(stm, "selective token masking (2501.14315): targets that surprise the base give no loss")                            \
    X(teacher, "KL to the base, and DER++ (2004.07211): terms of the loss")                                                 \
    X(ewc, "EWC (1612.00796), EWC-LoRA, path integrals (2501.13669): a pull to the start by importance")                    \
    X(l2sp, "L2-SP (1802.01483): the same pull on everything")                                                              \
    X(orthogonal, "O-LoRA (2310.14152): A stays orthogonal to those of earlier adapters")                                   \
    X(osf, "OSF (2504.07097): top singular directions stay; the last that touches gradients")                               \
    X(average, "EMA, SWA (1803.05407), Lookahead (1907.08610): weights along the run")                                      \
    X(wise, "WiSE-FT (2109.01903): the result between base and trained")

/* Each adds its hook to a trainer whose recipe asks for it, and nothing otherwise. */
#define X(name, text) tm_status tm_##name##_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;
TM_KEEP_METHODS(X)
#undef X

/* All that the recipe asks for, and the monitor: tm_run.add_hooks of a run. Replay is no hook: its rows are a source of the
 * run's data (replay.h, src/api/rehearse.h). */
tm_status tm_keep_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

#endif
