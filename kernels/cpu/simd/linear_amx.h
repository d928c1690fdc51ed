// Linear of few bf16 rows on AMX tiles. Bound by reading the weights, which are used in place: in
// out^T = W x^T rows of W are the left operand, and only x, which is small, is rearranged. The 16
// rows of a tile of W are far apart: each belongs to one of 16 long streams, which the hardware's
// prefetchers follow. An output's sum over k has the same order for every number of rows and
// threads.
#pragma once

#include <omp.h>

#include "kernels/backend.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/simd/tile_math.h"

#ifdef __AMX_BF16__
namespace apb::kernels::APB_ISA {

constexpr int64_t kAmxDotRows = 2;  // up to this number of rows dot products are as fast

constexpr int kWeightStreams = 16;  // rows of a weight tile
constexpr int kRowPanel = 16;       // rows of x in a tile
constexpr int kAmxRows = 32;        // rows of x at most, two panels
constexpr int kOutsAtOnce = 16;     // outputs of each stream that are written together
// Floats of one stream's sums. The 16 extra ones spread the streams over the cache sets.
constexpr int64_t kStreamSums = kOutsAtOnce * kAmxRows + 16;
constexpr int64_t kChainSums = kWeightStreams * kStreamSums;

// Packs rows [first, first + 16) of x as right operands [k / 32][16 pairs][16 rows][2].
static void PackLinearRows(const LinearArgs& args, int64_t first, uint16_t* out) {
  const int64_t in = args.x.shape[1];
  const uint16_t* x = static_cast<const uint16_t*>(args.x.data) + first * args.x.stride[0];
  const int64_t real = Min(16, args.x.shape[0] - first);
  for (int64_t k = 0; k < in; k += 32) {
    __m512i lines[16];
    for (int r = 0; r < 16; ++r) {
      lines[r] =
          r < real ? _mm512_loadu_si512(x + r * args.x.stride[0] + k) : _mm512_setzero_si512();
    }
    TransposeTo(lines, out + k * 16);
  }
}

// c[16 streams, rows] = w x^T. Even and odd steps of k have separate sums, because a product waits
// long for the one before it; the odd sums are kChainSums behind.
template <int kPanels>
static void LinearTiles(const uint16_t* w, int64_t stream_stride, const uint16_t* x, int64_t in,
                        float* c) {
  _tile_zero(0);
  _tile_zero(2);
  if (kPanels == 2) _tile_zero(1);
  if (kPanels == 2) _tile_zero(3);
  const uint16_t* x1 = x + in * kRowPanel;
  for (int64_t k = 0; k < in; k += 64) {
    _tile_loadd(6, x + k * 16, 64);
    _tile_loadd(4, w + k, stream_stride * 2);
    _tile_dpbf16ps(0, 4, 6);
    if (kPanels == 2) _tile_loadd(7, x1 + k * 16, 64);
    if (kPanels == 2) _tile_dpbf16ps(1, 4, 7);
    if (k + 32 == in) break;
    _tile_loadd(6, x + k * 16 + 512, 64);
    _tile_loadd(5, w + k + 32, stream_stride * 2);
    _tile_dpbf16ps(2, 5, 6);
    if (kPanels == 2) _tile_loadd(7, x1 + k * 16 + 512, 64);
    if (kPanels == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, kStreamSums * 4);
  _tile_stored(2, c + kChainSums, kStreamSums * 4);
  if (kPanels == 2) _tile_stored(1, c + 16, kStreamSums * 4);
  if (kPanels == 2) _tile_stored(3, c + kChainSums + 16, kStreamSums * 4);
}

// Writes c[outputs, rows]^T with bias and accumulation, for at most 16 outputs, whose sums are
// `step` floats apart.
template <typename O>
static void WriteLinearBlock(const LinearArgs& args, const float* c, int64_t step, int64_t o,
                             int64_t outputs) {
  const int64_t rows = args.x.shape[0];
  const uint16_t* bias = static_cast<const uint16_t*>(args.bias.data);
  alignas(64) float turned[16 * 16];
  for (int64_t first = 0; first < rows; first += 16) {
    __m512i in[16];
    for (int i = 0; i < 16; ++i) {
      const float* sums = c + Min(i, outputs - 1) * step + first;
      Vec sum = Load(sums) + Load(sums + kChainSums);
      __builtin_memcpy(&in[i], &sum, 64);
    }
    TransposeTo(in, reinterpret_cast<uint16_t*>(turned));
    for (int64_t r = 0; r < Min(16, rows - first); ++r) {
      O* y = static_cast<O*>(args.out.data) + (first + r) * args.out.stride[0] + o;
      if (outputs == 16) {
        Vec sum = Load(turned + r * 16);
        if (bias != nullptr) sum += LoadAs(bias + o);
        if (args.accumulate) sum += LoadAs(y);
        StoreAs(y, sum);
        continue;
      }
      for (int64_t i = 0; i < outputs; ++i) {
        float sum = turned[r * 16 + i];
        if (bias != nullptr) sum += ToFloat(bias[o + i]);
        if (args.accumulate) sum += ToFloat(y[i]);
        Assign(y[i], sum);
      }
    }
  }
}

// Computes outputs [begin, end): 16 streams of equal length, then the fewer than 16 that remain.
template <int kPanels, typename O>
static void LinearStreams(const LinearArgs& args, const uint16_t* x, int64_t begin, int64_t end,
                          float* c) {
  const int64_t in = args.x.shape[1], w_stride = args.weight.stride[0],
                length = (end - begin) / kWeightStreams;
  const uint16_t* weights = static_cast<const uint16_t*>(args.weight.data);
  for (int64_t o = 0; o < length; o += kOutsAtOnce) {
    const int64_t outputs = Min(kOutsAtOnce, length - o);
    for (int64_t i = 0; i < outputs; ++i) {
      LinearTiles<kPanels>(weights + (begin + o + i) * w_stride, length * w_stride, x, in,
                           c + i * kAmxRows);
    }
    for (int64_t s = 0; s < kWeightStreams; ++s) {
      WriteLinearBlock<O>(args, c + s * kStreamSums, kAmxRows, begin + s * length + o, outputs);
    }
  }
  const int64_t rest = end - begin - kWeightStreams * length;
  if (rest == 0) return;
  // Computes a whole tile again, and writes only its new outputs.
  LinearTiles<kPanels>(weights + (end - kWeightStreams) * w_stride, w_stride, x, in, c);
  WriteLinearBlock<O>(args, c + (kWeightStreams - rest) * kStreamSums, kStreamSums, end - rest,
                      rest);
}

template <int kPanels, typename O>
static bool LinearOnTiles(const LinearArgs& args, int threads, Scratch& scratch) {
  const int64_t in = args.x.shape[1], outs = args.weight.shape[0];
  const int64_t packed_bytes = kPanels * kRowPanel * in * 2;
  const int64_t thread_bytes = RoundUp(packed_bytes + 2 * kChainSums * 4, 4096) + 64;
  threads = in * outs < 32768 ? 1 : static_cast<int>(Min(threads, outs / kWeightStreams));
  char* memory = static_cast<char*>(scratch.Reserve(threads * thread_bytes));
  if (memory == nullptr) return false;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int64_t team = omp_get_num_threads(), me = omp_get_thread_num();
    uint16_t* x = reinterpret_cast<uint16_t*>(memory + me * thread_bytes);
    float* c = reinterpret_cast<float*>(memory + me * thread_bytes + packed_bytes);
    for (int p = 0; p < kPanels; ++p) PackLinearRows(args, p * kRowPanel, x + p * kRowPanel * in);
    AmxTiles::Begin();
    LinearStreams<kPanels, O>(args, x, outs * me / team, outs * (me + 1) / team, c);
    AmxTiles::End();
  }
  return true;
}

static bool AmxLinearTakes(const LinearArgs& args) {
  return args.x.shape[1] % 32 == 0 && args.x.shape[1] <= (1 << 16) &&
         args.weight.shape[0] >= kWeightStreams;
}

static bool AmxLinear(const LinearArgs& args, int threads, Scratch& scratch) {
  const bool narrow = args.x.shape[0] <= kRowPanel, bf16 = args.out.dtype == DType::kBF16;
  if (narrow && bf16) return LinearOnTiles<1, uint16_t>(args, threads, scratch);
  if (narrow) return LinearOnTiles<1, float>(args, threads, scratch);
  if (bf16) return LinearOnTiles<2, uint16_t>(args, threads, scratch);
  return LinearOnTiles<2, float>(args, threads, scratch);
}

}  // namespace apb::kernels::APB_ISA
#endif
