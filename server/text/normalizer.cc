// Normalization forms are composed here from utf8proc's tables, because utf8proc's own function for
// whole strings sorts long runs of combining marks in quadratic time.
#include "server/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/json_reader.h"
#include "engine/base/status_macros.h"
#include "server/text/component.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

struct Form {
  int decompose;  // utf8proc options
  bool compose;
};

int CombiningClass(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

void SortMarks(std::vector<utf8proc_int32_t>& points) {
  for (size_t i = 0; i < points.size();) {
    if (CombiningClass(points[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < points.size() && CombiningClass(points[end]) != 0) ++end;
    std::stable_sort(points.begin() + i, points.begin() + end,
                     [](utf8proc_int32_t a, utf8proc_int32_t b) {
                       return CombiningClass(a) < CombiningClass(b);
                     });
    i = end;
  }
}

void AppendDecomposed(utf8proc_int32_t c, const Form& form, std::vector<utf8proc_int32_t>& points) {
  utf8proc_int32_t buffer[32];  // the longest decomposition is 18
  int boundary = 0;
  const auto count = utf8proc_decompose_char(
      c, buffer, 32, static_cast<utf8proc_option_t>(form.decompose), &boundary);
  if (count <= 0 || count > 32) {
    points.push_back(c);
  } else {
    points.insert(points.end(), buffer, buffer + count);
  }
}

std::string NormalizeChunk(std::string_view chunk, const Form& form) {
  std::vector<utf8proc_int32_t> points;
  for (size_t pos = 0; pos < chunk.size();)
    AppendDecomposed(static_cast<utf8proc_int32_t>(NextCodePoint(chunk, pos)), form, points);
  SortMarks(points);
  auto count = static_cast<utf8proc_ssize_t>(points.size());
  if (form.compose)
    count = utf8proc_normalize_utf32(
        points.data(), count, static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
  std::string out;
  for (utf8proc_ssize_t i = 0; i < count; ++i) AppendUtf8(static_cast<char32_t>(points[i]), out);
  return out;
}

bool IsAscii(char c) { return static_cast<unsigned char>(c) < 0x80; }

bool Composes(utf8proc_int32_t left, utf8proc_int32_t right) {
  utf8proc_int32_t both[2] = {left, right};
  const auto options = static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE);
  return utf8proc_normalize_utf32(both, 2, options) == 1;
}

// Finds the smallest part of source[begin, end) that can be normalized on its own, and returns its
// end. The part ends before a character that neither moves among combining marks nor composes with
// the part's normalized end.
size_t PartEnd(const Form& form, std::string_view source, size_t begin, size_t end) {
  std::vector<utf8proc_int32_t> character;
  size_t pos = begin;
  NextCodePoint(source, pos);
  for (size_t next = pos; next < end; pos = next) {
    character.clear();
    AppendDecomposed(static_cast<utf8proc_int32_t>(NextCodePoint(source, next)), form, character);
    if (CombiningClass(character[0]) != 0) continue;
    if (!form.compose) return pos;
    const std::string part = NormalizeChunk(source.substr(begin, pos - begin), form);
    size_t last = part.size();
    if (!Composes(static_cast<utf8proc_int32_t>(PreviousCodePoint(part, last)), character[0]))
      return pos;
  }
  return end;
}

// An ASCII character never composes with the text before it. So a chunk is one ASCII character and
// the non-ASCII characters that follow it.
void ApplyForm(const Form& form, TracedText& text) {
  const std::string_view source = text.view().text;
  Rewriter rewriter(text);
  size_t pos = 0;
  while (true) {
    while (pos < source.size() && IsAscii(source[pos])) ++pos;
    if (pos == source.size()) break;
    size_t begin = pos > 0 ? pos - 1 : 0;
    while (pos < source.size() && !IsAscii(source[pos])) ++pos;
    const std::string_view chunk = source.substr(begin, pos - begin);
    if (NormalizeChunk(chunk, form) == chunk) continue;
    while (begin < pos) {
      const size_t end = PartEnd(form, source, begin, pos);
      const std::string_view part = source.substr(begin, end - begin);
      const std::string normalized = NormalizeChunk(part, form);
      if (normalized != part) rewriter.Replace({begin, end}, normalized);
      begin = end;
    }
  }
  rewriter.Finish();
}

void Lowercase(TracedText& text) {
  const std::string_view source = text.view().text;
  Rewriter rewriter(text);
  std::string lower;
  for (size_t pos = 0; pos < source.size();) {
    const size_t begin = pos;
    const char32_t c = NextCodePoint(source, pos);
    lower.clear();
    // The only letter whose lower case has two code points.
    if (c == 0x130) {
      lower = "i\xCC\x87";
    } else {
      AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), lower);
    }
    if (lower != source.substr(begin, pos - begin)) rewriter.Replace({begin, pos}, lower);
  }
  rewriter.Finish();
}

void Strip(bool left, bool right, TracedText& text) {
  const std::string_view source = text.view().text;
  size_t begin = 0, end = source.size();
  while (left && begin < end) {
    size_t next = begin;
    if (!IsWhitespace(NextCodePoint(source, next))) break;
    begin = next;
  }
  while (right && end > begin) {
    size_t previous = end;
    if (!IsWhitespace(PreviousCodePoint(source, previous))) break;
    end = previous;
  }
  Rewriter rewriter(text);
  if (begin > 0) rewriter.Replace({0, begin}, "");
  if (end < source.size()) rewriter.Replace({end, source.size()}, "");
  rewriter.Finish();
}

}  // namespace

