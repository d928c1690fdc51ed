// Test tool: answers requests in JSON, one a line, on standard input with one line each.
//   {"text": "...", "add_special_tokens": bool, "parse_special": bool, "plain_ranges": [[begin,
//   end], ...]}
//     -> {"ids": [...]}
//   {"ids": [...], "skip_special": bool} -> {"text": "...", "pieces": "..."}   at once and token by
//   token
// An error is {"error": "..."}. Usage: tokenizer_cli tokenizer.json
#include <iostream>
#include <string>

#include "nlohmann/json.hpp"
#include "server/text/incremental_detokenizer.h"
#include "server/text/tokenizer.h"

namespace apb::text {
namespace {

nlohmann::json Error(const absl::Status& status) { return {{"error", status.ToString()}}; }

nlohmann::json Encode(const Tokenizer& tokenizer, const nlohmann::json& request) {
  std::vector<ByteRange> plain;
  for (const auto& range : request.value("plain_ranges", nlohmann::json::array()))
    plain.push_back({range[0].get<size_t>(), range[1].get<size_t>()});
  auto ids = tokenizer.Encode(request["text"].get<std::string>(),
                              {.add_special_tokens = request.value("add_special_tokens", false),
                               .parse_special = request.value("parse_special", true),
                               .plain_ranges = plain});
  if (!ids.ok()) return Error(ids.status());
  return {{"ids", *ids}};
}

nlohmann::json Decode(const Tokenizer& tokenizer, const nlohmann::json& request) {
  const auto ids = request["ids"].get<std::vector<int32_t>>();
  const bool skip_special = request.value("skip_special", false);
  auto text = tokenizer.Decode(ids, skip_special);
  if (!text.ok()) return Error(text.status());
  IncrementalDetokenizer detokenizer(tokenizer, skip_special);
  std::string pieces;
  for (const int32_t id : ids) {
    auto piece = detokenizer.Push(id);
    if (!piece.ok()) return Error(piece.status());
    pieces += *piece;
  }
  return {{"text", *text}, {"pieces", pieces + detokenizer.Flush()}};
}

int Main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: tokenizer_cli tokenizer.json\n";
    return 2;
  }
  auto tokenizer = Tokenizer::Load(argv[1]);
  if (!tokenizer.ok()) {
    std::cerr << tokenizer.status() << "\n";
    return 1;
  }
  for (std::string line; std::getline(std::cin, line);) {
    const nlohmann::json request = nlohmann::json::parse(line);
    std::cout << (request.contains("ids") ? Decode(**tokenizer, request)
                                          : Encode(**tokenizer, request))
                     .dump()
              << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace apb::text

int main(int argc, char** argv) { return apb::text::Main(argc, argv); }
