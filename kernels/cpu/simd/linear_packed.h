// Linear of many rows. A thread converts the weights of some outputs to float and transposes them
// to panels of 16 outputs, then multiplies all rows by these panels while they are in the L2 cache.
// The weights stay as they are; the converted panels are small.
#pragma once

#include "kernels/backend.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd/blocks.h"
#include "kernels/cpu/simd/quantized_rows.h"
#include "kernels/cpu/simd/tile_math.h"

namespace apb::kernels::APB_ISA {

// Packs `count` columns of 16 rows of weights as a panel [count][16]; rows from `rows` on become 0.
template <typename W>
static void PackPanel(const W* w, int64_t stride, int rows, int64_t count, float* panel) {
  for (int j = 0; j < 16; j += kLanes) {
    int64_t k = 0;
    for (; k + kLanes <= count; k += kLanes) {
      WordVec in[kLanes];
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        in[r] = reinterpret_cast<WordVec>(j + r < rows ? LoadAs(w + (j + r) * stride + k) : Vec{});
      Transpose(in);
#pragma GCC unroll 16
      for (int r = 0; r < kLanes; ++r)
        Store(panel + (k + r) * 16 + j, reinterpret_cast<Vec>(in[r]));
    }
    for (; k < count; ++k) {
      for (int r = 0; r < kLanes; ++r)
        panel[k * 16 + j + r] = j + r < rows ? ToFloat(w[(j + r) * stride + k]) : 0.0f;
    }
  }
}

// The same for quantized weights. Decodes them to `unpacked` [rows][count] first.
template <typename Block>
static void PackBlockPanel(const Block* w, int64_t stride, int rows, int64_t count, float* panel,
                           float* unpacked) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t k = 0; k < count; k += kBlockLength) {
      Vec weights[kBlockVecs];
      LoadBlock(w[r * stride + k / kBlockLength], weights);
      for (int i = 0; i < kBlockVecs; ++i) Store(unpacked + r * count + k + i * kLanes, weights[i]);
    }
  }
  PackPanel(unpacked, count, rows, count, panel);
}

// W is the type of the weights, T of x and the bias, O of out.
template <typename W, typename T, typename O>
class PackedLinearOf {
 public:
  PackedLinearOf(const LinearArgs& args, int threads)
      : args_(args),
        threads_(threads),
        in_(args.x.shape[1]),
        outs_(args.weight.shape[0]),
        // A panel of step_ inputs stays in the L1 cache. All steps have about the same length.
        step_(RoundUp(CeilDiv(in_, CeilDiv(in_, kMostInputs)), kBlockLength)),
        // Blocks of width_ outputs, so many that all threads end together.
        width_(Max(16, Min(kMostOutputs, RoundUp(CeilDiv(outs_, 4 * threads), 16)))),
        // The 16 extra floats put rows into different cache sets.
        x_stride_(RoundUp(in_, 16) + 16),
        rows_(Max(1, Min(args.x.shape[0], Min(kMostRows, kRowBytes / (x_stride_ * 4))))) {}

