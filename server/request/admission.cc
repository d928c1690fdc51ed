// Checks of a canonical request, and its defaults.
#include "server/request/admission.h"

#include <algorithm>
#include <optional>
#include <span>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/check.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"
#include "server/request/status_map.h"

namespace apb::request {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;

constexpr double kMaxInt = 1 << 30;

// The range of a numeric message field, and its default. A field without `fallback` stays absent.
struct NumberRule {
  const char* field;
  double low, high;
  std::optional<double> fallback;
  bool above_low = false;  // `low` itself is refused
};

// For common.v1.SamplingParams; `seed` may have any value.
constexpr NumberRule kSamplingRules[] = {
    {"max_tokens", 1, kMaxInt, std::nullopt},  // see CompletionBudget
    {"temperature", 0, 2, 1},
    {"top_p", 0, 1, 1, true},
    {"top_k", -1, kMaxInt, 0},
    {"min_p", 0, 1, 0},
    {"presence_penalty", -2, 2, 0},
    {"frequency_penalty", -2, 2, 0},
    {"repetition_penalty", 0.01, 100, 1},
    {"logprobs", 0, kMaxLogprobs, std::nullopt},  // absent: off
    {"min_tokens", 0, kMaxInt, 0},
};
// For common.v1.ApbOptions; the workers fill in the defaults.
constexpr NumberRule kApbRules[] = {
    {"anchor_length", 0, 1 << 24, std::nullopt},
    {"passing_length", 0, 1 << 24, std::nullopt},
    {"hosts", 1, 4096, std::nullopt},
};

const FieldDescriptor* FieldOfRule(const Message& message, const NumberRule& rule) {
  const FieldDescriptor* field = message.GetDescriptor()->FindFieldByName(rule.field);
  APB_CHECK(field != nullptr);
  return field;
}

// An error names the field with `prefix` before it, e.g. "apb.hosts".
absl::Status CheckNumbers(const Message& message, std::span<const NumberRule> rules,
                          const char* prefix) {
  for (const NumberRule& rule : rules) {
    const FieldDescriptor* field = FieldOfRule(message, rule);
    const google::protobuf::Reflection& reflection = *message.GetReflection();
    if (!reflection.HasField(message, field)) continue;
    const bool whole = field->cpp_type() == FieldDescriptor::CPPTYPE_INT32;
    const double value =
        whole ? reflection.GetInt32(message, field) : reflection.GetDouble(message, field);
    if (value >= rule.low && value <= rule.high && !(rule.above_low && value == rule.low)) continue;
    const auto shown = [whole](double number) {
      return whole ? absl::StrCat(static_cast<int64_t>(number)) : absl::StrCat(number);
    };
    return InvalidField(absl::StrCat(prefix, rule.field),
                        absl::StrCat("must be in ", rule.above_low ? "(" : "[", shown(rule.low),
                                     ", ", shown(rule.high), "], got ", shown(value)));
  }
  return absl::OkStatus();
}

void FillDefaults(std::span<const NumberRule> rules, Message& message) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  for (const NumberRule& rule : rules) {
    const FieldDescriptor* field = FieldOfRule(message, rule);
    if (reflection.HasField(message, field) || !rule.fallback.has_value()) continue;
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_INT32) {
      reflection.SetInt32(&message, field, static_cast<int32_t>(*rule.fallback));
    } else {
      reflection.SetDouble(&message, field, *rule.fallback);
    }
  }
}

absl::Status CheckOneOf(std::string_view field, const std::string& value,
                        std::span<const std::string_view> names) {
  if (value.empty()) return absl::OkStatus();
  std::string all;
  for (std::string_view name : names) {
    if (value == name) return absl::OkStatus();
    absl::StrAppend(&all, all.empty() ? "" : ", ", base::AbslView(name));
  }
  return InvalidField(field, absl::StrCat("must be one of ", all));
}

