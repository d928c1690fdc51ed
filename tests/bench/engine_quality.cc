// Goal: the accuracy of the strategies on prompts with known answers. Method: reads prompts as JSON
// lines, generates greedily with every configuration (scheduler and step executor in this process,
// one rank that plays all hosts), and counts exact answers. tests/bench/quality.sh makes the
// prompts and the table. With `again`, another question about the document comes first, and the
// question that counts starts from the first one's KV. With --answers, answers are generated to
// their end and written to a file, one JSON line each, for tasks with other scores
// (tests/quality/table.py).
//   engine_quality --model DIR --prompts FILE
//     --configurations full,apb:retaining_heads:8,star::4,apb:retaining_heads:8:again
//     --configurations apb:random:8:passing=64,apb:retaining_heads:8:anchor=0
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "tests/bench/one_rank_engine.h"

namespace apb::bench {
namespace {

using nlohmann::json;
using schedule::SequenceId;

struct Options {
  OneRankOptions engine;
  std::string prompts, json_file, answers_file;
  std::vector<std::string> configurations;
};

struct Prompt {
  schedule::SequenceSpec spec, before;  // `before`: the same document with another question
  std::vector<int32_t> expected;
  int64_t length = 0;  // nominal tokens; the prompt's group in the table
};

struct Tally {
  int64_t documents = 0, correct = 0;
  double seconds = 0;  // sum of the times to the first token
};

absl::StatusOr<std::vector<Prompt>> ReadPrompts(const std::string& file) {
  std::ifstream in(file);
  if (!in) return absl::NotFoundError(absl::StrCat("--prompts ", file, ": cannot be read"));
  std::vector<Prompt> prompts;
  std::string line;
  while (std::getline(in, line)) {
    const json j = json::parse(line, nullptr, false);
    if (!j.is_object() || !j.contains("tokens") || !j.contains("expected")) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ":", prompts.size() + 1, ": not a prompt"));
    }
    Prompt p;
    p.spec.tokens = j["tokens"].get<std::vector<int32_t>>();
    p.spec.query_begin = j.value("query_begin", int64_t{0});
    p.spec.query_insert_position = j.value("query_insert_position", 0);
    p.spec.embedded_query = j.value("embedded_query", std::vector<int32_t>());
    p.expected = j["expected"].get<std::vector<int32_t>>();
    p.before = p.spec;
    p.before.tokens.resize(p.spec.query_begin);
    const auto query = j.value("query_before", std::vector<int32_t>{1});
    p.before.tokens.insert(p.before.tokens.end(), query.begin(), query.end());
    p.before.embedded_query = j.value("embedded_query_before", std::vector<int32_t>());
    p.length = j.value("length", static_cast<int64_t>(p.spec.tokens.size()));
    prompts.push_back(std::move(p));
  }
  return prompts;
}

// The greedy answer to one prompt. Unless `whole`, generation ends at the first wrong token.
// `seconds` gets the time to the first token.
absl::StatusOr<std::vector<int32_t>> Answer(OneRankEngine& e, const schedule::SequenceSpec& spec,
                                            const std::vector<int32_t>& expected,
                                            const Configuration& configuration, uint64_t id,
                                            bool whole, double* seconds) {
  schedule::Request request;
  request.spec = spec;
  request.spec.id = SequenceId{id};
  Apply(configuration, request.spec);
  request.spec.sampling.temperature = 0;
  request.spec.sampling.max_tokens = static_cast<int32_t>(expected.size());
  const absl::Time start = absl::Now();
  e.scheduler->Submit(std::move(request), start);
  std::vector<int32_t> answer;
  do {
    const schedule::StepPlan plan = e.scheduler->NextStep(absl::Now());
    APB_ASSIGN_OR_RETURN(const schedule::StepResult result, e.executor->Execute(plan));
    e.scheduler->Complete(plan, result, absl::Now());
    for (const schedule::Event& event : e.scheduler->TakeEvents()) {
      if (const auto* end = std::get_if<schedule::EndEvent>(&event))
        APB_RETURN_IF_ERROR(end->status);
      const auto* token = std::get_if<schedule::TokenEvent>(&event);
      if (token == nullptr) continue;
      if (answer.empty()) *seconds = absl::ToDoubleSeconds(absl::Now() - start);
      answer.push_back(token->sampled.token);
      if (!whole && answer.back() != expected[answer.size() - 1])  // the answer is wrong
        e.scheduler->Cancel(SequenceId{id}, absl::Now());
    }
  } while (!e.scheduler->idle());
  return answer;
}

absl::Status Run(const Options& options) {
  APB_ASSIGN_OR_RETURN(const std::vector<Prompt> prompts, ReadPrompts(options.prompts));
  int64_t longest = 64;
  for (const Prompt& p : prompts)
    longest = std::max<int64_t>(longest, p.spec.tokens.size() + p.expected.size() + 1);
  APB_ASSIGN_OR_RETURN(OneRankEngine engine, MakeOneRankEngine(options.engine, longest));
  json results = json::array();
  std::ofstream answers;
  if (!options.answers_file.empty()) answers.open(options.answers_file);
  uint64_t id = 1;
  for (const std::string& text : options.configurations) {
    APB_ASSIGN_OR_RETURN(const Configuration configuration, ParseConfiguration(text));
    std::map<int64_t, Tally> tallies;
    for (const Prompt& prompt : prompts) {
      double seconds = 0;
      engine.scheduler->ForgetPrefixes();
      if (configuration.again) {
        APB_RETURN_IF_ERROR(
            Answer(engine, prompt.before, {-1}, configuration, id++, false, &seconds).status());
      }
      APB_ASSIGN_OR_RETURN(const std::vector<int32_t> answer,
                           Answer(engine, prompt.spec, prompt.expected, configuration, id++,
                                  answers.is_open(), &seconds));
      if (answers.is_open()) {
        answers << json{{"configuration", text},
                        {"prompt", &prompt - prompts.data()},
                        {"seconds", seconds},
                        {"answer", answer}}
                       .dump()
                << std::endl;
      }
      Tally& tally = tallies[prompt.length];
      ++tally.documents;
      tally.correct += answer == prompt.expected;
      tally.seconds += seconds;
    }
    for (const auto& [length, tally] : tallies) {
      results.push_back(
          {{"strategy", configuration.strategy},
           {"compressor", configuration.compressor},
           {"hosts", configuration.hosts},
           {"again", configuration.again},
           {"length", length},
           {"documents", tally.documents},
           {"correct", tally.correct},
           {"accuracy", static_cast<double>(tally.correct) / static_cast<double>(tally.documents)},
           {"mean_ttft_seconds", tally.seconds / static_cast<double>(tally.documents)}});
      std::fprintf(stderr, "%s\n", results.back().dump().c_str());
    }
  }
  if (options.json_file.empty()) {
    std::printf("%s\n", results.dump(1).c_str());
  } else {
    std::ofstream(options.json_file) << results.dump(1) << "\n";
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Accuracy of strategies on prompts with known answers");
  AddOptions(app, options.engine);
  app.add_option(
         "--prompts", options.prompts,
         "JSON lines: tokens, query_begin, query_insert_position, embedded_query, expected, "
         "length")
      ->required();
  app.add_option("--configurations", options.configurations,
                 "strategy[:compressor[:hosts[:again][:anchor=N][:passing=N]]],...")
      ->delimiter(',')
      ->required();
  app.add_option("--answers", options.answers_file, "JSON lines of whole answers go there");
  app.add_option("--json", options.json_file, "writes the results there instead of stdout");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "engine_quality: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) { return apb::bench::Main(argc, argv); }
