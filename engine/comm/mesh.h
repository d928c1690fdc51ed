// The ranks of a worker group as a mesh [context][tensor]: rank = context index * tensor size +
// tensor index. The ranks of a cp_group divide the tokens of a sequence (docs/algorithms.md means
// them by "ranks"); the ranks of a tensor group divide the heads.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "engine/comm/communicator.h"

namespace apb::comm {

class Mesh {
 public:
  // Without tensor parallelism: `all` is the cp_group too.
  explicit Mesh(std::unique_ptr<Communicator> all) : all_(std::move(all)) {}
  Mesh(std::unique_ptr<Communicator> all, std::unique_ptr<Communicator> cp_group,
       std::unique_ptr<Communicator> tensor)
      : all_(std::move(all)), cp_group_(std::move(cp_group)), tensor_(std::move(tensor)) {}

  Communicator& all() const { return *all_; }
  // Ranks with the same tensor index, by context index.
  Communicator& cp_group() const { return cp_group_ ? *cp_group_ : *all_; }
  // Ranks with the same context index, by tensor index. Null without tensor parallelism.
  Communicator* tensor() const { return tensor_.get(); }

  // The sums of the three communicators' counters, by operation name.
  CommunicatorStats stats() const;

 private:
  std::unique_ptr<Communicator> all_, cp_group_, tensor_;
};

}  // namespace apb::comm
