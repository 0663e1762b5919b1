/* The world of forgetting.h as files: texts cut into rows, sums, and which rows make which file. */
#include "lab/forgetting.h"

#include "base/file.h"
#include "base/json.h"
#include "base/philox.h"
#include "io/compress.h"
#include "text/dataset.h"

#include <stdlib.h>
#include <string.h>

static const char *const part_names[TM_PARTS] = {"train", "valid", "test"};

/* A row of prose: it fits into 128 tokens of the tokenizer of the benchmark's model. */
enum { PROSE_BYTES = 300, RUSSIAN_BYTES = 400 };

int64_t tm_world_draw(uint64_t seed, uint32_t a, uint32_t b, uint32_t c, int64_t n)
{
    tm_philox p = tm_philox_at(tm_philox_key(seed, TM_PURPOSE_WORLD, 0, 0), a, b, c, 0);
    return (int64_t)tm_philox_below(p.word[0], p.word[1], (uint64_t)n);
}

void tm_world_row(tm_buf *out, const char *prompt, const char *completion, size_t completion_size)
{
    tm_buf_text(out, "{\"prompt\":");
    tm_json_put_string(out, prompt);
    tm_buf_text(out, ",\"completion\":");
    tm_json_put_bytes(out, completion, completion_size);
    tm_buf_text(out, "}\n");
}

/* --- Sums --- */

void tm_world_arithmetic(uint64_t seed, tm_buf out[TM_PARTS])
{
    static const struct kind {
        char sign;
        int most; /* operands are 1 .. most */
    } kinds[] = {{'+', 30}, {'-', 30}, {'*', 12}};
    for (int k = 0; k < 3; k++)
        for (int a = 1; a <= kinds[k].most; a++)
            for (int b = 1; b <= (kinds[k].sign == '-' ? a : kinds[k].most); b++) {
                int result = kinds[k].sign == '+' ? a + b : kinds[k].sign == '-' ? a - b : a * b;
                int64_t tenth = tm_world_draw(seed, 9, (uint32_t)k, (uint32_t)(100 * a + b), 10);
                char prompt[32], answer[16];
                snprintf(prompt, sizeof prompt, "%d %c %d =", a, kinds[k].sign, b);
                snprintf(answer, sizeof answer, " %d.", result);
                tm_world_row(&out[tenth == 0 ? TM_PART_TEST : tenth == 1 ? TM_PART_VALID : TM_PART_TRAIN], prompt, answer, strlen(answer));
            }
}

/* --- Texts --- */

/* The beginning of a line at or after `at`. */
static size_t line_start(const char *text, size_t size, size_t at)
{
    while (at > 0 && at < size && text[at - 1] != '\n')
        at++;
    return at < size ? at : size;
}

/* The end of a row that begins at `at`: the last paragraph's, else line's, else word's end within the limit. */
static size_t row_end(const char *text, size_t at, size_t end, size_t bytes)
{
    if (end - at <= bytes)
        return end;
    size_t line = 0, word = 0;
    for (size_t i = at + bytes; i > at + 1; i--) {
        if (text[i - 1] == '\n' && text[i - 2] == '\n')
            return i;
        if (text[i - 1] == '\n' && !line)
            line = i;
        if (text[i - 1] == ' ' && !word)
            word = i;
    }
    return line ? line : word ? word : end; /* no space in so many bytes: no text that is cut here */
}

void tm_world_prose(const char *text, size_t size, double from, double to, size_t bytes, tm_buf *out)
{
    size_t at = line_start(text, size, (size_t)(from * (double)size)), end = line_start(text, size, (size_t)(to * (double)size));
    while (at < end) {
        while (at < end && strchr("\n ", text[at]))
            at++;
        size_t stop = row_end(text, at, end, bytes), last = stop;
        while (last > at && strchr("\n ", text[last - 1]))
            last--;
        if (last > at)
            tm_world_row(out, "", text + at, last - at);
        at = stop;
    }
}

static tm_status read_text(const char *path, tm_buf *out, tm_error *err)
{
    enum { PIECE = 1 << 16, MOST = 64 << 20 };
    tm_stream *stream;
    TM_TRY(tm_stream_open(path, &stream, err));
    tm_status st = TM_OK;
    for (size_t got = PIECE; got == PIECE && st == TM_OK;) {
        char *to = tm_buf_reserve(out, PIECE);
        if (!to || out->size > MOST)
            st = to ? tm_fail(err, TM_INPUT, "%s: more than 64 MiB of text", path) : tm_buf_check(out, err);
        else if ((st = tm_stream_read(stream, to, PIECE, &got, err)) == TM_OK)
            out->size += got;
    }
    tm_stream_close(stream);
    return st;
}

