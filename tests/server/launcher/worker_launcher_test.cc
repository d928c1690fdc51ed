// Goal: a local group that was ready restarts at once; after failed starts the waits grow; and the
// launcher tells the reason for the end as the group printed it. Method: shell scripts take
// mpirun's place; the launcher's own announcements give the waits.
#include "server/launcher/worker_launcher.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"

namespace apb::launcher {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::StartsWith;

// Runs groups that all execute `script`, and returns how the first `count` of them ended. `ready`
// tells of each start, counted from 0, whether its group became ready.
std::vector<GroupExit> EndsOf(
    const std::string& script, size_t count,
    const std::function<bool(size_t)>& ready = [](size_t) { return false; }) {
  const fs::path program = fs::path(testing::TempDir()) / absl::StrCat("mpirun-", getpid());
  std::ofstream(program) << "#!/bin/sh\n" << script;
  fs::permissions(program, fs::perms::owner_all);
  observability::Metrics metrics("model", "0");
  absl::Mutex mutex;
  std::vector<GroupExit> ends;
  int64_t asked = 0, ready_groups = 0;
  {
    WorkerLauncher launcher(
        {.mpirun = program,
         .worker_binary = "apb-worker",
         .ready_groups =
             [&] {
               // The launcher asks before each start and after each end.
               if (asked % 2 == 1 && ready(static_cast<size_t>(asked / 2))) ++ready_groups;
               ++asked;
               return ready_groups;
             },
         .first_backoff = absl::Milliseconds(1),
         .max_backoff = absl::Milliseconds(4)},
        [&](const GroupExit& end) {
          absl::MutexLock lock(&mutex);
          ends.push_back(end);
          return ends.size() < count;
        },
        metrics);
    absl::MutexLock lock(&mutex);
    auto all = [&] { return ends.size() >= count; };
    mutex.AwaitWithTimeout(absl::Condition(&all), absl::Minutes(2));
  }
  fs::remove(program);
  return ends;
}

std::vector<int64_t> WaitsOf(const std::vector<GroupExit>& ends) {
  std::vector<int64_t> waits;
  for (const GroupExit& end : ends) waits.push_back(absl::ToInt64Milliseconds(end.next_start));
  return waits;
}

TEST(WorkerLauncher, StartsThatFailWaitLongerUpToALimit) {
  const std::vector<GroupExit> ends = EndsOf("exit 7", 5);
  EXPECT_THAT(WaitsOf(ends), ElementsAre(1, 2, 4, 4, 4));
  EXPECT_EQ(ends.back().status, 7);
  EXPECT_EQ(ends.back().failed_starts, 5);
}

TEST(WorkerLauncher, AGroupThatEndsWithoutHavingBeenReadyHasFailed) {
  EXPECT_THAT(WaitsOf(EndsOf("exit 0", 2)), ElementsAre(1, 2));
}

TEST(WorkerLauncher, AGroupThatWasReadyStartsAgainAtOnce) {
  const std::vector<GroupExit> ends =
      EndsOf("kill -9 $$", 6, [](size_t start) { return start == 2 || start == 3; });
  EXPECT_THAT(WaitsOf(ends), ElementsAre(1, 2, 0, 0, 1, 2));
  EXPECT_EQ(ends[2].failed_starts, 0);
  EXPECT_EQ(ends[2].status, 128 + 9);
  EXPECT_EQ(ends[5].failed_starts, 2);
}

TEST(WorkerLauncher, TheFirstErrorOfARankIsTheReason) {
  const std::string script = R"(
cat <<'END'
I 2026-01-01T12:00:00.123456Z setup.cc:57 rank=0 weights: bfloat16
END
cat >&2 <<'END'
E 2026-01-01T12:00:01.123456Z main.cc:50 rank=1 cannot start: no room
E 2026-01-01T12:00:01.123457Z main.cc:50 rank=0 cannot start: another rank could not start
--------------------------------------------------------------------------
MPI_ABORT was invoked on rank 1
END
exit 3)";
  EXPECT_EQ(EndsOf(script, 1)[0].reason, "rank=1 cannot start: no room");
  const std::string json = R"(
echo '{"ts":"2026","level":"I","at":"setup.cc:57","context":"rank=0","msg":"weights"}'
echo '{"ts":"2026","level":"E","at":"main.cc:50","context":"rank=0","msg":"no room"}'
exit 3)";
  EXPECT_EQ(EndsOf(json, 1)[0].reason, "no room");
}

TEST(WorkerLauncher, WithoutAnErrorTheFirstLineOfMpirunIsTheReason) {
  EXPECT_EQ(
      EndsOf("echo -----\necho There are not enough slots\necho available\nexit 1", 1)[0].reason,
      "There are not enough slots");
  EXPECT_EQ(EndsOf("printf 'no end of line'; exit 1", 1)[0].reason, "no end of line");
}

TEST(WorkerLauncher, AProgramThatCannotBeRunIsNamed) {
  observability::Metrics metrics("model", "0");
  absl::Mutex mutex;
  GroupExit end{.status = -1};
  WorkerLauncher launcher(
      {.mpirun = "/no/such/mpirun", .ready_groups = [] { return 0; }},
      [&](const GroupExit& first) {
        absl::MutexLock lock(&mutex);
        end = first;
        return false;
      },
      metrics);
  absl::MutexLock lock(&mutex);
  auto ended = [&] { return end.status >= 0; };
  ASSERT_TRUE(mutex.AwaitWithTimeout(absl::Condition(&ended), absl::Minutes(2)));
  EXPECT_EQ(end.status, 127);
  EXPECT_THAT(end.reason, StartsWith("/no/such/mpirun: "));
}

TEST(WorkerLauncher, AGroupThatWasReadyHasNoReason) {
  EXPECT_EQ(EndsOf("echo 'E 2026-01-01T12:00:00.123456Z leader.cc:5 rank=0 old' ; exit 1", 1,
                   [](size_t) { return true; })[0]
                .reason,
            "");
}

}  // namespace
}  // namespace apb::launcher
