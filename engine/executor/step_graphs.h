// Decode steps as recorded graphs (kernels::Backend::Record). On a device, the host needs longer to
// launch the operations of a step one by one than the device to run them. A graph serves all steps
// with its key: batches are padded to a number of rows, and grids are sized for a bound of slots.
//
// NCCL requires that all ranks record a collective, or none. So the ranks decide alike: keys come
// from the plan; the memory whose moves make graphs stale moves by the plan; and the ranks tell
// each other whether a recording succeeded before they first launch it.
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
  // Batches of more rows keep the device busy without graphs and are not recorded.
  static constexpr int64_t kMaxRows = 128;

  // References, and the stream given to Run, must outlive the object. Graphs are enabled where they
  // can save time: on a device, if the mesh's collectives can be recorded.
  StepGraphs(kernels::Backend& backend, const comm::Mesh& mesh);

  bool enabled() const { return enabled_; }
  // Disables graphs for good. All ranks call it, between steps.
  void Disable();

  // The number of rows that a batch of 1 to kMaxRows rows is padded to: a power of two, or three
  // times one.
  static int64_t RowBucket(int64_t rows);
  // The bound of slots for a batch with `slots` slots: a power of two.
  static int64_t SlotBucket(int64_t slots);

  // Runs `work`, which must depend only on the key and on memory of the backend. The first call
  // with a key runs it directly, the second records it, and later ones launch the graph. `moves`
  // counts how often memory that `work` uses has moved. All ranks call it with equal keys, outside
  // any other recording.
  absl::Status Run(const Key& key, absl::FunctionRef<int64_t()> moves, kernels::Stream& stream,
                   absl::FunctionRef<absl::Status()> work);

 private:
  struct Entry {
    std::unique_ptr<kernels::Graph> graph;  // null: not recorded yet, or dropped
    uint64_t last_use = 0;
  };
  // Null: a rank could not record; graphs are disabled then.
  absl::StatusOr<std::unique_ptr<kernels::Graph>> Record(absl::FunctionRef<int64_t()> moves,
                                                         kernels::Stream& stream,
                                                         absl::FunctionRef<absl::Status()> work);
  // Whether `ok` is true on all ranks.
  absl::StatusOr<bool> AllRanks(bool ok, kernels::Stream& stream);
  // Drops the least recently used graph if there are too many.
  void Evict();

  kernels::Backend& backend_;
  const comm::Mesh& mesh_;
  bool enabled_;
  std::map<Key, Entry> entries_;
  int64_t moves_ = 0;  // the count of moves when the graphs were recorded
  uint64_t uses_ = 0;
  core::Workspace agreement_;
};

}  // namespace apb::executor
