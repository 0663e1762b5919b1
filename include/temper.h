/* temper: fine-tuning of language models, reproducible to the bit.
 *
 * This is the only public header. Everything else under src/ may change. Conventions:
 *  - fallible functions return tm_status and describe the failure in a caller-owned tm_error (NULL: not wanted);
 *  - the library never prints and never exits; of the environment it reads TEMPER_DEVICE, TEMPER_CALIBRATION and the other
 *    variables that the documentation names, and where caches are kept, nothing else;
 *  - `create/destroy`, `open/close` own; `view` borrows; every destroy accepts NULL.
 */
#ifndef TEMPER_H
#define TEMPER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TM_VERSION "0.1.0"

/* X(name, exit code of the program, what it means). Exit codes are a contract with scripts. */
#define TM_STATUS_TABLE(X)                                                             \
    X(OK, 0, "done")                                                                   \
    X(FAILED, 1, "failed while running")                                               \
    X(DIVERGED, 1, "training diverged: losses or gradients not finite, or all zero")   \
    X(IO, 1, "reading or writing a file failed")                                       \
    X(NO_MEMORY, 1, "the system gave no memory")                                       \
    X(USAGE, 2, "wrong usage")                                                         \
    X(RECIPE, 2, "wrong recipe")                                                       \
    X(LOCKED, 2, "another process uses this folder, or its recipe differs")            \
    X(INPUT, 3, "an input file is damaged")                                            \
    X(UNSUPPORTED, 3, "an input file asks for something temper does not support")      \
    X(NO_FIT, 4, "it does not fit in memory")                                          \
    X(RETENTION, 5, "the retention gate stopped or rolled back")

typedef enum tm_status {
#define X(name, code, text) TM_##name,
    TM_STATUS_TABLE(X)
#undef X
} tm_status;

/* Filled on failure: names the file (and line, key or tensor), what was found, what was expected. */
typedef struct tm_error {
    tm_status status;
    char message[1024];
} tm_error;

int tm_status_exit_code(tm_status status);
const char *tm_status_text(tm_status status); /* the table's */

/* --- Training --- */

typedef struct tm_probe_progress {
    const char *name;
    double worse, budget; /* share of the first value; nats with nats; NaN: not measured, no budget */
    bool nats;
} tm_probe_progress;

typedef struct tm_train_progress {
    int64_t step, steps;
    double loss, tokens_per_s, share, seconds_left; /* NaN: not known */
    const tm_probe_progress *probes;
    int64_t probe_count;
    bool measuring;    /* importances; its steps are examples */
    bool trainings;    /* of a sequence or sweep: its steps are whole trainings ... */
    double per_minute; /* ... so many a minute; 0: not known */
} tm_train_progress;

/* How a caller watches long work; every function may be NULL. */
typedef struct tm_callbacks {
    void (*progress)(void *context, const tm_train_progress *progress);
    void (*note)(void *context, const char *text); /* a warning or a fact worth a line */
    bool (*interrupted)(void *context);            /* true: stop after this step */
    void *context;
} tm_callbacks;

/* What a recipe is made from: a file (or NULL) and "key=value" arguments. */
typedef struct tm_recipe_source {
    const char *path;
    char *const *overrides;
    size_t override_count;
} tm_recipe_source;

/* Trains. TM_OK also when the folder already holds this run, finished. *out: the run folder; free(). */
tm_status tm_train(const tm_recipe_source *source, const tm_callbacks *callbacks, char **out, tm_error *err);

enum { TM_MOST_JOBS = 1024 };

typedef struct tm_sequence_request {
    const char *path;       /* SEQUENCE.yaml (docs/formats/sequence.md) */
    char *const *overrides; /* "key=value" of the recipe, for every arm */
    size_t override_count;
    const char *out;        /* NULL: the file's out, else runs/sequence */
    bool json;              /* *text is results.json itself; else a table for people */
    int jobs;               /* chains at a time; 0: as many as there are processors, and as fit in memory; on a GPU one */
} tm_sequence_request;

/* Tasks one after another with every arm, and what each learned and forgot: runs, OUT/results.json, OUT/report.html.
 * What is there is not done again. *text: free(). */
tm_status tm_sequence(const tm_sequence_request *request, const tm_callbacks *callbacks, char **text, tm_error *err);

