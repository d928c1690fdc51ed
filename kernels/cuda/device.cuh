// What all kernels say to the GPU below the level of CUDA C++: conversions, sums of a warp, shared
// memory. Instructions that belong to one generation are in ptx/.
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

// What instructions call a type of two bytes.
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

// Two numbers of type T, the first in the low half; rounds to nearest even. What is beyond a
// Float16 (65504) becomes infinite, as wherever models compute in f16.
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

// Over all lanes of the warp; every lane gets the result.
__device__ __forceinline__ float WarpSum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// The block's dynamic shared memory, aligned to 1024 bytes when the launch asks for that much more.
__device__ __forceinline__ unsigned char* SharedMemory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

}  // namespace apb::kernels::cuda
