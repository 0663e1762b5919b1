/* Opening: which files of a model folder make its tokenizer, in the order transformers prefers them, and what
 * the folder's settings add: tokens, the first and last token, what goes around a text. */
#include "text/tokenizer_convert.h"

#include "base/file.h"
#include "io/gguf.h"
#include "text/tokenizer_gguf.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

enum { SETTINGS_TOKENS = 1 << 16 };

/* The JSON files of settings beside the tokenizer; NULL: not there. */
typedef struct settings {
    const char *dir;
    json_t *config, *map, *added, *model; /* tokenizer_config, special_tokens_map, added_tokens, config */
    tm_convert_options options;
    char class[64];
    const char *bos, *eos; /* what a file that is no JSON says or its class has, where the settings are silent */
    int32_t bos_id, eos_id; /* the same by number; -1: not said */
} settings;

/* ---- settings ---- */

static tm_status read_optional(const char *dir, const char *file, json_t **out, tm_error *err)
{
    char *path = tm_path_join(dir, file, err);
    if (!path)
        return TM_NO_MEMORY;
    tm_status st = tm_path_exists(path) ? tm_json_read(path, out, err) : TM_OK;
    if (st == TM_OK && *out && !json_is_object(*out))
        st = tm_fail(err, TM_INPUT, "%s: not a JSON object", path);
    free(path);
    return st;
}

static int flag_of(const json_t *config, const char *key)
{
    const json_t *value = json_object_get(config, key);
    return json_is_boolean(value) ? json_is_true(value) : -1;
}

static tm_status settings_read(const char *dir, settings *s, tm_error *err)
{
    *s = (settings){.dir = dir, .options = TM_CONVERT_DEFAULTS, .bos_id = -1, .eos_id = -1};
    TM_TRY(read_optional(dir, "tokenizer_config.json", &s->config, err));
    TM_TRY(read_optional(dir, "special_tokens_map.json", &s->map, err));
    TM_TRY(read_optional(dir, "added_tokens.json", &s->added, err));
    TM_TRY(read_optional(dir, "config.json", &s->model, err));
    const char *class = json_string_value(json_object_get(s->config, "tokenizer_class"));
    const char *family = json_string_value(json_object_get(s->model, "model_type"));
    snprintf(s->class, sizeof s->class, "%s", class ? class : "");
    size_t size = strlen(s->class);
    if (size > 4 && !strcmp(s->class + size - 4, "Fast"))
        s->class[size - 4] = 0;
    if (!*s->class && family) /* as transformers does for a folder that does not say */
        snprintf(s->class, sizeof s->class, "%s", !strcmp(family, "gpt2")       ? "GPT2Tokenizer"
                                                  : !strncmp(family, "qwen2", 5) ? "Qwen2Tokenizer"
                                                                                 : "");
    s->options.legacy = flag_of(s->config, "legacy");
    s->options.add_prefix_space = flag_of(s->config, "add_prefix_space");
    s->options.add_bos = flag_of(s->config, "add_bos_token");
    s->options.add_eos = flag_of(s->config, "add_eos_token");
    const json_t *extra = json_object_get(s->config, "extra_ids");
    bool t5 = !strcmp(s->class, "T5Tokenizer");
    if (t5)
        s->options.extra_ids = json_is_integer(extra) && json_integer_value(extra) >= 0 && json_integer_value(extra) <= 10000
                                   ? (int)json_integer_value(extra) : 100;
    return TM_OK;
}

static void settings_deinit(settings *s)
{
    json_decref(s->config);
    json_decref(s->map);
    json_decref(s->added);
    json_decref(s->model);
}

/* ---- added tokens ---- */

/* The tree of a tokenizer.json, with ways to find a token in it. */
typedef struct tree {
    json_t *vocab;        /* the model's, an object or a list */
    json_t *ids;          /* text -> id of the model */
    json_t *added;        /* text -> its entry in "added_tokens" */
    json_t *list;         /* "added_tokens" */
    int64_t size, next;   /* tokens of the model; the next id of an added token */
    bool changed, failed;
} tree;

static void tree_deinit(tree *t)
{
    json_decref(t->ids);
    json_decref(t->added);
}

static const char *text_of(const json_t *token)
{
    return json_string_value(json_is_object(token) ? json_object_get(token, "content") : token);
}

