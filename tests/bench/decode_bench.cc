// Goal: the speed of decode steps by depth (tokens in the KV cache), batch size, and use of the
// weights: replicated (each rank multiplies by all weights) or sliced (each by its slice). Method:
// times steps under mpirun. The KV cache is filled with random numbers, because the tokens do not
// matter for time.
//   mpirun -n 2 decode_bench --shape 1b --depths 0,16384 --batches 1,8 --threads 1
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/comm/mpi_runtime.h"
#include "engine/executor/token_batch.h"
#include "engine/model/decoder.h"
#include "tests/bench/bench_shapes.h"
#include "tests/bench/mpi_bench.h"

namespace apb::bench {
namespace {

using kernels::DType;
using kernels::TensorView;
using nlohmann::json;

struct Options {
  std::string shape = "125m", model, json_file, quantize = "none";
  std::vector<int64_t> depths = {0, 16384}, batches = {1};
  std::vector<std::string> modes = {"replicated", "sliced"};
  int threads = 0, steps = 16, repeat = 3, tensor_parallel = 1;
};

struct Rank {
  comm::MpiRuntime& runtime;
  std::unique_ptr<comm::Mesh> mesh;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<kernels::Stream> stream;
  std::unique_ptr<model::Weights> weights;
  std::unique_ptr<model::Decoder> decoder;
  std::unique_ptr<cache::PagedKvCache> cache;
  std::unique_ptr<executor::TokenBatchAttention> attention;
  bool can_slice = false;
};

absl::Status FillCache(Rank& rank) {
  const TensorView first = rank.cache->keys(0);
  const int64_t elements = first.numel();
  std::vector<uint16_t> noise(elements);
  std::mt19937 rng(1);
  for (uint16_t& x : noise) x = static_cast<uint16_t>(0x3d00 + rng() % 0x300);  // 0.03 to 2, bf16
  for (int l = 0; l < rank.weights->config().layers; ++l) {
    for (const TensorView& target : {rank.cache->keys(l), rank.cache->values(l)}) {
      TensorView source = target;
      source.data = noise.data();
      rank.backend->Copy(source, target, *rank.stream);
    }
  }
  return rank.stream->Synchronize();
}

absl::StatusOr<Rank> MakeRank(const Options& options, comm::MpiRuntime& runtime) {
  Rank rank{.runtime = runtime};
  APB_ASSIGN_OR_RETURN(comm::Mesh mesh,
                       runtime.NewMesh(options.tensor_parallel, absl::Minutes(10)));
  rank.mesh = std::make_unique<comm::Mesh>(std::move(mesh));
  APB_ASSIGN_OR_RETURN(rank.backend, kernels::CreateCpuBackend({.threads = options.threads}));
  APB_ASSIGN_OR_RETURN(rank.stream, rank.backend->NewStream());
  model::Share share;
  if (const comm::Communicator* tensor = rank.mesh->tensor())
    share = {tensor->rank(), tensor->size()};
  if (options.model.empty()) {
    APB_ASSIGN_OR_RETURN(const model::ModelConfig config, NamedShape(options.shape));
    APB_ASSIGN_OR_RETURN(rank.weights,
                         model::Weights::Random(config, 1, 0, *rank.backend, share,
                                                model::BlockTypeNamed(options.quantize)));
  } else {
    APB_ASSIGN_OR_RETURN(
        rank.weights, model::Weights::Load(options.model, *rank.backend, share,
                                           {.quantize = model::BlockTypeNamed(options.quantize)}));
  }
  const model::ModelConfig& config = rank.weights->config();
  if (config.dtype != DType::kBF16) return absl::InvalidArgumentError("a bfloat16 model is needed");
  comm::Communicator& context = rank.mesh->cp_group();
  APB_ASSIGN_OR_RETURN(rank.decoder,
                       model::Decoder::Create(*rank.weights, *rank.backend, rank.mesh->tensor()));
  rank.can_slice = context.size() > 1 && rank.decoder->EnableSlices(context, rank.mesh->all()).ok();
  const int64_t depth = *std::max_element(options.depths.begin(), options.depths.end()),
                batch = *std::max_element(options.batches.begin(), options.batches.end());
  constexpr int64_t kBlock = 32;
  const int64_t blocks = batch * ((depth + options.steps) / context.size() / kBlock + 2);
  APB_ASSIGN_OR_RETURN(rank.cache,
                       cache::PagedKvCache::Create({.layers = config.layers,
                                                    .kv_heads = rank.weights->kv_heads(),
                                                    .head_dim = config.head_dim,
                                                    .block_size = kBlock,
                                                    .block_count = blocks,
                                                    .dtype = config.dtype},
                                                   *rank.backend));
  APB_RETURN_IF_ERROR(FillCache(rank));
  rank.attention = std::make_unique<executor::TokenBatchAttention>(
      *rank.cache, *rank.backend, context, 1.0f / std::sqrt(static_cast<float>(config.head_dim)));
  return rank;
}

// Seconds of options.steps steps of `batch` sequences, which have `depth` tokens before the first
// step.
absl::StatusOr<double> Steps(Rank& rank, const Options& options, int64_t depth, int64_t batch,
                             bool sliced) {
  const model::ModelConfig& config = rank.weights->config();
  const comm::Communicator& context = rank.mesh->cp_group();
  std::vector<cache::SequenceKv> sequences(batch);
  std::vector<int32_t> mine;
  for (int64_t p = context.rank(); p < depth; p += context.size())
    mine.push_back(static_cast<int32_t>(p));
  for (cache::SequenceKv& kv : sequences)
    APB_RETURN_IF_ERROR(rank.cache->Reserve(kv, mine).status());
  core::Workspace hidden_memory(*rank.backend), logits_memory(*rank.backend);
  APB_ASSIGN_OR_RETURN(const TensorView hidden,
                       hidden_memory.Get(config.dtype, {batch, config.hidden_size}));
  APB_ASSIGN_OR_RETURN(const TensorView logits,
                       logits_memory.Get(DType::kF32, {batch, config.vocab_size}));
  absl::Time start;
  for (int step = -1; step < options.steps; ++step) {  // step -1 warms up
    if (step == 0) {
      APB_RETURN_IF_ERROR(rank.mesh->all().Barrier());
      start = absl::Now();
    }
    std::vector<executor::BatchTokens> rows;
    std::vector<int32_t> tokens;
    for (cache::SequenceKv& kv : sequences) {
      rows.push_back({.kv = &kv, .position = depth + step + 1, .count = 1});
      tokens.push_back(static_cast<int32_t>((step + 2) * 7919 % config.vocab_size));
    }
    APB_RETURN_IF_ERROR(rank.attention->Prepare(rows, *rank.stream, {.sliced = sliced}));
    APB_RETURN_IF_ERROR(rank.decoder->Embed(tokens, hidden, *rank.stream));
    APB_RETURN_IF_ERROR(rank.decoder->RunLayers(0, config.layers, hidden,
                                                rank.attention->positions(), *rank.attention,
                                                *rank.stream, sliced));
    if (sliced || context.rank() == 0)
      APB_RETURN_IF_ERROR(rank.decoder->Logits(hidden, logits, *rank.stream, sliced));
    APB_RETURN_IF_ERROR(rank.stream->Synchronize());
  }
  APB_RETURN_IF_ERROR(rank.mesh->all().Barrier());
  const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
  for (cache::SequenceKv& kv : sequences) rank.cache->Release(kv);
  return seconds;
}

absl::StatusOr<json> RunCase(Rank& rank, const Options& options, const std::string& mode,
                             int64_t depth, int64_t batch) {
  double best = 0;
  model::PhaseSeconds phases;
  for (int i = 0; i < options.repeat; ++i) {
    const model::PhaseSeconds before = rank.decoder->phase_seconds();
    APB_ASSIGN_OR_RETURN(const double seconds,
                         Steps(rank, options, depth, batch, mode == "sliced"));
    if (i > 0 && seconds >= best) continue;
    best = seconds;
    const model::PhaseSeconds& after = rank.decoder->phase_seconds();
    phases = {.projection = after.projection - before.projection,
              .attend = after.attend - before.attend,
              .mlp = after.mlp - before.mlp,
              .communicate = after.communicate - before.communicate,
              .head = after.head - before.head};
  }
  const auto ms = [&](double seconds) { return seconds / (options.steps + 1) * 1e3; };
  return json{{"mode", mode},
              {"ranks", rank.runtime.size()},
              {"tensor_parallel", options.tensor_parallel},
              {"depth", depth},
              {"batch", batch},
              {"ms_per_step", best / options.steps * 1e3},
              {"tokens_per_second", static_cast<double>(batch * options.steps) / best},
              {"projection_ms", ms(phases.projection)},
              {"attend_ms", ms(phases.attend)},
              {"mlp_ms", ms(phases.mlp)},
              {"head_ms", ms(phases.head)},
              {"divided_products_wait_ms", ms(phases.communicate)}};
}

absl::Status Run(const Options& options, comm::MpiRuntime& runtime) {
  APB_ASSIGN_OR_RETURN(Rank rank, MakeRank(options, runtime));
  const bool leads = runtime.rank() == 0;
  if (leads) {
    std::printf("%-11s %5s %6s %8s %5s %9s %9s | %7s %7s %7s %7s %7s\n", "mode", "ranks", "tensor",
                "depth", "batch", "ms/step", "tokens/s", "proj", "attend", "mlp", "head", "wait");
  }
  json all = json::array();
  for (const int64_t depth : options.depths) {
    for (const int64_t batch : options.batches) {
      for (const std::string& mode : options.modes) {
        if (mode == "sliced" && !rank.can_slice) continue;
        APB_ASSIGN_OR_RETURN(const json row, RunCase(rank, options, mode, depth, batch));
        all.push_back(row);
        if (!leads) continue;
        std::printf("%-11s %5d %6d %8lld %5lld %9.2f %9.1f |", mode.c_str(), runtime.size(),
                    options.tensor_parallel, static_cast<long long>(depth),
                    static_cast<long long>(batch), row["ms_per_step"].get<double>(),
                    row["tokens_per_second"].get<double>());
        for (const char* part :
             {"projection_ms", "attend_ms", "mlp_ms", "head_ms", "divided_products_wait_ms"})
          std::printf(" %7.2f", row[part].get<double>());
        std::printf("\n");
        std::fflush(stdout);
      }
    }
  }
  if (leads && !options.json_file.empty()) {
    std::ofstream(options.json_file)
        << json{{"shape", options.model.empty() ? options.shape : options.model}, {"rows", all}}
               .dump(1)
        << "\n";
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) {
  using namespace apb::bench;
  Options o;
  CLI::App app("Speed of decode steps; run under mpirun");
  app.add_option("--shape", o.shape, "Random weights of this shape");
  app.add_option("--model", o.model, "A checkpoint instead: its pages are shared by all ranks");
  app.add_option("--depths", o.depths, "Tokens in the KV cache")->delimiter(',');
  app.add_option("--batches", o.batches, "Sequences of a step")->delimiter(',');
  app.add_option("--modes", o.modes, "replicated, sliced")->delimiter(',');
  app.add_option("--tensor-parallel", o.tensor_parallel, "Ranks that share the heads");
  app.add_option("--threads", o.threads, "Threads of a rank; 0: cores / ranks of this machine");
  app.add_option("--quantize", o.quantize, "Weights of products: none, int8, int4")
      ->check(CLI::IsMember({"none", "int8", "int4"}));
  app.add_option("--steps", o.steps, "Steps of a measurement");
  app.add_option("--repeat", o.repeat, "Measurements, of which the fastest counts");
  app.add_option("--json", o.json_file, "Also write the rows here");
  CLI11_PARSE(app, argc, argv);
  return RunUnderMpi(argc, argv, "decode_bench", o, Run);
}
