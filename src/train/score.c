/* Scores of choices and of generated text: see score.h and docs/formats/eval.md.
 *
 * What is asked is what training would teach: a prompt is the ids of an example up to the last run of its targets, the
 * reference what these targets decode to. So every format of rows, with or without a chat template, can be scored.
 * Generation is greedy: the same weights give the same text. */
#include "train/score.h"

#include "base/exact.h"
#include "base/json.h"
#include "model/generate.h"
#include "text/answers.h"
#include "train/metrics.h"

#include <math.h>
#include <stdlib.h>

const tm_metric tm_metrics[TM_METRIC_COUNT] = {
    [TM_METRIC_LOSS] = {"loss", {NULL}, false, false},
    [TM_METRIC_ACCURACY] = {"accuracy", {NULL}, true, false},
    [TM_METRIC_EXACT] = {"exact", {NULL}, true, false},
    [TM_METRIC_KL] = {"kl", {NULL}, false, false},
    [TM_METRIC_BITS] = {"bits_per_byte", {NULL}, false, false},
    [TM_METRIC_CHOICE] = {"choice", {"acc", "acc_norm"}, true, false},
    [TM_METRIC_EXACT_MATCH] = {"exact_match", {"exact_match"}, true, true},
    [TM_METRIC_EXTRACTED] = {"extracted", {"extracted", "answered"}, true, true},
    [TM_METRIC_ROUGE_L] = {"rouge_l", {"rouge_l"}, true, true},
    [TM_METRIC_SARI] = {"sari", {"sari"}, true, true},
    [TM_METRIC_ROUND_TRIP] = {"round_trip", {"round_trip", "token_f1"}, true, true},
};

double tm_metric_value(int metric, const tm_scores *s)
{
    switch (metric) {
    case TM_METRIC_LOSS: return s->loss;
    case TM_METRIC_ACCURACY: return s->accuracy;
    case TM_METRIC_EXACT: return s->exact;
    case TM_METRIC_KL: return s->kl;
    case TM_METRIC_BITS: return s->bits_per_byte;
    default: return s->score[0];
    }
}

int tm_metric_named(const char *name, size_t size)
{
    for (int i = 0; i < TM_METRIC_COUNT; i++)
        if (strlen(tm_metrics[i].name) == size && memcmp(tm_metrics[i].name, name, size) == 0)
            return i;
    return -1;
}

static bool same_row(const tm_example *a, const tm_example *b) { return a->file == b->file && a->line == b->line; }

int64_t tm_eval_examples(const tm_dataset *data, int metric, int64_t rows)
{
    bool grouped = metric == TM_METRIC_CHOICE || metric == TM_METRIC_ROUND_TRIP;
    int64_t count = tm_dataset_count(data), seen = 0;
    for (int64_t i = 0; rows > 0 && i < count; i++) {
        seen += !grouped || i == 0 || !same_row(tm_dataset_at(data, i - 1), tm_dataset_at(data, i));
        if (seen > rows)
            return i;
    }
    return count;
}

/* --- Parts of an example --- */

/* The last run of targets: [*first, *end). */
static void answer_of(const tm_example *e, int32_t *first, int32_t *end)
{
    *end = e->n;
    while (*end > 1 && e->weight && e->weight[*end - 1] == 0)
        --*end;
    *first = *end - 1;
    while (*first > 1 && (!e->weight || e->weight[*first - 1] > 0))
        --*first;
}

int64_t tm_eval_cache_tokens(const tm_eval_set *set)
{
    int64_t longest = 0;
    if (!tm_metrics[set->entry->metric].generates)
        return 0;
    for (int64_t i = 0; i < set->examples; i++)
        longest = tm_dataset_at(set->data, i)->n > longest ? tm_dataset_at(set->data, i)->n : longest;
    /* The way back of a round trip begins with what was generated. */
    return longest + set->entry->max_tokens * (set->entry->metric == TM_METRIC_ROUND_TRIP ? 2 : 1);
}

