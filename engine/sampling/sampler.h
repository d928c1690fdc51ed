// Draws the next token of each sequence from its logits. A request's SamplingParams and its
// sequence's TokenCounts become the arguments of Backend::Sample, which draws where the logits are.
// Only token ids come back to CPU memory, and the logits of sequences that want log-probabilities;
// these are of the raw logits, before penalties and temperature. Random numbers are a function of
// (seed, number of the generated token), so a request gives the same text in any batch.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/core/tensor.h"
#include "engine/sampling/sampling_params.h"
#include "kernels/backend.h"

namespace apb::sampling {

// The tokens of a sequence so far, for penalties; updated token by token.
class TokenCounts {
 public:
  // Call it at most once, before the first AddGenerated.
  void AddPrompt(std::span<const int32_t> tokens);
  void AddGenerated(int32_t token);
  int64_t generated() const { return generated_; }
  // The distinct tokens of the prompt, ascending.
  const std::vector<int32_t>& prompt_tokens() const { return prompt_tokens_; }
  bool InPrompt(int32_t token) const;
  // How often each generated token has occurred.
  const std::unordered_map<int32_t, int32_t>& generated_tokens() const { return generated_tokens_; }

 private:
  std::vector<int32_t> prompt_tokens_;
  std::unordered_map<int32_t, int32_t> generated_tokens_;
  int64_t generated_ = 0;
};

// The request and the tokens of one row of logits. The references must outlive the call.
struct SampleRequest {
  const SamplingParams& params;
  const TokenCounts& counts;
};

class Sampler {
 public:
  explicit Sampler(kernels::Backend& backend)
      : backend_(backend), arguments_(backend), tokens_(backend) {}

  // Draws a token for each row of `logits` [R, vocab] f32 (backend memory, R >= 1; changed);
  // `requests` [R]. A result is kInternal if a logit of its row is NaN or +inf, or if every token
  // is barred; the other rows are not affected. Synchronizes; the call fails with the stream's
  // error.
  absl::StatusOr<std::vector<absl::StatusOr<SampledToken>>> Sample(
      std::span<const SampleRequest> requests, const kernels::TensorView& logits,
      kernels::Stream& stream);

 private:
  kernels::Backend& backend_;
  core::Workspace arguments_, tokens_;
  // CPU memory, kept from call to call.
  std::vector<kernels::SampleRow> rows_;
  std::vector<kernels::LogitEdit> edits_;
  std::vector<int64_t> staging_arguments_;
  std::vector<int32_t> staging_tokens_;
  std::vector<float> raw_logits_;  // of the rows whose requests want log-probabilities
};

}  // namespace apb::sampling
