/* SentencePiece models as tokenizer.json. A BPE model of theirs merges the neighbours whose union has the
 * highest score, the leftmost of equals; as merges: every way to cut a piece into two, by falling score, then
 * by falling length of the left part. What SentencePiece does to user-defined and control pieces, added tokens
 * do: that is how transformers has it, and so the text behind such a token gets a mark for a space anew. */
#include "text/tokenizer_convert.h"

#include "base/base64.h"

#include <stdlib.h>
#include <string.h>

#define MARK "\xe2\x96\x81" /* U+2581, which stands for a space */

typedef struct cut {
    int32_t left, right;
    uint32_t left_chars, right_chars, order;
    float score;
} cut;

typedef struct cuts {
    cut *item;
    size_t count, capacity;
} cuts;

void tm_convert_added(tm_buf *json, bool first, const char *text, size_t size, int64_t id, bool special)
{
    tm_buf_printf(json, "%s{\"id\": %lld, \"content\": ", first ? "" : ",\n", (long long)id);
    tm_json_put_bytes(json, text, size);
    tm_buf_printf(json, ", \"single_word\": false, \"lstrip\": false, \"rstrip\": false, \"normalized\": false, \"special\": %s}",
                  special ? "true" : "false");
}

void tm_convert_post(tm_buf *json, int64_t before, int64_t after)
{
    int64_t id[2] = {before, after};
    if (before < 0 && after < 0) {
        tm_buf_text(json, "\"post_processor\": null,\n");
        return;
    }
    tm_buf_text(json, "\"post_processor\": {\"type\": \"TemplateProcessing\", \"single\": [");
    if (before >= 0)
        tm_buf_text(json, "{\"SpecialToken\": {\"id\": \"0\", \"type_id\": 0}}, ");
    tm_buf_text(json, "{\"Sequence\": {\"id\": \"A\", \"type_id\": 0}}");
    if (after >= 0)
        tm_buf_text(json, ", {\"SpecialToken\": {\"id\": \"1\", \"type_id\": 0}}");
    tm_buf_text(json, "], \"pair\": [], \"special_tokens\": {");
    const char *comma = "";
    for (int i = 0; i < 2; i++) {
        if (id[i] < 0)
            continue;
        tm_buf_printf(json, "%s\"%d\": {\"id\": \"%d\", \"ids\": [%lld], \"tokens\": [\"%d\"]}", comma, i, i, (long long)id[i], i);
        comma = ", ";
    }
    tm_buf_text(json, "}},\n");
}

/* ---- merges ---- */

static bool merges_into(const tm_spm_piece *p)
{
    return p->type == TM_SPM_NORMAL || p->type == TM_SPM_USER_DEFINED || p->type == TM_SPM_UNUSED;
}

static int by_left_then_right(const void *a, const void *b)
{
    const cut *x = a, *y = b;
    return x->left != y->left ? (x->left > y->left) - (x->left < y->left) : (x->right > y->right) - (x->right < y->right);
}

static int by_score(const void *a, const void *b)
{
    const cut *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    if (x->left_chars != y->left_chars)
        return x->left_chars < y->left_chars ? 1 : -1;
    if (x->right_chars != y->right_chars)
        return x->right_chars < y->right_chars ? 1 : -1;
    return (x->order > y->order) - (x->order < y->order);
}

static uint32_t count_chars(const char *text, size_t size)
{
    uint32_t n = 0;
    for (size_t i = 0; i < size; i++)
        n += ((uint8_t)text[i] & 0xc0) != 0x80;
    return n;
}

static tm_status cut_piece(const tm_spm_piece *p, const tm_vocab *vocab, cuts *all, tm_error *err)
{
    size_t before = all->count, len;
    uint32_t chars = count_chars(p->text, p->size), left_chars = 0;
    tm_utf8_at(p->text, &len);
    for (size_t at = len; at < p->size; at += len) {
        int32_t left = tm_vocab_find(vocab, p->text, at);
        int32_t right = left < 0 ? -1 : tm_vocab_find(vocab, p->text + at, p->size - at);
        left_chars++;
        tm_utf8_at(p->text + at, &len);
        if (right < 0)
            continue;
        TM_TRY(TM_GROW(&all->item, &all->capacity, all->count + 1, err));
        all->item[all->count++] = (cut){left, right, left_chars, chars - left_chars, 0, p->score};
    }
    if (all->count > before)
        qsort(all->item + before, all->count - before, sizeof *all->item, by_left_then_right);
    return TM_OK;
}