/* Text of ids, without special tokens and white space around it; *out owned by buf. */
static tm_status text_of(const tm_trainer *t, const int32_t *ids, size_t count, tm_buf *buf, tm_error *err)
{
    tm_buf_clear(buf);
    TM_TRY(tm_tokenizer_decode(t->run->tok, ids, count, true, buf, err));
    size_t from = 0;
    while (from < buf->size && (buf->data[from] == ' ' || buf->data[from] == '\n' || buf->data[from] == '\r' || buf->data[from] == '\t'))
        from++;
    while (buf->size > from && (buf->data[buf->size - 1] == ' ' || buf->data[buf->size - 1] == '\n' ||
                                buf->data[buf->size - 1] == '\r' || buf->data[buf->size - 1] == '\t'))
        buf->size--;
    if (buf->data) {
        memmove(buf->data, buf->data + from, buf->size - from);
        buf->size -= from;
        buf->data[buf->size] = 0;
    }
    return tm_buf_check(buf, err);
}

/* --- Generating --- */

/* A question and what the model says to it. */
typedef struct said {
    int64_t example;        /* whose gates are in force */
    const int32_t *prompt;  /* borrowed */
    int64_t n;              /* 0: nothing is asked */
    tm_ids answer;
} said;

/* Answers of a set, all of which are written before the first is scored: many at a time. */
typedef struct writer {
    tm_trainer *t;
    const tm_eval_set *set;
    int32_t replica;
    said *said;
    int64_t count, next;
} writer;

static tm_status writer_init(writer *w, tm_trainer *t, const tm_eval_set *set, int32_t replica, int64_t count, tm_error *err)
{
    *w = (writer){.t = t, .set = set, .replica = replica, .count = count};
    return TM_NEW(&w->said, count, err);
}

static void writer_deinit(writer *w)
{
    for (int64_t i = 0; w->said && i < w->count; i++)
        tm_ids_deinit(&w->said[i].answer);
    free(w->said);
}

static tm_status next_text(void *context, tm_text *out, bool *there, tm_error *err)
{
    writer *w = context;
    const tm_trainer *t = w->t;
    (void)err;
    /* A prompt that the cache cannot hold gets no answer. */
    while (w->next < w->count && (!w->said[w->next].n || w->said[w->next].n + t->batch.prefix >= t->model.settings.cache_tokens))
        w->next++;
    *there = w->next < w->count;
    if (!*there)
        return TM_OK;
    const said *s = &w->said[w->next];
    *out = (tm_text){.prompt = {.ids = s->prompt, .n = (int32_t)s->n, .replica = w->replica}, .max_tokens = w->set->entry->max_tokens, .number = w->next++};
    tm_gates_give(t, w->set - t->run->evals, s->example, &out->prompt);
    return TM_OK;
}

static tm_status put_token(void *context, int64_t number, int32_t id, bool *more, tm_error *err)
{
    writer *w = context;
    tm_ids *answer = &w->said[number].answer;
    for (size_t i = 0; i < w->t->run->stops; i++)
        *more &= id != w->t->run->stop[i];
    if (!*more)
        return TM_OK;
    TM_TRY(TM_GROW(&answer->id, &answer->capacity, answer->count + 1, err));
    answer->id[answer->count++] = id;
    return TM_OK;
}

static tm_status go_on(void *context, tm_error *err)
{
    const writer *w = context;
    const tm_run *run = w->t->run;
    if (run->interrupted && run->interrupted(run->context))
        return tm_fail(err, TM_FAILED, "interrupted in an evaluation (%s) after step %lld; the same command goes on from the last checkpoint", w->set->entry->name, (long long)w->t->step);
    return TM_OK;
}

/* What the model says to all that is asked. */
static tm_status write_all(writer *w, tm_error *err)
{
    return tm_decode(&w->t->model, &w->t->batch, &(tm_texts){.next = next_text, .token = put_token, .go_on = go_on, .context = w}, err);
}

/* The text of an answer. */
static tm_status answer_text(const writer *w, int64_t i, tm_buf *text, tm_error *err)
{
    return text_of(w->t, w->said[i].answer.id, w->said[i].answer.count, text, err);
}

/* --- Items --- */

static void put_text(tm_buf *out, const char *key, const tm_buf *text)
{
    tm_buf_printf(out, ", \"%s\": ", key);
    tm_json_put_bytes(out, tm_buf_str(text), text->size);
}

