/* The parts of the Parquet reader: metadata (parquet_meta.c), pages and values of a column
 * (parquet_column.c), rows (parquet.c). Private to src/io. */
#ifndef TM_IO_PARQUET_PARTS_H
#define TM_IO_PARQUET_PARTS_H

#include "base/file.h"
#include "io/compress.h"

/* Limits against hostile files; docs/formats/parquet.md. */
enum {
    PQ_MAX_META_BYTES = 256 << 20,
    PQ_MAX_PAGE_BYTES = 256 << 20, /* of a page, unpacked */
    PQ_MAX_HELD_BYTES = 1 << 30,   /* of all pages and dictionaries that are held at once */
    PQ_MAX_SCHEMA = 65536,         /* elements */
    PQ_MAX_DEPTH = 32
};

/* --- Thrift's compact protocol --- */

typedef struct pq_thrift {
    const unsigned char *at, *end;
    bool bad; /* sticky: it is not valid, or nested too deep */
} pq_thrift;
enum { PQ_STOP = 0, PQ_TRUE = 1, PQ_FALSE = 2, PQ_BYTE = 3, PQ_I16 = 4, PQ_I32 = 5, PQ_I64 = 6, PQ_DOUBLE = 7,
       PQ_BINARY = 8, PQ_LIST = 9, PQ_SET = 10, PQ_MAP = 11, PQ_STRUCT = 12 };
/* The next field of a struct: its type, PQ_STOP at the end (and when bad); *id counts on from the last. */
int pq_field(pq_thrift *t, int *id);
int64_t pq_int(pq_thrift *t, int type);           /* a field's value; 0 and bad when it is no integer or bool */
uint32_t pq_list(pq_thrift *t, int type, int *element); /* elements that follow */
const char *pq_text(pq_thrift *t, int type, size_t *size);
void pq_skip(pq_thrift *t, int type);

/* --- Metadata --- */

typedef enum pq_type { PQ_T_BOOL, PQ_T_INT32, PQ_T_INT64, PQ_T_INT96, PQ_T_FLOAT, PQ_T_DOUBLE, PQ_T_BYTES, PQ_T_FIXED } pq_type;

typedef struct pq_node { /* of the schema, in the order of the file: a group before its children */
    const char *name;    /* borrowed from the map, not terminated */
    size_t name_size;
    int type, repetition;    /* repetition: 0 required, 1 optional, 2 repeated */
    int32_t children, next;  /* next: the node behind it and all below it */
    int32_t leaf;            /* index among leaves; -1: a group */
    int32_t first;           /* a leaf that is read at or below it; -1: none, it is left out */
    int max_def, max_rep;
    bool list, wanted;
} pq_node;

typedef struct pq_chunk { /* a column of a row group */
    uint64_t at, size; /* bytes of the file */
    int64_t values;
    int codec;
} pq_chunk;

typedef struct pq_meta {
    pq_node *node;
    int32_t nodes, leaves;
    pq_chunk *chunk; /* [groups * leaves] */
    size_t chunks, chunk_capacity;
    int64_t *rows; /* of the groups */
    size_t groups, group_capacity;
} pq_meta;
/* names in messages: path. */
tm_status pq_meta_read(const char *path, const tm_map *map, pq_meta *out, tm_error *err) TM_MUST_CHECK;
void pq_meta_deinit(pq_meta *meta);

/* --- A column --- */

typedef struct pq_runs { /* the hybrid of runs and bit packing */
    const unsigned char *at, *end;
    int width;
    uint32_t repeat, value, packed; /* left of a run, its number; left of a bit-packed part */
    uint64_t bits;                  /* of the part: read so far, and how many are valid */
    int bit_count;
    bool bad;
} pq_runs;

typedef struct pq_value {
    const char *text; /* PQ_T_BYTES */
    size_t size;
    int64_t integer;
    double number;
} pq_value;

typedef struct pq_column {
    const pq_node *node;
    const char *path;
    const unsigned char *at, *end; /* what is left of the chunk */
    int codec;
    tm_buf page, dictionary;
    pq_value *entry; /* of the dictionary */
    size_t entries, entry_capacity;
    uint64_t *held;   /* bytes of all columns, against PQ_MAX_HELD_BYTES */
    /* the page */
    int64_t left;     /* levels not read */
    pq_runs rep, def, index;
    const unsigned char *plain, *plain_end;
    int bit;          /* plain booleans */
    bool indexed, packed_bools;
    /* the value at hand */
    bool ended;       /* there is none */
    int rep_level, def_level;
    pq_value value;   /* where def_level is the node's */
} pq_column;
/* Starts a chunk and stands on its first value. */
tm_status pq_column_begin(pq_column *c, const tm_map *map, const pq_chunk *chunk, tm_error *err) TM_MUST_CHECK;
tm_status pq_column_next(pq_column *c, tm_error *err) TM_MUST_CHECK;
void pq_column_deinit(pq_column *c);

#endif
