// Walks over the tree. Scopes are jinja2's: loops, macros and `with` have their own; `if` has none;
// namespaces cross scopes.
#include "server/text/jinja/renderer.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/text/jinja/builtins.h"
#include "server/text/jinja/error.h"
#include "server/text/jinja/operators.h"
#include "server/text/jinja/python_text.h"
#include "server/text/string_map.h"

namespace apb::text::jinja {
namespace {

constexpr int kMaxCallDepth = 64;          // of macros
constexpr int64_t kMaxSteps = 50'000'000;  // statements and expressions of one rendering
constexpr size_t kBytesOfAStep = 64;       // bytes of joined text that count as one step
constexpr size_t kMaxOutputBytes = 256u << 20;

struct Scope {
  StringMap<Value> variables;
  Scope* parent = nullptr;
};

class Renderer {
 public:
  Renderer(const Dict& variables, absl::Time now) : now_(now) {
    for (const auto& [name, value] : variables.items()) globals_.variables[name] = value;
    top_.parent = &globals_;
    scope_ = &top_;
    out_ = &rendered_.text;
  }

  Rendered Run(const Block& block) {
    Execute(block);
    return std::move(rendered_);
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  // Opens a scope for as long as this object lives.
  class Enter {
   public:
    explicit Enter(Renderer& renderer) : Enter(renderer, renderer.scope_) {}
    Enter(Renderer& renderer, Scope* parent) : renderer_(renderer), outer_(renderer.scope_) {
      scope_.parent = parent;
      renderer.scope_ = &scope_;
    }
    ~Enter() { renderer_.scope_ = outer_; }

   private:
    Renderer& renderer_;
    Scope* outer_;
    Scope scope_;
  };

  // Captures the text that is printed while this object lives.
  class Capture {
   public:
    explicit Capture(Renderer& renderer) : renderer_(renderer), outer_(renderer.out_) {
      renderer.out_ = &text_;
    }
    ~Capture() { renderer_.out_ = outer_; }
    Value Take() { return Value::String(std::move(text_)); }

   private:
    Renderer& renderer_;
    Text* outer_;
    Text text_;
  };

  void Step() {
    if (++steps_ > kMaxSteps) Fail("the template takes more than ", kMaxSteps, " steps");
  }
  // Charges a joined text by its size: texts that grow in a loop over many messages cost the square
  // of their length.
  Value Charged(Value value) {
    if (value.IsString()) steps_ += static_cast<int64_t>(value.bytes().size() / kBytesOfAStep);
    Step();
    return value;
  }
  void Set(const std::string& name, Value value) { scope_->variables[name] = std::move(value); }
  Value Lookup(const std::string& name) const {
    for (const Scope* scope = scope_; scope != nullptr; scope = scope->parent) {
      if (auto found = scope->variables.find(name); found != scope->variables.end())
        return found->second;
    }
    if (IsGlobalFunction(name)) return Value(Value::Variant(Function{name}));
    return Value::MissingAttribute(name);
  }

  Flow Execute(const Block& block) {
    for (const auto& statement : block) {
      if (const Flow flow = ExecuteWithLine(*statement); flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  // Executes a statement. The innermost statement that fails puts its line into the message.
  Flow ExecuteWithLine(const Statement& statement) {
    Step();
    try {
      return Execute(statement);
    } catch (const TemplateError& error) {
      if (std::exchange(has_line_, true)) throw;
      throw TemplateError(
          absl::Status(error.status().code(),
                       absl::StrCat("line ", statement.line, ": ", error.status().message())));
    }
  }

  Flow Execute(const Statement& statement) {
    switch (statement.kind) {
      case Statement::Kind::kData:
        out_->Append(std::string_view(statement.text));
        break;
      case Statement::Kind::kOutput:
        Print(Evaluate(*statement.expressions[0]));
        break;
      case Statement::Kind::kIf:
        return ExecuteIf(statement);
      case Statement::Kind::kFor:
        ExecuteFor(statement);
        break;
      case Statement::Kind::kSet:
        ExecuteSet(statement);
        break;
      case Statement::Kind::kSetBlock: {
        Value text = CaptureBlock(statement.bodies[0]);
        Set(statement.names[0], Filtered(std::move(text), statement.expressions[0].get()));
        break;
      }
      case Statement::Kind::kMacro:
        Set(statement.text, Value(Value::Variant(Function{statement.text, &statement})));
        break;
      case Statement::Kind::kFilter:
        Print(Filtered(CaptureBlock(statement.bodies[0]), statement.expressions[0].get()));
        break;
      case Statement::Kind::kWith:
        return ExecuteWith(statement);
      case Statement::Kind::kScope:
        return Execute(statement.bodies[0]);
      case Statement::Kind::kBreak:
        return Flow::kBreak;
      case Statement::Kind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  void Print(const Value& value) {
    out_->Append(ToText(value));
    if (out_->bytes().size() > kMaxOutputBytes)
      Fail("the rendered prompt is larger than ", kMaxOutputBytes, " bytes");
  }

  Flow ExecuteIf(const Statement& statement) {
    for (size_t i = 0; i < statement.expressions.size(); ++i) {
      if (Evaluate(*statement.expressions[i]).Truth()) return Execute(statement.bodies[i]);
    }
    return statement.bodies.size() > statement.expressions.size() ? Execute(statement.bodies.back())
                                                                  : Flow::kNext;
  }

  void Unpack(const std::vector<std::string>& names, const Value& value) {
    if (names.size() == 1) return Set(names[0], value);
    const std::vector<Value> parts = Iterate(value);
    if (parts.size() != names.size())
      Fail("expected ", names.size(), " values to unpack, got ", parts.size());
    for (size_t i = 0; i < names.size(); ++i) Set(names[i], parts[i]);
  }

  void ExecuteFor(const Statement& statement) {
    auto list = std::make_shared<List>();
    list->items = Iterate(Evaluate(*statement.expressions[0]));
    if (statement.expressions[1] != nullptr) {
      std::erase_if(list->items, [&](const Value& item) {
        Step();
        Enter scope(*this);
        Unpack(statement.names, item);
        return !Evaluate(*statement.expressions[1]).Truth();
      });
    }
    if (list->items.empty()) {
      Execute(statement.bodies[1]);
      return;
    }
    ++loop_depth_;
    for (size_t i = 0; i < list->items.size(); ++i) {
      Step();
      Enter scope(*this);
      Set("loop", Value(Value::Variant(std::make_shared<Loop>(Loop{list, i, loop_depth_}))));
      Unpack(statement.names, list->items[i]);
      const size_t begin = out_->bytes().size();
      const size_t turn = BeginTurn(list->items[i]);
      const Flow flow = Execute(statement.bodies[0]);
      EndTurn(turn, begin);
      if (flow == Flow::kBreak) break;
    }
    --loop_depth_;
  }

  static constexpr size_t kNoTurn = SIZE_MAX;
  // Begins a turn for a pass over a message that prints directly to the prompt; else kNoTurn.
  size_t BeginTurn(const Value& item) {
    if (out_ != &rendered_.text || !item.IsDict() || item.dict().message_index < 0) return kNoTurn;
    rendered_.turns.push_back(
        {out_->bytes().size(), out_->bytes().size(), item.dict().message_index});
    return rendered_.turns.size() - 1;
  }
  void EndTurn(size_t turn, size_t begin) {
    if (turn == kNoTurn) return;
    rendered_.turns[turn].end = out_->bytes().size();
    if (rendered_.turns[turn].end == begin)
      rendered_.turns.resize(turn);  // it printed nothing, so it has no inner turns
  }

  void ExecuteSet(const Statement& statement) {
    Value value = Evaluate(*statement.expressions[0]);
    if (statement.attribute.empty()) return Unpack(statement.names, value);
    const Value target = Lookup(statement.names[0]);
    if (!target.Is<std::shared_ptr<Namespace>>())
      Fail("cannot assign attribute on non-namespace object");
    target.name_space().fields.Set(statement.attribute, std::move(value));
  }

  Flow ExecuteWith(const Statement& statement) {
    std::vector<Value> values;
    for (const auto& expression : statement.expressions) values.push_back(Evaluate(*expression));
    Enter scope(*this);
    for (size_t i = 0; i < values.size(); ++i) Set(statement.names[i], std::move(values[i]));
    return Execute(statement.bodies[0]);
  }

  Value CaptureBlock(const Block& block) {
    Capture capture(*this);
    Enter scope(*this);
    Execute(block);
    return capture.Take();
  }

  Value Filtered(Value text, const Expression* chain) {
    if (chain == nullptr) return text;
    Enter scope(*this);
    Set(kBlockTextName, std::move(text));
    return Evaluate(*chain);
  }

  Value EvaluateOrNull(const ExpressionPointer& expression) {
    return expression != nullptr ? Evaluate(*expression) : Value::MakeNone();
  }

  Arguments EvaluateArguments(const Expression& call, size_t first) {
    Arguments arguments;
    for (size_t i = first; i < call.arguments.size(); ++i)
      arguments.positional.push_back(Evaluate(*call.arguments[i]));
    for (const auto& [name, value] : call.named)
      arguments.named.emplace_back(name, Evaluate(*value));
    return arguments;
  }

  std::vector<Value> EvaluateAll(const Expression& expression) {
    return std::move(EvaluateArguments(expression, 0).positional);
  }

  Value Evaluate(const Expression& e) {
    Step();
    switch (e.kind) {
      case Expression::Kind::kLiteral:
        return e.value;
      case Expression::Kind::kName:
        return Lookup(e.name);
      case Expression::Kind::kList:
        return Value::MakeList(EvaluateAll(e));
      case Expression::Kind::kTuple:
        return Value::MakeList(EvaluateAll(e), /*is_tuple=*/true);
      case Expression::Kind::kDict:
        return EvaluateDict(e);
      case Expression::Kind::kAttribute:
        return GetAttribute(Evaluate(*e.arguments[0]), e.name);
      case Expression::Kind::kItem: {
        const Value object = Evaluate(*e.arguments[0]);
        return GetItem(object, Evaluate(*e.arguments[1]));
      }
      case Expression::Kind::kSlice: {
        const Value object = Evaluate(*e.arguments[0]);
        const Value begin = EvaluateOrNull(e.arguments[1]), end = EvaluateOrNull(e.arguments[2]);
        const Value step = EvaluateOrNull(e.arguments[3]);
        return GetSlice(object, &begin, &end, &step);
      }
      case Expression::Kind::kCall:
        return EvaluateCall(e);
      case Expression::Kind::kFilter: {
        const Value input = Evaluate(*e.arguments[0]);
        return ApplyFilter(e.name, input, EvaluateArguments(e, 1));
      }
      case Expression::Kind::kTest: {
        const Value input = Evaluate(*e.arguments[0]);
        return Value::Bool(ApplyTest(e.name, input, EvaluateArguments(e, 1)));
      }
      case Expression::Kind::kCompare:
        return EvaluateCompare(e);
      case Expression::Kind::kConditional:
        if (Evaluate(*e.arguments[1]).Truth()) return Evaluate(*e.arguments[0]);
        return e.arguments[2] != nullptr ? Evaluate(*e.arguments[2])
                                         : Value::MissingAttribute("the else of an if");
      case Expression::Kind::kConcat: {
        Text text;
        for (const auto& part : e.arguments) text.Append(ToText(Evaluate(*part)));
        return Charged(Value::String(std::move(text)));
      }
      default:
        return EvaluateOperator(e);
    }
  }

  Value EvaluateOperator(const Expression& e) {
    Value left = Evaluate(*e.arguments[0]);
    switch (e.kind) {
      case Expression::Kind::kNot:
        return Value::Bool(!left.Truth());
      case Expression::Kind::kNegative:
        return Arithmetic("-", Value::Int(0), left);
      case Expression::Kind::kPositive:
        return Arithmetic("+", Value::Int(0), left);
      case Expression::Kind::kAnd:
        return left.Truth() ? Evaluate(*e.arguments[1]) : left;
      case Expression::Kind::kOr:
        return left.Truth() ? left : Evaluate(*e.arguments[1]);
      default:
        return Charged(Arithmetic(e.name, left, Evaluate(*e.arguments[1])));
    }
  }

  Value EvaluateDict(const Expression& e) {
    Dict dict;
    for (size_t i = 0; i + 1 < e.arguments.size(); i += 2) {
      const Value key = Evaluate(*e.arguments[i]);
      if (!key.IsString()) FailUnsupported("a dictionary key that is a ", key.TypeName());
      if (!dict.origin) dict.origin = OriginOf(key);  // loops print keys, with this origin
      dict.Set(key.bytes(), Evaluate(*e.arguments[i + 1]));
    }
    return Value::MakeDict(std::move(dict));
  }

  static bool Compare(const std::string& op, const Value& a, const Value& b) {
    if (op == "==") return Equal(a, b);
    if (op == "!=") return !Equal(a, b);
    if (op == "in") return Contains(b, a);
    if (op == "not in") return !Contains(b, a);
    if (op == "<") return Less(a, b);
    if (op == ">") return Less(b, a);
    return op == "<=" ? !Less(b, a) : !Less(a, b);
  }

  Value EvaluateCompare(const Expression& e) {
    Value left = Evaluate(*e.arguments[0]);
    for (size_t i = 0; i < e.operators.size(); ++i) {
      Value right = Evaluate(*e.arguments[i + 1]);
      if (!Compare(e.operators[i], left, right)) return Value::Bool(false);
      left = std::move(right);
    }
    return Value::Bool(true);
  }

  Value EvaluateCall(const Expression& e) {
    const Expression& callee = *e.arguments[0];
    if (callee.kind == Expression::Kind::kAttribute) {
      const Value object = Evaluate(*callee.arguments[0]);
      const bool has_macro = object.Is<std::shared_ptr<Namespace>>();
      if (!has_macro) return CallMethod(callee.name, object, EvaluateArguments(e, 1));
    }
    const Value function = Evaluate(callee);
    if (function.IsUndefined()) Fail("'", function.undefined_name(), "' is undefined");
    if (!function.Is<Function>()) Fail("'", function.TypeName(), "' object is not callable");
    if (function.function().macro != nullptr)
      return CallMacro(*function.function().macro, EvaluateArguments(e, 1));
    const Arguments arguments = EvaluateArguments(e, 1);
    if (function.function().name == "raise_exception")
      has_line_ = true;  // the message is the template's own
    return CallGlobal(function.function().name, arguments, now_);
  }

  Value CallMacro(const Statement& macro, const Arguments& arguments) {
    if (++call_depth_ > kMaxCallDepth) Fail("macros call each other deeper than ", kMaxCallDepth);
    if (arguments.positional.size() > macro.names.size())
      Fail("macro '", macro.text, "' takes not more than ", macro.names.size(), " argument(s)");
    Capture capture(*this);
    Enter scope(*this, &top_);
    for (size_t i = 0; i < macro.names.size(); ++i) {
      const Value* given = arguments.Find(i, macro.names[i]);
      if (given != nullptr) {
        Set(macro.names[i], *given);
      } else if (macro.expressions[i] != nullptr) {
        Set(macro.names[i], Evaluate(*macro.expressions[i]));
      } else {
        Set(macro.names[i], Value::MissingAttribute(macro.names[i]));
      }
    }
    for (const auto& [name, value] : arguments.named) {
      if (std::find(macro.names.begin(), macro.names.end(), name) == macro.names.end())
        Fail("macro '", macro.text, "' takes no argument '", name, "'");
    }
    Execute(macro.bodies[0]);
    --call_depth_;
    return capture.Take();
  }

  absl::Time now_;
  Scope globals_, top_;
  Scope* scope_;
  Rendered rendered_;
  Text* out_;
  int64_t steps_ = 0;
  int loop_depth_ = 0;
  int call_depth_ = 0;
  bool has_line_ = false;
};

}  // namespace

Rendered Render(const Block& block, const Dict& variables, absl::Time now) {
  return Renderer(variables, now).Run(block);
}

}  // namespace apb::text::jinja
