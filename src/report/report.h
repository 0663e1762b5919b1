/* The report of a run: report.html, one self-contained file made of what lies in the run folder
 * (run.json, metrics.jsonl, timing.jsonl).
 *
 * 1. Reads files only: the same files give the same bytes. Nothing of this process enters.
 * 2. A run in progress, a killed run and a damaged row still give a page; what is missing is said
 *    on it. Only a folder with neither run.json nor metrics.jsonl is refused.
 * 3. Every text from outside is escaped; the page asks nothing of the network. */
#ifndef TM_REPORT_REPORT_H
#define TM_REPORT_REPORT_H

#include "base/buf.h"

/* Writes run_dir/report.html (whole or not at all). */
tm_status tm_report_write(const char *run_dir, tm_error *err) TM_MUST_CHECK;

/* Appends the page to out. */
tm_status tm_report_html(const char *run_dir, tm_buf *out, tm_error *err) TM_MUST_CHECK;

#endif
