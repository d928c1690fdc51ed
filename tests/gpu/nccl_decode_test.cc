// Goal: on a GPU, decode steps with NCCL's collectives draw the same tokens as recorded graphs and
// operation by operation. Method: decode_contract.h; run.sh starts one process for each rank:
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
