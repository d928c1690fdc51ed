#include "engine/executor/step_graphs.h"

#include <algorithm>
#include <bit>

#include "engine/base/log.h"
#include "engine/base/status_macros.h"

namespace apb::executor {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kFewestSlots = 512;
constexpr int64_t kMaxGraphs = 48;  // of some hundred nodes each

bool Recordable(const comm::Communicator* communicator) {
  return communicator == nullptr || communicator->size() == 1 || communicator->recordable();
}

}  // namespace

StepGraphs::StepGraphs(kernels::Backend& backend, const comm::Mesh& mesh)
    : backend_(backend),
      mesh_(mesh),
      enabled_(backend.place() == kernels::Place::kDevice && Recordable(&mesh.all()) &&
               Recordable(&mesh.cp_group()) && Recordable(mesh.tensor())),
      agreement_(backend) {}

void StepGraphs::Disable() {
  enabled_ = false;
  entries_.clear();
}

int64_t StepGraphs::RowBucket(int64_t rows) {
  const int64_t power = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(rows)));
  return power >= 4 && rows <= power / 4 * 3 ? power / 4 * 3 : power;
}

int64_t StepGraphs::SlotBucket(int64_t slots) {
  return std::max(kFewestSlots, static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(slots))));
}

absl::Status StepGraphs::Run(const Key& key, absl::FunctionRef<int64_t()> moves,
                             kernels::Stream& stream, absl::FunctionRef<absl::Status()> work) {
  const auto [found, first_time] = entries_.try_emplace(key);
  if (first_time) return work();
  if (moves() != moves_) {
    for (auto& [other, entry] : entries_) entry.graph.reset();
    moves_ = moves();
  }
  if (found->second.graph == nullptr) {
    APB_ASSIGN_OR_RETURN(auto graph, Record(moves, stream, work));
    if (graph == nullptr) return work();
    found->second.graph = std::move(graph);
  }
  found->second.last_use = ++uses_;
  found->second.graph->Launch(stream);
  Evict();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<kernels::Graph>> StepGraphs::Record(
    absl::FunctionRef<int64_t()> moves, kernels::Stream& stream,
    absl::FunctionRef<absl::Status()> work) {
  absl::StatusOr<std::unique_ptr<kernels::Graph>> graph = backend_.Record(stream, work);
  if (graph.ok() && moves() != moves_)
    graph = absl::InternalError("memory of the step moved while it was recorded");
  APB_ASSIGN_OR_RETURN(const bool all, AllRanks(graph.ok(), stream));
  if (all) return graph;
  APB_LOG(Warning, "decode steps are not recorded from now on: ",
          graph.ok() ? "another rank failed to" : graph.status().ToString());
  graph = nullptr;
  Disable();
  return nullptr;
}

absl::StatusOr<bool> StepGraphs::AllRanks(bool ok, kernels::Stream& stream) {
  if (mesh_.all().size() == 1) return ok;
  float failed = ok ? 0 : 1;
  const TensorView host = TensorView::Contiguous(&failed, DType::kF32, {1});
  APB_ASSIGN_OR_RETURN(const TensorView device, agreement_.Get(DType::kF32, {1}));
  backend_.Copy(host, device, stream);
  APB_RETURN_IF_ERROR(mesh_.all().AllReduce(device, comm::ReduceOp::kMax, stream));
  backend_.Copy(device, host, stream);
  APB_RETURN_IF_ERROR(stream.Synchronize());
  return failed == 0;
}

void StepGraphs::Evict() {
  int64_t graphs = 0;
  Entry* oldest = nullptr;
  for (auto& [key, entry] : entries_) {
    if (entry.graph == nullptr) continue;
    ++graphs;
    if (oldest == nullptr || entry.last_use < oldest->last_use) oldest = &entry;
  }
  if (graphs > kMaxGraphs) oldest->graph.reset();
}

}  // namespace apb::executor
