#include "tests/engine/executor/decode_contract.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <random>

#include "engine/executor/step_executor.h"
#include "tests/engine/context_parallel/tiny_engine.h"

namespace apb::executor {
namespace {

using context_parallel::Text;
using context_parallel::TinyModel;
using schedule::SequenceId;
using schedule::StepPlan;

// An executor that records graphs, and one that does not.
class Twins {
 public:
  explicit Twins(const DecodeCase& c)
      : case_(c), mesh_{c.make_mesh("recorded"), c.make_mesh("plain")} {
    const TinyModel& tiny = TinyModel::Get();
    const comm::Communicator* tensor = mesh_[0].tensor();
    const model::Share share =
        tensor == nullptr ? model::Share{} : model::Share{tensor->rank(), tensor->size()};
    weights_ = TinyModel::Weights(c.device, share);
    for (int i = 0; i < 2; ++i) {
      executor_[i] = *StepExecutor::Create(*weights_,
                                           {.layers = tiny.config.layers,
                                            .kv_heads = weights_->kv_heads(),
                                            .head_dim = tiny.config.head_dim,
                                            .block_size = 4,
                                            .block_count = 1500,
                                            .dtype = tiny.config.dtype},
                                           c.device, mesh_[i]);
      EXPECT_TRUE(executor_[i]->SetSliced(c.sliced));
    }
    EXPECT_TRUE(executor_[0]->uses_graphs());
    executor_[1]->DisableGraphs();
  }

  // Executes `plan` on both. The number of graphs that the recording one has launched.
  int64_t Execute(const StepPlan& plan) {
    const int64_t before = Launches();
    const auto recorded = executor_[0]->Execute(plan);
    const int64_t launches = Launches() - before;
    const auto plain = executor_[1]->Execute(plan);
    EXPECT_TRUE(recorded.ok()) << recorded.status();
    EXPECT_TRUE(plain.ok()) << plain.status();
    if (!recorded.ok() || !plain.ok()) std::_Exit(1);  // the other ranks wait for this one
    EXPECT_EQ(Launches() - before, launches);
    EXPECT_EQ(recorded->tokens.size(), plain->tokens.size());
    for (size_t i = 0; i < recorded->tokens.size(); ++i) {
      EXPECT_EQ(recorded->tokens[i].sampled.token, plain->tokens[i].sampled.token)
          << "step " << plan.step;
      EXPECT_NEAR(recorded->tokens[i].sampled.logprob, plain->tokens[i].sampled.logprob, 1e-3);
    }
    return launches;
  }

  // Whether no recording has failed.
  bool uses_graphs() const { return executor_[0]->uses_graphs(); }

 private:
  int64_t Launches() const { return case_.launches ? case_.launches() : 0; }

  const DecodeCase& case_;
  comm::Mesh mesh_[2];
  std::unique_ptr<model::Weights> weights_;
  std::unique_ptr<StepExecutor> executor_[2];
};

schedule::SequenceSpec Spec(uint64_t id, int64_t document, int64_t query) {
  schedule::SequenceSpec spec;
  spec.id = SequenceId{id};
  spec.tokens = Text(1000 * id, 1000 * id + document + query);
  spec.query_begin = document;
  spec.embedded_query.assign(spec.tokens.begin() + document, spec.tokens.end());
  spec.strategy = "apb";
  spec.strategy_options.compressor = "query_aware";
  spec.strategy_options.hosts = 12;
  spec.sampling.temperature = 0;
  return spec;
}

// The plans of the test. All ranks make the same plans, because the random numbers are seeded
// alike.
class Plans {
 public:
  explicit Plans(uint32_t seed) : rng_(seed) {}

  StepPlan Next() {
    StepPlan plan;
    plan.step = ++step_;
    for (const auto& [id, position] : positions_) {
      plan.spans.push_back({.id = SequenceId{id},
                            .position = position,
                            .tokens = Text(7 * step_ + id, 7 * step_ + id + 1),
                            .sample = true});
    }
    for (auto& [id, position] : positions_) ++position;
    return plan;
  }
  // Admits a sequence; its query runs beside the tokens of the others.
  void Join(StepPlan& plan, int64_t document, int64_t query) {
    const uint64_t id = ++last_id_;
    plan.admissions.push_back(Spec(id, document, query));
    const schedule::SequenceSpec& spec = plan.admissions.back();
    if (document > 0) plan.prefill.push_back({{spec.id}, 0, TinyModel::Get().config.layers});
    plan.spans.push_back(
        {.id = spec.id, .position = document, .tokens = spec.embedded_query, .sample = true});
    positions_[id] = document + query;
  }
  void Leave(StepPlan& plan) {
    const auto gone = std::next(positions_.begin(), rng_() % positions_.size());
    const SequenceId id{gone->first};
    plan.releases.push_back(id);
    std::erase_if(plan.spans, [&](const auto& span) { return span.id == id; });
    positions_.erase(gone);
  }
  // Begins a prefill that is cancelled after one layer, so that long scratch memory comes and goes.
  StepPlan BeginPrefill(int64_t document) {
    StepPlan plan = Next();
    cancelled_ = SequenceId{++last_id_};
    plan.admissions.push_back(Spec(last_id_, document, 3));
    plan.prefill.push_back({{cancelled_}, 0, 1});
    return plan;
  }
  StepPlan CancelPrefill() {
    StepPlan plan = Next();
    plan.releases.push_back(cancelled_);
    return plan;
  }
  size_t running() const { return positions_.size(); }
  int64_t below(uint32_t n) { return static_cast<int64_t>(rng_() % n); }

 private:
  std::mt19937 rng_;
  uint64_t step_ = 0, last_id_ = 0;
  std::map<uint64_t, int64_t> positions_;
  SequenceId cancelled_{};
};

}  // namespace

void CheckRecordedDecode(const DecodeCase& c) {
  Twins twins(c);
  Plans plans(5);
  int64_t launches = 0;
  StepPlan first = plans.Next();
  for (const int64_t document : {0, 90, 400}) plans.Join(first, document, 4);
  launches += twins.Execute(first);
  EXPECT_EQ(launches, 0);
  for (int round = 0; round < 6; ++round) {
    // Crosses several borders of blocks of 4 slots and, with 3 sequences of 500 tokens, one border
    // of a bucket.
    for (int i = 0; i < 10; ++i) launches += twins.Execute(plans.Next());
    StepPlan change = plans.Next();
    if (round % 3 == 2) plans.Leave(change);
    if (round % 3 < 2) plans.Join(change, plans.below(2) * plans.below(150), 1 + plans.below(40));
    launches += twins.Execute(change);
    if (round % 4 == 1) {
      launches += twins.Execute(plans.BeginPrefill(200));
      launches += twins.Execute(plans.CancelPrefill());
    }
  }
  // There are about seventy steps. The first step of a key and steps with a query are not recorded.
  if (c.launches) {
    EXPECT_GE(launches, 35);
  }
  EXPECT_TRUE(twins.uses_graphs());
  EXPECT_GE(plans.running(), 4u);
}

}  // namespace apb::executor