static void put_number(tm_buf *out, const char *key, double value)
{
    tm_buf_printf(out, ", \"%s\": ", key);
    tm_json_put_number(out, value);
}

static void begin_item(tm_buf *out, const tm_eval_set *set, const tm_example *e, int64_t item)
{
    tm_buf_printf(out, "{\"item\": %lld, \"line\": %lld", (long long)item, (long long)e->line);
    if (e->file) {
        tm_buf_text(out, ", \"file\": ");
        tm_json_put_string(out, tm_dataset_file(set->data, e->source, e->file));
    }
}

/* --- By likelihood --- */

static tm_status score_choice(const tm_eval_set *set, const tm_example_score *each, tm_scores *out, tm_buf *items, tm_error *err)
{
    int64_t count = 0, right[2] = {0};
    for (int64_t i = 0; i < set->examples; count++) {
        const tm_example *e = tm_dataset_at(set->data, i);
        const tm_answer *a = tm_answers_find(set->answers, e->file, e->line);
        int64_t n = 1, best[2] = {i, i};
        while (i + n < set->examples && same_row(e, tm_dataset_at(set->data, i + n)))
            n++;
        if (!a || n != a->options)
            return tm_fail(err, TM_INPUT, "%s:%lld: %lld of %d options fit into train.seq tokens", tm_dataset_file(set->data, e->source, e->file),
                           (long long)e->line, (long long)n, a ? a->options : 0);
        for (int64_t k = i; k < i + n; k++) {
            if (each[k].loss < each[best[0]].loss)
                best[0] = k;
            if (each[k].loss * a->chars[best[1] - i] < each[best[1]].loss * a->chars[k - i])
                best[1] = k;
        }
        for (int k = 0; k < 2; k++)
            right[k] += best[k] - i == a->correct;
        if (items) {
            begin_item(items, set, e, count);
            tm_buf_printf(items, ", \"answer\": %d, \"chosen\": %lld, \"chosen_norm\": %lld, \"log_likelihood\": [", a->correct,
                          (long long)(best[0] - i), (long long)(best[1] - i));
            for (int64_t k = i; k < i + n; k++) {
                tm_buf_text(items, k > i ? ", " : "");
                tm_json_put_number(items, -each[k].loss);
            }
            tm_buf_text(items, "]}\n");
        }
        i += n;
    }
    for (int k = 0; k < 2; k++)
        out->score[k] = count ? (double)right[k] / (double)count : 0;
    out->loss = out->accuracy = out->exact = out->bits_per_byte = NAN; /* of wrong options, too: it says nothing */
    return TM_OK;
}

static void put_examples(const tm_eval_set *set, const tm_example_score *each, tm_buf *items)
{
    for (int64_t i = 0; i < set->examples; i++) {
        const tm_example_score *s = &each[i];
        begin_item(items, set, tm_dataset_at(set->data, i), i);
        put_number(items, "loss", s->targets ? s->loss / s->targets : NAN);
        tm_buf_printf(items, ", \"targets\": %d, \"hits\": %d, \"exact\": %s}\n", s->targets, s->hits, s->hits == s->targets ? "true" : "false");
    }
}

/* --- Of generated text --- */

typedef struct texts { /* of one item */
    tm_buf prediction, reference, source, extracted[2];
} texts;

static void texts_deinit(texts *x)
{
    tm_buf_deinit(&x->prediction);
    tm_buf_deinit(&x->reference);
    tm_buf_deinit(&x->source);
    tm_buf_deinit(&x->extracted[0]);
    tm_buf_deinit(&x->extracted[1]);
}

