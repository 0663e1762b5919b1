/* Scores of texts: see metrics.h. */
#include "train/metrics.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

static bool is_space(char c) { return c == ' ' || (c >= '\t' && c <= '\r'); }

static size_t trim(const char **text)
{
    while (is_space(**text))
        (*text)++;
    size_t n = strlen(*text);
    while (n && is_space((*text)[n - 1]))
        n--;
    return n;
}

bool tm_exact_match(const char *prediction, const char *reference)
{
    size_t n = trim(&prediction), m = trim(&reference);
    return n == m && memcmp(prediction, reference, n) == 0;
}

bool tm_extract_answer(const char *text, tm_buf *out)
{
    const char *at = strstr(text, "####");
    if (!at)
        return false;
    at += 4;
    while (*at == ' ' || *at == '\t')
        at++;
    const char *number = at + (*at == '$');
    number += *number == '-';
    if (*number == '$') /* -$5 */
        number++;
    bool is_number = (*number >= '0' && *number <= '9') || (*number == '.' && number[1] >= '0' && number[1] <= '9');
    size_t size = is_number ? 0 : strcspn(at, "\r\n");
    while (is_number && at[size] && strchr("-$0123456789.,", at[size]))
        size++;
    while (size && (is_space(at[size - 1]) || (is_number && (at[size - 1] == '.' || at[size - 1] == ','))))
        size--;
    for (size_t i = 0; i < size; i++)
        if (!is_number || (at[i] != ',' && at[i] != '$'))
            tm_buf_char(out, at[i]);
    return true;
}

/* --- Words as numbers: equal words of all texts added have equal numbers --- */

typedef struct words {
    tm_buf text;      /* every different word, zero-terminated */
    size_t *start;    /* [different] */
    size_t different, capacity;
} words;

typedef struct sequence {
    uint32_t *word;
    size_t count, capacity;
} sequence;

static void words_deinit(words *w)
{
    tm_buf_deinit(&w->text);
    free(w->start);
}

static tm_status add_word(words *w, const char *text, sequence *to, tm_error *err)
{
    size_t k = 0;
    while (k < w->different && strcmp(w->text.data + w->start[k], text) != 0)
        k++;
    if (k == w->different) {
        TM_TRY(TM_GROW(&w->start, &w->capacity, k + 1, err));
        w->start[w->different++] = w->text.size;
        tm_buf_add(&w->text, text, strlen(text) + 1);
        TM_TRY(tm_buf_check(&w->text, err));
    }
    TM_TRY(TM_GROW(&to->word, &to->capacity, to->count + 1, err));
    to->word[to->count++] = (uint32_t)k;
    return TM_OK;
}

static bool is_letter(utf8proc_int32_t point)
{
    utf8proc_category_t c = utf8proc_category(point);
    return (c >= UTF8PROC_CATEGORY_LU && c <= UTF8PROC_CATEGORY_LO) || (c >= UTF8PROC_CATEGORY_MN && c <= UTF8PROC_CATEGORY_ME) ||
           (c >= UTF8PROC_CATEGORY_ND && c <= UTF8PROC_CATEGORY_NO);
}

static bool is_blank(utf8proc_int32_t point)
{
    utf8proc_category_t c = utf8proc_category(point);
    return c == UTF8PROC_CATEGORY_ZS || c == UTF8PROC_CATEGORY_ZL || c == UTF8PROC_CATEGORY_ZP || c == UTF8PROC_CATEGORY_CC;
}

/* Splits a text; marks: what is neither letter, digit nor blank is a word of its own, else nothing. */
static tm_status split(words *w, const char *text, bool marks, sequence *to, tm_error *err)
{
    tm_buf word = {0};
    tm_status st = TM_OK;
    size_t size = strlen(text);
    for (size_t at = 0; at <= size;) {
        utf8proc_int32_t point = ' ';
        utf8proc_ssize_t n = at < size ? utf8proc_iterate((const utf8proc_uint8_t *)text + at, (utf8proc_ssize_t)(size - at), &point) : 1;
        at += n > 0 ? (size_t)n : 1;
        bool letter = n > 0 && is_letter(point), mark = marks && n > 0 && !letter && !is_blank(point);
        if (!letter && word.size) {
            TM_GO(add_word(w, word.data, to, err));
            tm_buf_clear(&word);
        }
        if (letter || mark) {
            utf8proc_uint8_t bytes[4];
            tm_buf_add(&word, bytes, (size_t)utf8proc_encode_char(utf8proc_tolower(point), bytes));
            TM_GO(tm_buf_check(&word, err));
        }
        if (mark) {
            TM_GO(add_word(w, word.data, to, err));
            tm_buf_clear(&word);
        }
    }
out:
    tm_buf_deinit(&word);
    return st;
}

static double f_measure(double precision, double recall)
{
    return precision + recall > 0 ? 2 * precision * recall / (precision + recall) : 0;
}

/* Length of the longest common subsequence, one row at a time. */
static tm_status common_length(const sequence *a, const sequence *b, size_t *out, tm_error *err)
{
    size_t *row;
    TM_TRY(TM_NEW(&row, b->count + 1, err));
    for (size_t i = 0; i < a->count; i++) {
        size_t corner = 0;
        for (size_t k = 1; k <= b->count; k++) {
            size_t above = row[k];
            if (a->word[i] == b->word[k - 1])
                row[k] = corner + 1;
            else if (row[k - 1] > row[k])
                row[k] = row[k - 1];
            corner = above;
        }
    }
    *out = row[b->count];
    free(row);
    return TM_OK;
}

