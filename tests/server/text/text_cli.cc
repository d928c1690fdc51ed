// Test tool: reads one JSON request per line from standard input and answers each with one line.
//  {"tokenizer": "path of tokenizer.json"} -> {}; later requests use this tokenizer
//  {"text": "...", "add_special_tokens": bool, "parse_special": bool,
//   "plain_ranges": [[begin, end], ...]}
//   -> {"ids": [...], "begins": [...]}; begins are in bytes
//  {"ids": [...], "skip_special": bool}
//   -> {"text": "...", "pieces": "..."}: decoded at once, and token by token
//  {"template": "...", "messages": [...], "tools": [...], "kwargs": {...}, "now": seconds,
//   "special_tokens": {...}, "add_generation_prompt": bool}
//   -> {"text": "...", "user": [[begin, end], ...]}
// An error is {"error": "..."}; for a template, "loaded" tells whether it could be parsed.
#include <iostream>
#include <string>

#include "nlohmann/json.hpp"
#include "server/text/chat_template.h"
#include "server/text/incremental_detokenizer.h"
#include "server/text/tokenizer.h"
#include "server/text/utf8.h"

namespace apb::text {
namespace {

Json Error(const absl::Status& status) { return {{"error", status.ToString()}}; }

Json Encode(const Tokenizer& tokenizer, const Json& request) {
  std::vector<ByteRange> plain;
  for (const auto& range : request.value("plain_ranges", Json::array()))
    plain.push_back({range[0].get<size_t>(), range[1].get<size_t>()});
  auto encoding =
      tokenizer.EncodeWithOffsets(request["text"].get<std::string>(),
                                  {.add_special_tokens = request.value("add_special_tokens", false),
                                   .parse_special = request.value("parse_special", true),
                                   .plain_ranges = plain});
  if (!encoding.ok()) return Error(encoding.status());
  return {{"ids", encoding->ids}, {"begins", encoding->begins}};
}

Json Decode(const Tokenizer& tokenizer, const Json& request) {
  const auto ids = request["ids"].get<std::vector<int32_t>>();
  const bool skip_special = request.value("skip_special", false);
  auto text = tokenizer.Decode(ids, skip_special);
  if (!text.ok()) return Error(text.status());
  IncrementalDetokenizer detokenizer(tokenizer, skip_special);
  std::string pieces;
  for (const int32_t id : ids) {
    auto piece = detokenizer.Push(id);
    if (!piece.ok()) return Error(piece.status());
    if (FindInvalidUtf8(*piece) != std::string::npos) return {{"error", "a broken piece"}};
    pieces += *piece;
  }
  return {{"text", *text}, {"pieces", pieces + detokenizer.Flush()}};
}

Json Render(const Json& request) {
  auto made = ChatTemplate::Parse(request["template"].get<std::string>());
  if (!made.ok()) return {{"error", made.status().ToString()}, {"loaded", false}};
  RenderOptions options;
  options.add_generation_prompt = request.value("add_generation_prompt", true);
  options.tools = request.value("tools", Json());
  options.kwargs = request.value("kwargs", Json());
  options.special_tokens = request.value("special_tokens", std::map<std::string, std::string>());
  if (request.contains("now")) options.now = absl::FromUnixSeconds(request["now"].get<int64_t>());
  auto prompt = (*made)->Render(request["messages"], options);
  if (!prompt.ok()) return {{"error", prompt.status().ToString()}, {"loaded", true}};
  Json user = Json::array();
  for (const auto& range : prompt->UserRanges()) user.push_back({range.begin, range.end});
  return {{"text", prompt->text}, {"user", user}};
}

Json Answer(const Json& request, std::unique_ptr<Tokenizer>& tokenizer) {
  if (request.contains("template")) return Render(request);
  if (request.contains("tokenizer")) {
    auto loaded = Tokenizer::Load(request["tokenizer"].get<std::string>());
    if (!loaded.ok()) return Error(loaded.status());
    tokenizer = std::move(*loaded);
    return Json::object();
  }
  if (tokenizer == nullptr) return {{"error", "no tokenizer"}};
  return request.contains("ids") ? Decode(*tokenizer, request) : Encode(*tokenizer, request);
}

int Main() {
  std::unique_ptr<Tokenizer> tokenizer;
  for (std::string line; std::getline(std::cin, line);)
    std::cout << Answer(Json::parse(line), tokenizer).dump() << "\n";
  return 0;
}

}  // namespace
}  // namespace apb::text

int main() { return apb::text::Main(); }
