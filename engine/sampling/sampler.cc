#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace apb::sampling {

void TokenCounts::AddPrompt(std::span<const int32_t> tokens) {
  for (const int32_t token : tokens) counts_[token].in_prompt = true;
}
void TokenCounts::AddGenerated(int32_t token) {
  ++counts_[token].generated;
  ++generated_;
}

void ApplyPenalties(const SamplingParams& params, const TokenCounts& counts,
                    std::span<float> logits) {
  for (const auto& [token, count] : counts.counts_) {
    if (token < 0 || static_cast<size_t>(token) >= logits.size()) continue;
    float& logit = logits[token];
    if (params.repetition_penalty != 1.0f)
      logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (count.generated > 0) {
      logit -=
          params.presence_penalty + params.frequency_penalty * static_cast<float>(count.generated);
    }
  }
}

namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();

// SplitMix64 of (seed, index), as a number in [0, 1).
double Uniform(uint64_t seed, uint64_t index) {
  uint64_t z = seed * 0x9e3779b97f4a7c15ull + (index + 1) * 0xd1b54a32d192ed03ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * 0x1.0p-53;
}

int32_t Highest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Fills the log-probabilities of `result` from raw logits; the token is added by the caller.
struct Raw {
  float log_total = 0;
  std::vector<std::pair<int32_t, float>> top;
};
Raw RawLogprobs(std::span<const float> logits, int32_t alternatives) {
  Raw raw;
  const float highest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float x : logits) total += std::exp(static_cast<double>(x) - highest);
  raw.log_total = highest + static_cast<float>(std::log(total));
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t count = std::min<size_t>(alternatives, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (size_t i = 0; i < count; ++i)
    raw.top.emplace_back(order[i], logits[order[i]] - raw.log_total);
  return raw;
}

int32_t Draw(std::span<const float> logits, const SamplingParams& params, uint64_t index) {
  std::vector<std::pair<float, int32_t>> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != kBarred)
      candidates.emplace_back(logits[i] / params.temperature, static_cast<int32_t>(i));
  }
  if (candidates.empty()) return Highest(logits);
  const auto better = [](const auto& a, const auto& b) {
    return a.first != b.first ? a.first > b.first : a.second < b.second;
  };
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + params.top_k, candidates.end(),
                     better);
    candidates.resize(params.top_k);
  }
  std::sort(candidates.begin(), candidates.end(), better);
  std::vector<double> weights(candidates.size());
  double total = 0;
  for (size_t i = 0; i < candidates.size(); ++i)
    total += weights[i] = std::exp(static_cast<double>(candidates[i].first) - candidates[0].first);
  size_t keep = candidates.size();
  if (params.top_p < 1.0f) {
    double sum = 0;
    keep = 0;
    while (keep < weights.size() && sum < params.top_p * total) sum += weights[keep++];
    keep = std::max<size_t>(keep, 1);
  }
  // Relative to the most likely token, whose weight is 1.
  while (keep > 1 && weights[keep - 1] < params.min_p) --keep;
  total = std::accumulate(weights.begin(), weights.begin() + keep, 0.0);
  double target = Uniform(params.seed, index) * total;
  for (size_t i = 0; i < keep; ++i) {
    target -= weights[i];
    if (target < 0) return candidates[i].second;
  }
  return candidates[keep - 1].second;
}

}  // namespace

absl::StatusOr<SampleResult> Sample(std::span<float> logits, const SamplingParams& params,
                                    const TokenCounts& counts) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]))
      return absl::InternalError(absl::StrCat("the model gave NaN for token ", i));
  }
  SampleResult result;
  Raw raw;
  std::vector<float> untouched;
  if (params.logprobs >= 0) {
    raw = RawLogprobs(logits, params.logprobs);
    untouched.assign(logits.begin(), logits.end());
  }
  const bool penalties = params.repetition_penalty != 1.0f || params.presence_penalty != 0.0f ||
                         params.frequency_penalty != 0.0f;
  if (penalties) ApplyPenalties(params, counts, logits);
  if (counts.generated() < params.min_tokens) {
    for (const int32_t stop : params.stop_tokens) {
      if (stop >= 0 && static_cast<size_t>(stop) < logits.size()) logits[stop] = kBarred;
    }
  }
  result.token = params.temperature <= 0.0f
                     ? Highest(logits)
                     : Draw(logits, params, static_cast<uint64_t>(counts.generated()));
  if (params.logprobs >= 0) {
    result.logprob = untouched[result.token] - raw.log_total;
    result.top = std::move(raw.top);
  }
  return result;
}

}  // namespace apb::sampling
