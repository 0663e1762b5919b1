/* temper inspect of data: sizes, lengths, and examples token by token, as training sees them. */
#include "api/inspect.h"
#include "api/job.h"

#include "base/file.h"
#include "base/options.h"
#include "base/utf8.h"
#include "text/dataset.h"

#include <stdlib.h>
#include <string.h>

/* --- Examples token by token --- */

typedef struct painter {
    tm_buf *out;
    const tm_tokenizer *tok; /* NULL: ids are shown */
    bool color;
} painter;

/* Text with line ends and other controls made visible; a line end also breaks the line. */
static void put_visible(tm_buf *out, const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\n')
            tm_buf_text(out, "\\n\n");
        else if (c == '\t')
            tm_buf_text(out, "\\t");
        else if (c < 32 || c == 127)
            tm_buf_printf(out, "\\x%02x", c);
        else
            tm_buf_char(out, (char)c);
    }
}

/* One token, or the few that make a character together. */
static void put_piece(const painter *p, const char *text, size_t size, bool trained, bool special)
{
    if (p->color)
        tm_buf_text(p->out, special ? trained ? "\033[1;32m" : "\033[1;35m" : trained ? "\033[32m" : "\033[2m");
    else
        tm_buf_char(p->out, trained ? '[' : '{');
    put_visible(p->out, text, size);
    tm_buf_text(p->out, p->color ? "\033[0m" : trained ? "]" : "}");
}

/* What is not a whole character yet, at the end of a text or before a special token. */
static tm_status put_rest(const painter *p, tm_decode_stream *stream, bool trained, tm_error *err)
{
    tm_buf text = {0};
    size_t first = stream->context, count = stream->pending.count - first;
    tm_status st = count ? tm_tokenizer_decode(p->tok, stream->pending.id + first, count, false, &text, err) : TM_OK;
    if (st == TM_OK && text.size)
        put_piece(p, text.data, text.size, trained, false);
    tm_buf_deinit(&text);
    tm_decode_stream_deinit(stream);
    return st;
}

static tm_status put_example(const painter *p, const tm_example *e, tm_error *err)
{
    tm_decode_stream stream = {0};
    tm_buf text = {0};
    tm_status st = TM_OK;
    bool trained = false; /* any token of the character that is not whole yet */
    for (int32_t i = 0; i < e->n; i++) {
        bool target = e->weight ? e->weight[i] > 0 : i > 0;
        tm_buf_clear(&text);
        if (!p->tok) {
            tm_buf_printf(&text, "%d", e->ids[i]);
            put_piece(p, text.data, text.size, target, false);
        } else if (tm_tokenizer_is_special(p->tok, e->ids[i])) {
            const char *name = tm_tokenizer_token(p->tok, e->ids[i]);
            TM_GO(put_rest(p, &stream, trained, err));
            put_piece(p, name, strlen(name), target, true);
            trained = false;
        } else {
            trained |= target;
            TM_GO(tm_decode_stream_push(&stream, p->tok, e->ids[i], &text, err));
            if (!text.size)
                continue;
            put_piece(p, text.data, text.size, trained, false);
            trained = false;
        }
    }
    if (p->tok)
        st = put_rest(p, &stream, trained, err);
out:
    tm_decode_stream_deinit(&stream);
    tm_buf_deinit(&text);
    return st;
}

static tm_status put_examples(tm_buf *out, const tm_dataset *data, const tm_tokenizer *tok,
                              const tm_inspect_request *r, tm_error *err)
{
    painter p = {out, tok, r->color};
    int64_t count = r->batch < tm_dataset_count(data) ? r->batch : tm_dataset_count(data);
    if (!count)
        return TM_OK;
    tm_buf_text(out, "\ntokens: ");
    put_piece(&p, "trained on", 10, true, false);
    tm_buf_char(out, ' ');
    put_piece(&p, "masked", 6, false, false);
    tm_buf_text(out, "; tokens that make a character together stand together\n");
    for (int64_t i = 0; i < count; i++) {
        const tm_example *e = tm_dataset_at(data, i);
        tm_buf_printf(out, "\nexample %lld (%s:%lld): %d tokens, %d targets\n", (long long)i,
                      tm_dataset_file(data, e->source, e->file), (long long)e->line, e->n, e->targets);
        TM_TRY(put_example(&p, e, err));
        tm_buf_char(out, '\n');
    }
    return TM_OK;
}

/* --- Sizes --- */

static void put_lengths(tm_buf *out, const tm_dataset *data)
{
    int64_t bucket[32] = {0}, most = 1, shortest = INT64_MAX, longest = 0;
    for (int64_t i = 0; i < tm_dataset_count(data); i++) {
        int64_t n = tm_dataset_at(data, i)->n;
        int k = 0;
        while ((int64_t)1 << k < n)
            k++;
        most = ++bucket[k] > most ? bucket[k] : most;
        shortest = n < shortest ? n : shortest;
        longest = n > longest ? n : longest;
    }
    if (!longest)
        return;
    tm_buf_printf(out, "lengths     %lld to %lld tokens\n", (long long)shortest, (long long)longest);
    for (int k = 0; k < 32; k++) {
        if (!bucket[k])
            continue;
        tm_buf_printf(out, "%11s up to %-8lld %8lld ", "", (long long)1 << k, (long long)bucket[k]);
        for (int64_t i = 0; i < (bucket[k] * 40 + most - 1) / most; i++)
            tm_buf_char(out, '#');
        tm_buf_char(out, '\n');
    }
}

