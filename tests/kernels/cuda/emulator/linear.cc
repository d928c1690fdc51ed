// Matrix products of the emulated backend: plain loops in place of cuBLASLt.
#include "kernels/cuda/linear.h"

#include <cstring>
namespace apb::kernels::cuda {
static float Get(const TensorView& v, int64_t i) {
  if (v.dtype == DType::kF32) return v.as<float>()[i];
  uint32_t u = (uint32_t)v.as<uint16_t>()[i] << 16;
  float f;
  memcpy(&f, &u, 4);
  return f;
}
static void Put(const TensorView& v, int64_t i, float f) {
  if (v.dtype == DType::kF32) {
    v.as<float>()[i] = f;
    return;
  }
  uint32_t u;
  memcpy(&u, &f, 4);
  v.as<uint16_t>()[i] = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
}
struct CudaLinear::Impl {};
CudaLinear::CudaLinear(std::unique_ptr<Impl> i) : impl_(std::move(i)) {}
CudaLinear::~CudaLinear() = default;
absl::StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::Create() {
  return std::unique_ptr<CudaLinear>(new CudaLinear(nullptr));
}
void CudaLinear::Run(const LinearArgs& a, CudaStream&) {
  for (int64_t t = 0; t < a.x.shape[0]; ++t)
    for (int64_t o = 0; o < a.weight.shape[0]; ++o) {
      float s = 0;
      for (int64_t i = 0; i < a.x.shape[1]; ++i)
        s += Get(a.x, t * a.x.stride[0] + i) * Get(a.weight, o * a.weight.stride[0] + i);
      if (a.bias.present()) s += Get(a.bias, o);
      if (a.accumulate) s += Get(a.out, t * a.out.stride[0] + o);
      Put(a.out, t * a.out.stride[0] + o, s);
    }
}
}  // namespace apb::kernels::cuda
