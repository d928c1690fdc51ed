// The exactness contract of the strategies as checks that all ranks of a group run together: used
// with ranks as threads, as MPI processes and as processes with a GPU.
#pragma once

#include "tests/engine/context_parallel/tiny_engine.h"

namespace apb::context_parallel {

// Failures are gtest failures of the calling thread.
void CheckPassingEverythingIsFull(const TestRank& rank);
// All rows of the table that are exact; they refuse a model that they do not support.
void CheckExactStrategiesAreFull(const TestRank& rank);
// Batches of documents with cached prefixes of any length, layout and origin.
void CheckBatchesOverPrefixesAreFull(const TestRank& rank);
// The attention of one layer of such batches against a float64 oracle.
void CheckRingsAreLikeTheOracle(const TestRank& rank);
void CheckHostZeroIsFull(const TestRank& rank);
void CheckRanksDoNotMatter(const TestRank& rank);
void CheckOverlapDoesNotMatter(const TestRank& rank);
void CheckCostModelCountsWhatIsSent(const TestRank& rank);
void CheckAnchorsAreEqual(const TestRank& rank);
void CheckStarIsApbWithoutPassing(const TestRank& rank);
void CheckKvIsWholeAndReleased(const TestRank& rank);
void CheckNewRowsAreExact(const TestRank& rank);
void CheckBatchesAreLikeAlone(const TestRank& rank);

}  // namespace apb::context_parallel
