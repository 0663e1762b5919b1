/* Rotary positions: what config.json says about them and the angles that follow. Formulas are those of
 * transformers' ROPE_INIT_FUNCTIONS, in the type they are computed in there: frequencies in f32, because
 * position * frequency amplifies a difference; angles, cosines and sines in double. */
#ifndef TM_MODEL_ROPE_H
#define TM_MODEL_ROPE_H

#include "base/json.h"
#include "device/device.h"

typedef enum tm_rope_kind {
    TM_ROPE_DEFAULT,
    TM_ROPE_LINEAR,
    TM_ROPE_LLAMA3,
    TM_ROPE_YARN,
    TM_ROPE_LONG,    /* one set of factors for examples up to `limit` tokens, another for longer ones */
    TM_ROPE_DYNAMIC, /* NTK: beyond `limit` the base grows with the length of the example */
    TM_ROPE_QWEN,    /* the same by the rule of the first Qwen, and in evaluation only */
} tm_rope_kind;

/* How a family's config describes them. */
typedef enum tm_rope_layout {
    TM_ROPE_ONE,   /* rope_parameters, or rope_theta and rope_scaling */
    TM_ROPE_PHI,   /* the same; "su" and "yarn" are older names of longrope */
    TM_ROPE_TWO,   /* layers with a window have theirs: rope_local_base_freq, or rope_parameters by type of layer */
    TM_ROPE_FLAGS, /* rotary_emb_base, use_dynamic_ntk, use_logn_attn, seq_length: the first Qwen */
} tm_rope_layout;

typedef struct tm_rope_config {
    tm_rope_kind kind;
    int64_t size;                /* columns of a head that are rotated, even */
    double theta, factor, low_freq_factor, high_freq_factor, beta_fast, beta_slow;
    double attention_factor;     /* on cosines and sines */
    bool truncate;
    int64_t original_positions;
    int64_t limit;               /* INT64_MAX: the angles do not depend on the length of an example */
    int64_t log_from;            /* > 0: in evaluation the query at position p >= this is multiplied by the logarithm of
                                    p + 1 to this base (use_logn_attn) */
    double *factors[2];          /* TM_ROPE_LONG: short, long [size / 2]; owned */
} tm_rope_config;

/* What reading needs to know of the rest of the config. theta: the default. */
typedef struct tm_rope_source {
    const json_t *json;
    const char *path, *theta_key, *size_key;
    int64_t head_size, max_positions;
    double theta;
} tm_rope_source;

/* One or two (TM_ROPE_TWO: of full layers, of those with a window) into out; *count says how many. */
tm_status tm_rope_read(const tm_rope_source *source, tm_rope_layout layout, tm_rope_config *out, int32_t *count, tm_error *err) TM_MUST_CHECK;
void tm_rope_deinit(tm_rope_config *rope);

/* inv_freq[size / 2] of an example of `length` tokens. */
void tm_rope_frequencies(const tm_rope_config *rope, int64_t length, bool training, float *inv_freq);
/* cosines and sines [size / 2] of a position. */
void tm_rope_angles(const tm_rope_config *rope, const float *inv_freq, int64_t position, double *cosine, double *sine);

#endif
