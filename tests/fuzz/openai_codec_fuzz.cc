// Goal: no request body crashes the codec. Method: an input is the JSON body of an HTTP request,
// read as each endpoint reads it. Property: a refusal is an error of the client, with a message.
#include "engine/base/json_reader.h"
#include "server/http/openai_codec.h"
#include "tests/fuzz/fuzz_target.h"

namespace apb::fuzz {

std::vector<std::string> Seeds() {
  return {
      R"({"prompt":"a b","max_tokens":3,"temperature":0.5,"top_p":0.9,"seed":1,"stop":["x","y"]})",
      R"({"prompt":[1,2,3],"stream":true,"stream_options":{"include_usage":true},"logprobs":2,)"
      R"("apb":{"strategy":"apb","hosts":4,"query_tokens":2,"anchor_length":8,"exact":false}})",
      R"({"messages":[{"role":"system","content":"s"},{"role":"user","content":[{"type":"text",)"
      R"("text":"é"}]}],"tools":[{"type":"function","function":{"name":"f"}}],"top_k":5,"n":1})",
      R"({"messages":[{"role":"user","content":"q"}],"ttl_seconds":60})",
      R"({"tokens":[1,2,3]})",
  };
}

namespace {

template <typename Result>
bool IsAccepted(const absl::StatusOr<Result>& result) {
  if (result.ok()) return true;
  APB_PROPERTY(absl::IsInvalidArgument(result.status()) || absl::IsUnimplemented(result.status()));
  APB_PROPERTY(!result.status().message().empty());
  return false;
}

}  // namespace

bool Accepts(std::string_view input) {
  const auto body = base::ParseJsonObject(input, "the body");
  if (!IsAccepted(body)) return false;
  // Every endpoint parses every body, even if another one has already accepted it.
  const bool accepted[] = {
      IsAccepted(http_api::ParseCompletion(*body)), IsAccepted(http_api::ParseChat(*body)),
      IsAccepted(http_api::ParseNewContext(*body)), IsAccepted(http_api::ParseTokenize(*body)),
      IsAccepted(http_api::ParseDetokenize(*body))};
  for (const bool one : accepted) {
    if (one) return true;
  }
  return false;
}

}  // namespace apb::fuzz
