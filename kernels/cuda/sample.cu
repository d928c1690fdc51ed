// Samples tokens from logits (kernels/sample_args.h). A block takes a row, which stays in the L2
// cache between the passes over it. Weights are added as 64-bit integers, in units of 2^-40 of the
// best token's weight. Such sums are exact, so that the order of threads does not matter.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/operations.h"

namespace apb::kernels::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;
constexpr float kHighestLogit = std::numeric_limits<float>::max();
constexpr int kMaxId = std::numeric_limits<int>::max();

// An element's rank; a lower rank is better. Its high digit is the distance of the weight's
// logarithm from the best one, in steps, so that usual logits spread over all values of the digit.
// The lower 32 bits are the logit itself.
constexpr int kDigitBits = 11, kDigits = 1 << kDigitBits;
constexpr int kLogitBits = 32;
constexpr int kFractionBits = 40;
constexpr uint64_t kUnit = uint64_t{1} << kFractionBits;  // the best weight
static_assert(kMaxSampleVocab <= (~uint64_t{0} >> kFractionBits));
constexpr float kStepsPerBit = static_cast<float>(kDigits) / kFractionBits;

struct Element {
  float logit;
  int id;
};

// The elements of a row that are left: those of a rank below `rank`, and those of this rank with
// ids up to `id`.
struct Cut {
  uint64_t rank = ~uint64_t{0};
  int id = kMaxId;
};

struct Histogram {
  // The two words of 64-bit sums. Shared memory has no atomic addition of 64 bits.
  uint32_t low[kDigits], high[kDigits];
  __device__ void Add(int digit, uint64_t value) {
    const uint32_t before = atomicAdd(&low[digit], static_cast<uint32_t>(value));
    const bool carry = before + static_cast<uint32_t>(value) < before;
    const uint32_t upper = static_cast<uint32_t>(value >> 32) + carry;
    if (upper != 0) atomicAdd(&high[digit], upper);
  }
  __device__ uint64_t At(int digit) const {
    return static_cast<uint64_t>(high[digit]) << 32 | low[digit];
  }
};

struct SharedState {
  Histogram histogram;
  uint64_t of_part[kWarps];
  Element best_of_warp[kWarps];
  bool bad;
  int matches;
};

__device__ uint64_t WarpSum(uint64_t x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
  return x;
}

// Calls body(element) for all elements of the row, in any order. The threads share the elements.
template <typename Body>
__device__ void ForEach(const float* row, int count, Body body) {
  struct alignas(16) Four {
    float logit[4];
  };
  constexpr int kLoads = 4;  // in flight at a time
  const int misaligned = static_cast<int>(reinterpret_cast<uintptr_t>(row) / sizeof(float) % 4);
  const int head = min(count, (4 - misaligned) % 4), fours = (count - head) / 4;
  const int tail = head + fours * 4, thread = threadIdx.x;
  if (thread < head) body(Element{row[thread], thread});
  if (thread < count - tail) body(Element{row[tail + thread], tail + thread});
  for (int first = thread; first < fours; first += kLoads * kThreads) {
    Four loaded[kLoads];
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int i = first + l * kThreads;
      if (i < fours) loaded[l] = *reinterpret_cast<const Four*>(row + head + i * 4);
    }
#pragma unroll
    for (int l = 0; l < kLoads; ++l) {
      const int i = first + l * kThreads;
      if (i >= fours) continue;
#pragma unroll
      for (int e = 0; e < 4; ++e) body(Element{loaded[l].logit[e], head + i * 4 + e});
    }
  }
}

struct Found {
  int index;       // -1 if the sum of all values is 0
  uint64_t above;  // the target less the sum before this index; less than the value at it
};

// Finds the first index in [0, count) at which the running sum of value(index) exceeds
// target_of(sum of all values), a number below that sum. In each round every warp adds a part of
// the range; the next round takes the part that has the target. All threads call it and get the
// same result.
template <typename Value, typename Target>
__device__ Found FindInOrder(int count, Value value, Target target_of, uint64_t* of_part) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int begin = 0, length = count;
  uint64_t target = 0;
  for (bool first = true;; first = false) {
    const int part = (length + kWarps - 1) / kWarps;
    const int mine = begin + warp * part, end = min(mine + part, begin + length);
    uint64_t sum = 0;
#pragma unroll 4
    for (int i = mine + lane; i < end; i += kWarp) sum += value(i);
    sum = WarpSum(sum);
    if (lane == 0) of_part[warp] = sum;
    __syncthreads();
    uint64_t total = 0;
    for (int w = 0; w < kWarps; ++w) total += of_part[w];
    if (first && total > 0) target = target_of(total);
    int chosen = 0;
    if (total > 0) {
      while (target >= of_part[chosen]) target -= of_part[chosen++];
    }
    __syncthreads();  // all threads have read of_part
    if (total == 0) return {-1, 0};
    begin += chosen * part;
    if (part == 1) return {begin, target};
    length = min(part, length - chosen * part);
  }
}

