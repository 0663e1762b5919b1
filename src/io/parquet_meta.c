/* Parquet's metadata: Thrift's compact protocol, the schema, where the columns of each row group lie. Fields
 * that are not needed are skipped. Every count is held against the bytes that are left, every place against
 * the size of the file. Source: parquet-format's parquet.thrift, thrift-compact-protocol.md. */
#include "io/parquet_parts.h"

#include <stdlib.h>
#include <string.h>

/* --- Thrift --- */

static uint64_t varint(pq_thrift *t)
{
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
        if (t->at == t->end)
            break;
        unsigned char b = *t->at++;
        value |= (uint64_t)(b & 127) << shift;
        if (!(b & 128))
            return value;
    }
    t->bad = true;
    return 0;
}

static int64_t zigzag(pq_thrift *t)
{
    uint64_t v = varint(t);
    return (int64_t)(v >> 1) ^ -(int64_t)(v & 1);
}

int pq_field(pq_thrift *t, int *id)
{
    if (t->bad || t->at == t->end) {
        t->bad = true;
        return PQ_STOP;
    }
    unsigned char b = *t->at++;
    int type = b & 15;
    if (type == PQ_STOP)
        return PQ_STOP;
    int64_t next = b >> 4 ? *id + (b >> 4) : zigzag(t);
    t->bad |= next < 0 || next > INT16_MAX || type > PQ_STRUCT;
    *id = (int)next;
    return t->bad ? PQ_STOP : type;
}

int64_t pq_int(pq_thrift *t, int type)
{
    if (type == PQ_TRUE || type == PQ_FALSE)
        return type == PQ_TRUE;
    if (type == PQ_I16 || type == PQ_I32 || type == PQ_I64)
        return zigzag(t);
    t->bad = true;
    return 0;
}

uint32_t pq_list(pq_thrift *t, int type, int *element)
{
    if (type != PQ_LIST || t->bad || t->at == t->end) {
        t->bad = true;
        return 0;
    }
    unsigned char b = *t->at++;
    *element = b & 15;
    uint64_t n = b >> 4 == 15 ? varint(t) : b >> 4;
    t->bad |= n > (uint64_t)(t->end - t->at); /* an element has a byte at least */
    return t->bad ? 0 : (uint32_t)n;
}

const char *pq_text(pq_thrift *t, int type, size_t *size)
{
    uint64_t n = type == PQ_BINARY ? varint(t) : 0;
    t->bad |= type != PQ_BINARY || n > (uint64_t)(t->end - t->at);
    *size = t->bad ? 0 : (size_t)n;
    const char *text = (const char *)t->at;
    t->at += *size;
    return text;
}

static void skip_value(pq_thrift *t, int type, int depth, bool in_list);

static void skip_list(pq_thrift *t, int type, int depth)
{
    int element;
    uint32_t n = pq_list(t, type == PQ_SET ? PQ_LIST : type, &element);
    for (uint32_t i = 0; i < n && !t->bad; i++)
        skip_value(t, element, depth + 1, true);
}

static void skip_map(pq_thrift *t, int depth)
{
    uint64_t n = varint(t);
    if (!n || t->at == t->end || n > (uint64_t)(t->end - t->at)) {
        t->bad |= n != 0;
        return;
    }
    unsigned char b = *t->at++;
    for (uint64_t i = 0; i < n && !t->bad; i++) {
        skip_value(t, b >> 4, depth + 1, true);
        skip_value(t, b & 15, depth + 1, true);
    }
}

/* Booleans have a byte of their own in lists and none in fields. */
static void skip_value(pq_thrift *t, int type, int depth, bool in_list)
{
    size_t size = 0;
    if (depth > PQ_MAX_DEPTH)
        t->bad = true;
    if (t->bad)
        return;
    switch (type) {
    case PQ_TRUE:
    case PQ_FALSE: size = in_list; break;
    case PQ_BYTE: size = 1; break;
    case PQ_I16:
    case PQ_I32:
    case PQ_I64: (void)varint(t); return;
    case PQ_DOUBLE: size = 8; break;
    case PQ_BINARY: (void)pq_text(t, type, &size); return;
    case PQ_LIST:
    case PQ_SET: skip_list(t, type, depth); return;
    case PQ_MAP: skip_map(t, depth); return;
    case PQ_STRUCT:
        for (int id = 0, field; (field = pq_field(t, &id)) != PQ_STOP;)
            skip_value(t, field, depth + 1, false);
        return;
    default: t->bad = true; return;
    }
    t->bad |= size > (size_t)(t->end - t->at);
    t->at += t->bad ? 0 : size;
}

