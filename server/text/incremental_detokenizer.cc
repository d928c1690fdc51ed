// Bytes wait in pending_ until they form a whole character or cannot form one any more.
#include "server/text/incremental_detokenizer.h"

#include "absl/strings/str_cat.h"
#include "server/text/utf8.h"

namespace apb::text {

absl::StatusOr<std::string> IncrementalDetokenizer::Push(int32_t id) {
  if (!tokenizer_.IsToken(id))
    return absl::InvalidArgumentError(
        absl::StrCat("token id ", id, " is not in the vocabulary of ", tokenizer_.vocab_size()));
  if (skip_special_ && tokenizer_.IsSpecial(id)) return "";
  pending_ += tokenizer_.decoder().Next(tokenizer_.TokenText(id), state_);
  return TakeDecodable(pending_, /*final=*/false);
}

std::string IncrementalDetokenizer::Flush() { return TakeDecodable(pending_, /*final=*/true); }

}  // namespace apb::text
