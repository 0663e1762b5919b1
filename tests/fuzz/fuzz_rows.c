/* Any text as a data file: an error that names it, or examples that keep every promise of dataset.h. The
 * first two bytes choose format, loss, kind of file and length of examples. */
#include "text/dataset.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static tm_tokenizer *tok;
static tm_pool *pool;

static void check(const tm_dataset *d, int64_t vocab, int64_t seq)
{
    const tm_dataset_stats *s = tm_dataset_stats_of(d, 0);
    int64_t tokens = 0, targets = 0;
    for (int64_t i = 0; i < tm_dataset_count(d); i++) {
        const tm_example *e = tm_dataset_at(d, i);
        int32_t n = 0;
        if (e->n < 2 || e->n > seq || e->targets < 1 || e->line < 1 || (e->weight && e->weight[0] != 0))
            abort();
        for (int32_t k = 0; k < e->n; k++) {
            if (e->ids[k] < 0 || e->ids[k] >= vocab)
                abort();
            n += e->weight ? e->weight[k] > 0 : k > 0;
        }
        if (n != e->targets)
            abort();
        tokens += e->n;
        targets += n;
    }
    if (tokens != s->tokens || targets != s->targets || s->examples != tm_dataset_count(d) || s->text_bytes < 0 ||
        s->dropped > s->cut || s->cut > 64 * s->rows)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    tm_error err = {0};
    if (!pool &&
        (tm_pool_create(1, &pool, &err) != TM_OK || tm_tokenizer_open("models/stories260K", &tok, &err) != TM_OK)) {
        fprintf(stderr, "%s (run from the project's root)\n", err.message);
        abort();
    }
    if (size < 2)
        return 0;
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/temper-fuzz-%d.%s", (int)getpid(), data[0] & 128 ? "txt" : data[1] & 2 ? "csv" : "jsonl");
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data + 2, 1, size - 2, f) != size - 2 || fclose(f) != 0)
        abort();
    int64_t vocab = tm_tokenizer_vocab_size(tok), seq = data[0] & 16 ? 4 : 64;
    static char template[] = "chatml";
    tm_data_entry entry = {.path = path,
                           .format = (data[0] & 3) | (data[1] & 1) << 2,
                           .loss = data[0] >> 2 & 3,
                           .weight = 1,
                           .dedup = data[1] & 4,
                           .template = data[1] & 8 ? template : NULL,
                           .val_split = data[0] & 32 ? 0.5 : 0};
    tm_data_settings settings = {.tok = data[0] & 64 ? NULL : tok, .vocab_size = vocab, .seq = seq};
    tm_dataset *d = NULL, *held = NULL;
    tm_status st = tm_dataset_load(&entry, 1, &settings, pool, &d, &err);
    if (st == TM_OK) {
        check(d, vocab, seq);
        if (tm_dataset_split(d, &entry, 1, &held, &err) == TM_OK && held) {
            check(d, vocab, seq);
            if (tm_dataset_count(held) < 1 || tm_dataset_count(d) < 1)
                abort();
        }
    } else if (d || err.status != st || !strstr(err.message, path)) {
        fprintf(stderr, "%d %d %s\n", st, err.status, err.message);
        abort();
    }
    tm_dataset_destroy(held);
    tm_dataset_destroy(d);
    unlink(path);
    return 0;
}