void pq_skip(pq_thrift *t, int type) { skip_value(t, type, 0, false); }

/* --- Schema --- */

typedef struct parse {
    pq_thrift t;
    const char *path;
    const tm_map *map;
    pq_meta *meta;
    size_t node_capacity;
    tm_error *err;
} parse;

static tm_status damaged(const parse *p, const char *what)
{
    return tm_fail(p->err, TM_INPUT, "%s: damaged Parquet metadata: %s", p->path, what);
}

static tm_status read_element(parse *p)
{
    pq_meta *m = p->meta;
    pq_node n = {.type = -1, .leaf = -1, .first = -1};
    if (m->nodes >= PQ_MAX_SCHEMA)
        return damaged(p, "too many columns");
    for (int id = 0, type; (type = pq_field(&p->t, &id)) != PQ_STOP;) {
        if (id == 1)
            n.type = (int)pq_int(&p->t, type);
        else if (id == 3)
            n.repetition = (int)pq_int(&p->t, type);
        else if (id == 4)
            n.name = pq_text(&p->t, type, &n.name_size);
        else if (id == 5) {
            int64_t children = pq_int(&p->t, type);
            if (children < 0 || children > PQ_MAX_SCHEMA)
                return damaged(p, "a group of so many columns");
            n.children = (int32_t)children;
        } else if (id == 6)
            n.list |= pq_int(&p->t, type) == 3;
        else if (id == 10 && type == PQ_STRUCT) { /* the union of logical types: 3 is LIST */
            for (int kind = 0, inner; (inner = pq_field(&p->t, &kind)) != PQ_STOP;) {
                n.list |= kind == 3;
                pq_skip(&p->t, inner);
            }
        } else
            pq_skip(&p->t, type);
    }
    if (p->t.bad || !n.name || n.repetition < 0 || n.repetition > 2)
        return damaged(p, "the schema");
    TM_TRY(TM_GROW(&m->node, &p->node_capacity, m->nodes + 1, p->err));
    m->node[m->nodes++] = n;
    return TM_OK;
}

/* Levels, ends and leaves of the node at `at` and of all below it. */
static tm_status link_nodes(parse *p, int32_t at, int depth, int def, int rep)
{
    pq_meta *m = p->meta;
    if (at >= m->nodes || depth > PQ_MAX_DEPTH)
        return damaged(p, "the schema's groups");
    pq_node *n = &m->node[at];
    n->max_def = def + (depth && n->repetition != 0);
    n->max_rep = rep + (depth && n->repetition == 2);
    if (n->children == 0) {
        n->leaf = m->leaves++;
        n->next = at + 1;
        return n->type < 0 ? damaged(p, "a column without a type") : TM_OK;
    }
    int32_t next = at + 1;
    for (int32_t i = 0; i < n->children; i++) {
        TM_TRY(link_nodes(p, next, depth + 1, n->max_def, n->max_rep));
        next = m->node[next].next;
    }
    n->next = next;
    return TM_OK;
}

static tm_status read_schema(parse *p, int type)
{
    int element;
    uint32_t n = pq_list(&p->t, type, &element);
    if (n < 2 || element != PQ_STRUCT || p->meta->nodes)
        return damaged(p, "the schema");
    for (uint32_t i = 0; i < n; i++)
        TM_TRY(read_element(p));
    TM_TRY(link_nodes(p, 0, 0, 0, 0));
    return p->meta->node[0].next == p->meta->nodes ? TM_OK : damaged(p, "the schema's groups");
}

/* --- Row groups --- */

