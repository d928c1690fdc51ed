// Linear of few rows as dot products. Bound by reading the weights, which are used in place. Four
// rows of weights are read at a time, because memory serves several streams half again as fast as
// one.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd/blocks.h"
#include "kernels/cpu/simd/quantized_rows.h"
#include "kernels/cpu/simd/vector.h"

namespace apb::kernels::APB_ISA {

constexpr int kDotStreams = 4;
constexpr int64_t kDotPrefetchBytes = 2048;

// The product of weights of type W and rows of x, kStep weights at a time. Prepare() converts x to
// elements X first, kXStep of them for kStep weights. Sum is a register of sums.
template <typename W>
struct DotStep {
  using X = float;  // in the order of LoadPair
  using Sum = Vec;
  static constexpr int kStep = 2 * kLanes, kXStep = kStep;
  template <int kRows>
  __attribute__((always_inline)) static void Add(const W* w, const X* x, int64_t x_stride,
                                                 Sum (&acc)[kRows]) {
    Vec a, b;
    LoadPair(w, a, b);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      MultiplyAdd(acc[r], a, x + r * x_stride);
      MultiplyAdd(acc[r], b, x + r * x_stride + kLanes);
    }
  }
  static void Prepare(const W* x, int64_t n, X* out) {
    for (int64_t i = 0; i + kStep <= n; i += kStep) {
      Vec a, b;
      LoadPair(x + i, a, b);
      Store(out + i, a);
      Store(out + i + kLanes, b);
    }
  }
};
#if defined(__AVX2__)
// For blocks of quantized weights: dot products of bytes.
template <typename Block>
struct BlockDotStep {
  using X = QuantizedX;
  using Sum = __m256;
  static constexpr int kStep = kBlockLength, kXStep = 1;
  template <int kRows>
  __attribute__((always_inline)) static void Add(const Block* w, const X* x, int64_t x_stride,
                                                 Sum (&acc)[kRows]) {
    const __m256 scale = _mm256_set1_ps(HalfToFloat(w->scale));
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const X& row = x[r * x_stride];
      const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(row.scale));
      acc[r] = _mm256_fmadd_ps(factor, DotsOf(*w, row), acc[r]);
    }
  }
  template <typename T>
  static void Prepare(const T* x, int64_t n, X* out) {
    QuantizeRow(x, n, out);
  }
};
#else
template <typename Block>
struct BlockDotStep {
  using X = float;
  using Sum = Vec;
  static constexpr int kStep = kBlockLength, kXStep = kStep;
  template <int kRows>
  __attribute__((always_inline)) static void Add(const Block* w, const X* x, int64_t x_stride,
                                                 Sum (&acc)[kRows]) {
    Vec weights[kBlockVecs];
    LoadBlock(*w, weights);
#pragma GCC unroll 8
    for (int i = 0; i < kBlockVecs; ++i) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r)
        MultiplyAdd(acc[r], weights[i], x + r * x_stride + i * kLanes);
    }
  }
  template <typename T>
  static void Prepare(const T* x, int64_t n, X* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = ToFloat(x[i]);
  }
};
#endif
template <>
struct DotStep<I8Block> : BlockDotStep<I8Block> {};
template <>
struct DotStep<I4Block> : BlockDotStep<I4Block> {};

#if defined(__AVX512BF16__)
template <>
struct DotStep<uint16_t> {
  using X = uint16_t;
  using Sum = Vec;
  static constexpr int kStep = 32, kXStep = kStep;
  template <int kRows>
  __attribute__((always_inline)) static void Add(const uint16_t* w, const X* x, int64_t x_stride,
                                                 Vec (&acc)[kRows]) {
    const __m512bh weight = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w));
    for (int r = 0; r < kRows; ++r) {
      acc[r] = reinterpret_cast<Vec>(
          _mm512_dpbf16_ps(reinterpret_cast<__m512>(acc[r]), weight,
                           reinterpret_cast<__m512bh>(_mm512_loadu_si512(x + r * x_stride))));
    }
  }
  static void Prepare(const uint16_t* x, int64_t n, X* out) { __builtin_memcpy(out, x, n * 2); }
};
#endif

#if defined(__AVX512F__)
constexpr int kDotRows = 4;  // rows of x for which the sums fit in the registers
#elif defined(__AVX2__)
constexpr int kDotRows = 3;
#else
constexpr int kDotRows = 1;
#endif

