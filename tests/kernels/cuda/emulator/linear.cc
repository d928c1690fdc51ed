// Matrix products of the emulated backend: plain loops instead of cuBLASLt.
#include "kernels/cuda/linear.h"

#include <cstring>

#include "kernels/cuda/device.cuh"
namespace apb::kernels::cuda {
static float Get(const TensorView& v, int64_t i) {
  if (v.dtype == DType::kF32) return v.as<float>()[i];
  return v.dtype == DType::kBF16 ? ToFloat(v.as<BFloat16>()[i]) : ToFloat(v.as<Float16>()[i]);
}
static void Put(const TensorView& v, int64_t i, float f) {
  if (v.dtype == DType::kF32) v.as<float>()[i] = f;
  if (v.dtype == DType::kBF16) v.as<BFloat16>()[i] = FromFloat<BFloat16>(f);
  if (v.dtype == DType::kF16) v.as<Float16>()[i] = FromFloat<Float16>(f);
}
struct CudaLinear::Impl {};
CudaLinear::CudaLinear(std::unique_ptr<Impl> i) : impl_(std::move(i)) {}
CudaLinear::~CudaLinear() = default;
absl::StatusOr<std::unique_ptr<CudaLinear>> CudaLinear::Create() {
  return std::unique_ptr<CudaLinear>(new CudaLinear(nullptr));
}
static void Product(const LinearArgs& a) {
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
void CudaLinear::Run(const LinearArgs& a, CudaStream& stream) {
  EmuDo(stream.handle(), [=] { Product(a); });
}
}  // namespace apb::kernels::cuda
