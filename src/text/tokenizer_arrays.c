/* Tokenizers out of arrays (GGUF): the tokenizer.json that says the same, and what it gives. */
#include "text/tokenizer_convert.h"

#include <string.h>

/* ---- SentencePiece kinds ---- */

static tm_status from_spm(const tm_tokenizer_parts *p, tm_spm_model model, const char *name, tm_buf *json, tm_error *err)
{
    tm_spm spm = tm_spm_defaults();
    tm_convert_options options = TM_CONVERT_DEFAULTS;
    tm_status st;
    bool bpe = model == TM_SPM_BPE;
    if (!p->score)
        return tm_fail(err, TM_INPUT, "%s: a tokenizer of kind \"%s\" without scores", name, p->model);
    TM_TRY(TM_NEW(&spm.piece, p->count, err));
    for (size_t i = 0; i < p->count; i++) {
        uint32_t size = p->token[i].size < UINT32_MAX ? (uint32_t)p->token[i].size : UINT32_MAX;
        spm.piece[i] = (tm_spm_piece){p->token[i].text, size, p->type ? p->type[i] : TM_SPM_NORMAL, p->score[i]};
        spm.byte_fallback |= spm.piece[i].type == TM_SPM_BYTE;
    }
    spm.count = p->count;
    spm.model = model;
    spm.unk = p->unk;
    spm.bos = p->bos;
    spm.eos = p->eos;
    spm.charsmap = p->charsmap;
    spm.charsmap_size = p->charsmap ? p->charsmap_size : 0;
    spm.dummy_prefix = p->add_space_prefix != 0;
    spm.remove_extra_spaces = p->remove_extra_whitespaces < 0 ? !bpe : p->remove_extra_whitespaces;
    options.add_bos = p->add_bos < 0 ? bpe : p->add_bos;
    options.add_eos = p->add_eos < 0 ? !bpe : p->add_eos;
    for (size_t i = 0; spm.unk < 0 && i < p->count; i++)
        if (spm.piece[i].type == TM_SPM_UNKNOWN)
            spm.unk = (int32_t)i;
    TM_GO(tm_spm_settle(&spm, name, err));
    TM_GO(tm_convert_spm(&spm, &options, name, json, err));
out:
    tm_spm_deinit(&spm);
    return st;
}

/* ---- byte-level BPE ---- */

static tm_status check_text(const tm_token_text *piece, const char *what, size_t i, const char *name, tm_error *err)
{
    return piece->size && tm_utf8_prefix(piece->text, piece->size) == piece->size
               ? TM_OK : tm_fail(err, TM_INPUT, "%s: %s %zu is %s", name, what, i, piece->size ? "no UTF-8" : "empty");
}

static tm_status put_tokens(const tm_tokenizer_parts *p, const char *name, tm_buf *json, tm_error *err)
{
    tm_buf_text(json, "\"vocab\": {");
    for (size_t i = 0; i < p->count; i++) {
        TM_TRY(check_text(&p->token[i], "token", i, name, err));
        tm_buf_text(json, i ? ",\n" : "\n");
        tm_json_put_bytes(json, p->token[i].text, p->token[i].size);
        tm_buf_printf(json, ": %zu", i);
    }
    tm_buf_text(json, "},\n\"merges\": [");
    for (size_t i = 0; i < p->merge_count; i++) {
        TM_TRY(check_text(&p->merge[i], "merge", i, name, err));
        tm_buf_text(json, i ? ",\n" : "\n");
        tm_json_put_bytes(json, p->merge[i].text, p->merge[i].size);
    }
    tm_buf_text(json, "]}}\n");
    return TM_OK;
}

static tm_status from_bpe(const tm_tokenizer_parts *p, const char *name, tm_buf *json, tm_error *err)
{
    const char *pre = p->pre && *p->pre && strcmp(p->pre, "default") ? p->pre : "gpt-2";
    const tm_family *family = tm_family_named(pre);
    bool first = true, bos = p->add_bos < 0 ? !strncmp(pre, "llama", 5) || !strcmp(pre, "tekken") : p->add_bos;
    if (!family)
        return tm_fail(err, TM_UNSUPPORTED, "%s: tokenizer.ggml.pre is \"%.60s\", which is not known", name, pre);
    tm_buf_text(json, "{\"version\": \"1.0\",\n\"added_tokens\": [\n");
    for (size_t i = 0; p->type && i < p->count; i++) {
        if (p->type[i] != TM_PIECE_CONTROL && p->type[i] != TM_PIECE_USER_DEFINED)
            continue;
        tm_convert_added(json, first, p->token[i].text, p->token[i].size, (int64_t)i, p->type[i] == TM_PIECE_CONTROL);
        first = false;
    }
    tm_buf_text(json, "],\n");
    tm_convert_family(family, p->add_space_prefix > 0, json);
    tm_convert_post(json, bos ? p->bos : -1, p->add_eos > 0 ? p->eos : -1);
    tm_buf_printf(json, "\"model\": {\"type\": \"BPE\", \"ignore_merges\": %s,\n", family->whole ? "true" : "false");
    return put_tokens(p, name, json, err);
}

tm_status tm_tokenizer_parts_json(const tm_tokenizer_parts *parts, const char *name, tm_buf *json, tm_error *err)
{
    const char *model = parts->model ? parts->model : "";
    if (!parts->count || parts->count > TM_TOKEN_IDS)
        return tm_fail(err, TM_INPUT, "%s: a tokenizer of %zu tokens, expected 1 to %d", name, parts->count, TM_TOKEN_IDS);
    if (!strcmp(model, "llama"))
        TM_TRY(from_spm(parts, TM_SPM_BPE, name, json, err));
    else if (!strcmp(model, "t5"))
        TM_TRY(from_spm(parts, TM_SPM_UNIGRAM, name, json, err));
    else if (!strcmp(model, "gpt2"))
        TM_TRY(from_bpe(parts, name, json, err));
    else
        return tm_fail(err, TM_UNSUPPORTED, "%s: tokenizer.ggml.model is \"%.60s\", expected llama, gpt2 or t5", name, model);
    return tm_buf_check(json, err);
}

tm_status tm_tokenizer_from_parts(const tm_tokenizer_parts *parts, const char *name, tm_tokenizer **out, tm_error *err)
{
    tm_buf json = {0};
    *out = NULL;
    tm_status st = tm_tokenizer_parts_json(parts, name, &json, err);
    if (st == TM_OK)
        st = tm_tokenizer_parse(tm_buf_str(&json), json.size, name, out, err);
    tm_buf_deinit(&json);
    if (st == TM_OK) {
        int32_t ids = (*out)->vocab.ids;
        (*out)->bos = parts->bos < ids ? parts->bos : -1;
        (*out)->eos = parts->eos < ids ? parts->eos : -1;
    }
    return st;
}
