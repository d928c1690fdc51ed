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
  Mesh(std::unique_ptr<Communicator> all, std::unique_ptr<Communicator> context,
       std::unique_ptr<Communicator> tensor)
      : all_(std::move(all)), context_(std::move(context)), tensor_(std::move(tensor)) {}

  Communicator& all() const { return *all_; }
  // Ranks with the same tensor index, by context index.
  Communicator& context() const { return context_ ? *context_ : *all_; }
  // Ranks with the same context index, by tensor index; null: no tensor parallelism.
  Communicator* tensor() const { return tensor_.get(); }

  // Counters of all of them, under the operations' names.
  CommunicatorStats stats() const;

 private:
  std::unique_ptr<Communicator> all_, context_, tensor_;
};

}  // namespace apb::comm
