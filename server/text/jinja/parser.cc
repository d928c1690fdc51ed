// Recursive descent over the statements; expression_parser.cc parses the expressions.
#include "server/text/jinja/parser.h"

#include <initializer_list>

#include "server/text/jinja/error.h"
#include "server/text/jinja/expression_parser.h"

namespace apb::text::jinja {
namespace {

constexpr int kMaxNesting = 100;  // of statements

using Kind = Statement::Kind;

class StatementParser {
 public:
  explicit StatementParser(std::string_view source)
      : stream_(Tokenize(source)), expressions_(stream_) {}

  Block Run() {
    Block block = ParseBlock({});
    if (stream_.current().type != TokenType::kEnd)
      Fail("line ", stream_.line(), ": unexpected ", stream_.Describe());
    return block;
  }

 private:
  bool AtBlockEnd(std::initializer_list<const char*> ends) const {
    if (stream_.current().type != TokenType::kBlockBegin) return false;
    for (const char* end : ends) {
      if (stream_.next().type == TokenType::kName && stream_.next().text == end) return true;
    }
    return false;
  }

  // Parses up to one of the tags `ends`, which is left for the caller; without `ends`, up to the
  // end of the template.
  Block ParseBlock(std::initializer_list<const char*> ends) {
    if (++nesting_ > kMaxNesting)
      Fail("line ", stream_.line(), ": nested deeper than ", kMaxNesting);
    Block block;
    while (!AtBlockEnd(ends)) {
      const Token& token = stream_.current();
      if (token.type == TokenType::kEnd) {
        if (ends.size() != 0)
          Fail("line ", token.line, ": the template ends before ", *ends.begin());
        break;
      }
      if (token.type == TokenType::kData) {
        block.push_back(Make(Kind::kData));
        block.back()->text = stream_.Take().text;
      } else if (token.type == TokenType::kVariableBegin) {
        stream_.Take();
        block.push_back(Make(Kind::kOutput));
        block.back()->expressions.push_back(expressions_.ParseTuple());
        stream_.Expect(TokenType::kVariableEnd, "the end of the print tag");
      } else {
        stream_.Expect(TokenType::kBlockBegin, "a tag");
        block.push_back(ParseStatement());
      }
    }
    --nesting_;
    return block;
  }

  std::unique_ptr<Statement> Make(Kind kind) const {
    auto made = std::make_unique<Statement>();
    made->kind = kind;
    made->line = stream_.line();
    return made;
  }

  void EndTag() { stream_.Expect(TokenType::kBlockEnd, "the end of the tag"); }

  // Reads {% name %} after ParseBlock({name}).
  void CloseBlock(const char* name) {
    stream_.Expect(TokenType::kBlockBegin, name);
    stream_.Take();
    EndTag();
  }

  std::unique_ptr<Statement> ParseStatement() {
    const Token name = stream_.Expect(TokenType::kName, "the name of a tag");
    if (name.text == "if") return ParseIf();
    if (name.text == "for") return ParseFor();
    if (name.text == "set") return ParseSet();
    if (name.text == "macro") return ParseMacro();
    if (name.text == "with") return ParseWith();
    if (name.text == "filter") {
      auto made = Make(Kind::kFilter);
      made->expressions.push_back(
          expressions_.ParseFilterChain(BlockText(), /*starts_with_name=*/true));
      EndTag();
      made->bodies.push_back(ParseBlock({"endfilter"}));
      CloseBlock("endfilter");
      return made;
    }
    // transformers' tag around the model's own words; it prints its body unchanged.
    if (name.text == "generation") {
      auto made = Make(Kind::kScope);
      EndTag();
      made->bodies.push_back(ParseBlock({"endgeneration"}));
      CloseBlock("endgeneration");
      return made;
    }
    if (name.text == "break" || name.text == "continue") {
      if (loop_depth_ == 0) Fail("line ", name.line, ": ", name.text, " outside of a loop");
      auto made = Make(name.text == "break" ? Kind::kBreak : Kind::kContinue);
      EndTag();
      return made;
    }
    for (const char* known :
         {"include", "import", "from", "extends", "block", "call", "autoescape", "do", "trans"}) {
      if (name.text == known)
        FailUnsupported("line ", name.line, ": tag \"", name.text, "\" is not supported");
    }
    Fail("line ", name.line, ": unexpected tag \"", name.text, "\"");
  }

  ExpressionPointer BlockText() const {
    auto made = std::make_unique<Expression>();
    made->kind = Expression::Kind::kName;
    made->name = kBlockTextName;
    made->line = stream_.line();
    return made;
  }

