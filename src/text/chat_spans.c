/* Where in a rendered conversation the assistant speaks, for templates that do not say it themselves.
 *
 * A turn begins where the prompt for it ends, and ends where the conversation up to it ends:
 *   prompt  the messages before the turn, with add_generation_prompt
 *   before  the same without
 *   upto    the messages up to the turn
 * Where `prompt` or `upto` is no beginning of the whole text (templates that drop reasoning from earlier
 * turns, or move the system message), the turn's text is found by its difference: the whole is rendered once
 * more with the turn's content replaced by a mark; what differs is the content, and what `upto` has behind
 * its content is the end of the turn. The spans must then stand in the order of the turns, apart. */
#include "text/chat_parts.h"

#include "base/json.h"

#include "text/unicode.h"

#include <stdlib.h>
#include <string.h>

/* Characters nobody writes, at both ends, so that no real text agrees with them. */
#define MARK "\uf5a1x\uf5a2"

bool tm_chat_is_turn(const json_t *message)
{
    const char *role = json_string_value(json_object_get(message, "role"));
    return role && strcmp(role, "assistant") == 0;
}

bool tm_chat_is_trained(const json_t *message)
{
    const json_t *weight = json_object_get(message, "weight"), *train = json_object_get(message, "train");
    return !(json_is_number(weight) && json_number_value(weight) == 0) && !json_is_false(train);
}

tm_status tm_chat_span_add(tm_chat_text *text, size_t begin, size_t end, tm_error *err)
{
    TM_TRY(TM_GROW(&text->span, &text->span_capacity, text->spans + 1, err));
    text->span[text->spans++] = (tm_chat_span){begin, end};
    return TM_OK;
}

tm_status tm_chat_turns_render(const tm_chat_turns *t, size_t count, const json_t *last, bool generate, tm_jinja_output *out,
                               tm_error *err)
{
    json_t *list = json_array(), *frame = json_object();
    bool ok = list && frame;
    for (size_t i = 0; ok && i < count; i++)
        ok = json_array_append(list, i + 1 == count && last ? (json_t *)last : json_array_get(t->messages, i)) == 0;
    ok = ok && json_object_set(frame, "messages", list) == 0 &&
         json_object_set_new(frame, "add_generation_prompt", json_boolean(generate)) == 0;
    const json_t *objects[] = {frame, t->rest, t->tokens, t->row};
    tm_jinja_context context = {objects, 4, t->date};
    tm_status st = ok ? tm_jinja_render(t->template, &context, out, err) : tm_fail(err, TM_NO_MEMORY, "out of memory");
    json_decref(frame);
    json_decref(list);
    return st;
}

/* A rendering that may fail because the template wants more messages: then there is none. */
static tm_status attempt(const tm_chat_turns *t, size_t count, const json_t *last, bool generate, tm_jinja_output *out, bool *there,
                         tm_error *err)
{
    tm_error refused;
    tm_status st = tm_chat_turns_render(t, count, last, generate, out, &refused);
    *there = st == TM_OK;
    return st == TM_NO_MEMORY ? tm_fail(err, st, "%s", refused.message) : TM_OK;
}

