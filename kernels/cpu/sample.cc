// Sampling on the CPU: one pass over the logits, then work on the few that can be drawn.
#include <algorithm>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "kernels/cpu/operations_on_cpu.h"

namespace apb::kernels {
namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();
constexpr size_t kBlock = 64;

// The highest logit of each block of kBlock; empty if a logit is NaN or +inf.
std::vector<float> BlockMaxima(std::span<const float> logits) {
  std::vector<float> maxima((logits.size() + kBlock - 1) / kBlock);
  int bad = 0;
  for (size_t b = 0; b < maxima.size(); ++b) {
    const std::span<const float> block =
        logits.subspan(b * kBlock, std::min(kBlock, logits.size() - b * kBlock));
    float highest = kBarred;
#pragma omp simd reduction(max : highest) reduction(| : bad)
    for (size_t i = 0; i < block.size(); ++i) {
      highest = std::max(highest, block[i]);
      bad |= !(block[i] <= std::numeric_limits<float>::max());
    }
    maxima[b] = highest;
  }
  if (bad != 0) maxima.clear();
  return maxima;
}

// A lower bound of the `count` highest logits that few others reach: `count` blocks have a logit of
// at least this height.
float BoundOfHighest(std::vector<float> maxima, size_t count) {
  if (count > maxima.size()) return kBarred;
  const auto at = maxima.begin() + static_cast<std::ptrdiff_t>(count) - 1;
  std::nth_element(maxima.begin(), at, maxima.end(), std::greater<>());
  return *at;
}

struct Candidate {
  float weight;  // exp of (logit - highest) / temperature: 1 for the most likely token
  float logit;   // breaks ties of weights that underflow
  int32_t token;
};
bool IsBetter(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.token < b.token;
}

double TotalWeight(std::span<const Candidate> candidates) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  return total;
}

// Keeps the fewest candidates, from the best one down, that together have `share` of the weight.
void KeepTopShare(std::vector<Candidate>& candidates, float share) {
  const double total = TotalWeight(candidates), wanted = share * total;
  // All candidates below this weight together have less than the share that may be left out.
  const double light = (1.0 - std::max(share, 0.0f)) * total / 2 / candidates.size();
  std::erase_if(candidates, [&](const Candidate& c) { return c.weight < light; });
  double sum = 0;
  size_t sorted = 0;  // length of the sorted prefix, which grows as needed
  for (size_t kept = 0; kept < candidates.size(); ++kept) {
    if (kept == sorted) {
      const auto begin = candidates.begin() + static_cast<std::ptrdiff_t>(sorted);
      sorted = std::min(candidates.size(), std::max<size_t>(64, sorted * 8));
      const auto end = candidates.begin() + static_cast<std::ptrdiff_t>(sorted);
      std::nth_element(begin, end - 1, candidates.end(), IsBetter);
      std::sort(begin, end, IsBetter);
    }
    sum += candidates[kept].weight;
    if (sum >= wanted) {
      candidates.resize(kept + 1);
      return;
    }
  }
}

// The tokens that top_k, top_p and min_p leave, in the order of ids.
std::vector<Candidate> Candidates(std::span<const float> logits, const SampleRow& row,
                                  const std::vector<float>& maxima, float highest) {
  const bool cut = row.top_k > 0 && static_cast<size_t>(row.top_k) < logits.size();
  const float bound = cut ? BoundOfHighest(maxima, row.top_k) : kBarred;
  std::vector<Candidate> candidates;
  if (!cut) candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] >= bound && logits[i] != kBarred)
      candidates.push_back({0, logits[i], static_cast<int32_t>(i)});
  }
  if (cut && static_cast<size_t>(row.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + row.top_k, candidates.end(),
                     IsBetter);
    candidates.resize(row.top_k);
  }
  // The difference is taken first, so that a tiny temperature cannot overflow.
  for (Candidate& c : candidates) c.weight = std::exp((c.logit - highest) / row.temperature);
  if (row.top_p < 1.0f) KeepTopShare(candidates, row.top_p);
  if (row.min_p > 0.0f)
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < row.min_p; });
  // The order of ids does not depend on how nth_element left the candidates.
  if (row.top_k > 0 || row.top_p < 1.0f) {
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  }
  return candidates;
}

int32_t SampleRowOnCpu(std::span<float> logits, const SampleRow& row,
                       std::span<const LogitEdit> edits) {
  for (const LogitEdit& edit : edits) logits[edit.token] = Edited(logits[edit.token], edit);
  const std::vector<float> maxima = BlockMaxima(logits);
  if (maxima.empty()) return kBadLogit;
  const auto best_block = std::max_element(maxima.begin(), maxima.end());
  const float highest = *best_block;
  if (highest == kBarred) return kNothingToDraw;
  const auto first = logits.begin() + (best_block - maxima.begin()) * kBlock;
  const auto best = static_cast<int32_t>(std::find(first, logits.end(), highest) - logits.begin());
  if (row.temperature <= 0.0f) return best;
  const std::vector<Candidate> candidates = Candidates(logits, row, maxima, highest);
  double target = row.uniform * TotalWeight(candidates);
  for (const Candidate& c : candidates) {
    target -= c.weight;
    if (target < 0) return c.token;
  }
  return best;  // rounding made the target exceed the sum, or min_p left no token
}

}  // namespace

void OnCpu(const SampleArgs& args, int threads) {
  const int64_t rows = args.logits.shape[0], vocab = args.logits.shape[1];
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    const SampleRow& row = args.rows[r];
    const std::span<float> logits(args.logits.as<float>() + r * args.logits.stride[0], vocab);
    args.tokens.as<int32_t>()[r] =
        SampleRowOnCpu(logits, row,
                       std::span(args.edits, args.edit_count)
                           .subspan(row.edits_begin, row.edits_end - row.edits_begin));
  }
}

}  // namespace apb::kernels
