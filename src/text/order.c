/* The order of examples: a list for the whole run, made once, so that any step can be asked for at
 * any time and a resumed run sees what the uninterrupted one saw. It depends on the seed, the number
 * and the lengths of the examples, and the weights: never on batch, accumulation or layout, which only
 * say where the list is cut into steps. */
#include "text/dataset.h"

#include "base/philox.h"

#include <math.h>
#include <stdlib.h>

/* 8 bytes an example: 16 GiB. */
#define MAX_EXAMPLES ((int64_t)1 << 31)

struct tm_order {
    int64_t *example; /* [start[steps]] */
    size_t capacity;
    int64_t *start; /* [steps + 1] */
    size_t start_capacity;
    int64_t steps;
};

/* Fisher-Yates from the end; the number for place i comes from counter i. */
void tm_permutation(uint64_t key, int64_t n, int64_t *out)
{
    for (int64_t i = 0; i < n; i++)
        out[i] = i;
    for (int64_t i = n - 1; i > 0; i--) {
        tm_philox r = tm_philox_at(key, (uint32_t)i, (uint32_t)((uint64_t)i >> 32), 0, 0);
        int64_t j = (int64_t)tm_philox_below(r.word[0], r.word[1], (uint64_t)i + 1), swap = out[i];
        out[i] = out[j];
        out[j] = swap;
    }
}

/* A pass after a pass over n examples that stand at first, first + 1, ... */
typedef struct deck {
    int64_t first, n, at;
    uint32_t pass, name; /* name: tells the decks of a run apart */
    int64_t *order; /* [n] */
    double share; /* mixtures: sum of the chances up to and including this one */
} deck;

typedef struct stream {
    const tm_dataset *data;
    const tm_order_settings *settings;
    deck *decks; /* one over everything but rehearsal, or one a source */
    int64_t count, drawn;
    deck *old;   /* [settings->rehearsals] */
    int64_t places;
} stream;

static int64_t task_sources(const tm_dataset *data, const tm_order_settings *s) { return tm_dataset_sources(data) - s->rehearsals; }

/* In [0, 1), 53 bits; the number for draw i comes from counter i. */
static double uniform(uint64_t key, int64_t i)
{
    tm_philox r = tm_philox_at(key, (uint32_t)i, (uint32_t)((uint64_t)i >> 32), 0, 0);
    return (double)(((uint64_t)r.word[0] << 32 | r.word[1]) >> 11) * 0x1p-53;
}

static int64_t deck_next(deck *d, const tm_order_settings *s, tm_purpose purpose)
{
    if (d->at == 0) {
        if (s->shuffle)
            tm_permutation(tm_philox_key(s->seed, purpose, d->pass, d->name), d->n, d->order);
        else
            for (int64_t i = 0; i < d->n; i++)
                d->order[i] = i;
        d->pass++;
    }
    int64_t example = d->first + d->order[d->at];
    d->at = (d->at + 1) % d->n;
    return example;
}

/* What an entry's weight is multiplied by to give the chance of drawing one of its examples; times their mean
 * length, that is its share of tokens: the weight times all its tokens, or the weight itself. */
static double drawing_weight(const tm_dataset_stats *s, int mix)
{
    double examples = (double)s->examples;
    return mix == TM_MIX_SIZE ? examples : mix == TM_MIX_TOKENS ? examples / (double)s->tokens : 1;
}

/* The rehearsal deck whose turn it is; NULL: none's. */
static deck *stream_old(stream *s)
{
    if (!s->settings->rehearsals)
        return NULL;
    double u = uniform(tm_philox_key(s->settings->seed, TM_PURPOSE_REHEARSAL, 0, 0), s->places++);
    for (int64_t i = 0; i < s->settings->rehearsals; i++)
        if (u < s->old[i].share)
            return &s->old[i];
    return NULL;
}

static int64_t stream_next(stream *s, bool *old)
{
    deck *d = stream_old(s);
    *old = d != NULL;
    if (d)
        return deck_next(d, s->settings, TM_PURPOSE_REHEARSAL);
    d = s->decks;
    if (s->count > 1) {
        double u = uniform(tm_philox_key(s->settings->seed, TM_PURPOSE_MIX, 0, 0), s->drawn) * s->decks[s->count - 1].share;
        int64_t i = 0;
        while (i < s->count - 1 && u >= s->decks[i].share)
            i++;
        d = &s->decks[i];
    }
    s->drawn++;
    return deck_next(d, s->settings, TM_PURPOSE_ORDER);
}

