/* Grids: keys with values, every combination of which is a configuration. The first key changes slowest. */
#include "lab/sequence_file.h"

#include <stdlib.h>
#include <string.h>

bool tm_lab_name_ok(const char *name)
{
    size_t n = strlen(name);
    return n > 0 && n <= 64 && name[0] != '-' && strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+") == n;
}

tm_status tm_grid_add(tm_lab_grid *grid, const char *key, const char *value, tm_error *err)
{
    size_t i = 0;
    while (i < grid->count && strcmp(grid->keys[i].key, key) != 0)
        i++;
    if (i == grid->count) {
        TM_TRY(TM_GROW(&grid->keys, &grid->capacity, i + 1, err));
        char *owned = tm_strdup(key, err);
        if (!owned)
            return TM_NO_MEMORY;
        grid->keys[grid->count++] = (tm_lab_grid_key){.key = owned};
    }
    if (tm_names_contain(&grid->keys[i].values, value))
        return tm_fail(err, TM_RECIPE, "%s: the value %s is there twice", key, value);
    return tm_names_add(&grid->keys[i].values, value, err);
}

/* At most TM_LAB_MOST_CONFIGS + 1. */
size_t tm_grid_count(const tm_lab_grid *grid)
{
    size_t n = 1;
    for (size_t k = 0; k < grid->count; k++) {
        n *= (size_t)grid->keys[k].values.count;
        if (n > TM_LAB_MOST_CONFIGS)
            return TM_LAB_MOST_CONFIGS + 1;
    }
    return n;
}

tm_status tm_grid_settings(const tm_lab_grid *grid, size_t i, tm_names *out, tm_error *err)
{
    size_t below = tm_grid_count(grid);
    tm_buf text = {0};
    tm_status st = TM_OK;
    for (size_t k = 0; k < grid->count && st == TM_OK; k++) {
        const tm_names *values = &grid->keys[k].values;
        below /= (size_t)values->count;
        tm_buf_clear(&text);
        tm_buf_printf(&text, "%s=%s", grid->keys[k].key, values->item[i / below % (size_t)values->count]);
        st = tm_buf_check(&text, err);
        if (st == TM_OK)
            st = tm_names_add(out, text.data, err);
    }
    tm_buf_deinit(&text);
    return st;
}

void tm_grid_deinit(tm_lab_grid *grid)
{
    for (size_t k = 0; k < grid->count; k++) {
        free(grid->keys[k].key);
        tm_names_deinit(&grid->keys[k].values);
    }
    free(grid->keys);
    *grid = (tm_lab_grid){0};
}
