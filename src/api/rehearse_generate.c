/* Generative replay: the base, or base and adapter that the run goes on from, writes texts of its own, which are then
 * rehearsed. With a chat template the model first writes what a user says, behind the template's bare beginning of that
 * turn (Magpie, 2406.08464), then the answer; without one it writes behind BOS; with given prompts it goes on with them.
 * What it wrote last is learned: the answer, or all behind BOS.
 *
 * 1. Every text is drawn with a key of its own (seeds.subset, its number): the same texts on any thread count, however
 *    many are written at a time.
 * 2. The file is there whole, with its record, or not at all; a record of the same subject is used again. */
#include "api/rehearse_parts.h"

#include "api/inference.h"
#include "base/clock.h"
#include "base/philox.h"
#include "io/hf.h"
#include "model/generate.h"
#include "text/prompts.h"

#include <stdlib.h>

enum { STOPS_MOST = 16 };

/* Stands for what a user says, to see where in the template that is. */
static const char said[] = "temper-d7f3e1-user";

/* A text under way: what stands before it and what was written. */
typedef struct sample {
    enum { READY, WRITING, WRITTEN, EMPTY, TOO_LONG } state;
    bool user;      /* the model says what a user says; the answer comes then */
    tm_ids ids;
    size_t learned; /* ids before what was written last */
    tm_decode_stream stream;
    tm_buf text;    /* what was written last */
} sample;

static void sample_destroy(sample *s)
{
    if (!s)
        return;
    tm_ids_deinit(&s->ids);
    tm_decode_stream_deinit(&s->stream);
    tm_buf_deinit(&s->text);
    free(s);
}

typedef struct writer {
    tm_rehearsal_record *record;
    tm_tokenizer *tok;
    tm_tokens *scratch;
    tm_chat *chat; /* NULL: none */
    tm_prompts prompts; /* given ones; or one, of BOS or of the beginning of a user's turn */
    tm_buf marker; /* text that ends a user's turn, where no special token does */
    const char *begin; /* "prompts", "chat" or "bos" */
    tm_inference inf;
    int32_t stop[STOPS_MOST];
    size_t stops;
    int64_t longest; /* of an example, in tokens */
    sample **sample; /* [generate.samples]; NULL: not begun, or settled */
    int64_t begun, settled;
    void *draw;      /* scratch of tm_sample */
    double said_at;
    /* what is kept */
    uint64_t *seen;
    size_t seen_capacity;
    int64_t kept, repeats, empty, too_long;
    tm_buf rows;
} writer;

static tm_status no_memory(tm_error *err) { return tm_fail(err, TM_NO_MEMORY, "out of memory"); }

static void add_stop(writer *w, int32_t id)
{
    bool known = id < 0 || w->stops == STOPS_MOST;
    for (size_t i = 0; i < w->stops; i++)
        known |= w->stop[i] == id;
    if (!known)
        w->stop[w->stops++] = id;
}

static bool stops_at(const writer *w, int32_t id)
{
    for (size_t i = 0; i < w->stops; i++)
        if (w->stop[i] == id)
            return true;
    return false;
}

/* --- Opening --- */

/* What stands before and behind a user's words in the template. */
static tm_status look_at_template(writer *w, tm_error *err)
{
    json_t *row = json_pack("{s:[{s:s, s:s}]}", "messages", "role", "user", "content", said);
    tm_chat_text text = {0};
    tm_ids behind = {0};
    tm_status st = row ? tm_chat_prompt(w->chat, row, &text, err) : no_memory(err);
    if (st != TM_OK)
        goto out;
    const char *all = tm_buf_str(&text.text), *at = strstr(all, said), *next = at ? at + strlen(said) : NULL;
    if (!at || at == all)
        TM_GO(tm_fail(err, TM_RECIPE, "keep.generate: the chat template of %s does not show where a user's turn begins; give keep.generate.prompts", w->record->recipe->model));
    TM_GO(tm_tokenizer_encode(w->tok, w->scratch, all, (size_t)(at - all), false, &w->prompts.item[0], err));
    while (*next && strchr(" \t\r\n", *next))
        next++;
    tm_buf_add(&w->marker, next, strcspn(next, "\r\n"));
    TM_GO(tm_buf_check(&w->marker, err));
    TM_GO(tm_tokenizer_encode(w->tok, w->scratch, next, strlen(next), false, &behind, err));
    if (behind.count && tm_tokenizer_is_special(w->tok, behind.id[0]))
        add_stop(w, behind.id[0]);
out:
    json_decref(row);
    tm_chat_text_deinit(&text);
    tm_ids_deinit(&behind);
    return st;
}

