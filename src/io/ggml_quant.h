/* The block types of GGUF files: how ggml packs runs of floats into 2 to 8 bits each. A row of a tensor is
 * a whole number of blocks; a block holds its own scales. Unpacking gives, to the bit, the floats that
 * ggml's reference gives (llama.cpp, ggml-quants.c); docs/formats/gguf.md has the layouts. */
#ifndef TM_IO_GGML_QUANT_H
#define TM_IO_GGML_QUANT_H

#include "base/dtype.h"

/* Numbers of the format. */
typedef enum tm_ggml {
    TM_GGML_F32 = 0, TM_GGML_F16 = 1, TM_GGML_Q4_0 = 2, TM_GGML_Q4_1 = 3, TM_GGML_Q5_0 = 6, TM_GGML_Q5_1 = 7,
    TM_GGML_Q8_0 = 8, TM_GGML_Q2_K = 10, TM_GGML_Q3_K = 11, TM_GGML_Q4_K = 12, TM_GGML_Q5_K = 13, TM_GGML_Q6_K = 14,
    TM_GGML_IQ4_NL = 20, TM_GGML_IQ4_XS = 23, TM_GGML_F64 = 28, TM_GGML_BF16 = 30, TM_GGML_TQ2_0 = 35
} tm_ggml;

enum { TM_GGML_MOST_IN_BLOCK = 256 };

typedef struct tm_ggml_type {
    tm_ggml type;
    const char *name;
    int32_t block; /* elements of a block; a row is a multiple of it */
    int32_t bytes; /* of a block */
    void (*unpack)(const uint8_t *block, float *out); /* one block; NULL: not packed (F64 to BF16) */
    void (*pack)(const float *x, uint8_t *block);     /* one block, of finite values; NULL: only read */
} tm_ggml_type;

const tm_ggml_type *tm_ggml_type_of(uint32_t number); /* NULL: a type temper does not read */

tm_dtype tm_ggml_dtype(const tm_ggml_type *type); /* of unpacked elements: F32 but for F16, BF16, F64 */

/* n elements, a multiple of the type's block. Any alignment. */
void tm_ggml_unpack(const tm_ggml_type *type, const void *blocks, float *out, int64_t n);
/* The types with a pack function; x is finite. */
void tm_ggml_pack(const tm_ggml_type *type, const float *x, void *blocks, int64_t n);

/* Quantisers, one block each (ggml_pack.c). */
void tm_pack_q8_0(const float *x, uint8_t *block);
void tm_pack_q4_0(const float *x, uint8_t *block);
void tm_pack_q5_0(const float *x, uint8_t *block);
void tm_pack_q5_1(const float *x, uint8_t *block);
void tm_pack_q4_k(const float *x, uint8_t *block);
void tm_pack_q5_k(const float *x, uint8_t *block);
void tm_pack_q6_k(const float *x, uint8_t *block);

/* Scale j (0 to 7) and minimum of a Q4_K or Q5_K block: 6 bits each, in 12 bytes. */
static inline void tm_scale_min_get(const uint8_t s[12], int j, int *scale, int *min)
{
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    *min = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
}

#endif
