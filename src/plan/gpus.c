/* Names of GPUs: see gpus.h. */
#include "plan/gpus.h"

#include "base/buf.h"

#include <ctype.h>
#include <string.h>

static const tm_gpu table[] = {
#define BF16 true
#define F16 false
#define GPU(name_, names_, begins_, has_, mib, gb_s, tflops, half) {name_, names_, begins_, has_, (int64_t)(mib) << 20, 1e9 * (gb_s), 1e12 * (tflops), half},
#include "plan/gpus.def"
#undef GPU
};
enum { COUNT = sizeof table / sizeof *table };

const tm_gpu *tm_gpus(size_t *count)
{
    *count = COUNT;
    return table;
}

/* Letters and digits alone, small, without words that tell nothing. */
static void plain(const char *name, char out[64])
{
    static const char *const noise[] = {"nvidia", "geforce", "tesla"};
    size_t n = 0;
    for (; *name && n < 63; name++)
        if (isalnum((unsigned char)*name))
            out[n++] = (char)tolower((unsigned char)*name);
    out[n] = 0;
    for (size_t i = 0; i < sizeof noise / sizeof *noise; i++) {
        size_t size = strlen(noise[i]);
        if (strncmp(out, noise[i], size) == 0)
            memmove(out, out + size, strlen(out + size) + 1);
    }
}

static bool is_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = words; n && (at = strstr(at, word)); at += n)
        if ((at == words || at[-1] == ' ') && (at[n] == ' ' || !at[n]))
            return true;
    return false;
}

const tm_gpu *tm_gpu_find(const char *name)
{
    char wanted[64];
    plain(name, wanted);
    for (size_t i = 0; i < COUNT; i++)
        if (is_word(table[i].names, wanted))
            return &table[i];
    for (size_t i = 0; i < COUNT; i++)
        if (strncmp(wanted, table[i].begins, strlen(table[i].begins)) == 0 && strstr(wanted, table[i].has) && !strstr(wanted, "laptop"))
            return &table[i];
    return NULL;
}

tm_status tm_gpu_named(const char *name, const tm_gpu **out, tm_error *err)
{
    *out = tm_gpu_find(name);
    if (*out)
        return TM_OK;
    tm_buf list = {0};
    for (size_t i = 0; i < COUNT; i++)
        tm_buf_printf(&list, "%s%s", i ? ", " : "", table[i].name);
    tm_status st = tm_fail(err, TM_USAGE, "--gpu: found '%s', expected one of: %s", name, tm_buf_str(&list));
    tm_buf_deinit(&list);
    return st;
}