  std::unique_ptr<Statement> ParseIf() {
    auto made = Make(Kind::kIf);
    while (true) {
      made->expressions.push_back(expressions_.ParseTuple());
      EndTag();
      made->bodies.push_back(ParseBlock({"endif", "else", "elif"}));
      stream_.Expect(TokenType::kBlockBegin, "endif");
      const std::string tag = stream_.Take().text;
      if (tag == "elif") continue;
      EndTag();
      if (tag == "else") {
        made->bodies.push_back(ParseBlock({"endif"}));
        CloseBlock("endif");
      }
      return made;
    }
  }

  std::vector<std::string> ParseTargets() {
    std::vector<std::string> names;
    const bool parenthesised = stream_.TakeOperator("(");
    do {
      names.push_back(stream_.Expect(TokenType::kName, "a variable").text);
    } while (stream_.TakeOperator(","));
    if (parenthesised) stream_.ExpectOperator(")");
    return names;
  }

  std::unique_ptr<Statement> ParseFor() {
    auto made = Make(Kind::kFor);
    made->names = ParseTargets();
    stream_.ExpectName("in");
    made->expressions.push_back(expressions_.ParseTuple(/*with_condition=*/false));
    made->expressions.push_back(stream_.TakeName("if") ? expressions_.Parse() : nullptr);
    if (stream_.IsName("recursive"))
      FailUnsupported("line ", stream_.line(), ": recursive loops are not supported");
    EndTag();
    ++loop_depth_;
    made->bodies.push_back(ParseBlock({"endfor", "else"}));
    --loop_depth_;
    made->bodies.emplace_back();
    stream_.Expect(TokenType::kBlockBegin, "endfor");
    const bool has_else = stream_.Take().text == "else";
    EndTag();
    if (has_else) {
      made->bodies[1] = ParseBlock({"endfor"});
      CloseBlock("endfor");
    }
    return made;
  }

  std::unique_ptr<Statement> ParseSet() {
    auto made = Make(Kind::kSet);
    if (stream_.next().type == TokenType::kOperator && stream_.next().text == ".") {
      made->names.push_back(stream_.Expect(TokenType::kName, "a variable").text);
      stream_.Take();
      made->attribute = stream_.Expect(TokenType::kName, "an attribute").text;
    } else {
      made->names = ParseTargets();
    }
    if (stream_.TakeOperator("=")) {
      made->expressions.push_back(expressions_.ParseTuple());
      EndTag();
      return made;
    }
    made->kind = Kind::kSetBlock;
    if (made->names.size() != 1) Fail("line ", made->line, ": a block is set to one variable");
    made->expressions.push_back(
        expressions_.ParseFilterChain(BlockText(), /*starts_with_name=*/false));
    EndTag();
    made->bodies.push_back(ParseBlock({"endset"}));
    CloseBlock("endset");
    return made;
  }

  std::unique_ptr<Statement> ParseMacro() {
    auto made = Make(Kind::kMacro);
    if (loop_depth_ > 0 || in_macro_ || in_with_)
      FailUnsupported("line ", made->line,
                      ": a macro within a loop, with or macro is not supported");
    made->text = stream_.Expect(TokenType::kName, "the name of the macro").text;
    stream_.ExpectOperator("(");
    while (!stream_.TakeOperator(")")) {
      made->names.push_back(stream_.Expect(TokenType::kName, "a parameter").text);
      made->expressions.push_back(stream_.TakeOperator("=") ? expressions_.Parse() : nullptr);
      if (!stream_.IsOperator(")")) stream_.ExpectOperator(",");
    }
    EndTag();
    in_macro_ = true;
    made->bodies.push_back(ParseBlock({"endmacro"}));
    in_macro_ = false;
    CloseBlock("endmacro");
    return made;
  }

  std::unique_ptr<Statement> ParseWith() {
    auto made = Make(Kind::kWith);
    while (stream_.current().type == TokenType::kName) {
      made->names.push_back(stream_.Take().text);
      stream_.ExpectOperator("=");
      made->expressions.push_back(expressions_.Parse());
      if (!stream_.TakeOperator(",")) break;
    }
    EndTag();
    const bool outer = std::exchange(in_with_, true);
    made->bodies.push_back(ParseBlock({"endwith"}));
    in_with_ = outer;
    CloseBlock("endwith");
    return made;
  }

  TokenStream stream_;
  ExpressionParser expressions_;
  int nesting_ = 0;
  int loop_depth_ = 0;
  bool in_macro_ = false;
  bool in_with_ = false;
};

}  // namespace

Block Parse(std::string_view source) { return StatementParser(source).Run(); }

}  // namespace apb::text::jinja
