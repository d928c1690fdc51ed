#include "tests/bench/one_rank_engine.h"

#include <algorithm>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "engine/base/status_macros.h"

namespace apb::bench {

void AddOptions(CLI::App& app, OneRankOptions& options) {
  app.add_option("--model", options.model, "checkpoint directory")->required();
  app.add_flag("--float32", options.float32, "compute in float32, whatever the checkpoint's type");
  app.add_option("--quantize", options.quantize, "weights of products: none, int8, int4")
      ->check(CLI::IsMember({"none", "int8", "int4"}));
  app.add_option("--threads", options.threads, "0 = all cores");
}

absl::StatusOr<OneRankEngine> MakeOneRankEngine(const OneRankOptions& options, int64_t longest) {
  OneRankEngine e;
  const int threads = options.threads > 0
                          ? options.threads
                          : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  APB_ASSIGN_OR_RETURN(e.backend, kernels::CreateCpuBackend({.threads = threads}));
  model::LoadOptions load;
  if (options.float32) load.dtype = kernels::DType::kF32;
  load.quantize = model::BlockTypeNamed(options.quantize);
  e.mesh = std::make_unique<comm::Mesh>(std::move(comm::CreateLocalGroup(1, absl::Minutes(1))[0]));
  APB_ASSIGN_OR_RETURN(e.weights, model::Weights::Load(options.model, *e.backend, {}, load));
  const model::ModelConfig& config = e.weights->config();
  constexpr int64_t kBlock = 32;
  const cache::KvCacheShape shape{.layers = config.layers,
                                  .kv_heads = config.kv_heads,
                                  .head_dim = config.head_dim,
                                  .block_size = kBlock,
                                  .block_count = 2 * (longest / kBlock + 2),
                                  .dtype = config.dtype};
  APB_ASSIGN_OR_RETURN(e.executor,
                       executor::StepExecutor::Create(*e.weights, shape, *e.backend, *e.mesh));
  schedule::SchedulerOptions limits;
  limits.block_size = kBlock;
  limits.blocks_per_rank = shape.block_count;
  limits.layers = config.layers;
  limits.max_model_len = longest;
  limits.vocab_size = config.vocab_size;
  limits.has_retaining_heads = e.weights->has_retaining_heads();
  limits.prefix_cache = true;  // emptied before each document
  e.scheduler = std::make_unique<schedule::Scheduler>(limits);
  return e;
}

absl::StatusOr<Configuration> ParseConfiguration(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  Configuration c{.strategy = parts[0]};
  if (parts.size() > 1) c.compressor = parts[1];
  bool good = parts.size() < 3 || absl::SimpleAtoi(parts[2], &c.hosts);
  for (size_t i = 3; i < parts.size(); ++i) {
    absl::string_view option = parts[i];
    if (option == "again") {
      c.again = true;
    } else if (absl::ConsumePrefix(&option, "anchor=")) {
      good = good && absl::SimpleAtoi(option, &c.anchor);
    } else {
      good =
          good && absl::ConsumePrefix(&option, "passing=") && absl::SimpleAtoi(option, &c.passing);
    }
  }
  if (!good) {
    return absl::InvalidArgumentError(
        absl::StrCat("--configurations: '", text,
                     "' is not strategy[:compressor[:hosts[:again][:anchor=N][:passing=N]]]"));
  }
  return c;
}

void Apply(const Configuration& configuration, schedule::SequenceSpec& spec) {
  spec.strategy = configuration.strategy;
  spec.strategy_options.compressor = configuration.compressor;
  spec.strategy_options.hosts = configuration.hosts;
  spec.strategy_options.anchor_length = configuration.anchor;
  spec.strategy_options.passing_length = configuration.passing;
}

}  // namespace apb::bench
