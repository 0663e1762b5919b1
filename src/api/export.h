/* Parts of temper export: see export.c. */
#ifndef TM_API_EXPORT_H
#define TM_API_EXPORT_H

#include "base/json.h"
#include "io/gguf_model.h"
#include "io/gguf_write.h"
#include "model/config.h"

/* Positions up to which the file computes what the model does: its context length, or, where the
 * architecture has no sliding windows, the window. */
int64_t tm_export_positions(const tm_gguf_family *family, const tm_model_config *c);
/* <architecture>.* of a model. */
tm_status tm_export_config(tm_gguf_writer *w, const tm_gguf_family *family, const tm_model_config *c, const char *model,
                           tm_error *err) TM_MUST_CHECK;
/* The whole of --adapter-only. text: for people, appended. */
tm_status tm_export_adapter(const char *model, const char *adapter, const char *path, tm_ggml type, tm_buf *text,
                            tm_error *err) TM_MUST_CHECK;

#endif