/* What is not as it should be is left to the parser to name. */
static tree tree_of(json_t *root)
{
    tree t = {.vocab = json_object_get(json_object_get(root, "model"), "vocab"), .added = json_object()};
    t.list = json_object_get(root, "added_tokens");
    if (!json_is_array(t.list)) {
        t.list = json_array();
        t.failed |= json_object_set_new(root, "added_tokens", t.list) != 0;
    }
    if (json_is_array(t.vocab)) {
        t.ids = json_object();
        for (size_t i = 0; i < json_array_size(t.vocab); i++) {
            const char *text = json_string_value(json_array_get(json_array_get(t.vocab, i), 0));
            t.failed |= text && json_object_set_new(t.ids, text, json_integer((json_int_t)i)) != 0;
        }
    } else
        t.ids = json_incref(t.vocab);
    t.size = t.next = (int64_t)(json_is_array(t.vocab) ? json_array_size(t.vocab) : json_object_size(t.vocab));
    for (size_t i = 0; i < json_array_size(t.list); i++) {
        json_t *entry = json_array_get(t.list, i);
        const json_t *id = json_object_get(entry, "id");
        t.next += json_is_integer(id) && json_integer_value(id) == t.next;
        if (text_of(entry))
            t.failed |= json_object_set(t.added, text_of(entry), entry) != 0;
    }
    t.failed |= !t.added;
    return t;
}

static int64_t id_in_model(const tree *t, const char *text)
{
    const json_t *id = json_object_get(t->ids, text);
    return json_is_integer(id) ? (int64_t)json_integer_value(id) : -1;
}

static bool flag(const json_t *token, const char *key, bool fallback)
{
    const json_t *value = json_object_get(token, key);
    return json_is_boolean(value) ? json_is_true(value) : fallback;
}

/* Adds a token with the flags of `token` (an object or a text). Its id must be what the model or the order
 * gives; what could only get another id is left out, for the model has no row for it. */
static void add_token(tree *t, const char *text, const json_t *token, int64_t id, bool special)
{
    int64_t own = id_in_model(t, text);
    special = flag(token, "special", special);
    if (!*text || (id >= 0 ? id != (own >= 0 ? own : t->next) : own < 0))
        return;
    json_t *entry = json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)(own >= 0 ? own : t->next), "content", text,
                              "single_word", flag(token, "single_word", false), "lstrip", flag(token, "lstrip", false),
                              "rstrip", flag(token, "rstrip", false), "normalized", flag(token, "normalized", !special),
                              "special", special);
    t->failed |= json_object_set(t->added, text, entry) != 0;
    t->failed |= json_array_append_new(t->list, entry) != 0;
    t->next += own < 0;
    t->changed = true;
}

typedef struct numbered {
    int64_t id;
    const char *text;
    const json_t *token;
} numbered;

