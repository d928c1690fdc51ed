// Goal: how much communication the rings hide, and how much time batches save. Runs under mpirun.
//   mpirun -n 2 ring_bench --shape 125m --lengths 2048,8192 --prefixes 0,8192
// Overlap: seconds of one layer of a prefill of `length` tokens after `prefix` cached ones; of the
// layer without its messages (compute alone); and of its messages alone. The exposed time is the
// layer's minus compute's. Ranks of one machine exchange messages through memory, so --link-gbit
// makes a transfer as slow as on a link of that speed.
// Batches: seconds for the same short documents, by the number of documents in one prefill.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/comm/mpi_runtime.h"
#include "engine/context_parallel/strategies.h"
#include "engine/executor/document_prefill.h"
#include "tests/bench/bench_shapes.h"
#include "tests/bench/mpi_bench.h"
#include "tests/engine/comm/communicator_decorator.h"

namespace apb::bench {
namespace {

using kernels::DType;
using kernels::TensorView;
using nlohmann::json;

struct Options {
  std::string shape = "125m", json_file;
  std::vector<std::string> strategies = {"ring_kv", "ring_q", "token_ring"};
  std::vector<int64_t> lengths = {2048, 8192}, prefixes = {0, 8192}, batches = {1, 4, 16};
  int64_t documents = 16, document_length = 512;
  int threads = 0, repeat = 3;
  double link_gbit = 0;
};

// Forwards every collective, and records the transfers between neighbours. If `mute`, transfers are
// dropped. With a link speed, a transfer ends no earlier than its bytes could have arrived.
class WatchedCommunicator : public comm::CommunicatorDecorator {
 public:
  struct Transfer {
    int64_t sent = 0, received = 0;  // bytes
    int target = 0, source = 0;
  };
  WatchedCommunicator(comm::Communicator& real, double link_gbit)
      : CommunicatorDecorator(real), seconds_per_byte_(link_gbit > 0 ? 8e-9 / link_gbit : 0) {}
  bool mute = false;
  std::vector<Transfer> transfers;