static bool is_mixture(int64_t sources, const tm_data_entry *entries, int mix)
{
    if (entries && mix != TM_MIX_SIZE && sources > 1)
        return true;
    for (int64_t i = 1; entries && i < sources; i++)
        if (entries[i].weight != entries[0].weight)
            return true;
    return false;
}

static void stream_deinit(stream *s)
{
    for (int64_t i = 0; s->decks && i < s->count; i++)
        free(s->decks[i].order);
    free(s->decks);
    for (int64_t i = 0; s->old && i < s->settings->rehearsals; i++)
        free(s->old[i].order);
    free(s->old);
}

/* Mean length of what comes from a deck that is not of rehearsal. */
static double mean_length(const tm_dataset *data, int64_t first, int64_t n)
{
    double tokens = 0;
    for (int64_t i = first; i < first + n; i++)
        tokens += tm_dataset_at(data, i)->n;
    return tokens / (double)n;
}

/* A share f of tokens is met by drawing with a chance that is as f over the mean length. */
static tm_status add_rehearsal(stream *s, double task_length, tm_error *err)
{
    const tm_order_settings *o = s->settings;
    int64_t task = task_sources(s->data, o);
    double left = 1, all = 0;
    TM_TRY(TM_NEW(&s->old, o->rehearsals, err));
    for (int64_t i = 0; i < o->rehearsals; i++) {
        int64_t first = tm_dataset_first(s->data, task + i), n = tm_dataset_first(s->data, task + i + 1) - first;
        if (n < 1)
            return tm_fail(err, TM_RECIPE, "keep: there is no example to rehearse in %s", tm_dataset_file(s->data, task + i, 0));
        left -= o->rehearsal[i];
        all += o->rehearsal[i] / mean_length(s->data, first, n);
        s->old[i] = (deck){.first = first, .n = n, .name = (uint32_t)i + 1, .share = all};
        TM_TRY(TM_NEW(&s->old[i].order, n, err));
    }
    if (!(left > 0))
        return tm_fail(err, TM_RECIPE, "rehearsal: %g of the tokens; expected less than 1", 1 - left);
    all += left / task_length;
    for (int64_t i = 0; i < o->rehearsals; i++)
        s->old[i].share /= all;
    return TM_OK;
}

static tm_status stream_init(stream *s, const tm_dataset *data, const tm_data_entry *entries,
                             const tm_order_settings *settings, tm_error *err)
{
    int64_t sources = task_sources(data, settings);
    bool mixture = is_mixture(sources, entries, settings->mix);
    *s = (stream){.data = data, .settings = settings, .count = mixture ? sources : 1};
    TM_TRY(TM_NEW(&s->decks, s->count, err));
    int64_t first = 0;
    double share = 0, length = 0;
    for (int64_t i = 0; i < s->count; i++) {
        int64_t n = mixture ? tm_dataset_stats_of(data, i)->examples : tm_dataset_first(data, sources);
        double chance = mixture ? entries[i].weight * drawing_weight(tm_dataset_stats_of(data, i), settings->mix) : 1;
        share += chance;
        length += settings->rehearsals ? chance * mean_length(data, first, n) : 0;
        s->decks[i] = (deck){.first = first, .n = n, .name = mixture ? (uint32_t)i + 1 : 0, .share = share};
        TM_TRY(TM_NEW(&s->decks[i].order, n, err));
        first += n;
    }
    return settings->rehearsals ? add_rehearsal(s, length / share, err) : TM_OK;
}

/* --- Steps --- */

typedef struct budget { /* of a run, rehearsal not counted in examples and tokens: whichever is not zero ends it */
    int64_t steps, examples, tokens;
} budget;

/* Before anything is drawn: the list alone would take all memory. examples: at least so many. */
static tm_status check_size(double examples, const char *key, tm_error *err)
{
    if (examples <= (double)MAX_EXAMPLES)
        return TM_OK;
    return tm_fail(err, TM_RECIPE, "%s: a run of %.4g examples; at most %lld can be listed", key, examples, (long long)MAX_EXAMPLES);
}