// A product with prepared x. W is the type of the weights, T of x and the bias, O of out.
template <typename W, typename T, typename O>
class DotLinear {
 public:
  DotLinear(const LinearArgs& args, Scratch& scratch) : args_(args), in_(args.x.shape[1]) {
    // An odd number of cache lines, so that rows are in different cache sets.
    x_stride_ = RoundUp(in_, 32) / Step::kStep * Step::kXStep + (Step::kXStep > 1 ? 16 : 1);
    x_ = static_cast<X*>(scratch.Reserve(args.x.shape[0] * x_stride_ * sizeof(X)));
    if (x_ == nullptr) return;
    for (int64_t r = 0; r < args.x.shape[0]; ++r) Step::Prepare(XRow(r), in_, x_ + r * x_stride_);
  }
  bool has_memory() const { return x_ != nullptr; }

  // Computes outputs [begin, end).
  void Run(int64_t begin, int64_t end) const {
    const int64_t length = (end - begin) / kDotStreams;
    for (int64_t o = begin; o < begin + length; ++o) Outputs<kDotStreams>(o, length);
    for (int64_t o = begin + length * kDotStreams; o < end; ++o) Outputs<1>(o, 0);
  }

 private:
  using Step = DotStep<W>;
  using X = typename Step::X;

  const T* XRow(int64_t r) const {
    return static_cast<const T*>(args_.x.data) + r * args_.x.stride[0];
  }

  // Computes kStreams outputs that are `length` apart, for all rows of x.
  template <int kStreams>
  void Outputs(int64_t o, int64_t length) const {
    const int64_t rows = args_.x.shape[0];
    for (int64_t first = 0; first < rows; first += kDotRows)
      Some<kStreams, kDotRows>(Min(kDotRows, rows - first), first, o, length);
  }
  template <int kStreams, int kRows>
  void Some(int64_t rows, int64_t first, int64_t o, int64_t length) const {
    if (rows == kRows) return Tile<kStreams, kRows>(first, o, length);
    if constexpr (kRows > 1) Some<kStreams, kRows - 1>(rows, first, o, length);
  }

  template <int kStreams, int kRows>
  __attribute__((noinline)) void Tile(int64_t first, int64_t o, int64_t length) const {
    constexpr int64_t kPer = kWeightsOf<W>;
    const int64_t w_stride = args_.weight.stride[0] / kPer, stream = length * w_stride;
    const W* w = static_cast<const W*>(args_.weight.data) + o * w_stride;
    const X* x = x_ + first * x_stride_;
    // Prefetches the weights that are read kDotPrefetchBytes later. If the rows are slices of
    // longer rows, the parts between them are skipped.
    const int64_t row = Max(in_ / kPer, 1), far = kDotPrefetchBytes / sizeof(W);
    const int64_t row_ends = row - far % row, ahead = far / row * w_stride + far % row;
    typename Step::Sum acc[kStreams][kRows];
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) acc[s][r] = typename Step::Sum{};
    }
    int64_t i = 0;
    for (; i + Step::kStep <= in_; i += Step::kStep) {
      const int64_t at = i / kPer, later = at + ahead + (at < row_ends ? 0 : w_stride - row);
#pragma GCC unroll 4
      for (int s = 0; s < kStreams; ++s) {
        __builtin_prefetch(w + s * stream + later, 0, 2);
        Step::Add(w + s * stream + at, x + i / Step::kStep * Step::kXStep, x_stride_, acc[s]);
      }
    }
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        float sum = SumOf(acc[s][r]);
        if constexpr (!kIsBlock<W>) {
          for (int64_t k = i; k < in_; ++k)
            sum += ToFloat(w[s * stream + k]) * ToFloat(XRow(first + r)[k]);
        }
        Write(first + r, o + s * length, sum);
      }
    }
  }

  void Write(int64_t row, int64_t out, float sum) const {
    O* y = static_cast<O*>(args_.out.data) + row * args_.out.stride[0] + out;
    if (args_.bias.data != nullptr) sum += ToFloat(static_cast<const T*>(args_.bias.data)[out]);
    Assign(*y, sum + (args_.accumulate ? ToFloat(*y) : 0.0f));
  }

  const LinearArgs& args_;
  const int64_t in_;
  int64_t x_stride_ = 0;
  X* x_ = nullptr;
};

}  // namespace apb::kernels::APB_ISA
