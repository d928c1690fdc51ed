// How far approximate strategies are from exact attention on any text: for each prompt the exact
// distributions of the tokens of question and answer are computed once, then those of each
// configuration over the same tokens. tests/quality/fidelity.py makes the prompts and the table.
//   engine_fidelity --model DIR --prompts FILE --configurations apb:query_aware:8,star::8
//     --answer-tokens 48
// The question's first token ends the prompt, its other tokens and the exact, greedy answer follow
// one by one, so that each has a distribution. One JSON line for each prompt and configuration.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/sampling/fidelity.h"
#include "tests/bench/one_rank_engine.h"

namespace apb::bench {
namespace {

using nlohmann::json;
using schedule::SequenceId;
using Tokens = std::vector<int32_t>;

struct Options {
  OneRankOptions engine;
  std::string prompts;
  std::vector<std::string> configurations;
  int answer_tokens = 48;
};

struct Prompt {
  schedule::SequenceSpec spec;  // ends with the question's first token
  Tokens question;              // its other tokens
};

absl::StatusOr<std::vector<Prompt>> ReadPrompts(const std::string& file) {
  std::ifstream in(file);
  if (!in) return absl::NotFoundError(absl::StrCat("--prompts ", file, ": cannot be read"));
  std::vector<Prompt> prompts;
  for (std::string line; std::getline(in, line);) {
    const json j = json::parse(line, nullptr, false);
    const int64_t begin = j.is_object() ? j.value("query_begin", int64_t{0}) : 0;
    const Tokens tokens = j.is_object() ? j.value("tokens", Tokens()) : Tokens();
    if (begin < 1 || begin + 2 > static_cast<int64_t>(tokens.size())) {
      return absl::InvalidArgumentError(absl::StrCat(
          file, ":", prompts.size() + 1, ": not a prompt with a document and a question"));
    }
    Prompt p;
    p.spec.tokens.assign(tokens.begin(), tokens.begin() + begin + 1);
    p.question.assign(tokens.begin() + begin + 1, tokens.end());
    p.spec.query_begin = begin;
    p.spec.query_insert_position = j.value("query_insert_position", 0);
    p.spec.embedded_query = j.value("embedded_query", Tokens());
    prompts.push_back(std::move(p));
  }
  return prompts;
}

// Keeps the logits of each token; gives the tokens in `forced`, and then the likeliest ones.
class Recorder : public executor::LogitsObserver {
 public:
  explicit Recorder(Tokens forced) : forced_(std::move(forced)) {}
  bool Wants(SequenceId) override { return true; }
  std::optional<int32_t> OnLogits(SequenceId, std::span<const float> logits) override {
    rows_.emplace_back(logits.begin(), logits.end());
    const size_t at = rows_.size() - 1;
    if (at < forced_.size()) return forced_[at];
    return std::nullopt;
  }
  const std::vector<std::vector<float>>& rows() const { return rows_; }

 private:
  const Tokens forced_;
  std::vector<std::vector<float>> rows_;
};

struct Trace {
  std::vector<std::vector<float>> logits;  // of each token that follows the prompt
  Tokens tokens;
  double seconds = 0;  // to the first
};

absl::StatusOr<Trace> Follow(OneRankEngine& e, const Prompt& prompt, const std::string& text,
                             const Tokens& forced, size_t count, uint64_t id) {
  APB_ASSIGN_OR_RETURN(const Configuration configuration, ParseConfiguration(text));
  schedule::Request request{.spec = prompt.spec};
  request.spec.id = SequenceId{id};
  Apply(configuration, request.spec);
  request.spec.sampling.temperature = 0;
  request.spec.sampling.max_tokens = static_cast<int32_t>(count);
  Recorder recorder(forced);
  e.executor->SetLogitsObserver(&recorder);
  Trace trace;
  const absl::Time start = absl::Now();
  e.scheduler->Submit(std::move(request), start);
  do {
    const schedule::StepPlan plan = e.scheduler->NextStep(absl::Now());
    APB_ASSIGN_OR_RETURN(const schedule::StepResult result, e.executor->Execute(plan));
    e.scheduler->Complete(plan, result, absl::Now());
    for (const schedule::Event& event : e.scheduler->TakeEvents()) {
      if (const auto* end = std::get_if<schedule::EndEvent>(&event))
        APB_RETURN_IF_ERROR(end->status);
      const auto* token = std::get_if<schedule::TokenEvent>(&event);
      if (token == nullptr) continue;
      if (trace.tokens.empty()) trace.seconds = absl::ToDoubleSeconds(absl::Now() - start);
      trace.tokens.push_back(token->sampled.token);
    }
  } while (!e.scheduler->idle());
  e.executor->SetLogitsObserver(nullptr);
  e.scheduler->ForgetPrefixes();
  trace.logits = recorder.rows();
  return trace;
}

// Sums over tokens [begin, end).
json Sums(const Trace& exact, const Trace& approx, size_t begin, size_t end) {
  double kl = 0, exact_nats = 0, approx_nats = 0;
  int64_t same = 0;
  for (size_t i = begin; i < end; ++i) {
    const sampling::Fidelity f =
        sampling::CompareDistributions(exact.logits[i], approx.logits[i], exact.tokens[i]);
    kl += f.kl;
    same += f.same_top;
    exact_nats += f.exact_nats;
    approx_nats += f.approx_nats;
  }
  return {{"tokens", end - begin},
          {"kl", kl},
          {"same_top", same},
          {"exact_nats", exact_nats},
          {"nats", approx_nats}};
}

absl::Status Run(const Options& options) {
  APB_ASSIGN_OR_RETURN(const std::vector<Prompt> prompts, ReadPrompts(options.prompts));
  size_t longest = 64;
  for (const Prompt& p : prompts)
    longest =
        std::max(longest, p.spec.tokens.size() + p.question.size() + options.answer_tokens + 1);
  APB_ASSIGN_OR_RETURN(OneRankEngine engine,
                       MakeOneRankEngine(options.engine, static_cast<int64_t>(longest)));
  uint64_t id = 1;
  for (const Prompt& prompt : prompts) {
    const size_t asked = prompt.question.size(), count = asked + options.answer_tokens;
    APB_ASSIGN_OR_RETURN(const Trace exact,
                         Follow(engine, prompt, "full", prompt.question, count, id++));
    for (const std::string& text : options.configurations) {
      APB_ASSIGN_OR_RETURN(const Trace approx,
                           Follow(engine, prompt, text, exact.tokens, count, id++));
      const json line = {{"prompt", &prompt - prompts.data()},
                         {"configuration", text},
                         {"document_tokens", prompt.spec.query_begin},
                         {"question", Sums(exact, approx, 0, asked)},
                         {"answer", Sums(exact, approx, asked, count)},
                         {"exact_seconds", exact.seconds},
                         {"seconds", approx.seconds}};
      std::printf("%s\n", line.dump().c_str());
      std::fflush(stdout);
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("KL divergence and agreement of approximate strategies with exact attention");
  AddOptions(app, options.engine);
  app.add_option("--prompts", options.prompts,
                 "JSON lines: tokens, query_begin, query_insert_position, embedded_query")
      ->required();
  app.add_option("--configurations", options.configurations,
                 "strategy[:compressor[:hosts[:anchor=N][:passing=N]]],...")
      ->delimiter(',')
      ->required();
  app.add_option("--answer-tokens", options.answer_tokens, "tokens of the exact answer");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "engine_fidelity: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) { return apb::bench::Main(argc, argv); }
