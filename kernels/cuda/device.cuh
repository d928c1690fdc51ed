// What kernels say to the GPU below the level of CUDA C++: conversions, asynchronous copies to
// shared memory, and the matrix instructions of Ampere (sm_80). Hopper's are in hopper.cuh.
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

// Two numbers of type T, the first in the low half; rounds to nearest even. What is beyond a Float16
// (65504) becomes infinite, as wherever models compute in f16.
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

// 16 bytes from global to shared memory, both aligned to 16; zeros where not `valid` (the source is
// not read then).
__device__ __forceinline__ void CopyAsync16(void* target, const void* source, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(SharedAddress(target)),
               "l"(source), "r"(valid ? 16 : 0)
               : "memory");
}
// Ends a batch of this thread's copies.
__device__ __forceinline__ void CopyAsyncCommit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most the `kBatches` youngest of this thread's batches are under way.
template <int kBatches>
__device__ __forceinline__ void CopyAsyncWait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kBatches) : "memory");
}

// Four 8 x 8 matrices of bf16 or f16; lane i gives the address of row i % 8 of matrix i / 8 and gets, of
// each, row lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
// The same of the transposed matrices.
__device__ __forceinline__ void LoadMatricesTransposed(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// c[16, 8] += a[16, 16] b[16, 8], numbers of type T with float sums. With g = lane / 4 and t = lane % 4, a lane
// holds of c the rows g (c[0], c[1]) and g + 8 (c[2], c[3]), columns 2t and 2t + 1; of a the same
// rows by turns, columns 2t, 2t + 1 (a[0], a[1]) and 2t + 8, 2t + 9 (a[2], a[3]); of b the rows 2t,
// 2t + 1 (b0) and 2t + 8, 2t + 9 (b1), column g.
template <typename T>
__device__ __forceinline__ void MatrixMultiplyAdd(float (&c)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.%10.%10.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "C"(PtxType<T>::kName));
}

}  // namespace apb::kernels::cuda
