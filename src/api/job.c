/* Jobs: see job.h. */
#include "api/job.h"

#include "base/clock.h"
#include "base/env.h"
#include "base/json.h"
#include "io/gguf.h"
#include "io/hf.h"
#include "keep/keep.h"
#include "model/generate.h"
#include "text/answers.h"
#include "train/score.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* --- Opening --- */

/* Whether an entry's rows must be tokenised, as far as the recipe says. */
static bool needs_tokenizer(const tm_data_entry *entry) { return entry->format != TM_FORMAT_TOKENS; }

static tm_status open_tokenizer(tm_job *job, tm_error *err)
{
    const tm_recipe *r = job->recipe;
    bool needed = r->method == TM_METHOD_PROMPT && r->prompt_text;
    for (int64_t i = 0; i < r->data_count; i++)
        needed |= needs_tokenizer(&r->data[i]);
    for (int64_t i = 0; i < r->eval_count; i++)
        needed |= needs_tokenizer(&r->eval[i].data);
    for (int64_t i = 0; i < r->probe_count; i++)
        needed |= needs_tokenizer(&r->probes[i].data);
    needed |= job->rehearsal.replay && needs_tokenizer(&r->replay);
    return needed && tm_tokenizer_is_in(r->model) ? tm_tokenizer_open(r->model, &job->tokenizer, err) : TM_OK;
}

static tm_status open_weights(tm_job *job, tm_job_depth depth, tm_error *err)
{
    const tm_recipe *r = job->recipe;
    job->run.dtype = TM_F32;
    if (r->init == TM_INIT_RANDOM)
        return depth == TM_JOB_EVAL ? tm_fail(err, TM_RECIPE, "init: a model that starts at random has no weights to look at; expected init: weights") : TM_OK;
    tm_status st = tm_hf_open_weights(r->model, &job->file, err);
    if (st == TM_OK || depth != TM_JOB_PLAN)
        return st;
    /* A plan can do without weights: their type is what config.json says. */
    tm_error ignored;
    json_t *json = NULL;
    const char *dtype = "float32";
    if (tm_hf_json(r->model, "config.json", &json, &ignored) == TM_OK && json) {
        const json_t *value = json_object_get(json, "dtype") ? json_object_get(json, "dtype") : json_object_get(json, "torch_dtype");
        dtype = json_is_string(value) ? json_string_value(value) : dtype;
        job->run.dtype = strcmp(dtype, "bfloat16") == 0 ? TM_BF16 : strcmp(dtype, "float16") == 0 ? TM_F16 : TM_F32;
    }
    json_decref(json);
    return TM_OK;
}

tm_data_settings tm_job_data_settings(const tm_recipe *r, const tm_tokenizer *tok, int64_t vocab, const char *cache)
{
    return (tm_data_settings){.tok = tok,
                              .model = r->model,
                              .vocab_size = vocab,
                              .seq = r->seq,
                              .tokenizer_hash = tok ? tm_tokenizer_hash(tok)->hex : "none",
                              .cache = cache,
                              .cache_from = r->cache && strcmp(r->cache, "auto") != 0 ? 0 : 32 << 20};
}

/* auto: .cache beside the run folder, so that the runs of a study share it. */
tm_status tm_job_cache(const tm_recipe *r, char **out, tm_error *err)
{
    *out = NULL;
    if (r->cache && strcmp(r->cache, "none") == 0)
        return TM_OK;
    bool automatic = !r->cache || strcmp(r->cache, "auto") == 0;
    tm_buf path = {0};
    if (automatic) {
        const char *run = r->out ? r->out : "runs/run", *slash;
        size_t n = strlen(run);
        while (n > 1 && run[n - 1] == '/')
            n--;
        slash = memrchr(run, '/', n);
        tm_buf_add(&path, run, slash ? (size_t)(slash - run) + 1 : 0);
        tm_buf_text(&path, ".cache");
    } else
        tm_buf_text(&path, r->cache);
    TM_TRY(tm_buf_check(&path, err));
    *out = path.data;
    return TM_OK;
}

/* Adds an evaluation set; it owns data from here on. */
static tm_status add_eval(tm_job *job, const tm_eval_entry *entry, bool probe, tm_dataset *data, tm_error *err)
{
    tm_eval_set *set = &job->evals[job->eval_count++];
    *set = (tm_eval_set){.entry = entry, .probe = probe, .data = data, .examples = tm_eval_examples(data, entry->metric, entry->limit)};
    TM_TRY(TM_NEW(&set->first, job->run.replicas, err));
    TM_TRY(TM_NEW(&set->last, job->run.replicas, err));
    return TM_NEW(&set->best, job->run.replicas, err);
}