static int by_id(const void *a, const void *b)
{
    const numbered *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* The text of id in the model when it is an added token there; NULL: none. */
static const char *added_text(const tree *t, int64_t id)
{
    for (size_t i = 0; i < json_array_size(t->list); i++) {
        const json_t *entry = json_array_get(t->list, i), *value = json_object_get(entry, "id");
        if (json_is_integer(value) && json_integer_value(value) == id)
            return text_of(entry);
    }
    return NULL;
}

/* A place of the model that the settings give another name (a reserved one put to use). */
static void rename_place(tree *t, const numbered *n)
{
    const char *old = n->id < t->size && id_in_model(t, n->text) < 0 ? added_text(t, n->id) : NULL;
    if (!old || id_in_model(t, old) != n->id)
        return;
    json_t *entry = json_incref(json_object_get(t->added, old)), *text = json_string(n->text), *id = json_integer(n->id);
    json_object_del(t->ids, old);
    t->failed |= json_object_set_new(t->ids, n->text, id) != 0;
    if (json_is_array(t->vocab))
        t->failed |= json_array_set(json_array_get(t->vocab, (size_t)n->id), 0, text) != 0;
    json_object_del(t->added, old);
    t->failed |= json_object_set_new(entry, "content", text) != 0 || json_object_set(t->added, n->text, entry) != 0;
    json_decref(entry);
    t->changed = true;
}

static void set_flags(tree *t, json_t *entry, const json_t *token)
{
    static const char *const flags[] = {"single_word", "lstrip", "rstrip", "normalized", "special"};
    for (int f = 0; f < 5; f++) {
        json_t *value = json_object_get(token, flags[f]);
        if (!json_is_boolean(value) || json_equal(value, json_object_get(entry, flags[f])))
            continue;
        t->failed |= json_object_set(entry, flags[f], value) != 0;
        t->changed = true;
    }
}

/* Tokens that the settings number: "added_tokens_decoder" of tokenizer_config.json, added_tokens.json. converted:
 * the tree does not come from a tokenizer.json, whose own entries would count. */
static tm_status add_numbered(tree *t, const settings *s, bool converted, tm_error *err)
{
    const json_t *decoder = json_object_get(s->config, "added_tokens_decoder");
    size_t count = 0, most = json_object_size(decoder) + json_object_size(s->added);
    numbered *list;
    const char *key;
    json_t *value;
    if (most > SETTINGS_TOKENS)
        return tm_fail(err, TM_INPUT, "%s: the settings add %zu tokens, expected at most %d", s->dir, most, SETTINGS_TOKENS);
    TM_TRY(TM_NEW(&list, most, err));
    json_object_foreach((json_t *)decoder, key, value)
        if (text_of(value) && key[0] >= '0' && key[0] <= '9')
            list[count++] = (numbered){strtoll(key, NULL, 10), text_of(value), value};
    json_object_foreach(s->added, key, value)
        if (json_is_integer(value) && json_integer_value(value) >= 0)
            list[count++] = (numbered){json_integer_value(value), key, NULL};
    qsort(list, count, sizeof *list, by_id);
    for (size_t i = 0; i < count; i++) {
        if (converted && !json_object_get(t->added, list[i].text))
            rename_place(t, &list[i]);
        json_t *known = json_object_get(t->added, list[i].text);
        if (!known)
            add_token(t, list[i].text, list[i].token, list[i].id, false);
        else if (converted)
            set_flags(t, known, list[i].token);
    }
    free(list);
    return TM_OK;
}

static void add_special(tree *t, const json_t *token, bool converted)
{
    const char *text = text_of(token);
    json_t *known = text ? json_object_get(t->added, text) : NULL;
    if (text && !known)
        add_token(t, text, json_is_object(token) ? token : NULL, -1, true);
    else if (text && converted && !flag(known, "special", false)) {
        t->failed |= json_object_set_new(known, "special", json_true()) != 0;
        t->changed = true;
    }
    if (known && converted && json_is_object(token))
        set_flags(t, known, token);
}

/* Tokens that the settings give a part: beginning, end, padding, ... Only those that have an id already. */
static void add_named(tree *t, const json_t *source, bool converted)
{
    static const char *const keys[] = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        add_special(t, json_object_get(source, keys[i]), converted);
    const json_t *more = json_object_get(source, "additional_special_tokens");
    for (size_t i = 0; i < json_array_size(more); i++)
        add_special(t, json_array_get(more, i), converted);
}

static tm_status add_tokens(json_t *root, const settings *s, bool converted, bool *changed, tm_error *err)
{
    tree t = tree_of(root);
    tm_status st = add_numbered(&t, s, converted, err);
    add_named(&t, s->config, converted);
    add_named(&t, s->map, converted);
    if (converted && !strcmp(s->class, "GPT2Tokenizer") && !json_object_get(t.added, "<|endoftext|>"))
        add_token(&t, "<|endoftext|>", NULL, -1, true); /* what the class has by default */
    *changed = t.changed;
    if (st == TM_OK && t.failed)
        st = tm_fail(err, TM_NO_MEMORY, "out of memory");
    tree_deinit(&t);
    return st;
}

/* ---- the kinds of files ---- */

/* Writes the tokenizer.json that the files say. first, second: paths. */
typedef tm_status (*convert)(const char *first, const char *second, settings *s, tm_buf *json, tm_error *err);

static tm_status from_json(const char *first, const char *second, settings *s, tm_buf *json, tm_error *err)
{
    (void)second, (void)s;
    return tm_file_read(first, TM_JSON_MAX_BYTES, json, err);
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static tm_status from_ranks(const char *text, size_t size, const char *path, settings *s, tm_buf *json, tm_error *err)
{
    const tm_family *qwen = tm_family_named("qwen.tiktoken"), *llama = tm_family_named("llama3");
    const tm_family *family = tm_family_named(s->class);
    const char *file = file_name(path);
    tm_names special = {0};
    tm_status st = TM_OK;
    char name[48];
    if (!family)
        family = tm_family_named(!strcmp(file, "tokenizer.model") ? "llama3" : file);
    if (!family)
        return tm_fail(err, TM_UNSUPPORTED, "%s: a list of ranks does not say how text is cut; \"tokenizer_class\" of "
                       "tokenizer_config.json is \"%s\" and the file's name is none of qwen.tiktoken, cl100k_base.tiktoken, "
                       "o200k_base.tiktoken, tokenizer.model (Llama 3), ...", path, s->class);
    bool listed = json_object_size(json_object_get(s->config, "added_tokens_decoder")) > 0;
    bool meta = family == llama && !strcmp(file, "tokenizer.model") && !listed && !*s->class;
    if (family == qwen) {
        static const char *const names[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
        for (int i = 0; st == TM_OK && i < 3; i++)
            st = tm_names_add(&special, names[i], err);
        for (int i = 0; st == TM_OK && i < 205; i++)
            st = (snprintf(name, sizeof name, "<|extra_%d|>", i), tm_names_add(&special, name, err));
    } else if (meta) {
        static const char *const names[] = {"<|begin_of_text|>", "<|end_of_text|>", "", "", "", "", "<|start_header_id|>",
                                            "<|end_header_id|>", "", "<|eot_id|>"};
        for (int i = 0, reserved = 0; st == TM_OK && i < 256; i++) {
            bool given = i < 10 && *names[i];
            if (!given)
                snprintf(name, sizeof name, "<|reserved_special_token_%d|>", reserved++);
            st = tm_names_add(&special, given ? names[i] : name, err);
        }
    }
    s->bos = meta ? "<|begin_of_text|>" : NULL;
    s->eos = meta ? "<|end_of_text|>" : family == qwen ? "<|endoftext|>" : NULL;
    if (st == TM_OK)
        st = tm_convert_ranks(text, size, family, &special, meta ? 0 : -1, path, json, err);
    tm_names_deinit(&special);
    return st;
}

/* "<base64> <digits>" a line, and not protobuf, whose first byte is a line feed. */
static bool looks_like_ranks(const tm_buf *text)
{
    const char *line = tm_buf_str(text), *end = memchr(line, '\n', text->size);
    const char *space = end ? memchr(line, ' ', (size_t)(end - line)) : NULL;
    return space && space > line && space + 1 < end && space[1] >= '0' && space[1] <= '9';
}

static tm_status from_model(const char *first, const char *second, settings *s, tm_buf *json, tm_error *err)
{
    static const char *const shifted[] = {"XLMRobertaTokenizer", "XGLMTokenizer", "CamembertTokenizer", "MBartTokenizer",
                                          "MBart50Tokenizer", "NllbTokenizer", "BarthezTokenizer", "PegasusTokenizer"};
    tm_buf data = {0};
    tm_spm spm = {0};
    tm_status st;
    (void)second;
    for (size_t i = 0; i < sizeof shifted / sizeof shifted[0]; i++)
        if (!strcmp(s->class, shifted[i]))
            return tm_fail(err, TM_UNSUPPORTED, "%s: a %s moves the ids of its pieces; save it with tokenizer.json",
                           first, s->class);
    TM_GO(tm_file_read(first, TM_SPM_FILE_BYTES, &data, err));
    if (looks_like_ranks(&data))
        TM_GO(from_ranks(tm_buf_str(&data), data.size, first, s, json, err));
    else {
        tm_convert_options options = s->options;
        TM_GO(tm_spm_parse(tm_buf_str(&data), data.size, first, &spm, err));
        bool t5 = !strcmp(file_name(first), "spiece.model") || !strcmp(s->class, "T5Tokenizer");
        if (options.add_bos < 0)
            options.add_bos = spm.model == TM_SPM_BPE;
        if (options.add_eos < 0)
            options.add_eos = t5 && spm.model == TM_SPM_UNIGRAM;
        TM_GO(tm_convert_spm(&spm, &options, first, json, err));
        s->bos_id = spm.bos;
        s->eos_id = spm.eos;
    }
out:
    tm_spm_deinit(&spm);
    tm_buf_deinit(&data);
    return st;
}

static tm_status from_merges(const char *first, const char *second, settings *s, tm_buf *json, tm_error *err)
{
    if (!*s->class)
        snprintf(s->class, sizeof s->class, "GPT2Tokenizer");
    if (!strcmp(s->class, "GPT2Tokenizer"))
        s->bos = s->eos = "<|endoftext|>";
    const tm_family *family = tm_family_named(s->class);
    if (!family)
        return tm_fail(err, TM_UNSUPPORTED, "%s: \"tokenizer_class\" is \"%s\", expected GPT2Tokenizer, Qwen2Tokenizer or "
                       "CodeGenTokenizer (or a tokenizer.json)", first, s->class);
    return tm_convert_merges(first, second, family, s->options.add_prefix_space > 0, json, err);
}

static tm_status from_tekken(const char *first, const char *second, settings *s, tm_buf *json, tm_error *err)
{
    (void)second;
    s->bos = "<s>";
    s->eos = "</s>";
    return tm_convert_tekken(first, json, err);
}

/* In the order of preference. A name that starts with a dot is an ending. */
static const struct kind {
    const char *first, *second;
    convert run;
    bool in_folder; /* looked for there; the others only when given by name */
} kinds[] = {
    {"tokenizer.json", NULL, from_json, true},
    {"tokenizer.model", NULL, from_model, true},
    {"tekken.json", NULL, from_tekken, true},
    {"spiece.model", NULL, from_model, true},
    {"sentencepiece.bpe.model", NULL, from_model, true},
    {".tiktoken", NULL, from_model, true},
    {"vocab.json", "merges.txt", from_merges, true},
    {".model", NULL, from_model, false},
    {".json", NULL, from_json, false},
};

static bool name_fits(const char *file, const char *name)
{
    size_t n = strlen(file), m = strlen(name);
    return *name == '.' ? n > m && !strcmp(file + n - m, name) : !strcmp(file, name);
}

/* The path of the first file in dir with that name or ending; NULL in *out: none. */
static tm_status find_file(const char *dir, const char *name, char **out, tm_error *err)
{
    char **names;
    size_t count;
    tm_status st = TM_OK;
    *out = NULL;
    TM_TRY(tm_dir_list(dir, &names, &count, err));
    for (size_t i = 0; i < count && !*out && st == TM_OK; i++)
        if (name_fits(names[i], name)) {
            *out = tm_path_join(dir, names[i], err);
            st = *out ? TM_OK : TM_NO_MEMORY;
        }
    tm_names_free(names, count);
    return st;
}

/* Which kind a folder holds; NULL: none. */
static tm_status detect(const char *dir, const struct kind **kind, char **first, char **second, tm_error *err)
{
    *kind = NULL;
    for (size_t i = 0; kinds[i].in_folder && !*kind; i++) {
        *second = NULL;
        TM_TRY(find_file(dir, kinds[i].first, first, err));
        if (*first && kinds[i].second)
            TM_TRY(find_file(dir, kinds[i].second, second, err));
        if (*first && (*second || !kinds[i].second))
            *kind = &kinds[i];
        else {
            free(*first);
            *first = NULL;
        }
    }
    return TM_OK;
}

/* Takes no memory of ours, so that a folder never seems to have no tokenizer because memory ran out. */
static bool folder_has(const char *folder, const char *name)
{
    bool found = false;
    if (*name != '.')
        return tm_dir_has(folder, name);
    DIR *dir = opendir(folder);
    for (struct dirent *entry; dir && !found && (entry = readdir(dir));)
        found = name_fits(entry->d_name, name);
    if (dir)
        closedir(dir);
    return found;
}

bool tm_tokenizer_is_in(const char *model)
{
    if (!tm_path_is_dir(model))
        return tm_gguf_is(model);
    for (size_t i = 0; kinds[i].in_folder; i++)
        if (folder_has(model, kinds[i].first) && (!kinds[i].second || folder_has(model, kinds[i].second)))
            return true;
    return false;
}

/* ---- first and last token ---- */

/* "bos_token": text or an object with "content". */
static tm_status token_named(const tm_tokenizer *tok, const json_t *config, const char *key, const char *path, int32_t *id,
                             tm_error *err)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_object(value))
        value = json_object_get(value, "content");
    if (!value || json_is_null(value))
        return TM_OK;
    if (!json_is_string(value))
        return tm_fail(err, TM_INPUT, "%s: \"%s\" is no string and no object with \"content\"", path, key);
    *id = tm_vocab_find(&tok->vocab, json_string_value(value), json_string_length(value));
    return TM_OK;
}

/* "bos_token_id": a number or a list, whose first counts. An id the tokenizer lacks is none. */
static tm_status token_numbered(const tm_tokenizer *tok, const json_t *config, const char *key, const char *path, int32_t *id,
                                tm_error *err)
{
    const json_t *value = json_object_get(config, key);
    if (json_is_array(value))
        value = json_array_get(value, 0);
    if (!value || json_is_null(value))
        return TM_OK;
    if (!json_is_integer(value))
        return tm_fail(err, TM_INPUT, "%s: \"%s\" is no integer", path, key);
    json_int_t number = json_integer_value(value);
    if (number >= 0 && number < tok->vocab.ids && tok->vocab.flags[number])
        *id = (int32_t)number;
    return TM_OK;
}

static tm_status read_ends(tm_tokenizer *tok, const char *dir, tm_error *err)
{
    static const struct { const char *file; bool names; } sources[] = {
        {"tokenizer_config.json", true}, {"generation_config.json", false}, {"config.json", false}};
    for (size_t i = 0; i < 3 && (tok->bos < 0 || tok->eos < 0); i++) {
        char *path = tm_path_join(dir, sources[i].file, err);
        json_t *config = NULL;
        tm_status st = path ? TM_OK : TM_NO_MEMORY;
        if (path && tm_path_exists(path)) {
            st = tm_json_read(path, &config, err);
            if (st == TM_OK && tok->bos < 0)
                st = sources[i].names ? token_named(tok, config, "bos_token", path, &tok->bos, err)
                                      : token_numbered(tok, config, "bos_token_id", path, &tok->bos, err);
            if (st == TM_OK && tok->eos < 0)
                st = sources[i].names ? token_named(tok, config, "eos_token", path, &tok->eos, err)
                                      : token_numbered(tok, config, "eos_token_id", path, &tok->eos, err);
        }
        json_decref(config);
        free(path);
        TM_TRY(st);
    }
    return TM_OK;
}

/* "add_bos_token" and "add_eos_token" of tokenizer_config.json say what goes around a text, over what the
 * tokenizer's own post-processor says; Llama's and Gemma's classes put BOS first where they do not say. */
static tm_status set_around(tm_tokenizer *tok, const settings *s, tm_error *err)
{
    static const char *const keys[] = {"bos_token", "eos_token"};
    bool add[2] = {s->options.add_bos > 0, s->options.add_eos > 0}, same = true;
    int32_t id[2] = {-1, -1};
    tm_ids *side[2] = {&tok->post.before, &tok->post.after};
    if (s->options.add_bos < 0 && s->options.add_eos < 0)
        return TM_OK;
    if (s->options.add_bos < 0)
        add[0] = !strncmp(s->class, "Llama", 5) || !strncmp(s->class, "CodeLlama", 9) || !strncmp(s->class, "Gemma", 5);
    for (int i = 0; i < 2; i++) {
        TM_TRY(token_named(tok, s->config, keys[i], "tokenizer_config.json", &id[i], err));
        if (id[i] < 0)
            TM_TRY(token_named(tok, s->map, keys[i], "special_tokens_map.json", &id[i], err));
        if (id[i] < 0)
            id[i] = i ? tok->eos : tok->bos;
        size_t count = add[i] && id[i] >= 0;
        if (side[i]->count == count && (!count || side[i]->id[0] == id[i]))
            continue;
        same = false;
        TM_TRY(tm_ids_room(side[i], 1, err));
        side[i]->count = count;
        side[i]->id[0] = id[i];
    }
    if (same)
        return TM_OK;
    char text[160];
    int size = snprintf(text, sizeof text, "%s %d %d", tok->hash.hex, add[0] ? id[0] : -1, add[1] ? id[1] : -1);
    return tm_sha256_bytes(text, (size_t)size, &tok->hash, err);
}

/* json_tree: where the effective tokenizer.json goes; NULL: nowhere. */
static tm_status open_with(const struct kind *kind, const char *first, const char *second, settings *s, tm_tokenizer **out,
                           json_t **json_tree, tm_error *err)
{
    tm_buf json = {0};
    json_t *root = NULL;
    char *dumped = NULL;
    bool converted = kind->run != from_json, changed = false;
    tm_sha256 hash;
    tm_status st;
    TM_GO(kind->run(first, second, s, &json, err));
    TM_GO(tm_json_parse(tm_buf_str(&json), json.size, first, &root, err));
    if (s->dir && json_is_object(root))
        TM_GO(add_tokens(root, s, converted, &changed, err));
    if (changed) {
        dumped = json_dumps(root, JSON_COMPACT);
        TM_GO(dumped ? TM_OK : tm_fail(err, TM_NO_MEMORY, "out of memory"));
    }
    TM_GO(tm_sha256_bytes(dumped ? dumped : tm_buf_str(&json), dumped ? strlen(dumped) : json.size, &hash, err));
    tm_buf_deinit(&json);
    TM_GO(tm_tokenizer_build(root, &hash, first, out, err));
    if (json_tree)
        *json_tree = json_incref(root);
out:
    free(dumped);
    json_decref(root);
    tm_buf_deinit(&json);
    return st;
}

static void default_ends(tm_tokenizer *tok, const settings *s)
{
    if (tok->bos < 0)
        tok->bos = s->bos ? tm_tokenizer_find(tok, s->bos) : s->bos_id;
    if (tok->eos < 0)
        tok->eos = s->eos ? tm_tokenizer_find(tok, s->eos) : s->eos_id;
}

static tm_status open_folder(const char *dir, tm_tokenizer **out, json_t **json_tree, tm_error *err)
{
    const struct kind *kind;
    char *first = NULL, *second = NULL;
    settings s = {0};
    tm_status st;
    TM_GO(settings_read(dir, &s, err));
    TM_GO(detect(dir, &kind, &first, &second, err));
    if (!kind)
        TM_GO(tm_fail(err, TM_INPUT, "%s: no tokenizer: expected tokenizer.json, tokenizer.model, spiece.model, *.tiktoken, or "
                      "vocab.json with merges.txt", dir));
    TM_GO(open_with(kind, first, second, &s, out, json_tree, err));
    TM_GO(read_ends(*out, dir, err));
    default_ends(*out, &s);
    TM_GO(set_around(*out, &s, err));
    (*out)->clean_up = flag(s.config, "clean_up_tokenization_spaces", false) && (*out)->kind != &tm_model_bpe;
out:
    settings_deinit(&s);
    free(first);
    free(second);
    return st;
}

/* By its name; of another name (tokenizer.model.v3) a file of pieces begins with a line feed, and else it is
 * JSON, or the message says what it is not. */
static const struct kind *kind_of_file(const char *path)
{
    const char *file = file_name(path);
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (!kinds[i].second && name_fits(file, kinds[i].first))
            return &kinds[i];
    FILE *in = fopen(path, "re");
    int first = in ? getc(in) : EOF, second = in ? getc(in) : EOF;
    if (in)
        fclose(in);
    return &kinds[first == '\n' && second != '{' ? 1 : 0];
}

static tm_status open_file(const char *path, tm_tokenizer **out, tm_error *err)
{
    settings s = {.options = TM_CONVERT_DEFAULTS, .bos_id = -1, .eos_id = -1};
    const struct kind *kind = kind_of_file(path);
    TM_TRY(open_with(kind, path, NULL, &s, out, NULL, err));
    default_ends(*out, &s);
    return TM_OK;
}

tm_status tm_tokenizer_open(const char *path, tm_tokenizer **out, tm_error *err)
{
    *out = NULL;
    tm_status st = tm_path_is_dir(path) ? open_folder(path, out, NULL, err)
                   : tm_gguf_is(path)   ? tm_tokenizer_open_gguf(path, out, err)
                                        : open_file(path, out, err);
    if (st != TM_OK) {
        tm_tokenizer_close(*out);
        *out = NULL;
    }
    return st;
}

tm_status tm_tokenizer_open_tree(const char *dir, tm_tokenizer **out, json_t **json_tree, tm_error *err)
{
    *out = NULL;
    *json_tree = NULL;
    tm_status st = open_folder(dir, out, json_tree, err);
    if (st != TM_OK) {
        tm_tokenizer_close(*out);
        *out = NULL;
        json_decref(*json_tree);
        *json_tree = NULL;
    }
    return st;
}
