/* Precompiled character maps of SentencePiece: a double-array trie from character sequences to
 * zero-terminated texts. Layout: bytes of the trie (little-endian u32), its units (u32), the texts.
 * A unit: bits 0-7 and 31 label, bit 8 a value hangs below, bits 10-30 offset, shifted by 8 when bit 9
 * is set; a value: bits 0-30 (darts-clone).
 *
 * SentencePiece takes the longest match at every place; for its own files ("longest_match", a key of ours) so
 * do we. Hugging Face tokenizers do otherwise, and tokenizer.json means what they do: a grapheme of up to five
 * bytes is replaced by what its shortest prefix in the map stands for, the rest of it vanishing; without one,
 * and in longer graphemes, every character is looked up alone. So only graphemes that fit in five bytes need to
 * be found exactly. */
#include "text/tokenizer_parts.h"

#include "base/base64.h"

#include <stdlib.h>
#include <string.h>

enum { GRAPHEME_BYTES = 5 };

void tm_charsmap_deinit(tm_charsmap *map)
{
    free(map->unit);
    tm_buf_deinit(&map->texts);
    *map = (tm_charsmap){0};
}

static uint32_t read_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static tm_status parse_bytes(tm_charsmap *map, const void *bytes, size_t size, const char *name, tm_error *err)
{
    const uint8_t *p = bytes;
    size_t trie = size < 4 ? 0 : read_u32(p);
    if (size < 4 || trie % 4 || trie < 4 || trie > size - 4)
        return tm_fail(err, TM_INPUT, "%s: \"precompiled_charsmap\" is damaged: %zu bytes with a trie of %zu", name, size, trie);
    map->units = trie / 4;
    TM_TRY(TM_NEW(&map->unit, map->units, err));
    for (size_t i = 0; i < map->units; i++)
        map->unit[i] = read_u32(p + 4 + 4 * i);
    const char *texts = (const char *)p + 4 + trie;
    size_t texts_size = size - 4 - trie;
    if (tm_utf8_prefix(texts, texts_size) != texts_size)
        return tm_fail(err, TM_INPUT, "%s: \"precompiled_charsmap\" is damaged: its texts are no UTF-8", name);
    tm_buf_add(&map->texts, texts, texts_size);
    return tm_buf_check(&map->texts, err);
}

tm_status tm_charsmap_parse_json(tm_charsmap *map, const json_t *json, const char *name, tm_error *err)
{
    const json_t *value = json_object_get(json, "precompiled_charsmap");
    tm_buf bytes = {0};
    TM_TRY(tm_json_get_bool(json, name, "longest_match", false, &map->longest, err));
    if (!value || json_is_null(value) || (json_is_string(value) && !json_string_length(value)))
        return TM_OK; /* nothing is mapped */
    if (!json_is_string(value) || !tm_base64_decode(json_string_value(value), json_string_length(value), &bytes)) {
        tm_buf_deinit(&bytes);
        return tm_fail(err, TM_INPUT, "%s: \"precompiled_charsmap\" is no base64", name);
    }
    tm_status st = tm_buf_check(&bytes, err);
    if (st == TM_OK)
        st = parse_bytes(map, tm_buf_str(&bytes), bytes.size, name, err);
    tm_buf_deinit(&bytes);
    return st;
}

static size_t offset_of(uint32_t unit) { return (size_t)(unit >> 10) << ((unit & 1u << 9) >> 6); }

/* The text that the shortest (or longest) prefix of key in the map stands for, and the prefix's bytes; NULL: none. */
static const char *find_prefix(const tm_charsmap *map, const char *key, size_t size, bool longest, size_t *prefix,
                               size_t *text_size)
{
    const char *found = NULL;
    size_t at = map->units ? offset_of(map->unit[0]) : 0;
    for (size_t i = 0; i < size && key[i]; i++) {
        at ^= (uint8_t)key[i];
        if (at >= map->units || (map->unit[at] & (1u << 31 | 0xffu)) != (uint8_t)key[i])
            break;
        uint32_t unit = map->unit[at];
        at ^= offset_of(unit);
        if (!(unit & 1u << 8))
            continue;
        size_t start = at < map->units ? map->unit[at] & ~(1u << 31) : SIZE_MAX;
        if (start >= map->texts.size || ((uint8_t)map->texts.data[start] & 0xc0) == 0x80)
            break; /* damaged */
        const char *text = map->texts.data + start;
        found = text;
        *text_size = strlen(text);
        *prefix = i + 1;
        if (!longest)
            break;
    }
    return found;
}

