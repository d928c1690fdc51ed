// The row of the toy strategy. A program that links this file has it in the table.
#include "engine/context_parallel/cost.h"
#include "tests/engine/context_parallel/add_strategy.h"
#include "tests/engine/context_parallel/toy/toy.h"

namespace apb::context_parallel {
namespace {

constexpr StrategyInfo kToy{.name = "gather_kv",
                            .exact = true,
                            .hosts = HostsRule::kOneOnEachRank,
                            .auto_order = 6,
                            .plan = ToyPlan,
                            .work = CausalWork,
                            .traffic = ToyTraffic,
                            .prefill_bytes = ToyPrefillBytes,
                            .create = CreateToy};

[[maybe_unused]] const bool kAdded = [] {
  AddStrategy(kToy);
  return true;
}();

}  // namespace
}  // namespace apb::context_parallel
