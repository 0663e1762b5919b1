/* Any bytes as a Parquet file: an error that names it, or rows that are JSON. */
#include "base/json.h"
#include "io/parquet.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const columns[] = {"text", "input_ids", "messages", "history", "system", "output"};
    static char rows[1 << 16];
    char path[64];
    snprintf(path, sizeof path, "/dev/shm/temper-fuzz-%d.parquet", (int)getpid());
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0)
        abort();
    tm_error err = {0};
    tm_parquet *file;
    size_t got = 0, total = 0;
    tm_status st = tm_parquet_open(path, columns, 6, &file, &err);
    while (st == TM_OK && total < 8 << 20) {
        st = tm_parquet_read(file, rows, sizeof rows, &got, &err);
        json_t *row;
        const char *end = memchr(rows, '\n', got);
        tm_error bad;
        if (total == 0 && end && tm_json_parse_row(rows, (size_t)(end - rows), &row, &bad) == TM_OK)
            json_decref(row); /* text that is not UTF-8 is refused here, as for every other file */
        total += got;
        if (got < sizeof rows)
            break;
    }
    if (st != TM_OK && (err.status != st || !strstr(err.message, path))) {
        fprintf(stderr, "%d %d %s\n", st, err.status, err.message);
        abort();
    }
    tm_parquet_close(file);
    unlink(path);
    return 0;
}