static bool joins_left(uint32_t code)
{
    return code >= 0x300 && tm_ranges_have(tm_unicode_joins_left, tm_unicode_joins_left_count, code);
}

static bool joins_right(uint32_t code)
{
    return code >= 0x600 && tm_ranges_have(tm_unicode_joins_right, tm_unicode_joins_right_count, code);
}

static bool is_control(uint32_t code)
{
    if (code >= 0x20 && code < 0x7f)
        return false;
    return (TM_CAT(tm_unicode_category(code)) & (TM_CAT(TM_CC) | TM_CAT(TM_CF) | TM_CAT(TM_ZL) | TM_CAT(TM_ZP))) &&
           !joins_left(code) && !joins_right(code);
}

/* Bytes of the grapheme at s. Syllables of Hangul, pairs of flags and joined emoji take more than five
 * bytes whole; their characters come out one by one here, which gives the same. */
static size_t grapheme(const char *s, size_t size)
{
    size_t len, end;
    uint32_t code = tm_utf8_at(s, &len);
    if (code == '\r' && size > 1 && s[1] == '\n')
        return 2;
    if (size > len && (uint8_t)s[len] < 0x80 && code < 0x600)
        return len;
    for (end = len; joins_right(code) && end < size; end += len) {
        code = tm_utf8_at(s + end, &len);
        if (is_control(code))
            return end;
    }
    if (is_control(code))
        return end;
    while (end < size && joins_left(tm_utf8_at(s + end, &len)))
        end += len;
    return end;
}

/* A damaged map may end a key inside a character; what is replaced never does. */
static size_t whole_chars(const char *text, size_t size, size_t bytes)
{
    while (bytes < size && ((uint8_t)text[bytes] & 0xc0) == 0x80)
        bytes++;
    return bytes;
}

static bool replace_longest(const tm_charsmap *map, const char *text, size_t size, tm_buf *out)
{
    bool changed = false;
    for (size_t at = 0, bytes; at < size && tm_normal_fits(size, out->size); at += bytes) {
        size_t found_size;
        const char *found = find_prefix(map, text + at, size - at, true, &bytes, &found_size);
        changed |= found != NULL;
        if (found) {
            tm_buf_add(out, found, found_size);
            bytes = whole_chars(text + at, size - at, bytes);
        } else {
            tm_utf8_at(text + at, &bytes);
            tm_buf_add(out, text + at, bytes);
        }
    }
    return changed;
}

static bool replace_graphemes(const tm_charsmap *map, const char *text, size_t size, tm_buf *out)
{
    bool changed = false;
    for (size_t at = 0, bytes; at < size && tm_normal_fits(size, out->size); at += bytes) {
        size_t found_size, prefix, len;
        bytes = grapheme(text + at, size - at);
        const char *found = bytes <= GRAPHEME_BYTES ? find_prefix(map, text + at, bytes, false, &prefix, &found_size) : NULL;
        if (found) {
            tm_buf_add(out, found, found_size);
            changed = true;
            continue;
        }
        for (size_t i = at; i < at + bytes; i += len) {
            tm_utf8_at(text + i, &len);
            found = find_prefix(map, text + i, len, false, &prefix, &found_size);
            tm_buf_add(out, found ? found : text + i, found ? found_size : len);
            changed |= found != NULL;
        }
    }
    return changed;
}

tm_status tm_charsmap_run(const tm_charsmap *map, const char *text, size_t size, tm_buf *out, bool *changed, tm_error *err)
{
    *changed = map->longest ? replace_longest(map, text, size, out) : replace_graphemes(map, text, size, out);
    return tm_normal_fits(size, out->size) ? tm_buf_check(out, err) : tm_normal_too_long(size, err);
}