/* What a metric needs beside tokens. */
static tm_status load_answers(tm_job *job, tm_eval_set *set, const tm_data_settings *settings, tm_error *err)
{
    const tm_eval_entry *entry = set->entry;
    bool generates = tm_metrics[entry->metric].generates;
    if (!generates && entry->metric != TM_METRIC_CHOICE)
        return TM_OK;
    if (!job->tokenizer || entry->data.format == TM_FORMAT_TOKENS)
        return tm_fail(err, TM_RECIPE, "evaluation %s: metric %s is of texts: it needs rows of text, and a model with a tokenizer",
                       entry->name, tm_metrics[entry->metric].name);
    if (entry->metric == TM_METRIC_ROUND_TRIP)
        return tm_bridge_open(&entry->data, settings, &set->bridge, err);
    TM_TRY(TM_NEW(&set->answers, 1, err));
    return tm_answers_load(&entry->data, set->answers, err);
}

static tm_status load_eval(tm_job *job, const tm_eval_entry *entry, bool probe, int64_t vocab, tm_pool *pool, tm_error *err)
{
    tm_dataset *data;
    tm_data_settings settings = tm_job_data_settings(job->recipe, job->tokenizer, vocab, job->cache);
    TM_TRY(tm_dataset_load(&entry->data, 1, &settings, pool, &data, err));
    TM_TRY(add_eval(job, entry, probe, data, err));
    return load_answers(job, &job->evals[job->eval_count - 1], &settings, err);
}

/* The rows that val_split holds out become the evaluation `val`. */
static tm_status hold_out(tm_job *job, tm_error *err)
{
    tm_dataset *held;
    TM_TRY(tm_dataset_split(job->data, job->entries, job->seeds.subset, &held, err));
    if (!held)
        return TM_OK;
    job->held_out = (tm_eval_entry){.name = "val", .metric = TM_METRIC_LOSS, .max_drop = NAN, .max = NAN};
    return add_eval(job, &job->held_out, false, held, err);
}

/* "FILE:LINE and FILE:LINE" of the first pairs of an overlap. */
static void put_places(tm_buf *out, const tm_overlap *o, const tm_dataset *a, const tm_dataset *b)
{
    for (int64_t i = 0; i < o->examples && i < TM_OVERLAP_SHOWN; i++) {
        const tm_example *x = tm_dataset_at(a, o->held[i]), *y = tm_dataset_at(b, o->train[i]);
        tm_buf_printf(out, "%s%s:%lld and %s:%lld", i ? ", " : "", tm_dataset_file(a, x->source, x->file), (long long)x->line,
                      tm_dataset_file(b, y->source, y->file), (long long)y->line);
    }
    tm_buf_text(out, o->examples > TM_OVERLAP_SHOWN ? ", ..." : "");
}

static tm_status warn(tm_job *job, tm_buf *text, tm_error *err)
{
    tm_status st = tm_buf_check(text, err);
    if (st == TM_OK)
        st = tm_names_add(&job->warnings, text->data, err);
    tm_buf_deinit(text);
    return st;
}

/* Evaluation sets that are in the training data measure memory; rows that come twice count twice. */
static tm_status compare_sets(tm_job *job, tm_pool *pool, tm_error *err)
{
    const tm_dataset **sets = NULL;
    int64_t *examples = NULL;
    tm_overlap *found = NULL;
    tm_buf text = {0};
    tm_status st;
    TM_GO(TM_NEW(&found, job->eval_count + 1, err));
    TM_GO(TM_NEW(&sets, job->eval_count + 1, err));
    TM_GO(TM_NEW(&examples, job->eval_count + 1, err));
    TM_GO(tm_dataset_duplicates(job->data, job->recipe->data_count, found, err));
    if (found->examples) {
        tm_buf_printf(&text, "data: %lld of %lld examples repeat another one to the token (dedup: true leaves them out): ",
                      (long long)found->examples, (long long)tm_dataset_first(job->data, job->recipe->data_count));
        put_places(&text, found, job->data, job->data);
        TM_GO(warn(job, &text, err));
    }
    for (int64_t i = 0; i < job->eval_count; i++) {
        sets[i] = job->evals[i].data;
        examples[i] = job->evals[i].examples;
    }
    if (job->eval_count)
        TM_GO(tm_dataset_overlap(job->data, sets, examples, job->eval_count, job->tokenizer, pool, found, err));
    for (int64_t i = 0; i < job->eval_count; i++) {
        const tm_overlap *o = &found[i];
        if (!o->examples)
            continue;
        tm_buf_printf(&text, "evaluation '%s': %lld of %lld examples are in the training data (%lld with all their words, the others with 13 words in a row): ",
                      job->evals[i].entry->name, (long long)o->examples, (long long)examples[i], (long long)o->whole);
        put_places(&text, o, sets[i], job->data);
        TM_GO(warn(job, &text, err));
    }
out:
    free(sets);
    free(examples);
    free(found);
    return st;
}

