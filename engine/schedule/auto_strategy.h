// Which strategy `auto` becomes. The leader decides with the calibration of its group, so the same
// prompt gets the same strategy as long as the group lives. The choice travels in the step plan.
#pragma once

#include <string>

#include "engine/context_parallel/strategy_info.h"
#include "engine/schedule/request.h"

namespace apb::schedule {

// The strategy of a request that asks for "auto" or "":
//   the first approximate candidate (context_parallel::AutoCandidates), for documents of at least
//         `full_below` tokens on more than one host, if the request need not be exact and there is
//         a compressor (retaining heads, an embedded query for query_aware, or one in the request);
//   else  FastestExact.
std::string ChooseStrategy(const SchedulerOptions& options, const Request& request);

// The exact candidate that the cost model takes to be fastest for a document of `document_length`
// tokens, among those that support the model on so many ranks and whose KV fits every rank. A later
// candidate must save a tenth of the time and a millisecond. `ring_from` >= 0 replaces the cost
// model: the first candidate with a host on each rank from so many tokens on, the first with one
// host below.
std::string FastestExact(const SchedulerOptions& options, int64_t document_length);

// The same for tokens [cached, length) behind a cached prefix: on one rank, the first candidate
// with one host; on several, among those that ReadsPrefixOnAllRanks.
std::string FastestOverPrefix(const SchedulerOptions& options, int64_t cached, int64_t length);

// Whether the strategy can start from a prefix that is spread over several ranks.
bool ReadsPrefixOnAllRanks(const context_parallel::StrategyInfo& strategy);

}  // namespace apb::schedule
