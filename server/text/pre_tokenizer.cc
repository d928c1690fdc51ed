// Each stage cuts the pieces of the previous stage. A piece goes through all stages before the next
// piece is cut.
#include "server/text/pre_tokenizer.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/text/component.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

// The pattern of ByteLevel, unless use_regex is false.
constexpr char kByteLevelPattern[] =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

template <typename Predicate>
std::vector<ByteRange> MatchCharacters(std::string_view text, Predicate predicate) {
  std::vector<ByteRange> matches;
  for (size_t pos = 0; pos < text.size();) {
    const size_t begin = pos;
    if (predicate(NextCodePoint(text, pos))) matches.push_back({begin, pos});
  }
  return matches;
}

std::vector<ByteRange> MatchLiteral(std::string_view text, std::string_view literal) {
  std::vector<ByteRange> matches;
  for (size_t pos = text.find(literal); pos != std::string_view::npos;
       pos = text.find(literal, pos + literal.size()))
    matches.push_back({pos, pos + literal.size()});
  return matches;
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::FromJson(const nlohmann::json& json) {
  PreTokenizer made;
  if (!json.is_null()) APB_RETURN_IF_ERROR(made.Read(json, "pre_tokenizer", 0));
  return made;
}

absl::Status PreTokenizer::Read(const nlohmann::json& json, const std::string& where, int depth) {
  if (depth > kMaxComponentDepth)
    return absl::InvalidArgumentError(absl::StrCat(where, ": nested too deep"));
  base::JsonReader reader(json, where + ".");
  const std::string type = reader.String("type");
  APB_RETURN_IF_ERROR(reader.status());
  if (type == "Sequence") {
    const nlohmann::json* list = reader.Array("pretokenizers");
    APB_RETURN_IF_ERROR(reader.status());
    for (const nlohmann::json& item : *list)
      APB_RETURN_IF_ERROR(Read(item, where + ".pretokenizers", depth + 1));
    return absl::OkStatus();
  }
  if (maps_bytes_)
    return absl::UnimplementedError(
        absl::StrCat(where, ": ", type, " after ByteLevel is not supported"));
  if (type == "Split") return ReadSplit(reader, where);
  if (type == "ByteLevel") return ReadByteLevel(reader);
  if (type == "Metaspace") return ReadMetaspace(reader, where);
  if (type == "Digits") {
    const bool individual = reader.Boolean("individual_digits", false);
    stages_.push_back({.kind = Kind::kDigits,
                       .behavior = individual ? Behavior::kIsolated : Behavior::kContiguous});
    return reader.status();
  }
  if (type == "WhitespaceSplit") {
    stages_.push_back({.kind = Kind::kWhitespaceSplit, .behavior = Behavior::kRemoved});
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat(where, ": pre-tokenizer type \"", type, "\" is not supported"));
}

absl::Status PreTokenizer::ReadSplit(base::JsonReader& reader, const std::string& where) {
  Stage stage{};
  stage.kind = Kind::kPattern;
  const Pattern pattern = ReadPattern(reader);
  const std::string behavior = reader.String("behavior");
  stage.invert = reader.Boolean("invert", false);
  APB_RETURN_IF_ERROR(reader.status());
  if (pattern.is_regex) {
    APB_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(pattern.text));
    stage.regex = std::make_shared<const Regex>(std::move(regex));
  } else {
    stage.literal = pattern.text;
  }
  if (behavior == "Removed") {
    stage.behavior = Behavior::kRemoved;
  } else if (behavior == "Isolated") {
    stage.behavior = Behavior::kIsolated;
  } else if (behavior == "MergedWithPrevious") {
    stage.behavior = Behavior::kMergedWithPrevious;
  } else if (behavior == "MergedWithNext") {
    stage.behavior = Behavior::kMergedWithNext;
  } else if (behavior == "Contiguous") {
    stage.behavior = Behavior::kContiguous;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": behavior \"", behavior, "\" is not known"));
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

absl::Status PreTokenizer::ReadByteLevel(base::JsonReader& reader) {
  const bool add_prefix_space = reader.Boolean("add_prefix_space", true);
  const bool use_regex = reader.Boolean("use_regex", true);
  APB_RETURN_IF_ERROR(reader.status());
  if (add_prefix_space) {
    Stage blank{};
    blank.kind = Kind::kBlankBefore;
    stages_.push_back(std::move(blank));
  }
  if (use_regex) {
    Stage split{};
    split.kind = Kind::kPattern;
    APB_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(kByteLevelPattern));
    split.regex = std::make_shared<const Regex>(std::move(regex));
    stages_.push_back(std::move(split));
  }
  maps_bytes_ = true;
  return absl::OkStatus();
}