tm_status tm_job_longest(const tm_recipe *r, int64_t *vocab, int64_t *seq, tm_error *err)
{
    tm_model_config config;
    TM_TRY(tm_model_config_read(r->model, &config, err));
    int64_t longest = tm_model_config_longest(&config);
    *vocab = config.vocab;
    tm_model_config_deinit(&config);
    longest -= r->method == TM_METHOD_PROMPT ? r->prompt_tokens : 0;
    if (longest < 2)
        return tm_fail(err, TM_RECIPE, "prompt.tokens: the prompt takes all positions that the model has");
    *seq = r->seq < longest ? r->seq : longest;
    return TM_OK;
}

/* The recipe's data, and the old examples that are rehearsed. */
static tm_status list_entries(tm_job *job, tm_error *err)
{
    const tm_recipe *r = job->recipe;
    TM_TRY(TM_NEW(&job->entries, r->data_count + TM_REHEARSALS, err));
    memcpy(job->entries, r->data, (size_t)r->data_count * sizeof *r->data);
    tm_rehearsal_entries(&job->rehearsal, r, job->entries + r->data_count);
    return TM_OK;
}

static tm_status load_data(tm_job *job, tm_job_depth depth, tm_error *err)
{
    const tm_recipe *r = job->recipe;
    int64_t vocab;
    TM_TRY(tm_job_longest(r, &vocab, &job->recipe->seq, err));
    if (!r->data_count && depth == TM_JOB_TRAIN && r->method != TM_METHOD_NONE)
        return tm_fail(err, TM_RECIPE, "%s: key data is missing: expected a list of {path: FILE}", r->path ? r->path : "arguments");
    tm_pool *pool = NULL;
    TM_TRY(tm_job_cache(r, &job->cache, err));
    TM_TRY(tm_pool_create((int)r->threads, &pool, err));
    tm_status st = TM_OK;
    tm_data_settings settings = tm_job_data_settings(r, job->tokenizer, vocab, job->cache);
    if (r->data_count) {
        TM_GO(list_entries(job, err));
        settings.supposed = r->generate_samples;
        settings.supposed_tokens = r->generate_max_tokens < r->seq ? r->generate_max_tokens : r->seq;
        TM_GO(tm_dataset_load(job->entries, r->data_count + job->rehearsal.count, &settings, pool, &job->data, err));
        TM_GO(tm_rehearsal_select(&job->rehearsal, r, &job->seeds, job->data, err));
    }
    TM_GO(TM_NEW(&job->evals, r->eval_count + r->probe_count + 1, err));
    for (int64_t i = 0; i < r->eval_count; i++)
        TM_GO(load_eval(job, &r->eval[i], false, vocab, pool, err));
    for (int64_t i = 0; i < r->probe_count; i++)
        TM_GO(load_eval(job, &r->probes[i], true, vocab, pool, err));
    if (job->data)
        TM_GO(hold_out(job, err));
    if (job->data && depth == TM_JOB_TRAIN)
        TM_GO(compare_sets(job, pool, err));
out:
    tm_pool_destroy(pool);
    return st;
}

/* --- Settling --- */

/* Ids that end a text: of generation_config.json (one or a list), else the tokenizer's EOS. */
size_t tm_stop_ids(const char *model, const tm_tokenizer *tok, int32_t ids[8])
{
    size_t count = 0;
    json_t *json = NULL;
    tm_error ignored;
    if (tm_hf_json(model, "generation_config.json", &json, &ignored) == TM_OK && json) {
        const json_t *eos = json_object_get(json, "eos_token_id");
        if (json_is_integer(eos))
            ids[count++] = (int32_t)json_integer_value(eos);
        for (size_t i = 0; i < json_array_size(eos) && count < 8; i++)
            ids[count++] = (int32_t)json_integer_value(json_array_get(eos, i));
    }
    json_decref(json);
    if (!count && tm_tokenizer_eos(tok) >= 0)
        ids[count++] = tm_tokenizer_eos(tok);
    return count;
}