class RowSampler {
 public:
  __device__ RowSampler(float* logits, int count, const SampleRow& row, SharedState& shared)
      : logits_(logits), count_(count), row_(row), shared_(shared) {}

  __device__ int32_t Sample(const LogitEdit* edits) {
    for (int i = row_.edits_begin + static_cast<int>(threadIdx.x); i < row_.edits_end;
         i += kThreads)
      logits_[edits[i].token] = Edited(logits_[edits[i].token], edits[i]);
    if (threadIdx.x == 0) shared_.bad = false;
    __syncthreads();
    const Element best = Best();
    if (shared_.bad) return kBadLogit;
    if (best.logit == -INFINITY) return kNothingToDraw;
    if (!(row_.temperature > 0.0f)) return best.id;
    highest_ = best.logit;
    // Finite, so that 0 times this number is 0.
    bits_per_logit_ = fminf(kLog2E / row_.temperature, kHighestLogit);
    if (row_.top_k > 0 && row_.top_k < count_) {
      const uint64_t wanted = static_cast<uint64_t>(row_.top_k);
      Keep([](float) { return uint64_t{1}; }, [&](uint64_t total) { return min(wanted, total); });
    }
    if (row_.top_p < 1.0f) {
      const double share = row_.top_p;
      Keep([&](float logit) { return Weight(logit); },
           [&](uint64_t total) {
             const double wanted = ceil(share * static_cast<double>(total));
             return wanted < 1 ? 1 : min(static_cast<uint64_t>(wanted), total);
           });
    }
    const Found drawn = FindInOrder(
        count_,
        [&](int id) {
          const float logit = logits_[id];
          return IsLeft(logit, id) && Share(logit) >= row_.min_p ? Weight(logit) : 0;
        },
        [&](uint64_t total) {
          const double target = row_.uniform * static_cast<double>(total);
          return min(static_cast<uint64_t>(target), total - 1);
        },
        shared_.of_part);
    return drawn.index >= 0 ? drawn.index : best.id;
  }