absl::Status Normalizer::Replace(const Step& step, TracedText& text) {
  const std::string_view source = text.view().text;
  std::vector<ByteRange> matches;
  if (step.regex != nullptr) {
    APB_ASSIGN_OR_RETURN(matches, step.regex->FindAll(source));
  } else {
    for (size_t pos = source.find(step.pattern); pos != std::string_view::npos;
         pos = source.find(step.pattern, pos + step.pattern.size()))
      matches.push_back({pos, pos + step.pattern.size()});
  }
  Rewriter rewriter(text);
  for (const ByteRange& match : matches) rewriter.Replace(match, step.content);
  rewriter.Finish();
  return absl::OkStatus();
}

absl::StatusOr<TracedText> Normalizer::Apply(const TracedView& text, bool with_prefix) const {
  TracedText out(text);
  for (const Step& step : steps_) {
    if (out.view().text.empty()) break;
    switch (step.kind) {
      case Kind::kNfc:
        ApplyForm({UTF8PROC_DECOMPOSE, true}, out);
        break;
      case Kind::kNfd:
        ApplyForm({UTF8PROC_DECOMPOSE, false}, out);
        break;
      case Kind::kNfkc:
        ApplyForm({UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, true}, out);
        break;
      case Kind::kNfkd:
        ApplyForm({UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, false}, out);
        break;
      case Kind::kLowercase:
        Lowercase(out);
        break;
      case Kind::kStrip:
        Strip(step.strip_left, step.strip_right, out);
        break;
      case Kind::kPrepend:
        if (with_prefix) {
          Rewriter rewriter(out);
          rewriter.Replace({0, 0}, step.content);
          rewriter.Finish();
        }
        break;
      case Kind::kReplace:
        APB_RETURN_IF_ERROR(Replace(step, out));
        break;
    }
  }
  return out;
}

absl::StatusOr<Normalizer> Normalizer::FromJson(const nlohmann::json& json) {
  Normalizer normalizer;
  if (!json.is_null()) APB_RETURN_IF_ERROR(Read(json, "normalizer", 0, normalizer.steps_));
  return normalizer;
}

absl::Status Normalizer::Read(const nlohmann::json& json, const std::string& where, int depth,
                              std::vector<Step>& steps) {
  if (depth > kMaxComponentDepth)
    return absl::InvalidArgumentError(absl::StrCat(where, ": nested too deep"));
  base::JsonReader reader(json, where + ".");
  const std::string type = reader.String("type");
  APB_RETURN_IF_ERROR(reader.status());
  if (type == "Sequence") {
    const nlohmann::json* list = reader.Array("normalizers");
    APB_RETURN_IF_ERROR(reader.status());
    for (const nlohmann::json& item : *list)
      APB_RETURN_IF_ERROR(Read(item, where + ".normalizers", depth + 1, steps));
    return absl::OkStatus();
  }
  Step step{};
  if (type == "NFC") {
    step.kind = Kind::kNfc;
  } else if (type == "NFD") {
    step.kind = Kind::kNfd;
  } else if (type == "NFKC") {
    step.kind = Kind::kNfkc;
  } else if (type == "NFKD") {
    step.kind = Kind::kNfkd;
  } else if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.strip_left = reader.Boolean("strip_left", true);
    step.strip_right = reader.Boolean("strip_right", true);
  } else if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    step.content = reader.String("prepend");
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    const Pattern pattern = ReadPattern(reader);
    step.content = reader.String("content");
    APB_RETURN_IF_ERROR(reader.status());
    step.pattern = pattern.text;
    if (pattern.is_regex) {
      APB_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(pattern.text));
      step.regex = std::make_shared<const Regex>(std::move(regex));
    }
  } else {
    return absl::UnimplementedError(
        absl::StrCat(where, ": normalizer type \"", type, "\" is not supported"));
  }
  steps.push_back(std::move(step));
  return reader.status();
}

}  // namespace apb::text
