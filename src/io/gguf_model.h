/* A GGUF model as the Hugging Face folder it stands for: its config.json, its other small files, and its
 * weights under HF's names and in HF's layout. Everything above sees a model folder and no GGUF.
 *
 * One table of names a family serves both directions: reading here, writing in api/export.c. */
#ifndef TM_IO_GGUF_MODEL_H
#define TM_IO_GGUF_MODEL_H

#include "base/buf.h"
#include "io/gguf.h"
#include "io/safetensors.h"

/* How a tensor of a GGUF file differs from HF's. */
typedef enum tm_gguf_change {
    TM_GGUF_SAME,
    TM_GGUF_PERMUTED_Q, /* rows of a head: pairs (i, i + D/2) of HF lie side by side */
    TM_GGUF_PERMUTED_K,
    TM_GGUF_PLUS_ONE,   /* norm weights: HF stores w, GGUF 1 + w */
    TM_GGUF_TRANSPOSED, /* GPT-2's Conv1D */
} tm_gguf_change;

typedef struct tm_gguf_row { /* without .weight or .bias; %d: the layer */
    const char *gguf, *hf;
    tm_gguf_change change;
} tm_gguf_row;

typedef struct tm_gguf_family {
    const char *model_type;     /* config.json */
    const char *architecture;   /* general.architecture and the prefix of its keys */
    const char *class_name;     /* transformers' */
    const char *activation_key, *activation;
    const tm_gguf_row *row;     /* in the order in which they are written */
    int32_t rows;
    bool gemma;                 /* soft caps, query_pre_attn_scalar, alternating windows */
    int32_t window_pattern;     /* gemma: every how many layers one is full */
} tm_gguf_family;

const tm_gguf_family *tm_gguf_family_of(const char *model_type);                /* NULL: none */
const tm_gguf_family *tm_gguf_architecture(const char *name, size_t size);      /* NULL: none */

typedef struct tm_gguf_place { /* of a tensor in a model */
    const tm_gguf_row *row;
    int64_t layer;      /* -1: outside of the layers */
    const char *suffix; /* ".weight", ".bias", ...: the end of the name that was given */
} tm_gguf_place;
/* Which row a name is of; false: none. */
bool tm_gguf_place_hf(const tm_gguf_family *family, const char *name, tm_gguf_place *out);
bool tm_gguf_place_gguf(const tm_gguf_family *family, const char *name, tm_gguf_place *out);
/* The other side's name, with suffix; false: longer than size. */
bool tm_gguf_spell(const char *pattern, const tm_gguf_place *place, char *out, size_t size);

/* The row of HF's layout where row `row` of GGUF's comes from, in a matrix of heads of head_size rows. */
int64_t tm_gguf_permuted_row(int64_t row, int64_t head_size);

/* The family of the file; TM_UNSUPPORTED, naming the architecture, when there is none. */
tm_status tm_gguf_family_read(const tm_gguf *gguf, const tm_gguf_family **out, tm_error *err) TM_MUST_CHECK;

/* Appends config.json, generation_config.json or tokenizer_config.json; *there false: the folder has no
 * such file. (tokenizer.json: text/tokenizer_gguf.h.) */
tm_status tm_gguf_hf_file(const tm_gguf *gguf, const char *name, tm_buf *out, bool *there, tm_error *err) TM_MUST_CHECK;

/* The weights as a table. F32, F16, BF16 and F64 keep their type, packed types become F32: that is exact,
 * no 16-bit type would be. Values are unpacked when they are asked for (tm_st_values). */
tm_status tm_gguf_weights(tm_gguf *gguf, tm_safetensors **out, tm_error *err) TM_MUST_CHECK; /* takes gguf over, also on failure */
tm_status tm_gguf_open_weights(const char *path, tm_safetensors **out, tm_error *err) TM_MUST_CHECK;

#endif
