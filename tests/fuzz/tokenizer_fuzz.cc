// Goal: no tokenizer.json crashes the tokenizer. Method: an input is a checkpoint's tokenizer.json
// and, after a zero byte, a text. Property: an accepted tokenizer refuses the text, or encodes it
// into ids of its own vocabulary, which it can decode.
#include "server/text/tokenizer.h"
#include "tests/fuzz/fuzz_target.h"

namespace apb::fuzz {

std::vector<std::string> Seeds() {
  const std::string characters = R"({
    "added_tokens": [{"id": 0, "content": "<s>", "special": true, "normalized": false},
                     {"id": 9, "content": "ab", "lstrip": true, "normalized": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"},
      {"type": "Prepend", "prepend": "_"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": "\\s+|\\p{L}+"}, "behavior": "Isolated",
       "invert": false},
      {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": true}]},
    "model": {"type": "BPE", "unk_token": "<s>", "byte_fallback": true, "fuse_unk": true,
      "vocab": {"<s>": 0, "a": 1, "b": 2, "ab": 9, "_": 3, "_a": 4, "<0x41>": 5},
      "merges": [["_", "a"], "a b"]},
    "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}})";
  const std::string bytes = R"({"added_tokens": [],
    "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "Ġ": 2, "ab": 3}, "merges": ["a b"]},
    "decoder": {"type": "ByteLevel"}})";
  const std::string end(1, '\0');
  return {characters + end + "ab a<s>b", characters + end, bytes + end + "ab ba"};
}

bool Accepts(std::string_view input) {
  const size_t end = input.find('\0');
  const std::string_view text = end == input.npos ? "" : input.substr(end + 1);
  const auto tokenizer = text::Tokenizer::FromJson(input.substr(0, end), "");
  if (!tokenizer.ok()) {
    APB_PROPERTY(!tokenizer.status().message().empty());
    return false;
  }
  for (const bool parse_special : {false, true}) {
    const auto ids = (*tokenizer)->Encode(text, {.parse_special = parse_special});
    if (!ids.ok()) continue;
    for (const int32_t id : *ids) APB_PROPERTY((*tokenizer)->IsToken(id));
    APB_PROPERTY((*tokenizer)->Decode(*ids, /*skip_special=*/false).ok());
  }
  return true;
}

}  // namespace apb::fuzz
