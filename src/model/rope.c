/* Rotary positions: see rope.h. Both layouts of transformers are read: version 4 (rope_theta, rope_scaling) and
 * version 5 (rope_parameters). */
#include "model/rope.h"

#include "base/exact.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Of theta's powers and factors: keeps position * frequency where sine and cosine are exact. */
#define LEAST 0.01

/* --- Reading --- */

static tm_status kind_of(const tm_rope_source *s, const char *name, tm_rope_layout layout, tm_rope_kind *out, tm_error *err)
{
    static const struct {
        const char *name;
        tm_rope_kind kind;
    } kinds[] = {{"default", TM_ROPE_DEFAULT}, {"linear", TM_ROPE_LINEAR}, {"llama3", TM_ROPE_LLAMA3}, {"yarn", TM_ROPE_YARN},
                 {"longrope", TM_ROPE_LONG}, {"su", TM_ROPE_LONG}, {"dynamic", TM_ROPE_DYNAMIC}};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if (strcmp(name, kinds[i].name) == 0) {
            *out = kinds[i].kind;
            if (layout == TM_ROPE_PHI && *out == TM_ROPE_YARN)
                *out = TM_ROPE_LONG;
            return TM_OK;
        }
    return tm_fail(err, TM_UNSUPPORTED, "%s: rope scaling '%s' is not supported (default, linear, dynamic, yarn, longrope, llama3 are)", s->path, name);
}

static tm_status read_factors(const tm_rope_source *s, const json_t *scaling, tm_rope_config *rope, tm_error *err)
{
    static const char *const keys[] = {"short_factor", "long_factor"};
    for (int k = 0; k < 2; k++) {
        const json_t *list = json_object_get(scaling, keys[k]);
        if ((int64_t)json_array_size(list) != rope->size / 2)
            return tm_fail(err, TM_INPUT, "%s: rope: %s has %zu numbers, expected one for each of %lld pairs of columns", s->path, keys[k],
                           json_array_size(list), (long long)(rope->size / 2));
        TM_TRY(TM_NEW(&rope->factors[k], rope->size / 2, err));
        for (int64_t i = 0; i < rope->size / 2; i++) {
            rope->factors[k][i] = json_number_value(json_array_get(list, (size_t)i));
            if (!(rope->factors[k][i] >= LEAST))
                return tm_fail(err, TM_INPUT, "%s: rope: %s[%lld]: expected a number from 0.01", s->path, keys[k], (long long)i);
        }
    }
    return TM_OK;
}

/* What the kinds make of their keys when those are not there. */
static void settle_attention_factor(const tm_rope_config *rope, double mscale, double mscale_all, double *factor)
{
    double f = rope->factor;
    if (*factor >= 0)
        return;
    *factor = 1;
    if (f > 1 && rope->kind == TM_ROPE_YARN) {
        double grown = 0.1 * tm_log(f);
        *factor = mscale != 0 && mscale_all != 0 ? (mscale * grown + 1) / (mscale_all * grown + 1) : grown + 1;
    } else if (f > 1 && rope->kind == TM_ROPE_LONG)
        *factor = sqrt(1 + tm_log(f) / tm_log((double)rope->original_positions));
}

static tm_status check(const tm_rope_source *s, const tm_rope_config *rope, tm_error *err)
{
    bool sound = rope->theta >= 1 && rope->factor >= LEAST && rope->attention_factor > 0 && isfinite(rope->theta) && isfinite(rope->factor);
    if (rope->kind == TM_ROPE_LLAMA3)
        sound = sound && rope->original_positions > 0 && rope->low_freq_factor > 0 && rope->high_freq_factor > rope->low_freq_factor;
    if (rope->kind == TM_ROPE_YARN)
        sound = sound && rope->original_positions > 0 && rope->theta > 1 && rope->beta_fast > 0 && rope->beta_slow > 0;
    if (rope->kind == TM_ROPE_LONG)
        sound = sound && rope->original_positions > 1;
    if (rope->kind == TM_ROPE_DYNAMIC || rope->kind == TM_ROPE_QWEN)
        sound = sound && rope->size > 2 && rope->factor >= 1;
    return sound ? TM_OK : tm_fail(err, TM_INPUT, "%s: rope: the numbers make no sense: theta must be 1 or more, factor and betas positive, high_freq_factor above "
                                                  "low_freq_factor, original_max_position_embeddings positive", s->path);
}

static tm_status read_size(const tm_rope_source *s, const json_t *scaling, tm_rope_config *rope, tm_error *err)
{
    double part;
    TM_TRY(tm_json_get_number(s->json, s->path, s->size_key ? s->size_key : "partial_rotary_factor", 1, &part, err));
    if (scaling)
        TM_TRY(tm_json_get_number(scaling, s->path, "partial_rotary_factor", part, &part, err));
    rope->size = part > 0 && part <= 1 ? (int64_t)((double)s->head_size * part) : 0;
    if (rope->size < 2 || rope->size % 2)
        return tm_fail(err, TM_INPUT, "%s: %lld of %lld columns of a head are rotated (partial_rotary_factor %g): expected an even number", s->path,
                       (long long)rope->size, (long long)s->head_size, part);
    return TM_OK;
}

