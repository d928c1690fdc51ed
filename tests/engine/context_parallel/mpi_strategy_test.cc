// Goal: the exactness contract holds under real MPI. Method: the checks of strategy_test on 1 to 4,
// and on 8, processes.
#include <gtest/gtest.h>

#include "tests/engine/comm/mpi_main.h"
#include "tests/engine/context_parallel/contract.h"

namespace apb::context_parallel {
namespace {

void OnThisGroup(void (*check)(const TestRank&)) {
  auto communicator = comm::TestRuntime().NewCommunicator(absl::Minutes(2));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  check(**communicator);
}

TEST(MpiContract, PassingEverythingIsFull) { OnThisGroup(CheckPassingEverythingIsFull); }
TEST(MpiContract, ExactStrategiesAreFull) { OnThisGroup(CheckExactStrategiesAreFull); }
TEST(MpiContract, BatchesOverPrefixesAreFull) { OnThisGroup(CheckBatchesOverPrefixesAreFull); }
TEST(MpiContract, RingsAreLikeTheOracle) { OnThisGroup(CheckRingsAreLikeTheOracle); }
TEST(MpiContract, HostZeroIsFull) { OnThisGroup(CheckHostZeroIsFull); }
TEST(MpiContract, RanksDoNotMatter) { OnThisGroup(CheckRanksDoNotMatter); }
TEST(MpiContract, OverlapDoesNotMatter) { OnThisGroup(CheckOverlapDoesNotMatter); }
TEST(MpiContract, CostModelCountsWhatIsSent) { OnThisGroup(CheckCostModelCountsWhatIsSent); }
TEST(MpiContract, AnchorsAreEqual) { OnThisGroup(CheckAnchorsAreEqual); }
TEST(MpiContract, StarIsApbWithoutPassing) { OnThisGroup(CheckStarIsApbWithoutPassing); }
TEST(MpiContract, KvIsWholeAndReleased) { OnThisGroup(CheckKvIsWholeAndReleased); }
TEST(MpiContract, NewRowsAreExact) { OnThisGroup(CheckNewRowsAreExact); }
TEST(MpiContract, BatchesAreLikeAlone) { OnThisGroup(CheckBatchesAreLikeAlone); }

}  // namespace
}  // namespace apb::context_parallel
