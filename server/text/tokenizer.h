// Converts text to token ids and back as a checkpoint's tokenizer.json (Hugging Face format)
// defines it: BPE over bytes (Llama 3, Qwen, GPT-2, Mistral tekken) or over characters with byte
// fallback (Llama 2, Mistral, Yi). Loading fails on a component that is not supported. Thread-safe.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "server/text/added_vocabulary.h"
#include "server/text/bpe_model.h"
#include "server/text/byte_range.h"
#include "server/text/normalizer.h"
#include "server/text/piece_encoder.h"
#include "server/text/pre_tokenizer.h"
#include "server/text/token_decoder.h"

namespace apb::text {

struct EncodeOptions {
  // Add the begin and end tokens of the file's post-processor. The text of a rendered chat has its
  // own.
  bool add_special_tokens = true;
  // Whether "<|eot|>" in the text becomes that special token. If not, it is seven plain characters,
  // so that nobody can end a turn from within a message. Added tokens that are not special are
  // recognised either way.
  bool parse_special = false;
  // With parse_special: byte ranges, ascending and disjoint. A special token that overlaps one of
  // them is not recognised.
  std::span<const ByteRange> plain_ranges;
  // The place before the text.
  TextStart start = TextStart::kBegin;
};

class Tokenizer {
 public:
  // Reads tokenizer.json and, if it lies in the same folder, tokenizer_config.json.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& tokenizer_json_path);
  // The same from the contents of the two files; the second may be empty.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> FromJson(
      std::string_view tokenizer_json, std::string_view tokenizer_config_json);

  // kInvalidArgument with the byte offset if the text is not valid UTF-8. Takes O(n log n) time for
  // any text.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options) const;
  // The same, with the place in the text at which each token begins. Begin tokens of
  // add_special_tokens are at 0; end tokens are after the text.
  absl::StatusOr<Encoding> EncodeWithOffsets(std::string_view text,
                                             const EncodeOptions& options) const;
  // Broken UTF-8 becomes U+FFFD. kInvalidArgument for an id outside the vocabulary.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool skip_special) const;

  // The bytes for which a token stands, maybe a part of a UTF-8 character; for a special token its
  // own text. Empty for an unknown id.
  std::string TokenBytes(int32_t id) const;
  std::optional<int32_t> TokenId(std::string_view token) const;
  // One more than the highest id.
  int32_t vocab_size() const { return static_cast<int32_t>(tokens_.size()); }
  bool IsSpecial(int32_t id) const;
  // Whether the id is in range and stands for a token (a vocabulary may have holes).
  bool IsToken(int32_t id) const;
  // From tokenizer_config.json.
  std::optional<int32_t> bos_id() const { return SpecialTokenId("bos_token"); }
  std::optional<int32_t> eos_id() const { return SpecialTokenId("eos_token"); }
  // For example "bos_token" -> "<s>", as in tokenizer_config.json; chat templates read them.
  const std::map<std::string, std::string>& special_tokens() const { return special_tokens_; }
  // The tokens that Encode puts before and after the text with add_special_tokens.
  const std::vector<int32_t>& prefix_ids() const { return prefix_ids_; }
  const std::vector<int32_t>& suffix_ids() const { return suffix_ids_; }
  // The length of the longest TokenBytes: a text of n bytes has at least n / max_token_bytes
  // tokens.
  int64_t max_token_bytes() const { return max_token_bytes_; }

  const TokenDecoder& decoder() const { return decoder_; }
  // The token as the file spells it; empty for a hole. `id` must be in range.
  const std::string& TokenText(int32_t id) const { return tokens_[id]; }
  // Whether the id is an added token. Text after an added token is a beginning of its own for the
  // blank before words.
  bool IsAdded(int32_t id) const { return added_.FindId(id) != nullptr; }

 private:
  Tokenizer() = default;
  absl::Status ReadTokenizer(std::string_view json);
  absl::Status ReadConfig(std::string_view json);
  std::optional<int32_t> SpecialTokenId(const std::string& name) const;
  absl::Status EncodePiece(const TracedView& piece, const EncodeOptions& options,
                           PieceEncoder& encoder, Encoding& out) const;

  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  BpeModel model_;
  AddedVocabulary added_;
  TokenDecoder decoder_;
  std::vector<std::string> tokens_;  // by id
  std::vector<bool> is_token_;       // false: a hole in the ids
  std::vector<int32_t> prefix_ids_, suffix_ids_;
  std::map<std::string, std::string> special_tokens_;
  int64_t max_token_bytes_ = 1;
};

}  // namespace apb::text