absl::Status CheckStops(const common::v1::SamplingParams& s, const Limits& limits) {
  if (s.stop_size() > kMaxStopStrings) {
    return InvalidField("stop",
                        absl::StrCat("at most ", kMaxStopStrings, " strings, got ", s.stop_size()));
  }
  for (const std::string& stop : s.stop()) {
    if (stop.empty()) return InvalidField("stop", "a stop string must not be empty");
    if (stop.size() > kMaxStopStringBytes) {
      return InvalidField("stop", absl::StrCat("a stop string has at most ", kMaxStopStringBytes,
                                               " bytes, got ", stop.size()));
    }
  }
  if (s.stop_token_ids_size() > kMaxStopTokens) {
    return InvalidField("stop_token_ids", absl::StrCat("at most ", kMaxStopTokens, " ids"));
  }
  for (const int32_t id : s.stop_token_ids()) {
    if (id < 0 || id >= limits.vocab_size) {
      return InvalidField("stop_token_ids",
                          absl::StrCat(id, " is outside the vocabulary of ", limits.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckSampling(const common::v1::SamplingParams& s, const Limits& limits) {
  APB_RETURN_IF_ERROR(CheckNumbers(s, kSamplingRules, ""));
  if (s.has_max_tokens() && s.min_tokens() > s.max_tokens()) {
    return InvalidField("min_tokens", absl::StrCat("must not exceed max_tokens, ", s.min_tokens(),
                                                   " > ", s.max_tokens()));
  }
  return CheckStops(s, limits);
}

// Null if the strategy is unknown or no group is ready.
const Strategy* FindStrategy(const Limits& limits, std::string_view name) {
  const auto found = std::ranges::find(limits.strategies, name, &Strategy::name);
  return found == limits.strategies.end() ? nullptr : &*found;
}

absl::Status CheckStrategy(const common::v1::ApbOptions& apb, const Limits& limits) {
  if (apb.strategy().empty() || limits.strategies.empty()) return absl::OkStatus();
  const Strategy* strategy = FindStrategy(limits, apb.strategy());
  if (strategy == nullptr) {
    std::vector<std::string_view> names;
    for (const Strategy& one : limits.strategies) names.push_back(one.name);
    return CheckOneOf("apb.strategy", apb.strategy(), names);
  }
  if (apb.exact() && !strategy->exact) {
    return InvalidField("apb.exact", absl::StrCat("strategy ", strategy->name,
                                                  " is approximate; use an exact one or auto"));
  }
  if (apb.balanced() && !strategy->can_balance) {
    return InvalidField("apb.balanced",
                        absl::StrCat("strategy ", strategy->name, " has no shards to balance"));
  }
  return absl::OkStatus();
}

absl::Status CheckApb(const common::v1::ApbOptions& apb, const Limits& limits) {
  APB_RETURN_IF_ERROR(CheckStrategy(apb, limits));
  APB_RETURN_IF_ERROR(CheckOneOf("apb.compressor", apb.compressor(), kCompressorNames));
  if (apb.has_query() && apb.query().empty()) {
    return InvalidField("apb.query", "must not be empty");
  }
  return CheckNumbers(apb, kApbRules, "apb.");
}

uint64_t RandomSeed() {
  thread_local absl::BitGen generator;
  return absl::Uniform<uint64_t>(generator);
}

// A text of n bytes has at least n / (bytes of the longest token) tokens. Texts that cannot fit are
// refused before any work.
absl::Status CheckTextBytes(std::string_view field, int64_t bytes, const Limits& limits) {
  if (bytes > limits.max_input_bytes) {
    return InvalidField(
        field, absl::StrCat("has ", bytes, " bytes, the limit is ", limits.max_input_bytes));
  }
  if (limits.max_model_len > 0 && bytes / limits.max_token_bytes > limits.max_model_len) {
    return WithErrorCode(
        InvalidField(field, absl::StrCat("has ", bytes, " bytes, which is more than the ",
                                         limits.max_model_len, " tokens of the context can hold")),
        "context_length_exceeded");
  }
  return absl::OkStatus();
}

absl::Status ContextExceeded(std::string_view field, int64_t prompt, int64_t completion,
                             int64_t limit) {
  return WithErrorCode(
      InvalidField(field, absl::StrFormat(
                              "this model's context has %d tokens, but the request needs %d (%d of "
                              "the prompt, %d of the completion)",
                              limit, prompt + completion, prompt, completion)),
      "context_length_exceeded");
}

struct InputCheck {
  const Limits& limits;

  absl::Status operator()(const TextInput& input) const {
    if (input.text.empty()) return InvalidField("prompt", "must not be empty");
    return CheckTextBytes("prompt", static_cast<int64_t>(input.text.size()), limits);
  }

  absl::Status operator()(const TokenInput& input) const {
    if (input.ids.empty()) return InvalidField("prompt", "must not be empty");
    for (size_t i = 0; i < input.ids.size(); ++i) {
      if (input.ids[i] < 0 || input.ids[i] >= limits.vocab_size) {
        return InvalidField(absl::StrCat("prompt[", i, "]"),
                            absl::StrCat("token id ", input.ids[i],
                                         " is outside the vocabulary of ", limits.vocab_size));
      }
    }
    return absl::OkStatus();
  }

  absl::Status operator()(const ChatInput& input) const {
    if (input.messages.empty()) return InvalidField("messages", "must not be empty");
    if (input.messages.size() > kMaxMessages) {
      return InvalidField("messages",
                          absl::StrCat("at most ", kMaxMessages, ", got ", input.messages.size()));
    }
    int64_t bytes = 0;
    for (size_t i = 0; i < input.messages.size(); ++i) {
      const std::string& role = input.messages[i].role;
      if (role != "system" && role != "developer" && role != "user" && role != "assistant") {
        return InvalidField(absl::StrCat("messages[", i, "].role"),
                            "must be system, developer, user or assistant");
      }
      bytes += static_cast<int64_t>(input.messages[i].content.size());
    }
    return CheckTextBytes("messages", bytes, limits);
  }
};

}  // namespace

absl::Status CheckRequest(const CanonicalRequest& request, const Limits& limits) {
  if (!request.model.empty() && request.model != limits.model) {
    return WithErrorCode(
        absl::NotFoundError(absl::StrCat("the model `", request.model.substr(0, 200),
                                         "` does not exist; this server has `", limits.model, "`")),
        "model_not_found");
  }
  APB_RETURN_IF_ERROR(CheckSampling(request.sampling, limits));
  APB_RETURN_IF_ERROR(CheckApb(request.apb, limits));
  if (const int64_t ttl = request.ttl_seconds.value_or(1);
      ttl < 1 || ttl > limits.max_context_ttl_seconds) {
    return InvalidField(
        "ttl_seconds",
        absl::StrCat("must be in [1, ", limits.max_context_ttl_seconds, "], got ", ttl));
  }
  return std::visit(InputCheck{limits}, request.input);
}

absl::Status Resolve(const Limits& limits, CanonicalRequest& request) {
  APB_RETURN_IF_ERROR(CheckRequest(request, limits));
  common::v1::SamplingParams& s = request.sampling;
  FillDefaults(kSamplingRules, s);
  if (s.top_k() < 0) s.set_top_k(0);
  if (!s.has_seed()) s.set_seed(RandomSeed());
  if (!s.has_skip_special_tokens()) s.set_skip_special_tokens(true);
  if (!s.ignore_eos()) {
    s.mutable_stop_token_ids()->Add(limits.eos_token_ids.begin(), limits.eos_token_ids.end());
  }
  if (request.apb.strategy().empty()) {
    // An option that does not fit the default strategy is the same error as if the client had named
    // it.
    request.apb.set_strategy(limits.default_strategy);
    APB_RETURN_IF_ERROR(CheckStrategy(request.apb, limits));
  }
  return absl::OkStatus();
}

absl::Status TakeContextOptions(const common::v1::ApbOptions& context, const std::string& strategy,
                                const Limits& limits, common::v1::ApbOptions& asked) {
  const auto differs = [](std::string_view field) {
    return InvalidField(field, "contradicts the context, whose options apply; leave it out");
  };
  const std::string& wanted = asked.strategy();
  if (!wanted.empty() && wanted != "auto" && wanted != context.strategy() && wanted != strategy)
    return differs("apb.strategy");
  if (!asked.compressor().empty() && asked.compressor() != context.compressor())
    return differs("apb.compressor");
  for (const NumberRule& rule : kApbRules) {
    const FieldDescriptor* field = FieldOfRule(asked, rule);
    const google::protobuf::Reflection& reflection = *asked.GetReflection();
    if (!reflection.HasField(asked, field)) continue;
    if (!reflection.HasField(context, field) ||
        reflection.GetInt32(asked, field) != reflection.GetInt32(context, field))
      return differs(absl::StrCat("apb.", rule.field));
  }
  if (asked.has_balanced() && (!context.has_balanced() || asked.balanced() != context.balanced()))
    return differs("apb.balanced");
  const Strategy* used = FindStrategy(limits, strategy);
  if (asked.exact() && used != nullptr && !used->exact) return differs("apb.exact");
  if (asked.has_query()) {
    return InvalidField("apb.query",
                        "the document is computed already; give it when creating the context");
  }
  asked = context;
  return absl::OkStatus();
}

absl::StatusOr<int64_t> CompletionBudget(const CanonicalRequest& request, int64_t prompt_tokens,
                                         int64_t max_model_len) {
  const std::string_view input_field = request.api == Api::kChat ? "messages" : "prompt";
  const int64_t left = max_model_len - prompt_tokens;
  if (left < 1) return ContextExceeded(input_field, prompt_tokens, 1, max_model_len);
  if (request.create_context) return 0;
  const common::v1::SamplingParams& sampling = request.sampling;
  if (sampling.has_max_tokens()) {
    if (sampling.max_tokens() > left) {
      return ContextExceeded("max_tokens", prompt_tokens, sampling.max_tokens(), max_model_len);
    }
    return sampling.max_tokens();
  }
  const int64_t budget =
      request.api == Api::kChat ? left : std::min(left, kDefaultCompletionTokens);
  if (sampling.min_tokens() > budget) {
    return InvalidField("min_tokens",
                        absl::StrCat("only ", budget, " tokens can be generated; set max_tokens"));
  }
  return budget;
}

bool IsValidRequestId(std::string_view id) {
  if (id.empty() || id.size() > kMaxRequestIdBytes) return false;
  for (char c : id) {
    if (!absl::ascii_isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') {
      return false;
    }
  }
  return true;
}

std::string NewRequestId() {
  thread_local absl::BitGen generator;
  return absl::StrFormat("%016x%016x", absl::Uniform<uint64_t>(generator),
                         absl::Uniform<uint64_t>(generator));
}

}  // namespace apb::request
