/* Parquet rows as JSON Lines: see parquet.h. Columns lie one behind the other in the file; a row is put together
 * by going down the schema with a place in each column, by the levels that stand beside the values (the method
 * of Dremel). Invariant: a node is written only when everything above it is there, and writing it moves every
 * column below it on by exactly what belongs to it. */
#include "io/parquet_parts.h"

#include "base/json.h"
#include "io/parquet.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct tm_parquet {
    char *path;
    tm_map map;
    pq_meta meta;
    pq_column *column; /* [leaves]; those that are not read stay zeroed */
    uint64_t held, given;
    size_t group;
    int64_t row; /* of the group, the next */
    bool begun;  /* the group's columns stand on their values */
    tm_buf out;  /* JSON Lines not given yet, from `at` on */
    size_t at;
};

/* --- What is wanted --- */

/* A leaf that is read at or below the node; -1: none. */
static int32_t choose(pq_meta *m, int32_t at)
{
    pq_node *n = &m->node[at];
    n->first = -1;
    if (n->leaf >= 0 && n->type <= PQ_T_BYTES && n->type != PQ_T_INT96)
        n->first = at;
    for (int32_t child = at + 1; n->leaf < 0 && child < n->next; child = m->node[child].next) {
        int32_t first = choose(m, child);
        n->first = n->first < 0 ? first : n->first;
    }
    return n->first;
}

static void put_columns(const pq_meta *m, tm_buf *out)
{
    for (int32_t at = 1; at < m->nodes && out->size < 200; at = m->node[at].next)
        tm_buf_printf(out, "%s%.*s", at > 1 ? ", " : "", (int)(m->node[at].name_size < 60 ? m->node[at].name_size : 60),
                      m->node[at].name);
}

static tm_status want(tm_parquet *f, const char *const *columns, size_t count, tm_error *err)
{
    pq_meta *m = &f->meta;
    bool any = false;
    for (int32_t at = 1; at < m->nodes; at = m->node[at].next) {
        pq_node *n = &m->node[at];
        for (size_t i = 0; i < count; i++)
            n->wanted |= strlen(columns[i]) == n->name_size && memcmp(columns[i], n->name, n->name_size) == 0;
        n->wanted = n->wanted && choose(m, at) >= 0;
        any |= n->wanted;
        for (int32_t below = at; n->wanted && below < n->next; below++)
            if (m->node[below].leaf >= 0 && m->node[below].first >= 0)
                f->column[m->node[below].leaf] =
                    (pq_column){.node = &m->node[below], .path = f->path, .held = &f->held};
    }
    if (any)
        return TM_OK;
    tm_buf names = {0};
    put_columns(m, &names);
    tm_status st = tm_fail(err, TM_INPUT, "%s: none of its columns is known: %s; columns: {text: NAME} tells which is which",
                           f->path, tm_buf_str(&names));
    tm_buf_deinit(&names);
    return st;
}

tm_status tm_parquet_open(const char *path, const char *const *columns, size_t column_count, tm_parquet **out,
                          tm_error *err)
{
    *out = NULL;
    tm_parquet *f;
    TM_TRY(TM_NEW(&f, 1, err));
    tm_status st = TM_OK;
    f->map.data = "";
    f->path = tm_strdup(path, err);
    if (!f->path)
        TM_GO(TM_NO_MEMORY);
    TM_GO(tm_map_open(path, &f->map, err));
    TM_GO(pq_meta_read(path, &f->map, &f->meta, err));
    TM_GO(TM_NEW(&f->column, f->meta.leaves, err));
    TM_GO(want(f, columns, column_count, err));
    *out = f;
    f = NULL;
out:
    tm_parquet_close(f);
    return st;
}

