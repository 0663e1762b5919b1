/* Fuzzing: the input is a SentencePiece model. Whatever is one must become a tokenizer or say why not, encode
 * texts and decode their ids without a crash. */
#include "text/tokenizer_convert.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const tm_tokenizer *tok)
{
    static const char text[] = "A  test: ｆｕｌｌ e\u0301 \u212b <s> Привет\r\n ab▁c -----\x01";
    tm_error err;
    tm_tokens *scratch;
    tm_ids ids = {0};
    tm_buf out = {0};
    if (tm_tokens_create(tok, &scratch, &err) != TM_OK)
        return;
    if (tm_tokenizer_encode(tok, scratch, text, sizeof text - 1, true, &ids, &err) == TM_OK) {
        for (size_t i = 0; i < ids.count; i++)
            if (!tm_tokenizer_token(tok, ids.id[i]))
                abort();
        if (tm_tokenizer_decode(tok, ids.id, ids.count, false, &out, &err) != TM_OK)
            abort();
    } else if (!err.message[0])
        abort();
    tm_buf_deinit(&out);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tm_convert_options options = TM_CONVERT_DEFAULTS;
    tm_spm spm;
    tm_buf json = {0};
    tm_tokenizer *tok;
    tm_error err = {0};
    if (size && data[size - 1] & 1)
        options.legacy = 0;
    if (tm_spm_parse(data, size, "fuzz", &spm, &err) != TM_OK) {
        if (!err.message[0])
            abort();
        return 0;
    }
    if (tm_convert_spm(&spm, &options, "fuzz", &json, &err) == TM_OK) {
        if (tm_tokenizer_parse(tm_buf_str(&json), json.size, "fuzz", &tok, &err) == TM_OK)
            use(tok);
        else if (!err.message[0])
            abort();
        tm_tokenizer_close(tok);
    }
    tm_buf_deinit(&json);
    tm_spm_deinit(&spm);
    return 0;
}
