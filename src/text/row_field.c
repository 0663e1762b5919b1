/* A field of every row beside its text: see tm_dataset_field. The rows are read once more, for the field alone;
 * tokens know the file and line of their row, so the two are walked side by side. */
#include "text/rows.h"

#include "base/buf.h"

#include <stdlib.h>

typedef struct walk {
    const tm_dataset *data;
    int64_t source, next; /* next: the first example that has not been given its value */
    int32_t file;
    const char *field;
    tm_field_take *take;
    void *context;
} walk;

/* The next example of the source, from `next` on; false: there is none. */
static bool find_example(walk *w)
{
    while (w->next < tm_dataset_count(w->data) && tm_dataset_at(w->data, w->next)->source != w->source)
        w->next++;
    return w->next < tm_dataset_count(w->data);
}

/* A row may have become several examples, or none. */
static tm_status take_row(walk *w, const tm_row_source *rows, const tm_row *row, tm_error *err)
{
    json_t *json = NULL;
    tm_status st = TM_OK;
    for (; find_example(w); w->next++) {
        const tm_example *e = tm_dataset_at(w->data, w->next);
        if (e->file != w->file || e->line > row->line)
            break;
        if (!json)
            TM_GO(tm_row_parse(rows, row, &json, err));
        TM_GO(w->take(w->context, w->next, e->line == row->line ? json_object_get(json, w->field) : NULL, err));
    }
out:
    json_decref(json);
    return st;
}

static tm_status take_file(walk *w, const tm_data_entry *entry, const char *path, tm_error *err)
{
    const char *columns[TM_COLUMN_COUNT + 1];
    tm_row_source *rows;
    tm_row_columns(entry, columns);
    columns[TM_COLUMN_NESTED] = w->field;
    TM_TRY(tm_row_source_open(path, entry->format, columns, TM_COLUMN_NESTED + 1, &rows, err));
    tm_status st = TM_OK;
    const tm_row *list;
    size_t count = 0;
    int64_t bad = 0;
    if (tm_row_source_is_document(rows))
        st = tm_fail(err, TM_RECIPE, "%s: a text has no field '%s': expected rows (JSON Lines, CSV, Parquet)", path, w->field);
    while (st == TM_OK && (st = tm_row_source_next(rows, &list, &count, &bad, err)) == TM_OK && count)
        for (size_t i = 0; i < count && st == TM_OK; i++)
            st = take_row(w, rows, &list[i], err);
    tm_row_source_close(rows);
    return st;
}

tm_status tm_dataset_field(const tm_dataset *data, int64_t source, const tm_data_entry *entry, const char *field, tm_field_take *take, void *context, tm_error *err)
{
    walk w = {.data = data, .source = source, .field = field, .take = take, .context = context};
    while (find_example(&w)) {
        int64_t before = w.next;
        w.file = tm_dataset_at(data, w.next)->file;
        TM_TRY(take_file(&w, entry, tm_dataset_file(data, source, w.file), err));
        if (w.next == before || (find_example(&w) && tm_dataset_at(data, w.next)->file == w.file))
            return tm_fail(err, TM_INPUT, "%s: its rows are not those that were read before: the file has changed", tm_dataset_file(data, source, w.file));
    }
    return TM_OK;
}