void tm_parquet_close(tm_parquet *f)
{
    if (!f)
        return;
    for (int32_t i = 0; f->column && i < f->meta.leaves; i++)
        pq_column_deinit(&f->column[i]);
    free(f->column);
    pq_meta_deinit(&f->meta);
    tm_map_close(&f->map);
    tm_buf_deinit(&f->out);
    free(f->path);
    free(f);
}

/* --- Rows --- */

static tm_status emit(tm_parquet *f, int32_t at, tm_error *err);

static pq_column *column_of(tm_parquet *f, int32_t leaf_node) { return &f->column[f->meta.node[leaf_node].leaf]; }

/* Moves every column below the node on by the one place that says it is not there. */
static tm_status pass(tm_parquet *f, int32_t at, tm_error *err)
{
    for (int32_t i = at; i < f->meta.node[at].next; i++)
        if (f->meta.node[i].leaf >= 0 && f->meta.node[i].first >= 0)
            TM_TRY(pq_column_next(column_of(f, i), err));
    return TM_OK;
}

static void put_scalar(tm_buf *out, const pq_column *c)
{
    switch (c->node->type) {
    case PQ_T_BOOL: tm_buf_text(out, c->value.integer ? "true" : "false"); break;
    case PQ_T_INT32:
    case PQ_T_INT64: tm_buf_printf(out, "%lld", (long long)c->value.integer); break;
    case PQ_T_FLOAT:
    case PQ_T_DOUBLE: tm_json_put_number(out, c->value.number); break;
    default: tm_json_put_bytes(out, c->value.text, c->value.size); break;
    }
}

static tm_status put_group(tm_parquet *f, int32_t at, tm_error *err)
{
    const pq_node *n = &f->meta.node[at];
    bool more = false;
    tm_buf_char(&f->out, '{');
    for (int32_t child = at + 1; child < n->next; child = f->meta.node[child].next) {
        if (f->meta.node[child].first < 0)
            continue;
        tm_buf_text(&f->out, more ? ", " : "");
        more = true;
        tm_json_put_bytes(&f->out, f->meta.node[child].name, f->meta.node[child].name_size);
        tm_buf_text(&f->out, ": ");
        TM_TRY(emit(f, child, err));
    }
    tm_buf_char(&f->out, '}');
    return TM_OK;
}

/* What a node holds, once it is there (and, for a repeated one, once an element). */
static tm_status put_content(tm_parquet *f, int32_t at, tm_error *err)
{
    const pq_node *n = &f->meta.node[at];
    if (n->leaf >= 0) {
        pq_column *c = column_of(f, at);
        if (c->ended || c->def_level != n->max_def)
            return tm_fail(err, TM_INPUT, "%s: damaged Parquet file: columns of one list differ in length", f->path);
        put_scalar(&f->out, c);
        return pq_column_next(c, err);
    }
    /* The usual list: a group with one repeated child; that one's only child is the element. */
    const pq_node *child = &f->meta.node[at + 1];
    if (n->list && n->children == 1 && child->repetition == 2)
        return emit(f, at + 1, err);
    return put_group(f, at, err);
}

/* An element of the repeated node: the node itself, or, in a list of the usual shape, its only child. */
static tm_status put_element(tm_parquet *f, int32_t at, bool in_list, tm_error *err)
{
    const pq_node *n = &f->meta.node[at];
    bool usual = in_list && n->leaf < 0 && n->children == 1 && !(n->name_size == 5 && memcmp(n->name, "array", 5) == 0) &&
                 !(n->name_size > 6 && memcmp(n->name + n->name_size - 6, "_tuple", 6) == 0);
    return usual ? emit(f, at + 1, err) : put_content(f, at, err);
}

static tm_status put_list(tm_parquet *f, int32_t at, bool in_list, tm_error *err)
{
    const pq_node *n = &f->meta.node[at];
    const pq_column *c = column_of(f, n->first);
    tm_buf_char(&f->out, '[');
    for (bool more = false;; more = true) {
        tm_buf_text(&f->out, more ? ", " : "");
        TM_TRY(put_element(f, at, in_list, err));
        if (c->ended || c->rep_level != n->max_rep)
            break;
        if (f->out.size > (size_t)1 << 30)
            return tm_fail(err, TM_INPUT, "%s: a row of more than 1 GiB", f->path);
    }
    tm_buf_char(&f->out, ']');
    return TM_OK;
}

