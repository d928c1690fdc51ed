// Linear of many rows with quantized weights, as dot products of bytes (VNNI). A thread rearranges
// panels of 16 outputs, so that a register holds four weights of each, and multiplies all rows by
// them. The sums over a block of 32 are integers, and exact.
#pragma once

#if defined(__AVX512VNNI__)

#include "kernels/backend.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd/quantized_rows.h"

namespace apb::kernels::APB_ISA {

// A block of 32 weights for each of 16 outputs.
struct alignas(64) VnniPanel {
  uint8_t weights[kBlockLength / 4][16][4];
  float scale[16];
  float zero[16];  // only for int4 blocks
};

// Transposes eight rows of eight 32-bit words: word j of all rows goes to word 16 * j of `out`.
static void TurnEight(const __m256i (&in)[8], uint8_t* out) {
  __m256i t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_epi32(in[2 * i], in[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_epi32(in[2 * i], in[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i * 64),
                        _mm256_permute2x128_si256(u[i], u[4 + i], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + (i + 4) * 64),
                        _mm256_permute2x128_si256(u[i], u[4 + i], 0x31));
  }
}

// Packs `rows` rows of `blocks` blocks each; the other rows of the panels become 0.
template <typename Block>
static void PackVnniPanels(const Block* w, int64_t stride, int rows, int64_t blocks,
                           VnniPanel* panels) {
  for (int64_t b = 0; b < blocks; ++b) {
    VnniPanel& panel = panels[b];
    for (int half = 0; half < 16; half += 8) {
      __m256i in[8];
      for (int r = 0; r < 8; ++r) {
        const bool there = half + r < rows;
        const Block* block = w + (half + r) * stride + b;
        in[r] = there ? BytesOf(*block) : _mm256_setzero_si256();
        panel.scale[half + r] = there ? HalfToFloat(block->scale) : 0.0f;
        if constexpr (kHasZero<Block>)
          panel.zero[half + r] = there ? HalfToFloat(block->zero) : 0.0f;
      }
      TurnEight(in, &panel.weights[0][half][0]);
    }
  }
}

// Writes sums[r][16] for kRows rows of x. Not inlined, so that every sum is in a register.
template <int kRows, bool kZero>
__attribute__((noinline)) static void VnniTile(const VnniPanel* panels, int64_t blocks,
                                               const QuantizedX* x, int64_t x_stride, float* sums) {
  __m512 total[kRows];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) total[r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; ++b) {
    const VnniPanel& panel = panels[b];
    __m512i acc[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      acc[r] = kZero ? _mm512_setzero_si512() : _mm512_set1_epi32(x[r * x_stride + b].minus_128_q);
    }
#pragma GCC unroll 8
    for (int k = 0; k < static_cast<int>(kBlockLength) / 4; ++k) {
      const __m512i weights = _mm512_load_si512(panel.weights[k]);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        int32_t four;
        __builtin_memcpy(&four, x[r * x_stride + b].q + 4 * k, 4);
        acc[r] = _mm512_dpbusd_epi32(acc[r], weights, _mm512_set1_epi32(four));
      }
    }
    const __m512 scale = _mm512_load_ps(panel.scale);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const QuantizedX& row = x[r * x_stride + b];
      __m512 sum = _mm512_cvtepi32_ps(acc[r]);
      if (kZero) {
        sum = _mm512_fnmadd_ps(_mm512_load_ps(panel.zero), _mm512_set1_ps(row.sum), sum);
      }
      total[r] = _mm512_fmadd_ps(_mm512_mul_ps(sum, _mm512_set1_ps(row.scale)), scale, total[r]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(sums + r * 16, total[r]);
}

// Block is the type of the weights, T of x and the bias, O of out.
template <typename Block, typename T, typename O>
class VnniLinearOf {
 public:
  VnniLinearOf(const LinearArgs& args, int threads)
      : args_(args),
        threads_(threads),
        outs_(args.weight.shape[0]),
        blocks_(args.x.shape[1] / kBlockLength),
        // A task's panels stay in the L2 cache. There are so many tasks that all threads end
        // together.
        panels_(Max(1, Min(Min(kMostPanels, kPanelBytes / (blocks_ * kPanelSize + 1)),
                           CeilDiv(outs_, 16 * 4 * threads)))),
        x_stride_(blocks_ + 1),
        rows_(Max(1, Min(args.x.shape[0], kMostRows))) {}

  bool Run(Scratch& scratch) {
    const int64_t x_bytes = RoundUp(rows_ * x_stride_ * kXSize, 64);
    const int64_t thread_bytes = panels_ * blocks_ * kPanelSize;
    char* memory = static_cast<char*>(scratch.Reserve(x_bytes + threads_ * thread_bytes));
    if (memory == nullptr) return false;
    auto* x = reinterpret_cast<QuantizedX*>(memory);
    for (int64_t first = 0; first < args_.x.shape[0]; first += rows_) {
      const int64_t count = Min(rows_, args_.x.shape[0] - first);
#pragma omp parallel num_threads(threads_)
      {
#pragma omp for schedule(static)
        for (int64_t r = 0; r < count; ++r)
          QuantizeRow(XRow(first + r), args_.x.shape[1], x + r * x_stride_);
        auto* panels =
            reinterpret_cast<VnniPanel*>(memory + x_bytes + omp_get_thread_num() * thread_bytes);
#pragma omp for schedule(dynamic, 1)
        for (int64_t o = 0; o < outs_; o += 16 * panels_) Outputs(x, first, count, o, panels);
      }
    }
    return true;
  }

 private:
  static constexpr int64_t kPanelSize = sizeof(VnniPanel), kXSize = sizeof(QuantizedX);
  static constexpr int64_t kMostPanels = 6, kPanelBytes = 256 << 10, kMostRows = 512;
  static constexpr int kTileRows = 12;

  const T* XRow(int64_t r) const {
    return static_cast<const T*>(args_.x.data) + r * args_.x.stride[0];
  }

  // Outputs [o, o + 16 * panels_) of `count` rows.
  void Outputs(const QuantizedX* x, int64_t first, int64_t count, int64_t o,
               VnniPanel* panels) const {
    const int64_t end = Min(outs_, o + 16 * panels_);
    const int64_t stride = args_.weight.stride[0] / kBlockLength;
    for (int64_t j = o; j < end; j += 16) {
      PackVnniPanels(static_cast<const Block*>(args_.weight.data) + j * stride, stride,
                     static_cast<int>(Min(16, end - j)), blocks_, panels + (j - o) / 16 * blocks_);
    }
    for (int64_t r = 0; r < count; r += kTileRows) {
      for (int64_t j = o; j < end; j += 16) {
        Rows<kTileRows>(Min(kTileRows, count - r), x + r * x_stride_, first + r, j,
                        Min(16, end - j), panels + (j - o) / 16 * blocks_);
      }
    }
  }

  // `rows` rows, at most kMost, in tiles of kMost, half as many, and so on.
  template <int kMost>
  void Rows(int64_t rows, const QuantizedX* x, int64_t row, int64_t o, int64_t outputs,
            const VnniPanel* panels) const {
    for (; rows >= kMost; rows -= kMost, row += kMost, x += kMost * x_stride_) {
      float sums[kMost * 16];
      VnniTile<kMost, kHasZero<Block>>(panels, blocks_, x, x_stride_, sums);
      for (int r = 0; r < kMost; ++r) WriteRow(row + r, o, outputs, sums + r * 16);
    }
    if constexpr (kMost > 1) Rows<kMost / 2>(rows, x, row, o, outputs, panels);
  }

  void WriteRow(int64_t row, int64_t o, int64_t outputs, const float* sums) const {
    O* y = static_cast<O*>(args_.out.data) + row * args_.out.stride[0] + o;
    const T* bias =
        args_.bias.data == nullptr ? nullptr : static_cast<const T*>(args_.bias.data) + o;
    if (outputs == 16) {
      Vec sum = Load(sums);
      if (bias != nullptr) sum += LoadAs(bias);
      if (args_.accumulate) sum += LoadAs(y);
      return StoreAs(y, sum);
    }
    for (int64_t i = 0; i < outputs; ++i) {
      float sum = sums[i];
      if (bias != nullptr) sum += ToFloat(bias[i]);
      if (args_.accumulate) sum += ToFloat(y[i]);
      Assign(y[i], sum);
    }
  }

  const LinearArgs& args_;
  const int threads_;
  const int64_t outs_, blocks_, panels_, x_stride_, rows_;
};

}  // namespace apb::kernels::APB_ISA

#endif