static size_t common(const char *a, size_t a_size, const char *b, size_t b_size)
{
    size_t n = a_size < b_size ? a_size : b_size, i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

static size_t common_end(const char *a, size_t a_size, const char *b, size_t b_size)
{
    size_t n = a_size < b_size ? a_size : b_size, i = 0;
    while (i < n && a[a_size - 1 - i] == b[b_size - 1 - i])
        i++;
    return i;
}

static bool begins(const tm_buf *text, const tm_buf *with)
{
    return with->size <= text->size && (!with->size || memcmp(text->data, with->data, with->size) == 0);
}

static bool middle_of_character(const tm_buf *text, size_t at)
{
    return at < text->size && ((unsigned char)text->data[at] & 0xc0) == 0x80;
}

/* ---- the ends of special tokens ---- */

/* Bytes of a special token that ends at `end` of text (not before begin); 0: none does. */
static size_t special_before(const tm_buf *specials, const tm_buf *text, size_t begin, size_t end)
{
    size_t longest = 0;
    for (size_t at = 0; at < specials->size; at += strlen(specials->data + at) + 1) {
        size_t n = strlen(specials->data + at);
        if (n > longest && n <= end - begin && memcmp(text->data + end - n, specials->data + at, n) == 0)
            longest = n;
    }
    return longest;
}

/* A turn ends with its last special token: a line end that the template writes behind it is nobody's. */
static size_t without_tail(const tm_buf *specials, const tm_buf *text, size_t begin, size_t end)
{
    size_t at = end;
    while (at > begin && strchr(" \t\r\n", text->data[at - 1]))
        at--;
    return at > begin && special_before(specials, text, begin, at) ? at : end;
}

/* ---- one turn ---- */

typedef struct turn {
    const tm_chat_turns *all;
    const tm_buf *text;
    size_t index;
    tm_jinja_output before, prompt, upto, marked;
    bool has_before, has_prompt, has_upto;
    json_t *mark;
    tm_error *err;
} turn;

static void turn_deinit(turn *t)
{
    tm_jinja_output_deinit(&t->before);
    tm_jinja_output_deinit(&t->prompt);
    tm_jinja_output_deinit(&t->upto);
    tm_jinja_output_deinit(&t->marked);
    json_decref(t->mark);
}

/* How much of `size` bytes that agree by what follows going another way is meant: up to a line end or a
 * special token, since a piece of a word may agree by chance. Neither there: otherwise. */
static size_t agreed(const turn *t, size_t from, size_t size, size_t otherwise)
{
    const tm_buf *specials = t->all->specials;
    for (size_t n = size; n > 0; n--)
        if (t->text->data[from + n - 1] == '\n' || special_before(specials, t->text, from, from + n))
            return n;
    return otherwise;
}

/* The turn's content as the whole text has it. *found: false when the template does not take the mark. */
static tm_status by_difference(turn *t, size_t *begin, size_t *end, bool *found)
{
    const tm_buf *text = t->text;
    const tm_chat_turns *all = t->all;
    if (!t->mark)
        t->mark = json_pack("{s:s, s:s}", "role", "assistant", "content", MARK);
    json_t *messages = t->mark ? tm_json_copy(all->messages, false) : NULL;
    if (!messages || json_array_set(messages, t->index, t->mark) != 0) {
        json_decref(messages);
        return tm_fail(t->err, TM_NO_MEMORY, "out of memory");
    }
    tm_chat_turns other = *all;
    other.messages = messages;
    tm_status st = attempt(&other, json_array_size(messages), NULL, false, &t->marked, found, t->err);
    json_decref(messages);
    TM_TRY(st);
    const tm_buf *marked = &t->marked.text;
    *found = *found && marked->size && memmem(marked->data, marked->size, "\uf5a1", 3);
    if (!*found)
        return TM_OK;
    *begin = common(text->data, text->size, marked->data, marked->size);
    while (*begin && middle_of_character(text, *begin))
        --*begin;
    size_t behind = common_end(text->data + *begin, text->size - *begin, marked->data + *begin, marked->size - *begin);
    *end = text->size - behind;
    while (*end < text->size && middle_of_character(text, *end))
        ++*end;
    return TM_OK;
}

/* What the template writes behind the turn's content, as far as the whole text has it at `end` too. */
static tm_status closing(turn *t, size_t end, size_t *size)
{
    bool there;
    const tm_buf *upto = &t->upto.text, *marked = &t->marked.text;
    *size = 0;
    TM_TRY(attempt(t->all, t->index + 1, t->mark, false, &t->marked, &there, t->err));
    if (!there || !t->has_upto || !upto->size || !marked->size)
        return TM_OK;
    size_t same = common(upto->data, upto->size, marked->data, marked->size);
    size_t tail = common_end(upto->data + same, upto->size - same, marked->data + same, marked->size - same);
    *size = common(upto->data + upto->size - tail, tail, t->text->data + end, t->text->size - end);
    if (*size < tail)
        *size = agreed(t, end, *size, 0);
    return TM_OK;
}

static tm_status find_turn(turn *t, size_t *begin, size_t *end, bool *found)
{
    const tm_chat_turns *all = t->all;
    const tm_buf *text = t->text, *prompt = &t->prompt.text, *before = &t->before.text;
    bool last = t->index + 1 == json_array_size(all->messages), different = false;
    size_t content_begin = 0, content_end = 0, behind;
    TM_TRY(attempt(all, t->index, NULL, true, &t->prompt, &t->has_prompt, t->err));
    bool straight = t->has_prompt && begins(text, prompt);
    if (!straight)
        TM_TRY(attempt(all, t->index, NULL, false, &t->before, &t->has_before, t->err));
    if (!last)
        TM_TRY(attempt(all, t->index + 1, NULL, false, &t->upto, &t->has_upto, t->err));
    bool begin_known = true, end_known = last || (t->has_upto && begins(text, &t->upto.text));
    *found = true;
    *end = last ? text->size : t->upto.text.size;
    if (straight) {
        *begin = prompt->size;
    } else if (t->has_prompt && t->has_before && begins(text, before) && begins(prompt, before)) {
        size_t same = common(prompt->data + before->size, prompt->size - before->size, text->data + before->size, text->size - before->size);
        *begin = before->size + agreed(t, before->size, same, same);
    } else {
        begin_known = false;
    }
    if (!begin_known || !end_known) {
        TM_TRY(by_difference(t, &content_begin, &content_end, &different));
        *found = different;
        if (!different)
            return TM_OK;
    }
    if (!begin_known)
        *begin = content_begin;
    if (!end_known) {
        TM_TRY(closing(t, content_end, &behind));
        *end = content_end + behind;
    }
    *end = *end > *begin ? without_tail(all->specials, text, *begin, *end) : *begin;
    return TM_OK;
}

tm_status tm_chat_turns_find(const tm_chat_turns *all, tm_chat_text *text, tm_error *err)
{
    size_t reached = 0;
    for (size_t i = 0; i < json_array_size(all->messages); i++) {
        const json_t *message = json_array_get(all->messages, i);
        if (!tm_chat_is_turn(message))
            continue;
        turn t = {.all = all, .text = &text->text, .index = i, .err = err};
        size_t begin = 0, end = 0;
        bool found;
        tm_status st = find_turn(&t, &begin, &end, &found);
        turn_deinit(&t);
        TM_TRY(st);
        if (!found)
            return tm_fail(err, TM_INPUT, "messages[%zu]: the template writes the assistant's text in a way that hides where it stands; "
                                          "mark it with {%% generation %%} blocks, or use loss: all", i);
        begin = begin > reached ? begin : reached;
        if (end <= begin)
            continue; /* a turn without text of its own */
        reached = end;
        if (tm_chat_is_trained(message))
            TM_TRY(tm_chat_span_add(text, begin, end, err));
    }
    return TM_OK;
}
