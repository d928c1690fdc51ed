// Checks of a canonical request.
#include "server/request/admission.h"

#include <cmath>
#include <span>

#include "absl/random/random.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"
#include "server/request/status_map.h"

namespace apb::request {
namespace {

absl::Status CheckRange(std::string_view field, const std::optional<double>& value, double low,
                        double high) {
  if (!value.has_value() || (*value >= low && *value <= high)) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("must be in [", low, ", ", high, "], got ", *value));
}

absl::Status CheckRange(std::string_view field, const std::optional<int64_t>& value, int64_t low,
                        int64_t high) {
  if (!value.has_value() || (*value >= low && *value <= high)) return absl::OkStatus();
  return InvalidField(field, absl::StrCat("must be in [", low, ", ", high, "], got ", *value));
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

absl::Status CheckSampling(const Sampling& s, const Limits& limits) {
  constexpr int64_t kMaxInt = 1 << 30;
  APB_RETURN_IF_ERROR(CheckRange("max_tokens", s.max_tokens, 1, kMaxInt));
  APB_RETURN_IF_ERROR(CheckRange("temperature", s.temperature, 0, 2));
  APB_RETURN_IF_ERROR(CheckRange("top_p", s.top_p, 0, 1));
  if (s.top_p.has_value() && *s.top_p <= 0) {
    return InvalidField("top_p", "must be in (0, 1], got 0");
  }
  APB_RETURN_IF_ERROR(CheckRange("top_k", s.top_k, -1, kMaxInt));
  APB_RETURN_IF_ERROR(CheckRange("min_p", s.min_p, 0, 1));
  APB_RETURN_IF_ERROR(CheckRange("presence_penalty", s.presence_penalty, -2, 2));
  APB_RETURN_IF_ERROR(CheckRange("frequency_penalty", s.frequency_penalty, -2, 2));
  APB_RETURN_IF_ERROR(CheckRange("repetition_penalty", s.repetition_penalty, 0.01, 100));
  APB_RETURN_IF_ERROR(CheckRange("logprobs", s.logprobs, 0, kMaxLogprobs));
  APB_RETURN_IF_ERROR(CheckRange("min_tokens", s.min_tokens, 0, kMaxInt));
  if (s.min_tokens && s.max_tokens && *s.min_tokens > *s.max_tokens) {
    return InvalidField("min_tokens", absl::StrCat("must not exceed max_tokens, ", *s.min_tokens,
                                                   " > ", *s.max_tokens));
  }
  if (s.stop.size() > kMaxStopStrings) {
    return InvalidField("stop",
                        absl::StrCat("at most ", kMaxStopStrings, " strings, got ", s.stop.size()));
  }
  for (const std::string& stop : s.stop) {
    if (stop.empty()) return InvalidField("stop", "a stop string must not be empty");
    if (stop.size() > kMaxStopStringBytes) {
      return InvalidField("stop", absl::StrCat("a stop string has at most ", kMaxStopStringBytes,
                                               " bytes, got ", stop.size()));
    }
  }
  if (s.stop_token_ids.size() > kMaxStopTokens) {
    return InvalidField("stop_token_ids", absl::StrCat("at most ", kMaxStopTokens, " ids"));
  }
  for (int64_t id : s.stop_token_ids) {
    if (id < 0 || id >= limits.vocab_size) {
      return InvalidField("stop_token_ids",
                          absl::StrCat(id, " is outside the vocabulary of ", limits.vocab_size));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckApb(const ApbOptions& apb) {
  APB_RETURN_IF_ERROR(
      CheckOneOf("apb.strategy", apb.strategy, std::span(kStrategyNames).subspan(1)));
  APB_RETURN_IF_ERROR(
      CheckOneOf("apb.compressor", apb.compressor, std::span(kCompressorNames).subspan(1)));
  if (apb.exact && (apb.strategy == "apb" || apb.strategy == "star")) {
    return InvalidField("apb.exact", absl::StrCat("strategy ", apb.strategy,
                                                  " is approximate; use an exact one or auto"));
  }
  if (apb.balanced.value_or(false) && !apb.strategy.empty() && apb.strategy != "auto" &&
      apb.strategy != "apb") {
    return InvalidField("apb.balanced",
                        absl::StrCat("strategy ", apb.strategy, " has no blocks to balance"));
  }
  APB_RETURN_IF_ERROR(CheckRange("apb.anchor_length", apb.anchor_length, 0, 1 << 24));
  APB_RETURN_IF_ERROR(CheckRange("apb.passing_length", apb.passing_length, 0, 1 << 24));
  APB_RETURN_IF_ERROR(CheckRange("apb.hosts", apb.hosts, 1, 4096));
  if (apb.query.has_value() && apb.query->empty()) {
    return InvalidField("apb.query", "must not be empty");
  }
  return absl::OkStatus();
}

// A text of n bytes has at least n / (bytes of the longest token) tokens: turned away before any
// work.
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
  APB_RETURN_IF_ERROR(CheckApb(request.apb));
  APB_RETURN_IF_ERROR(
      CheckRange("ttl_seconds", request.ttl_seconds, 1, limits.max_context_ttl_seconds));
  return std::visit(InputCheck{limits}, request.input);
}

absl::Status CheckContextOptions(const ApbOptions& asked, const ApbOptions& context,
                                 const std::string& strategy) {
  const auto differs = [](std::string_view field) {
    return InvalidField(field, "contradicts the context, whose options apply; leave it out");
  };
  const bool same = asked.strategy == context.strategy || asked.strategy == strategy;
  if (!asked.strategy.empty() && asked.strategy != "auto" && !same) return differs("apb.strategy");
  if (!asked.compressor.empty() && asked.compressor != context.compressor)
    return differs("apb.compressor");
  if (asked.anchor_length && asked.anchor_length != context.anchor_length)
    return differs("apb.anchor_length");
  if (asked.passing_length && asked.passing_length != context.passing_length)
    return differs("apb.passing_length");
  if (asked.hosts && asked.hosts != context.hosts) return differs("apb.hosts");
  if (asked.balanced && asked.balanced != context.balanced) return differs("apb.balanced");
  if (asked.exact && (strategy == "apb" || strategy == "star")) return differs("apb.exact");
  if (asked.query) {
    return InvalidField("apb.query",
                        "the document is computed already; give it when creating the context");
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> CompletionBudget(const CanonicalRequest& request, int64_t prompt_tokens,
                                         int64_t max_model_len) {
  const std::string_view input_field = request.api == Api::kChat ? "messages" : "prompt";
  const int64_t left = max_model_len - prompt_tokens;
  if (left < 1) return ContextExceeded(input_field, prompt_tokens, 1, max_model_len);
  if (request.create_context) return 0;
  if (request.sampling.max_tokens.has_value()) {
    if (*request.sampling.max_tokens > left) {
      return ContextExceeded("max_tokens", prompt_tokens, *request.sampling.max_tokens,
                             max_model_len);
    }
    return *request.sampling.max_tokens;
  }
  const int64_t budget =
      request.api == Api::kChat ? left : std::min(left, kDefaultCompletionTokens);
  if (request.sampling.min_tokens.value_or(0) > budget) {
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
