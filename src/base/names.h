/* A list of owned strings. */
#ifndef TM_BASE_NAMES_H
#define TM_BASE_NAMES_H

#include "base/buf.h"

typedef struct tm_names {
    char **item;
    int64_t count;
    size_t capacity;
} tm_names;

tm_status tm_names_add(tm_names *names, const char *name, tm_error *err) TM_MUST_CHECK;
void tm_names_deinit(tm_names *names);
bool tm_names_contain(const tm_names *names, const char *name);

/* The entry of names nearest to name by edit distance, for "did you mean"; NULL when none is near. */
const char *tm_nearest(const char *name, const char *const *names, size_t count);

#endif
