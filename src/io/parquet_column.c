/* A column of a Parquet row group, value after value: pages are unpacked one at a time, levels and values read
 * as they are asked for. Encodings: plain, dictionary (both spellings), runs and bit packing for levels,
 * indices and booleans. Source: parquet-format's Encodings.md and README.md. */
#include "io/parquet_parts.h"

#include <stdlib.h>
#include <string.h>

enum { DATA_PAGE = 0, INDEX_PAGE = 1, DICTIONARY_PAGE = 2, DATA_PAGE_2 = 3 };
enum { PLAIN = 0, PLAIN_DICTIONARY = 2, RLE = 3, RLE_DICTIONARY = 8 };

static tm_status damaged(const pq_column *c, const char *what, tm_error *err)
{
    return tm_fail(err, TM_INPUT, "%s: damaged Parquet column '%.*s': %s", c->path,
                   (int)(c->node->name_size < 100 ? c->node->name_size : 100), c->node->name, what);
}

static tm_status unsupported(const pq_column *c, const char *what, int found, const char *expected, tm_error *err)
{
    return tm_fail(err, TM_UNSUPPORTED, "%s: Parquet column '%.*s': %s %d is not read; expected %s", c->path,
                   (int)(c->node->name_size < 100 ? c->node->name_size : 100), c->node->name, what, found, expected);
}

void pq_column_deinit(pq_column *c)
{
    tm_buf_deinit(&c->page);
    tm_buf_deinit(&c->dictionary);
    free(c->entry);
    *c = (pq_column){0};
}

