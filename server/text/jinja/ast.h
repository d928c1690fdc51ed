// The tree of a parsed template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/text/jinja/value.h"

namespace apb::text::jinja {

struct Expression {
  enum class Kind {
    kLiteral,    // value
    kName,       // name
    kList,       // arguments
    kTuple,      // arguments
    kDict,       // arguments: key, value, key, value, ...
    kAttribute,  // arguments[0].name
    kItem,       // arguments[0][arguments[1]]
    kSlice,      // arguments[0][arguments[1]:arguments[2]:arguments[3]], null where left out
    kCall,       // arguments[0](arguments[1..], named)
    kFilter,     // arguments[0] | name(arguments[1..], named)
    kTest,       // arguments[0] is name(arguments[1..])
    kNot,
    kNegative,
    kPositive,
    kBinary,   // name is the operator
    kCompare,  // arguments[0] operators[0] arguments[1] operators[1] ...
    kAnd,
    kOr,
    kConditional,  // arguments: then, condition, else (may be null)
    kConcat,       // ~
  };
  Kind kind;
  int line = 0;
  int depth = 1;  // of the tree below this expression
  Value value;
  std::string name;
  std::vector<std::unique_ptr<Expression>> arguments;
  std::vector<std::pair<std::string, std::unique_ptr<Expression>>> named;
  std::vector<std::string> operators;
};
using ExpressionPointer = std::unique_ptr<Expression>;

struct Statement;
using Block = std::vector<std::unique_ptr<Statement>>;

struct Statement {
  enum class Kind {
    kData,      // text
    kOutput,    // expressions[0]
    kIf,        // expressions[i] -> bodies[i]; one more body is the else
    kFor,       // names in expressions[0], condition expressions[1] or null; bodies: body, else
    kSet,       // names = expressions[0]; with attribute: names[0].attribute
    kSetBlock,  // names[0] = bodies[0] through the filters of expressions[0] (may be null)
    kMacro,     // text(names) with defaults expressions[i] (may be null); bodies[0]
    kFilter,    // bodies[0] through expressions[0]
    kWith,      // names[i] = expressions[i] in bodies[0]
    kScope,     // bodies[0]
    kBreak,
    kContinue,
  };
  Kind kind;
  int line = 0;
  std::string text;
  std::string attribute;
  std::vector<std::string> names;
  std::vector<ExpressionPointer> expressions;
  std::vector<Block> bodies;
};

// The name that stands for a block's text in the filters of kSetBlock and kFilter. No template can
// write it.
inline constexpr char kBlockTextName[] = "(block)";

}  // namespace apb::text::jinja