typedef struct tm_fisher_request {
    tm_recipe_source source; /* keep.ewc says what of which data; data and out are not needed */
    const char *out;         /* file to write */
    const char *add;         /* importances of older skills that the new ones are added to; NULL: none */
} tm_fisher_request;

/* Measures how much old skills depend on every weight that the recipe would change (docs/formats/importances.md). *text: what was
 * found, for people; free(). */
tm_status tm_fisher(const tm_fisher_request *request, const tm_callbacks *callbacks, char **text, tm_error *err);

typedef struct tm_sweep_request {
    tm_recipe_source source; /* "key=a,b,c": each value is tried, with every combination of the others */
    const char *out;         /* NULL: runs/sweep */
    const char *metric;      /* name of the evaluation that decides; NULL: the first */
    bool json;
    int jobs;                /* runs at a time; 0: as tm_sequence_request's */
} tm_sweep_request;

/* A recipe with several values of some keys, each combination a run below OUT, the best by its evaluation. *text: free(). */
tm_status tm_sweep_recipe(const tm_sweep_request *request, const tm_callbacks *callbacks, char **text, tm_error *err);

/* A recipe with every key and what it means, settled for this machine when a model is given. model and
 * data may be NULL. *yaml: its text; free(). */
tm_status tm_init(const char *model, const char *data, char **yaml, tm_error *err);

typedef struct tm_bench_request {
    int threads;           /* 0: all */
    const char *tokenizer; /* with text: how fast it reads; NULL: not measured */
    const char *text;
    bool json;
    bool calibrate;        /* also keeps them for tm_plan and tm_train (docs/formats/calibration.md) */
} tm_bench_request;

/* Rates of this machine, in about two seconds (some more with calibrate), as a table or as JSON; free(). */
tm_status tm_bench(const tm_bench_request *request, char **text, tm_error *err);

typedef struct tm_forgetting_request {
    const char *out;   /* folder of all runs; NULL: runs/forgetting, with quick runs/forgetting-quick */
    const char *data;  /* write the data there, and nothing else; NULL: run */
    bool quick;        /* two tasks, four arms, and TM_FAILED unless joint >= replay >= naive in what is left of the old */
    bool fixed;        /* no search for configurations: every method as it is set */
    bool recipe;       /* *text: the sequence that would be run (docs/formats/sequence.md), and nothing is run */
    int tasks;         /* 0: 5, with quick 2 */
    int seeds, orders; /* 0: 20 and 3, with quick 2 and 1 */
    int steps;         /* of a task; 0: 120, with quick 40 */
    int jobs;          /* chains at a time; 0: as tm_sequence_request's */
    bool json;
} tm_forgetting_request;

/* Methods that keep skills, on a small world (docs/forgetting.md). *text: what tm_sequence says; free(). It may be
 * there on failure, too. */
tm_status tm_bench_forgetting(const tm_forgetting_request *request, const tm_callbacks *callbacks, char **text, tm_error *err);

typedef struct tm_compare_request {
    char *const *paths;     /* adapters, models or runs; the others are held against the first */
    size_t path_count;
    const char *model;      /* base of adapters; NULL: the one their config names */
    const char *data;       /* tokens are compared on it; NULL: weights and results alone */
    char *const *overrides; /* "key=value" of the recipe, for data */
    size_t override_count;
    bool json;
} tm_compare_request;

/* Differences of weights by layer, of what is predicted, of results of runs; free(). */
tm_status tm_compare(const tm_compare_request *request, char **text, tm_error *err);

typedef struct tm_inspect_request {
    const char *path;        /* a model, adapter or run folder, a data file or a recipe */
    const char *model;       /* whose tokenizer reads the data; NULL: the recipe's, or none */
    int64_t batch;           /* examples shown token by token */
    bool color;              /* with colours of a terminal; else with brackets */
    char *const *overrides;  /* "key=value" of the recipe, for data: data.0.format=completion, train.seq=512 */
    size_t override_count;
} tm_inspect_request;

/* What is in it, for people; free(). */
tm_status tm_inspect(const tm_inspect_request *request, char **text, tm_error *err);

/* Runs a finished run again, beside its folder, and compares trail, rows and result. *text: a line a
 * finding, for people; free(). What differs is no failure: *equal says it. */
