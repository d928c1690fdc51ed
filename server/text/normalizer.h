// The "normalizer" of tokenizer.json: NFC, NFD, NFKC, NFKD, Lowercase, Strip, Prepend, Replace, and
// Sequences of them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "server/text/regex.h"
#include "server/text/traced_text.h"

namespace apb::text {

class Normalizer {
 public:
  Normalizer() = default;  // changes nothing
  // `json` may be null. kUnimplemented for another type of normalizer.
  static absl::StatusOr<Normalizer> FromJson(const nlohmann::json& json);

  bool is_identity() const { return steps_.empty(); }
  // Returns the normalized text. `with_prefix`: whether Prepend steps apply.
  absl::StatusOr<TracedText> Apply(const TracedView& text, bool with_prefix) const;

 private:
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kLowercase, kStrip, kPrepend, kReplace };
  struct Step {
    Kind kind;
    std::string pattern, content;
    std::shared_ptr<const Regex> regex;  // shared by copies of the normalizer
    bool strip_left = true, strip_right = true;
  };
  static absl::Status Read(const nlohmann::json& json, const std::string& where, int depth,
                           std::vector<Step>& steps);
  static absl::Status Replace(const Step& step, TracedText& text);

  std::vector<Step> steps_;
};

}  // namespace apb::text
