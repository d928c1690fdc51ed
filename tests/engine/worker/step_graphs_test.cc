// Goal: decode steps that are launched as recorded graphs draw the tokens of steps that are computed
// operation by operation, and are really recorded. Method: two executors on the guarded device, which
// notices host memory and memory that was given back in what it recorded, execute the same plans:
// sequences that grow over the borders of blocks and of buckets, join and leave, prefills, long
// batches of rows and cancelled prefills between (memory moves); on 1 to 4 ranks. StepGraphs alone:
// work that counts how often it is done.
#include "engine/worker/step_graphs.h"

#include <gtest/gtest.h>

#include <random>

#include "engine/parallel/local_communicator.h"
#include "engine/worker/step_executor.h"
#include "tests/engine/attention/tiny_engine.h"
#include "tests/engine/device/guarded_backend.h"
#include "tests/engine/device/staged_communicator.h"
#include "tests/engine/parallel/mpi_main.h"

namespace apb::worker {
namespace {

using attention::Text;
using attention::TinyModel;
using schedule::SequenceId;
using schedule::StepPlan;

const absl::Duration kDeadline = absl::Minutes(1);

kernels::Backend& Device() {
  static kernels::Backend& device = *kernels::CreateGuardedBackend(256 << 20).release();
  return device;
}

parallel::Mesh MakeMesh(int tensor) {
  parallel::MpiRuntime& mpi = parallel::TestRuntime();
  const auto staged = [&](int color) {
    return parallel::StageThroughHost(*mpi.NewCommunicator(kDeadline, color), Device());
  };
  auto all = staged(0);
  if (tensor == 1) return parallel::Mesh(std::move(all));
  auto context = staged(mpi.rank() % tensor);
  return parallel::Mesh(std::move(all), std::move(context), staged(mpi.rank() / tensor));
}

// An executor that records and one that does not.
class Twins {
 public:
  Twins(int tensor, bool sliced) : mesh_{MakeMesh(tensor), MakeMesh(tensor)} {
    const TinyModel& tiny = TinyModel::Get();
    const model::Share share =
        tensor == 1 ? model::Share{} : model::Share{mesh_[0].tensor()->rank(), tensor};
    weights_ = TinyModel::Weights(Device(), share);
    for (int i = 0; i < 2; ++i) {
      executor_[i] = *StepExecutor::Create(*weights_,
                                           {.layers = tiny.config.layers,
                                            .kv_heads = weights_->kv_heads(),
                                            .head_dim = tiny.config.head_dim,
                                            .block_size = 4,
                                            .block_count = 1500,
                                            .dtype = tiny.config.dtype},
                                           Device(), mesh_[i]);
      EXPECT_EQ(executor_[i]->SetSliced(sliced), true);
    }
    executor_[1]->DisableGraphs();
  }

  // What the recording one has launched, of `plan`.
  int64_t Execute(const StepPlan& plan) {
    const int64_t before = kernels::GraphLaunches(Device());
    const auto recorded = executor_[0]->Execute(plan);
    const int64_t launches = kernels::GraphLaunches(Device()) - before;
    const auto plain = executor_[1]->Execute(plan);
    EXPECT_TRUE(recorded.ok()) << recorded.status();
    EXPECT_TRUE(plain.ok()) << plain.status();
    if (!recorded.ok() || !plain.ok()) parallel::MpiRuntime::AbortGroup(1);  // others wait
    EXPECT_EQ(kernels::GraphLaunches(Device()) - before, launches);
    EXPECT_EQ(recorded->tokens.size(), plain->tokens.size());
    for (size_t i = 0; i < recorded->tokens.size(); ++i) {
      EXPECT_EQ(recorded->tokens[i].token, plain->tokens[i].token) << "step " << plan.step;
      EXPECT_NEAR(recorded->tokens[i].logprob, plain->tokens[i].logprob, 1e-3);
    }
    return launches;
  }