/* The angles of one kind of layer. scaling may be NULL. */
static tm_status read_one(const tm_rope_source *s, const json_t *scaling, tm_rope_layout layout, double theta, tm_rope_config *rope, tm_error *err)
{
    const char *name = "default";
    double mscale = 0, mscale_all = 0;
    *rope = (tm_rope_config){.theta = theta, .factor = 1, .attention_factor = 1, .limit = INT64_MAX, .original_positions = s->max_positions};
    TM_TRY(read_size(s, scaling, rope, err));
    if (!scaling)
        return check(s, rope, err);
    TM_TRY(tm_json_get_string(scaling, s->path, "type", name, &name, err));
    TM_TRY(tm_json_get_string(scaling, s->path, "rope_type", name, &name, err));
    TM_TRY(kind_of(s, name, layout, &rope->kind, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "rope_theta", theta, &rope->theta, err));
    /* The model's own key has the last word, as in transformers. */
    if (layout == TM_ROPE_PHI)
        rope->original_positions = 4096;
    TM_TRY(tm_json_get_int(scaling, s->path, "original_max_position_embeddings", rope->original_positions, &rope->original_positions, err));
    TM_TRY(tm_json_get_int(s->json, s->path, "original_max_position_embeddings", rope->original_positions, &rope->original_positions, err));
    double stretch = rope->original_positions > 0 ? (double)s->max_positions / (double)rope->original_positions : 1;
    bool by_length = rope->kind == TM_ROPE_LONG || rope->kind == TM_ROPE_YARN;
    TM_TRY(tm_json_get_number(scaling, s->path, "factor", by_length ? stretch : 1, &rope->factor, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "low_freq_factor", 1, &rope->low_freq_factor, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "high_freq_factor", 4, &rope->high_freq_factor, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "beta_fast", 32, &rope->beta_fast, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "beta_slow", 1, &rope->beta_slow, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "mscale", 0, &mscale, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "mscale_all_dim", 0, &mscale_all, err));
    TM_TRY(tm_json_get_bool(scaling, s->path, "truncate", true, &rope->truncate, err));
    TM_TRY(tm_json_get_number(scaling, s->path, "attention_factor", -1, &rope->attention_factor, err));
    if (!by_length)
        rope->attention_factor = 1;
    settle_attention_factor(rope, mscale, mscale_all, &rope->attention_factor);
    if (rope->kind == TM_ROPE_DYNAMIC)
        rope->limit = rope->original_positions = s->max_positions;
    if (rope->kind == TM_ROPE_LONG) {
        rope->limit = rope->original_positions;
        TM_TRY(read_factors(s, scaling, rope, err));
    }
    return check(s, rope, err);
}

static tm_status read_flags(const tm_rope_source *s, double theta, tm_rope_config *rope, tm_error *err)
{
    bool dynamic, logarithm;
    int64_t length;
    TM_TRY(read_one(s, NULL, TM_ROPE_ONE, theta, rope, err));
    TM_TRY(tm_json_get_bool(s->json, s->path, "use_dynamic_ntk", true, &dynamic, err));
    TM_TRY(tm_json_get_bool(s->json, s->path, "use_logn_attn", true, &logarithm, err));
    TM_TRY(tm_json_get_int(s->json, s->path, "seq_length", s->max_positions, &length, err));
    if (length < 2)
        return tm_fail(err, TM_INPUT, "%s: seq_length is %lld, expected 2 or more", s->path, (long long)length);
    rope->original_positions = length;
    if (dynamic || logarithm) {
        rope->kind = dynamic ? TM_ROPE_QWEN : TM_ROPE_DEFAULT;
        rope->limit = length;
        rope->log_from = logarithm ? length : 0;
    }
    return check(s, rope, err);
}

tm_status tm_rope_read(const tm_rope_source *s, tm_rope_layout layout, tm_rope_config *out, int32_t *count, tm_error *err)
{
    double theta, local;
    const json_t *scaling = json_object_get(s->json, "rope_parameters");
    if (!json_is_object(scaling))
        scaling = json_object_get(s->json, "rope_scaling");
    if (scaling && !json_is_object(scaling) && !json_is_null(scaling))
        return tm_fail(err, TM_INPUT, "%s: rope_scaling: expected an object or null", s->path);
    if (!json_is_object(scaling))
        scaling = NULL;
    TM_TRY(tm_json_get_number(s->json, s->path, s->theta_key ? s->theta_key : "rope_theta", s->theta, &theta, err));
    *count = 1;
    if (layout == TM_ROPE_FLAGS)
        return read_flags(s, theta, out, err);
    if (layout != TM_ROPE_TWO)
        return read_one(s, scaling, layout, theta, out, err);
    *count = 2;
    TM_TRY(tm_json_get_number(s->json, s->path, "rope_local_base_freq", 10000, &local, err));
    const json_t *full = json_object_get(scaling, "full_attention"), *sliding = json_object_get(scaling, "sliding_attention");
    bool by_type = full || sliding;
    TM_TRY(read_one(s, by_type ? full : scaling, layout, theta, &out[0], err));
    TM_TRY(read_one(s, by_type ? sliding : NULL, layout, local, &out[1], err));
    if (out[1].limit != INT64_MAX)
        return tm_fail(err, TM_UNSUPPORTED, "%s: rope of layers with a window that depends on the length of an example is not supported", s->path);
    return TM_OK;
}

