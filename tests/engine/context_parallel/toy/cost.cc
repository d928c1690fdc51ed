#include "engine/context_parallel/cost.h"

#include "tests/engine/context_parallel/toy/toy.h"

namespace apb::context_parallel {

Traffic ToyTraffic(const TrafficCall& call) {
  const double others = call.ranks - 1;
  // No shard is longer than the first one.
  const auto part = static_cast<double>(call.plan.hosts[0].local_length() * call.model.kv_width() *
                                        call.model.element_bytes);
  return {others * TransferSeconds(call.speed, part), call.ranks * others * part};
}

}  // namespace apb::context_parallel
