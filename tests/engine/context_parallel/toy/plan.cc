#include "tests/engine/context_parallel/toy/toy.h"

namespace apb::context_parallel {

ShardPlan ToyPlan(const PromptLayout& layout, const StrategyOptions& options) {
  return EqualBlocks(layout.document_length, options.hosts);
}

}  // namespace apb::context_parallel
