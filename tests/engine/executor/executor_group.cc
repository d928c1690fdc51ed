#include "tests/engine/executor/executor_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/comm/local_communicator.h"
#include "tests/engine/comm/mpi_main.h"
#include "tests/engine/context_parallel/tiny_engine.h"
#include "tests/engine/device/guarded_backend.h"
#include "tests/engine/device/staged_communicator.h"

namespace apb::executor {
namespace {

using context_parallel::Text;
using context_parallel::TinyModel;
using schedule::Request;
using schedule::SequenceId;
using schedule::StepPlan;

constexpr int64_t kBlockSize = 4;
const absl::Duration kDeadline = absl::Minutes(1);

kernels::Backend& BackendOf(const Division& division) {
  // Never destroyed, because static weights live in their memory.
  static kernels::Backend& cpu =
      *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""})->release();
  static kernels::Backend& device = *kernels::CreateGuardedBackend(64 << 20).release();
  return division.device ? device : cpu;
}

comm::Mesh MakeMesh(const Division& division) {
  comm::MpiRuntime& mpi = comm::TestRuntime();
  const auto communicator = [&](int color) {
    auto made = *mpi.NewCommunicator(kDeadline, color);
    return division.device ? comm::StageThroughHost(std::move(made), BackendOf(division))
                           : std::move(made);
  };
  auto all = communicator(0);
  if (division.tensor == 1) return comm::Mesh(std::move(all));
  auto context = communicator(mpi.rank() % division.tensor);
  return comm::Mesh(std::move(all), std::move(context), communicator(mpi.rank() / division.tensor));
}

std::unique_ptr<StepExecutor> MakeExecutor(const comm::Mesh& mesh, int64_t blocks,
                                           const Division& division) {
  const TinyModel& tiny = TinyModel::Get();
  model::Share share;
  if (const comm::Communicator* tensor = mesh.tensor()) share = {tensor->rank(), tensor->size()};
  static std::map<std::pair<int, bool>, std::unique_ptr<model::Weights>> all_weights;
  auto& weights = all_weights[{share.count, division.device}];
  if (weights == nullptr) weights = TinyModel::Weights(BackendOf(division), share);
  auto executor = StepExecutor::Create(*weights,
                                       {.layers = tiny.config.layers,
                                        .kv_heads = weights->kv_heads(),
                                        .head_dim = tiny.config.head_dim,
                                        .block_size = kBlockSize,
                                        .block_count = blocks,
                                        .dtype = tiny.config.dtype},
                                       BackendOf(division), mesh);
  EXPECT_TRUE(executor.ok()) << executor.status();
  // Sliced products need several ranks, and at most as many as there are heads.
  EXPECT_EQ((*executor)->SetSliced(division.sliced),
            !division.sliced || mesh.cp_group().size() > 1);
  return *std::move(executor);
}

void Follow(const comm::Mesh& mesh, int64_t blocks, const Division& division) {
  auto executor = MakeExecutor(mesh, blocks, division);
  while (true) {
    auto bytes = comm::TestRuntime().ReceivePlan(kDeadline);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    auto plan = schedule::DecodeStepPlan(*bytes);
    ASSERT_TRUE(plan.ok()) << plan.status();
    auto result = executor->Execute(*plan);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->tokens.empty());
    if (plan->shutdown) break;
    const std::string used = std::to_string(executor->pool().used_count());
    ASSERT_TRUE(comm::TestRuntime().GatherToLeader(used, kDeadline).ok());
  }
  EXPECT_EQ(executor->sequences(), 0u);
  EXPECT_EQ(executor->pool().used_count(), 0);
}

}  // namespace

comm::Mesh OneRank() { return comm::Mesh(std::move(comm::CreateLocalGroup(1, kDeadline)[0])); }

Group::Group(const comm::Mesh& mesh, int64_t blocks, bool prefix_cache, const Division& division)
    : ranks_(mesh.all().size()),
      tensor_(mesh.tensor() == nullptr ? 1 : mesh.tensor()->size()),
      executor_(MakeExecutor(mesh, blocks, division)),
      scheduler_({.ranks = mesh.cp_group().size(),
                  .default_hosts = kHosts,
                  .block_size = kBlockSize,
                  .blocks_per_rank = blocks,
                  .layers = TinyModel::Get().config.layers,
                  .max_model_len = 700,
                  .vocab_size = TinyModel::Get().config.vocab_size,
                  .has_retaining_heads = true,
                  .model = {.query_heads = TinyModel::Get().config.query_heads / tensor_,
                            .kv_heads = TinyModel::Get().config.kv_heads / tensor_,
                            .element_bytes = 4},
                  // Links so slow that the amount of data sent decides which ring goes over a
                  // prefix.
                  .speed = {.link_bytes_per_second = 1e4, .link_latency_seconds = 0},
                  .ring_from = 24,
                  .prefill_batch_tokens = 150,
                  .prefix_cache = prefix_cache,
                  .max_batch_tokens = 24,
                  .max_waiting = 100000,
                  // A slice is one layer, which leaves room for a cancellation.
                  .slice_seconds_busy = 1e-9,
                  .slice_seconds_idle = 1e-9}) {}

