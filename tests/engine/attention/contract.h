// The exactness contract of the strategies as checks that all ranks of a group run together: used
// with ranks as threads and with ranks as MPI processes.
#pragma once

#include "engine/parallel/communicator.h"

namespace apb::attention {

// Failures are gtest failures of the calling thread.
void CheckPassingEverythingIsFull(parallel::Communicator& communicator);
// ring_kv, ring_q, token_ring, and ulysses where the heads divide among the ranks.
void CheckExactStrategiesAreFull(parallel::Communicator& communicator);
// Batches of documents with cached prefixes of any length, layout and origin.
void CheckBatchesOverPrefixesAreFull(parallel::Communicator& communicator);
// The attention of one layer of such batches against a float64 oracle.
void CheckRingsAreLikeTheOracle(parallel::Communicator& communicator);
void CheckHostZeroIsFull(parallel::Communicator& communicator);
void CheckRanksDoNotMatter(parallel::Communicator& communicator);
void CheckOverlapDoesNotMatter(parallel::Communicator& communicator);
void CheckCostModelCountsWhatIsSent(parallel::Communicator& communicator);
void CheckAnchorsAreEqual(parallel::Communicator& communicator);
void CheckStarIsApbWithoutPassing(parallel::Communicator& communicator);
void CheckKvIsWholeAndReleased(parallel::Communicator& communicator);
void CheckNewRowsAreExact(parallel::Communicator& communicator);
void CheckBatchesAreLikeAlone(parallel::Communicator& communicator);

}  // namespace apb::attention