static tm_status settle_steps(tm_job *job, tm_error *err)
{
    tm_recipe *r = job->recipe;
    if (job->data && r->method != TM_METHOD_NONE) {
        tm_order_settings settings = {.seed = job->seeds.order, .mix = r->mix, .shuffle = r->shuffle, .batch = r->batch, .batch_tokens = r->batch_tokens,
                                      .accumulate = r->accumulate, .steps = r->steps, .epochs = r->epochs, .rehearsal = job->rehearsal.fraction, .rehearsals = job->rehearsal.count};
        TM_TRY(tm_order_create(job->data, job->entries, &settings, &job->order, err));
        job->run.steps = tm_order_steps(job->order);
    } else
        job->run.steps = r->method == TM_METHOD_NONE ? 0 : r->steps;
    if (r->warmup_steps == TM_AUTO_INT)
        r->warmup_steps = (int64_t)ceil(r->warmup_ratio * (double)job->run.steps);
    if (r->warmup_steps == 0)
        r->warmup_ratio = 0; /* or the recipe of run.json would mean the ratio when it is read again */
    if (r->checkpoint_every == TM_AUTO_INT)
        r->checkpoint_every = job->run.steps >= 10 ? job->run.steps / 10 : 1;
    return TM_OK;
}

typedef struct lengths {
    int64_t longest, shortest;
} lengths;

static void measure(const tm_dataset *data, int64_t count, lengths *l)
{
    for (int64_t i = 0; i < count; i++) {
        int64_t n = tm_dataset_at(data, i)->n;
        l->longest = n > l->longest ? n : l->longest;
        l->shortest = n < l->shortest ? n : l->shortest;
    }
}

/* How long a trained prompt is, and the text it starts from. */
static tm_status settle_prompt(tm_job *job, tm_error *err)
{
    tm_recipe *r = job->recipe;
    if (r->method != TM_METHOD_PROMPT)
        return TM_OK;
    if (r->prompt_init) {
        tm_prompt_config config;
        TM_TRY(tm_prompt_config_read(r->prompt_init, &config, err));
        r->prompt_tokens = config.tokens;
        return TM_OK;
    }
    if (!r->prompt_text)
        return TM_OK;
    if (!job->tokenizer)
        return tm_fail(err, TM_RECIPE, "prompt.text: %s has no tokenizer to read it with", r->model);
    tm_tokens *scratch;
    TM_TRY(tm_tokens_create(job->tokenizer, &scratch, err));
    tm_status st = tm_tokenizer_encode(job->tokenizer, scratch, r->prompt_text, strlen(r->prompt_text), true, &job->prompt_ids, err);
    tm_tokens_destroy(scratch);
    if (st == TM_OK && !job->prompt_ids.count)
        return tm_fail(err, TM_RECIPE, "prompt.text: the tokenizer makes no token of it");
    job->run.prompt_ids = job->prompt_ids.id;
    job->run.prompt_id_count = (int64_t)job->prompt_ids.count;
    return st;
}

/* What metrics of generated text need of the run. Where positions are a table, a text ends with it. */
static tm_status settle_generation(tm_job *job, tm_error *err)
{
    tm_run *run = &job->run;
    tm_model_config config;
    for (int64_t i = 0; i < job->eval_count; i++) {
        int64_t tokens = tm_eval_cache_tokens(&job->evals[i]), texts = job->evals[i].examples < TM_TEXTS_AT_ONCE ? job->evals[i].examples : TM_TEXTS_AT_ONCE;
        run->cache_tokens = tokens > run->cache_tokens ? tokens : run->cache_tokens;
        job->asked.texts = tokens && texts > job->asked.texts ? texts : job->asked.texts;
    }
    if (!run->cache_tokens)
        return TM_OK;
    TM_TRY(tm_model_config_read(job->recipe->model, &config, err));
    int64_t longest = tm_model_config_longest(&config);
    tm_model_config_deinit(&config);
    run->cache_tokens += job->recipe->method == TM_METHOD_PROMPT ? job->recipe->prompt_tokens : 0;
    run->cache_tokens = run->cache_tokens < longest ? run->cache_tokens : longest;
    run->tok = job->tokenizer;
    run->stops = tm_stop_ids(job->recipe->model, job->tokenizer, run->stop);
    return TM_OK;
}

