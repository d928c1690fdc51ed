// Logits of one row -> the next token. Order of the steps: penalties, min_tokens, temperature,
// top_k, top_p (of what top_k left), min_p, draw. Log-probabilities are of the raw logits, before
// any of these. Random numbers are a function of (seed, number of the generated token), so a
// request gives the same text in any batch.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/sampling/sampling_params.h"

namespace apb::sampling {

// Which tokens a sequence has, for penalties; kept up to date token by token.
class TokenCounts {
 public:
  // Once, before the first AddGenerated.
  void AddPrompt(std::span<const int32_t> tokens);
  void AddGenerated(int32_t token);
  int64_t generated() const { return generated_; }
  // Distinct tokens of the prompt, ascending.
  const std::vector<int32_t>& prompt_tokens() const { return prompt_tokens_; }
  bool InPrompt(int32_t token) const;
  // How often each generated token occurs.
  const std::unordered_map<int32_t, int32_t>& generated_tokens() const { return generated_tokens_; }

 private:
  std::vector<int32_t> prompt_tokens_;
  std::unordered_map<int32_t, int32_t> generated_tokens_;
  int64_t generated_ = 0;
};

struct SampleResult {
  int32_t token = 0;
  float logprob = 0;                           // of the token; set if params.logprobs >= 0
  std::vector<std::pair<int32_t, float>> top;  // params.logprobs alternatives, best first
};

// Draws from logits [V] (changed in place). Greedy: the highest, lowest id on ties. kInternal if a
// logit is NaN or +inf, or if nothing may be drawn.
absl::StatusOr<SampleResult> Sample(std::span<float> logits, const SamplingParams& params,
                                    const TokenCounts& counts);

}  // namespace apb::sampling
