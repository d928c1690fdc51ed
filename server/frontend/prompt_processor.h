// Everything that the server knows about a checkpoint: tokenizer, chat template, stop tokens,
// lengths. Immutable after loading, so any thread may use it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "engine/base/checkpoint_config.h"
#include "server/contexts/context.h"
#include "server/request/canonical_request.h"
#include "server/text/chat_template.h"
#include "server/text/document_splitter.h"
#include "server/text/tokenizer.h"

namespace apb::frontend {

class PromptProcessor {
 public:
  // Reads config.json, generation_config.json, tokenizer.json, tokenizer_config.json and the chat
  // template of a checkpoint.
  static absl::StatusOr<std::unique_ptr<PromptProcessor>> Load(const std::string& folder);

  // Renders the template, tokenizes, and finds the border between document and query: the slow part
  // of a request. `context` is the one that the request goes on from, or null. kInvalidArgument
  // names the field.
  absl::StatusOr<text::PromptSplit> Prepare(const request::CanonicalRequest& request,
                                            const contexts::Context* context) const;
  // The same for a request that creates a context. Fills prompt, chat and text of `context`.
  absl::Status PrepareContext(const request::CanonicalRequest& request,
                              contexts::Context& context) const;
  // Renders and tokenizes only.
  absl::StatusOr<std::vector<int32_t>> Encode(const request::CanonicalRequest& request) const;

  const text::Tokenizer& tokenizer() const { return *tokenizer_; }
  // Tokens that end a completion: the eos tokens of all configuration files.
  const std::vector<int32_t>& stop_tokens() const { return stop_tokens_; }
  const std::string& fingerprint() const { return config_.fingerprint; }
  const std::string& dtype() const { return config_.dtype; }
  int64_t max_position_embeddings() const { return config_.max_positions; }
  int32_t vocab_size() const { return static_cast<int32_t>(config_.vocab_size); }
  bool has_chat_template() const { return chat_template_ != nullptr; }

 private:
  PromptProcessor() = default;
  // `now`: the time for a template that prints the date; default: the clock.
  absl::StatusOr<text::RenderedPrompt> Render(const request::ChatInput& input,
                                              std::optional<absl::Time> now = std::nullopt) const;
  absl::StatusOr<text::PromptSplit> Split(const request::CanonicalRequest& request) const;
  absl::StatusOr<text::PromptSplit> GoOnFrom(const contexts::Context& context,
                                             const request::CanonicalRequest& request) const;
  // The tokens of the whole prompt: the context's, then the request's.
  absl::StatusOr<std::vector<int32_t>> TokensBehind(const contexts::Context& context,
                                                    const request::CanonicalRequest& request) const;
  absl::StatusOr<text::PromptSplit> SplitContext(const request::CanonicalRequest& request,
                                                 contexts::Context& context) const;
  text::PlainPromptOptions PlainOptions(const request::CanonicalRequest& request) const;

  std::unique_ptr<text::Tokenizer> tokenizer_;
  std::unique_ptr<text::ChatTemplate> chat_template_;  // null if the checkpoint has none
  std::vector<int32_t> stop_tokens_;
  base::CheckpointConfig config_;
};

}  // namespace apb::frontend
