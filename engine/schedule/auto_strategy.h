// What `auto` becomes. The leader decides, with the numbers of its group's calibration, so the same
// prompt gets the same strategy for as long as the group lives; the choice travels in the step plan.
#pragma once

#include <string>

#include "engine/schedule/request.h"

namespace apb::schedule {

// The strategy for a request whose own is "auto" or "":
//   apb   for documents of at least `full_below` tokens on more than one host, unless the request is
//         exact or there is nothing that could choose what is passed on (no retaining heads, no
//         embedded query for query_aware, and no compressor asked for);
//   else  FastestExact.
std::string ChooseStrategy(const SchedulerOptions& options, const Request& request);

// Of the exact strategies the one that the cost model takes to be fastest for a document of so many
// tokens, of those whose KV fits every rank: full, ring_kv, ulysses (where heads divide),
// token_ring, ring_q. A later one must save a tenth of the time and a millisecond. `ring_from` >= 0
// overrides the model: ring_kv from so many tokens on, full below.
std::string FastestExact(const SchedulerOptions& options, int64_t document_length);

// The same for tokens [cached, length) behind a cached prefix: full on one rank, else one of ring_kv,
// token_ring, ring_q.
std::string FastestOverPrefix(const SchedulerOptions& options, int64_t cached, int64_t length);

}  // namespace apb::schedule