StepPlan Group::Step() {
  StepPlan plan = scheduler_.NextStep(absl::Now());
  plan.collect_stats = true;
  Send(plan);
  auto result = executor_->Execute(plan);
  EXPECT_TRUE(result.ok()) << result.status();
  if (!result.ok()) comm::MpiRuntime::AbortGroup(1);  // the other ranks wait for this one
  used_ = {executor_->pool().used_count()};
  if (ranks_ > 1) {
    const auto all = comm::TestRuntime().GatherToLeader("", kDeadline);
    for (size_t r = 1; r < all->size(); ++r) used_.push_back(std::stoll((*all)[r]));
  }
  // The scheduler's count of blocks suffices: an executor never runs out of blocks in a step.
  for (size_t r = 0; r < used_.size(); ++r) {
    const int context = static_cast<int>(r) / tensor_;
    EXPECT_LE(used_[r], scheduler_.ledger().used(context) + scheduler_.ledger().cached(context));
  }
  for (const schedule::PrefillSlice& slice : plan.prefill)
    most_together = std::max(most_together, slice.ids.size());
  for (const schedule::SequenceSpec& spec : plan.admissions) {
    if (!spec.prefix_strategy.empty()) prefix_strategies.insert(spec.prefix_strategy);
  }
  scheduler_.Complete(plan, *result, absl::Now());
  for (const schedule::Event& event : scheduler_.TakeEvents()) {
    if (const auto* token = std::get_if<schedule::TokenEvent>(&event)) {
      tokens[token->id].push_back(token->sampled.token);
    } else if (const auto* end = std::get_if<schedule::EndEvent>(&event)) {
      EXPECT_TRUE(ends.emplace(end->id, *end).second) << "ended twice";
    }
  }
  return plan;
}

void Group::RunUntilIdle() {
  Run();
  scheduler_.ForgetPrefixes();
  Step();
  ExpectEmpty();
}

void Group::Run() {
  while (!scheduler_.idle()) Step();
}

void Group::ExpectEmpty() const {
  EXPECT_EQ(std::accumulate(used_.begin(), used_.end(), int64_t{0}), 0);
  EXPECT_EQ(executor_->sequences(), 0u);
}

void Group::Shutdown() {
  StepPlan last;
  last.shutdown = true;
  Send(last);
}

void Group::Send(const StepPlan& plan) {
  if (ranks_ == 1) return;
  const absl::Status sent = comm::TestRuntime().SendPlan(schedule::EncodeStepPlan(plan), kDeadline);
  EXPECT_TRUE(sent.ok()) << sent;
}

void RunGroup(int64_t blocks, const std::function<void(Group&)>& lead, bool prefix_cache,
              const Division& division) {
  const comm::Mesh mesh = MakeMesh(division);
  if (comm::TestRuntime().rank() > 0) return Follow(mesh, blocks, division);
  Group group(mesh, blocks, prefix_cache, division);
  lead(group);
  group.Shutdown();
}

Request MakeRequest(uint64_t id, int64_t document, int64_t query, int32_t max_tokens) {
  Request request;
  schedule::SequenceSpec& spec = request.spec;
  spec.id = SequenceId{id};
  spec.tokens = Text(1000 * id, 1000 * id + document + query);
  spec.query_begin = document;
  spec.embedded_query.assign(spec.tokens.begin() + document, spec.tokens.end());
  spec.strategy = id % 3 == 0 ? "full" : id % 3 == 1 ? "apb" : "star";
  spec.strategy_options.compressor = id % 2 == 0 ? "retaining_heads" : "query_aware";
  spec.strategy_options.hosts = spec.strategy == "full" ? 1 : kHosts;
  spec.sampling.temperature = 0;
  spec.sampling.max_tokens = max_tokens;
  return request;
}

}  // namespace apb::executor
