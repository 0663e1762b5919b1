/* Fuzzing: the input is a tokenizer.json, or one, a zero byte and a text. Whatever opens must encode
 * the text and decode the ids without a crash; what it refuses it must explain. */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(const tm_tokenizer *tok, const char *text, size_t size)
{
    tm_error err;
    tm_tokens *scratch;
    tm_ids ids = {0};
    tm_buf out = {0};
    tm_decode_stream stream = {0};
    if (tm_tokens_create(tok, &scratch, &err) != TM_OK)
        return;
    if (tm_tokenizer_encode(tok, scratch, text, size, true, &ids, &err) == TM_OK) {
        for (size_t i = 0; i < ids.count; i++)
            if (!tm_tokenizer_token(tok, ids.id[i]))
                abort();
        if (tm_tokenizer_decode(tok, ids.id, ids.count, false, &out, &err) == TM_OK)
            for (size_t i = 0; i < ids.count; i++)
                if (tm_decode_stream_push(&stream, tok, ids.id[i], &out, &err) != TM_OK)
                    break;
        if (tm_decode_stream_flush(&stream, tok, &out, &err) != TM_OK && !err.message[0])
            abort();
    }
    tm_decode_stream_deinit(&stream);
    tm_buf_deinit(&out);
    tm_ids_deinit(&ids);
    tm_tokens_destroy(scratch);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char text[] = "A test  of\tit: naïve 漢字 e\u0301 \u212b 123,456 don't <s>\r\n ab▁c\xff";
    const uint8_t *zero = size ? memchr(data, 0, size) : NULL;
    size_t json = zero ? (size_t)(zero - data) : size;
    tm_tokenizer *tok;
    tm_error err = {0};
    if (tm_tokenizer_parse((const char *)data, json, "fuzz", &tok, &err) != TM_OK) {
        if (!err.message[0])
            abort();
        return 0;
    }
    use(tok, text, sizeof text - 1);
    if (zero)
        use(tok, (const char *)zero + 1, size - json - 1);
    tm_tokenizer_close(tok);
    return 0;
}
