// The "pre_tokenizer" of tokenizer.json: cuts text into words that BPE never joins. Split,
// ByteLevel, Digits, Metaspace, WhitespaceSplit and Sequences of them; ByteLevel comes last.
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

// What stands before a text: it decides whether its first word gets the blank that some tokenizers
// put there.
enum class TextStart { kBegin, kAfterSpecialToken, kMidText };

class PreTokenizer {
 public:
  PreTokenizer() = default;  // the text is one word
  // `json` may be null.
  static absl::StatusOr<PreTokenizer> FromJson(const nlohmann::json& json);

  // Calls `word` for each word, in order. With maps_bytes() the words are still plain text.
  absl::Status Split(const TracedView& text, TextStart start,
                     absl::FunctionRef<void(const TracedView&)> word) const;

  // Whether tokens are spelled with one printable character for each byte (ByteLevel).
  bool maps_bytes() const { return maps_bytes_; }

 private:
  enum class Kind { kPattern, kDigits, kWhitespaceSplit, kMetaspace, kBlankBefore };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kAlways, kFirst, kNever };
  struct Stage {
    Kind kind;
    std::shared_ptr<const Regex> regex;  // shared by copies of the pre-tokenizer
    std::string literal;                 // pattern without regex; replacement of Metaspace
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