  bool Run(Scratch& scratch) {
    const int64_t x_floats = RoundUp(rows_ * x_stride_, 16);
    const int64_t sums_stride = width_ + 16, sums_floats = rows_ * sums_stride;
    const int64_t thread_floats = step_ * width_ + RoundUp(sums_floats, 16);
    float* memory = static_cast<float*>(scratch.Reserve((x_floats + threads_ * thread_floats) * 4));
    if (memory == nullptr) return false;
    for (int64_t first = 0; first < args_.x.shape[0]; first += rows_) {
      const int64_t count = Min(rows_, args_.x.shape[0] - first);
#pragma omp parallel num_threads(threads_)
      {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < count; ++r) WidenRow(first + r, memory + r * x_stride_);
        float* panels = memory + x_floats + omp_get_thread_num() * thread_floats;
#pragma omp for schedule(dynamic, 1)
        for (int64_t o = 0; o < outs_; o += width_)
          Outputs(memory, first, count, o, panels, panels + step_ * width_, sums_stride);
      }
    }
    return true;
  }

 private:
  // The sums of kMostRows x kMostOutputs and the panels of kMostInputs stay in the L2 cache
  // together.
  static constexpr int64_t kMostInputs = 320, kMostOutputs = 96, kMostRows = 512;
  static constexpr int64_t kRowBytes = int64_t{32} << 20;

  void WidenRow(int64_t row, float* out) const {
    const T* x = static_cast<const T*>(args_.x.data) + row * args_.x.stride[0];
#if defined(__AVX2__)
    if constexpr (kIsBlock<W>) return RoundRow(x, in_, out);  // to the bytes of linear_dots.h
#endif
    int64_t i = 0;
    for (; i + kLanes <= in_; i += kLanes) Store(out + i, LoadAs(x + i));
    for (; i < in_; ++i) out[i] = ToFloat(x[i]);
  }

  // Computes outputs [o, o + width_) of `count` rows.
  void Outputs(const float* x, int64_t first, int64_t count, int64_t o, float* panels, float* sums,
               int64_t sums_stride) const {
    const int64_t outputs = Min(width_, outs_ - o);
    const int columns = static_cast<int>(RoundUp(outputs, 16));
    for (int64_t k = 0; k < in_; k += step_) {
      const int64_t inputs = Min(step_, in_ - k);
      for (int j = 0; j < columns; j += 16)
        Pack(o + j, static_cast<int>(Min(16, outputs - j)), k, inputs, panels + j * inputs);
      // kRowsAtOnce rows of x stay in the L1 cache while the panels pass.
      for (int64_t r = 0; r < count; r += kRowsAtOnce) {
        FloatTiles::Gemm(static_cast<int>(Min(kRowsAtOnce, count - r)), x + r * x_stride_ + k,
                         x_stride_, panels, inputs * 16, columns, static_cast<int>(inputs),
                         sums + r * sums_stride, sums_stride, k > 0);
      }
    }
    for (int64_t r = 0; r < count; ++r)
      WriteRow(first + r, o, outputs, in_ > 0 ? sums + r * sums_stride : nullptr);
  }

  // Packs inputs [k, k + inputs) of `rows` outputs from `o` on.
  void Pack(int64_t o, int rows, int64_t k, int64_t inputs, float* panel) const {
    const int64_t stride = args_.weight.stride[0] / kWeightsOf<W>;
    const W* w = static_cast<const W*>(args_.weight.data) + o * stride + k / kWeightsOf<W>;
    if constexpr (kIsBlock<W>) {
      alignas(64) float unpacked[16 * kMostInputs];
      PackBlockPanel(w, stride, rows, inputs, panel, unpacked);
    } else {
      PackPanel(w, stride, rows, inputs, panel);
    }
  }

  void WriteRow(int64_t row, int64_t o, int64_t outputs, const float* sums) const {
    O* y = static_cast<O*>(args_.out.data) + row * args_.out.stride[0] + o;
    const T* bias =
        args_.bias.data == nullptr ? nullptr : static_cast<const T*>(args_.bias.data) + o;
    int64_t i = 0;
    for (; sums != nullptr && i + kLanes <= outputs; i += kLanes) {
      Vec sum = Load(sums + i);
      if (bias != nullptr) sum += LoadAs(bias + i);
      if (args_.accumulate) sum += LoadAs(y + i);
      StoreAs(y + i, sum);
    }
    for (; i < outputs; ++i) {
      float sum = sums == nullptr ? 0.0f : sums[i];
      if (bias != nullptr) sum += ToFloat(bias[i]);
      if (args_.accumulate) sum += ToFloat(y[i]);
      Assign(y[i], sum);
    }
  }

  static constexpr int64_t kRowsAtOnce = 48;

  const LinearArgs& args_;
  const int threads_;
  const int64_t in_, outs_, step_, width_, x_stride_, rows_;
};

}  // namespace apb::kernels::APB_ISA