static void put_stats(tm_buf *out, const tm_recipe *recipe, const tm_dataset *data)
{
    for (int64_t i = 0; i < tm_dataset_sources(data); i++) {
        const tm_dataset_stats *s = tm_dataset_stats_of(data, i);
        tm_buf_printf(
            out, "data        %s\nrows        %lld, examples %lld\ntokens      %lld, of these %lld targets (%.1f %%)\n",
            recipe->data[i].path, (long long)s->rows, (long long)s->examples, (long long)s->tokens,
            (long long)s->targets, s->tokens ? 100.0 * (double)s->targets / (double)s->tokens : 0);
        if (s->text_bytes && s->targets)
            tm_buf_printf(out, "text        %lld bytes of targets, %.2f bytes a token\n", (long long)s->text_bytes,
                          (double)s->text_bytes / (double)s->targets);
        if (s->cut)
            tm_buf_printf(out,
                          "cut         %lld rows longer than train.seq = %lld tokens (%lld dropped: no target left)\n",
                          (long long)s->cut, (long long)recipe->seq, (long long)s->dropped);
        if (s->duplicates)
            tm_buf_printf(out, "duplicates  %lld examples left out\n", (long long)s->duplicates);
    }
    put_lengths(out, data);
}

/* Without a tokenizer: lines, and how the first ones begin. */
static tm_status put_lines(tm_buf *out, const char *path, tm_error *err)
{
    enum { LINES = 3, BYTES = 200 };
    tm_map map;
    TM_TRY(tm_map_open(path, &map, err));
    const char *at = map.data, *end = map.data + map.size, *newline;
    int64_t lines = 0;
    for (const char *k = at; k < end && (newline = memchr(k, '\n', (size_t)(end - k))); k = newline + 1)
        lines++;
    tm_buf_printf(out, "data        %s\nsize        %zu bytes, %lld lines\n", path, map.size,
                  (long long)(lines + (map.size && end[-1] != '\n')));
    for (int i = 0; i < LINES && at < end; i++) {
        newline = memchr(at, '\n', (size_t)(end - at));
        size_t size = (size_t)((newline ? newline : end) - at), shown = size < BYTES ? size : BYTES;
        size_t whole = tm_utf8_prefix(at, shown); /* never a part of a character */
        tm_buf_printf(out, "%-11s ", i ? "" : "begins");
        put_visible(out, at, whole);
        tm_buf_text(out, size > shown ? " ...\n" : "\n");
        at += size + 1;
    }
    tm_buf_text(out, "            (--model DIR shows tokens, lengths and targets)\n");
    tm_map_close(&map);
    return TM_OK;
}

/* --- Opening --- */

static tm_status load_recipe(const tm_inspect_request *r, bool recipe_file, tm_recipe **out, tm_error *err)
{
    tm_names list = {0};
    tm_buf line = {0};
    tm_status st = TM_OK;
    if (!recipe_file) {
        tm_buf_text(&line, "data.0.path=");
        tm_json_put_string(&line, r->path);
        TM_GO(tm_buf_check(&line, err));
        TM_GO(tm_names_add(&list, line.data, err));
    }
    if (r->model) {
        tm_buf_clear(&line);
        tm_buf_text(&line, "model=");
        tm_json_put_string(&line, r->model);
        TM_GO(tm_buf_check(&line, err));
        TM_GO(tm_names_add(&list, line.data, err));
    }
    for (size_t i = 0; i < r->override_count; i++)
        TM_GO(tm_names_add(&list, r->overrides[i], err));
    st = tm_recipe_load(recipe_file ? r->path : NULL, list.item, (size_t)list.count, out, err);
out:
    tm_buf_deinit(&line);
    tm_names_deinit(&list);
    return st;
}

static tm_status show(const tm_inspect_request *r, const tm_recipe *recipe, const tm_tokenizer *tok, tm_buf *out,
                      tm_error *err)
{
    tm_pool *pool = NULL;
    tm_dataset *data = NULL;
    char *cache = NULL;
    tm_status st = TM_OK;
    TM_GO(tm_pool_create((int)recipe->threads, &pool, err));
    TM_GO(tm_job_cache(recipe, &cache, err));
    tm_data_settings settings =
        tm_job_data_settings(recipe, tok, tok ? tm_tokenizer_vocab_size(tok) : INT32_MAX, cache);
    TM_GO(tm_dataset_load(recipe->data, recipe->data_count, &settings, pool, &data, err));
    put_stats(out, recipe, data);
    st = put_examples(out, data, tok, r, err);
out:
    tm_dataset_destroy(data);
    free(cache);
    tm_pool_destroy(pool);
    return st;
}

tm_status tm_inspect_data(const tm_inspect_request *r, bool recipe_file, tm_buf *out, tm_error *err)
{
    tm_recipe *recipe = NULL;
    tm_tokenizer *tok = NULL;
    tm_status st = TM_OK;
    TM_GO(load_recipe(r, recipe_file, &recipe, err));
    bool needed = false;
    for (int64_t i = 0; i < recipe->data_count; i++)
        needed |= recipe->data[i].format != TM_FORMAT_TOKENS;
    if (!recipe->data_count)
        TM_GO(tm_fail(err, TM_RECIPE, "%s: it has no data", r->path));
    if (recipe->model && tm_tokenizer_is_in(recipe->model))
        TM_GO(tm_tokenizer_open(recipe->model, &tok, err));
    else if (recipe->model && needed)
        TM_GO(tm_fail(err, TM_INPUT, "%s: it has no tokenizer", recipe->model));
    if (needed && !tok) {
        if (r->batch)
            TM_GO(tm_fail(err, TM_USAGE,
                          "--batch needs --model DIR, whose tokenizer reads the data (or data.0.format=tokens)"));
        st = put_lines(out, r->path, err);
    } else
        st = show(r, recipe, tok, out, err);
out:
    tm_tokenizer_close(tok);
    tm_recipe_destroy(recipe);
    return st;
}
