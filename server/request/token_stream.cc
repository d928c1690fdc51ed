// Turns tokens into chunks.
#include "server/request/token_stream.h"

#include <algorithm>

#include "engine/base/status_macros.h"

namespace apb::request {

TokenStream::TokenStream(const text::Tokenizer& tokenizer, text::StopMatcher matcher,
                         const common::v1::SamplingParams& sampling)
    : tokenizer_(&tokenizer),
      sampling_(sampling),
      detokenizer_(tokenizer, sampling.skip_special_tokens()),
      matcher_(std::move(matcher)) {}

absl::StatusOr<TokenStream> TokenStream::Create(const text::Tokenizer& tokenizer,
                                                const common::v1::SamplingParams& sampling) {
  APB_ASSIGN_OR_RETURN(text::StopMatcher matcher,
                       text::StopMatcher::Create({sampling.stop().begin(), sampling.stop().end()},
                                                 sampling.include_stop_str_in_output()));
  return TokenStream(tokenizer, std::move(matcher), sampling);
}

TokenAlternative TokenStream::Alternative(int32_t id, double logprob) const {
  return {.id = id, .bytes = tokenizer_->TokenBytes(id), .logprob = logprob};
}

TokenChunk TokenStream::Push(const cluster::v1::TokenEvent& event) {
  TokenChunk chunk;
  ++token_count_;
  const auto& stops = sampling_.stop_token_ids();
  if (std::find(stops.begin(), stops.end(), event.token()) != stops.end()) {
    stop_token_ = event.token();
    return chunk;
  }
  // A model's vocabulary may be padded beyond the tokenizer's; such a token has no text.
  std::string text;
  if (auto piece = detokenizer_.Push(event.token()); piece.ok()) text = *std::move(piece);
  text::StopResult shown = matcher_.Push(text);
  chunk.ids.push_back(event.token());
  chunk.text = std::move(shown.text);
  if (shown.matched.has_value()) matched_ = static_cast<int>(*shown.matched);
  if (sampling_.has_logprobs()) {
    TokenLogprob& logprob = chunk.logprobs.emplace_back();
    logprob.chosen = Alternative(event.token(), event.logprob());
    for (const auto& top : event.top()) logprob.top.push_back(Alternative(top.id(), top.logprob()));
  }
  return chunk;
}

std::string TokenStream::Flush() {
  std::string text = matcher_.Push(detokenizer_.Flush()).text;
  return text + matcher_.Flush();
}

std::string TokenStream::stop_string() const {
  return matched_ < 0 ? std::string() : sampling_.stop(matched_);
}

}  // namespace apb::request