tm_status tm_verify(const char *run, const tm_callbacks *callbacks, bool *equal, char **text, tm_error *err);

typedef struct tm_plan_request {
    tm_recipe_source source;
    const char *gpu; /* a GPU of the table that temper knows, or of this machine; NULL: this machine, and a row for each of the table */
    int64_t tokens;  /* hours are for so many; 0: those of the run */
    bool json;
} tm_plan_request;

/* Memory and time before a run, as a table or as JSON; free(). TM_NO_FIT when it does not fit; *text is filled all the same. */
tm_status tm_plan(const tm_plan_request *request, char **text, tm_error *err);

typedef struct tm_advise_request {
    tm_recipe_source source;
    int64_t tasks;          /* that come one after another; 0: one */
    char *const *bases;     /* [base_count] model folders to choose from; none: the recipe's */
    size_t base_count;
    bool json;
} tm_advise_request;

/* Base, method and settings for a recipe's data, each with its reason and what that rests on, and a recipe of them. Reads the data and
 * runs the base over a sample of them; trains nothing. *text: a table or JSON; free(). */
tm_status tm_advise_recipe(const tm_advise_request *request, char **text, tm_error *err);

/* --- Using a model --- */

typedef struct tm_generate_request {
    const char *model, *adapter; /* adapter NULL: none */
    const char *registers;       /* of a bank: "NAME=GATE,...", or "auto": by its router; NULL: all off */
    const char *prompt;          /* "": from BOS */
    int64_t max_tokens;
    double temperature;          /* 0: greedy */
    int64_t top_k;               /* 0: all */
    double top_p;                /* 1: all */
    uint64_t seed;
    int threads;                 /* 0: all */
    void (*write)(void *context, const char *text, size_t size); /* whole characters as they come */
    void *context;
} tm_generate_request;

/* The continuation of the prompt, without the prompt. */
tm_status tm_generate(const tm_generate_request *request, tm_error *err);

typedef struct tm_chat_request {
    const char *model, *adapter; /* adapter NULL: none */
    const char *chat_template;   /* in place of the model's: a name or a file; NULL: the model's */
    const char *system;          /* system message; NULL: none */
    const char *date;            /* that the template is told, YYYY-MM-DD; NULL: 2024-07-26 */
    int64_t max_tokens, context; /* of an answer; of the whole conversation */
    double temperature;          /* as tm_generate_request's, as are the next */
    int64_t top_k;
    double top_p;
    uint64_t seed;
    int threads;
} tm_chat_request;

/* A conversation; the strings of the request are borrowed until close. */
typedef struct tm_chat_session tm_chat_session;
tm_status tm_chat_session_open(const tm_chat_request *request, tm_chat_session **out, tm_error *err);
void tm_chat_session_close(tm_chat_session *session);
/* Starts anew; system: another system message, NULL: the same. */
tm_status tm_chat_session_reset(tm_chat_session *session, const char *system, tm_error *err);
/* Says text as the user and writes the answer, whole characters as they come. On failure nothing was said. */
tm_status tm_chat_session_say(tm_chat_session *session, const char *text,
                              void (*write)(void *context, const char *text, size_t size), void *context, tm_error *err);

typedef struct tm_eval_request {
    const char *model, *adapter, *data; /* adapter NULL: none */
    const char *metric;                 /* as eval.metric of a recipe; NULL: loss */
    const char *items;                  /* a file to write, a JSON line an item; NULL: none */
    char *const *overrides;             /* "key=value": eval.0.format=completion, train.seq=512, ... */
    size_t override_count;
    bool json;
} tm_eval_request;

/* Scores of a model on a data set (docs/formats/eval.md), as a table or as JSON; free(). */
tm_status tm_eval(const tm_eval_request *request, char **text, tm_error *err);
/* As tm_eval's data, but writes the logits of the first examples (at most `examples`) as tensors
 * "0", "1", ... [tokens, vocabulary] of a safetensors file: for comparing with other programs. */
tm_status tm_eval_logits(const char *model, const char *adapter, const char *data, char *const *overrides, size_t override_count, int64_t examples, const char *file, tm_error *err);

