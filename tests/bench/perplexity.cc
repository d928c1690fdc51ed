// Goal: the accuracy of quantized weights. Method: computes the perplexity of texts under a model
// for each quantization, and how often its likeliest token is that of the first quantization.
// tests/bench/quantization.sh makes the texts and the table.
//   perplexity --model DIR --texts FILE --quantize none,int8,int4
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "engine/base/status_macros.h"
#include "engine/model/weights.h"
#include "tests/engine/model/contiguous_attention.h"

namespace apb::bench {
namespace {

using nlohmann::json;
using Tokens = std::vector<int32_t>;

struct Options {
  std::string model, texts, dtype = "auto";
  std::vector<std::string> quantize = {"none", "int8", "int4"};
  int threads = 0;
};

absl::StatusOr<std::vector<Tokens>> ReadTexts(const std::string& file) {
  std::ifstream in(file);
  if (!in) return absl::NotFoundError(absl::StrCat("--texts ", file, ": cannot be read"));
  std::vector<Tokens> texts;
  for (std::string line; std::getline(in, line);) {
    const json j = json::parse(line, nullptr, false);
    if (!j.is_array() || j.size() < 2)
      return absl::InvalidArgumentError(
          absl::StrCat(file, ":", texts.size() + 1, ": not a list of two tokens or more"));
    texts.push_back(j.get<Tokens>());
  }
  return texts;
}

struct Sums {
  double nats = 0;  // sum over all predicted tokens: all but the first of each text
  int64_t tokens = 0;
  Tokens likeliest;  // the likeliest token at each prediction
};

// Adds a text to the sums. Each token is predicted from all tokens before it.
void Add(const std::vector<float>& logits, const Tokens& text, Sums& sums) {
  const size_t vocabulary = logits.size() / text.size();
  for (size_t i = 0; i + 1 < text.size(); ++i) {
    const float* row = &logits[i * vocabulary];
    const float* top = std::max_element(row, row + vocabulary);
    double total = 0;
    for (size_t v = 0; v < vocabulary; ++v) total += std::exp(double{row[v]} - *top);
    sums.nats += std::log(total) + *top - row[text[i + 1]];
    sums.likeliest.push_back(static_cast<int32_t>(top - row));
    ++sums.tokens;
  }
}

absl::Status Measure(const Options& options, const std::string& quantize,
                     const std::vector<Tokens>& texts, Sums& first) {
  APB_ASSIGN_OR_RETURN(const auto backend, kernels::CreateCpuBackend({.threads = options.threads}));
  model::LoadOptions load{.quantize = model::BlockTypeNamed(quantize), .threads = options.threads};
  if (options.dtype == "float32") load.dtype = kernels::DType::kF32;
  APB_ASSIGN_OR_RETURN(const auto weights, model::Weights::Load(options.model, *backend, {}, load));
  Sums sums;
  for (const Tokens& text : texts) {
    APB_ASSIGN_OR_RETURN(const std::vector<float> logits,
                         model::LogitsOf(*weights, *backend, text));
    Add(logits, text, sums);
  }
  if (first.tokens == 0) first = sums;
  int64_t same = 0;
  for (size_t i = 0; i < sums.likeliest.size(); ++i)
    same += sums.likeliest[i] == first.likeliest[i];
  const auto count = static_cast<double>(sums.tokens);
  const json result = {{"quantize", quantize},
                       {"tokens", sums.tokens},
                       {"perplexity", std::exp(sums.nats / count)},
                       {"same_likeliest", static_cast<double>(same) / count},
                       {"quantized_bytes", weights->load_report().quantized_bytes},
                       {"mapped_bytes", weights->load_report().mapped_bytes},
                       {"backend", std::string(backend->name())}};
  std::printf("%s\n", result.dump().c_str());
  std::fflush(stdout);
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  APB_ASSIGN_OR_RETURN(const std::vector<Tokens> texts, ReadTexts(options.texts));
  Sums first;
  for (const std::string& quantize : options.quantize)
    APB_RETURN_IF_ERROR(Measure(options, quantize, texts, first));
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Perplexity of texts, by how the weights are quantized; one JSON line for each way");
  app.add_option("--model", options.model, "checkpoint directory")->required();
  app.add_option("--texts", options.texts, "a JSON list of token ids in each line")->required();
  app.add_option("--quantize", options.quantize, "none, int8, int4; the first is compared with")
      ->check(CLI::IsMember({"none", "int8", "int4"}))
      ->delimiter(',');
  app.add_option("--dtype", options.dtype, "of activations: auto, float32")
      ->check(CLI::IsMember({"auto", "float32"}));
  app.add_option("--threads", options.threads, "0 = all cores");
  CLI11_PARSE(app, argc, argv);
  if (options.threads == 0)
    options.threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  const absl::Status status = Run(options);
  if (!status.ok()) std::fprintf(stderr, "perplexity: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) { return apb::bench::Main(argc, argv); }
