#include "engine/context_parallel/apb/apb.h"
#include "engine/context_parallel/star/star.h"

namespace apb::context_parallel {

ShardPlan StarPlan(const PromptLayout& layout, const StrategyOptions& options) {
  ShardPlan plan = EqualBlocks(layout.document_length, options.hosts);
  for (int32_t t = 0; t < plan.hosts[0].local_length(); ++t) plan.anchor.push_back({.index = t});
  ShowAnchor(plan);
  return plan;
}

}  // namespace apb::context_parallel
