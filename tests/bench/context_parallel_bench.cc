// Goal: the compute and the traffic of each rank of a document prefill. Method: ranks are threads
// that compute one at a time, with one core each. Prints each rank's compute alone, the imbalance
// (slowest / mean), the bytes sent, and the time of the prefill with one rank on each device. The
// last number is a model (one_device_communicator.h), not a measurement; next to it stands the
// prediction of the engine's cost model (engine/context_parallel/cost.h) for the same links.
//   context_parallel_bench --ranks 8 --virtual-hosts 1 --layers 2 --lengths 32768
//   --strategies ring_kv,apb,apb+balanced
// tests/bench/context_parallel.sh makes whole tables.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_split.h"
#include "engine/base/status_macros.h"
#include "engine/comm/local_communicator.h"
#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/strategies.h"
#include "engine/executor/document_prefill.h"
#include "engine/model/decoder.h"
#include "engine/worker/calibration.h"
#include "tests/bench/bench_shapes.h"
#include "tests/bench/one_device_communicator.h"

namespace apb::bench {
namespace {

using nlohmann::json;

struct Options {
  std::string shape = "125m", compressor = "retaining_heads", json_file;
  std::vector<int64_t> lengths = {32768};
  std::vector<std::string> strategies = {"apb"};
  int ranks = 8, virtual_hosts = 1, layers = 0, repeat = 1;
  int64_t query_length = 64, retaining_width = 512, anchor_length = -1, passing_length = -1;
  double latency_us = 20, gigabytes_per_second = 5;
  bool append = false;
};

// A strategy with its options, such as "apb+balanced+overlap", and a prompt length.
struct Case {
  std::string name, strategy;
  bool balanced = false, overlap = false;
  int64_t length = 0;
};

absl::StatusOr<Case> ParseCase(const std::string& name, int64_t length) {
  const std::vector<std::string> words = absl::StrSplit(name, '+');
  Case c{.name = name, .strategy = words[0], .length = length};
  for (size_t i = 1; i < words.size(); ++i) {
    if (words[i] != "balanced" && words[i] != "overlap")
      return absl::InvalidArgumentError(name + ": only +balanced and +overlap may follow");
    (words[i] == "balanced" ? c.balanced : c.overlap) = true;
  }
  return c;
}

// The values that all ranks share.
struct Setup {
  const Options& options;
  const model::Weights& weights;
  context_parallel::ModelShape shape;
  context_parallel::MachineSpeed speed;
};

absl::StatusOr<context_parallel::ShardPlan> PlanOf(const Setup& setup, const Case& c) {
  const Options& o = setup.options;
  const context_parallel::StrategyInfo* strategy = context_parallel::FindStrategy(c.strategy);
  if (strategy == nullptr) return context_parallel::UnknownStrategy(c.strategy);
  const bool one_each = strategy->hosts == context_parallel::HostsRule::kOneOnEachRank;
  const int64_t query = std::min(o.query_length, c.length - 1);
  return context_parallel::MakeShardPlan(
      *strategy,
      {.document_length = c.length - query, .query_length = query, .embedded_query_length = query},
      {.hosts = o.ranks * (one_each ? 1 : o.virtual_hosts),
       .anchor_length = o.anchor_length,
       .passing_length = o.passing_length,
       .row_cost_pairs =
           c.balanced ? context_parallel::RowCostInPairs(setup.shape, setup.speed) : 0});
}

struct RankResult {
  double compute_seconds = 0, clock_seconds = 0;
  int64_t rows = 0, bytes_sent = 0;
};

int64_t BytesSent(const comm::Communicator& communicator) {
  int64_t bytes = 0;
  for (const auto& operation : communicator.stats().operations) bytes += operation.bytes_sent;
  return bytes;
}

// One rank's prefill, in its own thread.
absl::StatusOr<RankResult> RunRank(const Setup& setup, const Case& c,
                                   const context_parallel::ShardPlan& plan,
                                   OneDeviceCommunicator& communicator) {
  const model::ModelConfig& config = setup.weights.config();
  APB_ASSIGN_OR_RETURN(auto backend, kernels::CreateCpuBackend({.threads = 1, .force_isa = ""}));
  APB_ASSIGN_OR_RETURN(auto stream, backend->NewStream());
  APB_ASSIGN_OR_RETURN(auto decoder, model::Decoder::Create(setup.weights, *backend));
  constexpr int64_t kBlock = 32;
  const int64_t kept =
      context_parallel::DocumentTokensOfRank(plan, communicator.size(), communicator.rank());
  APB_ASSIGN_OR_RETURN(auto cache, cache::PagedKvCache::Create({.layers = config.layers,
                                                                .kv_heads = setup.shape.kv_heads,
                                                                .head_dim = config.head_dim,
                                                                .block_size = kBlock,
                                                                .block_count = kept / kBlock + 1,
                                                                .dtype = config.dtype},
                                                               *backend));
  std::vector<int32_t> tokens(c.length);
  for (int64_t i = 0; i < c.length; ++i)
    tokens[i] = static_cast<int32_t>((i * 7919 + 13) % config.vocab_size);
  const std::span<const int32_t> all(tokens);
  const size_t document = static_cast<size_t>(plan.document_length());
  const executor::PrefillDeps context{.decoder = *decoder,
                                      .weights = setup.weights,
                                      .cache = *cache,
                                      .backend = *backend,
                                      .communicator = communicator,
                                      .overlap_passing = c.overlap};
  RankResult result;
  // The first of several runs pays for page faults; the fastest counts.
  for (int i = 0; i <= setup.options.repeat; ++i) {
    cache::SequenceKv kv;
    APB_RETURN_IF_ERROR(communicator.Barrier());
    communicator.Reset();
    const int64_t sent = BytesSent(communicator);
    APB_ASSIGN_OR_RETURN(auto prefill,
                         executor::DocumentPrefill::Start(
                             context,
                             {{.plan = plan,
                               .tokens = all.first(document),
                               .embedded_query = all.subspan(document),
                               .compressor = c.strategy == "apb" ? setup.options.compressor : "",
                               .kv = &kv}},
                             *stream));
    APB_RETURN_IF_ERROR(prefill->RunLayers(0, config.layers, *stream));
    communicator.Settle();
    if (i == 0 || communicator.compute_seconds() < result.compute_seconds) {
      result = {communicator.compute_seconds(), communicator.clock(), prefill->rows(),
                BytesSent(communicator) - sent};
    }
    cache->Release(kv);
  }
  return result;
}

absl::StatusOr<std::vector<RankResult>> RunRanks(const Setup& setup, const Case& c,
                                                 const context_parallel::ShardPlan& plan) {
  const Options& o = setup.options;
  auto group = comm::CreateLocalGroup(o.ranks, absl::Hours(2));
  Rehearsal rehearsal(o.ranks, {.latency_seconds = o.latency_us * 1e-6,
                                .bytes_per_second = o.gigabytes_per_second * 1e9});
  std::vector<absl::StatusOr<RankResult>> results(o.ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < o.ranks; ++r) {
    threads.emplace_back([&, r] {
      OneDeviceCommunicator communicator(*group[r], rehearsal);
      results[r] = RunRank(setup, c, plan, communicator);
      if (!results[r].ok()) group[r]->Abort(std::string(results[r].status().message()));
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::vector<RankResult> all;
  for (const auto& result : results) {
    if (!result.ok()) return result.status();
    all.push_back(*result);
  }
  return all;
}

absl::StatusOr<json> RunCase(const Setup& setup, const Case& c) {
  APB_ASSIGN_OR_RETURN(const context_parallel::ShardPlan plan, PlanOf(setup, c));
  APB_ASSIGN_OR_RETURN(const std::vector<RankResult> ranks, RunRanks(setup, c, plan));
  context_parallel::ModelShape shape = setup.shape;
  if (setup.options.compressor != "retaining_heads") shape.retaining_width = 0;
  const context_parallel::PrefillCost predicted =
      context_parallel::PredictPrefill(plan, setup.options.ranks, 0, shape, setup.speed);
  double slowest = 0, sum = 0, end = 0;
  int64_t bytes = 0;
  json by_rank = json::array();
  for (size_t r = 0; r < ranks.size(); ++r) {
    slowest = std::max(slowest, ranks[r].compute_seconds);
    sum += ranks[r].compute_seconds;
    end = std::max(end, ranks[r].clock_seconds);
    bytes += ranks[r].bytes_sent;
    by_rank.push_back({{"compute_seconds", ranks[r].compute_seconds},
                       {"rows", ranks[r].rows},
                       {"bytes_sent", ranks[r].bytes_sent},
                       {"cost_model_compute_seconds", predicted.compute_seconds[r]}});
  }
  const double mean = sum / static_cast<double>(ranks.size());
  return json{{"strategy", c.name},
              {"length", c.length},
              {"ranks", ranks.size()},
              {"hosts", plan.hosts.size()},
              {"compute_seconds_slowest", slowest},
              {"compute_seconds_mean", mean},
              {"imbalance", slowest / mean},
              {"bytes_sent", bytes},
              {"modelled_seconds_one_rank_per_device", end},
              {"cost_model_seconds", predicted.seconds},
              {"by_rank", by_rank}};
}

void PrintRow(const json& r) {
  std::printf("%-22s %8lld %5d %5d | %9.3f %9.3f %7.3f | %10.2f | %9.3f %9.3f |",
              r["strategy"].get<std::string>().c_str(), r["length"].get<long long>(),
              r["ranks"].get<int>(), r["hosts"].get<int>(),
              r["compute_seconds_slowest"].get<double>(), r["compute_seconds_mean"].get<double>(),
              r["imbalance"].get<double>(), r["bytes_sent"].get<double>() * 1e-6,
              r["modelled_seconds_one_rank_per_device"].get<double>(),
              r["cost_model_seconds"].get<double>());
  for (const json& rank : r["by_rank"]) std::printf(" %.3f", rank["compute_seconds"].get<double>());
  std::printf("\n");
  std::fflush(stdout);
}

void PrintHeader(const Setup& setup) {
  const Options& o = setup.options;
  std::printf(
      "%s, %d layers (the last one stores K and V only); one core a rank: products %.0f, attention "
      "%.0f GFLOP/s; a row costs %lld pairs\nmodelled: one rank per device, messages take %g us "
      "and "
      "%g GB/s (a model, not measured)\n",
      o.shape.c_str(), setup.shape.layers, setup.speed.product_flops * 1e-9,
      setup.speed.attention_flops * 1e-9,
      static_cast<long long>(context_parallel::RowCostInPairs(setup.shape, setup.speed)),
      o.latency_us, o.gigabytes_per_second);
  std::printf("%-22s %8s %5s %5s | %9s %9s %7s | %10s | %9s %9s | %s\n", "strategy", "tokens",
              "ranks", "hosts", "slowest s", "mean s", "slow/mn", "MB sent", "modelled", "cost mdl",
              "compute seconds alone, by rank");
}

absl::Status WriteJson(const Setup& setup, json results) {
  const Options& o = setup.options;
  if (o.json_file.empty()) return absl::OkStatus();
  json document;
  if (o.append) {
    std::ifstream before(o.json_file);
    if (before) document = json::parse(before, nullptr, false);
  }
  if (!document.is_object()) {
    document = {{"shape", o.shape},
                {"layers", setup.shape.layers},
                {"compressor", o.compressor},
                {"retaining_width", o.retaining_width},
                {"product_flops", setup.speed.product_flops},
                {"attention_flops", setup.speed.attention_flops},
                {"link_latency_seconds", setup.speed.link_latency_seconds},
                {"link_bytes_per_second", setup.speed.link_bytes_per_second},
                {"results", json::array()}};
  }
  for (json& result : results) document["results"].push_back(std::move(result));
  std::ofstream(o.json_file) << document.dump(1) << "\n";
  return absl::OkStatus();
}

absl::Status Run(const Options& options) {
  APB_ASSIGN_OR_RETURN(model::ModelConfig config, NamedShape(options.shape));
  if (options.layers > 0) config.layers = options.layers;
  APB_ASSIGN_OR_RETURN(auto backend, kernels::CreateCpuBackend({.threads = 1, .force_isa = ""}));
  APB_ASSIGN_OR_RETURN(auto weights,
                       model::Weights::Random(config, 1, options.retaining_width, *backend));
  auto alone = comm::CreateLocalGroup(1, absl::Minutes(1));
  APB_ASSIGN_OR_RETURN(context_parallel::MachineSpeed speed,
                       worker::Calibrate(*weights, *backend, *alone[0]));
  speed.link_latency_seconds = options.latency_us * 1e-6;
  speed.link_bytes_per_second = options.gigabytes_per_second * 1e9;
  const Setup setup{options, *weights, worker::ShapeOf(*weights), speed};
  PrintHeader(setup);
  json results = json::array();
  for (const std::string& strategy : options.strategies) {
    const context_parallel::StrategyInfo* info = context_parallel::FindStrategy(strategy);
    if (info != nullptr) {  // null for names with "+", which ParseCase splits
      const absl::Status supported = info->supports(setup.shape, options.ranks);
      if (!supported.ok()) {
        std::printf("%s\n", std::string(supported.message()).c_str());
        continue;
      }
    }
    for (const int64_t length : options.lengths) {
      APB_ASSIGN_OR_RETURN(const Case c, ParseCase(strategy, length));
      APB_ASSIGN_OR_RETURN(json result, RunCase(setup, c));
      PrintRow(result);
      results.push_back(std::move(result));
    }
  }
  return WriteJson(setup, std::move(results));
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Compute of each rank alone, bytes and imbalance of document prefills");
  app.add_option("--shape", options.shape, "tiny, 125m, 1b (random weights)");
  app.add_option("--layers", options.layers, "instead of the shape's; the last has K and V only")
      ->check(CLI::Range(0, 1000));
  app.add_option("--lengths", options.lengths, "prompt tokens, query included")->delimiter(',');
  app.add_option("--strategies", options.strategies,
                 "full, star, ring_kv, ring_q, token_ring, ulysses, apb, with +balanced, +overlap")
      ->delimiter(',');
  app.add_option("--ranks", options.ranks, "threads, one at a time")->check(CLI::Range(1, 64));
  app.add_option("--virtual-hosts", options.virtual_hosts, "hosts a rank plays (apb, star)");
  app.add_option("--query-length", options.query_length, "tokens of the prompt's end");
  app.add_option("--anchor-length", options.anchor_length, "-1 = default for the length");
  app.add_option("--passing-length", options.passing_length, "-1 = default for the length");
  app.add_option("--compressor", options.compressor, "retaining_heads, query_aware, random");
  app.add_option("--retaining-width", options.retaining_width, "of random retaining heads");
  app.add_option("--repeat", options.repeat,
                 "runs behind the first; of each rank the fastest counts")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--latency-us", options.latency_us, "of a message, in the model");
  app.add_option("--gigabytes-per-second", options.gigabytes_per_second, "of a link, in the model");
  app.add_option("--json", options.json_file, "writes the results there too");
  app.add_flag("--append", options.append, "adds to the results in the --json file");
  CLI11_PARSE(app, argc, argv);
  if (const absl::Status status = Run(options); !status.ok()) {
    std::fprintf(stderr, "context_parallel_bench: %s\n", status.ToString().c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) { return apb::bench::Main(argc, argv); }
