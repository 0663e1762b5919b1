/* trail.bin read back: where two runs part (docs/formats/trail.md). */
#ifndef TM_TRAIN_TRAIL_H
#define TM_TRAIN_TRAIL_H

#include "base/file.h"
#include "base/names.h"

typedef struct tm_trail {
    tm_map map;
    tm_names tensors;
    const char *record; /* [steps] of (1 + tensors.count) little-endian 64-bit numbers: step, hashes */
    int64_t steps;
    size_t rest;        /* bytes behind the last whole record: a run that was killed while writing */
} tm_trail;

tm_status tm_trail_open(const char *path, tm_trail *out, tm_error *err) TM_MUST_CHECK;
void tm_trail_close(tm_trail *trail); /* a zeroed one is fine */

typedef enum tm_trail_verdict {
    TM_TRAIL_EQUAL,
    TM_TRAIL_TENSORS, /* they are of different tensors */
    TM_TRAIL_VALUE,   /* a tensor has other bits after a step */
    TM_TRAIL_STEP,    /* records are of different steps */
    TM_TRAIL_LENGTH,  /* equal as far as the shorter goes */
} tm_trail_verdict;

typedef struct tm_trail_difference {
    tm_trail_verdict verdict;
    int64_t record;     /* number of the first record that differs, from 0 */
    uint64_t step;      /* its step in the first trail (VALUE, STEP) */
    const char *tensor; /* borrowed from the first trail (VALUE, TENSORS); NULL: none */
} tm_trail_difference;

tm_trail_difference tm_trail_compare(const tm_trail *a, const tm_trail *b);

#endif
