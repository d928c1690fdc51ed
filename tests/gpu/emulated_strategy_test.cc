// Goal: the exactness contract holds for ranks with CUDA backends. Method: the checks of
// strategy_test on the emulator, with ranks as threads. nccl_strategy_test does the same with GPUs.
#include <gtest/gtest.h>

#include <thread>

#include "engine/comm/local_communicator.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/engine/context_parallel/contract.h"

namespace apb::context_parallel {
namespace {

void OnRanks(void (*check)(const TestRank&), int ranks = 2) {
  auto group = comm::CreateLocalGroup(ranks, absl::Minutes(5));
  std::vector<std::thread> threads;
  for (auto& rank : group)
    threads.emplace_back([&] { check({*rank, *kernels::CreateCudaBackend(0)}); });
  for (std::thread& thread : threads) thread.join();
}

TEST(EmulatedContract, PassingEverythingIsFull) { OnRanks(CheckPassingEverythingIsFull); }
TEST(EmulatedContract, ExactStrategiesAreFull) { OnRanks(CheckExactStrategiesAreFull); }
TEST(EmulatedContract, BatchesOverPrefixesAreFull) { OnRanks(CheckBatchesOverPrefixesAreFull); }
TEST(EmulatedContract, RingsAreLikeTheOracle) { OnRanks(CheckRingsAreLikeTheOracle); }
// Only rings of three or more combine results between steps.
TEST(EmulatedContract, RingsOfThreeAreLikeTheOracle) { OnRanks(CheckRingsAreLikeTheOracle, 3); }
TEST(EmulatedContract, HostZeroIsFull) { OnRanks(CheckHostZeroIsFull); }
TEST(EmulatedContract, RanksDoNotMatter) { OnRanks(CheckRanksDoNotMatter); }
TEST(EmulatedContract, OverlapDoesNotMatter) { OnRanks(CheckOverlapDoesNotMatter); }
TEST(EmulatedContract, CostModelCountsWhatIsSent) { OnRanks(CheckCostModelCountsWhatIsSent); }
TEST(EmulatedContract, AnchorsAreEqual) { OnRanks(CheckAnchorsAreEqual); }
TEST(EmulatedContract, StarIsApbWithoutPassing) { OnRanks(CheckStarIsApbWithoutPassing); }
TEST(EmulatedContract, KvIsWholeAndReleased) { OnRanks(CheckKvIsWholeAndReleased); }
TEST(EmulatedContract, NewRowsAreExact) { OnRanks(CheckNewRowsAreExact); }
TEST(EmulatedContract, BatchesAreLikeAlone) { OnRanks(CheckBatchesAreLikeAlone); }

}  // namespace
}  // namespace apb::context_parallel
