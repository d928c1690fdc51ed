// Normalization forms are composed here from utf8proc's tables: its own whole-string function sorts
// long runs of combining marks in quadratic time.
#include "server/text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "server/text/json_fields.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

// Builds the next text; each appended piece names the byte of the text before that it comes from.
class Rewriter {
 public:
  explicit Rewriter(NormalizedText& source) : source_(source) {
    out_.text.reserve(source.text.size() + 8);
  }

  void CopyRange(size_t begin, size_t end) {
    out_.text.append(source_.text, begin, end - begin);
    if (!source_.origins.empty())
      out_.origins.insert(out_.origins.end(), source_.origins.begin() + begin,
                          source_.origins.begin() + end);
  }
  void Append(std::string_view text, size_t from) {
    out_.text.append(text);
    if (!source_.origins.empty())
      out_.origins.insert(out_.origins.end(), text.size(), source_.origins[from]);
  }
  void Finish() { source_ = std::move(out_); }

 private:
  NormalizedText& source_;
  NormalizedText out_;
};

struct Form {
  int decompose;  // utf8proc options
  bool compose;
};

void SortMarks(std::vector<utf8proc_int32_t>& points) {
  auto ccc = [](utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; };
  for (size_t i = 0; i < points.size();) {
    if (ccc(points[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < points.size() && ccc(points[end]) != 0) ++end;
    std::stable_sort(points.begin() + i, points.begin() + end,
                     [&](utf8proc_int32_t a, utf8proc_int32_t b) { return ccc(a) < ccc(b); });
    i = end;
  }
}

std::string NormalizeChunk(std::string_view chunk, const Form& form) {
  std::vector<utf8proc_int32_t> points;
  utf8proc_int32_t buffer[32];  // the longest decomposition is 18
  int boundary = 0;
  for (size_t pos = 0; pos < chunk.size();) {
    const auto c = static_cast<utf8proc_int32_t>(NextCodePoint(chunk, pos));
    const auto count = utf8proc_decompose_char(
        c, buffer, 32, static_cast<utf8proc_option_t>(form.decompose), &boundary);
    if (count <= 0 || count > 32) {
      points.push_back(c);
    } else {
      points.insert(points.end(), buffer, buffer + count);
    }
  }
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

// ASCII never joins with what is before it: a chunk is an ASCII character with the others that
// follow.
void ApplyForm(const Form& form, NormalizedText& text) {
  const std::string& source = text.text;
  if (std::all_of(source.begin(), source.end(), IsAscii)) return;
  Rewriter rewriter(text);
  size_t pos = 0;
  while (pos < source.size()) {
    size_t end = pos;
    while (end < source.size() && IsAscii(source[end])) ++end;
    const size_t chunk_begin = end > pos && end < source.size() ? end - 1 : end;
    rewriter.CopyRange(pos, chunk_begin);
    if (end == source.size()) break;
    while (end < source.size() && !IsAscii(source[end])) ++end;
    const std::string_view chunk = std::string_view(source).substr(chunk_begin, end - chunk_begin);
    const std::string normalized = NormalizeChunk(chunk, form);
    if (normalized == chunk) {
      rewriter.CopyRange(chunk_begin, end);
    } else {
      rewriter.Append(normalized, chunk_begin);
    }
    pos = end;
  }
  rewriter.Finish();
}

void Lowercase(NormalizedText& text) {
  Rewriter rewriter(text);
  const std::string& source = text.text;
  std::string lower;
  for (size_t pos = 0; pos < source.size();) {
    const size_t begin = pos;
    const char32_t c = NextCodePoint(source, pos);
    lower.clear();
    // The one letter whose lower case is two code points.
    if (c == 0x130) {
      lower = "i\xCC\x87";
    } else {
      AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), lower);
    }
    rewriter.Append(lower, begin);
  }
  rewriter.Finish();
}

void Strip(bool left, bool right, NormalizedText& text) {
  const std::string& source = text.text;
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
  rewriter.CopyRange(begin, end);
  rewriter.Finish();
}

}  // namespace

absl::Status Normalizer::Replace(const Step& step, NormalizedText& text) {
  std::vector<ByteRange> matches;
  if (step.regex != nullptr) {
    APB_ASSIGN_OR_RETURN(matches, step.regex->FindAll(text.text));
  } else {
    for (size_t pos = text.text.find(step.pattern); pos != std::string::npos;
         pos = text.text.find(step.pattern, pos + step.pattern.size()))
      matches.push_back({pos, pos + step.pattern.size()});
  }
  if (matches.empty()) return absl::OkStatus();
  Rewriter rewriter(text);
  size_t done = 0;
  for (const ByteRange& match : matches) {
    rewriter.CopyRange(done, match.begin);
    rewriter.Append(step.content, match.begin);
    done = match.end;
  }
  rewriter.CopyRange(done, text.text.size());
  rewriter.Finish();
  return absl::OkStatus();
}

absl::StatusOr<NormalizedText> Normalizer::Apply(std::string_view text, bool with_prefix,
                                                 bool want_origins) const {
  NormalizedText out;
  out.text = std::string(text);
  if (want_origins) {
    out.origins.resize(text.size());
    for (size_t i = 0; i < text.size(); ++i) out.origins[i] = i;
  }
  for (const Step& step : steps_) {
    if (out.text.empty()) break;
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
          rewriter.Append(step.content, 0);
          rewriter.CopyRange(0, out.text.size());
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
  APB_ASSIGN_OR_RETURN(const std::string type, ComponentType(json, where));
  if (type == "Sequence") {
    APB_ASSIGN_OR_RETURN(const nlohmann::json* list, ArrayField(json, "normalizers", where));
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
    APB_ASSIGN_OR_RETURN(step.strip_left, OptionalBool(json, "strip_left", true, where));
    APB_ASSIGN_OR_RETURN(step.strip_right, OptionalBool(json, "strip_right", true, where));
  } else if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    APB_ASSIGN_OR_RETURN(step.content, StringField(json, "prepend", where));
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    APB_ASSIGN_OR_RETURN(Pattern pattern, PatternField(json, where));
    APB_ASSIGN_OR_RETURN(step.content, StringField(json, "content", where));
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
  return absl::OkStatus();
}

}  // namespace apb::text
