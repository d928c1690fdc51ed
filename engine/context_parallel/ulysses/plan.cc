#include "absl/strings/str_cat.h"
#include "engine/context_parallel/ulysses/ulysses.h"

namespace apb::context_parallel {

absl::Status UlyssesSupports(const ModelShape& model, int ranks) {
  const bool fits = model.query_heads % ranks == 0 &&
                    (model.kv_heads % ranks == 0 || ranks % model.kv_heads == 0);
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("strategy 'ulysses': ", model.query_heads, " query and ", model.kv_heads,
                   " KV heads do not divide among ", ranks, " ranks; use a ring"));
}

ShardPlan UlyssesPlan(const PromptLayout& layout, const StrategyOptions& options) {
  return EqualBlocks(layout.document_length, options.hosts);
}

}  // namespace apb::context_parallel