tm_status tm_rouge_l(const char *prediction, const char *reference, double *out, tm_error *err)
{
    words w = {0};
    sequence p = {0}, r = {0};
    size_t common;
    tm_status st;
    *out = 0;
    TM_GO(split(&w, prediction, false, &p, err));
    TM_GO(split(&w, reference, false, &r, err));
    TM_GO(common_length(&p, &r, &common, err));
    if (common)
        *out = f_measure((double)common / (double)p.count, (double)common / (double)r.count);
out:
    words_deinit(&w);
    free(p.word);
    free(r.word);
    return st;
}

/* --- Counts of runs of words --- */

typedef struct gram { /* of one text set: source, prediction, references */
    uint32_t word[4];
    int64_t count[3];
} gram;

static int by_words(const void *a, const void *b) { return memcmp(((const gram *)a)->word, ((const gram *)b)->word, sizeof ((const gram *)a)->word); }

static void put_grams(const sequence *s, int n, int side, gram *out, size_t *count)
{
    for (size_t i = 0; i + (size_t)n <= s->count; i++) {
        gram *g = &out[(*count)++];
        memset(g, 0, sizeof *g);
        for (int k = 0; k < n; k++)
            g->word[k] = s->word[i + (size_t)k] + 1;
        g->count[side] = 1;
    }
}

/* Joins equal ones; gives how many are left. */
static size_t join_grams(gram *g, size_t count)
{
    size_t left = 0;
    qsort(g, count, sizeof *g, by_words);
    for (size_t i = 0; i < count; i++) {
        if (left && by_words(&g[left - 1], &g[i]) == 0) {
            for (int k = 0; k < 3; k++)
                g[left - 1].count[k] += g[i].count[k];
        } else
            g[left++] = g[i];
    }
    return left;
}

tm_status tm_token_f1(const char *prediction, const char *reference, double *out, tm_error *err)
{
    words w = {0};
    sequence p = {0}, r = {0};
    gram *grams = NULL;
    size_t count = 0;
    int64_t common = 0;
    tm_status st;
    *out = 0;
    TM_GO(split(&w, prediction, true, &p, err));
    TM_GO(split(&w, reference, true, &r, err));
    TM_GO(TM_NEW(&grams, p.count + r.count, err));
    put_grams(&p, 1, 0, grams, &count);
    put_grams(&r, 1, 1, grams, &count);
    count = join_grams(grams, count);
    for (size_t i = 0; i < count; i++)
        common += grams[i].count[0] < grams[i].count[1] ? grams[i].count[0] : grams[i].count[1];
    if (common)
        *out = f_measure((double)common / (double)p.count, (double)common / (double)r.count);
out:
    words_deinit(&w);
    free(p.word);
    free(r.word);
    free(grams);
    return st;
}

/* --- SARI --- */

static double share(double part, double whole) { return whole > 0 ? part / whole : 1; } /* 0/0 is 1 */
static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t beyond(int64_t a, int64_t b) { return a > b ? a - b : 0; }

/* Of the runs of one length: the mean of keep, delete and add. S, C, R: counts in source and prediction, each times
 * the number of references, and in all references. */
static double sari_of(const gram *g, size_t count, int64_t references)
{
    double keep = 0, keep_good = 0, delete = 0;
    int64_t kept = 0, keepable = 0, deleted = 0, added = 0, added_good = 0, addable = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t S = g[i].count[0] * references, C = g[i].count[1] * references, R = g[i].count[2];
        int64_t both = least(S, C), gone = beyond(S, C);
        if (both) {
            kept++;
            keep += (double)least(both, R) / (double)both;
            keep_good += (double)least(both, R);
        }
        keepable += least(S, R);
        if (gone) {
            deleted++;
            delete += (double)beyond(gone, R) / (double)gone;
        }
        added += C > 0 && S == 0;
        added_good += C > 0 && S == 0 && R > 0;
        addable += R > 0 && S == 0;
    }
    return (f_measure(share(keep, (double)kept), share(keep_good, (double)keepable)) + share(delete, (double)deleted) +
            f_measure(share((double)added_good, (double)added), share((double)added_good, (double)addable))) / 3;
}

static void free_sequences(sequence *s, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        free(s[i].word);
    free(s);
}

tm_status tm_sari(const char *source, const char *prediction, const char *const *references, int64_t count, double *out, tm_error *err)
{
    words w = {0};
    sequence *text = NULL; /* source, prediction, references */
    gram *grams = NULL;
    size_t all = 0;
    tm_status st;
    *out = 0;
    TM_GO(TM_NEW(&text, count + 2, err));
    for (int64_t i = 0; i < count + 2; i++) {
        TM_GO(split(&w, i == 0 ? source : i == 1 ? prediction : references[i - 2], true, &text[i], err));
        all += text[i].count;
    }
    TM_GO(TM_NEW(&grams, all, err));
    for (int n = 1; n <= 4; n++) {
        size_t found = 0;
        for (int64_t i = 0; i < count + 2; i++)
            put_grams(&text[i], n, i < 2 ? (int)i : 2, grams, &found);
        found = join_grams(grams, found);
        *out += 100 * sari_of(grams, found, count) / 4;
    }
out:
    words_deinit(&w);
    free_sequences(text, text ? count + 2 : 0);
    free(grams);
    return st;
}
