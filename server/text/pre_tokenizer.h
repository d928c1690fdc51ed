// The "pre_tokenizer" of tokenizer.json: cuts text into words across which BPE never merges.
// Supports Split, ByteLevel, Digits, Metaspace, WhitespaceSplit and Sequences of them; ByteLevel
// must come last.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "engine/base/json_reader.h"
#include "nlohmann/json.hpp"
#include "server/text/byte_range.h"
#include "server/text/regex.h"
#include "server/text/traced_text.h"

namespace apb::text {

// The place before a text. It decides whether the first word gets the blank that some tokenizers
// put before words.
enum class TextStart { kBegin, kAfterSpecialToken, kMidText };

class PreTokenizer {
 public:
  PreTokenizer() = default;  // the whole text is one word
  // `json` may be null. kUnimplemented for another type of pre-tokenizer.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json& json);

  // Calls `word` for each word, in order. Words are plain text, also with maps_bytes().
  absl::Status Split(const TracedView& text, TextStart start,
                     absl::FunctionRef<void(const TracedView&)> word) const;

  // Whether tokens are spelled with one printable character per byte (ByteLevel).
  bool maps_bytes() const { return maps_bytes_; }

 private:
  enum class Kind { kPattern, kDigits, kWhitespaceSplit, kMetaspace, kBlankBefore };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Stage {
    Kind kind;
    std::shared_ptr<const Regex> regex;  // shared by copies of the pre-tokenizer
    // The pattern if there is no regex; for Metaspace the replacement.
    std::string literal;
    Behavior behavior = Behavior::kIsolated;
    bool invert = false;
    Prepend prepend = Prepend::kAlways;
    bool split = true;
  };

  absl::Status Read(const nlohmann::json& json, const std::string& where, int depth);
  absl::Status ReadSplit(base::JsonReader& reader, const std::string& where);
  absl::Status ReadByteLevel(base::JsonReader& reader);
  absl::Status ReadMetaspace(base::JsonReader& reader, const std::string& where);
  absl::Status Run(size_t stage_index, const TracedView& text, TextStart start,
                   absl::FunctionRef<void(const TracedView&)> word) const;
  absl::Status RunPieces(size_t stage_index, const TracedView& text, TextStart start,
                         absl::FunctionRef<void(const TracedView&)> word) const;
  static absl::StatusOr<std::vector<ByteRange>> Matches(const Stage& stage, std::string_view text);
  static std::vector<ByteRange> Pieces(const std::vector<ByteRange>& matches, size_t size,
                                       Behavior behavior, bool invert);

  std::vector<Stage> stages_;
  bool maps_bytes_ = false;
};

}  // namespace apb::text
