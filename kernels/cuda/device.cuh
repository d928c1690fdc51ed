// Helpers of all kernels below the level of CUDA C++: conversions, sums of a warp, shared memory.
// Instructions that only some architectures have are in ptx/.
#pragma once

#include <cstdint>

#include "kernels/tensor_view.h"

namespace apb::kernels::cuda {

constexpr int kWarp = 32;
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;

__device__ __forceinline__ float ToFloat(float x) { return x; }
__device__ __forceinline__ float ToFloat(BFloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

__device__ __forceinline__ float ToFloat(Float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// The name of a two-byte type in PTX instructions.
template <typename T>
struct PtxType;
template <>
struct PtxType<BFloat16> {
  static constexpr char kName[] = "bf16";
};
template <>
struct PtxType<Float16> {
  static constexpr char kName[] = "f16";
};

// Packs two numbers of type T, the first in the low half. Rounds to nearest even. Magnitudes beyond
// Float16's largest (65504) become infinite.
template <typename T>
__device__ __forceinline__ uint32_t PackPair(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.%3x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low), "C"(PtxType<T>::kName));
  return packed;
}

template <typename T>
__device__ __forceinline__ T FromFloat(float x) {
  return T{static_cast<uint16_t>(PackPair<T>(x, 0.0f))};
}
template <>
__device__ __forceinline__ float FromFloat<float>(float x) {
  return x;
}

// 2^x; 0 for -inf.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The sum over all lanes of the warp; every lane gets it.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// The block's dynamic shared memory. Only 16 bytes of alignment are sure: a kernel that needs 1024
// asks for 1024 bytes more and aligns the address itself.
__device__ __forceinline__ unsigned char* SharedMemory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace apb::kernels::cuda
