// Goal: the toy strategy keeps the contract under real MPI. Method: the checks of toy_test on 1 to
// 4, and on 8, processes.
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

TEST(MpiToyContract, ExactStrategiesAreFull) { OnThisGroup(CheckExactStrategiesAreFull); }
TEST(MpiToyContract, CostModelCountsWhatIsSent) { OnThisGroup(CheckCostModelCountsWhatIsSent); }
TEST(MpiToyContract, KvIsWholeAndReleased) { OnThisGroup(CheckKvIsWholeAndReleased); }

}  // namespace
}  // namespace apb::context_parallel
