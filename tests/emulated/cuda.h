/* Tensor maps as the driver encodes them, for the processor: what the kernels' copies read (simt.cpp). */
#ifndef TM_TESTS_EMULATED_CUDA_H
#define TM_TESTS_EMULATED_CUDA_H

#include "cuda_runtime.h"

typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;
enum CUresult { CUDA_SUCCESS, CUDA_ERROR_INVALID_VALUE };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6, CU_TENSOR_MAP_DATA_TYPE_FLOAT32, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9 };
enum CUtensorMapInterleave { CU_TENSOR_MAP_INTERLEAVE_NONE };
enum CUtensorMapSwizzle { CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_SWIZZLE_128B = 3 };
enum CUtensorMapL2promotion { CU_TENSOR_MAP_L2_PROMOTION_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B = 3 };
enum CUtensorMapFloatOOBfill { CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE };

struct alignas(64) CUtensorMap {
    char *data;
    CUtensorMapDataType type;
    int rank, element; /* element: its bytes */
    bool swizzled;
    cuuint64_t size[3], stride[3]; /* elements, bytes; stride[0] is the element's */
    cuuint32_t box[3];
};

CUresult emulated_encode(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank, void *data, const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box, const cuuint32_t *steps,
                         CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill);

enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };
static inline cudaError_t cudaGetDriverEntryPointByVersion(const char *, void **call, unsigned, int, cudaDriverEntryPointQueryResult *result)
{
    *call = (void *)emulated_encode;
    *result = cudaDriverEntryPointSuccess;
    return cudaSuccess;
}

#endif
