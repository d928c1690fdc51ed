#include "engine/model/float_convert.h"

#include <algorithm>
#include <bit>

#include "kernels/float16.h"

namespace apb::model {
namespace {

using kernels::BFloat16;
using kernels::DType;
using kernels::Float16;

float ToFloat(float x) { return x; }
float ToFloat(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
float ToFloat(Float16 x) { return kernels::Float16ToFloat(x); }

void FromFloat(float x, float& out) { out = x; }
void FromFloat(float x, BFloat16& out) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits =
      static_cast<uint16_t>(nan ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
void FromFloat(float x, Float16& out) { out = kernels::FloatToFloat16(x); }

constexpr uint32_t kInfinity = 0x7f800000;
constexpr uint32_t MagnitudeOf(float x) { return std::bit_cast<uint32_t>(x) & 0x7fffffffu; }

// The smallest magnitude, as a float's bits, that rounds to infinity.
constexpr uint32_t OverflowsFrom(float) { return kInfinity; }
constexpr uint32_t OverflowsFrom(BFloat16) { return 0x7f7f8000; }
constexpr uint32_t OverflowsFrom(Float16) { return MagnitudeOf(65520.0f); }

template <typename Source, typename Target>
bool Convert(const Source* source, Target* target, int64_t count) {
  const uint32_t overflows_from = OverflowsFrom(Target{});
  bool fits = true;
  for (int64_t i = 0; i < count; ++i) {
    const float x = ToFloat(source[i]);
    const uint32_t magnitude = MagnitudeOf(x);
    fits &= magnitude < overflows_from || magnitude >= kInfinity;
    FromFloat(x, target[i]);
  }
  return fits;
}

template <typename Source>
bool ConvertFrom(const Source* source, DType target_type, void* target, int64_t count) {
  switch (target_type) {
    case DType::kF32:
      return Convert(source, static_cast<float*>(target), count);
    case DType::kBF16:
      return Convert(source, static_cast<BFloat16*>(target), count);
    default:
      return Convert(source, static_cast<Float16*>(target), count);
  }
}

}  // namespace

bool ConvertFloats(DType source_type, const void* source, DType target_type, void* target,
                   int64_t count) {
  switch (source_type) {
    case DType::kF32:
      return ConvertFrom(static_cast<const float*>(source), target_type, target, count);
    case DType::kBF16:
      return ConvertFrom(static_cast<const BFloat16*>(source), target_type, target, count);
    default:
      return ConvertFrom(static_cast<const Float16*>(source), target_type, target, count);
  }
}

}  // namespace apb::model