static tm_status find_cuts(const tm_spm *spm, cuts *all, tm_error *err)
{
    tm_vocab vocab = {0};
    tm_status st = TM_OK;
    for (size_t i = 0; st == TM_OK && i < spm->count; i++)
        st = tm_vocab_add(&vocab, spm->piece[i].text, spm->piece[i].size, (int32_t)i, TM_TOKEN_MODEL, err);
    for (size_t i = 0; st == TM_OK && i < spm->count; i++)
        if (merges_into(&spm->piece[i]))
            st = cut_piece(&spm->piece[i], &vocab, all, err);
    if (st == TM_OK && all->count > UINT32_MAX)
        st = tm_fail(err, TM_INPUT, "the pieces give more than 4,294,967,295 merges");
    for (size_t i = 0; st == TM_OK && i < all->count; i++)
        all->item[i].order = (uint32_t)i;
    if (st == TM_OK && all->count)
        qsort(all->item, all->count, sizeof *all->item, by_score);
    tm_vocab_deinit(&vocab);
    return st;
}

/* ---- the parts ---- */

static void put_piece(tm_buf *json, const tm_spm_piece *p) { tm_json_put_bytes(json, p->text, p->size); }

static tm_status put_bpe(const tm_spm *spm, tm_buf *json, tm_error *err)
{
    cuts all = {0};
    tm_status st = find_cuts(spm, &all, err);
    tm_buf_text(json, "\"model\": {\"type\": \"BPE\", \"unk_token\": ");
    if (spm->unk >= 0)
        put_piece(json, &spm->piece[spm->unk]);
    else
        tm_buf_text(json, "null");
    tm_buf_printf(json, ", \"fuse_unk\": true, \"byte_fallback\": %s,\n\"vocab\": {", spm->byte_fallback ? "true" : "false");
    for (size_t i = 0; i < spm->count; i++) {
        tm_buf_text(json, i ? ",\n" : "\n");
        put_piece(json, &spm->piece[i]);
        tm_buf_printf(json, ": %zu", i);
    }
    tm_buf_text(json, "},\n\"merges\": [");
    for (size_t i = 0; st == TM_OK && i < all.count; i++) {
        tm_buf_text(json, i ? ",\n[" : "\n[");
        put_piece(json, &spm->piece[all.item[i].left]);
        tm_buf_text(json, ", ");
        put_piece(json, &spm->piece[all.item[i].right]);
        tm_buf_char(json, ']');
    }
    tm_buf_text(json, "]}}\n");
    free(all.item);
    return st;
}

static void put_unigram(const tm_spm *spm, int extra_ids, tm_buf *json)
{
    tm_buf_printf(json, "\"model\": {\"type\": \"Unigram\", \"unk_id\": %d, \"byte_fallback\": %s,\n\"vocab\": [", spm->unk,
                  spm->byte_fallback ? "true" : "false");
    for (size_t i = 0; i < spm->count; i++) {
        tm_buf_text(json, i ? ",\n[" : "\n[");
        put_piece(json, &spm->piece[i]);
        tm_buf_text(json, ", ");
        tm_json_put_number(json, (double)spm->piece[i].score);
        tm_buf_char(json, ']');
    }
    for (int i = extra_ids - 1; i >= 0; i--)
        tm_buf_printf(json, ",\n[\"<extra_id_%d>\", 0]", i);
    tm_buf_text(json, "]}}\n");
}

static void put_replace(tm_buf *json, const char *kind, const char *pattern, const char *content)
{
    tm_buf_printf(json, "{\"type\": \"Replace\", \"pattern\": {\"%s\": \"%s\"}, \"content\": \"%s\"}", kind, pattern, content);
}

