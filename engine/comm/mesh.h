// The ranks of a group as a mesh [context][tensor]: rank = context index * tensor size + tensor
// index. A context group shares the sequence (and all that docs/algorithms.md says of ranks), a
// tensor group shares the heads.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/comm/communicator.h"

namespace apb::comm {

class Mesh {
 public:
  // Without tensor parallelism: `all` is the context group.
  explicit Mesh(std::unique_ptr<Communicator> all) : all_(std::move(all)) {}
  Mesh(std::unique_ptr<Communicator> all, std::unique_ptr<Communicator> cp_group,
       std::unique_ptr<Communicator> tensor)
      : all_(std::move(all)), cp_group_(std::move(cp_group)), tensor_(std::move(tensor)) {}

  Communicator& all() const { return *all_; }
  // Ranks with the same tensor index, by context index.
  Communicator& cp_group() const { return cp_group_ ? *cp_group_ : *all_; }
  // Ranks with the same context index, by tensor index; null: no tensor parallelism.
  Communicator* tensor() const { return tensor_.get(); }

  // Counters of all of them, under the operations' names.
  CommunicatorStats stats() const;

 private:
  std::unique_ptr<Communicator> all_, cp_group_, tensor_;
};

}  // namespace apb::comm