static uint32_t word(const unsigned char *b)
{
    return b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

/* --- Runs and bit packing --- */

static pq_runs runs(const unsigned char *at, const unsigned char *end, int width)
{
    return (pq_runs){.at = at, .end = end, .width = width, .bad = width > 32};
}

static void next_run(pq_runs *r)
{
    uint64_t header = 0;
    int shift = 0;
    do {
        if (r->at == r->end || shift > 35) {
            r->bad = true;
            return;
        }
        header |= (uint64_t)(*r->at & 127) << shift;
        shift += 7;
    } while (*r->at++ & 128);
    uint64_t count = header >> 1;
    if (header & 1) { /* so many groups of eight; the file may end inside the last */
        count *= 8;
        r->bits = 0;
        r->bit_count = 0;
        r->packed = count > UINT32_MAX ? UINT32_MAX : (uint32_t)count;
        r->bad |= count == 0;
        return;
    }
    size_t bytes = (size_t)(r->width + 7) / 8;
    r->bad |= count == 0 || count > UINT32_MAX || bytes > (size_t)(r->end - r->at);
    if (r->bad)
        return;
    r->value = 0;
    for (size_t i = 0; i < bytes; i++)
        r->value |= (uint32_t)*r->at++ << (8 * i);
    r->repeat = (uint32_t)count;
}

static uint32_t next_number(pq_runs *r)
{
    while (!r->bad && !r->repeat && !r->packed)
        next_run(r);
    if (r->bad)
        return 0;
    if (r->repeat) {
        r->repeat--;
        return r->value;
    }
    while (r->bit_count < r->width) {
        if (r->at == r->end) {
            r->bad = true;
            return 0;
        }
        r->bits |= (uint64_t)*r->at++ << r->bit_count;
        r->bit_count += 8;
    }
    uint32_t value = (uint32_t)(r->bits & (((uint64_t)1 << r->width) - 1));
    r->bits >>= r->width;
    r->bit_count -= r->width;
    r->packed--;
    return value;
}

static int width_of(int max_level)
{
    int width = 0;
    for (; max_level; max_level >>= 1)
        width++;
    return width;
}

/* --- Pages --- */

typedef struct page {
    int type, encoding, def_encoding, rep_encoding;
    int64_t unpacked, packed, values, def_bytes, rep_bytes;
    bool compressed;
} page;

static void read_inner(pq_thrift *t, page *p)
{
    for (int id = 0, type; (type = pq_field(t, &id)) != PQ_STOP;) {
        bool v2 = p->type == DATA_PAGE_2;
        if (id == 1)
            p->values = pq_int(t, type);
        else if (id == (v2 ? 4 : 2))
            p->encoding = (int)pq_int(t, type);
        else if (id == 3 && p->type == DATA_PAGE)
            p->def_encoding = (int)pq_int(t, type);
        else if (id == 4 && p->type == DATA_PAGE)
            p->rep_encoding = (int)pq_int(t, type);
        else if (id == 5 && v2)
            p->def_bytes = pq_int(t, type);
        else if (id == 6 && v2)
            p->rep_bytes = pq_int(t, type);
        else if (id == 7 && v2)
            p->compressed = pq_int(t, type) != 0;
        else
            pq_skip(t, type);
    }
}

static tm_status read_header(pq_column *c, page *p, tm_error *err)
{
    pq_thrift t = {c->at, c->end, false};
    *p = (page){.type = -1, .unpacked = -1, .packed = -1, .values = -1, .encoding = -1, .def_encoding = RLE,
                .rep_encoding = RLE, .compressed = true};
    for (int id = 0, type; (type = pq_field(&t, &id)) != PQ_STOP;) {
        if (id == 1)
            p->type = (int)pq_int(&t, type);
        else if (id == 2)
            p->unpacked = pq_int(&t, type);
        else if (id == 3)
            p->packed = pq_int(&t, type);
        else if ((id == 5 || id == 7 || id == 8) && type == PQ_STRUCT)
            read_inner(&t, p);
        else
            pq_skip(&t, type);
    }
    if (t.bad || p->packed < 0 || p->packed > t.end - t.at || p->unpacked < 0 || p->type < 0)
        return damaged(c, "a page header", err);
    if (p->unpacked > PQ_MAX_PAGE_BYTES)
        return damaged(c, "a page of more than 256 MiB", err);
    bool holds = p->type == DATA_PAGE || p->type == DATA_PAGE_2 || p->type == DICTIONARY_PAGE;
    if (holds && (p->values < 0 || p->values > INT32_MAX || p->encoding < 0))
        return damaged(c, "a page header without its numbers", err);
    c->at = t.at;
    return TM_OK;
}

/* Unpacks `packed` bytes at c->at behind what is in out. */
static tm_status unpack(pq_column *c, bool compressed, size_t packed, size_t unpacked, tm_buf *out, tm_error *err)
{
    static const tm_codec codecs[] = {TM_CODEC_NONE, TM_CODEC_SNAPPY, TM_CODEC_GZIP, TM_CODEC_NONE,
                                      TM_CODEC_NONE, TM_CODEC_NONE,   TM_CODEC_ZSTD};
    bool known = c->codec == 0 || c->codec == 1 || c->codec == 2 || c->codec == 6;
    if (compressed && !known)
        return unsupported(c, "compression", c->codec, "none, snappy, gzip or zstd", err);
    size_t had = out->capacity;
    char *to = tm_buf_reserve(out, unpacked);
    TM_TRY(tm_buf_check(out, err));
    *c->held += out->capacity - had;
    if (*c->held > PQ_MAX_HELD_BYTES)
        return damaged(c, "pages of more than 1 GiB at once", err);
    tm_status st = tm_unpack(compressed ? codecs[c->codec] : TM_CODEC_NONE, c->at, packed, to, unpacked, err);
    if (st == TM_INPUT)
        return damaged(c, "a page does not unpack to its size", err);
    out->size += unpacked;
    return st;
}

/* One plain value from [*at, end). */
static bool plain_value(pq_type type, const unsigned char **at, const unsigned char *end, pq_value *v)
{
    size_t room = (size_t)(end - *at), size = type == PQ_T_INT64 || type == PQ_T_DOUBLE ? 8 : 4;
    if (room < size)
        return false;
    uint64_t low = word(*at), high = size == 8 ? word(*at + 4) : 0, bits = high << 32 | low;
    *at += size;
    uint32_t bits32 = (uint32_t)low;
    float single;
    memcpy(&single, &bits32, 4);
    switch (type) {
    case PQ_T_INT32: v->integer = (int32_t)low; return true;
    case PQ_T_INT64: v->integer = (int64_t)bits; return true;
    case PQ_T_FLOAT: v->number = (double)single; return true;
    case PQ_T_DOUBLE: memcpy(&v->number, &bits, 8); return true;
    case PQ_T_BYTES:
        if (low > room - 4)
            return false;
        v->text = (const char *)*at;
        v->size = (size_t)low;
        *at += low;
        return true;
    default: return false;
    }
}

static tm_status read_dictionary(pq_column *c, const page *p, tm_error *err)
{
    if (p->encoding != PLAIN && p->encoding != PLAIN_DICTIONARY)
        return unsupported(c, "encoding", p->encoding, "plain (0) in a dictionary", err);
    if (c->entries)
        return damaged(c, "two dictionaries", err);
    TM_TRY(unpack(c, true, (size_t)p->packed, (size_t)p->unpacked, &c->dictionary, err));
    const unsigned char *at = (const unsigned char *)tm_buf_str(&c->dictionary), *end = at + c->dictionary.size;
    if ((size_t)p->values > c->dictionary.size / 4)
        return damaged(c, "a dictionary of more entries than bytes", err);
    TM_TRY(TM_GROW(&c->entry, &c->entry_capacity, p->values, err));
    for (; c->entries < (size_t)p->values; c->entries++)
        if (!plain_value((pq_type)c->node->type, &at, end, &c->entry[c->entries]))
            return damaged(c, "a dictionary that is too short", err);
    return TM_OK;
}

/* Levels of version 1 stand behind their length. */
static tm_status levels_1(pq_column *c, const unsigned char **at, const unsigned char *end, int max, int encoding,
                          pq_runs *out, tm_error *err)
{
    *out = runs(*at, *at, 0);
    if (!max)
        return TM_OK;
    if (encoding != RLE)
        return unsupported(c, "encoding of levels", encoding, "runs (3)", err);
    if (end - *at < 4 || word(*at) > (size_t)(end - *at) - 4)
        return damaged(c, "levels beyond the page", err);
    const unsigned char *from = *at + 4;
    *at = from + word(*at);
    *out = runs(from, *at, width_of(max));
    return TM_OK;
}

static tm_status begin_values(pq_column *c, const page *p, const unsigned char *at, const unsigned char *end, tm_error *err)
{
    c->indexed = p->encoding == PLAIN_DICTIONARY || p->encoding == RLE_DICTIONARY;
    c->packed_bools = p->encoding == RLE && c->node->type == PQ_T_BOOL;
    c->plain = at;
    c->plain_end = end;
    c->bit = 0;
    if (c->indexed)
        c->index = at < end ? runs(at + 1, end, *at) : runs(at, end, 0);
    else if (c->packed_bools) {
        if (end - at < 4)
            return damaged(c, "booleans beyond the page", err);
        c->index = runs(at + 4, end, 1);
    } else if (p->encoding != PLAIN)
        return unsupported(c, "encoding", p->encoding, "plain (0) or dictionary (2, 8); write it with use_dictionary or column_encoding PLAIN", err);
    c->left = p->values;
    return TM_OK;
}

static tm_status begin_page(pq_column *c, const page *p, tm_error *err)
{
    const pq_node *n = c->node;
    *c->held -= c->page.capacity; /* a page takes the place of the one before */
    tm_buf_deinit(&c->page);
    if (p->type == DATA_PAGE) {
        TM_TRY(unpack(c, true, (size_t)p->packed, (size_t)p->unpacked, &c->page, err));
        const unsigned char *at = (const unsigned char *)tm_buf_str(&c->page), *end = at + c->page.size;
        TM_TRY(levels_1(c, &at, end, n->max_rep, p->rep_encoding, &c->rep, err));
        TM_TRY(levels_1(c, &at, end, n->max_def, p->def_encoding, &c->def, err));
        return begin_values(c, p, at, end, err);
    }
    int64_t levels = p->rep_bytes + p->def_bytes;
    if (p->rep_bytes < 0 || p->def_bytes < 0 || p->rep_bytes > p->packed || p->def_bytes > p->packed ||
        levels > p->packed || levels > p->unpacked)
        return damaged(c, "levels beyond the page", err);
    c->rep = runs(c->at, c->at + p->rep_bytes, width_of(n->max_rep)); /* these are not packed */
    c->def = runs(c->rep.end, c->rep.end + p->def_bytes, width_of(n->max_def));
    c->at += levels;
    bool compressed = p->compressed && c->codec != 0;
    tm_status st = unpack(c, compressed, (size_t)(p->packed - levels), (size_t)(p->unpacked - levels), &c->page, err);
    c->at -= levels;
    TM_TRY(st);
    const unsigned char *at = (const unsigned char *)tm_buf_str(&c->page);
    return begin_values(c, p, at, at + c->page.size, err);
}

static tm_status next_page(pq_column *c, tm_error *err)
{
    page p;
    TM_TRY(read_header(c, &p, err));
    if (p.type == DICTIONARY_PAGE)
        TM_TRY(read_dictionary(c, &p, err));
    else if (p.type == DATA_PAGE || p.type == DATA_PAGE_2)
        TM_TRY(begin_page(c, &p, err));
    c->at += p.packed;
    return TM_OK;
}

/* --- Values --- */

static tm_status read_value(pq_column *c, tm_error *err)
{
    if (c->indexed) {
        uint32_t i = next_number(&c->index);
        if (c->index.bad || i >= c->entries)
            return damaged(c, "an index outside the dictionary", err);
        c->value = c->entry[i];
        return TM_OK;
    }
    if (c->packed_bools) {
        c->value.integer = next_number(&c->index);
        return c->index.bad ? damaged(c, "too few values", err) : TM_OK;
    }
    if (c->node->type == PQ_T_BOOL) {
        if (c->plain == c->plain_end)
            return damaged(c, "too few values", err);
        c->value.integer = *c->plain >> c->bit & 1;
        c->bit = (c->bit + 1) % 8;
        c->plain += c->bit == 0;
        return TM_OK;
    }
    return plain_value((pq_type)c->node->type, &c->plain, c->plain_end, &c->value) ? TM_OK
                                                                                     : damaged(c, "too few values", err);
}

tm_status pq_column_next(pq_column *c, tm_error *err)
{
    while (c->left == 0) {
        if (c->at == c->end) {
            c->ended = true;
            c->rep_level = c->def_level = 0;
            return TM_OK;
        }
        TM_TRY(next_page(c, err));
    }
    c->left--;
    c->rep_level = c->node->max_rep ? (int)next_number(&c->rep) : 0;
    c->def_level = c->node->max_def ? (int)next_number(&c->def) : 0;
    if (c->rep.bad || c->def.bad || c->rep_level > c->node->max_rep || c->def_level > c->node->max_def)
        return damaged(c, "its levels", err);
    return c->def_level == c->node->max_def ? read_value(c, err) : TM_OK;
}

tm_status pq_column_begin(pq_column *c, const tm_map *map, const pq_chunk *chunk, tm_error *err)
{
    c->at = (const unsigned char *)map->data + chunk->at;
    c->end = c->at + chunk->size;
    c->codec = chunk->codec;
    *c->held -= c->page.capacity + c->dictionary.capacity;
    tm_buf_deinit(&c->page);
    tm_buf_deinit(&c->dictionary);
    c->entries = 0;
    c->left = 0;
    c->ended = false;
    return pq_column_next(c, err);
}