static void put_normalizer(const tm_spm *spm, bool prepend, bool replace, tm_buf *json)
{
    const char *comma = "";
    tm_buf_text(json, "\"normalizer\": {\"type\": \"Sequence\", \"normalizers\": [");
    if (spm->charsmap_size) {
        tm_buf_text(json, "{\"type\": \"Precompiled\", \"precompiled_charsmap\": \"");
        tm_base64_encode(spm->charsmap, spm->charsmap_size, json);
        tm_buf_text(json, "\", \"longest_match\": true}");
        comma = ",\n";
    }
    if (spm->remove_extra_spaces) {
        tm_buf_text(json, comma);
        put_replace(json, "Regex", "\\\\A +| +\\\\z", "");
        tm_buf_text(json, ",\n");
        put_replace(json, "Regex", " {2,}", " ");
        comma = ",\n";
    }
    if (prepend) {
        tm_buf_printf(json, "%s{\"type\": \"Prepend\", \"prepend\": \"%s\"}", comma, spm->escape_spaces ? MARK : " ");
        comma = ",\n";
    }
    if (replace) {
        tm_buf_text(json, comma);
        put_replace(json, "String", " ", MARK);
    }
    tm_buf_text(json, "]},\n");
}

static void put_decoder(const tm_spm *spm, bool strip, tm_buf *json)
{
    tm_buf_text(json, "\"decoder\": {\"type\": \"Sequence\", \"decoders\": [");
    put_replace(json, "String", MARK, " ");
    tm_buf_printf(json, ",%s {\"type\": \"Fuse\"}", spm->byte_fallback ? " {\"type\": \"ByteFallback\"}," : "");
    if (strip)
        tm_buf_text(json, ", {\"type\": \"Strip\", \"content\": \" \", \"start\": 1, \"stop\": 0}");
    tm_buf_text(json, "]},\n");
}

static void put_added(const tm_spm *spm, int extra_ids, tm_buf *json)
{
    bool first = true;
    tm_buf_text(json, "{\"version\": \"1.0\",\n\"added_tokens\": [\n");
    for (size_t i = 0; i < spm->count; i++) {
        const tm_spm_piece *p = &spm->piece[i];
        if (p->type != TM_SPM_UNKNOWN && p->type != TM_SPM_CONTROL && p->type != TM_SPM_USER_DEFINED)
            continue;
        tm_convert_added(json, first, p->text, p->size, (int64_t)i, p->type != TM_SPM_USER_DEFINED);
        first = false;
    }
    for (int i = extra_ids - 1; i >= 0; i--) {
        char text[32];
        int size = snprintf(text, sizeof text, "<extra_id_%d>", i);
        tm_convert_added(json, first, text, (size_t)size, (int64_t)spm->count + extra_ids - 1 - i, true);
        first = false;
    }
    tm_buf_text(json, "],\n");
}

tm_status tm_convert_spm(const tm_spm *spm, const tm_convert_options *options, const char *name, tm_buf *json, tm_error *err)
{
    bool bpe = spm->model == TM_SPM_BPE;
    bool prefix = options->add_prefix_space >= 0 ? options->add_prefix_space : spm->dummy_prefix;
    bool first_only = options->legacy == 0;
    int extra = options->extra_ids > 0 && !bpe ? options->extra_ids : 0;
    if (!bpe && spm->model != TM_SPM_UNIGRAM)
        return tm_fail(err, TM_UNSUPPORTED, "%s: a SentencePiece model of type %d, expected 1 (Unigram) or 2 (BPE)", name, spm->model);
    if (spm->whitespace_suffix)
        return tm_fail(err, TM_UNSUPPORTED, "%s: \"treat_whitespace_as_suffix\" is set, which is not supported", name);
    put_added(spm, extra, json);
    put_normalizer(spm, prefix && !first_only, spm->escape_spaces && !first_only, json);
    if (first_only)
        tm_buf_printf(json, "\"pre_tokenizer\": {\"type\": \"Metaspace\", \"replacement\": \"" MARK "\", \"prepend_scheme\": \"%s\", "
                      "\"split\": false},\n", prefix ? "first" : "never");
    put_decoder(spm, prefix, json);
    tm_convert_post(json, options->add_bos > 0 ? spm->bos : -1, options->add_eos > 0 ? spm->eos : -1);
    if (bpe)
        TM_TRY(put_bpe(spm, json, err));
    else
        put_unigram(spm, extra, json);
    return tm_buf_check(json, err);
}
