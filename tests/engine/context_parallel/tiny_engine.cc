#include "tests/engine/context_parallel/tiny_engine.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "engine/comm/local_communicator.h"

namespace apb::context_parallel {
namespace {

constexpr int64_t kVocabSize = 1009;  // a prime number
constexpr uint64_t kSeed = 17;
constexpr int64_t kRetainingWidth = 24;

using kernels::DType;
using kernels::TensorView;

void Check(const absl::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.ToString());
}
template <typename T>
T Check(absl::StatusOr<T> value) {
  Check(value.status());
  return *std::move(value);
}

absl::StatusOr<std::unique_ptr<executor::DocumentPrefill>> StartPrefill(
    const executor::PrefillDeps& context, const PrefillCase& c,
    const std::vector<int32_t>& document, cache::SequenceKv& kv, kernels::Stream& stream) {
  const PromptLayout layout{.document_length = c.document_length,
                            .query_length = 1,
                            .query_insert_position = c.query_insert_position,
                            .embedded_query_length = static_cast<int64_t>(c.embedded_query.size())};
  auto plan = MakeShardPlan(c.strategy, layout, c.options);
  if (!plan.ok()) return plan.status();
  return executor::DocumentPrefill::Start(context,
                                          {{.plan = *std::move(plan),
                                            .tokens = document,
                                            .embedded_query = c.embedded_query,
                                            .compressor = c.compressor,
                                            .kv = &kv}},
                                          stream);
}

}  // namespace

const TinyModel& TinyModel::Get() {
  static const TinyModel* const model = [] {
    auto* tiny = new TinyModel;
    model::ModelConfig& c = tiny->config;
    c.architecture = "LlamaForCausalLM";
    c.vocab_size = kVocabSize;
    c.hidden_size = 48;
    c.mlp_size = 64;
    c.layers = 3;
    c.query_heads = 4;
    c.kv_heads = 2;
    c.head_dim = 16;
    c.max_positions = 4096;
    c.qkv_bias = true;  // because a retaining head reads q, k, v with biases
    c.dtype = DType::kF32;
    tiny->backend = Check(kernels::CreateCpuBackend({.threads = 1, .force_isa = ""}));
    tiny->weights = Check(model::Weights::Random(c, kSeed, kRetainingWidth, *tiny->backend));
    return tiny;
  }();
  return *model;
}

std::unique_ptr<model::Weights> TinyModel::Weights(kernels::Backend& backend, model::Share share) {
  return Check(model::Weights::Random(Get().config, kSeed, kRetainingWidth, backend, share));
}

std::vector<int32_t> Text(int64_t begin, int64_t end) {
  std::vector<int32_t> tokens;
  for (int64_t i = begin; i < end; ++i) {
    tokens.push_back(static_cast<int32_t>((i * 389 + 17) % kVocabSize));
  }
  return tokens;
}

std::string PrefillCase::Name() const {
  return absl::StrCat(strategy, " ", compressor, " hosts=", options.hosts, " n=", document_length,
                      " l_a=", options.anchor_length, " l_p=", options.passing_length,
                      " q=", embedded_query.size(), " s=", query_insert_position,
                      " row_cost=", options.row_cost_pairs, overlap ? " overlap" : "");
}

int HostsOf(const StrategyInfo& strategy, int ranks, int asked) {
  switch (strategy.hosts) {
    case HostsRule::kOne:
      return 1;
    case HostsRule::kOneOnEachRank:
      return ranks;
    case HostsRule::kSameOnEachRank:
      break;
  }
  return asked;
}

double Difference(const Hidden& a, const Hidden& b, int64_t begin, int64_t end) {
  if (a.rows < end || b.rows < end) throw std::runtime_error("rows are missing");
  if (begin == end) return 0;
  const int64_t width = static_cast<int64_t>(a.values.size()) / a.rows;
  double worst = 0;
  for (int64_t i = begin * width; i < end * width; ++i) {
    const double difference = std::abs(static_cast<double>(a.values[i]) - b.values[i]);
    worst = difference <= worst ? worst : difference;  // keeps a NaN
  }
  return worst;
}
double Difference(const Hidden& a, const Hidden& b) {
  if (a.rows != b.rows) throw std::runtime_error("not as many rows");
  return Difference(a, b, 0, a.rows);
}

