// Goal: the exactness contract of the strategies (docs/algorithms.md). Method: checks that all
// ranks of a group run together, with ranks as threads, as MPI processes and as processes with a
// GPU.
#pragma once

#include "tests/engine/context_parallel/tiny_engine.h"

namespace apb::context_parallel {

// All ranks call the same check together. Failures are gtest failures of the calling thread.

// APB that passes on all tokens equals plain causal attention.
void CheckPassingEverythingIsFull(const TestRank& rank);
// Every exact strategy of the table equals plain causal attention, or refuses a model that it does
// not support.
void CheckExactStrategiesAreFull(const TestRank& rank);
// The same for batches of documents with cached prefixes of any length, layout and origin.
void CheckBatchesOverPrefixesAreFull(const TestRank& rank);
// One layer's attention of such batches equals a float64 oracle.
void CheckRingsAreLikeTheOracle(const TestRank& rank);
// Host 0, which has nothing before it, equals plain causal attention, and the other hosts do not.
void CheckHostZeroIsFull(const TestRank& rank);
// The same hosts give the same result on any number of ranks.
void CheckRanksDoNotMatter(const TestRank& rank);
void CheckOverlapDoesNotMatter(const TestRank& rank);
// The bytes that PredictPrefill predicts are the bytes that the communicators count.
void CheckCostModelCountsWhatIsSent(const TestRank& rank);
// All ranks compute the same anchor.
void CheckAnchorsAreEqual(const TestRank& rank);
void CheckStarIsApbWithoutPassing(const TestRank& rank);
// The KV of each document token is on exactly one rank, and is released.
void CheckKvIsWholeAndReleased(const TestRank& rank);
// Query and decode tokens over sharded KV equal plain causal attention.
void CheckNewRowsAreExact(const TestRank& rank);
// The tokens of a batch of sequences get the same result as each sequence alone.
void CheckBatchesAreLikeAlone(const TestRank& rank);

}  // namespace apb::context_parallel
