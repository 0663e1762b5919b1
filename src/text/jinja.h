/* Jinja templates as chat templates use them: what jinja2's immutable sandbox (trim_blocks, lstrip_blocks,
 * loop controls, generation blocks) renders, without Python. docs/formats/jinja.md says what is supported.
 *
 * A template is immutable after parsing and may be rendered by many threads at once. Templates come from
 * strangers: whatever they do ends within the limits below, with an error that names template and line. */
#ifndef TM_TEXT_JINJA_H
#define TM_TEXT_JINJA_H

#include "base/buf.h"

#include <jansson.h>

/* Limits and why they are what they are. The largest known chat template has some 20 KiB, 2,500 nodes and
 * nests 12 deep; rendering 1,000 messages with it takes some 500,000 steps. */
enum {
    TM_JINJA_MAX_BYTES = 1 << 20,       /* of a template: 50 times the largest known */
    TM_JINJA_MAX_NESTING = 200,         /* of blocks and brackets: the parser's stack stays below 1 MiB */
    TM_JINJA_MAX_DEPTH = 1000,          /* of expressions, blocks and macro calls while rendering: the same */
    TM_JINJA_MAX_STEPS = 20000000,      /* a node is a step, so are 64 bytes or 8 items handled: about 2 s */
    TM_JINJA_MAX_OUTPUT = 64 << 20,     /* bytes written, captured blocks and macros included: a row's limit */
    TM_JINJA_MAX_MEMORY = 512 << 20,    /* bytes of all values of one rendering: 8 times the output */
    TM_JINJA_MAX_RANGE = 100000         /* items of range(): jinja2's sandbox has the same */
};

typedef struct tm_jinja tm_jinja;

/* name stands for the template in messages. TM_INPUT when it is damaged, with its line. */
tm_status tm_jinja_parse(const char *text, size_t size, const char *name, tm_jinja **out, tm_error *err) TM_MUST_CHECK;
void tm_jinja_close(tm_jinja *template);

typedef struct tm_jinja_span {
    size_t begin, end; /* bytes of text */
} tm_jinja_span;

typedef struct tm_jinja_output {
    tm_buf text;
    tm_jinja_span *span; /* of generation blocks, in the order they ended */
    size_t spans, span_capacity;
    bool unplaced;       /* a generation block ran where its place in the text cannot be known (in a macro) */
} tm_jinja_output; /* zeroed: a fresh one; rendering clears it first */
void tm_jinja_output_deinit(tm_jinja_output *out);

typedef struct tm_jinja_context {
    const json_t *const *objects; /* variables are looked up in them in this order; an object or NULL */
    size_t object_count;
    const char *date;             /* YYYY-MM-DD for strftime_now; NULL: 2024-07-26 */
} tm_jinja_context;

tm_status tm_jinja_render(const tm_jinja *template, const tm_jinja_context *context, tm_jinja_output *out,
                          tm_error *err) TM_MUST_CHECK;

#endif
