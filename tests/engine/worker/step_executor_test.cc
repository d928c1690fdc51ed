// Goal: a group of ranks executes plans as the scheduler means them: the answers of one rank,
// blocks back within one step of a cancellation, none lost over 10,000 requests. Method: scheduler
// and executor on rank 0, executors on the others, plans sent by MPI as in apb-worker; a tiny
// model.
#include "engine/worker/step_executor.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <random>
#include <set>

#include "engine/parallel/local_communicator.h"
#include "engine/parallel/mesh.h"
#include "tests/engine/attention/tiny_engine.h"
#include "tests/engine/device/guarded_backend.h"
#include "tests/engine/device/staged_communicator.h"
#include "tests/engine/parallel/mpi_main.h"

namespace apb::worker {
namespace {

using attention::Text;
using attention::TinyModel;
using schedule::EndReason;
using schedule::Event;
using schedule::Request;
using schedule::SequenceId;
using schedule::StepPlan;

constexpr int64_t kBlockSize = 4;
constexpr int kHosts = 12;  // on 1, 2, 3 or 4 ranks
const absl::Duration kDeadline = absl::Minutes(1);

// How a group divides its work, and where it does it.
struct Division {
  int tensor = 1;
  bool sliced = false;
  bool device = false;  // one that host code cannot touch
};

kernels::Backend& BackendOf(const Division& division) {
  // Never destroyed: tests keep weights in them.
  static kernels::Backend& cpu =
      *kernels::CreateCpuBackend({.threads = 1, .force_isa = ""})->release();
  static kernels::Backend& device = *kernels::CreateGuardedBackend(64 << 20).release();
  return division.device ? device : cpu;
}

parallel::Mesh MakeMesh(const Division& division) {
  parallel::MpiRuntime& mpi = parallel::TestRuntime();
  const auto communicator = [&](int color) {
    auto made = *mpi.NewCommunicator(kDeadline, color);
    return division.device ? parallel::StageThroughHost(std::move(made), BackendOf(division))
                           : std::move(made);
  };
  auto all = communicator(0);
  if (division.tensor == 1) return parallel::Mesh(std::move(all));
  auto context = communicator(mpi.rank() % division.tensor);
  return parallel::Mesh(std::move(all), std::move(context),
                        communicator(mpi.rank() / division.tensor));
}

std::unique_ptr<StepExecutor> MakeExecutor(const parallel::Mesh& mesh, int64_t blocks,
                                           const Division& division) {
  const TinyModel& tiny = TinyModel::Get();
  model::Share share;
  if (const parallel::Communicator* tensor = mesh.tensor())
    share = {tensor->rank(), tensor->size()};
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
  // One rank, and groups with as many ranks as heads at most, can.
  EXPECT_EQ((*executor)->SetSliced(division.sliced), !division.sliced || mesh.context().size() > 1);
  return *std::move(executor);
}

parallel::Mesh OneRank() {
  return parallel::Mesh(std::move(parallel::CreateLocalGroup(1, kDeadline)[0]));
}

// Rank 0's view of a group: over MPI, or of one rank without it.
class Group {
 public:
  Group(const parallel::Mesh& mesh, int64_t blocks, bool prefix_cache = false,
        const Division& division = {})
      : ranks_(mesh.all().size()),
        tensor_(mesh.tensor() == nullptr ? 1 : mesh.tensor()->size()),
        executor_(MakeExecutor(mesh, blocks, division)),
        scheduler_({.ranks = mesh.context().size(),
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
                    // So slow that what is sent decides which ring goes over a prefix.
                    .speed = {.link_bytes_per_second = 1e4, .link_latency_seconds = 0},
                    .ring_from = 24,
                    .prefill_batch_tokens = 150,
                    .prefix_cache = prefix_cache,
                    .max_batch_rows = 24,
                    .max_waiting = 100000,
                    // A slice is one layer: room for a cancellation.
                    .slice_seconds_busy = 1e-9,
                    .slice_seconds_idle = 1e-9}) {}

