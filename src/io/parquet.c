#include "io/parquet.h"
tm_status tm_parquet_open(const char *path, const char *const *columns, size_t column_count, tm_parquet **out,
                          tm_error *err)
{
    (void)columns, (void)column_count;
    *out = NULL;
    return tm_fail(err, TM_UNSUPPORTED, "%s: .parquet files are not read yet", path);
}
void tm_parquet_close(tm_parquet *file) { (void)file; }
tm_status tm_parquet_read(tm_parquet *file, void *to, size_t size, size_t *got, tm_error *err)
{
    (void)file, (void)to, (void)size;
    *got = 0;
    return tm_fail(err, TM_UNSUPPORTED, "not yet");
}