TestRank::TestRank(comm::Communicator& communicator, std::shared_ptr<kernels::Backend> backend)
    : communicator(communicator), backend(std::move(backend)) {
  if (this->backend == nullptr)
    this->backend = Check(kernels::CreateCpuBackend({.threads = 1, .force_isa = ""}));
}

TinyEngine::TinyEngine(const TestRank& rank)
    : communicator_(rank.communicator), backend_(rank.backend) {
  const TinyModel& tiny = TinyModel::Get();
  if (backend_->place() != kernels::Place::kCpu)
    own_weights_ = TinyModel::Weights(*backend_, model::Share());
  weights_ = own_weights_ == nullptr ? tiny.weights.get() : own_weights_.get();
  decoder_ = Check(model::Decoder::Create(*weights_, *backend_));
  stream_ = Check(backend_->NewStream());
  cache_ = Check(cache::PagedKvCache::Create({.layers = tiny.config.layers,
                                              .kv_heads = tiny.config.kv_heads,
                                              .head_dim = tiny.config.head_dim,
                                              .block_size = 8,
                                              .block_count = 200,
                                              .dtype = DType::kF32},
                                             *backend_));
  rows_ = std::make_unique<executor::TokenBatchAttention>(
      *cache_, *backend_, communicator_,
      1.0f / std::sqrt(static_cast<float>(tiny.config.head_dim)));
}

executor::PrefillDeps TinyEngine::Context(bool overlap) {
  return {.decoder = *decoder_,
          .weights = *weights_,
          .cache = *cache_,
          .backend = *backend_,
          .communicator = communicator_,
          .overlap_passing = overlap};
}

TinyEngine::PrefillResult TinyEngine::Prefill(const PrefillCase& c, bool with_last_output) {
  PrefillResult result;
  const std::vector<int32_t> document = Text(0, c.document_length);
  auto prefill = Check(StartPrefill(Context(c.overlap), c, document, result.kv, *stream_));
  if (with_last_output) prefill->ComputeLastOutput();
  const int layers = TinyModel::Get().config.layers;
  // In two slices of layers, as a scheduler may run it.
  Check(prefill->RunLayers(0, 1, *stream_));
  Check(prefill->RunLayers(1, layers, *stream_));
  Check(stream_->Synchronize());
  result.plan = prefill->plan();
  const TensorView& hidden = prefill->hidden();
  result.anchor = CopyRows(hidden, 0, prefill->anchor_rows());
  result.document = Collect(*prefill, 0, 0, c.document_length);
  return result;
}

Hidden TinyEngine::Collect(const executor::DocumentPrefill& prefill, size_t document, int64_t begin,
                           int64_t end) {
  const int64_t width = TinyModel::Get().config.hidden_size;
  std::vector<float> all((end - begin) * width, 0.0f);
  for (const HostRows& rows : prefill.hosts(document)) {
    int64_t at = rows.begin;
    for (const TokenSpan& span : prefill.plan(document).hosts[rows.host].local) {
      const Hidden part = CopyRows(prefill.hidden(), at, at + span.length());
      std::copy(part.values.begin(), part.values.end(), all.begin() + (span.begin - begin) * width);
      at += span.length();
    }
  }
  // One rank has the row, all others contribute 0.
  return {end - begin, Reduced(std::move(all), comm::ReduceOp::kSum)};
}

