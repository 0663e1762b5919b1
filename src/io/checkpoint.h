/* Checkpoint folders checkpoint-<step> of a run: complete or absent.
 *
 * 1. A checkpoint is filled under a name that is never loaded, then a manifest (size and sha256 of
 *    every file) is written last, everything is synced, and the folder is renamed.
 * 2. What fails its manifest is never loaded; the one before it is.
 * 3. The last finished checkpoint is removed only after a newer one is in place.
 *
 * To be called under the lock of the run folder (tm_dir_lock_take): what is half made then belongs to a
 * dead process. */
#ifndef TM_IO_CHECKPOINT_H
#define TM_IO_CHECKPOINT_H

#include "base/names.h"

/* The folder to fill (created empty); free() it. */
tm_status tm_checkpoint_begin(const char *run_dir, int64_t step, char **folder, tm_error *err) TM_MUST_CHECK;
/* Manifest, sync, rename. */
tm_status tm_checkpoint_commit(const char *run_dir, int64_t step, tm_error *err) TM_MUST_CHECK;
/* The newest checkpoint whose manifest holds, at most at step max_step (-1: any); step -1 and folder
 * NULL when there is none. passed (may be NULL) gets a line for every newer one that is not as its manifest
 * says: which, and why. Half-made folders of dead processes are removed. */
tm_status tm_checkpoint_latest(const char *run_dir, int64_t max_step, int64_t *step, char **folder, tm_names *passed,
                               tm_error *err) TM_MUST_CHECK;
/* Removes all but the newest `keep` and the one of step `best` (-1: none). */
tm_status tm_checkpoint_prune(const char *run_dir, int64_t keep, int64_t best, tm_error *err) TM_MUST_CHECK;

#endif
