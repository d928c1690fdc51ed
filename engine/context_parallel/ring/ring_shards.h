// Where the rows and keys of a batch of documents lie on the hosts of a ring: counts only.
//
//   rows of a host   document 0, document 1, ...: what its plan gives to the host
//   keys of a host   document by document: cached prefix, then the keys of the rows
#pragma once

#include <cstdint>
#include <vector>

#include "engine/context_parallel/shard_plan.h"

namespace apb::context_parallel {

class RingShards {
 public:
  // What a host has of one document: rows [row_begin, row_end) of its rows, keys [key_begin,
  // key_end) of its keys, of which those from new_begin on are the rows' own.
  struct Part {
    int64_t row_begin = 0, row_end = 0;
    int64_t key_begin = 0, new_begin = 0, key_end = 0;
  };

  // cached[i][h]: tokens of the prefix of document i that host h keeps. Plans have the same number
  // of hosts.
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