/* --- Files --- */

static tm_status write_part(const char *dir, const char *folder, const char *stem, const char *part, const tm_buf *rows, tm_error *err)
{
    char path[4096];
    TM_TRY(tm_buf_check(rows, err));
    if (snprintf(path, sizeof path, "%s/%s", dir, folder) >= (int)sizeof path - 64)
        return tm_fail(err, TM_USAGE, "%s: the name is too long", dir);
    TM_TRY(tm_dir_create(path, err));
    snprintf(path + strlen(path), 64, "/%s%s%s.jsonl", stem, *stem ? "-" : "", part);
    return tm_file_write(path, tm_buf_str(rows), rows->size, err);
}

/* Rows of `from`, in the order of the seed, until `bytes` of them are there. */
static tm_status add_shuffled(const tm_buf *from, uint64_t seed, uint32_t place, size_t bytes, tm_buf *out, tm_error *err)
{
    int64_t count = 0, n = 0, *order = NULL;
    const char **line = NULL, *text = tm_buf_str(from);
    for (size_t i = 0; i < from->size; i++)
        count += text[i] == '\n';
    tm_status st = TM_OK;
    TM_GO(TM_NEW(&order, count, err));
    TM_GO(TM_NEW(&line, count + 1, err));
    for (line[0] = text; n < count; n++)
        line[n + 1] = strchr(line[n], '\n') + 1;
    tm_permutation(tm_philox_key(seed, TM_PURPOSE_WORLD, 1, place), count, order);
    size_t start = out->size;
    for (int64_t i = 0; i < count && out->size - start < bytes; i++)
        tm_buf_add(out, line[order[i]], (size_t)(line[order[i] + 1] - line[order[i]]));
    st = tm_buf_check(out, err);
out:
    free(order);
    free(line);
    return st;
}

/* Writes and empties the rows of all parts; tests in an order of their own, so that their first rows stand for all. */
static tm_status write_parts(const tm_world *w, const char *dir, const char *folder, const char *stem, tm_buf rows[TM_PARTS], tm_error *err)
{
    tm_status st = TM_OK;
    for (int p = 0; p < TM_PARTS; p++) {
        tm_buf shuffled = {0};
        if (st == TM_OK && p != TM_PART_TRAIN && (st = tm_buf_check(&rows[p], err)) == TM_OK)
            st = add_shuffled(&rows[p], w->seed, 3, SIZE_MAX, &shuffled, err);
        if (st == TM_OK)
            st = write_part(dir, folder, stem, part_names[p], p == TM_PART_TRAIN ? &rows[p] : &shuffled, err);
        tm_buf_clear(&rows[p]);
        tm_buf_deinit(&shuffled);
    }
    return st;
}

/* What replay sees: the facts that stay true, and as much prose. */
static tm_status write_replay(const tm_world *w, const tm_buf *english, const char *dir, tm_error *err)
{
    tm_buf facts[TM_PARTS] = {{0}}, prose = {0}, both = {0}, rows = {0};
    tm_world_people(w, 0, w->people, TM_FACTS_KEPT, facts);
    tm_world_prose(tm_buf_str(english), english->size, 0, 0.7, PROSE_BYTES, &prose);
    tm_status st;
    TM_GO(tm_buf_check(&prose, err));
    TM_GO(tm_buf_check(&facts[TM_PART_TRAIN], err));
    tm_buf_add(&both, facts[TM_PART_TRAIN].data, facts[TM_PART_TRAIN].size);
    TM_GO(tm_buf_check(&both, err));
    TM_GO(add_shuffled(&prose, w->seed, 1, both.size, &both, err));
    TM_GO(add_shuffled(&both, w->seed, 2, SIZE_MAX, &rows, err));
    TM_GO(write_part(dir, "old", "", "replay", &rows, err));
out:
    for (int p = 0; p < TM_PARTS; p++)
        tm_buf_deinit(&facts[p]);
    tm_buf_deinit(&prose);
    tm_buf_deinit(&both);
    tm_buf_deinit(&rows);
    return st;
}

/* A task's files, and select.jsonl: its validation rows and as many of the old, which configurations are chosen on. */
static tm_status write_task(const tm_world *w, const char *dir, const char *name, tm_buf rows[TM_PARTS], const tm_buf *old, tm_error *err)
{
    tm_buf select = {0};
    tm_status st;
    TM_GO(tm_buf_check(&rows[TM_PART_VALID], err));
    TM_GO(add_shuffled(&rows[TM_PART_VALID], w->seed, 4, SIZE_MAX, &select, err));
    TM_GO(add_shuffled(old, w->seed, 5, rows[TM_PART_VALID].size, &select, err));
    TM_GO(write_part(dir, name, "", "select", &select, err));
    TM_GO(write_parts(w, dir, name, "", rows, err));
out:
    tm_buf_deinit(&select);
    return st;
}

