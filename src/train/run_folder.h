/* The run folder: the sink of a run's rows, trail and results (contract: docs/formats/run-folder.md).
 * Rows are appended and flushed; a checkpoint remembers how long the files were, and a resumed run
 * cuts what was written after it. */
#ifndef TM_TRAIN_RUN_FOLDER_H
#define TM_TRAIN_RUN_FOLDER_H

#include "base/file.h"

typedef struct tm_run_folder {
    char *dir;
    tm_dir_lock lock;
    FILE *metrics, *timing, *trail;
} tm_run_folder;

/* Lengths of the growing files at one moment. */
typedef struct tm_run_position {
    int64_t metrics, timing, trail;
} tm_run_position;

/* Creates the folder, takes its lock (TM_LOCKED when another process has it). */
tm_status tm_run_folder_open(const char *dir, tm_run_folder *out, tm_error *err) TM_MUST_CHECK;
/* Opens the growing files, cut to a position (zeros: from the start). */
tm_status tm_run_folder_start(tm_run_folder *folder, const tm_run_position *at, tm_error *err) TM_MUST_CHECK;
void tm_run_folder_close(tm_run_folder *folder);

tm_status tm_run_folder_row(tm_run_folder *folder, FILE *file, const tm_buf *row, tm_error *err) TM_MUST_CHECK;
tm_status tm_run_folder_trail(tm_run_folder *folder, const void *data, size_t size, tm_error *err) TM_MUST_CHECK;
tm_status tm_run_folder_position(tm_run_folder *folder, tm_run_position *out, tm_error *err) TM_MUST_CHECK;

#endif
