// A bounded cache of the tokens of short words.
#include "server/text/piece_encoder.h"

#include <span>

namespace apb::text {
namespace {

constexpr size_t kRememberedBytes = 48;  // longer words rarely occur twice
constexpr size_t kRememberedWords = 1 << 16;

}  // namespace

void PieceEncoder::Encode(const TracedView& word) {
  const auto add = [&](std::span<const WordToken> tokens) {
    for (const WordToken& token : tokens) out_.Add(token.id, word.Origin(token.begin));
  };
  std::vector<WordToken> tokens;
  if (word.text.size() > kRememberedBytes) {
    model_.Encode(word.text, tokens);
    return add(tokens);
  }
  auto found = known_.find(word.text);
  if (found != known_.end())
    return add(std::span(known_tokens_).subspan(found->second.first, found->second.second));
  model_.Encode(word.text, tokens);
  add(tokens);
  if (known_.size() == kRememberedWords) return;
  known_.emplace(word.text, std::pair(static_cast<uint32_t>(known_tokens_.size()),
                                      static_cast<uint32_t>(tokens.size())));
  known_tokens_.insert(known_tokens_.end(), tokens.begin(), tokens.end());
}

}  // namespace apb::text
