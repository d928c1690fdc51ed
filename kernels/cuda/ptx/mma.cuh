// Matrix products of a warp (mma.sync) and loads of their operands (ldmatrix), sm_80.
#pragma once

#include "kernels/cuda/device.cuh"

namespace apb::kernels::cuda {

// Loads four 8 x 8 matrices of bf16 or f16. Lane i passes the address of row i % 8 of matrix i / 8.
// It gets, of each matrix, row i / 4, columns 2 (i % 4) and 2 (i % 4) + 1.
__device__ __forceinline__ void Ldmatrix(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}
// Loads the transposed matrices.
__device__ __forceinline__ void LdmatrixTrans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// c[16, 8] += a[16, 16] b[16, 8] with operands of type T and float sums. With g = lane / 4 and
// t = lane % 4, a lane holds
//
// - of c: row g (c[0], c[1]) and row g + 8 (c[2], c[3]), columns 2t and 2t + 1;
//
// - of a: rows g and g + 8 in turn, columns 2t, 2t + 1 (a[0], a[1]) and 2t + 8, 2t + 9 (a[2],
// a[3]);
//
// - of b: column g, rows 2t, 2t + 1 (b0) and 2t + 8, 2t + 9 (b1).
template <typename T>
__device__ __forceinline__ void MmaSync(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.%10.%10.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "C"(PtxType<T>::kName));
}

}  // namespace apb::kernels::cuda
