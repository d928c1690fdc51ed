// Logits -> the next token of each row. What a request asks for (SamplingParams) and what its
// sequence has so far (TokenCounts) become the arguments of Backend::Sample, which draws where the
// logits are; only token ids come back to the host, and the logits of rows that want
// log-probabilities. Those are of the raw logits, before penalties and temperature. Random numbers
// are a function of (seed, number of the generated token), so a request gives the same text in any
// batch.
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

// The sequence that a row of logits belongs to. References must outlive the call.
struct SampleRequest {
  const SamplingParams& params;
  const TokenCounts& counts;
};

class Sampler {
 public:
  explicit Sampler(kernels::Backend& backend)
      : backend_(backend), arguments_(backend), tokens_(backend) {}

  // Draws a token for each row of logits [R, V] f32 (backend memory, R >= 1, changed); requests
  // [R]. A row's own error is kInternal: a logit is NaN or +inf, or nothing may be drawn.
  // Synchronizes; the stream's error is the error of the call.
  absl::StatusOr<std::vector<absl::StatusOr<SampledToken>>> Sample(
      std::span<const SampleRequest> requests, const kernels::TensorView& logits,
      kernels::Stream& stream);

 private:
  kernels::Backend& backend_;
  core::Workspace arguments_, tokens_;
  // Host memory of a call, kept.
  std::vector<kernels::SampleRow> rows_;
  std::vector<kernels::LogitEdit> edits_;
  std::vector<int64_t> staging_arguments_;
  std::vector<int32_t> staging_tokens_;
  std::vector<float> raw_logits_;  // of the rows that want log-probabilities
};

}  // namespace apb::sampling