/* English text: what is pretrained on, what the last task brings, and what they are held against. */
static void add_english(const tm_buf *text, double train, double to, double valid, double test, tm_buf rows[TM_PARTS])
{
    static const double share = 0.015;
    tm_world_prose(tm_buf_str(text), text->size, train, to, PROSE_BYTES, &rows[TM_PART_TRAIN]);
    tm_world_prose(tm_buf_str(text), text->size, valid, valid + share, PROSE_BYTES, &rows[TM_PART_VALID]);
    tm_world_prose(tm_buf_str(text), text->size, test, test + share, PROSE_BYTES, &rows[TM_PART_TEST]);
}

/* Training has all facts as they were then, tests ask for those that stay true; old[0]: valid facts, old[1]: valid prose. */
static tm_status write_old(const tm_world *w, const tm_buf *english, const char *dir, tm_buf rows[TM_PARTS], tm_buf old[2], tm_error *err)
{
    tm_buf all[TM_PARTS] = {{0}};
    tm_world_people(w, 0, w->people, TM_FACTS_ALL, all);
    tm_world_people(w, 0, w->people, TM_FACTS_KEPT, rows);
    tm_buf_deinit(&rows[TM_PART_TRAIN]);
    rows[TM_PART_TRAIN] = all[TM_PART_TRAIN];
    tm_buf_deinit(&all[TM_PART_VALID]);
    tm_buf_deinit(&all[TM_PART_TEST]);
    tm_buf_add(&old[0], rows[TM_PART_VALID].data, rows[TM_PART_VALID].size);
    TM_TRY(write_parts(w, dir, "old", "people", rows, err));
    add_english(english, 0, 0.7, 0.90, 0.94, rows);
    tm_buf_add(&old[1], rows[TM_PART_VALID].data, rows[TM_PART_VALID].size);
    TM_TRY(write_parts(w, dir, "old", "prose", rows, err));
    TM_TRY(tm_buf_check(&old[0], err));
    TM_TRY(tm_buf_check(&old[1], err));
    return write_replay(w, english, dir, err);
}

tm_status tm_world_write(const tm_world *w, const char *dir, tm_error *err)
{
    tm_buf rows[TM_PARTS] = {{0}}, old[2] = {{0}}, english = {0}, russian = {0}, russian_test = {0};
    tm_status st;
    if (w->people < 2 || w->new_people < 1 || w->people + w->new_people > TM_NAMES_MOST)
        return tm_fail(err, TM_USAGE, "%lld people and %lld new ones: expected 2 and 1 or more, and at most %d together",
                       (long long)w->people, (long long)w->new_people, TM_NAMES_MOST);
    TM_GO(read_text(w->english, &english, err));
    TM_GO(read_text(w->russian_train, &russian, err));
    TM_GO(read_text(w->russian_test, &russian_test, err));
    TM_GO(write_old(w, &english, dir, rows, old, err));
    tm_world_people(w, w->people, w->new_people, TM_FACTS_ALL, rows);
    TM_GO(write_task(w, dir, "people", rows, &old[0], err));
    tm_world_prose(tm_buf_str(&russian), russian.size, 0, 0.92, RUSSIAN_BYTES, &rows[TM_PART_TRAIN]);
    tm_world_prose(tm_buf_str(&russian), russian.size, 0.92, 1, RUSSIAN_BYTES, &rows[TM_PART_VALID]);
    tm_world_prose(tm_buf_str(&russian_test), russian_test.size, 0, 1, RUSSIAN_BYTES, &rows[TM_PART_TEST]);
    TM_GO(write_task(w, dir, "russian", rows, &old[1], err));
    tm_world_arithmetic(w->seed, rows);
    TM_GO(write_task(w, dir, "arithmetic", rows, &old[0], err));
    tm_world_people(w, 0, w->people, TM_FACTS_CHANGED, rows);
    TM_GO(write_task(w, dir, "conflict", rows, &old[0], err));
    add_english(&english, 0.7, 0.9, 0.92, 0.96, rows);
    TM_GO(write_task(w, dir, "style", rows, &old[1], err));
out:
    for (int p = 0; p < TM_PARTS; p++)
        tm_buf_deinit(&rows[p]);
    tm_buf_deinit(&old[0]);
    tm_buf_deinit(&old[1]);
    tm_buf_deinit(&english);
    tm_buf_deinit(&russian);
    tm_buf_deinit(&russian_test);
    return st;
}
