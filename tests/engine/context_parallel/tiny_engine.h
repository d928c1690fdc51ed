// A tiny float32 model and one rank's engine around it, for tests of strategies: prefill of a
// document by any plan, new rows over sharded KV, results collected on all ranks.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/cache/paged_kv_cache.h"
#include "engine/comm/communicator.h"
#include "engine/context_parallel/strategies.h"
#include "engine/executor/document_prefill.h"
#include "engine/executor/token_batch.h"
#include "engine/model/decoder.h"
#include "engine/model/weights.h"

namespace apb::context_parallel {

// 3 layers, 4 query and 2 KV heads of 16, biases on q, k, v, random weights with retaining heads of
// width 24.
struct TinyModel {
  static const TinyModel& Get();
  // The same weights, or a tensor parallel share of them, in another place.
  static std::unique_ptr<model::Weights> Weights(kernels::Backend& backend, model::Share share);
  model::ModelConfig config;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<model::Weights> weights;
};

// Tokens [begin, end) of an endless text without a repetition within 1000 tokens: equal tokens have
// equal scores, and which of them is passed on would depend on the last bit.
std::vector<int32_t> Text(int64_t begin, int64_t end);

// One rank of a test: its peers, and what it computes on (the CPU, unless told).
struct TestRank {
  TestRank(comm::Communicator& communicator,  // not explicit: most tests have no more
           std::shared_ptr<kernels::Backend> backend = nullptr);
  comm::Communicator& communicator;
  std::shared_ptr<kernels::Backend> backend;
};

struct PrefillCase {
  std::string strategy = "full";
  std::string compressor;
  StrategyOptions options;
  int64_t document_length = 0;
  std::vector<int32_t> embedded_query;
  int64_t query_insert_position = 0;
  bool overlap = false;
  std::string Name() const;
};

// Rows of hidden states, row-major.
struct Hidden {
  int64_t rows = 0;
  std::vector<float> values;
};
// Largest |a - b| over rows [begin, end); the two must have as many rows.
double Difference(const Hidden& a, const Hidden& b, int64_t begin, int64_t end);
double Difference(const Hidden& a, const Hidden& b);

// Hosts of a strategy on so many ranks, where `asked` are asked for.
int HostsOf(const StrategyInfo& strategy, int ranks, int asked);

// Checks throw std::runtime_error on a failed status: tests catch nothing, gtest reports.
class TinyEngine {
 public:
  explicit TinyEngine(const TestRank& rank);

  struct PrefillResult {
    ShardPlan plan;
    Hidden document;  // of all ranks, the last layer included
    Hidden anchor;    // of this rank
    cache::SequenceKv kv;
  };
  // `with_last_output`: the last layer's hidden states too, as tests want to see them; a server's
  // prefill ends without them, and then `document` and `anchor` are meaningless.
  PrefillResult Prefill(const PrefillCase& c, bool with_last_output = true);
  absl::Status TryPrefill(const PrefillCase& c);

  // One document of a batch: `kv` holds its first `cached` tokens already (of all ranks together).
  struct BatchDocument {
    std::vector<int32_t> text;
    int64_t cached = 0;
    cache::SequenceKv* kv = nullptr;
  };
  // Hidden states of the tokens that were not cached, by document, of all ranks.
  std::vector<Hidden> PrefillBatch(std::string_view strategy,
                                   const std::vector<BatchDocument>& documents);

  // One batch of new rows: hidden states behind the last layer. tokens[i] belong to spans[i].
  Hidden RunSpans(const std::vector<executor::BatchTokens>& spans,
                  const std::vector<std::vector<int32_t>>& tokens);

  // Elementwise over ranks.
  std::vector<float> Reduced(std::vector<float> values, comm::ReduceOp op);
  // The same bits on every rank.
  bool EqualOnAllRanks(const std::vector<float>& values);

  comm::Communicator& communicator() { return communicator_; }
  cache::PagedKvCache& cache() { return *cache_; }
  int rank() const { return communicator_.rank(); }
  int ranks() const { return communicator_.size(); }

 private:
  executor::PrefillDeps Context(bool overlap = false);
  // Hidden states of a document's tokens from `begin` on, as this rank's prefill has them; all
  // ranks get all.
  Hidden Collect(const executor::DocumentPrefill& prefill, size_t document, int64_t begin,
                 int64_t end);
  // Rows of a view as float, in host memory.
  Hidden CopyRows(const kernels::TensorView& view, int64_t begin, int64_t end);
  comm::Communicator& communicator_;
  const std::shared_ptr<kernels::Backend> backend_;
  std::unique_ptr<model::Weights>
      own_weights_;  // null: those of TinyModel are where they are needed
  const model::Weights* weights_;
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<kernels::Stream> stream_;
  std::unique_ptr<cache::PagedKvCache> cache_;
  std::unique_ptr<executor::TokenBatchAttention> rows_;
};

// Hidden states of plain causal attention over tokens, on one rank and its CPU.
Hidden Dense(const std::vector<int32_t>& tokens);

}  // namespace apb::context_parallel