static tm_status begin_with_bos(writer *w, tm_error *err)
{
    int32_t bos = tm_tokenizer_bos(w->tok) >= 0 ? tm_tokenizer_bos(w->tok) : tm_tokenizer_eos(w->tok);
    tm_ids *ids = &w->prompts.item[0];
    if (bos < 0)
        return tm_fail(err, TM_RECIPE, "keep.generate: %s has neither a chat template nor a token that texts begin with; give keep.generate.prompts", w->record->recipe->model);
    TM_TRY(TM_GROW(&ids->id, &ids->capacity, 1, err));
    ids->id[ids->count++] = bos;
    return TM_OK;
}

/* How texts begin, and where they end. */
static tm_status find_prompts(writer *w, int64_t vocab, tm_error *err)
{
    const tm_recipe *r = w->record->recipe;
    tm_chat_settings settings = {.model = r->model, .tok = w->tok};
    tm_error none;
    int32_t end = -1;
    tm_status st = tm_chat_open(&settings, &w->chat, &none);
    if (st != TM_OK && st != TM_RECIPE) /* RECIPE: there is no template */
        return tm_fail(err, st, "%s", none.message);
    w->stops = tm_stop_ids(r->model, w->tok, w->stop);
    if (w->chat)
        TM_TRY(tm_chat_end(w->chat, w->scratch, &end, err));
    add_stop(w, end);
    add_stop(w, tm_tokenizer_eos(w->tok));
    if (r->generate_prompts) {
        w->begin = "prompts";
        return tm_prompts_load(r->generate_prompts, w->tok, w->chat, vocab, &w->prompts, err);
    }
    w->begin = w->chat ? "chat" : "bos";
    TM_TRY(TM_GROW(&w->prompts.item, &w->prompts.capacity, 1, err));
    w->prompts.item[w->prompts.count++] = (tm_ids){0};
    return w->chat ? look_at_template(w, err) : begin_with_bos(w, err);
}

/* The adapter that the run goes on from. */
static const char *adapter_of(const tm_recipe *r)
{
    return r->method == TM_METHOD_LORA ? r->lora_init : r->method == TM_METHOD_ADAPTER ? r->adapter_init
         : r->method == TM_METHOD_PROMPT ? r->prompt_init : r->method == TM_METHOD_BITFIT ? r->bitfit_init : NULL;
}

static tm_status open_writer(writer *w, tm_error *err)
{
    const tm_recipe *r = w->record->recipe;
    tm_model_config config;
    if (r->init == TM_INIT_RANDOM)
        return tm_fail(err, TM_RECIPE, "keep.generate: a model that starts at random (init: random) has nothing to rehearse");
    if (!tm_tokenizer_is_in(r->model))
        return tm_fail(err, TM_RECIPE, "keep.generate: %s has no tokenizer", r->model);
    TM_TRY(tm_tokenizer_open(r->model, &w->tok, err));
    TM_TRY(tm_tokens_create(w->tok, &w->scratch, err));
    TM_TRY(tm_model_config_read(r->model, &config, err));
    int64_t vocab = config.vocab, longest = tm_model_config_longest(&config);
    tm_model_config_deinit(&config);
    w->longest = longest < w->longest ? longest : w->longest;
    TM_TRY(find_prompts(w, vocab, err));
    for (int64_t i = 0; i < w->prompts.count; i++)
        for (size_t k = 0; k < w->prompts.item[i].count; k++)
            if (w->prompts.item[i].id[k] >= vocab)
                return tm_fail(err, TM_INPUT, "%s: token %d is outside the model's vocabulary of %lld: tokenizer and model do not belong together", r->model, w->prompts.item[i].id[k], (long long)vocab);
    tm_inference_settings s = {.model = r->model, .adapter = adapter_of(r), .device = r->device, .threads = (int)r->threads,
                               .max_tokens = w->longest < 512 ? w->longest : 512, .cache_tokens = w->longest,
                               .texts = r->generate_samples < TM_TEXTS_AT_ONCE ? r->generate_samples : TM_TEXTS_AT_ONCE};
    return tm_inference_open(&s, &w->inf, err);
}

