#include "cuda_fp16.h" /* both types are there */