  StepPlan Step() {
    StepPlan plan = scheduler_.NextStep(absl::Now());
    plan.collect_stats = true;
    Send(plan);
    auto result = executor_->Execute(plan);
    EXPECT_TRUE(result.ok()) << result.status();
    if (!result.ok()) parallel::MpiRuntime::AbortGroup(1);  // the others wait for us
    used_ = {executor_->pool().used_count()};
    if (ranks_ > 1) {
      const auto all = parallel::TestRuntime().GatherToLeader("", kDeadline);
      for (size_t r = 1; r < all->size(); ++r) used_.push_back(std::stoll((*all)[r]));
    }
    // What the scheduler counts is enough: an executor never runs out of blocks in a step.
    for (size_t r = 0; r < used_.size(); ++r) {
      const int context = static_cast<int>(r) / tensor_;
      EXPECT_LE(used_[r], scheduler_.used_blocks(context) + scheduler_.cached_blocks(context));
    }
    for (const schedule::PrefillSlice& slice : plan.prefill) {
      most_together = std::max(most_together, slice.ids.size());
      for (const SequenceId id : slice.ids) prefills.insert(id);
    }
    for (const schedule::SequenceSpec& spec : plan.admissions) {
      if (!spec.prefix_strategy.empty()) prefix_strategies.insert(spec.prefix_strategy);
    }
    scheduler_.Complete(plan, *result, absl::Now());
    for (Event& event : scheduler_.TakeEvents()) {
      if (event.kind == Event::Kind::kToken) tokens[event.id].push_back(event.token.token);
      if (event.kind == Event::Kind::kEnd) {
        EXPECT_TRUE(ends.emplace(event.id, event).second) << "ended twice";
      }
    }
    return plan;
  }
  void RunUntilIdle() {
    Run();
    scheduler_.ForgetPrefixes();
    Step();
    ExpectEmpty();
  }
  void Run() {
    while (!scheduler_.idle()) Step();
  }
  void ExpectEmpty() const {
    EXPECT_EQ(std::accumulate(used_.begin(), used_.end(), int64_t{0}), 0);
    EXPECT_EQ(executor_->sequences(), 0u);
  }
  void Submit(Request request) { scheduler_.Submit(std::move(request), absl::Now()); }
  void Cancel(uint64_t id) { scheduler_.Cancel(SequenceId{id}, absl::Now()); }
  void Shutdown() {
    StepPlan last;
    last.shutdown = true;
    Send(last);
  }
  const schedule::Scheduler& scheduler() const { return scheduler_; }
  const std::vector<int64_t>& used() const { return used_; }  // blocks by rank, after the last step

  std::map<SequenceId, std::vector<int32_t>> tokens;
  std::map<SequenceId, Event> ends;
  size_t most_together = 0;                 // sequences in one prefill
  std::set<SequenceId> prefills;            // sequences that had one
  std::set<std::string> prefix_strategies;  // of prefills behind a prefix

