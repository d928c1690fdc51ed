// What a request may ask of its strategy: the engine's one list of these options. Pure data: the
// step plan carries it, and the strategies' plan functions read it.
#pragma once

#include <cstdint>
#include <string>

namespace apb::context_parallel {

struct StrategyOptions {
  // How a host chooses the keys and values that it passes on: retaining_heads, query_aware or
  // random; "" where nothing is passed on. The shard plan does not depend on it.
  std::string compressor;
  int32_t hosts = 1;
  int64_t anchor_length = -1;   // tokens; -1: the authors' value (docs/algorithms.md)
  int64_t passing_length = -1;  // tokens per host and KV head; -1: the authors' value
  // Shards that take equally long to compute: the cost of one token's projections and MLP, in
  // query-key pairs of attention (RowCostInPairs). 0: shards of equal length. Of use only where
  // StrategyInfo::can_balance.
  int64_t row_cost_pairs = 0;
};

// Calls visit(name, field) for every field. Clients set those that common.v1.ApbOptions has under
// the same name. The codec of Submit, the step plan's bytes and the recipe of cached KV go by this
// list, so that a new option is named here only.
template <typename Options, typename Visit>
void ForEachField(Options& o, Visit&& visit) {
  visit("compressor", o.compressor);
  visit("hosts", o.hosts);
  visit("anchor_length", o.anchor_length);
  visit("passing_length", o.passing_length);
  visit("row_cost_pairs", o.row_cost_pairs);
}

}  // namespace apb::context_parallel
