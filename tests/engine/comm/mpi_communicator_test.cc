// Goal: MPI ranks exchange the right bytes, messages reach followers and leader, waiting is cheap,
// and a stuck peer is an error. Method: runs under mpirun with 1 to 4 ranks; measures CPU time,
// never wall time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "tests/engine/comm/collectives.h"
#include "tests/engine/comm/mpi_main.h"

namespace apb::comm {
namespace {

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
         1e-6 * static_cast<double>(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec);
}

TEST(MpiCommunicator, Collectives) {
  auto communicator = TestRuntime().NewCommunicator(absl::Minutes(2));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  EXPECT_EQ((*communicator)->rank(), TestRuntime().rank());
  EXPECT_EQ((*communicator)->size(), TestRuntime().size());
  for (int i = 0; i < 3; ++i) CheckCollectives(**communicator);
}

TEST(MpiRuntime, KnowsItsPlace) {
  EXPECT_EQ(TestRuntime().local_size(), TestRuntime().size());
  EXPECT_EQ(TestRuntime().local_rank(), TestRuntime().rank());
  EXPECT_FALSE(TestRuntime().host().empty());
}

TEST(MpiRuntime, PlansAndStatistics) {
  MpiRuntime& runtime = TestRuntime();
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{70'000}, size_t{5'000'000}}) {
    const std::string plan(bytes, 'p');
    if (runtime.rank() == 0) {
      ASSERT_TRUE(runtime.SendPlan(plan, absl::Minutes(1)).ok());
    } else {
      auto received = runtime.ReceivePlan(absl::Minutes(1));
      ASSERT_TRUE(received.ok()) << received.status();
      ASSERT_EQ(*received, plan);
    }
    auto gathered = runtime.GatherToLeader(absl::StrCat(plan, runtime.rank()), absl::Minutes(1));
    ASSERT_TRUE(gathered.ok()) << gathered.status();
    ASSERT_EQ(gathered->size(), runtime.rank() == 0 ? runtime.size() : 0);
    for (size_t r = 0; r < gathered->size(); ++r) ASSERT_EQ((*gathered)[r], absl::StrCat(plan, r));
  }
}

// A follower that waits for a plan uses next to no CPU time.
TEST(MpiRuntime, AnIdleFollowerSleeps) {
  MpiRuntime& runtime = TestRuntime();
  if (runtime.rank() == 0) {
    absl::SleepFor(absl::Seconds(1));
    ASSERT_TRUE(runtime.SendPlan("go", absl::Minutes(1)).ok());
    return;
  }
  const double before = CpuSeconds();
  ASSERT_TRUE(runtime.ReceivePlan(absl::Minutes(1)).ok());
  EXPECT_LT(CpuSeconds() - before, 0.05);
}

TEST(MpiRuntime, ASilentLeaderIsNoticed) {
  MpiRuntime& runtime = TestRuntime();
  if (runtime.rank() > 0) {
    const absl::Status status = runtime.ReceivePlan(absl::Milliseconds(50)).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  }
  ASSERT_TRUE(runtime.GatherToLeader("", absl::Minutes(1)).ok());
}

TEST(MpiCommunicator, AbortBreaksIt) {
  auto communicator = TestRuntime().NewCommunicator(absl::Minutes(2));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  ASSERT_TRUE((*communicator)->Barrier().ok());
  (*communicator)->Abort("the test says so");
  EXPECT_EQ((*communicator)->Barrier().code(), absl::StatusCode::kUnavailable);
}

// Last in the file, because MPI keeps the operation that never completes until the process ends.
TEST(MpiCommunicator, AStuckPeerIsAnErrorThatNamesTheOperation) {
  auto communicator = TestRuntime().NewCommunicator(absl::Milliseconds(200));
  ASSERT_TRUE(communicator.ok()) << communicator.status();
  if (TestRuntime().size() == 1 || TestRuntime().rank() == TestRuntime().size() - 1) return;
  const absl::Status status = (*communicator)->Barrier();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr("barrier"));
  EXPECT_EQ((*communicator)->Barrier().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace apb::comm