std::vector<Hidden> TinyEngine::PrefillBatch(std::string_view strategy,
                                             const std::vector<BatchDocument>& documents) {
  std::vector<executor::PrefillDocument> batch;
  for (const BatchDocument& d : documents) {
    const int64_t length = static_cast<int64_t>(d.text.size());
    batch.push_back(
        {.plan = Check(MakeShardPlan(
             strategy, {.document_length = length, .cached_length = d.cached, .query_length = 1},
             {.hosts = ranks()})),
         .tokens = d.text,
         .kv = d.kv});
  }
  auto prefill = Check(executor::DocumentPrefill::Start(Context(), std::move(batch), *stream_));
  prefill->ComputeLastOutput();
  Check(prefill->RunLayers(0, 1, *stream_));
  Check(prefill->RunLayers(1, TinyModel::Get().config.layers, *stream_));
  Check(stream_->Synchronize());
  std::vector<Hidden> hidden;
  for (size_t i = 0; i < documents.size(); ++i) {
    hidden.push_back(
        Collect(*prefill, i, documents[i].cached, static_cast<int64_t>(documents[i].text.size())));
  }
  return hidden;
}

absl::Status TinyEngine::TryPrefill(const PrefillCase& c) {
  cache::SequenceKv kv;
  const std::vector<int32_t> document = Text(0, c.document_length);
  auto prefill = StartPrefill(Context(c.overlap), c, document, kv, *stream_);
  cache_->Release(kv);
  return prefill.status();
}

Hidden TinyEngine::RunSpans(const std::vector<executor::BatchTokens>& spans,
                            const std::vector<std::vector<int32_t>>& tokens) {
  std::vector<int32_t> all;
  for (const auto& part : tokens) all.insert(all.end(), part.begin(), part.end());
  const int64_t rows = static_cast<int64_t>(all.size());
  core::Tensor hidden = Check(
      core::Tensor::Create(*backend_, DType::kF32, {rows, TinyModel::Get().config.hidden_size}));
  Check(rows_->Prepare(spans, *stream_));
  Check(decoder_->Embed(all, hidden.view(), *stream_));
  Check(decoder_->RunLayers(0, TinyModel::Get().config.layers, hidden.view(), rows_->positions(),
                            *rows_, *stream_));
  Check(stream_->Synchronize());
  return CopyRows(hidden.view(), 0, rows);
}

Hidden TinyEngine::CopyRows(const TensorView& view, int64_t begin, int64_t end) {
  const int64_t width = view.shape[1];
  Hidden rows{end - begin, std::vector<float>((end - begin) * width)};
  backend_->Copy(view.Rows(begin, end),
                 TensorView::Contiguous(rows.values.data(), DType::kF32, {end - begin, width}),
                 *stream_);
  Check(stream_->Synchronize());
  return rows;
}

std::vector<float> TinyEngine::Reduced(std::vector<float> values, comm::ReduceOp op) {
  const TensorView host =
      TensorView::Contiguous(values.data(), DType::kF32, {static_cast<int64_t>(values.size())});
  const core::Tensor placed = Check(core::Tensor::CopyOf(*backend_, host));
  Check(communicator_.AllReduce(placed.view(), op, *stream_));
  backend_->Copy(placed.view(), host, *stream_);
  Check(stream_->Synchronize());
  return values;
}

bool TinyEngine::EqualOnAllRanks(const std::vector<float>& values) {
  std::vector<float> negated(values.size());
  std::transform(values.begin(), values.end(), negated.begin(), std::negate<float>());
  return Reduced(values, comm::ReduceOp::kMax) == values &&
         Reduced(negated, comm::ReduceOp::kMax) == negated;
}

Hidden Dense(const std::vector<int32_t>& tokens) {
  auto alone = comm::CreateLocalGroup(1, absl::Minutes(1));
  TinyEngine engine(*alone[0]);
  cache::SequenceKv kv;
  // All tokens are query tokens of a sequence without a document.
  return engine.RunSpans({{.kv = &kv, .position = 0, .count = static_cast<int64_t>(tokens.size())}},
                         {tokens});
}

}  // namespace apb::context_parallel
