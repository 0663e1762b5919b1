/* The recipe: what a run is asked to do. The struct, the parser and the documentation are made from
 * options.def. */
#ifndef TM_BASE_OPTIONS_H
#define TM_BASE_OPTIONS_H

#include "base/names.h"
#include "base/node.h"

#include <math.h>

#define TM_AUTO_INT INT64_MIN
#define TM_AUTO_NUMBER ((double)NAN)

typedef struct tm_string_map { /* key -> value as written */
    tm_names keys, values;
} tm_string_map;

#define TM_OPT_C_BOOL bool
#define TM_OPT_C_INT int64_t
#define TM_OPT_C_NUMBER double
#define TM_OPT_C_AUTO_INT int64_t     /* TM_AUTO_INT = auto */
#define TM_OPT_C_AUTO_NUMBER double   /* NaN = auto */
#define TM_OPT_C_STRING char *        /* owned; NULL = none */
#define TM_OPT_C_PATH char *          /* owned; NULL = none */
#define TM_OPT_C_CHOICE int           /* index into the choices */
#define TM_OPT_C_STRINGS tm_names     /* a scalar is a list of one */
#define TM_OPT_C_MAP tm_string_map

/* Enums of the CHOICE options, in the order of options.def. */
enum { TM_INIT_WEIGHTS, TM_INIT_RANDOM };
enum { TM_PRECISION_AUTO, TM_PRECISION_F32, TM_PRECISION_BF16, TM_PRECISION_F16 };
enum { TM_METHOD_FULL, TM_METHOD_FREEZE, TM_METHOD_BITFIT, TM_METHOD_LORA, TM_METHOD_ADAPTER, TM_METHOD_PROMPT,
       TM_METHOD_NONE };
enum { TM_BIAS_NONE, TM_BIAS_ALL, TM_BIAS_LORA_ONLY };
enum { TM_OPTIM_ADAMW, TM_OPTIM_SGD };
enum { TM_DECAY_MATRICES, TM_DECAY_ALL };
enum { TM_SCHEDULE_CONSTANT, TM_SCHEDULE_LINEAR, TM_SCHEDULE_COSINE, TM_SCHEDULE_WSD };
enum { TM_MASTER_F32, TM_MASTER_BF16 };
enum { TM_OFFLOAD_AUTO, TM_OFFLOAD_NONE, TM_OFFLOAD_ACTIVATIONS };
enum { TM_GRAPHS_AUTO, TM_GRAPHS_NONE };
enum { TM_RECOMPUTE_AUTO, TM_RECOMPUTE_NONE, TM_RECOMPUTE_PARTIAL, TM_RECOMPUTE_FULL };
enum { TM_SAVE_SOURCE, TM_SAVE_F32, TM_SAVE_BF16, TM_SAVE_F16 };
enum { TM_SELECT_RANDOM, TM_SELECT_RESERVOIR, TM_SELECT_DIVERSE, TM_SELECT_LOSS };
enum { TM_EWC_DELTA, TM_EWC_FACTORS };
enum { TM_IMPORTANCE_FISHER, TM_IMPORTANCE_PATH };
enum { TM_FISHER_SAMPLED, TM_FISHER_EMPIRICAL };
enum { TM_AVERAGE_NONE, TM_AVERAGE_EMA, TM_AVERAGE_SWA, TM_AVERAGE_LOOKAHEAD };
enum { TM_BREACH_WARN, TM_BREACH_STOP, TM_BREACH_ROLLBACK };
enum { TM_FORMAT_AUTO, TM_FORMAT_TEXT, TM_FORMAT_COMPLETION, TM_FORMAT_TOKENS, TM_FORMAT_MESSAGES, TM_FORMAT_SHAREGPT,
       TM_FORMAT_ALPACA, TM_FORMAT_BRIDGE, TM_FORMAT_CHOICE };