/* a * b; where that is no number of tokens, more than any layout is asked to hold. */
static int64_t tokens_of(int64_t a, int64_t b)
{
    int64_t product;
    return __builtin_mul_overflow(a, b, &product) || product > INT64_MAX / 4 ? INT64_MAX / 4 : product;
}

/* What the data ask of a micro-batch: it holds at least the longest example, and never more than a step or an evaluation set has. */
static void settle_micro_batch(tm_job *job)
{
    tm_recipe *r = job->recipe;
    lengths l = {0, INT64_MAX};
    int64_t most = 0;
    if (job->data) {
        measure(job->data, tm_dataset_count(job->data), &l);
        most = tokens_of(r->batch_tokens ? r->batch_tokens : tokens_of(r->batch, l.longest), r->accumulate);
    } else if (!job->eval_count) {
        l = (lengths){r->seq, 2};
        most = r->batch_tokens ? r->batch_tokens : tokens_of(r->batch, r->seq);
    }
    for (int64_t i = 0; i < job->eval_count; i++) {
        int64_t tokens = 0;
        measure(job->evals[i].data, job->evals[i].examples, &l);
        for (int64_t k = 0; k < job->evals[i].examples; k++)
            tokens += tm_dataset_at(job->evals[i].data, k)->n;
        most = tokens > most ? tokens : most;
    }
    if (r->method == TM_METHOD_PROMPT) { /* its rows stand before every example; how many examples a step has is not asked */
        most += tokens_of(most / (l.shortest > 1 ? l.shortest : 2), r->prompt_tokens);
        l.longest += r->prompt_tokens;
    }
    job->asked.longest = l.longest;
    job->asked.shortest = l.shortest;
    job->asked.most = most;
}

static tm_status settle_choices(tm_job *job, tm_error *err)
{
    tm_recipe *r = job->recipe;
    const tm_method *method;
    const char *where = r->path ? r->path : "arguments";
    job->asked = (tm_layout){.precision = r->precision, .recompute = r->recompute, .offload = r->offload, .recompute_layers = r->recompute_layers, .micro_tokens = r->micro_tokens};
    if (!r->model)
        return tm_fail(err, TM_RECIPE, "%s: key model is missing: expected a model folder", where);
    TM_TRY(tm_workshop_device(job->shop, r->device, r->threads, &job->device, job->no_gpu, err));
    job->own = job->device->used_bytes;
    if (r->precision == TM_PRECISION_F16 && !job->device->traits.apart)
        return tm_fail(err, TM_RECIPE, "%s: precision: f16 runs on a GPU alone (device is %s); expected f32 or bf16", where, job->device->name);
    int exponent;
    if (frexp(r->loss_scale, &exponent) != 0.5)
        return tm_fail(err, TM_RECIPE, "%s: train.loss_scale: found %g, expected a power of two, as 65536", where, r->loss_scale);
    TM_TRY(tm_method_find(r->method, &method, err));
    if (isnan(r->lr))
        r->lr = method->auto_lr;
    if (!r->out) {
        r->out = tm_strdup("runs/run", err);
        if (!r->out)
            return TM_NO_MEMORY;
    }
    job->seeds = tm_seeds_of(r);
    return TM_OK;
}

/* What a run starts from is not written over: verify, and the same command behind a kill, read it again. */
static tm_status check_out(const tm_recipe *r, tm_error *err)
{
    const char *from = tm_tuning_from(r), *what = tm_path_same(r->out, r->model) ? "model" : from && tm_path_same(r->out, from) ? "adapter that it starts from" : NULL;
    return what ? tm_fail(err, TM_RECIPE, "out: %s is the folder of the %s, which the result would be written over; choose another out", r->out, what) : TM_OK;
}

static tm_status open_job(tm_job *job, tm_job_depth depth, tm_error *err)
{
    tm_recipe *r = job->recipe;
    tm_run *run = &job->run;
    TM_TRY(settle_choices(job, err));
    *run = (tm_run){.recipe = r, .model_dir = r->model, .replicas = 1, .seeds = &job->seeds, .evaluate = depth == TM_JOB_EVAL || r->method == TM_METHOD_NONE};
    TM_TRY(open_weights(job, depth, err));
    run->file = job->file;
    TM_TRY(tm_rehearsal_of(r, run->evaluate, depth == TM_JOB_PLAN, &job->rehearsal, err));
    TM_TRY(open_tokenizer(job, err));
    TM_TRY(settle_prompt(job, err));
    TM_TRY(load_data(job, depth, err));
    TM_TRY(settle_steps(job, err));
    settle_micro_batch(job);
    TM_TRY(settle_generation(job, err));
    run->data = job->data;
    run->rehearsal_from = r->data_count;
    run->evals = job->evals;
    run->eval_count = job->eval_count;
    run->order = &job->order;
    run->add_hooks = depth == TM_JOB_EVAL ? NULL : tm_keep_add;
    if (depth == TM_JOB_TRAIN) {
        TM_TRY(check_out(r, err));
        TM_TRY(tm_run_folder_open(r->out, &job->folder, err));
        job->folder_list = &job->folder;
        run->folder = &job->folder_list;
    }
    tm_target here;
    TM_TRY(tm_target_device(job->device, &here, err));
    return tm_job_plan_for(job, &here, err);
}

