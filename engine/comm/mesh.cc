#include "engine/comm/mesh.h"

#include <map>
#include <string>

namespace apb::comm {

CommunicatorStats Mesh::stats() const {
  std::map<std::string, CommunicatorStats::Operation> sums;
  for (const Communicator* communicator : {all_.get(), cp_group_.get(), tensor_.get()}) {
    if (communicator == nullptr) continue;
    for (const CommunicatorStats::Operation& operation : communicator->stats().operations) {
      CommunicatorStats::Operation& sum = sums[operation.name];
      sum.name = operation.name;
      sum.calls += operation.calls;
      sum.bytes_sent += operation.bytes_sent;
      sum.seconds += operation.seconds;
    }
  }
  CommunicatorStats stats;
  for (auto& [name, sum] : sums) stats.operations.push_back(std::move(sum));
  return stats;
}

}  // namespace apb::comm
