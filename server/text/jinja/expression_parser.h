// Parses expressions with jinja2's precedence of operators.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "server/text/jinja/ast.h"
#include "server/text/jinja/lexer.h"

namespace apb::text::jinja {

// The tokens of a template, read from front to back.
class TokenStream {
 public:
  // The last of the `tokens` must be a kEnd.
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& current() const { return tokens_[index_]; }
  const Token& next() const { return tokens_[std::min(index_ + 1, tokens_.size() - 1)]; }
  int line() const { return current().line; }
  Token Take();
  // These fail (TemplateError) unless the current token is the expected one.
  Token Expect(TokenType type, const char* what);
  void ExpectOperator(const char* text);
  void ExpectName(const char* text);
  bool IsOperator(std::string_view text) const {
    return current().type == TokenType::kOperator && current().text == text;
  }
  bool IsName(std::string_view text) const {
    return current().type == TokenType::kName && current().text == text;
  }
  bool TakeOperator(std::string_view text);
  bool TakeName(std::string_view text);
  std::string Describe() const;

 private:
  std::vector<Token> tokens_;
  size_t index_ = 0;
};

class ExpressionParser {
 public:
  // The stream must outlive this object.
  explicit ExpressionParser(TokenStream& stream) : stream_(stream) {}

  // `with_condition`: "a if b else c" is allowed.
  ExpressionPointer Parse(bool with_condition = true);
  // Parses "a" or "a, b".
  ExpressionPointer ParseTuple(bool with_condition = true);
  // Parses `input` | filter | filter ...; with `starts_with_name` the first | is left out.
  ExpressionPointer ParseFilterChain(ExpressionPointer input, bool starts_with_name);

 private:
  using Kind = Expression::Kind;
  using Rule = ExpressionPointer (ExpressionParser::*)();

  ExpressionPointer Make(Kind kind, std::string name = "") const;
  // Adds an argument and updates the depth.
  void Add(Expression& parent, ExpressionPointer argument);
  ExpressionPointer ParseOr();
  ExpressionPointer ParseAnd();
  ExpressionPointer ParseNot();
  ExpressionPointer ParseCompare();
  ExpressionPointer ParseSum();
  ExpressionPointer ParseConcat();
  ExpressionPointer ParseProduct();
  ExpressionPointer ParsePower();
  ExpressionPointer ParseUnary(bool with_filters);
  ExpressionPointer ParsePrimary();
  ExpressionPointer ParseName();
  ExpressionPointer ParseParenthesis();
  ExpressionPointer ParseListLiteral();
  ExpressionPointer ParseDictLiteral();
  ExpressionPointer ParsePostfix(ExpressionPointer input);
  ExpressionPointer ParseFilterSuffix(ExpressionPointer input);
  ExpressionPointer ParseFilter(ExpressionPointer input);
  ExpressionPointer ParseTest(ExpressionPointer input);
  ExpressionPointer ParseSubscript(ExpressionPointer input);
  ExpressionPointer ParseCall(ExpressionPointer callee);
  void ParseArguments(Expression& call);
  ExpressionPointer ParseBinary(Rule operand, std::initializer_list<const char*> operators);

  TokenStream& stream_;
  int nesting_ = 0;
};

}  // namespace apb::text::jinja
