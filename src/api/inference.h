/* A model, with an adapter or without, opened to be used and not trained. */
#ifndef TM_API_INFERENCE_H
#define TM_API_INFERENCE_H

#include "text/tokenizer.h"
#include "train/trainer.h"
#include "tune/router.h"

typedef struct tm_inference {
    tm_recipe *recipe;
    tm_safetensors *file;
    tm_device *device;
    tm_memory memory;
    tm_model model;
    tm_tuning tuning;
    tm_batch batch;
    tm_ids fed;   /* ids whose keys and values the cache holds, from its beginning on */
    float *gates;                /* [registers] in force; NULL: none */
    tm_router router;            /* with registers "auto" */
    float *prompt_gates;         /* [prompt tokens + 1, registers]: where tags switch within the prompt, and behind it; NULL: gates all along */
} tm_inference;

typedef struct tm_inference_settings {
    const char *model, *adapter; /* adapter NULL: none */
    const char *registers;       /* "NAME=GATE,..." of a bank; "auto": by its router (tm_inference_route); NULL: all off */
    const char *device;          /* as in a recipe; NULL: auto */
    int threads;                 /* 0 = all */
    int64_t max_tokens;          /* rows of a batch */
    int64_t cache_tokens;        /* > 0: key/value cache, of so many tokens a text */
    int64_t texts;               /* that it holds at a time; fewer where memory does not allow it. 0: one */
    bool logits;                 /* all rows' logits at once, to be looked at and compared: in f32 on the CPU */
} tm_inference_settings;

/* TM_NO_FIT when the memory for it is not there. */
tm_status tm_inference_open(const tm_inference_settings *settings, tm_inference *out, tm_error *err) TM_MUST_CHECK;
void tm_inference_close(tm_inference *inf);

/* TM_INPUT where an id of `what` is not in the model's vocabulary; model: its folder, for the message. */
tm_status tm_inference_knows(const tm_inference *inf, const char *model, const char *what, const int32_t *ids, size_t count, tm_error *err) TM_MUST_CHECK;

/* Sets the gates by what the base makes of a prompt, with the bank's router. Needs the key/value cache. */
tm_status tm_inference_route(tm_inference *inf, const int32_t *prompt, int64_t count, tm_error *err) TM_MUST_CHECK;

/* How the next token is chosen from logits. */
typedef struct tm_sampling {
    double temperature; /* 0: greedy */
    int64_t top_k;      /* 0: all */
    double top_p;       /* 1: all */
    uint64_t seed;
} tm_sampling;

/* Candidates stand in the order of their weights, then ids, where top_k or top_p leave some out; otherwise in that of ids.
 * Token of position `position`: the same (logits, settings, position) give the same token everywhere. */
int32_t tm_sample(const float *logits, int64_t vocab, const tm_sampling *s, int64_t position, void *scratch);
size_t tm_sample_scratch_bytes(int64_t vocab);

/* One text, in slot 0. Appends up to max_tokens ids behind prompt (at least one id), stopping behind an id of stop. Calls
 * token (may be NULL) for each; false from it ends. What the prompt has in common with the ids of the call
 * before is not computed again; whoever changes the model between calls empties inf->fed. */
tm_status tm_generate_ids(tm_inference *inf, const int32_t *prompt, size_t prompt_count, int64_t max_tokens, const int32_t *stop, size_t stop_count,
                          const tm_sampling *sampling, bool (*token)(void *context, int32_t id), void *context, tm_error *err) TM_MUST_CHECK;

#endif
