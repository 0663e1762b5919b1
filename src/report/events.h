/* TensorBoard event files: the scalars of metrics.jsonl for those who watch runs there.
 *
 * An event file is a function of the rows alone (wall time is the step number), so a resumed run,
 * which replays the rows that are left, ends with the same bytes as one never stopped. */
#ifndef TM_REPORT_EVENTS_H
#define TM_REPORT_EVENTS_H

#include "base/status.h"

#define TM_EVENTS_FILE "events.out.tfevents.0.temper"

typedef struct tm_events tm_events;

/* Starts a new event file (an old one is emptied). */
tm_status tm_events_create(const char *path, tm_events **out, tm_error *err) TM_MUST_CHECK;
/* Starts run_dir/TM_EVENTS_FILE with what metrics.jsonl already holds; ready for the rows to come. */
tm_status tm_events_open_run(const char *run_dir, tm_events **out, tm_error *err) TM_MUST_CHECK;
void tm_events_close(tm_events *events);

/* A row of metrics.jsonl: {"step", "loss", ...} becomes train/loss, ...; {"step", "eval": {"name":
 * {"loss"}}} becomes name/loss. Values that are not numbers are left out. */
tm_status tm_events_row(tm_events *events, const char *row, size_t size, tm_error *err) TM_MUST_CHECK;

#endif
