// Turns a template's source into tokens, with the white space control of transformers' environment
// (trim_blocks, lstrip_blocks).
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace apb::text::jinja {

enum class TokenType {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type = TokenType::kEnd;
  std::string text;  // for strings: without quotes and escapes
  int line = 1;
};

// The last token is a kEnd. Fails (TemplateError) with the line.
std::vector<Token> Tokenize(std::string_view source);

}  // namespace apb::text::jinja