static tm_status emit(tm_parquet *f, int32_t at, tm_error *err)
{
    const pq_node *n = &f->meta.node[at], *above = &f->meta.node[at - 1];
    const pq_column *c = column_of(f, n->first);
    bool in_list = at > 1 && above->list && above->children == 1;
    if (c->ended)
        return tm_fail(err, TM_INPUT, "%s: damaged Parquet file: columns of one row group differ in length", f->path);
    if (n->repetition != 0 && c->def_level < n->max_def) {
        tm_buf_text(&f->out, n->repetition == 2 ? "[]" : "null");
        return pass(f, at, err);
    }
    return n->repetition == 2 ? put_list(f, at, in_list, err) : put_content(f, at, err);
}

static tm_status begin_group(tm_parquet *f, tm_error *err)
{
    for (int32_t i = 0; i < f->meta.leaves; i++)
        if (f->column[i].node)
            TM_TRY(pq_column_begin(&f->column[i], &f->map, &f->meta.chunk[f->group * (size_t)f->meta.leaves + (size_t)i], err));
    f->begun = true;
    f->row = 0;
    return TM_OK;
}

static tm_status put_row(tm_parquet *f, tm_error *err)
{
    bool more = false;
    tm_buf_char(&f->out, '{');
    for (int32_t at = 1; at < f->meta.nodes; at = f->meta.node[at].next) {
        const pq_node *n = &f->meta.node[at];
        if (!n->wanted)
            continue;
        tm_buf_text(&f->out, more ? ", " : "");
        more = true;
        tm_json_put_bytes(&f->out, n->name, n->name_size);
        tm_buf_text(&f->out, ": ");
        TM_TRY(emit(f, at, err));
        if (column_of(f, n->first)->rep_level != 0)
            return tm_fail(err, TM_INPUT, "%s: damaged Parquet file: a row ends inside a list", f->path);
    }
    tm_buf_text(&f->out, "}\n");
    return tm_buf_check(&f->out, err);
}

/* Rows until there are `size` bytes, or no more rows. */
static tm_status fill(tm_parquet *f, size_t size, tm_error *err)
{
    while (f->out.size < size && f->group < f->meta.groups) {
        if (!f->begun)
            TM_TRY(begin_group(f, err));
        if (f->row == f->meta.rows[f->group]) {
            f->group++;
            f->begun = false;
            if (f->map.size) /* pages that have been read are given back */
                madvise((void *)f->map.data, f->map.size, MADV_DONTNEED);
            continue;
        }
        TM_TRY(put_row(f, err));
        f->row++;
    }
    return TM_OK;
}

tm_status tm_parquet_read(tm_parquet *f, void *to, size_t size, size_t *got, tm_error *err)
{
    enum { PIECE = 1 << 20 };
    for (*got = 0; *got < size;) {
        if (f->at == f->out.size) {
            tm_buf_clear(&f->out);
            f->at = 0;
            TM_TRY(fill(f, PIECE, err));
            if (!f->out.size)
                break;
            f->given += f->out.size;
            if (f->given > TM_STREAM_FREE_BYTES && f->given / TM_STREAM_MAX_RATIO > f->map.size)
                return tm_fail(err, TM_INPUT, "%s: unpacks to more than %d times its size", f->path, TM_STREAM_MAX_RATIO);
        }
        size_t n = f->out.size - f->at < size - *got ? f->out.size - f->at : size - *got;
        memcpy((char *)to + *got, f->out.data + f->at, n);
        f->at += n;
        *got += n;
    }
    return TM_OK;
}