void tm_rope_deinit(tm_rope_config *rope)
{
    free(rope->factors[0]);
    free(rope->factors[1]);
    *rope = (tm_rope_config){0};
}

/* --- Frequencies --- */

/* theta^(2i / size), in f32 as PyTorch has it. */
static float power(double theta, int64_t i, int64_t size)
{
    float exponent = (float)(2 * i) / (float)size;
    return (float)tm_pow(theta, exponent);
}

static void llama3(const tm_rope_config *rope, float *inv_freq)
{
    double original = (double)rope->original_positions, low = original / rope->low_freq_factor, high = original / rope->high_freq_factor;
    for (int64_t i = 0; i < rope->size / 2; i++) {
        float f = inv_freq[i];
        double wavelength = 2 * M_PI / f;
        if (wavelength > low)
            f = (float)(f / rope->factor);
        else if (wavelength >= high) {
            double smooth = (original / wavelength - rope->low_freq_factor) / (rope->high_freq_factor - rope->low_freq_factor);
            f = (float)((1 - smooth) * f / rope->factor + smooth * f);
        }
        inv_freq[i] = f;
    }
}

/* The pair of columns that turns `rotations` times over the original positions. */
static double correction(const tm_rope_config *rope, double rotations)
{
    return (double)rope->size * tm_log((double)rope->original_positions / (rotations * 2 * M_PI)) / (2 * tm_log(rope->theta));
}

/* YaRN (2309.00071): slow pairs are interpolated, fast ones left, a ramp between. */
static void yarn(const tm_rope_config *rope, float *inv_freq)
{
    double low = correction(rope, rope->beta_fast), high = correction(rope, rope->beta_slow);
    if (rope->truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, (double)(rope->size - 1));
    if (low == high)
        high += 0.001;
    for (int64_t i = 0; i < rope->size / 2; i++) {
        float p = power(rope->theta, i, rope->size), ramp = ((float)i - (float)low) / (float)(high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        float keep = 1 - ramp, whole = 1.0f / p, part = 1.0f / ((float)rope->factor * p);
        inv_freq[i] = part * (1 - keep) + whole * keep;
    }
}

/* The base of an example of `length` tokens. */
static double grown_theta(const tm_rope_config *rope, int64_t length, bool training)
{
    double exponent = (double)rope->size / (double)(rope->size - 2), original = (double)rope->original_positions;
    if (length <= rope->limit)
        return rope->theta;
    if (rope->kind == TM_ROPE_DYNAMIC) { /* in f32: the length is a tensor there */
        float grown = (float)rope->factor * (float)length / (float)original - (float)(rope->factor - 1);
        return (float)rope->theta * (float)tm_pow(grown, exponent);
    }
    if (rope->kind != TM_ROPE_QWEN || training)
        return rope->theta;
    double alpha = 1; /* 2^ceil(log2(length / original) + 1) - 1 */
    for (double reach = original; reach < (double)length; reach *= 2)
        alpha = 2 * alpha + 1;
    return rope->theta * tm_pow(alpha, exponent);
}

void tm_rope_frequencies(const tm_rope_config *rope, int64_t length, bool training, float *inv_freq)
{
    double theta = grown_theta(rope, length, training);
    if (rope->kind == TM_ROPE_YARN) {
        yarn(rope, inv_freq);
        return;
    }
    for (int64_t i = 0; i < rope->size / 2; i++) {
        float p = power(theta, i, rope->size);
        inv_freq[i] = 1.0f / (rope->kind == TM_ROPE_LONG ? (float)rope->factors[length > rope->limit][i] * p : p);
        if (rope->kind == TM_ROPE_LINEAR)
            inv_freq[i] /= (float)rope->factor;
    }
    if (rope->kind == TM_ROPE_LLAMA3)
        llama3(rope, inv_freq);
}

void tm_rope_angles(const tm_rope_config *rope, const float *inv_freq, int64_t position, double *cosine, double *sine)
{
    for (int64_t i = 0; i < rope->size / 2; i++) {
        tm_sincos((double)position * inv_freq[i], &sine[i], &cosine[i]);
        cosine[i] *= rope->attention_factor;
        sine[i] *= rope->attention_factor;
    }
}