/* The best over the references: the row's own and those it names. */
static tm_status score_text(int metric, texts *x, const tm_answer *a, double score[2], tm_error *err)
{
    const char *prediction = tm_buf_str(&x->prediction), *own = tm_buf_str(&x->reference);
    int64_t others = a ? a->references.count : 0;
    score[0] = score[1] = 0;
    if (metric == TM_METRIC_SARI) {
        const char *source = a && a->source ? a->source : tm_buf_str(&x->source);
        return others ? tm_sari(source, prediction, (const char *const *)a->references.item, others, &score[0], err)
                      : tm_sari(source, prediction, &own, 1, &score[0], err);
    }
    for (int64_t i = -1; i < others; i++) {
        const char *reference = i < 0 ? own : a->references.item[i];
        double value = 0;
        if (metric == TM_METRIC_EXACT_MATCH)
            value = tm_exact_match(prediction, reference);
        else if (metric == TM_METRIC_ROUGE_L)
            TM_TRY(tm_rouge_l(prediction, reference, &value, err));
        else {
            tm_buf_clear(&x->extracted[0]);
            tm_buf_clear(&x->extracted[1]);
            score[1] = tm_extract_answer(prediction, &x->extracted[0]);
            bool there = tm_extract_answer(reference, &x->extracted[1]);
            TM_TRY(tm_buf_check(&x->extracted[0], err));
            TM_TRY(tm_buf_check(&x->extracted[1], err));
            /* A reference without the mark is the answer itself. */
            value = score[1] > 0 && strcmp(tm_buf_str(&x->extracted[0]), there ? tm_buf_str(&x->extracted[1]) : reference) == 0;
        }
        score[0] = fmax(score[0], value);
    }
    return TM_OK;
}

static tm_status score_generated(tm_trainer *t, const tm_eval_set *set, int32_t replica, tm_scores *out, tm_buf *items, tm_error *err)
{
    texts x = {0};
    writer w;
    double sum[2] = {0}, score[2];
    tm_status st = TM_OK;
    int metric = set->entry->metric;
    int32_t first, end;
    TM_GO(writer_init(&w, t, set, replica, set->examples, err));
    for (int64_t i = 0; i < set->examples; i++) {
        const tm_example *e = tm_dataset_at(set->data, i);
        answer_of(e, &first, &end);
        w.said[i].example = i;
        w.said[i].prompt = e->ids;
        w.said[i].n = first;
    }
    TM_GO(write_all(&w, err));
    for (int64_t i = 0; i < set->examples; i++) {
        const tm_example *e = tm_dataset_at(set->data, i);
        const tm_answer *a = set->answers ? tm_answers_find(set->answers, e->file, e->line) : NULL;
        answer_of(e, &first, &end);
        TM_GO(text_of(t, e->ids + first, (size_t)(end - first), &x.reference, err));
        TM_GO(text_of(t, e->ids, (size_t)first, &x.source, err));
        TM_GO(answer_text(&w, i, &x.prediction, err));
        TM_GO(score_text(metric, &x, a, score, err));
        sum[0] += score[0];
        sum[1] += score[1];
        if (!items)
            continue;
        begin_item(items, set, e, i);
        put_text(items, "prompt", &x.source);
        put_text(items, "prediction", &x.prediction);
        put_text(items, "reference", &x.reference);
        if (metric == TM_METRIC_EXTRACTED)
            put_text(items, "answer", &x.extracted[0]);
        put_number(items, tm_metrics[metric].key[0], score[0]);
        tm_buf_text(items, "}\n");
    }
    for (int k = 0; k < 2; k++)
        out->score[k] = set->examples ? sum[k] / (double)set->examples : 0;
out:
    writer_deinit(&w);
    texts_deinit(&x);
    return st;
}

/* --- Scene to text and back --- */

/* What is said on the way, and what is made of that. back: the prompts of the second, of count. */
static tm_status write_both_ways(writer *there, writer *again, tm_ids *back, texts *x, tm_error *err)
{
    const tm_eval_set *set = there->set;
    int32_t first, end;
    for (int64_t i = 0; i < there->count; i++) {
        const tm_example *e = tm_dataset_at(set->data, 2 * i);
        answer_of(e, &first, &end);
        there->said[i].example = 2 * i;
        there->said[i].prompt = e->ids;
        there->said[i].n = first;
    }
    TM_TRY(write_all(there, err));
    for (int64_t i = 0; i < there->count; i++) {
        TM_TRY(answer_text(there, i, &x->source, err));
        if (x->source.size)
            TM_TRY(tm_bridge_ids(set->bridge, TM_BRIDGE_TO_SCENE, tm_buf_str(&x->source), &back[i], err));
        again->said[i].example = 2 * i + 1;
        again->said[i].prompt = back[i].id;
        again->said[i].n = (int64_t)back[i].count;
    }
    return write_all(again, err);
}

