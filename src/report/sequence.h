/* The page of a sequence: OUT/report.html, self-contained, made of OUT/results.json alone (docs/formats/sequence.md). */
#ifndef TM_REPORT_SEQUENCE_H
#define TM_REPORT_SEQUENCE_H

#include "base/buf.h"

tm_status tm_sequence_report_write(const char *dir, tm_error *err) TM_MUST_CHECK;

#endif
