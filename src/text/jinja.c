/* Templates from the outside: see jinja.h. */
#include "text/jinja_parts.h"

#include <stdlib.h>

/* ---- names ---- */

typedef struct name_slot {
    const char *text;
    size_t size;
} name_slot;

struct jj_names {
    name_slot *slot; /* open addressing; capacity is a power of two */
    size_t count, capacity;
};

static size_t place(const struct jj_names *names, const char *text, size_t size)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; i++)
        h = (h ^ (uint8_t)text[i]) * 0x100000001b3u;
    size_t at = h & (names->capacity - 1);
    while (names->slot[at].text && (names->slot[at].size != size || memcmp(names->slot[at].text, text, size) != 0))
        at = (at + 1) & (names->capacity - 1);
    return at;
}

static bool grow(tm_jinja *t)
{
    struct jj_names old = *t->names;
    t->names->capacity = old.capacity ? 2 * old.capacity : 64;
    t->names->slot = jj_pool_take(&t->pool, t->names->capacity * sizeof *old.slot);
    if (!t->names->slot) {
        *t->names = old;
        return false;
    }
    for (size_t i = 0; i < old.capacity; i++)
        if (old.slot[i].text)
            t->names->slot[place(t->names, old.slot[i].text, old.slot[i].size)] = old.slot[i];
    return true;
}

const char *jj_intern(tm_jinja *t, const char *text, size_t size)
{
    if (2 * t->names->count >= t->names->capacity && !grow(t))
        return NULL;
    name_slot *slot = &t->names->slot[place(t->names, text, size)];
    if (!slot->text) {
        char *copy = jj_pool_take(&t->pool, size + 1);
        if (!copy)
            return NULL;
        memcpy(copy, text, size);
        *slot = (name_slot){copy, size};
        t->names->count++;
    }
    return slot->text;
}

/* ---- templates ---- */

static tm_status prepare(tm_jinja *t, const char *name, tm_error *err)
{
    t->pool.limit = TM_JINJA_MAX_MEMORY;
    t->name = tm_strdup(name, err);
    if (!t->name)
        return TM_NO_MEMORY;
    t->names = jj_pool_take(&t->pool, sizeof *t->names);
    if (!t->names || !(t->loop = jj_intern(t, "loop", 4)) || !(t->caller = jj_intern(t, "caller", 6)) ||
        !(t->varargs = jj_intern(t, "varargs", 7)) || !(t->kwargs = jj_intern(t, "kwargs", 6)))
        return tm_fail(err, TM_NO_MEMORY, "%s: out of memory", name);
    return TM_OK;
}

tm_status tm_jinja_parse(const char *text, size_t size, const char *name, tm_jinja **out, tm_error *err)
{
    *out = NULL;
    if (size > TM_JINJA_MAX_BYTES)
        return tm_fail(err, TM_INPUT, "%s: a template of %zu bytes, expected at most %d", name, size, TM_JINJA_MAX_BYTES);
    size_t valid = tm_utf8_prefix(text, size);
    if (valid < size)
        return tm_fail(err, TM_INPUT, "%s: byte %zu of the template is not UTF-8", name, valid);
    tm_jinja *t;
    TM_TRY(TM_NEW(&t, 1, err));
    tm_status st = prepare(t, name, err);
    if (st == TM_OK)
        st = jj_parse(t, text, size, err);
    if (st != TM_OK) {
        tm_jinja_close(t);
        return st;
    }
    *out = t;
    return TM_OK;
}

void tm_jinja_close(tm_jinja *t)
{
    if (!t)
        return;
    jj_pool_deinit(&t->pool);
    free(t->name);
    free(t);
}

void tm_jinja_output_deinit(tm_jinja_output *out)
{
    tm_buf_deinit(&out->text);
    free(out->span);
    *out = (tm_jinja_output){0};
}

tm_status tm_jinja_render(const tm_jinja *t, const tm_jinja_context *context, tm_jinja_output *out, tm_error *err)
{
    jj_run r = {.t = t, .context = context, .result = out, .out = &out->text, .pool.limit = TM_JINJA_MAX_MEMORY, .line = 1, .err = err};
    tm_buf_clear(&out->text);
    out->spans = 0;
    out->unplaced = false;
    r.none.kind = JJ_NONE;
    r.yes = (jj_value){.kind = JJ_BOOL, .as.i = 1};
    r.no.kind = JJ_BOOL;
    r.empty = (jj_value){.kind = JJ_STRING, .as.s.text = ""};
    r.root = r.scope = jj_enter(&r, NULL);
    jj_end end = r.root ? jj_exec(&r, &t->body) : JJ_FAILED;
    if (end != JJ_FAILED && end != JJ_DONE)
        jj_fail(&r, "break or continue outside of a loop");
    jj_pool_deinit(&r.pool);
    return r.status;
}