static void close_writer(writer *w)
{
    if (w->inf.recipe)
        tm_inference_close(&w->inf);
    tm_chat_close(w->chat);
    tm_prompts_deinit(&w->prompts);
    tm_tokens_destroy(w->scratch);
    tm_tokenizer_close(w->tok);
    for (int64_t i = w->settled; i < w->begun; i++)
        sample_destroy(w->sample[i]);
    free(w->sample);
    free(w->draw);
    tm_buf_deinit(&w->marker);
    tm_buf_deinit(&w->rows);
    free(w->seen);
}

/* --- Writing --- */

/* Where the marker stands in what was written; NULL: nowhere. */
static const char *marked(const writer *w, const sample *s)
{
    return w->marker.size && s->text.size ? strstr(tm_buf_str(&s->text), w->marker.data) : NULL;
}

static int32_t choose(void *context, int64_t number, const float *logits, int64_t position)
{
    writer *w = context;
    const sample *s = w->sample[number];
    tm_sampling sampling = {.temperature = w->record->recipe->generate_temperature, .top_p = 1,
                            .seed = tm_philox_key(w->record->seeds.subset, TM_PURPOSE_REHEARSAL, (uint32_t)number, s->user ? 1 : 2)};
    return tm_sample(logits, w->inf.model.config.vocab, &sampling, position, w->draw);
}

/* The next token of a sample into its ids and its text. */
static tm_status put_token(void *context, int64_t number, int32_t id, bool *more, tm_error *err)
{
    writer *w = context;
    sample *s = w->sample[number];
    bool stop = stops_at(w, id);
    TM_TRY(TM_GROW(&s->ids.id, &s->ids.capacity, s->ids.count + 1, err));
    s->ids.id[s->ids.count++] = id;
    if (!stop && !tm_tokenizer_is_special(w->tok, id))
        TM_TRY(tm_decode_stream_push(&s->stream, w->tok, id, &s->text, err));
    *more = !stop && !(s->user && marked(w, s));
    return TM_OK;
}

/* The user's words, without white space around them and what ends their turn; of size 0: none. */
static const char *users_words(const writer *w, const sample *s, size_t *size)
{
    const char *from = tm_buf_str(&s->text), *end = marked(w, s);
    end = end ? end : from + s->text.size;
    while (from < end && strchr(" \t\r\n", *from))
        from++;
    while (end > from && strchr(" \t\r\n", end[-1]))
        end--;
    *size = (size_t)(end - from);
    return from;
}

/* The model said what a user says; the prompt that follows from it becomes the sample's ids. */
static tm_status end_user(writer *w, sample *s, tm_error *err)
{
    size_t size;
    int64_t targets;
    const char *words = users_words(w, s, &size);
    s->state = size ? READY : EMPTY;
    if (!size)
        return TM_OK;
    json_t *row = json_pack("{s:[{s:s, s:s%}]}", "messages", "role", "user", "content", words, size);
    tm_chat_text text = {0};
    tm_status st = row ? tm_chat_prompt(w->chat, row, &text, err) : no_memory(err);
    s->ids.count = 0;
    s->user = false;
    if (st == TM_OK)
        st = tm_chat_encode(w->chat, w->scratch, &text, &s->ids, NULL, NULL, &targets, err);
    json_decref(row);
    tm_chat_text_deinit(&text);
    tm_buf_clear(&s->text);
    tm_decode_stream_deinit(&s->stream);
    s->stream = (tm_decode_stream){0};
    return st;
}

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void put_row(writer *w, const sample *s)
{
    tm_buf_text(&w->rows, "{\"input_ids\": [");
    for (size_t i = 0; i < s->ids.count; i++)
        tm_buf_printf(&w->rows, "%s%d", i ? ", " : "", s->ids.id[i]);
    tm_buf_text(&w->rows, "], \"labels\": [");
    for (size_t i = 0; i < s->ids.count; i++)
        tm_buf_printf(&w->rows, "%s%d", i ? ", " : "", i < s->learned ? -100 : s->ids.id[i]);
    tm_buf_text(&w->rows, "]}\n");
}