tm_status tm_job_plan_for(tm_job *job, const tm_target *target, tm_error *err)
{
    job->target = *target;
    return tm_layout_choose(&job->run, job->recipe, &job->asked, &job->target, &job->plan, err);
}

tm_status tm_job_open(tm_recipe *recipe, tm_job_depth depth, tm_job *job, tm_error *err) { return tm_job_open_in(NULL, recipe, depth, job, err); }

tm_status tm_job_open_in(tm_workshop *shop, tm_recipe *recipe, tm_job_depth depth, tm_job *job, tm_error *err)
{
    *job = (tm_job){.recipe = recipe, .shop = shop, .folder = {.lock = {.fd = -1}}};
    tm_status st = open_job(job, depth, err);
    if (st != TM_OK)
        tm_job_close(job);
    return st;
}

void tm_job_close(tm_job *job)
{
    if (job->device)
        tm_workshop_give_back(job->shop, job->device);
    tm_run_folder_close(&job->folder);
    tm_order_destroy(job->order);
    for (int64_t i = 0; i < job->eval_count; i++) {
        tm_dataset_destroy(job->evals[i].data);
        if (job->evals[i].answers)
            tm_answers_deinit(job->evals[i].answers);
        free(job->evals[i].answers);
        tm_bridge_close(job->evals[i].bridge);
        free(job->evals[i].first);
        free(job->evals[i].last);
        free(job->evals[i].best);
    }
    free(job->evals);
    tm_dataset_destroy(job->data);
    free(job->entries);
    tm_rehearsal_deinit(&job->rehearsal);
    free(job->cache);
    free(job->importances);
    tm_names_deinit(&job->previous_hashes);
    tm_names_deinit(&job->warnings);
    tm_tokenizer_close(job->tokenizer);
    tm_ids_deinit(&job->prompt_ids);
    tm_safetensors_close(job->file);
    tm_recipe_destroy(job->recipe);
    *job = (tm_job){.folder = {.lock = {.fd = -1}}};
}

/* --- Does it fit? --- */

static const char *human(int64_t bytes, char text[32])
{
    double value = (double)bytes;
    const char *unit = "bytes";
    static const char *const units[] = {"KiB", "MiB", "GiB", "TiB"};
    for (int i = 0; i < 4 && value >= 1024; i++) {
        value /= 1024;
        unit = units[i];
    }
    snprintf(text, 32, value < 10 ? "%.2f %s" : "%.1f %s", value, unit);
    return text;
}

tm_status tm_job_fits(tm_job *job, tm_advice *advice, int *count, tm_error *err)
{
    tm_advice own[TM_ADVICE_MAX];
    int n = 0;
    char a[32], b[32];
    if (!advice)
        advice = own;
    if (count)
        *count = 0;
    if (tm_target_fits(&job->target, job->plan.peak))
        return TM_OK;
    TM_TRY(tm_advise(&job->run, job->recipe, &job->asked, &job->target, advice, &n, err));
    if (count)
        *count = n;
    tm_buf text = {0};
    for (int i = 0; i < n; i++) {
        tm_buf_text(&text, i ? ", or " : "; would fit: ");
        tm_advice_put(&advice[i], &text);
        tm_buf_printf(&text, " (%s)", human(advice[i].plan.peak, a));
    }
    if (!n)
        tm_buf_printf(&text, "; the largest part is %s: shorter train.seq or a smaller model is needed",
                      job->plan.part[TM_MEM_WEIGHTS] > job->plan.part[TM_MEM_ACTIVATIONS] ? "weights" : "activations");
    tm_status st = tm_fail(err, TM_NO_FIT, "the run needs %s of memory, %s are available%s", human(job->plan.peak, a), human(job->target.memory - job->target.reserve, b), tm_buf_str(&text));
    tm_buf_deinit(&text);
    return st;
}