 private:
  // Returns the best element. Sets shared_.bad if a logit is NaN or +inf.
  __device__ Element Best() {
    Element best{-INFINITY, kMaxId};
    bool bad = false;
    ForEach(logits_, count_, [&](const Element& e) {
      bad |= !(e.logit <= kHighestLogit);
      best = Better(best, e);
    });
    if (bad) shared_.bad = true;
#pragma unroll
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      const Element other{__shfl_xor_sync(~0u, best.logit, offset),
                          __shfl_xor_sync(~0u, best.id, offset)};
      best = Better(best, other);
    }
    if (threadIdx.x % kWarp == 0) shared_.best_of_warp[threadIdx.x / kWarp] = best;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) best = Better(best, shared_.best_of_warp[w]);
    return best;
  }
  __device__ static Element Better(const Element& a, const Element& b) {
    return b.logit > a.logit || (b.logit == a.logit && b.id < a.id) ? b : a;
  }

  // log2(best weight / weight), from 0 to inf. __fmul_rn keeps the product out of multiply-adds, so
  // that every pass gets the same number.
  __device__ float Bits(float logit) const { return __fmul_rn(highest_ - logit, bits_per_logit_); }
  __device__ float Share(float logit) const { return Exp2(-Bits(logit)); }  // of the best weight
  __device__ uint64_t Weight(float logit) const {
    return static_cast<uint64_t>(Share(logit) * static_cast<float>(kUnit));
  }
  __device__ uint32_t Steps(float logit) const {
    return static_cast<uint32_t>(fminf(Bits(logit) * kStepsPerBit, kDigits - 1));
  }
  __device__ uint64_t Rank(float logit) const {
    const uint32_t bits = __float_as_uint(logit == 0.0f ? 0.0f : logit);  // -0 equals 0
    const uint32_t descending = bits & 0x80000000u ? bits : ~bits & 0x7fffffffu;
    return static_cast<uint64_t>(Steps(logit)) << kLogitBits | descending;
  }
  // The steps alone decide for most elements.
  __device__ bool IsLeft(float logit, int id) const {
    const uint32_t steps = Steps(logit), last = static_cast<uint32_t>(cut_.rank >> kLogitBits);
    if (steps != last) return steps < last;
    const uint64_t rank = Rank(logit);
    return rank < cut_.rank || (rank == cut_.rank && id <= cut_.id);
  }

  // Narrows the cut to the fewest elements, from the best one down, whose values add up to
  // wanted_of(sum of the values that are left). Radix selection finds the rank of the last such
  // element digit by digit.
  template <typename Value, typename Wanted>
  __device__ void Keep(Value value, Wanted wanted_of) {
    uint64_t prefix = 0;  // the known digits
    int known_from = kLogitBits + kDigitBits;
    uint64_t target = 0;
    for (int shift = kLogitBits; known_from > 0; shift = max(0, shift - kDigitBits)) {
      const int digits = 1 << (known_from - shift);
      FillHistogram(value, prefix, known_from, shift, digits);
      const bool first = shift == kLogitBits;
      const Found found = FindInOrder(
          digits, [&](int digit) { return shared_.histogram.At(digit); },
          [&](uint64_t total) { return first ? wanted_of(total) - 1 : target; }, shared_.of_part);
      prefix = prefix * digits + found.index;
      target = found.above;
      known_from = shift;
      // Ends if all elements with these digits are needed, or if there is only one.
      const bool whole = target + 1 == shared_.histogram.At(found.index);
      const bool single = shared_.matches == 1;
      __syncthreads();  // all threads have read the histogram
      if (whole || single) return Narrow({((prefix + 1) << shift) - 1, kMaxId});
    }
    // Of equal logits, those with the lower ids.
    const Found last = FindInOrder(
        count_,
        [&](int id) {
          const float logit = logits_[id];
          return Rank(logit) == prefix && IsLeft(logit, id) ? value(logit) : 0;
        },
        [&](uint64_t) { return target; }, shared_.of_part);
    Narrow({prefix, last.index});
  }
  // A cut behind the current one changes nothing.
  __device__ void Narrow(const Cut& cut) {
    if (cut.rank < cut_.rank || (cut.rank == cut_.rank && cut.id < cut_.id)) cut_ = cut;
  }

  // Fills the histogram, by their next digit, with the values of the elements that are left and
  // whose ranks begin with `prefix`. shared_.matches becomes their number.
  template <typename Value>
  __device__ void FillHistogram(Value value, uint64_t prefix, int known_from, int shift,
                                int digits) {
    for (int i = threadIdx.x; i < digits; i += kThreads)
      shared_.histogram.low[i] = shared_.histogram.high[i] = 0;
    if (threadIdx.x == 0) shared_.matches = 0;
    __syncthreads();
    uint64_t matches = 0,
             of_last = 0;  // the last digit, which most elements may have, needs no atomics
    const bool all = known_from > kLogitBits;
    const uint32_t steps = all ? 0 : static_cast<uint32_t>(prefix >> (kLogitBits - known_from));
    ForEach(logits_, count_, [&](const Element& e) {
      if (!all && Steps(e.logit) != steps) return;
      const uint64_t rank = Rank(e.logit);
      if (rank >> known_from != prefix || !IsLeft(e.logit, e.id)) return;
      const int digit = static_cast<int>(rank >> shift) & (digits - 1);
      ++matches;
      if (digit == digits - 1) {
        of_last += value(e.logit);
      } else {
        shared_.histogram.Add(digit, value(e.logit));
      }
    });
    matches = WarpSum(matches);
    of_last = WarpSum(of_last);
    if (threadIdx.x % kWarp == 0) {
      shared_.histogram.Add(digits - 1, of_last);
      atomicAdd(&shared_.matches, static_cast<int>(matches));
    }
    __syncthreads();
  }

  float* const logits_;
  const int count_;
  const SampleRow& row_;
  SharedState& shared_;
  float highest_ = 0, bits_per_logit_ = 0;
  Cut cut_;
};

__global__ void __launch_bounds__(kThreads, 1)
    SampleKernel(float* logits, int64_t stride, int vocab, const SampleRow* rows,
                 const LogitEdit* edits, int32_t* tokens) {
  __shared__ SharedState shared;
  RowSampler sampler(logits + blockIdx.x * stride, vocab, rows[blockIdx.x], shared);
  const int32_t token = sampler.Sample(edits);
  if (threadIdx.x == 0) tokens[blockIdx.x] = token;
}

}  // namespace

cudaError_t Enqueue(const SampleArgs& args, cudaStream_t stream) {
  return Launch(SampleKernel, dim3(static_cast<unsigned>(args.logits.shape[0])), kThreads, 0,
                stream, args.logits.as<float>(), args.logits.stride[0],
                static_cast<int>(args.logits.shape[1]), args.rows, args.edits,
                args.tokens.as<int32_t>());
}

}  // namespace apb::kernels::cuda
