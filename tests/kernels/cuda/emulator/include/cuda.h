// The part of the CUDA driver API that kernels/cuda uses: tensor maps, with the driver's checks.
#pragma once
#include <cuda_runtime.h>
using cuuint64_t = uint64_t;
using cuuint32_t = uint32_t;
struct alignas(64) CUtensorMap {
  const void* data;
  uint64_t extent[3];
  uint64_t stride[2];
  uint32_t box[3];
  char rest[128 - 8 - 24 - 16 - 12];
};
static_assert(sizeof(CUtensorMap) == 128);
enum CUresult { CUDA_SUCCESS, CUDA_ERROR };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess };
enum { cudaEnableDefault };
enum CUtensorMapDataType { CU_TENSOR_MAP_DATA_TYPE_FLOAT16, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 };
enum {
  CU_TENSOR_MAP_INTERLEAVE_NONE,
  CU_TENSOR_MAP_SWIZZLE_128B,
  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE
};
constexpr cudaError_t cudaErrorSymbolNotFound = (cudaError_t)500;
inline CUresult cuTensorMapEncodeTiled(CUtensorMap* m, CUtensorMapDataType, uint32_t rank,
                                       void* data, const cuuint64_t* e, const cuuint64_t* s,
                                       const cuuint32_t* box, const cuuint32_t*, int, int, int,
                                       int) {
  if (rank != 3 || (uintptr_t)data % 16 || (uintptr_t)m % 64) return CUDA_ERROR;
  m->data = data;
  for (int i = 0; i < 3; ++i) {
    if (e[i] == 0 || box[i] > 256) return CUDA_ERROR;
    m->extent[i] = e[i];
    m->box[i] = box[i];
  }
  for (int i = 0; i < 2; ++i) {
    if (s[i] % 16 || s[i] == 0) return CUDA_ERROR;
    m->stride[i] = s[i];
  }
  return CUDA_SUCCESS;
}
inline cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** f, unsigned, int,
                                                    cudaDriverEntryPointQueryResult* r) {
  *f = (void*)&cuTensorMapEncodeTiled;
  *r = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}