 private:
  parallel::Mesh mesh_[2];
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
  spec.compressor = "query_aware";
  spec.hosts = 12;
  spec.sampling.temperature = 0;
  return spec;
}

// Plans of the test: ranks make the same ones, from numbers that are the same everywhere.
class Plans {
 public:
  explicit Plans(uint32_t seed) : rng_(seed) {}

  StepPlan Next() {
    StepPlan plan;
    plan.step = ++step_;
    for (const auto& [id, position] : positions_) {
      plan.rows.push_back({.id = SequenceId{id},
                           .position = position,
                           .tokens = Text(7 * step_ + id, 7 * step_ + id + 1),
                           .sample = true});
    }
    for (auto& [id, position] : positions_) ++position;
    return plan;
  }
  // Its query runs beside the rows of the others.
  void Join(StepPlan& plan, int64_t document, int64_t query) {
    const uint64_t id = ++last_id_;
    plan.admissions.push_back(Spec(id, document, query));
    const schedule::SequenceSpec& spec = plan.admissions.back();
    if (document > 0) plan.prefill.push_back({{spec.id}, 0, TinyModel::Get().config.layers});
    plan.rows.push_back(
        {.id = spec.id, .position = document, .tokens = spec.embedded_query, .sample = true});
    positions_[id] = document + query;
  }
  void Leave(StepPlan& plan) {
    const auto gone = std::next(positions_.begin(), rng_() % positions_.size());
    const SequenceId id{gone->first};
    plan.releases.push_back(id);
    std::erase_if(plan.rows, [&](const auto& span) { return span.id == id; });
    positions_.erase(gone);
  }
  // A prefill that is given up after a layer: long scratch comes and goes.
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

void CheckDecode(int tensor, bool sliced) {
  SCOPED_TRACE(testing::Message() << "tensor=" << tensor << " sliced=" << sliced);
  Twins twins(tensor, sliced);
  Plans plans(5);
  int64_t launches = 0;
  StepPlan first = plans.Next();
  for (const int64_t document : {0, 90, 400}) plans.Join(first, document, 4);
  launches += twins.Execute(first);
  EXPECT_EQ(launches, 0);
  for (int round = 0; round < 6; ++round) {
    // Over several borders of blocks of 4 slots; with 3 sequences of 500 tokens over one of a bucket.
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
  // Of some seventy steps a key's first is not recorded, and steps with a query are not.
  EXPECT_GE(launches, 35);
  EXPECT_GE(plans.running(), 4u);
}

TEST(StepGraphs, DecodeDrawsTheSameTokens) {
  const int ranks = parallel::TestRuntime().size();
  for (const int tensor : {1, 2}) {
    if (ranks % tensor != 0) continue;
    for (const bool sliced : {false, true}) {
      if (!sliced || ranks / tensor > 1) CheckDecode(tensor, sliced);
    }
  }
}

TEST(StepGraphs, Buckets) {
  const int64_t rows[] = {1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 128};
  const int64_t padded[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 128};
  for (size_t i = 0; i < std::size(rows); ++i)
    EXPECT_EQ(StepGraphs::RowBucket(rows[i]), padded[i]) << rows[i];
  EXPECT_EQ(StepGraphs::SlotBucket(1), 512);
  EXPECT_EQ(StepGraphs::SlotBucket(1024), 1024);
  EXPECT_EQ(StepGraphs::SlotBucket(1025), 2048);
}

// One rank; the work adds 1 to a number of the device.
class StepGraphsOfWork : public testing::Test {
 protected:
  StepGraphsOfWork() {
    memory_ = *Device().Allocate(64);
    one_memory_ = *Device().Allocate(64);
    Set(memory_, 0);
    Set(one_memory_, 1);
  }
  static kernels::TensorView View(const kernels::Buffer& buffer) {
    return kernels::TensorView::Contiguous(buffer.data(), kernels::DType::kF32, {1, 1});
  }
  void Set(const kernels::Buffer& buffer, float value) {
    Device().Copy(kernels::TensorView::Contiguous(&value, kernels::DType::kF32, {1, 1}),
                  View(buffer), *stream_);
  }
  float Value() {
    float value = -1;
    Device().Copy(View(memory_),
                  kernels::TensorView::Contiguous(&value, kernels::DType::kF32, {1, 1}), *stream_);
    EXPECT_TRUE(stream_->Synchronize().ok()) << stream_->Synchronize();
    return value;
  }
  void Run(StepGraphs::Key key = {.rows = 1, .total_slots = 512}) {
    const absl::Status status = graphs_.Run(
        key, [this] { return moves_; }, *stream_,
        [this] {
          ++calls_;
          Device().Accumulate(View(one_memory_), View(memory_), *stream_);
          return result_;
        });
    EXPECT_TRUE(status.ok()) << status;
  }

  parallel::Mesh mesh_{std::move(parallel::CreateLocalGroup(1, kDeadline)[0])};
  std::unique_ptr<kernels::Stream> stream_ = *Device().NewStream();
  kernels::Buffer memory_, one_memory_;
  StepGraphs graphs_{Device(), mesh_};
  int64_t moves_ = 0, calls_ = 0;
  absl::Status result_;
};

TEST_F(StepGraphsOfWork, IsDoneThenRecordedThenLaunched) {
  for (int i = 1; i <= 5; ++i) {
    Run();
    EXPECT_EQ(Value(), static_cast<float>(i));
    EXPECT_EQ(calls_, std::min(i, 2));
  }
  moves_ = 1;  // as if its memory were elsewhere now
  Run();
  EXPECT_EQ(calls_, 3);
  Run();
  EXPECT_EQ(calls_, 3);
  EXPECT_EQ(Value(), 7.0f);
}

TEST_F(StepGraphsOfWork, KeepsTheGraphsThatAreUsed) {
  for (int64_t rows = 1; rows <= 100; ++rows) {
    for (int i = 0; i < 2; ++i) Run({.rows = rows, .total_slots = 512});
    Run();  // stays, while others go
  }
  EXPECT_EQ(calls_, 200);
  Run({.rows = 100, .total_slots = 512});
  EXPECT_EQ(calls_, 200);
  Run({.rows = 2, .total_slots = 512});  // was given up: recorded again, not done
  EXPECT_EQ(calls_, 201);
  EXPECT_EQ(Value(), 302.0f);
}

TEST_F(StepGraphsOfWork, GoesOnWithoutWhenARecordingFails) {
  Run();
  graphs_
      .Run(
          {.rows = 1, .total_slots = 512}, [this] { return moves_; }, *stream_,
          [this] {
            // Fails where it is recorded, as to synchronize does on a device.
            const absl::Status status = stream_->Synchronize();
            if (status.ok()) Device().Accumulate(View(one_memory_), View(memory_), *stream_);
            return status;
          })
      .IgnoreError();
  EXPECT_EQ(Value(), 2.0f);
  EXPECT_FALSE(graphs_.enabled());
}

TEST(GuardedRecording, NoticesHostMemoryAndMemoryThatWasGivenBack) {
  auto stream = *Device().NewStream();
  kernels::Buffer a = *Device().Allocate(64), b = *Device().Allocate(64);
  float host = 0;
  const auto view = [](void* data) {
    return kernels::TensorView::Contiguous(data, kernels::DType::kF32, {1, 1});
  };
  EXPECT_FALSE(Device()
                   .Record(*stream,
                           [&] {
                             Device().Copy(view(&host), view(a.data()), *stream);
                             return absl::OkStatus();
                           })
                   .ok());
  auto graph = Device().Record(*stream, [&] {
    Device().Copy(view(a.data()), view(b.data()), *stream);
    return absl::OkStatus();
  });
  ASSERT_TRUE(graph.ok()) << graph.status();
  (*graph)->Launch(*stream);
  EXPECT_TRUE(stream->Synchronize().ok());
  a = kernels::Buffer();
  a = *Device().Allocate(64);  // the same place, most likely
  (*graph)->Launch(*stream);
  EXPECT_FALSE(stream->Synchronize().ok());
}

}  // namespace
}  // namespace apb::worker