/* An example whose ids from `learned` on the model wrote: into the file, unless it says nothing or was there before. */
static tm_status keep_example(writer *w, const sample *s, tm_error *err)
{
    size_t blank = strspn(tm_buf_str(&s->text), " \t\r\n");
    if (s->ids.count <= s->learned || blank == s->text.size) {
        w->empty++;
        return TM_OK;
    }
    uint64_t hash = tm_tokens_hash(0, s->ids.id, NULL, (int64_t)s->ids.count);
    if (w->kept && bsearch(&hash, w->seen, (size_t)w->kept, sizeof hash, by_value)) {
        w->repeats++;
        return TM_OK;
    }
    TM_TRY(TM_GROW(&w->seen, &w->seen_capacity, w->kept + 1, err));
    int64_t at = w->kept++;
    for (; at > 0 && w->seen[at - 1] > hash; at--)
        w->seen[at] = w->seen[at - 1];
    w->seen[at] = hash;
    put_row(w, s);
    return tm_buf_check(&w->rows, err);
}

/* Samples are kept in their order, whichever ended first. */
static tm_status keep_examples(writer *w, tm_error *err)
{
    for (; w->settled < w->begun && w->sample[w->settled]->state > WRITING; w->settled++) {
        sample *s = w->sample[w->settled];
        w->empty += s->state == EMPTY;
        w->too_long += s->state == TOO_LONG;
        if (s->state == WRITTEN)
            TM_TRY(keep_example(w, s, err));
        sample_destroy(s);
        w->sample[w->settled] = NULL;
    }
    return TM_OK;
}

static tm_status begin_sample(writer *w, tm_error *err)
{
    const tm_ids *prompt = &w->prompts.item[w->begun % w->prompts.count];
    sample *s;
    TM_TRY(TM_NEW(&s, 1, err));
    w->sample[w->begun++] = s;
    s->user = strcmp(w->begin, "chat") == 0;
    if ((int64_t)prompt->count >= w->longest)
        return TM_OK; /* without ids: too long */
    TM_TRY(TM_GROW(&s->ids.id, &s->ids.capacity, prompt->count, err));
    memcpy(s->ids.id, prompt->id, prompt->count * sizeof *prompt->id);
    s->ids.count = prompt->count;
    return TM_OK;
}

/* A sample that is ready to go on: one that has been begun, or the next. NULL: none. */
static tm_status ready_sample(writer *w, int64_t *number, tm_error *err)
{
    for (int64_t i = w->settled; i < w->begun; i++)
        if (w->sample[i]->state == READY) {
            *number = i;
            return TM_OK;
        }
    *number = w->begun;
    return w->begun < w->record->recipe->generate_samples ? begin_sample(w, err) : TM_OK;
}

static tm_status next_text(void *context, tm_text *out, bool *there, tm_error *err)
{
    writer *w = context;
    int64_t number, half = w->longest / 2;
    *there = false;
    for (;;) {
        TM_TRY(ready_sample(w, &number, err));
        if (number == w->begun)
            return TM_OK;
        sample *s = w->sample[number];
        int64_t n = (int64_t)s->ids.count;
        s->state = n && n < w->longest ? WRITING : TOO_LONG;
        if (s->state == WRITING) {
            s->learned = s->ids.count;
            *there = true;
            *out = (tm_text){.prompt = {.ids = s->ids.id, .n = (int32_t)n, .gates = w->inf.gates}, .max_tokens = !s->user ? w->longest - n : half > n ? half - n : 1, .number = number};
            return TM_OK;
        }
        TM_TRY(keep_examples(w, err));
    }
}

static tm_status ended(void *context, int64_t number, tm_error *err)
{
    writer *w = context;
    sample *s = w->sample[number];
    int64_t samples = w->record->recipe->generate_samples;
    TM_TRY(tm_decode_stream_flush(&s->stream, w->tok, &s->text, err));
    TM_TRY(tm_buf_check(&s->text, err));
    if (s->user)
        TM_TRY(end_user(w, s, err));
    else
        s->state = WRITTEN;
    TM_TRY(keep_examples(w, err));
    if (tm_clock_seconds() - w->said_at > 20 && w->settled < samples) {
        w->said_at = tm_clock_seconds();
        tm_rehearsal_say(w->record, "keep.generate: %lld of %lld texts", (long long)w->settled, (long long)samples);
    }
    return TM_OK;
}

static tm_status go_on(void *context, tm_error *err) { return tm_rehearsal_go_on(((writer *)context)->record, err); }

