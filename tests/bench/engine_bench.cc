// Goal: the speed of the bare engine, without scheduler and server (tests/bench/serve.sh measures
// those). Method: runs prompts under mpirun, for lists of lengths and strategies, and prints
// prefill and decode tokens per second, TTFT, and every rank's seconds per phase and bytes per
// collective.
//   mpirun -n 2 engine_bench --shape 125m --lengths 8192,32768 --strategies apb --virtual-hosts 4
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/comm/mpi_runtime.h"
#include "engine/context_parallel/cost.h"
#include "engine/context_parallel/strategies.h"
#include "engine/executor/document_prefill.h"
#include "engine/executor/token_batch.h"
#include "engine/model/decoder.h"
#include "engine/worker/calibration.h"
#include "tests/bench/bench_shapes.h"
#include "tests/bench/mpi_bench.h"

namespace apb::bench {
namespace {

using kernels::DType;
using kernels::TensorView;
using nlohmann::json;

struct Options {
  std::string shape = "125m", model, compressor, json_file, dtype = "bf16", isa, quantize = "none";
  std::vector<int64_t> lengths = {2048, 8192, 32768};
  std::vector<std::string> strategies = {"apb"};
  int virtual_hosts = 4, threads = 0, decode_tokens = 32, repeat = 1;
  int64_t query_length = 64, retaining_width = 512, anchor_length = -1, passing_length = -1;
  bool append = false, balanced = false, overlap = false;
};

// Everything a rank computes with.
struct Rank {
  comm::MpiRuntime& runtime;
  std::unique_ptr<comm::Communicator> communicator;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<kernels::Stream> stream;
  std::unique_ptr<model::Weights> weights;
  std::unique_ptr<model::Decoder> decoder;
  std::unique_ptr<cache::PagedKvCache> cache;
  int64_t row_cost_pairs = 0;  // StrategyOptions::row_cost_pairs; 0: shards of equal length
};

struct Snapshot {
  absl::Time time;
  model::PhaseSeconds phases;
  double communicate = 0;
  std::map<std::string, int64_t> bytes;
};

Snapshot Take(const Rank& rank) {
  Snapshot s{absl::Now(), rank.decoder->phase_seconds()};
  for (const auto& operation : rank.communicator->stats().operations) {
    if (operation.name == "barrier") continue;
    s.communicate += operation.seconds;
    s.bytes[operation.name] = operation.bytes_sent;
  }
  return s;
}

json Difference(const Snapshot& a, const Snapshot& b) {
  const double communicate = b.communicate - a.communicate;
  json bytes = json::object();
  for (const auto& [name, count] : b.bytes) {
    const auto before = a.bytes.find(name);
    bytes[name] = count - (before == a.bytes.end() ? 0 : before->second);
  }
  return {{"seconds", absl::ToDoubleSeconds(b.time - a.time)},
          {"projection", b.phases.projection - a.phases.projection},
          {"compress", b.phases.compress - a.phases.compress},
          {"communicate", communicate},
          {"attend", b.phases.attend - a.phases.attend - communicate},
          {"mlp", b.phases.mlp - a.phases.mlp},
          {"head", b.phases.head - a.phases.head},
          {"bytes", bytes}};
}

int HostsOf(std::string_view strategy, const Options& options, int ranks) {
  const context_parallel::StrategyInfo* info = context_parallel::FindStrategy(strategy);
  if (info == nullptr) return 1;  // MakeShardPlan refuses it
  switch (info->hosts) {
    case context_parallel::HostsRule::kOne:
      return 1;
    case context_parallel::HostsRule::kOneOnEachRank:
      return ranks;
    case context_parallel::HostsRule::kSameOnEachRank:
      break;
  }
  return ranks * options.virtual_hosts;
}

// Visible query-key pairs of one layer, of all hosts and of each rank's anchor.
double AttendedPairs(const context_parallel::ShardPlan& plan, int ranks) {
  if (plan.strategy->exact) {
    const double document = static_cast<double>(plan.document_length());
    return document * document / 2;
  }
  const double anchor = static_cast<double>(plan.anchor.size());
  double pairs = 0, passed = 0;
  std::vector<bool> has_anchor(ranks);
  for (int rank = 0; rank < ranks; ++rank) {
    const auto range =
        context_parallel::HostsOfRank(static_cast<int>(plan.hosts.size()), ranks, rank);
    for (int h = range.first; h < range.last; ++h) {
      const context_parallel::HostShard& host = plan.hosts[h];
      const double local = static_cast<double>(host.local_length());
      pairs += local * (local / 2 + passed + (host.sees_anchor ? anchor : 0));
      passed += static_cast<double>(host.passing_length);
      has_anchor[rank] = has_anchor[rank] || host.sees_anchor;
    }
    if (has_anchor[rank]) pairs += anchor * anchor / 2;
  }
  return pairs;
}

absl::StatusOr<model::ModelConfig> Configure(const Options& options) {
  APB_ASSIGN_OR_RETURN(model::ModelConfig config, NamedShape(options.shape));
  if (options.dtype == "f32") config.dtype = DType::kF32;
  return config;
}

// The most KV slots that a rank needs in any case.
absl::StatusOr<int64_t> SlotsNeeded(const Options& options, int ranks, int64_t row_cost_pairs) {
  int64_t most = 0;
  for (const std::string& strategy : options.strategies) {
    for (const int64_t length : options.lengths) {
      const int64_t document = std::max<int64_t>(0, length - options.query_length);
      APB_ASSIGN_OR_RETURN(const auto plan,
                           context_parallel::MakeShardPlan(
                               strategy, {.document_length = document, .query_length = 1},
                               {.hosts = HostsOf(strategy, options, ranks),
                                .anchor_length = options.anchor_length,
                                .passing_length = options.passing_length,
                                .row_cost_pairs = row_cost_pairs}));
      for (int r = 0; r < ranks; ++r)
        most = std::max(most, context_parallel::DocumentTokensOfRank(plan, ranks, r));
    }
  }
  return most + options.query_length + options.decode_tokens + 64;
}

absl::StatusOr<Rank> MakeRank(const Options& options, comm::MpiRuntime& runtime) {
  Rank rank{.runtime = runtime};
  APB_ASSIGN_OR_RETURN(rank.communicator, runtime.NewCommunicator(absl::Minutes(10)));
  APB_ASSIGN_OR_RETURN(rank.backend, kernels::CreateCpuBackend(
                                         {.threads = options.threads, .force_isa = options.isa}));
  APB_ASSIGN_OR_RETURN(rank.stream, rank.backend->NewStream());
  if (options.model.empty()) {
    APB_ASSIGN_OR_RETURN(const model::ModelConfig config, Configure(options));
    APB_ASSIGN_OR_RETURN(
        rank.weights, model::Weights::Random(config, 1, options.retaining_width, *rank.backend, {},
                                             model::BlockTypeNamed(options.quantize)));
  } else {
    APB_ASSIGN_OR_RETURN(
        rank.weights, model::Weights::Load(options.model, *rank.backend, {},
                                           {.quantize = model::BlockTypeNamed(options.quantize)}));
  }
  APB_ASSIGN_OR_RETURN(rank.decoder, model::Decoder::Create(*rank.weights, *rank.backend));
  const model::ModelConfig& config = rank.weights->config();
  if (options.balanced) {
    APB_ASSIGN_OR_RETURN(const context_parallel::MachineSpeed speed,
                         worker::Calibrate(*rank.weights, *rank.backend, *rank.communicator));
    rank.row_cost_pairs = context_parallel::RowCostInPairs(worker::ShapeOf(*rank.weights), speed);
  }
  APB_ASSIGN_OR_RETURN(const int64_t slots,
                       SlotsNeeded(options, runtime.size(), rank.row_cost_pairs));
  constexpr int64_t kBlock = 32;
  APB_ASSIGN_OR_RETURN(rank.cache,
                       cache::PagedKvCache::Create({.layers = config.layers,
                                                    .kv_heads = config.kv_heads,
                                                    .head_dim = config.head_dim,
                                                    .block_size = kBlock,
                                                    .block_count = (slots + kBlock - 1) / kBlock,
                                                    .dtype = config.dtype},
                                                   *rank.backend));
  return rank;
}

// Runs one batch of query or decode tokens of one sequence; on rank 0 also the last one's logits.
absl::Status RunSpans(Rank& rank, executor::TokenBatchAttention& rows, cache::SequenceKv& kv,
                      int64_t document_slots, int64_t position, std::span<const int32_t> tokens,
                      core::Workspace& hidden_memory, core::Workspace& logits_memory) {
  const model::ModelConfig& config = rank.weights->config();
  const int64_t count = static_cast<int64_t>(tokens.size());
  APB_RETURN_IF_ERROR(rows.Prepare(
      {{.kv = &kv, .document_slots = document_slots, .position = position, .count = count}},
      *rank.stream));
  APB_ASSIGN_OR_RETURN(const TensorView hidden,
                       hidden_memory.Get(config.dtype, {count, config.hidden_size}));
  APB_RETURN_IF_ERROR(rank.decoder->Embed(tokens, hidden, *rank.stream));
  APB_RETURN_IF_ERROR(
      rank.decoder->RunLayers(0, config.layers, hidden, rows.positions(), rows, *rank.stream));
  if (rank.runtime.rank() != 0) return absl::OkStatus();
  APB_ASSIGN_OR_RETURN(const TensorView logits,
                       logits_memory.Get(DType::kF32, {1, config.vocab_size}));
  APB_RETURN_IF_ERROR(rank.decoder->Logits(hidden.Rows(count - 1, count), logits, *rank.stream));
  return rank.stream->Synchronize();
}

// Decodes tokens after those in `kv`, whose last one is at position - 1. Which tokens does not
// matter for time, but all ranks need the same ones.
absl::Status Decode(Rank& rank, const Options& options, executor::TokenBatchAttention& rows,
                    cache::SequenceKv& kv, int64_t document_slots, int64_t position,
                    core::Workspace& hidden, core::Workspace& logits) {
  for (int i = 0; i < options.decode_tokens; ++i) {
    const int32_t next = static_cast<int32_t>((i * 7919 + 13) % rank.weights->config().vocab_size);
    APB_RETURN_IF_ERROR(
        RunSpans(rank, rows, kv, document_slots, position + i, {&next, 1}, hidden, logits));
  }
  return absl::OkStatus();
}

// One case, measured on this rank.
absl::StatusOr<json> RunCase(Rank& rank, const Options& options, const std::string& strategy,
                             int64_t length) {
  const model::ModelConfig& config = rank.weights->config();
  const int ranks = rank.runtime.size();
  const int64_t query = std::min(options.query_length, length);
  std::vector<int32_t> tokens(length);
  for (int64_t i = 0; i < length; ++i)
    tokens[i] = static_cast<int32_t>((i * 7919 + 13) % config.vocab_size);
  const std::span<const int32_t> document(tokens.data(), length - query);
  const std::span<const int32_t> question(tokens.data() + length - query, query);
  APB_ASSIGN_OR_RETURN(const context_parallel::ShardPlan plan,
                       context_parallel::MakeShardPlan(strategy,
                                                       {.document_length = length - query,
                                                        .query_length = query,
                                                        .embedded_query_length = query},
                                                       {.hosts = HostsOf(strategy, options, ranks),
                                                        .anchor_length = options.anchor_length,
                                                        .passing_length = options.passing_length,
                                                        .row_cost_pairs = rank.row_cost_pairs}));
  std::string compressor = options.compressor;
  if (compressor.empty())
    compressor = rank.weights->has_retaining_heads() ? "retaining_heads" : "query_aware";
  if (strategy != "apb") compressor.clear();

  executor::TokenBatchAttention rows(*rank.cache, *rank.backend, *rank.communicator,
                                     1.0f / std::sqrt(static_cast<float>(config.head_dim)));
  core::Workspace hidden(*rank.backend), logits(*rank.backend);
  cache::SequenceKv kv;
  const executor::PrefillDeps context{.decoder = *rank.decoder,
                                      .weights = *rank.weights,
                                      .cache = *rank.cache,
                                      .backend = *rank.backend,
                                      .communicator = *rank.communicator,
                                      .overlap_passing = options.overlap};
  APB_RETURN_IF_ERROR(rank.communicator->Barrier());
  const Snapshot start = Take(rank);
  if (!document.empty()) {
    APB_ASSIGN_OR_RETURN(auto prefill,
                         executor::DocumentPrefill::Start(context,
                                                          {{.plan = plan,
                                                            .tokens = document,
                                                            .embedded_query = question,
                                                            .compressor = compressor,
                                                            .kv = &kv}},
                                                          *rank.stream));
    APB_RETURN_IF_ERROR(prefill->RunLayers(0, config.layers, *rank.stream));
    APB_RETURN_IF_ERROR(rank.stream->Synchronize());
  }
  rank.decoder->Trim();
  const int64_t document_slots = kv.slot_count();
  const Snapshot stored = Take(rank);
  constexpr int64_t kQueryChunk = 512;
  for (int64_t done = 0; done < query; done += kQueryChunk) {
    const int64_t count = std::min(kQueryChunk, query - done);
    APB_RETURN_IF_ERROR(RunSpans(
        rank, rows, kv, document_slots, length - query + done,
        question.subspan(static_cast<size_t>(done), static_cast<size_t>(count)), hidden, logits));
  }
  const Snapshot first = Take(rank);
  APB_RETURN_IF_ERROR(Decode(rank, options, rows, kv, document_slots, length, hidden, logits));
  const Snapshot end = Take(rank);
  rank.cache->Release(kv);
  // The same with an empty cache: the cost of the weights alone.
  APB_RETURN_IF_ERROR(rank.communicator->Barrier());
  const Snapshot empty = Take(rank);
  APB_RETURN_IF_ERROR(Decode(rank, options, rows, kv, 0, 0, hidden, logits));
  const Snapshot last = Take(rank);
  rank.cache->Release(kv);
  return json{{"rank", rank.runtime.rank()},
              {"prefill", Difference(start, stored)},
              {"query", Difference(stored, first)},
              {"decode", Difference(first, end)},
              {"decode_empty", Difference(empty, last)},
              {"plan_pairs", AttendedPairs(plan, ranks)}};
}

json Summary(const Options& options, const model::ModelConfig& config, const std::string& strategy,
             int64_t length, std::vector<json> ranks) {
  const double prefill = ranks[0]["prefill"]["seconds"], query = ranks[0]["query"]["seconds"],
               decode = ranks[0]["decode"]["seconds"],
               decode_empty = ranks[0]["decode_empty"]["seconds"];
  double attend = 0;
  for (const json& rank : ranks) attend += rank["prefill"]["attend"].get<double>();
  const double flops = 4.0 * ranks[0]["plan_pairs"].get<double>() *
                       static_cast<double>(config.query_heads * config.head_dim) *
                       (config.layers - 1);  // the last layer stores K and V only
  const double ttft = prefill + query;
  for (json& rank : ranks) rank.erase("plan_pairs");
  return {{"strategy", strategy},
          {"length", length},
          {"ranks", ranks.size()},
          {"hosts", HostsOf(strategy, options, static_cast<int>(ranks.size()))},
          {"threads_per_rank", options.threads},
          {"balanced", options.balanced},
          {"overlap", options.overlap},
          {"ttft_seconds", ttft},
          {"prefill_tokens_per_second", static_cast<double>(length) / ttft},
          {"decode_tokens_per_second", decode > 0 ? options.decode_tokens / decode : 0.0},
          {"empty_cache_decode_tokens_per_second",
           decode_empty > 0 ? options.decode_tokens / decode_empty : 0.0},
          {"attend_gflops_per_rank", attend > 0 ? flops / attend * 1e-9 : 0.0},
          {"by_rank", ranks}};
}

// Keeps the run with the shortest TTFT, with the fastest decode rates of any run.
void KeepBest(json run, json& best) {
  if (best.is_null()) {
    best = std::move(run);
    return;
  }
  if (run["ttft_seconds"] < best["ttft_seconds"]) std::swap(run, best);
  for (const char* rate : {"decode_tokens_per_second", "empty_cache_decode_tokens_per_second"}) {
    if (run[rate] > best[rate]) best[rate] = run[rate];
  }
}

void PrintHeader() {
  std::printf("%-6s %9s %5s %5s %9s %10s %9s %9s | %6s %6s %6s %6s %6s %6s | %9s %8s\n", "strat",
              "tokens", "ranks", "hosts", "ttft s", "prefill/s", "decode/s", "empty/s", "proj",
              "compr", "comm", "attend", "mlp", "query", "MB sent", "GF/s/rk");
}

void PrintRow(const json& r) {
  // Prints the phases of the slowest rank: the others' `communicate` includes their waiting.
  const json* slowest = &r["by_rank"][0];
  for (const json& rank : r["by_rank"]) {
    if (rank["prefill"]["attend"] > (*slowest)["prefill"]["attend"]) slowest = &rank;
  }
  const json& p = (*slowest)["prefill"];
  double sent = 0;
  for (const auto& item : p["bytes"].items()) sent += item.value().get<double>();
  std::printf(
      "%-6s %9lld %5d %5d %9.2f %10.0f %9.1f %9.1f | %6.2f %6.2f %6.2f %6.2f %6.2f %6.2f | %9.1f "
      "%8.0f\n",
      r["strategy"].get<std::string>().c_str(), r["length"].get<long long>(), r["ranks"].get<int>(),
      r["hosts"].get<int>(), r["ttft_seconds"].get<double>(),
      r["prefill_tokens_per_second"].get<double>(), r["decode_tokens_per_second"].get<double>(),
      r["empty_cache_decode_tokens_per_second"].get<double>(), p["projection"].get<double>(),
      p["compress"].get<double>(), p["communicate"].get<double>(), p["attend"].get<double>(),
      p["mlp"].get<double>(), r["by_rank"][0]["query"]["seconds"].get<double>(), sent * 1e-6,
      r["attend_gflops_per_rank"].get<double>());
  std::fflush(stdout);
}

absl::Status WriteJson(const Options& options, const std::string& backend, json results) {
  if (options.json_file.empty()) return absl::OkStatus();
  json document;
  if (options.append) {
    std::ifstream before(options.json_file);
    if (before) document = json::parse(before, nullptr, false);
  }
  if (!document.is_object()) {
    document = {{"shape", options.model.empty() ? options.shape : options.model},
                {"dtype", options.dtype},
                {"quantize", options.quantize},
                {"backend", backend},
                {"cpus", std::thread::hardware_concurrency()},
                {"results", json::array()}};
  }
  for (json& result : results) document["results"].push_back(std::move(result));
  std::ofstream(options.json_file) << document.dump(1) << "\n";
  return absl::OkStatus();
}

absl::Status Run(const Options& options, comm::MpiRuntime& runtime) {
  APB_ASSIGN_OR_RETURN(Rank rank, MakeRank(options, runtime));
  const bool leader = runtime.rank() == 0;
  if (leader) PrintHeader();
  json results = json::array();
  // This run pays for page faults and for the creation of oneDNN primitives.
  APB_RETURN_IF_ERROR(RunCase(rank, options, options.strategies[0], options.lengths[0]).status());
  for (const std::string& strategy : options.strategies) {
    for (const int64_t length : options.lengths) {
      json best;
      for (int i = 0; i < options.repeat; ++i) {
        APB_ASSIGN_OR_RETURN(const json mine, RunCase(rank, options, strategy, length));
        APB_ASSIGN_OR_RETURN(const auto texts,
                             runtime.GatherToLeader(mine.dump(), absl::Minutes(10)));
        if (!leader) continue;
        std::vector<json> ranks;
        for (const std::string& text : texts) ranks.push_back(json::parse(text));
        json summary = Summary(options, rank.weights->config(), strategy, length, std::move(ranks));
        KeepBest(std::move(summary), best);
      }
      if (!leader) continue;
      PrintRow(best);
      results.push_back(std::move(best));
    }
  }
  return leader ? WriteJson(options, std::string(rank.backend->name()), std::move(results))
                : absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Speed of the engine; run it under mpirun");
  app.add_option("--shape", options.shape, "tiny, 125m, 1b (random weights)");
  app.add_option("--model", options.model, "a checkpoint directory instead of random weights");
  app.add_option("--dtype", options.dtype, "of random weights")
      ->check(CLI::IsMember({"bf16", "f32"}));
  app.add_option("--quantize", options.quantize, "weights of products: none, int8, int4")
      ->check(CLI::IsMember({"none", "int8", "int4"}));
  app.add_option("--lengths", options.lengths, "prompt tokens, query included")->delimiter(',');
  app.add_option("--strategies", options.strategies,
                 "full, apb, star, ring_kv, ring_q, token_ring, ulysses")
      ->delimiter(',');
  app.add_option("--virtual-hosts", options.virtual_hosts, "hosts a rank plays");
  app.add_option("--threads", options.threads, "per rank; 0 = cores / ranks of this machine");
  app.add_option("--decode-tokens", options.decode_tokens, "tokens decoded behind each prompt");
  app.add_option("--query-length", options.query_length, "tokens of the prompt's end");
  app.add_option("--anchor-length", options.anchor_length, "-1 = default for the length");
  app.add_option("--passing-length", options.passing_length, "-1 = default for the length");
  app.add_flag("--balanced", options.balanced, "apb: blocks that take equally long");
  app.add_flag("--overlap", options.overlap, "apb: attend while passing blocks travel");
  app.add_option("--compressor", options.compressor, "retaining_heads, query_aware, random");
  app.add_option("--retaining-width", options.retaining_width, "of random retaining heads");
  app.add_option("--repeat", options.repeat, "runs of a case; the fastest counts");
  app.add_option("--isa", options.isa,
                 "forces a code path: portable, avx2, avx512, avx512vnni, avx512bf16, amxbf16");
  app.add_option("--json", options.json_file, "writes the results there too");
  app.add_flag("--append", options.append, "adds to the results in the --json file");
  CLI11_PARSE(app, argc, argv);
  return RunUnderMpi(argc, argv, "engine_bench", options, Run);
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) { return apb::bench::Main(argc, argv); }
