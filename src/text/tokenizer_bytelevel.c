/* Byte-level BPE from other files than tokenizer.json: lists of ranks (tiktoken), vocab.json with merges.txt,
 * and what such files do not say: how a family of models cuts text into pieces. */
#include "text/tokenizer_convert.h"

#include "base/base64.h"
#include "base/file.h"

#include <stdlib.h>
#include <string.h>

enum { RANKS_BYTES = 64 << 20, RANK_TOKEN_BYTES = 1024 };

/* ---- families ---- */

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define CL100K(digits)                                                                                      \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits                                    \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define UPPER "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOWER "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define CASED(tail, digits)                                                                                 \
    UPPER "*" LOWER "+" tail "|" UPPER "+" LOWER "*" tail "|" digits                                        \
    "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
#define BLOOM " ?[^(\\s|.,!?…。，、।۔،)]+"

static const tm_family families[] = {
    {{"gpt-2", "GPT2Tokenizer", "CodeGenTokenizer", "mpt", "olmo", "jais", "phi-2", "r50k_base.tiktoken", "p50k_base.tiktoken",
      "gpt2.tiktoken"}, {GPT2}, false, false},
    {{"qwen2", "Qwen2Tokenizer", "stablelm2", "deepseek-r1-qwen", "megrez"}, {CL100K("\\p{N}")}, true, false},
    {{"QWenTokenizer", "qwen.tiktoken"}, {CL100K("\\p{N}")}, true, true},
    {{"llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "chatglm-bpe", "glm4", "ChatGLM4Tokenizer", "cl100k_base.tiktoken"}, {CL100K("\\p{N}{1,3}")}, false, true},
    {{"gpt-4o", "llama4", "o200k_base.tiktoken"}, {CASED(CONTRACTION, "\\p{N}{1,3}")}, false, true},
    {{"tekken"}, {CASED("", "\\p{N}")}, false, true},
    {{"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}, {"\\p{N}", GPT2}, false, false},
    {{"falcon"}, {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"}, false, false},
    {{"bloom", "poro-chat", "gpt3-finnish"}, {BLOOM}, false, false},
    {{"viking"}, {BLOOM, "\\p{N}"}, false, false},
    {{"deepseek-coder"}, {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", "\\p{N}"}, false, false},
    {{"deepseek-v3"},
     {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
      "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|"
      "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}, false, false},
};

const tm_family *tm_family_named(const char *name)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++)
        for (size_t j = 0; families[i].names[j]; j++)
            if (!strcmp(families[i].names[j], name))
                return &families[i];
    return NULL;
}

const char *tm_family_cutting(const char *const *patterns)
{
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        size_t k = 0;
        while (patterns[k] && families[i].pattern[k] && !strcmp(patterns[k], families[i].pattern[k]))
            k++;
        if (!patterns[k] && !families[i].pattern[k])
            return families[i].names[0];
    }
    return NULL;
}

void tm_convert_family(const tm_family *family, bool prefix_space, tm_buf *json)
{
    tm_buf_printf(json, "\"normalizer\": %s,\n\"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [",
                  family->compose ? "{\"type\": \"NFC\"}" : "null");
    if (prefix_space) /* before anything is cut off */
        tm_buf_text(json, "{\"type\": \"Metaspace\", \"replacement\": \" \", \"prepend_scheme\": \"always\", \"split\": false}, ");
    for (size_t i = 0; family->pattern[i]; i++) {
        tm_buf_text(json, "{\"type\": \"Split\", \"pattern\": {\"Regex\": ");
        tm_json_put_string(json, family->pattern[i]);
        tm_buf_text(json, "}, \"behavior\": \"Isolated\", \"invert\": false},\n");
    }
    tm_buf_text(json, "{\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": false}]},\n"
                      "\"decoder\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"trim_offsets\": true, \"use_regex\": true},\n");
}

/* ---- lists of ranks ---- */

static void put_bytes(tm_buf *json, tm_buf *word, const char *bytes, size_t size)
{
    tm_buf_clear(word);
    tm_byte_chars(bytes, size, word);
    tm_json_put_bytes(json, tm_buf_str(word), word->size);
    json->failed |= word->failed;
}

/* Token "line" of the list: "<base64> <rank>". */
static tm_status read_rank(tm_vocab *vocab, const char *line, size_t size, size_t number, const char *name,
                           tm_buf *word, tm_error *err)
{
    const char *space = memchr(line, ' ', size);
    int64_t rank = space && space + 1 < line + size ? 0 : -1;
    tm_buf_clear(word);
    for (const char *c = space ? space + 1 : line; rank >= 0 && c < line + size; c++)
        rank = *c < '0' || *c > '9' ? -1 : 10 * rank + (*c - '0') >= TM_TOKEN_IDS ? -1 : 10 * rank + (*c - '0');
    if (rank < 0 || !tm_base64_decode(line, (size_t)(space - line), word))
        return tm_fail(err, TM_INPUT, "%s:%zu: \"%.*s\", expected base64, a space and a rank below %d", name, number,
                       (int)(size < 60 ? size : 60), line, TM_TOKEN_IDS);
    TM_TRY(tm_buf_check(word, err));
    if (!word->size || word->size > RANK_TOKEN_BYTES)
        return tm_fail(err, TM_INPUT, "%s:%zu: a token of %zu bytes, expected 1 to %d", name, number, word->size, RANK_TOKEN_BYTES);
    if (tm_vocab_find(vocab, word->data, word->size) >= 0 || (rank < vocab->ids && vocab->flags[rank]))
        return tm_fail(err, TM_INPUT, "%s:%zu: the token or the rank %lld is there twice", name, number, (long long)rank);
    return tm_vocab_add(vocab, word->data, word->size, (int32_t)rank, TM_TOKEN_MODEL, err);
}

static tm_status read_ranks(tm_vocab *vocab, const char *text, size_t size, const char *name, tm_error *err)
{
    tm_buf word = {0};
    tm_status st = TM_OK;
    size_t number = 1;
    for (const char *line = text, *end = text + size, *next; st == TM_OK && line < end; line = next + 1, number++) {
        next = memchr(line, '\n', (size_t)(end - line));
        if (!next)
            next = end;
        size_t length = (size_t)(next - line);
        length -= length && line[length - 1] == '\r';
        if (length)
            st = read_rank(vocab, line, length, number, name, &word, err);
    }
    tm_buf_deinit(&word);
    if (st == TM_OK && !vocab->model_size)
        st = tm_fail(err, TM_INPUT, "%s: no tokens", name);
    return st;
}

typedef struct cut {
    int32_t left, right;
} cut;

static int by_rank(const void *a, const void *b)
{
    const cut *x = a, *y = b;
    return x->left != y->left ? (x->left > y->left) - (x->left < y->left) : (x->right > y->right) - (x->right < y->right);
}

/* Every way to cut the token into two tokens. */
static size_t cut_token(const tm_vocab *vocab, int32_t id, cut *out)
{
    const char *text = vocab->text.data + vocab->start[id];
    size_t count = 0, size = vocab->length[id];
    for (size_t at = 1; at < size; at++) {
        int32_t left = tm_vocab_find(vocab, text, at), right = left < 0 ? -1 : tm_vocab_find(vocab, text + at, size - at);
        if (right >= 0)
            out[count++] = (cut){left, right};
    }
    qsort(out, count, sizeof *out, by_rank);
    return count;
}

static void put_token(const tm_vocab *vocab, int32_t id, tm_buf *json, tm_buf *word)
{
    put_bytes(json, word, vocab->text.data + vocab->start[id], vocab->length[id]);
}

/* front: special tokens that are the model's and stand before the ranks, which then count from behind them. */
static void put_ranks(const tm_vocab *vocab, const tm_names *front, bool whole, tm_buf *json)
{
    tm_buf word = {0};
    cut cuts[RANK_TOKEN_BYTES];
    const char *comma = "\n";
    tm_buf_printf(json, "\"model\": {\"type\": \"BPE\", \"ignore_merges\": %s,\n\"vocab\": {", whole ? "true" : "false");
    for (int64_t i = 0; i < front->count; i++) {
        tm_buf_text(json, comma);
        tm_json_put_string(json, front->item[i]);
        tm_buf_printf(json, ": %lld", (long long)i);
        comma = ",\n";
    }
    for (int32_t id = 0; id < vocab->ids; id++) {
        if (!vocab->flags[id])
            continue;
        tm_buf_text(json, comma);
        put_token(vocab, id, json, &word);
        tm_buf_printf(json, ": %lld", (long long)(front->count + id));
        comma = ",\n";
    }
    tm_buf_text(json, "},\n\"merges\": [");
    comma = "\n[";
    for (int32_t id = 0; id < vocab->ids; id++) {
        size_t count = vocab->flags[id] ? cut_token(vocab, id, cuts) : 0;
        for (size_t i = 0; i < count; i++) {
            tm_buf_text(json, comma);
            put_token(vocab, cuts[i].left, json, &word);
            tm_buf_text(json, ", ");
            put_token(vocab, cuts[i].right, json, &word);
            tm_buf_char(json, ']');
            comma = ",\n[";
        }
    }
    tm_buf_text(json, "]}}\n");
    tm_buf_deinit(&word);
}

tm_status tm_convert_ranks(const char *text, size_t size, const tm_family *family, const tm_names *special, int64_t before,
                           const char *name, tm_buf *json, tm_error *err)
{
    tm_vocab vocab = {0};
    tm_status st = read_ranks(&vocab, text, size, name, err);
    if (st == TM_OK) {
        tm_buf_text(json, "{\"version\": \"1.0\",\n\"added_tokens\": [\n");
        for (int64_t i = 0; i < special->count; i++)
            tm_convert_added(json, i == 0, special->item[i], strlen(special->item[i]), vocab.ids + i, true);
        tm_buf_text(json, "],\n");
        tm_convert_family(family, false, json);
        tm_convert_post(json, before < 0 ? -1 : vocab.ids + before, -1);
        put_ranks(&vocab, &(tm_names){0}, family->whole, json);
        st = tm_buf_check(json, err);
    }
    tm_vocab_deinit(&vocab);
    return st;
}

/* ---- tekken.json ---- */

/* The special tokens of a file that names none: Mistral's first. */
static const char *const tekken_specials[] = {
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"};

static tm_status tekken_front(const json_t *root, const char *name, tm_names *front, tm_error *err)
{
    const json_t *config = json_object_get(root, "config"), *list = json_object_get(root, "special_tokens");
    size_t given = json_is_array(list) ? json_array_size(list) : sizeof tekken_specials / sizeof tekken_specials[0];
    int64_t count;
    TM_TRY(tm_json_get_int(config, name, "default_num_special_tokens", (int64_t)given, &count, err));
    if (count < (int64_t)given || count > 1 << 16)
        return tm_fail(err, TM_INPUT, "%s: \"default_num_special_tokens\" is %lld, expected %zu to %d", name,
                       (long long)count, given, 1 << 16);
    for (size_t i = 0; i < (size_t)count; i++) {
        const json_t *item = json_is_array(list) && i < given ? json_array_get(list, i) : NULL;
        const char *text = item ? json_string_value(json_object_get(item, "token_str")) : i < given ? tekken_specials[i] : NULL;
        char filler[32];
        if (item && (!text || json_integer_value(json_object_get(item, "rank")) != (json_int_t)i))
            return tm_fail(err, TM_INPUT, "%s: \"special_tokens\"[%zu] has no \"token_str\" or not the rank %zu", name, i, i);
        snprintf(filler, sizeof filler, "<SPECIAL_%zu>", i);
        TM_TRY(tm_names_add(front, text ? text : filler, err));
    }
    return TM_OK;
}

static tm_status tekken_ranks(const json_t *root, const char *name, int64_t specials, tm_vocab *vocab, tm_error *err)
{
    const json_t *list = json_object_get(root, "vocab");
    int64_t size = (int64_t)json_array_size(list), all;
    tm_buf word = {0};
    tm_status st = TM_OK;
    TM_TRY(tm_json_get_int(json_object_get(root, "config"), name, "default_vocab_size", size + specials, &all, err));
    size = size < all - specials ? size : all - specials; /* the others are spare */
    if (size < 1 || size > TM_TOKEN_IDS)
        return tm_fail(err, TM_INPUT, "%s: \"vocab\" is missing, no list, empty or longer than %d", name, TM_TOKEN_IDS);
    for (int64_t i = 0; st == TM_OK && i < size; i++) {
        const json_t *bytes = json_object_get(json_array_get(list, (size_t)i), "token_bytes");
        tm_buf_clear(&word);
        if (!json_is_string(bytes) || !tm_base64_decode(json_string_value(bytes), json_string_length(bytes), &word) || !word.size ||
            word.size > RANK_TOKEN_BYTES || tm_vocab_find(vocab, tm_buf_str(&word), word.size) >= 0)
            st = tm_fail(err, TM_INPUT, "%s: \"vocab\"[%lld]: \"token_bytes\" is no base64 of 1 to %d bytes, or there twice", name,
                         (long long)i, RANK_TOKEN_BYTES);
        else
            st = tm_vocab_add(vocab, word.data, word.size, (int32_t)i, TM_TOKEN_MODEL, err);
    }
    tm_buf_deinit(&word);
    return st;
}

tm_status tm_convert_tekken(const char *path, tm_buf *json, tm_error *err)
{
    tm_buf text = {0};
    tm_vocab vocab = {0};
    tm_names front = {0};
    json_t *root = NULL;
    tm_family family = {.whole = true};
    tm_status st;
    TM_GO(tm_file_read(path, RANKS_BYTES, &text, err));
    st = tm_json_parse_row(tm_buf_str(&text), text.size, &root, err); /* texts with \u0000 are all right here */
    if (st != TM_OK)
        TM_GO(tm_fail_prefix(err, st, "%s", path));
    family.pattern[0] = json_string_value(json_object_get(json_object_get(root, "config"), "pattern"));
    if (!family.pattern[0])
        TM_GO(tm_fail(err, TM_INPUT, "%s: \"config\" has no \"pattern\"", path));
    TM_GO(tekken_front(root, path, &front, err));
    TM_GO(tekken_ranks(root, path, front.count, &vocab, err));
    tm_buf_text(json, "{\"version\": \"1.0\",\n\"added_tokens\": [\n");
    for (int64_t i = 0; i < front.count; i++)
        tm_convert_added(json, i == 0, front.item[i], strlen(front.item[i]), i, true);
    tm_buf_text(json, "],\n");
    tm_convert_family(&family, false, json);
    tm_convert_post(json, front.count > 1 ? 1 : -1, -1);
    put_ranks(&vocab, &front, true, json);
    st = tm_buf_check(json, err);
out:
    json_decref(root);
    tm_names_deinit(&front);
    tm_vocab_deinit(&vocab);
    tm_buf_deinit(&text);
    return st;
}

/* ---- vocab.json and merges.txt ---- */

static void put_lines(const tm_buf *merges, tm_buf *json)
{
    const char *comma = "\n", *end = tm_buf_str(merges) + merges->size;
    for (const char *line = tm_buf_str(merges), *next; line < end; line = next + 1) {
        next = memchr(line, '\n', (size_t)(end - line));
        if (!next)
            next = end;
        size_t size = (size_t)(next - line);
        size -= size && line[size - 1] == '\r';
        if (!size || (size >= 8 && !memcmp(line, "#version", 8)))
            continue;
        tm_buf_text(json, comma);
        tm_json_put_bytes(json, line, size);
        comma = ",\n";
    }
}

tm_status tm_convert_merges(const char *vocab_path, const char *merges_path, const tm_family *family, bool prefix_space,
                            tm_buf *json, tm_error *err)
{
    tm_buf merges = {0};
    json_t *vocab = NULL;
    char *dumped = NULL;
    tm_status st;
    TM_GO(tm_json_read(vocab_path, &vocab, err));
    TM_GO(tm_file_read(merges_path, RANKS_BYTES, &merges, err));
    if (!json_is_object(vocab))
        TM_GO(tm_fail(err, TM_INPUT, "%s: not a JSON object of tokens", vocab_path));
    if (tm_utf8_prefix(tm_buf_str(&merges), merges.size) != merges.size)
        TM_GO(tm_fail(err, TM_INPUT, "%s: not UTF-8", merges_path));
    dumped = json_dumps(vocab, JSON_COMPACT);
    if (!dumped)
        TM_GO(tm_fail(err, TM_NO_MEMORY, "out of memory"));
    tm_buf_text(json, "{\"version\": \"1.0\",\n\"added_tokens\": [],\n");
    tm_convert_family(family, prefix_space, json);
    tm_convert_post(json, -1, -1);
    tm_buf_printf(json, "\"model\": {\"type\": \"BPE\", \"ignore_merges\": %s,\n\"vocab\": ", family->whole ? "true" : "false");
    tm_buf_text(json, dumped);
    tm_buf_text(json, ",\n\"merges\": [");
    put_lines(&merges, json);
    tm_buf_text(json, "]}}\n");
    st = tm_buf_check(json, err);
out:
    free(dumped);
    json_decref(vocab);
    tm_buf_deinit(&merges);
    return st;
}
