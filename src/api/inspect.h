/* The parts of temper inspect, and what compare shares with them. */
#ifndef TM_API_INSPECT_H
#define TM_API_INSPECT_H

#include "api/adapter_file.h"
#include "base/json.h"

/* "model.layers.12.self_attn.q_proj": layer 12 (-1: none), kind "q_proj" (borrowed). */
int64_t tm_module_layer(const char *module);
const char *tm_module_kind(const char *module);

/* inspect_data.c */
tm_status tm_inspect_data(const tm_inspect_request *request, bool recipe, tm_buf *out, tm_error *err) TM_MUST_CHECK;

#endif
