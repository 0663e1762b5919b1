/* A YAML or JSON document as one small tree whose every value knows its line, so that a complaint
 * about a recipe can say where. Scalars stay text: what they mean is decided by whoever asks. */
#ifndef TM_BASE_NODE_H
#define TM_BASE_NODE_H

#include "base/buf.h"

/* Limits against hostile files; a recipe is some hundred nodes. An alias counts as what it stands for. */
enum { TM_TREE_MAX_BYTES = 16 << 20, TM_TREE_MAX_DEPTH = 64, TM_TREE_MAX_NODES = 1000000 };

typedef enum tm_node_kind { TM_NODE_SCALAR, TM_NODE_LIST, TM_NODE_MAP } tm_node_kind;

/* What a scalar says by YAML 1.2's core schema, with decimal integers only. */
typedef enum tm_scalar { TM_SCALAR_NULL, TM_SCALAR_BOOL, TM_SCALAR_NUMBER, TM_SCALAR_STRING } tm_scalar;

typedef struct tm_node tm_node;

typedef struct tm_item { /* of a list (key NULL) or a mapping */
    char *key;
    int line; /* of the key */
    const tm_node *value;
} tm_item;

struct tm_node {
    tm_node_kind kind;
    int line;      /* 1-based; 0 = not from a file */
    bool plain;    /* scalar written without quotes: may be null, a boolean or a number */
    char *text;    /* scalar */
    tm_item *item; /* list, mapping */
    size_t count, capacity;
    size_t weight; /* nodes below and including this one, aliases expanded */
    tm_node *next; /* all nodes of the tree, for freeing */
};

typedef struct tm_tree {
    const tm_node *root; /* NULL: an empty document */
    tm_node *all;        /* owned */
} tm_tree;

/* Reads a file: .json as JSON, else YAML (one document, anchors and aliases, no merge keys, no tags
 * but !!str). Failures are TM_RECIPE with file and line; duplicate keys are refused. */
tm_status tm_tree_read(const char *path, tm_tree *out, tm_error *err) TM_MUST_CHECK;
/* The same from memory; name stands for the file in messages. */
tm_status tm_tree_parse_yaml(const char *text, size_t size, const char *name, tm_tree *out,
                             tm_error *err) TM_MUST_CHECK;
tm_status tm_tree_parse_json(const char *text, size_t size, const char *name, tm_tree *out,
                             tm_error *err) TM_MUST_CHECK;
void tm_tree_deinit(tm_tree *tree);

tm_scalar tm_node_scalar(const tm_node *node);
/* The value of a plain number. False when it is no number, or (int) not a whole one that fits 64 bits;
 * 1e3 is a whole number. Never depends on the locale. */
bool tm_node_number(const tm_node *node, double *out);
bool tm_node_int(const tm_node *node, int64_t *out);
bool tm_node_true(const tm_node *node); /* of a boolean */
/* What a message calls it: "the string \"x\"", "the number 5", "a list of 3", "an empty mapping". Writes into text, returns it. */
const char *tm_node_describe(const tm_node *node, char text[96]);

#endif
