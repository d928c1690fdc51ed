// One function for each level of precedence, lowest first.
#include "server/text/jinja/expression_parser.h"

#include <algorithm>
#include <charconv>

#include "server/text/jinja/builtins.h"
#include "server/text/jinja/error.h"

namespace apb::text::jinja {
namespace {

// Limits on nested brackets and on operators in a row, because the tree is walked recursively.
constexpr int kMaxNesting = 60;
constexpr int kMaxDepth = 400;

}  // namespace

Token TokenStream::Take() {
  Token token = current();
  if (index_ + 1 < tokens_.size()) ++index_;
  return token;
}

Token TokenStream::Expect(TokenType type, const char* what) {
  if (current().type != type) Fail("line ", line(), ": expected ", what, ", found ", Describe());
  return Take();
}

void TokenStream::ExpectOperator(const char* text) {
  if (!TakeOperator(text)) Fail("line ", line(), ": expected '", text, "', found ", Describe());
}

void TokenStream::ExpectName(const char* text) {
  if (!TakeName(text)) Fail("line ", line(), ": expected '", text, "', found ", Describe());
}

bool TokenStream::TakeOperator(std::string_view text) {
  const bool found = IsOperator(text);
  if (found) Take();
  return found;
}

bool TokenStream::TakeName(std::string_view text) {
  const bool found = IsName(text);
  if (found) Take();
  return found;
}

std::string TokenStream::Describe() const {
  switch (current().type) {
    case TokenType::kEnd:
      return "the end of the template";
    case TokenType::kBlockBegin:
      return "tag \"" + next().text + "\"";
    case TokenType::kBlockEnd:
    case TokenType::kVariableEnd:
      return "the end of the tag";
    default:
      return "'" + current().text + "'";
  }
}

ExpressionPointer ExpressionParser::Make(Kind kind, std::string name) const {
  auto made = std::make_unique<Expression>();
  made->kind = kind;
  made->line = stream_.line();
  made->name = std::move(name);
  return made;
}

void ExpressionParser::Add(Expression& parent, ExpressionPointer argument) {
  // In jinja2, Markup would escape the text to which it is added: no prompt wants that.
  if (parent.kind == Kind::kBinary && argument->kind == Kind::kFilter && argument->name == "safe")
    FailUnsupported("line ", stream_.line(), ": filter \"safe\" within an expression");
  if (argument != nullptr) parent.depth = std::max(parent.depth, argument->depth + 1);
  if (parent.depth > kMaxDepth)
    Fail("line ", stream_.line(), ": an expression has more than ", kMaxDepth, " levels");
  parent.arguments.push_back(std::move(argument));
}

ExpressionPointer ExpressionParser::Parse(bool with_condition) {
  if (++nesting_ > kMaxNesting)
    Fail("line ", stream_.line(), ": brackets nested deeper than ", kMaxNesting);
  ExpressionPointer expression = ParseOr();
  while (with_condition && stream_.TakeName("if")) {
    ExpressionPointer conditional = Make(Kind::kConditional);
    Add(*conditional, std::move(expression));
    Add(*conditional, ParseOr());
    Add(*conditional, stream_.TakeName("else") ? Parse() : nullptr);
    expression = std::move(conditional);
  }
  --nesting_;
  return expression;
}

ExpressionPointer ExpressionParser::ParseTuple(bool with_condition) {
  ExpressionPointer first = Parse(with_condition);
  if (!stream_.IsOperator(",")) return first;
  ExpressionPointer tuple = Make(Kind::kTuple);
  Add(*tuple, std::move(first));
  while (stream_.TakeOperator(",")) {
    const Token& token = stream_.current();
    if (token.type == TokenType::kBlockEnd || token.type == TokenType::kVariableEnd ||
        stream_.IsOperator(")"))
      break;
    Add(*tuple, Parse(with_condition));
  }
  return tuple;
}

ExpressionPointer ExpressionParser::ParseOr() {
  ExpressionPointer left = ParseAnd();
  while (stream_.TakeName("or")) {
    ExpressionPointer made = Make(Kind::kOr);
    Add(*made, std::move(left));
    Add(*made, ParseAnd());
    left = std::move(made);
  }
  return left;
}

ExpressionPointer ExpressionParser::ParseAnd() {
  ExpressionPointer left = ParseNot();
  while (stream_.TakeName("and")) {
    ExpressionPointer made = Make(Kind::kAnd);
    Add(*made, std::move(left));
    Add(*made, ParseNot());
    left = std::move(made);
  }
  return left;
}

ExpressionPointer ExpressionParser::ParseNot() {
  if (!stream_.TakeName("not")) return ParseCompare();
  ExpressionPointer made = Make(Kind::kNot);
  if (++nesting_ > kMaxNesting) Fail("line ", stream_.line(), ": nested deeper than ", kMaxNesting);
  Add(*made, ParseNot());
  --nesting_;
  return made;
}

ExpressionPointer ExpressionParser::ParseCompare() {
  ExpressionPointer first = ParseSum();
  ExpressionPointer compare;
  while (true) {
    std::string op;
    for (const char* known : {"==", "!=", "<", "<=", ">", ">="}) {
      if (stream_.IsOperator(known)) op = known;
    }
    if (stream_.IsName("in")) op = "in";
    if (stream_.IsName("not") && stream_.next().type == TokenType::kName &&
        stream_.next().text == "in") {
      stream_.Take();
      op = "not in";
    }
    if (op.empty()) return compare != nullptr ? std::move(compare) : std::move(first);
    stream_.Take();
    if (compare == nullptr) {
      compare = Make(Kind::kCompare);
      Add(*compare, std::move(first));
    }
    compare->operators.push_back(op);
    Add(*compare, ParseSum());
  }
}

ExpressionPointer ExpressionParser::ParseBinary(Rule operand,
                                                std::initializer_list<const char*> operators) {
  ExpressionPointer left = (this->*operand)();
  while (true) {
    const char* found = nullptr;
    for (const char* op : operators) {
      if (stream_.IsOperator(op)) found = op;
    }
    if (found == nullptr) return left;
    ExpressionPointer made = Make(Kind::kBinary, found);
    stream_.Take();
    Add(*made, std::move(left));
    Add(*made, (this->*operand)());
    left = std::move(made);
  }
}

ExpressionPointer ExpressionParser::ParseSum() {
  return ParseBinary(&ExpressionParser::ParseConcat, {"+", "-"});
}

ExpressionPointer ExpressionParser::ParseConcat() {
  ExpressionPointer first = ParseProduct();
  if (!stream_.IsOperator("~")) return first;
  ExpressionPointer made = Make(Kind::kConcat);
  Add(*made, std::move(first));
  while (stream_.TakeOperator("~")) Add(*made, ParseProduct());
  return made;
}

ExpressionPointer ExpressionParser::ParseProduct() {
  return ParseBinary(&ExpressionParser::ParsePower, {"*", "/", "//", "%"});
}

ExpressionPointer ExpressionParser::ParsePower() {
  ExpressionPointer left = ParseUnary(true);
  while (stream_.IsOperator("**")) {
    ExpressionPointer made = Make(Kind::kBinary, "**");
    stream_.Take();
    Add(*made, std::move(left));
    Add(*made, ParseUnary(true));
    left = std::move(made);
  }
  return left;
}

ExpressionPointer ExpressionParser::ParseUnary(bool with_filters) {
  ExpressionPointer made;
  if (stream_.IsOperator("-") || stream_.IsOperator("+")) {
    if (++nesting_ > kMaxNesting)
      Fail("line ", stream_.line(), ": nested deeper than ", kMaxNesting);
    made = Make(stream_.IsOperator("-") ? Kind::kNegative : Kind::kPositive);
    stream_.Take();
    Add(*made, ParseUnary(false));
    --nesting_;
  } else {
    made = ParsePrimary();
  }
  made = ParsePostfix(std::move(made));
  return with_filters ? ParseFilterSuffix(std::move(made)) : std::move(made);
}

ExpressionPointer ExpressionParser::ParsePrimary() {
  const Token token = stream_.current();
  ExpressionPointer literal = Make(Kind::kLiteral);
  switch (token.type) {
    case TokenType::kName:
      return ParseName();
    case TokenType::kString: {
      std::string text;
      while (stream_.current().type == TokenType::kString) text += stream_.Take().text;
      literal->value = Value::String(std::move(text));
      return literal;
    }
    case TokenType::kInteger: {
      int64_t number = 0;
      const auto [end, error] =
          std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
      if (error != std::errc())
        Fail("line ", token.line, ": the number ", token.text, " is too large");
      literal->value = Value::Int(number);
      stream_.Take();
      return literal;
    }
    case TokenType::kFloat: {
      double number = 0;
      std::from_chars(token.text.data(), token.text.data() + token.text.size(), number);
      literal->value = Value::Float(number);
      stream_.Take();
      return literal;
    }
    default:
      break;
  }
  if (stream_.IsOperator("(")) return ParseParenthesis();
  if (stream_.IsOperator("[")) return ParseListLiteral();
  if (stream_.IsOperator("{")) return ParseDictLiteral();
  Fail("line ", token.line, ": expected an expression, found ", stream_.Describe());
}

ExpressionPointer ExpressionParser::ParseName() {
  ExpressionPointer literal = Make(Kind::kLiteral);
  const Token token = stream_.Take();
  const std::string& name = token.text;
  if (name == "true" || name == "True" || name == "false" || name == "False") {
    literal->value = Value::Bool(name == "true" || name == "True");
    return literal;
  }
  if (name == "none" || name == "None") {
    literal->value = Value::MakeNone();
    return literal;
  }
  for (const char* word : {"if", "else", "elif", "for", "in", "is", "and", "or", "not"}) {
    if (name == word) Fail("line ", literal->line, ": expected an expression, found '", name, "'");
  }
  return Make(Kind::kName, name);
}

ExpressionPointer ExpressionParser::ParseParenthesis() {
  stream_.ExpectOperator("(");
  if (stream_.TakeOperator(")")) return Make(Kind::kTuple);
  ExpressionPointer inner = ParseTuple();
  stream_.ExpectOperator(")");
  return inner;
}

ExpressionPointer ExpressionParser::ParseListLiteral() {
  ExpressionPointer list = Make(Kind::kList);
  stream_.ExpectOperator("[");
  while (!stream_.TakeOperator("]")) {
    Add(*list, Parse());
    if (!stream_.IsOperator("]")) stream_.ExpectOperator(",");
  }
  return list;
}

ExpressionPointer ExpressionParser::ParseDictLiteral() {
  ExpressionPointer dict = Make(Kind::kDict);
  stream_.ExpectOperator("{");
  while (!stream_.TakeOperator("}")) {
    Add(*dict, Parse());
    const Expression& key = *dict->arguments.back();
    if (key.kind == Kind::kLiteral && !key.value.IsString())
      FailUnsupported("line ", key.line, ": a dictionary key that is no string");
    stream_.ExpectOperator(":");
    Add(*dict, Parse());
    if (!stream_.IsOperator("}")) stream_.ExpectOperator(",");
  }
  return dict;
}

ExpressionPointer ExpressionParser::ParsePostfix(ExpressionPointer input) {
  while (true) {
    if (stream_.TakeOperator(".")) {
      const Token& token = stream_.current();
      if (token.type == TokenType::kInteger) {  // x.0
        ExpressionPointer item = Make(Kind::kItem);
        ExpressionPointer index = ParsePrimary();
        Add(*item, std::move(input));
        Add(*item, std::move(index));
        input = std::move(item);
        continue;
      }
      ExpressionPointer attribute =
          Make(Kind::kAttribute, stream_.Expect(TokenType::kName, "an attribute").text);
      Add(*attribute, std::move(input));
      input = std::move(attribute);
    } else if (stream_.IsOperator("[")) {
      input = ParseSubscript(std::move(input));
    } else if (stream_.IsOperator("(")) {
      input = ParseCall(std::move(input));
    } else {
      return input;
    }
  }
}

ExpressionPointer ExpressionParser::ParseSubscript(ExpressionPointer input) {
  stream_.ExpectOperator("[");
  ExpressionPointer made = Make(Kind::kItem);
  Add(*made, std::move(input));
  if (!stream_.IsOperator(":")) Add(*made, Parse());
  if (stream_.IsOperator(":")) {
    made->kind = Kind::kSlice;
    if (made->arguments.size() == 1) Add(*made, nullptr);
    while (made->arguments.size() < 4 && stream_.TakeOperator(":"))
      Add(*made, stream_.IsOperator(":") || stream_.IsOperator("]") ? nullptr : Parse());
    while (made->arguments.size() < 4) Add(*made, nullptr);
  }
  if (stream_.IsOperator(","))
    FailUnsupported("line ", stream_.line(), ": an index of several values");
  stream_.ExpectOperator("]");
  return made;
}

ExpressionPointer ExpressionParser::ParseCall(ExpressionPointer callee) {
  ExpressionPointer call = Make(Kind::kCall);
  if (callee->kind == Kind::kAttribute && !IsKnownMethod(callee->name))
    FailUnsupported("line ", call->line, ": method \"", callee->name, "\" is not supported");
  if (callee->kind == Kind::kName && IsUnsupportedGlobal(callee->name))
    FailUnsupported("line ", call->line, ": function \"", callee->name, "\" is not supported");
  Add(*call, std::move(callee));
  ParseArguments(*call);
  return call;
}

void ExpressionParser::ParseArguments(Expression& call) {
  stream_.ExpectOperator("(");
  while (!stream_.TakeOperator(")")) {
    if (stream_.IsOperator("*") || stream_.IsOperator("**"))
      FailUnsupported("line ", stream_.line(), ": * and ** arguments are not supported");
    if (stream_.current().type == TokenType::kName && stream_.next().type == TokenType::kOperator &&
        stream_.next().text == "=") {
      std::string name = stream_.Take().text;
      stream_.Take();
      ExpressionPointer value = Parse();
      call.depth = std::max(call.depth, value->depth + 1);
      call.named.emplace_back(std::move(name), std::move(value));
    } else {
      if (!call.named.empty())
        Fail("line ", stream_.line(), ": a positional argument after a named one");
      Add(call, Parse());
    }
    if (!stream_.IsOperator(")")) stream_.ExpectOperator(",");
  }
}

ExpressionPointer ExpressionParser::ParseFilterSuffix(ExpressionPointer input) {
  while (true) {
    if (stream_.TakeOperator("|")) {
      input = ParseFilter(std::move(input));
    } else if (stream_.TakeName("is")) {
      input = ParseTest(std::move(input));
    } else if (stream_.IsOperator("(")) {
      input = ParseCall(std::move(input));
    } else {
      return input;
    }
  }
}

ExpressionPointer ExpressionParser::ParseFilterChain(ExpressionPointer input,
                                                     bool starts_with_name) {
  if (starts_with_name) input = ParseFilter(std::move(input));
  while (stream_.TakeOperator("|")) input = ParseFilter(std::move(input));
  return input;
}

ExpressionPointer ExpressionParser::ParseFilter(ExpressionPointer input) {
  ExpressionPointer filter = Make(Kind::kFilter, stream_.Expect(TokenType::kName, "a filter").text);
  if (!IsKnownFilter(filter->name))
    FailUnsupported("line ", filter->line, ": filter \"", filter->name, "\" is not supported");
  Add(*filter, std::move(input));
  if (stream_.IsOperator("(")) ParseArguments(*filter);
  return filter;
}

ExpressionPointer ExpressionParser::ParseTest(ExpressionPointer input) {
  const bool negated = stream_.TakeName("not");
  ExpressionPointer test = Make(Kind::kTest, stream_.Expect(TokenType::kName, "a test").text);
  if (!IsKnownTest(test->name))
    FailUnsupported("line ", test->line, ": test \"", test->name, "\" is not supported");
  Add(*test, std::move(input));
  const Token& token = stream_.current();
  if (stream_.IsOperator("(")) {
    ParseArguments(*test);
  } else if (token.type == TokenType::kString || token.type == TokenType::kInteger ||
             token.type == TokenType::kFloat || stream_.IsOperator("[") ||
             stream_.IsOperator("{") ||
             (token.type == TokenType::kName && token.text != "else" && token.text != "or" &&
              token.text != "and" && token.text != "if" && token.text != "is" &&
              token.text != "in" && token.text != "not" && token.text != "recursive")) {
    Add(*test, ParsePostfix(ParsePrimary()));
  }
  if (!negated) return test;
  ExpressionPointer made = Make(Kind::kNot);
  Add(*made, std::move(test));
  return made;
}

}  // namespace apb::text::jinja