static void read_chunk_meta(parse *p, pq_chunk *c)
{
    int64_t data = -1, dictionary = 0, size = -1;
    for (int id = 0, type; (type = pq_field(&p->t, &id)) != PQ_STOP;) {
        switch (id) {
        case 4: c->codec = (int)pq_int(&p->t, type); break;
        case 5: c->values = pq_int(&p->t, type); break;
        case 7: size = pq_int(&p->t, type); break;
        case 9: data = pq_int(&p->t, type); break;
        case 11: dictionary = pq_int(&p->t, type); break;
        default: pq_skip(&p->t, type);
        }
    }
    int64_t at = dictionary > 0 && dictionary < data ? dictionary : data;
    if (c->values == 0) { /* an empty column lies nowhere */
        at = 4;
        size = 0;
    }
    p->t.bad |= at < 4 || size < 0 || (uint64_t)at > p->map->size || (uint64_t)size > p->map->size - (uint64_t)at ||
                c->values < 0;
    c->at = (uint64_t)at;
    c->size = (uint64_t)size;
}

static tm_status read_chunk(parse *p)
{
    pq_chunk c = {.values = -1};
    for (int id = 0, type; (type = pq_field(&p->t, &id)) != PQ_STOP;) {
        if (id == 1)
            return tm_fail(p->err, TM_UNSUPPORTED, "%s: its columns lie in other files", p->path);
        if (id == 3 && type == PQ_STRUCT)
            read_chunk_meta(p, &c);
        else
            pq_skip(&p->t, type);
    }
    if (p->t.bad || c.values < 0)
        return damaged(p, "a column's place");
    TM_TRY(TM_GROW(&p->meta->chunk, &p->meta->chunk_capacity, p->meta->chunks + 1, p->err));
    p->meta->chunk[p->meta->chunks++] = c;
    return TM_OK;
}

static tm_status read_group(parse *p)
{
    pq_meta *m = p->meta;
    int64_t rows = -1;
    size_t before = m->chunks;
    for (int id = 0, type, element; (type = pq_field(&p->t, &id)) != PQ_STOP;) {
        if (id == 1) {
            uint32_t n = pq_list(&p->t, type, &element);
            for (uint32_t i = 0; i < n; i++)
                TM_TRY(read_chunk(p));
        } else if (id == 3)
            rows = pq_int(&p->t, type);
        else
            pq_skip(&p->t, type);
    }
    if (p->t.bad || rows < 0 || m->chunks - before != (size_t)m->leaves)
        return damaged(p, "a row group");
    TM_TRY(TM_GROW(&m->rows, &m->group_capacity, m->groups + 1, p->err));
    m->rows[m->groups++] = rows;
    return TM_OK;
}

static tm_status read_all(parse *p)
{
    for (int id = 0, type, element; (type = pq_field(&p->t, &id)) != PQ_STOP;) {
        if (id == 2)
            TM_TRY(read_schema(p, type));
        else if (id == 4) {
            uint32_t n = pq_list(&p->t, type, &element);
            for (uint32_t i = 0; i < n; i++)
                TM_TRY(read_group(p));
        } else
            pq_skip(&p->t, type);
    }
    return p->t.bad || !p->meta->nodes ? damaged(p, "it does not end as it should") : TM_OK;
}

tm_status pq_meta_read(const char *path, const tm_map *map, pq_meta *out, tm_error *err)
{
    *out = (pq_meta){0};
    const unsigned char *b = (const unsigned char *)map->data;
    size_t n = map->size;
    if (n >= 12 && memcmp(b + n - 4, "PARE", 4) == 0)
        return tm_fail(err, TM_UNSUPPORTED, "%s: an encrypted Parquet file", path);
    if (n < 12 || memcmp(b, "PAR1", 4) != 0 || memcmp(b + n - 4, "PAR1", 4) != 0)
        return tm_fail(err, TM_INPUT, "%s: not a Parquet file: expected PAR1 at its beginning and end", path);
    uint32_t size = b[n - 8] | (uint32_t)b[n - 7] << 8 | (uint32_t)b[n - 6] << 16 | (uint32_t)b[n - 5] << 24;
    if (size > n - 12 || size > PQ_MAX_META_BYTES)
        return tm_fail(err, TM_INPUT, "%s: damaged Parquet file: metadata of %u bytes", path, size);
    parse p = {.t = {b + n - 8 - size, b + n - 8, false}, .path = path, .map = map, .meta = out, .err = err};
    tm_status st = read_all(&p);
    if (st != TM_OK)
        pq_meta_deinit(out);
    return st;
}

void pq_meta_deinit(pq_meta *meta)
{
    free(meta->node);
    free(meta->chunk);
    free(meta->rows);
    *meta = (pq_meta){0};
}