static tm_status score_round_trip(tm_trainer *t, const tm_eval_set *set, int32_t replica, const tm_example_score *each, tm_scores *out, tm_buf *items,
                                  tm_error *err)
{
    texts x = {0};
    tm_ids *back = NULL;
    writer there = {0}, again = {0};
    double exact = 0, f1 = 0, loss[2] = {0}, targets[2] = {0};
    int64_t count = set->examples / 2;
    tm_status st = TM_OK;
    for (int64_t i = 0; i < count; i++) {
        const tm_example *way[2] = {tm_dataset_at(set->data, 2 * i), tm_dataset_at(set->data, 2 * i + 1)};
        if (!same_row(way[0], way[1]))
            TM_GO(tm_fail(err, TM_INPUT, "%s:%lld: one way of the bridge does not fit into train.seq tokens", tm_dataset_file(set->data, way[0]->source, way[0]->file), (long long)way[0]->line));
    }
    TM_GO(TM_NEW(&back, count, err));
    TM_GO(writer_init(&there, t, set, replica, count, err));
    TM_GO(writer_init(&again, t, set, replica, count, err));
    TM_GO(write_both_ways(&there, &again, back, &x, err));
    for (int64_t i = 0; i < count; i++) {
        const tm_example *way[2] = {tm_dataset_at(set->data, 2 * i), tm_dataset_at(set->data, 2 * i + 1)};
        int32_t first, end;
        double value;
        for (int k = 0; k < 2; k++) {
            loss[k] += each[2 * i + k].loss;
            targets[k] += each[2 * i + k].targets;
        }
        answer_of(way[1], &first, &end);
        TM_GO(text_of(t, way[1]->ids + first, (size_t)(end - first), &x.reference, err));
        TM_GO(answer_text(&there, i, &x.source, err));
        TM_GO(answer_text(&again, i, &x.prediction, err));
        TM_GO(tm_token_f1(tm_buf_str(&x.prediction), tm_buf_str(&x.reference), &value, err));
        bool same = tm_exact_match(tm_buf_str(&x.prediction), tm_buf_str(&x.reference));
        exact += same;
        f1 += value;
        if (!items)
            continue;
        begin_item(items, set, way[0], i);
        put_text(items, "scene", &x.reference);
        put_text(items, "text", &x.source);
        put_text(items, "back", &x.prediction);
        tm_buf_printf(items, ", \"round_trip\": %d", same);
        put_number(items, "token_f1", value);
        tm_buf_text(items, "}\n");
    }
    double n = count ? (double)count : 1;
    out->score[0] = exact / n;
    out->score[1] = f1 / n;
    for (int k = 0; k < 2; k++)
        out->way_loss[k] = targets[k] > 0 ? loss[k] / targets[k] : NAN;
out:
    for (int64_t i = 0; back && i < count; i++)
        tm_ids_deinit(&back[i]);
    free(back);
    writer_deinit(&there);
    writer_deinit(&again);
    texts_deinit(&x);
    return st;
}

tm_status tm_score_set(tm_trainer *t, const tm_eval_set *set, int32_t replica, const tm_example_score *each, tm_scores *out, tm_buf *items, tm_error *err)
{
    int metric = set->entry->metric;
    out->score[0] = out->score[1] = out->way_loss[0] = out->way_loss[1] = NAN;
    if (metric == TM_METRIC_CHOICE)
        TM_TRY(score_choice(set, each, out, items, err));
    else if (tm_metrics[metric].generates) {
        TM_TRY(metric == TM_METRIC_ROUND_TRIP ? score_round_trip(t, set, replica, each, out, items, err) : score_generated(t, set, replica, out, items, err));
        if (!tm_metrics[metric].key[1])
            out->score[1] = NAN;
    } else if (items)
        put_examples(set, each, items);
    return items ? tm_buf_check(items, err) : TM_OK;
}
