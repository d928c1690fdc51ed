// A group as apb-worker makes it, of a tiny model: scheduler and executor on rank 0, executors on
// the others, plans sent by MPI.
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

// How a group divides its work, and where it does it.
struct Division {
  int tensor = 1;
  bool sliced = false;
  bool device = false;  // one that host code cannot touch
};

// Of this process alone, without MPI.
comm::Mesh OneRank();

// Rank 0's view of a group: over MPI, or of one rank without it. `blocks` of KV cache on each rank.
class Group {
 public:
  Group(const comm::Mesh& mesh, int64_t blocks, bool prefix_cache = false,
        const Division& division = {});

  // One step on all ranks.
  schedule::StepPlan Step();
  // Until all requests have ended; RunUntilIdle: then nothing may be left on any rank.
  void Run();
  void RunUntilIdle();
  void ExpectEmpty() const;
  void Submit(schedule::Request request) { scheduler_.Submit(std::move(request), absl::Now()); }
  void Cancel(uint64_t id) { scheduler_.Cancel(schedule::SequenceId{id}, absl::Now()); }
  void Shutdown();
  const schedule::Scheduler& scheduler() const { return scheduler_; }
  const std::vector<int64_t>& used() const { return used_; }  // blocks by rank, after the last step

  std::map<schedule::SequenceId, std::vector<int32_t>> tokens;
  std::map<schedule::SequenceId, schedule::EndEvent> ends;
  size_t most_together = 0;                 // sequences in one prefill
  std::set<std::string> prefix_strategies;  // of prefills behind a prefix

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

// A document of so many tokens and a query behind it, other ones for each id; strategy and
// compressor are by the id, too.
schedule::Request MakeRequest(uint64_t id, int64_t document, int64_t query, int32_t max_tokens);

}  // namespace apb::executor
