/* A model as it lies on disk: a Hugging Face folder, or a GGUF file, which reads as the folder it stands
 * for (io/gguf_model.h). What belongs to it beside the weights, its weights, and writing a folder. */
#ifndef TM_IO_HF_H
#define TM_IO_HF_H

#include "base/hash.h"
#include "base/json.h"
#include "base/names.h"
#include "io/safetensors.h"

/* A small file of a model, appended to out: config.json, generation_config.json, tokenizer_config.json, ...
 * *there false: the model has none. */
tm_status tm_hf_read(const char *model, const char *name, tm_buf *out, bool *there, tm_error *err) TM_MUST_CHECK;
/* The same as JSON: json_decref; NULL when the model has none. */
tm_status tm_hf_json(const char *model, const char *name, json_t **out, tm_error *err) TM_MUST_CHECK;
/* The weights of a model as one table. */
tm_status tm_hf_open_weights(const char *model, tm_safetensors **out, tm_error *err) TM_MUST_CHECK;
/* Hash of what decides what a model computes: of a GGUF file, or of tm_hf_model_files. */
tm_status tm_hf_hash(const char *model, tm_sha256 *out, tm_error *err) TM_MUST_CHECK;
/* Hash of a sample of the same: config.json whole; of every tensor of the weights (NULL: none) its name, type, shape and
 * up to 4 KiB of bytes from all over it. Quick, and other weights give another: a change of few values may stay unseen. */
tm_status tm_hf_sample(const char *model, const tm_safetensors *weights, tm_sha256 *out, tm_error *err) TM_MUST_CHECK;

/* Copies config, generation config, tokenizer and chat template files, those of them that are there,
 * each atomically. The same folder as both is fine and does nothing. From a GGUF file: all but the
 * tokenizer's own files (tm_tokenizer_write). */
tm_status tm_hf_copy_files(const char *from_dir, const char *to_dir, tm_error *err) TM_MUST_CHECK;

/* The files that decide what a model computes, for its hash (tm_sha256_files): config.json, the
 * *.safetensors in order of name, the index; those that are there. */
tm_status tm_hf_model_files(const char *dir, tm_names *out, tm_error *err) TM_MUST_CHECK;

/* The default limit of a shard, as transformers has had it (5 GB, decimal). */
#define TM_HF_SHARD_BYTES INT64_C(5000000000)

/* Writes model.safetensors, or, when the tensors have more than shard_bytes together, shards
 * model-00001-of-0000N.safetensors with their index. Tensors go to shards in the given order, a new one
 * where the next would exceed shard_bytes; one that is larger alone gets a shard of its own. Each file is
 * written atomically; weights that the folder held under the other names are removed last. Of a tensor,
 * name, dtype, shape and data are read. */
tm_status tm_hf_write_model(const char *dir, const tm_st_tensor *tensors, int64_t count, int64_t shard_bytes,
                            tm_error *err) TM_MUST_CHECK;

#endif