 private:
  absl::StatusOr<std::unique_ptr<comm::Pending>> DoStart(const comm::Collective& c,
                                                         kernels::Stream& stream) override {
    if (c.kind != comm::Collective::Kind::kSendRecv) return inner().Start(c, stream);
    if (mute) return std::make_unique<comm::DonePending>();
    const int64_t sent = comm::BytesOf(c.send), received = comm::BytesOf(c.recv);
    transfers.push_back({sent, received, c.target, c.source});
    auto delayed = std::make_unique<Delayed>();
    APB_ASSIGN_OR_RETURN(delayed->real, inner().Start(c, stream));
    // The link carries one transfer after the other in each direction.
    link_free_ = std::max(link_free_, absl::Now()) +
                 absl::Seconds(static_cast<double>(std::max(sent, received)) * seconds_per_byte_);
    delayed->ready = link_free_;
    return delayed;
  }
  struct Delayed : comm::Pending {
    absl::Status Wait(kernels::Stream& stream) override {
      APB_RETURN_IF_ERROR(real->Wait(stream));
      absl::SleepFor(ready - absl::Now());
      return absl::OkStatus();
    }
    std::unique_ptr<comm::Pending> real;
    absl::Time ready;
  };
  const double seconds_per_byte_;
  absl::Time link_free_ = absl::InfinitePast();
};

// Everything a rank computes with.
struct Rank {
  std::unique_ptr<comm::Communicator> communicator;
  std::unique_ptr<WatchedCommunicator> watched;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<kernels::Stream> stream;
  std::unique_ptr<model::Weights> weights;
  std::unique_ptr<model::Decoder> decoder;
  std::unique_ptr<cache::PagedKvCache> cache;
  int ranks() const { return communicator->size(); }
  executor::PrefillDeps Context() {
    return {*decoder, *weights, *cache, *backend, *watched, nullptr};
  }
};

absl::StatusOr<Rank> MakeRank(const Options& options, comm::MpiRuntime& runtime) {
  Rank rank;
  APB_ASSIGN_OR_RETURN(rank.communicator, runtime.NewCommunicator(absl::Minutes(10)));
  rank.watched = std::make_unique<WatchedCommunicator>(*rank.communicator, options.link_gbit);
  APB_ASSIGN_OR_RETURN(rank.backend, kernels::CreateCpuBackend({.threads = options.threads}));
  APB_ASSIGN_OR_RETURN(rank.stream, rank.backend->NewStream());
  APB_ASSIGN_OR_RETURN(model::ModelConfig config, NamedShape(options.shape));
  config.layers = 3;  // two whole layers, and the last one, which only stores K and V
  APB_ASSIGN_OR_RETURN(rank.weights, model::Weights::Random(config, 1, 0, *rank.backend));
  APB_ASSIGN_OR_RETURN(rank.decoder, model::Decoder::Create(*rank.weights, *rank.backend));
  const int64_t longest = *std::max_element(options.lengths.begin(), options.lengths.end()) +
                          *std::max_element(options.prefixes.begin(), options.prefixes.end());
  const int64_t tokens = std::max(longest, options.documents * options.document_length);
  constexpr int64_t kBlock = 32;
  // Blocks for the rank's tokens, a partly filled one for each document, and some for the copy that
  // forking a prefix makes.
  APB_ASSIGN_OR_RETURN(rank.cache,
                       cache::PagedKvCache::Create(
                           {.layers = config.layers,
                            .kv_heads = config.kv_heads,
                            .head_dim = config.head_dim,
                            .block_size = kBlock,
                            .block_count = tokens / rank.ranks() / kBlock + options.documents + 8,
                            .dtype = config.dtype},
                           *rank.backend));
  return rank;
}

std::vector<int32_t> Tokens(const Rank& rank, int64_t count, int64_t seed) {
  std::vector<int32_t> tokens(count);
  for (int64_t i = 0; i < count; ++i)
    tokens[i] = static_cast<int32_t>(((i + seed) * 7919 + 13) % rank.weights->config().vocab_size);
  return tokens;
}

absl::StatusOr<std::unique_ptr<executor::DocumentPrefill>> Start(
    Rank& rank, const std::string& strategy, const std::vector<std::vector<int32_t>>& documents,
    int64_t cached, std::vector<cache::SequenceKv>& kv) {
  std::vector<executor::PrefillDocument> batch;
  for (size_t i = 0; i < documents.size(); ++i) {
    APB_ASSIGN_OR_RETURN(context_parallel::ShardPlan plan,
                         context_parallel::MakeShardPlan(
                             strategy,
                             {.document_length = static_cast<int64_t>(documents[i].size()),
                              .cached_length = cached,
                              .query_length = 1},
                             {.hosts = rank.ranks()}));
    batch.push_back({.plan = std::move(plan), .tokens = documents[i], .kv = &kv[i]});
  }
  return executor::DocumentPrefill::Start(rank.Context(), std::move(batch), *rank.stream);
}

double SecondsSince(absl::Time start) { return absl::ToDoubleSeconds(absl::Now() - start); }

// Seconds of the second layer of a prefill.
absl::StatusOr<double> TimeLayer(Rank& rank, const std::string& strategy,
                                 const std::vector<int32_t>& document, int64_t cached,
                                 const cache::SequenceKv& prefix, bool mute) {
  std::vector<cache::SequenceKv> kv(1);
  APB_ASSIGN_OR_RETURN(kv[0], rank.cache->Fork(prefix, static_cast<int32_t>(cached), *rank.stream));
  APB_ASSIGN_OR_RETURN(auto prefill, Start(rank, strategy, {document}, cached, kv));
  APB_RETURN_IF_ERROR(prefill->RunLayers(0, 1, *rank.stream));
  APB_RETURN_IF_ERROR(rank.communicator->Barrier());
  rank.watched->transfers.clear();
  rank.watched->mute = mute;
  const absl::Time start = absl::Now();
  APB_RETURN_IF_ERROR(prefill->RunLayers(1, 2, *rank.stream));
  const double seconds = SecondsSince(start);
  rank.watched->mute = false;
  rank.cache->Release(kv[0]);
  return seconds;
}

// Seconds of the recorded transfers of the last layer, one after the other.
absl::StatusOr<double> TimeTransfers(Rank& rank) {
  int64_t most = 1;
  const std::vector<WatchedCommunicator::Transfer> transfers = rank.watched->transfers;
  for (const auto& t : transfers) most = std::max({most, t.sent, t.received});
  most = (most + 3) / 4;
  std::vector<float> out(most, 1.0f), in(most, 1.0f);
  APB_RETURN_IF_ERROR(rank.communicator->Barrier());
  const absl::Time start = absl::Now();
  for (const auto& t : transfers) {
    APB_RETURN_IF_ERROR(rank.watched->SendRecv(
        TensorView::Contiguous(out.data(), DType::kF32, {t.sent / 4}), t.target,
        TensorView::Contiguous(in.data(), DType::kF32, {t.received / 4}), t.source, *rank.stream));
  }
  const double seconds = SecondsSince(start);
  rank.watched->transfers = transfers;
  return seconds;
}

absl::StatusOr<json> Overlap(Rank& rank, const Options& options, const std::string& strategy,
                             int64_t length, int64_t cached) {
  const std::vector<int32_t> document = Tokens(rank, cached + length, 0);
  std::vector<cache::SequenceKv> prefix(1);
  if (cached > 0) {
    APB_ASSIGN_OR_RETURN(
        auto prefill,
        Start(rank, "ring_kv", {{document.begin(), document.begin() + cached}}, 0, prefix));
    APB_RETURN_IF_ERROR(prefill->RunLayers(0, 2, *rank.stream));
  }
  double layer = 1e9, compute = 1e9, communicate = 1e9;
  int64_t bytes = 0;
  for (int i = 0; i < options.repeat; ++i) {
    APB_ASSIGN_OR_RETURN(const double with,
                         TimeLayer(rank, strategy, document, cached, prefix[0], false));
    APB_ASSIGN_OR_RETURN(const double transfers, TimeTransfers(rank));
    bytes = 0;
    for (const auto& t : rank.watched->transfers) bytes += t.sent;
    APB_ASSIGN_OR_RETURN(const double without,
                         TimeLayer(rank, strategy, document, cached, prefix[0], true));
    layer = std::min(layer, with);
    compute = std::min(compute, without);
    communicate = std::min(communicate, transfers);
  }
  rank.cache->Release(prefix[0]);
  return json{{"strategy", strategy},       {"tokens", length},
              {"cached", cached},           {"layer_seconds", layer},
              {"compute_seconds", compute}, {"communicate_seconds", communicate},
              {"bytes_sent", bytes},        {"exposed_seconds", layer - compute}};
}

// Seconds of the prefill of all documents, `together` of them at a time.
absl::StatusOr<json> Batches(Rank& rank, const Options& options, const std::string& strategy,
                             int64_t together) {
  double best = 1e9;
  for (int i = 0; i < options.repeat; ++i) {
    APB_RETURN_IF_ERROR(rank.communicator->Barrier());
    const absl::Time start = absl::Now();
    for (int64_t first = 0; first < options.documents; first += together) {
      const int64_t count = std::min(together, options.documents - first);
      std::vector<std::vector<int32_t>> documents;
      for (int64_t d = 0; d < count; ++d)
        documents.push_back(Tokens(rank, options.document_length, first + d));
      std::vector<cache::SequenceKv> kv(count);
      APB_ASSIGN_OR_RETURN(auto prefill, Start(rank, strategy, documents, 0, kv));
      APB_RETURN_IF_ERROR(prefill->RunLayers(0, 3, *rank.stream));
      for (cache::SequenceKv& sequence : kv) rank.cache->Release(sequence);
    }
    best = std::min(best, SecondsSince(start));
  }
  return json{{"strategy", strategy},
              {"documents", options.documents},
              {"tokens", options.document_length},
              {"together", together},
              {"seconds", best}};
}

absl::Status Run(const Options& options, comm::MpiRuntime& runtime) {
  APB_ASSIGN_OR_RETURN(Rank rank, MakeRank(options, runtime));
  const bool leader = runtime.rank() == 0;
  json overlap = json::array(), batches = json::array();
  if (leader) {
    std::printf("%-10s %7s %7s | %9s %9s %9s | %8s %7s\n", "strategy", "tokens", "cached",
                "layer ms", "compute", "comm.", "MB sent", "exposed");
  }
  for (const std::string& strategy : options.strategies) {
    for (const int64_t cached : options.prefixes) {
      for (const int64_t length : options.lengths) {
        APB_ASSIGN_OR_RETURN(json r, Overlap(rank, options, strategy, length, cached));
        if (!leader) continue;
        std::printf("%-10s %7lld %7lld | %9.2f %9.2f %9.2f | %8.2f %7.1f\n", strategy.c_str(),
                    static_cast<long long>(length), static_cast<long long>(cached),
                    1e3 * r["layer_seconds"].get<double>(),
                    1e3 * r["compute_seconds"].get<double>(),
                    1e3 * r["communicate_seconds"].get<double>(),
                    1e-6 * r["bytes_sent"].get<double>(), 1e3 * r["exposed_seconds"].get<double>());
        std::fflush(stdout);
        overlap.push_back(std::move(r));
      }
    }
  }
  if (leader)
    std::printf("\n%-10s %9s %7s %9s | %9s\n", "strategy", "documents", "tokens", "together", "ms");
  for (const std::string& strategy : options.strategies) {
    for (const int64_t together : options.batches) {
      APB_ASSIGN_OR_RETURN(json r, Batches(rank, options, strategy, together));
      if (!leader) continue;
      std::printf("%-10s %9lld %7lld %9lld | %9.1f\n", strategy.c_str(),
                  static_cast<long long>(options.documents),
                  static_cast<long long>(options.document_length), static_cast<long long>(together),
                  1e3 * r["seconds"].get<double>());
      std::fflush(stdout);
      batches.push_back(std::move(r));
    }
  }
  if (leader && !options.json_file.empty()) {
    std::ofstream(options.json_file) << json{{"shape", options.shape},
                                             {"ranks", rank.ranks()},
                                             {"threads_per_rank", options.threads},
                                             {"link_gbit", options.link_gbit},
                                             {"overlap", overlap},
                                             {"batches", batches}}
                                            .dump(1)
                                     << "\n";
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("What the rings overlap, and what batches gain; run it under mpirun");
  app.add_option("--shape", options.shape, "tiny, 125m, 1b (random weights, three layers)");
  app.add_option("--strategies", options.strategies, "ring_kv, ring_q, token_ring")->delimiter(',');
  app.add_option("--lengths", options.lengths, "new tokens")->delimiter(',');
  app.add_option("--prefixes", options.prefixes, "cached tokens before them")->delimiter(',');
  app.add_option("--batches", options.batches, "documents in one prefill")->delimiter(',');
  app.add_option("--documents", options.documents, "documents of the batches");
  app.add_option("--document-length", options.document_length, "tokens of each of them");
  app.add_option("--threads", options.threads, "per rank; 0 = cores / ranks of this machine");
  app.add_option("--link-gbit", options.link_gbit, "speed of the link between ranks; 0 = as it is");
  app.add_option("--repeat", options.repeat, "runs; the fastest counts");
  app.add_option("--json", options.json_file, "writes the results there too");
  CLI11_PARSE(app, argc, argv);
  return RunUnderMpi(argc, argv, "ring_bench", options, Run);
}

}  // namespace
}  // namespace apb::bench

int main(int argc, char** argv) { return apb::bench::Main(argc, argv); }
