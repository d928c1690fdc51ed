// Decode steps as recorded graphs (kernels::Backend::Record): on a device the host needs longer to
// launch the operations of a step one by one than the device to do them. A graph serves all steps
// of its key: batches are padded to a number of rows, and grids are for a bound of slots.
//
// Ranks decide alike, as NCCL wants it of recorded collectives: keys come from the plan; the memory
// that makes graphs stale moves by the plan; and whether a recording succeeded, all ranks tell each
// other before the first launch.
#pragma once

#include <cstdint>
#include <map>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "engine/comm/mesh.h"
#include "engine/core/tensor.h"
#include "kernels/backend.h"

namespace apb::executor {

class StepGraphs {
 public:
  struct Key {
    int64_t rows = 0;         // RowBucket
    int64_t total_slots = 0;  // SlotBucket
    bool sliced = false;
    auto operator<=>(const Key&) const = default;
  };
  // More rows than these are computed at a stretch anyway, and are not recorded.
  static constexpr int64_t kMaxRows = 128;

  // References must outlive the object, and so must the stream that is given to Run. Enabled where
  // there is something to gain: on a device, if the mesh's collectives can be recorded.
  StepGraphs(kernels::Backend& backend, const comm::Mesh& mesh);

  bool enabled() const { return enabled_; }
  // For good. The same on all ranks, between steps.
  void Disable();

  // The rows that a batch of 1 to kMaxRows rows is padded to: a power of two, or three times one.
  static int64_t RowBucket(int64_t rows);
  // The bound of slots for a batch that has at most `slots` of them: a power of two.
  static int64_t SlotBucket(int64_t slots);

  // Does `work`, which must depend on the key and on memory of the backend only: the first time as
  // it is, the second time it is recorded, from then on launched. `moves` counts how often memory
  // that work uses has moved. All ranks call it with equal keys, and nothing recorded is under way.
  absl::Status Run(const Key& key, absl::FunctionRef<int64_t()> moves, kernels::Stream& stream,
                   absl::FunctionRef<absl::Status()> work);

 private:
  struct Entry {
    std::unique_ptr<kernels::Graph> graph;  // null: done once, not recorded, or given up
    uint64_t last_use = 0;
  };
  // Null: some rank could not; graphs are disabled then.
  absl::StatusOr<std::unique_ptr<kernels::Graph>> Record(absl::FunctionRef<int64_t()> moves,
                                                         kernels::Stream& stream,
                                                         absl::FunctionRef<absl::Status()> work);
  absl::StatusOr<bool> AllRanks(bool ok, kernels::Stream& stream);
  // Gives up the graph that was not used for longest, if there are too many.
  void Evict();

  kernels::Backend& backend_;
  const comm::Mesh& mesh_;
  bool enabled_;
  std::map<Key, Entry> entries_;
  int64_t moves_ = 0;  // when the graphs were recorded
  uint64_t uses_ = 0;
  core::Workspace agreement_;
};

}  // namespace apb::executor
