/* Lists of strings: see names.h. */
#include "base/names.h"

#include <stdlib.h>
#include <string.h>

tm_status tm_names_add(tm_names *names, const char *name, tm_error *err)
{
    TM_TRY(TM_GROW(&names->item, &names->capacity, names->count + 1, err));
    char *copy = tm_strdup(name, err);
    if (!copy)
        return TM_NO_MEMORY;
    names->item[names->count++] = copy;
    return TM_OK;
}

void tm_names_deinit(tm_names *names)
{
    for (int64_t i = 0; i < names->count; i++)
        free(names->item[i]);
    free(names->item);
    *names = (tm_names){0};
}

bool tm_names_contain(const tm_names *names, const char *name)
{
    for (int64_t i = 0; i < names->count; i++)
        if (strcmp(names->item[i], name) == 0)
            return true;
    return false;
}

/* Levenshtein distance of two short names; names longer than the table count as far. */
static size_t distance(const char *a, const char *b)
{
    enum { MAX = 64 };
    size_t n = strlen(a), m = strlen(b), row[MAX + 1];
    if (n > MAX || m > MAX)
        return MAX;
    for (size_t j = 0; j <= m; j++)
        row[j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t diagonal = row[0];
        row[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t replace = diagonal + (a[i - 1] != b[j - 1]), best = row[j] + 1;
            diagonal = row[j];
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            row[j] = replace < best ? replace : best;
        }
    }
    return row[m];
}

const char *tm_nearest(const char *name, const char *const *names, size_t count)
{
    size_t best = strlen(name) / 2 + 2;
    const char *nearest = NULL;
    for (size_t i = 0; i < count; i++) {
        size_t d = distance(name, names[i]);
        if (d < best) {
            best = d;
            nearest = names[i];
        }
    }
    return nearest;
}
