// What `auto` becomes. The leader decides, with the numbers of its group's calibration, so the same
// prompt gets the same strategy for as long as the group lives; the choice travels in the step
// plan.
#pragma once

#include <string>

#include "engine/context_parallel/strategy_info.h"
#include "engine/schedule/request.h"

namespace apb::schedule {

// The strategy for a request whose own is "auto" or "":
//   the first approximate candidate (context_parallel::AutoCandidates) for documents of at least
//         `full_below` tokens on more than one host, unless the request is exact or nothing could
//         choose what is passed on (no retaining heads, no embedded query for query_aware, and no
//         compressor asked for);
//   else  FastestExact.
std::string ChooseStrategy(const SchedulerOptions& options, const Request& request);

// The exact candidate that the cost model takes to be fastest for a document of so many tokens, of
// those that support the model on so many ranks and whose KV fits every rank. A later one must save
// a tenth of the time and a millisecond. `ring_from` >= 0 overrides the model: the first candidate
// with a host on each rank from so many tokens on, the first with one host below.
std::string FastestExact(const SchedulerOptions& options, int64_t document_length);

// The same for tokens [cached, length) behind a cached prefix: on one rank the first with one host,
// else one of those that ReadsPrefixOnAllRanks.
std::string FastestOverPrefix(const SchedulerOptions& options, int64_t cached, int64_t length);

// Starts from a prefix, also where it is spread over several ranks.
bool ReadsPrefixOnAllRanks(const context_parallel::StrategyInfo& strategy);

}  // namespace apb::schedule