absl::Status PreTokenizer::ReadMetaspace(base::JsonReader& reader, const std::string& where) {
  Stage stage{};
  stage.kind = Kind::kMetaspace;
  stage.literal = reader.String("replacement", "\u2581");
  if (stage.literal.empty())
    return absl::InvalidArgumentError(absl::StrCat(where, ": replacement is empty"));
  // Files from before prepend_scheme have add_prefix_space instead.
  const bool add_prefix_space = reader.Boolean("add_prefix_space", true);
  const std::string scheme = reader.String("prepend_scheme", add_prefix_space ? "always" : "never");
  stage.split = reader.Boolean("split", true);
  APB_RETURN_IF_ERROR(reader.status());
  if (scheme == "always") {
    stage.prepend = Prepend::kAlways;
  } else if (scheme == "first") {
    stage.prepend = Prepend::kFirst;
  } else if (scheme == "never") {
    stage.prepend = Prepend::kNever;
  } else {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": prepend_scheme \"", scheme, "\" is not known"));
  }
  stages_.push_back(std::move(stage));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<ByteRange>> PreTokenizer::Matches(const Stage& stage,
                                                             std::string_view text) {
  switch (stage.kind) {
    case Kind::kDigits:
      return MatchCharacters(text, IsNumeric);
    case Kind::kWhitespaceSplit:
      return MatchCharacters(text, IsWhitespace);
    default:
      if (stage.regex != nullptr) return stage.regex->FindAll(text);
      return MatchLiteral(text, stage.literal);
  }
}

std::vector<ByteRange> PreTokenizer::Pieces(const std::vector<ByteRange>& matches, size_t size,
                                            Behavior behavior, bool invert) {
  struct Part {
    ByteRange range;
    bool is_match;
  };
  std::vector<Part> parts;
  parts.reserve(2 * matches.size() + 1);
  size_t done = 0;
  for (const ByteRange& match : matches) {
    if (match.begin > done) parts.push_back({{done, match.begin}, invert});
    parts.push_back({match, !invert});
    done = match.end;
  }
  if (done < size) parts.push_back({{done, size}, invert});

  std::vector<ByteRange> pieces;
  pieces.reserve(parts.size());
  bool previous_match = false;
  const bool backwards = behavior == Behavior::kMergedWithNext;
  if (backwards) std::reverse(parts.begin(), parts.end());
  for (const Part& part : parts) {
    bool join = false;
    if (behavior == Behavior::kRemoved && part.is_match) continue;
    if (behavior == Behavior::kContiguous) join = part.is_match == previous_match;
    if (behavior == Behavior::kMergedWithPrevious || backwards)
      join = part.is_match && !previous_match;
    if (join && !pieces.empty()) {
      pieces.back() = {std::min(pieces.back().begin, part.range.begin),
                       std::max(pieces.back().end, part.range.end)};
    } else {
      pieces.push_back(part.range);
    }
    previous_match = part.is_match;
  }
  if (backwards) std::reverse(pieces.begin(), pieces.end());
  return pieces;
}

absl::Status PreTokenizer::Split(const TracedView& text, TextStart start,
                                 absl::FunctionRef<void(const TracedView&)> word) const {
  return Run(0, text, start, word);
}

absl::Status PreTokenizer::Run(size_t stage_index, const TracedView& text, TextStart start,
                               absl::FunctionRef<void(const TracedView&)> word) const {
  if (text.text.empty()) return absl::OkStatus();
  if (stage_index == stages_.size()) {
    word(text);
    return absl::OkStatus();
  }
  const Stage& stage = stages_[stage_index];
  if (stage.kind == Kind::kBlankBefore) {
    if (start == TextStart::kMidText || text.text[0] == ' ')
      return Run(stage_index + 1, text, start, word);
    TracedText changed(text);
    Rewriter rewriter(changed);
    rewriter.Replace({0, 0}, " ");
    rewriter.Finish();
    return Run(stage_index + 1, changed.view(), start, word);
  }
  if (stage.kind == Kind::kMetaspace) {
    TracedText changed(text);
    Rewriter rewriter(changed);
    const bool wants = stage.prepend == Prepend::kAlways
                           ? start != TextStart::kMidText
                           : stage.prepend == Prepend::kFirst && start == TextStart::kBegin;
    if (wants && text.text[0] != ' ' && !text.text.starts_with(stage.literal))
      rewriter.Replace({0, 0}, stage.literal);
    for (const ByteRange& blank : MatchLiteral(text.text, " "))
      rewriter.Replace(blank, stage.literal);
    rewriter.Finish();
    return stage.split ? RunPieces(stage_index, changed.view(), start, word)
                       : Run(stage_index + 1, changed.view(), start, word);
  }
  return RunPieces(stage_index, text, start, word);
}

// Cuts the text with this stage's pattern and passes the pieces to the next stage.
absl::Status PreTokenizer::RunPieces(size_t stage_index, const TracedView& text, TextStart start,
                                     absl::FunctionRef<void(const TracedView&)> word) const {
  const Stage& stage = stages_[stage_index];
  const Behavior behavior =
      stage.kind == Kind::kMetaspace ? Behavior::kMergedWithNext : stage.behavior;
  APB_ASSIGN_OR_RETURN(const std::vector<ByteRange> matches, Matches(stage, text.text));
  for (const ByteRange& piece : Pieces(matches, text.text.size(), behavior, stage.invert)) {
    // Every later piece is in the middle of its text, but "always" schemes treat it as a beginning
    // of its own.
    const TextStart piece_start = piece.begin == 0 ? start : TextStart::kAfterSpecialToken;
    APB_RETURN_IF_ERROR(Run(stage_index + 1, text.Part(piece.begin, piece.end), piece_start, word));
  }
  return absl::OkStatus();
}

}  // namespace apb::text
