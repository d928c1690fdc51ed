// Turns the words of one text into tokens and records where in the text each token begins. It
// remembers short words.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "server/text/bpe_model.h"
#include "server/text/string_map.h"
#include "server/text/traced_text.h"

namespace apb::text {

// The tokens of a text.
struct Encoding {
  std::vector<int32_t> ids;
  // For each token, the byte of the text at which it begins; ascending. Where a normalizer has
  // changed the text, it is the byte at which the changed part begins.
  std::vector<uint32_t> begins;

  void Add(int32_t id, uint32_t begin) {
    ids.push_back(id);
    begins.push_back(begin);
  }
};

class PieceEncoder {
 public:
  // `model` and `out` must outlive the encoder.
  PieceEncoder(const BpeModel& model, Encoding& out) : model_(model), out_(out) {}

  // Appends the tokens of one word to `out`.
  void Encode(const TracedView& word);

 private:
  const BpeModel& model_;
  Encoding& out_;
  StringMap<std::pair<uint32_t, uint32_t>> known_;  // word -> begin and count in known_tokens_
  std::vector<WordToken> known_tokens_;
};

}  // namespace apb::text