enum { TM_LOSS_AUTO, TM_LOSS_ALL, TM_LOSS_COMPLETION, TM_LOSS_ASSISTANT };
enum { TM_MIX_SIZE, TM_MIX_TOKENS, TM_MIX_ROWS };
enum { TM_METRIC_LOSS, TM_METRIC_ACCURACY, TM_METRIC_EXACT, TM_METRIC_KL, TM_METRIC_BITS, TM_METRIC_CHOICE,
       TM_METRIC_EXACT_MATCH, TM_METRIC_EXTRACTED, TM_METRIC_ROUGE_L, TM_METRIC_SARI, TM_METRIC_ROUND_TRIP, TM_METRIC_COUNT };

#define TM_OPT_FIELD(field, key, type, fallback, allowed, aliases, help) TM_OPT_C_##type field;

typedef struct tm_data_entry {
    int line; /* in the recipe */
#define TM_DATA_OPTIONS TM_OPT_FIELD
#include "base/options.def"
#undef TM_DATA_OPTIONS
} tm_data_entry;

typedef struct tm_eval_entry {
    int line;
    tm_data_entry data;
    char *name;
    int metric;
    int64_t limit, max_tokens;
    double max_drop, max; /* probes only; NaN = no budget of that kind */
} tm_eval_entry;

typedef struct tm_recipe {
    char *path;     /* the file it came from; NULL when made from arguments */
    char *base_dir; /* folder that relative paths in it refer to */
#define TM_RECIPE_OPTIONS TM_OPT_FIELD
#define TM_RECIPE_ROWS(field, key, help) tm_data_entry field;
#include "base/options.def"
#undef TM_RECIPE_OPTIONS
    tm_data_entry *data;
    int64_t data_count;
    tm_eval_entry *eval;
    int64_t eval_count;
    tm_eval_entry *probes; /* keep.monitor.probes */
    int64_t probe_count;
    tm_names given;        /* canonical keys that the recipe or the arguments set */
    tm_names aliases_used; /* "learning_rate -> train.lr" */
} tm_recipe;

/* Reads a recipe: .json as JSON, else YAML; path NULL starts from the defaults. overrides are
 * "key=value" with dotted keys (lists by index: data.0.path=x); the value is YAML where it starts with
 * [, {, " or ', else one plain word. Unknown
 * keys, wrong types and values out of range are TM_RECIPE with file, line, key and the nearest key.
 * Paths in the file are relative to the current folder (as in the ecosystem's tools). */
tm_status tm_recipe_load(const char *path, char *const *overrides, size_t override_count, tm_recipe **out,
                         tm_error *err) TM_MUST_CHECK;
/* The same with mappings of keys out of another file (a sequence's), applied in order between the recipe's
 * own file and the arguments; messages name that file and its line. */
typedef struct tm_recipe_layers {
    const char *file;
    const tm_node *const *map; /* [count] mappings */
    size_t count;
} tm_recipe_layers;
tm_status tm_recipe_load_layers(const char *path, const tm_recipe_layers *layers, char *const *overrides,
                                size_t override_count, tm_recipe **out, tm_error *err) TM_MUST_CHECK;
void tm_recipe_destroy(tm_recipe *recipe);

/* Every key with its value, as JSON in the order of the table (run.json), or YAML with the help as
 * comments (temper init). */
tm_status tm_recipe_to_json(const tm_recipe *recipe, tm_buf *out, tm_error *err) TM_MUST_CHECK;
tm_status tm_recipe_to_yaml(const tm_recipe *recipe, bool comments, tm_buf *out, tm_error *err) TM_MUST_CHECK;
/* The same of one set of rows: which, and how they are read. Equal entries give equal text. */
tm_status tm_data_entry_to_json(const tm_data_entry *entry, tm_buf *out, tm_error *err) TM_MUST_CHECK;
/* What a recipe says beyond the defaults, a line "key: value" a key, appended: the same for a later version that knows more keys. */
tm_status tm_recipe_changes(const tm_recipe *recipe, tm_buf *out, tm_error *err) TM_MUST_CHECK;
/* docs/recipe.md: the table of all keys. */
void tm_recipe_document(tm_buf *out);

#endif
