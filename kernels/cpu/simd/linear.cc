// Linear: dot products for few rows, tiles where there are AMX ones, panels of converted weights for
// many rows. Where the matrix library has bf16 products they are faster for many rows.
#include <omp.h>

#include "kernels/cpu/simd/kernels.h"
#include "kernels/cpu/simd/linear_amx.h"
#include "kernels/cpu/simd/linear_dots.h"
#include "kernels/cpu/simd/linear_packed.h"

namespace apb::kernels::APB_ISA {
namespace {

// Up to so many rows a product is bound by reading the weights.
#if defined(__AVX512BF16__)
constexpr int64_t kMostDotRows = 8;
#elif defined(__AVX2__)
constexpr int64_t kMostDotRows = 18;
#else
constexpr int64_t kMostDotRows = 1;
#endif

template <typename W, typename O>
bool RunDots(const LinearArgs& args, int threads, Scratch& scratch) {
  const DotLinear<W, O> dots(args, scratch);
  if (!dots.has_memory()) return false;
  const int64_t outs = args.weight.shape[0];
#pragma omp parallel num_threads(threads) if (args.x.shape[1] * outs > 32768)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    dots.Run(outs * me / team, outs * (me + 1) / team);
  }
  return true;
}

bool Dots(const LinearArgs& args, int threads, Scratch& scratch) {
  if (args.x.dtype == DType::kF32) return RunDots<float, float>(args, threads, scratch);
  if (args.out.dtype == DType::kBF16) return RunDots<uint16_t, uint16_t>(args, threads, scratch);
  return RunDots<uint16_t, float>(args, threads, scratch);
}

}  // namespace

bool PackedLinear(const LinearArgs& args, int threads, Scratch& scratch) {
  if (args.x.dtype == DType::kF32)
    return PackedLinearOf<float, float, float>(args, threads).Run(scratch);
  if (args.out.dtype == DType::kBF16)
    return PackedLinearOf<uint16_t, uint16_t, uint16_t>(args, threads).Run(scratch);
  return PackedLinearOf<uint16_t, uint16_t, float>(args, threads).Run(scratch);
}

bool Linear(const LinearArgs& args, int threads, Scratch& scratch) {
  const int64_t rows = args.x.shape[0];
#if defined(__AMX_BF16__)
  if (args.x.dtype == DType::kBF16 && rows > kAmxDotRows) {
    if (rows > kAmxRows) return false;
    if (AmxLinearTakes(args)) return AmxLinear(args, threads, scratch);
  }
#endif
  if (rows <= kMostDotRows) return Dots(args, threads, scratch);
#if defined(__AVX512BF16__)
  return false;
#else
  return PackedLinear(args, threads, scratch);
#endif
}

}  // namespace apb::kernels::APB_ISA