static tm_status budget_init(budget *b, const tm_dataset *data, bool mixture, const tm_order_settings *s, tm_error *err)
{
    *b = (budget){.steps = s->steps};
    if (s->steps > 0)
        return check_size(s->batch_tokens > 0 ? (double)s->steps : (double)s->steps * (double)s->batch * (double)s->accumulate, "train.steps", err);
    int64_t count = tm_dataset_first(data, task_sources(data, s)), longest = 1;
    double n = (double)count, tokens = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t length = tm_dataset_at(data, i)->n;
        tokens += (double)length;
        longest = length > longest ? length : longest;
    }
    double all = s->epochs * (mixture ? tokens : n);
    if (!(all < 0x1p62) || !(s->epochs > 0))
        return tm_fail(err, TM_RECIPE, "train.epochs: %g is not a number of passes that can be made", s->epochs);
    TM_TRY(check_size(mixture ? all / (double)longest : all, "train.epochs", err));
    int64_t whole = llround(all) > 0 ? llround(all) : 1;
    b->examples = mixture ? 0 : whole;
    b->tokens = mixture ? whole : 0;
    return TM_OK;
}

/* Does the next example, of n tokens, still belong to a step that has `examples` of `tokens`? */
static bool fits(const tm_order_settings *s, int64_t examples, int64_t tokens, int64_t n)
{
    if (s->batch_tokens > 0)
        return examples == 0 || tokens + n <= s->batch_tokens * s->accumulate;
    return examples < s->batch * s->accumulate;
}

static tm_status end_step(tm_order *o, int64_t at, tm_error *err)
{
    TM_TRY(TM_GROW(&o->start, &o->start_capacity, o->steps + 2, err));
    o->start[++o->steps] = at;
    return TM_OK;
}

/* Draws examples and cuts the list into steps until the budget is used up. */
static tm_status fill(tm_order *o, stream *s, const budget *b, tm_error *err)
{
    int64_t at = 0, step_examples = 0, step_tokens = 0, task_examples = 0, task_tokens = 0;
    bool old;
    TM_TRY(TM_GROW(&o->start, &o->start_capacity, 2, err));
    o->start[0] = 0;
    while ((!b->examples || task_examples < b->examples) && (!b->tokens || task_tokens < b->tokens)) {
        int64_t example = stream_next(s, &old), n = tm_dataset_at(s->data, example)->n;
        if (!fits(s->settings, step_examples, step_tokens, n)) {
            TM_TRY(end_step(o, at, err));
            step_examples = step_tokens = 0;
            if (o->steps == b->steps)
                return TM_OK;
        }
        if (at >= MAX_EXAMPLES)
            return tm_fail(err, TM_RECIPE, "train: more than %lld examples in a run", (long long)MAX_EXAMPLES);
        TM_TRY(TM_GROW(&o->example, &o->capacity, at + 1, err));
        o->example[at++] = example;
        step_examples++;
        step_tokens += n;
        task_examples += !old;
        task_tokens += old ? 0 : n;
    }
    return step_examples ? end_step(o, at, err) : TM_OK;
}

tm_status tm_order_create(const tm_dataset *data, const tm_data_entry *entries, const tm_order_settings *settings,
                          tm_order **out, tm_error *err)
{
    *out = NULL;
    int64_t product;
    if (tm_dataset_first(data, task_sources(data, settings)) < 1)
        return tm_fail(err, TM_RECIPE, "data: there is no example");
    bool tokens = settings->batch_tokens > 0;
    int64_t size = tokens ? settings->batch_tokens : settings->batch;
    if (__builtin_mul_overflow(size, settings->accumulate, &product) || product < 1)
        return tm_fail(err, TM_RECIPE, "train.%s: %lld times train.accumulate %lld is no size of a step; expected 1 to %lld", tokens ? "batch_tokens" : "batch",
                       (long long)size, (long long)settings->accumulate, (long long)INT64_MAX);
    tm_order *o = NULL;
    stream s = {0};
    budget b;
    tm_status st;
    TM_GO(TM_NEW(&o, 1, err));
    TM_GO(stream_init(&s, data, entries, settings, err));
    TM_GO(budget_init(&b, data, s.count > 1, settings, err));
    TM_GO(fill(o, &s, &b, err));
    *out = o;
    o = NULL;
out:
    stream_deinit(&s);
    tm_order_destroy(o);
    return st;
}

void tm_order_destroy(tm_order *order)
{
    if (!order)
        return;
    free(order->example);
    free(order->start);
    free(order);
}

int64_t tm_order_steps(const tm_order *order) { return order->steps; }

void tm_order_step(const tm_order *order, int64_t step, const int64_t **examples, int64_t *count)
{
    *examples = order->example + order->start[step];
    *count = order->start[step + 1] - order->start[step];
}
