// A tiny float32 model, and one rank's engine for it, for tests of strategies: prefill of documents
// by any plan, query and decode tokens over sharded KV, and results collected on all ranks.
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

// 3 layers, 4 query and 2 KV heads of dimension 16, biases on q, k, v, random weights, and
// retaining heads of width 24.
struct TinyModel {
  static const TinyModel& Get();
  // The same weights, or a tensor parallel share of them, in memory of `backend`.
  static std::unique_ptr<model::Weights> Weights(kernels::Backend& backend, model::Share share);
  model::ModelConfig config;
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<model::Weights> weights;
};

// Tokens [begin, end) of an endless text. No token repeats within 1000 tokens, because equal tokens
// have equal scores, and top-k's choice among them would depend on the last bit.
std::vector<int32_t> Text(int64_t begin, int64_t end);

// One rank of a test: its communicator, and its backend (a CPU backend if null). Not explicit,
// because most tests only have a communicator.
struct TestRank {
  TestRank(comm::Communicator& communicator, std::shared_ptr<kernels::Backend> backend = nullptr);
  comm::Communicator& communicator;
  std::shared_ptr<kernels::Backend> backend;  // shared with the test and the engines of the rank
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

// Hidden states, [rows, hidden_size] row-major.
struct Hidden {
  int64_t rows = 0;
  std::vector<float> values;
};
// Largest |a - b| over rows [begin, end); NaN if there is one. Throws if a row is missing.
double Difference(const Hidden& a, const Hidden& b, int64_t begin, int64_t end);
// The same over all rows. Throws if the two do not have equally many.
double Difference(const Hidden& a, const Hidden& b);

// The number of hosts of a document by the strategy's HostsRule, if a request asks for `asked`.
int HostsOf(const StrategyInfo& strategy, int ranks, int asked);

// Methods throw std::runtime_error on a failed status. Tests do not catch it: gtest reports it.
class TinyEngine {
 public:
  explicit TinyEngine(const TestRank& rank);

  struct PrefillResult {
    ShardPlan plan;
    Hidden document;  // after the last layer, of all document tokens
    Hidden anchor;    // after the last layer, of this rank's anchor rows
    cache::SequenceKv kv;
  };
  // With `with_last_output`, the prefill computes the last layer's hidden states too, for tests to
  // compare. A server's prefill ends without them; `document` and `anchor` are meaningless then.
  PrefillResult Prefill(const PrefillCase& c, bool with_last_output = true);
  absl::Status TryPrefill(const PrefillCase& c);

  // One document of a batch. The ranks' `kv` together already hold its first `cached` tokens.
  struct BatchDocument {
    std::vector<int32_t> text;
    int64_t cached = 0;
    cache::SequenceKv* kv = nullptr;
  };
  // By document, the hidden states of all tokens that were not cached; the same on all ranks.
  std::vector<Hidden> PrefillBatch(std::string_view strategy,
                                   const std::vector<BatchDocument>& documents);

  // Hidden states after the last layer of one batch of query or decode tokens. tokens[i] are the
  // tokens of spans[i].
  Hidden RunSpans(const std::vector<executor::BatchTokens>& spans,
                  const std::vector<std::vector<int32_t>>& tokens);

  // The elementwise reduction over all ranks.
  std::vector<float> Reduced(std::vector<float> values, comm::ReduceOp op);
  // Whether all ranks have the same bits.
  bool EqualOnAllRanks(const std::vector<float>& values);

  comm::Communicator& communicator() { return communicator_; }
  cache::PagedKvCache& cache() { return *cache_; }
  int rank() const { return communicator_.rank(); }
  int ranks() const { return communicator_.size(); }

 private:
  executor::PrefillDeps Context(bool overlap = false);
  // Hidden states of a document's tokens [begin, end), collected from all ranks' prefills.
  Hidden Collect(const executor::DocumentPrefill& prefill, size_t document, int64_t begin,
                 int64_t end);
  // Rows [begin, end) of a view, as floats in CPU memory.
  Hidden CopyRows(const kernels::TensorView& view, int64_t begin, int64_t end);
  comm::Communicator& communicator_;
  const std::shared_ptr<kernels::Backend> backend_;
  // Weights in the backend's memory. Null on a CPU, which uses TinyModel's.
  std::unique_ptr<model::Weights> own_weights_;
  const model::Weights* weights_;
  std::unique_ptr<model::Decoder> decoder_;
  std::unique_ptr<kernels::Stream> stream_;
  std::unique_ptr<cache::PagedKvCache> cache_;
  std::unique_ptr<executor::TokenBatchAttention> rows_;
};

// Hidden states after the last layer with plain causal attention over all tokens, on one rank.
Hidden Dense(const std::vector<int32_t>& tokens);

}  // namespace apb::context_parallel
