// A group as apb-worker makes it, with a tiny model: scheduler and executor on rank 0, executors on
// the other ranks, plans sent over MPI.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/time/time.h"
#include "engine/comm/mesh.h"
#include "engine/executor/step_executor.h"
#include "engine/schedule/scheduler.h"

namespace apb::executor {

inline constexpr int kHosts = 12;  // on 1, 2, 3 or 4 ranks

// How a group divides its work, and on which device it runs.
struct Division {
  int tensor = 1;
  bool sliced = false;
  bool device = false;  // on a device whose memory CPU code cannot touch
};

// A mesh of this process alone, without MPI.
comm::Mesh OneRank();

// Rank 0's view of a group: over MPI, or of one rank without it. Each rank has `blocks` KV blocks.
class Group {
 public:
  Group(const comm::Mesh& mesh, int64_t blocks, bool prefix_cache = false,
        const Division& division = {});

  // Executes one step on all ranks.
  schedule::StepPlan Step();
  // Steps until all requests have ended. RunUntilIdle then expects that nothing is left on any
  // rank.
  void Run();
  void RunUntilIdle();
  void ExpectEmpty() const;
  void Submit(schedule::Request request) { scheduler_.Submit(std::move(request), absl::Now()); }
  void Cancel(uint64_t id) { scheduler_.Cancel(schedule::SequenceId{id}, absl::Now()); }
  void Shutdown();
  const schedule::Scheduler& scheduler() const { return scheduler_; }
  const std::vector<int64_t>& used() const { return used_; }  // blocks by rank after the last step

  std::map<schedule::SequenceId, std::vector<int32_t>> tokens;
  std::map<schedule::SequenceId, schedule::EndEvent> ends;
  size_t most_together = 0;                 // most sequences in one prefill
  std::set<std::string> prefix_strategies;  // strategies of prefills behind a prefix

 private:
  void Send(const schedule::StepPlan& plan);
  const int ranks_, tensor_;
  std::unique_ptr<StepExecutor> executor_;
  schedule::Scheduler scheduler_;
  std::vector<int64_t> used_;
};

// Every rank calls it; `lead` runs on rank 0.
void RunGroup(int64_t blocks, const std::function<void(Group&)>& lead, bool prefix_cache = false,
              const Division& division = {});

// A document and a query of so many tokens, different ones for each id. The id also determines
// strategy and compressor.
schedule::Request MakeRequest(uint64_t id, int64_t document, int64_t query, int32_t max_tokens);

}  // namespace apb::executor
