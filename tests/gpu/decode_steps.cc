#include "tests/gpu/decode_steps.h"

#include <memory>

#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/executor/step_executor.h"
#include "tests/gpu/solo_communicator.h"

namespace apb::bench {
namespace {

using schedule::SequenceId;
using schedule::StepPlan;

constexpr int64_t kWarmUps = 4, kSteps = 16;  // the first steps are not yet launched as graphs

class Decoding {
 public:
  Decoding(executor::StepExecutor& executor, int32_t vocabulary)
      : executor_(executor), vocabulary_(vocabulary) {}

  absl::Status Begin(int64_t sequences, int64_t depth, int32_t layers) {
    for (int64_t i = 1; i <= sequences; ++i) {
      StepPlan plan;
      schedule::SequenceSpec spec{.id = SequenceId{static_cast<uint64_t>(i)}, .strategy = "full"};
      for (int64_t t = 0; t < depth; ++t)
        spec.tokens.push_back(static_cast<int32_t>((t * 7919 + i) % vocabulary_));
      spec.query_begin = depth - 1;
      spec.sampling.temperature = 0;
      if (depth > 1) plan.prefill.push_back({{spec.id}, 0, layers});
      plan.spans.push_back({spec.id, depth - 1, {spec.tokens.back()}, /*sample=*/true});
      plan.admissions.push_back(std::move(spec));
      APB_RETURN_IF_ERROR(Execute(plan));
    }
    sequences_ = sequences;
    position_ = depth;
    return absl::OkStatus();
  }

  absl::StatusOr<double> SecondsOfStep() {
    absl::Time start;
    for (int64_t step = -kWarmUps; step < kSteps; ++step, ++position_) {
      if (step == 0) start = absl::Now();
      StepPlan plan;
      for (int64_t i = 1; i <= sequences_; ++i) {
        const int32_t token = static_cast<int32_t>((position_ * 7919 + i) % vocabulary_);
        plan.spans.push_back({SequenceId{static_cast<uint64_t>(i)}, position_, {token}, true});
      }
      APB_RETURN_IF_ERROR(Execute(plan));
    }
    return absl::ToDoubleSeconds(absl::Now() - start) / kSteps;
  }

 private:
  absl::Status Execute(const StepPlan& plan) {
    APB_ASSIGN_OR_RETURN(const schedule::StepResult result, executor_.Execute(plan));
    return result.failures.empty() ? absl::OkStatus() : result.failures[0].status;
  }

  executor::StepExecutor& executor_;
  const int32_t vocabulary_;
  int64_t sequences_ = 0, position_ = 0;
};

double WeightBytes(const model::Weights& weights) {
  const model::ModelConfig& c = weights.config();
  const double q = static_cast<double>(c.query_heads * c.head_dim),
               kv = static_cast<double>(c.kv_heads * c.head_dim),
               hidden = static_cast<double>(c.hidden_size), mlp = static_cast<double>(c.mlp_size);
  const double numbers =
      c.layers * hidden * (2 * q + 2 * kv + 3 * mlp) + hidden * static_cast<double>(c.vocab_size);
  return numbers * static_cast<double>(kernels::SizeOf(c.dtype));
}

}  // namespace

absl::StatusOr<DecodeSteps> MeasureDecodeSteps(const model::Weights& weights,
                                               kernels::Backend& backend, int64_t sequences,
                                               int64_t depth) {
  const model::ModelConfig& c = weights.config();
  comm::Mesh mesh(std::make_unique<SoloCommunicator>(0, 1, backend));
  constexpr int64_t kBlock = 32;
  const int64_t most = depth + 2 * (kWarmUps + kSteps);
  const cache::KvCacheShape shape{.layers = c.layers,
                                  .kv_heads = c.kv_heads,
                                  .head_dim = c.head_dim,
                                  .block_size = kBlock,
                                  .block_count = sequences * (most / kBlock + 1),
                                  .dtype = c.dtype};
  APB_ASSIGN_OR_RETURN(const auto executor,
                       executor::StepExecutor::Create(weights, shape, backend, mesh));
  Decoding decoding(*executor, static_cast<int32_t>(c.vocab_size));
  APB_RETURN_IF_ERROR(decoding.Begin(sequences, depth, c.layers));
  DecodeSteps steps;
  steps.bytes = WeightBytes(weights) +
                static_cast<double>(sequences * depth * (shape.bytes_per_block() / kBlock));
  if (executor->uses_graphs()) {
    APB_ASSIGN_OR_RETURN(steps.recorded_seconds, decoding.SecondsOfStep());
    if (!executor->uses_graphs()) return absl::InternalError("a decode step could not be recorded");
    executor->DisableGraphs();
  }
  APB_ASSIGN_OR_RETURN(steps.plain_seconds, decoding.SecondsOfStep());
  return steps;
}

}  // namespace apb::bench
