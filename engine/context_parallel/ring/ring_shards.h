// The places of a batch of documents among the rows and keys of a ring's hosts. Counts only.
//
//   rows of a host   document by document: the tokens that the document's plan gives to the host
//   keys of a host   document by document: the cached prefix, then the keys of these rows
#pragma once

#include <cstdint>
#include <vector>

#include "engine/context_parallel/shard_plan.h"

namespace apb::context_parallel {

class RingShards {
 public:
  // One document's share of a host: rows [row_begin, row_end) of the host's rows, keys [key_begin,
  // key_end) of the host's keys. Keys before new_begin are cached, the others are the rows' own.
  struct Part {
    int64_t row_begin = 0, row_end = 0;
    int64_t key_begin = 0, new_begin = 0, key_end = 0;
  };

  // cached[i][h] is the number of tokens of document i's cached prefix on host h. All plans must
  // have the same number of hosts.
  RingShards(const std::vector<const ShardPlan*>& plans,
             const std::vector<std::vector<int64_t>>& cached);

  int hosts() const { return static_cast<int>(parts_.size()); }
  const std::vector<Part>& parts(int host) const { return parts_[host]; }  // by document
  int64_t rows(int host) const { return parts_[host].back().row_end; }
  int64_t keys(int host) const { return parts_[host].back().key_end; }

 private:
  std::vector<std::vector<Part>> parts_;  // by host and document
};

}  // namespace apb::context_parallel