typedef struct tm_merge_source {
    const char *path; /* an adapter's folder, or with `model` a whole model of the base's shapes, as full training writes */
    double scale;     /* 1: as trained; 0: not at all */
    bool model;
} tm_merge_source;

/* How several changes join; always on what they change (dW = W_adapted - W), never on A and B. */
typedef enum tm_merge_how {
    TM_MERGE_SUM,      /* sum of scale * dW; of one whole model (1 - scale) W + scale W_tuned: WiSE-FT (2109.01903) */
    TM_MERGE_TIES,     /* the largest |dW| of each stay, signs are elected, the mean of those that agree */
    TM_MERGE_DARE,     /* dropped at random and rescaled, then the sum */
    TM_MERGE_DARE_TIES /* dropped and rescaled, then signs and mean as with ties */
} tm_merge_how;

enum { TM_MERGE_MOST = 64 };

typedef struct tm_merge_request {
    const char *model, *out; /* out: a folder that is new or empty */
    const tm_merge_source *sources;
    size_t source_count;     /* at most TM_MERGE_MOST */
    int threads;             /* 0: all */
    tm_merge_how how;
    double density;          /* ties, dare: the share of dW that stays, 0 to 1 */
    bool sign_by_count;      /* ties: signs are counted; else the sum decides */
    uint64_t seed;           /* dare: which stay */
} tm_merge_request;

/* A model with adapters, or other models that came from it, in its weights: W + what `how` makes of scale * (W_adapted - W), in double,
 * rounded once to the type the base stores. *text: what was merged, and how far the logits are from the
 * adapter's own; free(). */
tm_status tm_merge(const tm_merge_request *request, char **text, tm_error *err);

typedef struct tm_export_request {
    const char *model, *adapter; /* adapter NULL: none */
    const char *gguf;            /* the file to write */
    const char *type;            /* f32, f16, bf16, q8_0, q4_k_m; NULL: f16, of an adapter f32 */
    bool adapter_only;           /* the adapter alone, as GGUF LoRA */
    int threads;                 /* 0: all */
} tm_export_request;

/* A model as a GGUF file for llama.cpp and others, adapter merged; or an adapter alone. The file is read
 * back and compared before it stands under its name. *text: what was found; free(). */
tm_status tm_export(const tm_export_request *request, char **text, tm_error *err);

/* --- Text and tokens --- */

typedef struct tm_tokenize_request {
    const char *tokenizer; /* a model folder, a GGUF file, or a tokenizer file */
    FILE *in;              /* a JSON value a line ... */
    const char *name;      /* ... of the file of this name, for messages */
    FILE *out;             /* a JSON value a line */
    bool add_special;      /* what the tokenizer puts around a text: BOS, EOS */
    bool decode;           /* arrays of ids to strings; else strings to arrays of ids */
    bool skip_special;     /* decode: without special tokens */
} tm_tokenize_request;

/* Line by line from in to out; the first line that fails ends it, with its number in the message. */
tm_status tm_tokenize(const tm_tokenize_request *request, tm_error *err);

typedef struct tm_tokenizer_train_request {
    const char *data;       /* text, or .jsonl */
    const char *out;        /* tokenizer.json to write, or a folder for it */
    int64_t vocab;          /* tokens in all */
    int64_t min_frequency;  /* pairs that come less often are not merged */
    char *const *special;   /* special tokens, ids from 0 on */
    size_t special_count;
    const char *pattern;    /* gpt2, qwen2, llama3 */
    int threads;            /* 0: all; changes nothing but the time */
} tm_tokenizer_train_request;

/* Learns byte-level BPE. *text: what was made, for people; free(). */
tm_status tm_tokenizer_train(const tm_tokenizer_train_request *request, char **text, tm_error *err);

typedef struct tm_template_request {
    const char *source;   /* a file of Jinja or JSON, or a name like chatml */
    const char *context;  /* a JSON file: messages and whatever else the template asks for */
    const char *date;     /* of strftime_now, YYYY-MM-DD; NULL: 2024-07-26 */
    bool as_is;           /* messages are not brought into a form that the template can show */
} tm_template_request;

/* The text a chat template gives; free(). */
tm_status tm_template(const tm_template_request *request, char **text, tm_error *err);

#ifdef __cplusplus
}
#endif
#endif
