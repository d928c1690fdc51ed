#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"

namespace apb::sampling {

void TokenCounts::AddPrompt(std::span<const int32_t> tokens) {
  prompt_tokens_.assign(tokens.begin(), tokens.end());
  std::sort(prompt_tokens_.begin(), prompt_tokens_.end());
  prompt_tokens_.erase(std::unique(prompt_tokens_.begin(), prompt_tokens_.end()),
                       prompt_tokens_.end());
}
void TokenCounts::AddGenerated(int32_t token) {
  ++generated_tokens_[token];
  ++generated_;
}
bool TokenCounts::InPrompt(int32_t token) const {
  return std::binary_search(prompt_tokens_.begin(), prompt_tokens_.end(), token);
}

namespace {

constexpr float kBarred = -std::numeric_limits<float>::infinity();

bool IsInside(int32_t token, std::span<const float> logits) {
  return token >= 0 && static_cast<size_t>(token) < logits.size();
}

void ApplyPenalties(const SamplingParams& params, const TokenCounts& counts,
                    std::span<float> logits) {
  const auto repeat = [&](int32_t token) {
    float& logit = logits[token];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
  };
  if (params.repetition_penalty != 1.0f) {
    for (const int32_t token : counts.prompt_tokens()) {
      if (IsInside(token, logits)) repeat(token);
    }
    for (const auto& [token, times] : counts.generated_tokens()) {
      if (IsInside(token, logits) && !counts.InPrompt(token)) repeat(token);
    }
  }
  if (params.presence_penalty == 0.0f && params.frequency_penalty == 0.0f) return;
  for (const auto& [token, times] : counts.generated_tokens()) {
    if (!IsInside(token, logits)) continue;
    logits[token] -= params.presence_penalty + params.frequency_penalty * static_cast<float>(times);
  }
}

uint64_t Mix(uint64_t z) {  // the finalizer of SplitMix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// A number in [0, 1) that depends on (seed, index) only.
double Uniform(uint64_t seed, uint64_t index) {
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15ull;
  return static_cast<double>(Mix(Mix(seed + kStep) + (index + 1) * kStep) >> 11) * 0x1.0p-53;
}

int32_t Highest(std::span<const float> logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

// Log of the sum of exp(logits), and the best `alternatives` tokens with their log-probabilities.
struct RawLogprobs {
  float log_total = 0;
  std::vector<std::pair<int32_t, float>> top;

  RawLogprobs(std::span<const float> logits, int32_t alternatives) {
    const float highest = logits[Highest(logits)];
    double total = 0;
    for (const float x : logits) total += std::exp(x - highest);
    log_total = highest + static_cast<float>(std::log(total));
    std::vector<int32_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    const size_t count = std::min<size_t>(alternatives, order.size());
    std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    for (size_t i = 0; i < count; ++i) top.emplace_back(order[i], logits[order[i]] - log_total);
  }
};

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

// Keeps the fewest best candidates that together hold `share` of the weight. Sorts no more than it
// needs to: a prefix that grows.
void KeepTopShare(std::vector<Candidate>& candidates, float share) {
  const double wanted = share * TotalWeight(candidates);
  double sum = 0;
  size_t sorted = 0;
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

int32_t Draw(std::span<const float> logits, const SamplingParams& params, uint64_t index) {
  const float highest = logits[Highest(logits)];
  std::vector<Candidate> candidates;
  candidates.reserve(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    // The difference comes first, so a tiny temperature cannot overflow.
    if (logits[i] != kBarred) {
      candidates.push_back({std::exp((logits[i] - highest) / params.temperature), logits[i],
                            static_cast<int32_t>(i)});
    }
  }
  if (params.top_k > 0 && static_cast<size_t>(params.top_k) < candidates.size()) {
    std::nth_element(candidates.begin(), candidates.begin() + params.top_k, candidates.end(),
                     IsBetter);
    candidates.resize(params.top_k);
  }
  if (params.top_p < 1.0f) KeepTopShare(candidates, params.top_p);
  if (params.min_p > 0.0f)
    std::erase_if(candidates, [&](const Candidate& c) { return c.weight < params.min_p; });
  // Partial sorting leaves an order of its own; the order of ids is the same everywhere.
  if (params.top_k > 0 || params.top_p < 1.0f) {
    std::sort(candidates.begin(), candidates.end(),
              [](const Candidate& a, const Candidate& b) { return a.token < b.token; });
  }
  double target = Uniform(params.seed, index) * TotalWeight(candidates);
  for (const Candidate& c : candidates) {
    target -= c.weight;
    if (target < 0) return c.token;
  }
  // Rounding can leave a rest after the last weight.
  return Highest(logits);
}

}  // namespace

absl::StatusOr<SampleResult> Sample(std::span<float> logits, const SamplingParams& params,
                                    const TokenCounts& counts) {
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!(logits[i] <= std::numeric_limits<float>::max()))
      return absl::InternalError(absl::StrCat("the model gave ", logits[i], " for token ", i));
  }
  if (logits.empty()) return absl::InternalError("no logits to draw from");
  SampleResult result;
  std::vector<float> raw_logits;
  if (params.logprobs >= 0) raw_logits.assign(logits.begin(), logits.end());
  ApplyPenalties(params, counts, logits);
  if (counts.generated() < params.min_tokens) {
    for (const int32_t stop : params.stop_tokens) {
      if (IsInside(stop, logits)) logits[stop] = kBarred;
    }
  }
  const int32_t highest = Highest(logits);
  if (logits[highest] == kBarred)
    return absl::InternalError("every token is barred: nothing to draw from");
  result.token = params.temperature <= 0.0f
                     ? highest
                     : Draw(logits, params, static_cast<uint64_t>(counts.generated()));
  if (params.logprobs >= 0) {
    RawLogprobs raw(raw_logits, params.logprobs);
    result.logprob = raw_logits[result.token] - raw.log_total;
    result.top = std::move(raw.top);
  }
  return result;
}

}  // namespace apb::sampling