 private:
  void Send(const StepPlan& plan) {
    if (ranks_ == 1) return;
    const absl::Status sent =
        parallel::TestRuntime().SendPlan(schedule::EncodeStepPlan(plan), kDeadline);
    EXPECT_TRUE(sent.ok()) << sent;
  }
  const int ranks_, tensor_;
  std::unique_ptr<StepExecutor> executor_;
  schedule::Scheduler scheduler_;
  std::vector<int64_t> used_;
};

void Follow(const parallel::Mesh& mesh, int64_t blocks, const Division& division) {
  auto executor = MakeExecutor(mesh, blocks, division);
  while (true) {
    auto bytes = parallel::TestRuntime().ReceivePlan(kDeadline);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    auto plan = schedule::DecodeStepPlan(*bytes);
    ASSERT_TRUE(plan.ok()) << plan.status();
    auto result = executor->Execute(*plan);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(result->tokens.empty());
    if (plan->shutdown) break;
    const std::string used = std::to_string(executor->pool().used_count());
    ASSERT_TRUE(parallel::TestRuntime().GatherToLeader(used, kDeadline).ok());
  }
  EXPECT_EQ(executor->sequences(), 0u);
  EXPECT_EQ(executor->pool().used_count(), 0);
}

// Every rank calls it; `lead` runs on rank 0.
void RunGroup(int64_t blocks, const std::function<void(Group&)>& lead, bool prefix_cache = false,
              const Division& division = {}) {
  const parallel::Mesh mesh = MakeMesh(division);
  if (parallel::TestRuntime().rank() > 0) return Follow(mesh, blocks, division);
  Group group(mesh, blocks, prefix_cache, division);
  lead(group);
  group.Shutdown();
}

Request Make(uint64_t id, int64_t document, int64_t query, int32_t max_tokens) {
  Request request;
  schedule::SequenceSpec& spec = request.spec;
  spec.id = SequenceId{id};
  spec.tokens = Text(1000 * id, 1000 * id + document + query);
  spec.query_begin = document;
  spec.embedded_query.assign(spec.tokens.begin() + document, spec.tokens.end());
  spec.strategy = id % 3 == 0 ? "full" : id % 3 == 1 ? "apb" : "star";
  spec.compressor = id % 2 == 0 ? "retaining_heads" : "query_aware";
  spec.hosts = spec.strategy == "full" ? 1 : kHosts;
  spec.sampling.temperature = 0;
  spec.sampling.max_tokens = max_tokens;
  return request;
}

TEST(StepExecutor, AnswersAsOneRank) {
  constexpr int64_t kBlocks = 200;
  const int ranks = parallel::TestRuntime().size();
  const auto submit = [ranks](Group& group) {
    uint64_t id = 1;
    for (const int64_t document : {0, 1, 30, 61, 90, 127}) {
      for (const int64_t query : {1, 7, 30}) {
        Request request = Make(id++, document, query, 6);
        request.balanced = document % 2 == 1;  // of those with apb
        group.Submit(std::move(request));
      }
    }
    for (const char* strategy : {"ring_kv", "ring_q", "token_ring", "ulysses"}) {
      if (ranks == 3 && std::string_view(strategy) == "ulysses") continue;  // has no even share
      Request request = Make(id++, 77, 5, 6);
      request.spec.strategy = strategy;
      request.spec.hosts = 0;
      request.spec.compressor.clear();
      group.Submit(std::move(request));
    }
    group.RunUntilIdle();
  };
  for (const Division& division :
       {Division{1, false}, Division{1, true}, Division{2, false}, Division{2, true},
        Division{1, false, /*device=*/true}, Division{2, true, /*device=*/true}}) {
    if (ranks % division.tensor != 0 || (division.sliced && ranks / division.tensor == 1)) continue;
    RunGroup(
        kBlocks,
        [&](Group& group) {
          submit(group);
          const parallel::Mesh alone = OneRank();
          Group single(alone, 2 * kBlocks);
          submit(single);
          EXPECT_EQ(group.tokens.size(), single.tokens.size());
          for (const auto& [id, tokens] : group.tokens) {
            EXPECT_EQ(tokens, single.tokens[id])
                << static_cast<uint64_t>(id) << " tensor=" << division.tensor
                << " sliced=" << division.sliced << " device=" << division.device;
          }
          for (const auto& [id, end] : group.ends) EXPECT_EQ(end.reason, EndReason::kLength);
        },
        /*prefix_cache=*/false, division);
  }
}

// Conversations whose turns come in random order, up to three at a time.
struct Turn {
  std::vector<int32_t> prompt, answer;
  int64_t known = 0,
          cached = 0;  // tokens of the conversation before, and those that were found again
  bool is_long = false;
};
std::vector<std::vector<Turn>> Converse(Group& group, bool exact, uint32_t seed) {
  constexpr int kConversations = 8, kTurns = 5;
  std::mt19937 rng(seed);
  std::vector<int> order;
  for (int c = 0; c < kConversations; ++c) order.insert(order.end(), kTurns, c);
  std::shuffle(order.begin(), order.end(), rng);
  std::vector<std::vector<Turn>> all(kConversations);
  std::vector<std::vector<int32_t>> history(kConversations);
  std::map<int, uint64_t> open;  // conversation -> request
  uint64_t next = 1;
  const auto finish = [&] {
    group.Run();
    for (const auto& [c, id] : open) {
      Turn& turn = all[c].back();
      turn.answer = group.tokens.at(SequenceId{id});
      turn.cached = group.ends.at(SequenceId{id}).cached_tokens;
      history[c] = turn.prompt;
      history[c].insert(history[c].end(), turn.answer.begin(), turn.answer.end());
    }
    open.clear();
  };
  for (const int c : order) {
    if (open.contains(c) || open.size() == 3) finish();
    Turn& turn = all[c].emplace_back();
    turn.known = static_cast<int64_t>(history[c].size());
    turn.prompt = history[c].empty() ? Text(1000 * c, 1000 * c + 70 + 9 * c) : history[c];
    const int64_t query = 3 + static_cast<int64_t>(rng() % 7), at = 500 * next;
    // Every second turn brings a document, of any length.
    const int64_t document = turn.known > 0 && rng() % 2 == 0 ? 24 + rng() % 60 : 0;
    turn.is_long = document > 0;
    const std::vector<int32_t> more = Text(at + 100, at + 100 + document),
                               question = Text(at, at + query);
    turn.prompt.insert(turn.prompt.end(), more.begin(), more.end());
    turn.prompt.insert(turn.prompt.end(), question.begin(), question.end());
    Request request = Make(next, static_cast<int64_t>(turn.prompt.size()) - query, query, 4);
    request.spec.tokens = turn.prompt;
    request.spec.embedded_query = question;
    constexpr const char* kExact[] = {"full", "ring_kv", "ring_q", "token_ring", "auto"};
    request.spec.strategy = exact ? kExact[c % 5] : "apb";
    request.exact = exact;
    request.spec.compressor = exact ? "" : "query_aware";
    request.spec.hosts = exact ? 0 : kHosts;
    open[c] = next++;
    group.Submit(std::move(request));
  }
  finish();
  return all;
}

TEST(StepExecutor, FollowUpTurnsAreLikeFromScratch) {
  struct Case {
    int64_t blocks;  // room for all; or for few, so that they are evicted
    bool device;
  };
  std::set<std::string> prefix_strategies;
  for (const auto& [blocks, device] : {Case{2000, false}, Case{150, false}, Case{2000, true}}) {
    RunGroup(blocks,
             [&, blocks = blocks](Group& group) {
               const auto turns = Converse(group, /*exact=*/true, 3);
               int64_t found = 0, found_long = 0;
               for (const auto& conversation : turns) {
                 for (const Turn& turn : conversation) {
                   found += turn.cached > 0;
                   found_long += turn.cached > 0 && turn.is_long;
                   if (blocks == 2000 && turn.known > 0) {
                     EXPECT_GE(turn.cached, turn.known - 1);
                   }
                   // Alone, on one rank, with nothing cached.
                   const parallel::Mesh alone = OneRank();
                   Group single(alone, 500);
                   Request request = Make(3, static_cast<int64_t>(turn.prompt.size()) - 1, 1, 4);
                   request.spec.tokens = turn.prompt;
                   single.Submit(std::move(request));
                   single.RunUntilIdle();
                   EXPECT_EQ(turn.answer, single.tokens.at(SequenceId{3}));
                 }
               }
               EXPECT_GT(found, found_long);
               EXPECT_GT(found_long, 2);
               if (blocks == 2000) {
                 EXPECT_GT(group.most_together, 1u);
               }
               prefix_strategies.merge(group.prefix_strategies);
               group.RunUntilIdle();
             },
             /*prefix_cache=*/true, {.device = device});
  }
  if (parallel::TestRuntime().rank() != 0) return;
  EXPECT_EQ(prefix_strategies, parallel::TestRuntime().size() == 1
                                   ? std::set<std::string>{"full"}
                                   : std::set<std::string>({"ring_kv", "ring_q", "token_ring"}));
}

// Prompts that come together, of any length and strategy. Some are cancelled among the layers, and
// their blocks have new owners while the others go on.
TEST(StepExecutor, BatchesOfDocumentsAnswerAsOneRank) {
  for (const int tensor : {1, 2}) {
    if (parallel::TestRuntime().size() % tensor != 0) continue;
    RunGroup(400,
             [&](Group& group) {
               const parallel::Mesh alone = OneRank();
               Group single(alone, 1600);
               const auto submit = [](Group& to, uint64_t id, int64_t document, bool rows_only) {
                 constexpr const char* kExact[] = {"full", "ring_kv", "ring_q", "token_ring"};
                 Request request = Make(id, document, 24, 5);
                 request.spec.compressor.clear();
                 request.spec.hosts = 0;
                 request.spec.strategy = rows_only ? "full" : kExact[id % 4];
                 if (rows_only) request.spec.query_begin = 0;
                 to.Submit(std::move(request));
               };
               const auto length = [](uint64_t id) {
                 return 1 + static_cast<int64_t>(id * 37 % 50);
               };
               for (uint64_t id = 1; id <= 24; ++id) submit(group, id, length(id), false);
               std::set<SequenceId> cancelled;
               for (int step = 0; step < 8; ++step) {
                 const StepPlan plan = group.Step();
                 if (plan.prefill.empty() || plan.prefill[0].layer_begin > 0) continue;
                 cancelled.insert(plan.prefill[0].ids.back());
                 group.Cancel(static_cast<uint64_t>(plan.prefill[0].ids.back()));
                 submit(group, 100 + step, 0, true);  // its rows run in the next step
               }
               EXPECT_GE(cancelled.size(), 2u);
               group.RunUntilIdle();
               for (const auto& [id, tokens] : group.tokens) {
                 const uint64_t number = static_cast<uint64_t>(id);
                 submit(single, number, number < 100 ? length(number) : 0, true);
               }
               single.RunUntilIdle();
               EXPECT_GE(group.most_together, 4u);
               EXPECT_EQ(group.tokens.size(), 24u);
               EXPECT_EQ(group.tokens, single.tokens);
             },
             /*prefix_cache=*/false, {.tensor = tensor});
  }
}

TEST(StepExecutor, FollowUpTurnsAfterApbDoNotDependOnRanks) {
  RunGroup(
      2000,
      [&](Group& group) {
        const parallel::Mesh alone = OneRank();
        Group single(alone, 2000, /*prefix_cache=*/true);
        const auto turns = Converse(group, /*exact=*/false, 4),
                   wanted = Converse(single, /*exact=*/false, 4);
        for (size_t c = 0; c < turns.size(); ++c) {
          for (size_t t = 0; t < turns[c].size(); ++t)
            EXPECT_EQ(turns[c][t].answer, wanted[c][t].answer) << c << " " << t;
          EXPECT_GT(turns[c].back().cached, 64);
        }
        group.RunUntilIdle();
      },
      /*prefix_cache=*/true);
}

TEST(StepExecutor, CancelFreesBlocksWithinOneStep) {
  RunGroup(100, [](Group& group) {
    for (uint64_t id = 1; id <= 3; ++id) {  // apb, star, full
      group.Submit(Make(id, 100, 5, 50));
      const StepPlan first = group.Step();
      ASSERT_EQ(first.prefill.size(), 1u);
      EXPECT_LT(first.prefill[0].layer_end, TinyModel::Get().config.layers);  // in the middle
      EXPECT_GT(group.used()[0], 0);
      group.Cancel(id);
      group.Step();
      group.ExpectEmpty();
      EXPECT_EQ(group.ends.at(SequenceId{id}).reason, EndReason::kCancelled);
    }
    // While it decodes, beside another.
    group.Submit(Make(4, 40, 5, 50));
    group.Submit(Make(5, 0, 9, 50));
    while (group.tokens[SequenceId{4}].empty() || group.tokens[SequenceId{5}].empty()) group.Step();
    group.Cancel(4);
    group.Cancel(5);
    group.Step();
    group.ExpectEmpty();
  });
}

TEST(StepExecutor, AFailedDrawEndsItsSequenceOnly) {
  RunGroup(100, [](Group& group) {
    Request barred = Make(1, 20, 3, 5);
    barred.spec.sampling.min_tokens = 2;
    barred.spec.sampling.stop_tokens.resize(TinyModel::Get().config.vocab_size);
    std::iota(barred.spec.sampling.stop_tokens.begin(), barred.spec.sampling.stop_tokens.end(), 0);
    group.Submit(barred);
    group.Submit(Make(2, 20, 3, 5));
    group.RunUntilIdle();
    EXPECT_EQ(group.ends.at(SequenceId{1}).reason, EndReason::kFailed);
    EXPECT_EQ(group.ends.at(SequenceId{2}).reason, EndReason::kLength);
    EXPECT_EQ(group.tokens[SequenceId{2}].size(), 5u);
  });
}

TEST(StepExecutor, TenThousandRequestsLeakNothing) {
  // More ranks than cores are slow.
  static const uint64_t kRequests = parallel::TestRuntime().size() > 2 ? 3000 : 10000;
  const int64_t blocks = parallel::TestRuntime().size() > 2 ? 20 : 60;
  RunGroup(blocks, [](Group& group) {  // few: decoding requests are preempted
    std::mt19937 rng(11);
    const auto below = [&](uint64_t n) { return static_cast<int64_t>(rng() % n); };
    uint64_t next = 1;
    int64_t cancelled = 0;
    while (group.ends.size() < kRequests) {
      while (next <= kRequests && group.scheduler().running() + group.scheduler().waiting() < 40) {
        Request request = Make(next++, below(5) == 0 ? below(60) : 0, 1 + below(5), below(8));
        if (below(4) == 0) request.spec.sampling.stop_tokens = {request.spec.tokens[0]};
        group.Submit(std::move(request));
      }
      if (below(4) == 0) group.Cancel(next - 1 - below(std::min<uint64_t>(next - 1, 40)));
      group.Step();
      if (testing::Test::HasFailure()) break;
    }
    group.RunUntilIdle();
    for (const auto& [id, end] : group.ends) cancelled += end.reason == EndReason::kCancelled;
    EXPECT_EQ(group.ends.size(), kRequests);
    EXPECT_GT(cancelled, kRequests / 50);
    EXPECT_GT(group.scheduler().preemptions(), 0);
  });
}

}  // namespace
}  // namespace apb::worker