static tm_status write_all(writer *w, tm_error *err)
{
    int64_t samples = w->record->recipe->generate_samples;
    w->said_at = tm_clock_seconds();
    tm_rehearsal_say(w->record, "keep.generate: the base writes %lld texts", (long long)samples);
    TM_TRY(TM_NEW(&w->sample, samples, err));
    TM_TRY(tm_alloc(&w->draw, tm_sample_scratch_bytes(w->inf.model.config.vocab), 1, err));
    TM_TRY(tm_decode(&w->inf.model, &w->inf.batch, &(tm_texts){next_text, w->record->recipe->generate_temperature > 0 ? choose : NULL, put_token, ended, go_on, w}, err));
    if (!w->kept)
        return tm_fail(err, TM_FAILED, "keep.generate: none of %lld texts is of use (%lld empty, %lld too long): another temperature, or keep.generate.prompts", (long long)samples,
                       (long long)w->empty, (long long)w->too_long);
    tm_rehearsal_say(w->record, "keep.generate: %lld texts kept, %lld repeats, %lld empty, %lld too long", (long long)w->kept, (long long)w->repeats, (long long)w->empty, (long long)w->too_long);
    return TM_OK;
}

/* --- The record --- */

static json_t *optional(const char *text) { return text && *text ? json_string(text) : json_null(); }

static tm_status subject_of(const tm_rehearsal_record *record, int64_t longest, json_t **out, tm_error *err)
{
    const tm_recipe *r = record->recipe;
    tm_sha256 prompts = {""};
    char seed[17];
    if (r->generate_prompts)
        TM_TRY(tm_data_path_hash(r->generate_prompts, &prompts, err));
    snprintf(seed, sizeof seed, "%016llx", (unsigned long long)record->seeds.subset);
    *out = json_pack("{s:s, s:o, s:s, s:I, s:f, s:I, s:o, s:o}", "model", r->model, "adapter", optional(adapter_of(r)), "seed", seed, "samples", (json_int_t)r->generate_samples,
                     "temperature", r->generate_temperature, "max_tokens", (json_int_t)longest, "prompts", optional(r->generate_prompts), "prompts_sha256", optional(prompts.hex));
    return *out ? TM_OK : no_memory(err);
}

/* The file must be what the record says; *there false: it is gone. */
static tm_status check_file(const tm_rehearsal_record *record, const char *path, bool *there, tm_error *err)
{
    const char *then = json_string_value(json_object_get(json_object_get(record->json, "generate"), "sha256"));
    tm_sha256 now;
    *there = tm_path_exists(path);
    if (!*there)
        return TM_OK;
    TM_TRY(tm_sha256_file(path, &now, err));
    if (!then || strcmp(then, now.hex) != 0)
        return tm_fail(err, TM_INPUT, "%s: changed since it was written; remove it to have it written again, or give it as keep.replay.path", path);
    return TM_OK;
}

static tm_status make_file(writer *w, const char *path, json_t *subject, tm_error *err)
{
    tm_rehearsal_record *record = w->record;
    tm_sha256 model, file;
    TM_TRY(open_writer(w, err));
    TM_TRY(write_all(w, err));
    TM_TRY(tm_hf_hash(record->recipe->model, &model, err));
    TM_TRY(tm_sha256_bytes(w->rows.data, w->rows.size, &file, err));
    TM_TRY(tm_file_write(path, w->rows.data, w->rows.size, err));
    json_t *part = tm_json_copy(subject, false), *made = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I}", "begin", w->begin, "model_sha256", model.hex, "sha256", file.hex,
                                                                   "kept", (json_int_t)w->kept, "repeats", (json_int_t)w->repeats, "empty", (json_int_t)w->empty, "too_long", (json_int_t)w->too_long);
    bool failed = !part || !made || json_object_update(part, made) != 0;
    json_decref(made);
    if (failed) {
        json_decref(part);
        return no_memory(err);
    }
    return tm_rehearsal_put(record, "generate", part, err);
}

tm_status tm_rehearsal_generate(tm_rehearsal_record *record, tm_error *err)
{
    const tm_recipe *r = record->recipe;
    writer w = {.record = record, .longest = r->generate_max_tokens < r->seq ? r->generate_max_tokens : r->seq};
    char *path = tm_path_join(record->dir, "rehearsal.jsonl", err);
    json_t *subject = NULL;
    bool made;
    tm_status st = path ? TM_OK : TM_NO_MEMORY;
    TM_GO(st);
    TM_GO(subject_of(record, w.longest, &subject, err));
    TM_GO(tm_rehearsal_find(record, "generate", subject, &made, err));
    if (made)
        TM_GO(check_file(record, path, &made, err));
    if (!made)
        TM_GO(make_file(&w, path, subject, err));
out:
    close_writer(&w);
    json_decref(subject);
    free(path);
    return st;
}
