#include "engine/context_parallel/ring/ring_shards.h"

namespace apb::context_parallel {

RingShards::RingShards(const std::vector<const ShardPlan*>& plans,
                       const std::vector<std::vector<int64_t>>& cached)
    : parts_(plans[0]->hosts.size()) {
  for (int h = 0; h < hosts(); ++h) {
    int64_t row = 0, key = 0;
    for (size_t i = 0; i < plans.size(); ++i) {
      Part part{.row_begin = row, .key_begin = key, .new_begin = key + cached[i][h]};
      const int64_t rows = plans[i]->hosts[h].local_length();
      row = part.row_end = part.row_begin + rows;
      key = part.key_end = part.new_begin + rows;
      parts_[h].push_back(part);
    }
  }
}

}  // namespace apb::context_parallel
