// Linear: dot products for few rows, AMX tiles where the CPU has them, panels of converted weights
// for many rows. The matrix library's bf16 products are faster than panels for many rows.
#include <omp.h>

#include "kernels/cpu/simd/kernels.h"
#include "kernels/cpu/simd/linear_amx.h"
#include "kernels/cpu/simd/linear_dots.h"
#include "kernels/cpu/simd/linear_packed.h"
#include "kernels/cpu/simd/linear_vnni.h"

namespace apb::kernels::APB_ISA {
namespace {

// A product of at most so many rows is bound by reading the weights.
#if defined(__AVX512BF16__)
constexpr int64_t kMostDotRows = 8;
#elif defined(__AVX2__)
constexpr int64_t kMostDotRows = 18;
#else
constexpr int64_t kMostDotRows = 1;
#endif

template <typename W, typename T, typename O>
bool RunDots(const LinearArgs& args, int threads, Scratch& scratch) {
  const DotLinear<W, T, O> dots(args, scratch);
  if (!dots.has_memory()) return false;
  const int64_t outs = args.weight.shape[0];
#pragma omp parallel num_threads(threads) if (args.x.shape[1] * outs > 32768)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    dots.Run(outs * me / team, outs * (me + 1) / team);
  }
  return true;
}

template <typename W, typename T, typename O>
bool RunPacked(const LinearArgs& args, int threads, Scratch& scratch) {
#if defined(__AVX512VNNI__)
  if constexpr (kIsBlock<W>) return VnniLinearOf<W, T, O>(args, threads).Run(scratch);
#endif
  return PackedLinearOf<W, T, O>(args, threads).Run(scratch);
}

// Runs f<W, T, O>() for the types of a product.
template <typename F>
bool WithTypes(const LinearArgs& args, F f) {
  const bool f32 = args.x.dtype == DType::kF32, to_f32 = args.out.dtype == DType::kF32;
  const auto with_weights = [&]<typename W>() {
    if (f32) return f.template operator()<W, float, float>();
    if (to_f32) return f.template operator()<W, uint16_t, float>();
    return f.template operator()<W, uint16_t, uint16_t>();
  };
  if (args.weight.dtype == DType::kI8Block) return with_weights.template operator()<I8Block>();
  if (args.weight.dtype == DType::kI4Block) return with_weights.template operator()<I4Block>();
  if (f32) return f.template operator()<float, float, float>();
  if (to_f32) return f.template operator()<uint16_t, uint16_t, float>();
  return f.template operator()<uint16_t, uint16_t, uint16_t>();
}

bool Dots(const LinearArgs& args, int threads, Scratch& scratch) {
  return WithTypes(args, [&]<typename W, typename T, typename O>() {
    return RunDots<W, T, O>(args, threads, scratch);
  });
}

}  // namespace

bool PackedLinear(const LinearArgs& args, int threads, Scratch& scratch) {
  return WithTypes(args, [&]<typename W, typename T, typename O>() {
    return RunPacked<W, T, O>(args, threads, scratch);
  });
}

bool Linear(const LinearArgs& args, int threads, Scratch& scratch) {
  const int64_t rows = args.x.shape[0];
#if defined(__AMX_BF16__)
  if (args.weight.dtype == DType::kBF16 && rows > kAmxDotRows) {
    if (rows > kAmxRows) return false;
    if (AmxLinearTakes(args)) return AmxLinear(args, threads, scratch);
  }
#endif
  return rows <= kMostDotRows && Dots(args, threads, scratch);
}

}  // namespace apb::kernels::APB_ISA
