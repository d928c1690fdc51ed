// Turns the tokens of one request into the chunks that the client sees: detokenizer, stop strings,
// log probabilities. Owned by the request; not thread-safe.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "apb/cluster/v1/worker_group_service.pb.h"
#include "apb/common/v1/sampling.pb.h"
#include "server/request/events.h"
#include "server/text/incremental_detokenizer.h"
#include "server/text/stop_matcher.h"
#include "server/text/tokenizer.h"

namespace apb::request {

class TokenStream {
 public:
  // `sampling` is resolved (admission.h). The tokenizer must outlive the stream. kInvalidArgument
  // for bad stop strings.
  static absl::StatusOr<TokenStream> Create(const text::Tokenizer& tokenizer,
                                            const common::v1::SamplingParams& sampling);

  // Returns what this token adds for the client. After a stop string has matched, Push must not be
  // called.
  TokenChunk Push(const cluster::v1::TokenEvent& event);
  // Returns the text that was held back. Call it at the end unless a stop string has matched.
  std::string Flush();

  // True once a stop string has matched.
  bool stopped() const { return matched_ >= 0; }
  // The stop string that matched, or empty.
  std::string stop_string() const;
  // The stop token that came, or -1.
  int32_t stop_token() const { return stop_token_; }
  // Tokens pushed so far, the stop token included.
  int64_t token_count() const { return token_count_; }

 private:
  TokenStream(const text::Tokenizer& tokenizer, text::StopMatcher matcher,
              const common::v1::SamplingParams& sampling);
  TokenAlternative Alternative(int32_t id, double logprob) const;

  const text::Tokenizer* tokenizer_;
  common::v1::SamplingParams sampling_;
  text::IncrementalDetokenizer detokenizer_;
  text::StopMatcher matcher_;
  int64_t token_count_ = 0;
  int matched_ = -1;
  int32_t stop_token_ = -1;
};

}  // namespace apb::request
