#include "engine/sampling/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"

namespace apb::sampling {

using kernels::DType;
using kernels::TensorView;

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

// The stop tokens that may not be drawn yet, ascending, each once.
std::vector<int32_t> BarredTokens(const SampleRequest& request) {
  if (request.counts.generated() >= request.params.min_tokens) return {};
  std::vector<int32_t> barred = request.params.stop_tokens;
  std::sort(barred.begin(), barred.end());
  barred.erase(std::unique(barred.begin(), barred.end()), barred.end());
  return barred;
}

// Appends the edits of a row of logits. Each token has at most one edit; tokens outside the
// vocabulary have none.
void AppendEdits(const SampleRequest& request, int64_t vocab,
                 std::vector<kernels::LogitEdit>& edits) {
  const auto& [params, counts] = request;
  const std::vector<int32_t> barred = BarredTokens(request);
  const auto append = [&](int32_t token, float penalty, float subtract) {
    if (token < 0 || token >= vocab) return;
    edits.push_back({.token = token, .penalty = penalty, .subtract = subtract});
  };
  for (const int32_t token : barred) append(token, 1, std::numeric_limits<float>::infinity());
  const auto is_barred = [&](int32_t token) {
    return std::binary_search(barred.begin(), barred.end(), token);
  };
  const bool repetition = params.repetition_penalty != 1.0f;
  if (repetition) {
    for (const int32_t token : counts.prompt_tokens()) {
      if (!counts.generated_tokens().contains(token) && !is_barred(token))
        append(token, params.repetition_penalty, 0);
    }
  }
  if (!repetition && params.presence_penalty == 0.0f && params.frequency_penalty == 0.0f) return;
  constexpr float kHighest = std::numeric_limits<float>::max();
  for (const auto& [token, times] : counts.generated_tokens()) {
    if (is_barred(token)) continue;
    const float subtract =
        params.presence_penalty + params.frequency_penalty * static_cast<float>(times);
    append(token, params.repetition_penalty, std::clamp(subtract, -kHighest, kHighest));
  }
}

uint64_t Mix(uint64_t z) {  // the finalizer of SplitMix64
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

// A number in [0, 1) that depends only on (seed, index).
double Uniform(uint64_t seed, uint64_t index) {
  constexpr uint64_t kStep = 0x9e3779b97f4a7c15ull;
  return static_cast<double>(Mix(Mix(seed + kStep) + (index + 1) * kStep) >> 11) * 0x1.0p-53;
}

kernels::SampleRow RowOf(const SampleRequest& request, int64_t vocab,
                         std::vector<kernels::LogitEdit>& edits) {
  const auto& [params, counts] = request;
  kernels::SampleRow row{.uniform = Uniform(params.seed, static_cast<uint64_t>(counts.generated())),
                         .temperature = params.temperature,
                         .top_p = params.top_p,
                         .min_p = params.min_p,
                         .top_k = params.top_k,
                         .edits_begin = static_cast<int32_t>(edits.size())};
  AppendEdits(request, vocab, edits);
  row.edits_end = static_cast<int32_t>(edits.size());
  return row;
}

// Sets the log-probabilities of the result. Every logit is finite or -inf.
void SetLogprobs(std::span<const float> logits, int32_t alternatives, SampledToken& result) {
  const float highest = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (const float x : logits) total += std::exp(x - highest);
  const float log_total = highest + static_cast<float>(std::log(total));
  result.logprob = logits[result.token] - log_total;
  std::vector<int32_t> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  const size_t count = std::min<size_t>(alternatives, order.size());
  std::partial_sort(order.begin(), order.begin() + count, order.end(), [&](int32_t a, int32_t b) {
    return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
  });
  for (size_t i = 0; i < count; ++i)
    result.top.emplace_back(order[i], logits[order[i]] - log_total);
}

}  // namespace

absl::StatusOr<std::vector<absl::StatusOr<SampledToken>>> Sampler::Sample(
    std::span<const SampleRequest> requests, const TensorView& logits, kernels::Stream& stream) {
  const int64_t count = logits.rows(), vocab = logits.shape[1];
  rows_.clear();
  edits_.clear();
  raw_logits_.clear();
  for (const SampleRequest& request : requests) {
    rows_.push_back(RowOf(request, vocab, edits_));
    if (request.params.logprobs >= 0) raw_logits_.resize(raw_logits_.size() + vocab);
  }
  for (int64_t i = 0, at = 0; i < count; ++i) {
    if (requests[i].params.logprobs < 0) continue;
    backend_.Copy(logits.Rows(i, i + 1),
                  TensorView::Contiguous(raw_logits_.data() + at, DType::kF32, {1, vocab}), stream);
    at += vocab;
  }
  // One copy to the device for all arguments: the rows, then the edits.
  const size_t row_bytes = rows_.size() * sizeof(kernels::SampleRow);
  const size_t edit_bytes = edits_.size() * sizeof(kernels::LogitEdit);
  static_assert(sizeof(kernels::SampleRow) % sizeof(int64_t) == 0);
  const int64_t words = static_cast<int64_t>((row_bytes + edit_bytes + 7) / sizeof(int64_t));
  staging_arguments_.resize(words);
  std::memcpy(staging_arguments_.data(), rows_.data(), row_bytes);
  if (edit_bytes > 0)
    std::memcpy(staging_arguments_.data() + row_bytes / sizeof(int64_t), edits_.data(), edit_bytes);
  APB_ASSIGN_OR_RETURN(const TensorView arguments, arguments_.Get(DType::kI64, {words}));
  backend_.Copy(TensorView::Contiguous(staging_arguments_.data(), DType::kI64, {words}), arguments,
                stream);
  APB_ASSIGN_OR_RETURN(const TensorView tokens, tokens_.Get(DType::kI32, {count}));
  backend_.Sample({.logits = logits,
                   .rows = arguments.as<const kernels::SampleRow>(),
                   .edits = reinterpret_cast<const kernels::LogitEdit*>(
                       arguments.as<const std::byte>() + row_bytes),
                   .edit_count = static_cast<int64_t>(edits_.size()),
                   .tokens = tokens},
                  stream);
  staging_tokens_.resize(count);
  backend_.Copy(tokens, TensorView::Contiguous(staging_tokens_.data(), DType::kI32, {count}),
                stream);
  APB_RETURN_IF_ERROR(stream.Synchronize());

  std::vector<absl::StatusOr<SampledToken>> results;
  size_t at = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int32_t alternatives = requests[i].params.logprobs;
    const std::span<const float> raw =
        std::span(raw_logits_).subspan(at, alternatives >= 0 ? vocab : 0);
    at += raw.size();
    if (staging_tokens_[i] == kernels::kBadLogit) {
      results.emplace_back(absl::InternalError("the model gave a logit that is NaN or +inf"));
    } else if (staging_tokens_[i] == kernels::kNothingToDraw) {
      results.emplace_back(absl::InternalError("every token is barred: nothing to draw from"));
    } else {
      SampledToken result{.token = staging_tokens_[i]};
      if (alternatives >= 0) SetLogprobs(raw, alternatives, result);
      results.emplace_back(std::move(result));
    }
  }
  return results;
}

}  // namespace apb::sampling
