/* Any bytes as a GGUF file: an error, or a file whose values and tensors can all be read; and what is made
 * of it as a model folder and as a tokenizer, which may be refused as well. */
#include "io/gguf_model.h"
#include "text/tokenizer_gguf.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void must_say(tm_status st, const tm_error *err)
{
    if (st != TM_OK && (err->status == TM_OK || !err->message[0]))
        abort();
}

static void read_values(const tm_gguf *g)
{
    for (int64_t i = 0; i < tm_gguf_values(g); i++) {
        const char *key = tm_gguf_value_at(g, i)->key;
        tm_error err = {0};
        tm_gguf_text *texts = NULL;
        float *floats = NULL;
        int32_t *ints = NULL;
        int64_t count;
        if (tm_gguf_find(g, key) != tm_gguf_value_at(g, i))
            abort();
        must_say(tm_gguf_get_texts(g, key, &texts, &count, &err), &err);
        volatile unsigned sum = 0;
        for (int64_t k = 0; k < (texts ? count : 0); k++)
            for (size_t b = 0; b < texts[k].size; b++)
                sum += (unsigned char)texts[k].text[b];
        (void)sum;
        must_say(tm_gguf_get_floats(g, key, &floats, &count, &err), &err);
        must_say(tm_gguf_get_ints(g, key, &ints, &count, &err), &err);
        free(texts);
        free(floats);
        free(ints);
    }
}

static void read_tensors(const tm_gguf *g)
{
    float part[TM_GGML_MOST_IN_BLOCK];
    for (int64_t i = 0; i < tm_gguf_tensors(g); i++) {
        const tm_gguf_tensor *t = tm_gguf_tensor_at(g, i);
        if (tm_gguf_tensor_find(g, t->name) != t)
            abort();
        for (int64_t b = 0; b < t->count / t->type->block; b++)
            tm_ggml_unpack(t->type, t->data + b * t->type->bytes, part, t->type->block);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const files[] = {"config.json", "generation_config.json", "tokenizer_config.json", "other.json"};
    tm_gguf *g;
    tm_error err = {0};
    tm_status st = tm_gguf_view(data, size, "input", &g, &err);
    must_say(st, &err);
    if (st != TM_OK)
        return 0;
    read_values(g);
    read_tensors(g);
    for (int k = 0; k < 4; k++) {
        tm_buf out = {0};
        bool there;
        err = (tm_error){0};
        must_say(tm_gguf_hf_file(g, files[k], &out, &there, &err), &err);
        tm_buf_deinit(&out);
    }
    tm_tokenizer *tok;
    err = (tm_error){0};
    must_say(tm_tokenizer_from_gguf(g, &tok, &err), &err);
    tm_tokenizer_close(tok);
    tm_safetensors *weights;
    err = (tm_error){0};
    st = tm_gguf_weights(g, &weights, &err);
    must_say(st, &err);
    if (st == TM_OK) {
        st = tm_safetensors_unpack(weights, &err);
        must_say(st, &err);
        tm_safetensors_close(weights);
    }
    return 0;
}
