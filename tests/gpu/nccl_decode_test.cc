// Goal: decode steps on a GPU draw the same tokens as graphs and operation by operation, with
// NCCL's collectives in them. Method: decode_contract.h; one process for each rank, started by
// run.sh:
//   nccl_decode_test RANK SIZE FILE
#include <gtest/gtest.h>

#include "tests/engine/executor/decode_contract.h"
#include "tests/gpu/nccl_meeting.h"

namespace apb::worker {
namespace {

void CheckOnThisGroup(bool sliced) {
  const std::string test = testing::UnitTest::GetInstance()->current_test_info()->name();
  executor::CheckRecordedDecode({.device = comm::NcclTestBackend(),
                                 .make_mesh =
                                     [&](const std::string& name) {
                                       return comm::Mesh(
                                           *comm::Meet((test + name).c_str(), absl::Minutes(1)));
                                     },
                                 .sliced = sliced,
                                 .launches = {}});
}

TEST(NcclDecode, RecordedStepsDrawTheSameTokens) { CheckOnThisGroup(false); }

TEST(NcclDecode, RecordedSlicedStepsDrawTheSameTokens) {
  if (comm::NcclRanks() == 1) GTEST_SKIP() << "needs peers";
  CheckOnThisGroup(true);
}

}  // namespace
}  // namespace apb::worker

int main(int argc, char** argv) { return apb::comm::RunNcclRank(argc, argv); }
