/* OSF (2504.07097): the top singular directions of every trained matrix are left as they are, training moves what is
 * orthogonal to them. docs/math/osf.md. */
#ifndef TM_KEEP_OSF_H
#define TM_KEEP_OSF_H

#include "train/trainer.h"

/* keep.osf; nothing with share 0. */
tm_status tm_osf_add(tm_trainer *trainer, tm_error *err) TM_MUST_CHECK;

#endif
