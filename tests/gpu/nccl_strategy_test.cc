// Goal: the exactness contract holds for ranks with GPUs. Method: the checks of strategy_test over
// NCCL; run.sh starts one process for each rank:
//   nccl_strategy_test RANK SIZE FILE
#include <gtest/gtest.h>

#include "tests/engine/context_parallel/contract.h"
#include "tests/gpu/nccl_meeting.h"

namespace apb::context_parallel {
namespace {

void OnThisGroup(void (*check)(const TestRank&)) {
  const char* name = testing::UnitTest::GetInstance()->current_test_info()->name();
  auto communicator = comm::Meet(name, absl::Minutes(1));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  // The program owns the backend, so nothing is deleted here.
  const std::shared_ptr<kernels::Backend> backend(&comm::NcclTestBackend(), [](auto*) {});
  check({**communicator, backend});
}

TEST(NcclContract, PassingEverythingIsFull) { OnThisGroup(CheckPassingEverythingIsFull); }
TEST(NcclContract, ExactStrategiesAreFull) { OnThisGroup(CheckExactStrategiesAreFull); }
TEST(NcclContract, BatchesOverPrefixesAreFull) { OnThisGroup(CheckBatchesOverPrefixesAreFull); }
TEST(NcclContract, RingsAreLikeTheOracle) { OnThisGroup(CheckRingsAreLikeTheOracle); }
TEST(NcclContract, HostZeroIsFull) { OnThisGroup(CheckHostZeroIsFull); }
TEST(NcclContract, RanksDoNotMatter) { OnThisGroup(CheckRanksDoNotMatter); }
TEST(NcclContract, OverlapDoesNotMatter) { OnThisGroup(CheckOverlapDoesNotMatter); }
TEST(NcclContract, CostModelCountsWhatIsSent) { OnThisGroup(CheckCostModelCountsWhatIsSent); }
TEST(NcclContract, AnchorsAreEqual) { OnThisGroup(CheckAnchorsAreEqual); }
TEST(NcclContract, StarIsApbWithoutPassing) { OnThisGroup(CheckStarIsApbWithoutPassing); }
TEST(NcclContract, KvIsWholeAndReleased) { OnThisGroup(CheckKvIsWholeAndReleased); }
TEST(NcclContract, NewRowsAreExact) { OnThisGroup(CheckNewRowsAreExact); }
TEST(NcclContract, BatchesAreLikeAlone) { OnThisGroup(CheckBatchesAreLikeAlone); }

}  // namespace
}  // namespace apb::context_parallel

int main(int argc, char** argv) { return apb::comm::RunNcclRank(argc, argv); }
