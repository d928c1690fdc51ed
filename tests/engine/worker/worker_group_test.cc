// Goal: apb-worker as a program says hello, answers, cancels, costs next to nothing while idle, and
// ends when it is told to, when a rank dies, when the server disappears, and when the model is
// damaged. Method: a small gRPC server in the test, and `mpirun -n 2 apb-worker` on the demo model.
// If the group ends while a test waits for its message, the test ends at once, with the group's
// log.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "apb/cluster/v1/worker_group_service.grpc.pb.h"
#include "engine/base/bounded_queue.h"

extern char** environ;

namespace apb::worker {
namespace {

namespace fs = std::filesystem;
using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using testing::HasSubstr;

const absl::Duration kPatience = absl::Minutes(2);
const fs::path kDemoModel = fs::path(APB_SOURCE_DIR) / "tests" / "reference_model" / "checkpoint";

std::string ReadAll(const fs::path& path) {
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// The fields of /proc/PID/stat behind the command's name; empty if there is no such process.
std::vector<std::string> ProcessStat(int pid) {
  const std::string text = ReadAll(absl::StrCat("/proc/", pid, "/stat"));
  const size_t name_end = text.rfind(')');
  if (name_end == std::string::npos) return {};
  return absl::StrSplit(text.substr(name_end + 2), ' ');
}

double CpuSeconds(int pid) {
  const std::vector<std::string> stat = ProcessStat(pid);
  if (stat.size() < 13) return 0;
  return (std::stod(stat[11]) + std::stod(stat[12])) / static_cast<double>(sysconf(_SC_CLK_TCK));
}

// Two ranks under mpirun, started as apb-server starts them.
class Workers {
 public:
  Workers(const fs::path& model, int port)
      : log_(fs::path(testing::TempDir()) / absl::StrCat("workers-", getpid(), ".log")) {
    std::vector<std::string> words = absl::StrSplit(APB_MPIRUN_WORDS, ' ');
    for (const std::string& word :
         {std::string("-n"), std::string("2"), std::string(APB_WORKER), std::string("--model"),
          model.string(), std::string("--server"), absl::StrCat("127.0.0.1:", port),
          std::string("--threads"), std::string("1"), std::string("--kv-cache-tokens"),
          std::string("65536"), std::string("--full-below"), std::string("1000")}) {
      words.push_back(word);
    }
    std::vector<char*> argv;
    for (std::string& word : words) argv.push_back(word.data());
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    posix_spawn_file_actions_addopen(&files, 1, log_.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    posix_spawn_file_actions_adddup2(&files, 1, 2);
    EXPECT_EQ(posix_spawnp(&mpirun_, argv[0], &files, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&files);
  }
  ~Workers() {
    if (IsRunning()) {
      kill(mpirun_, SIGKILL);
      waitpid(mpirun_, nullptr, 0);
    }
    fs::remove(log_);
  }

  // The process ids of the ranks, in no particular order.
  std::vector<int> Ranks() const {
    std::vector<int> ranks;
    for (const fs::directory_entry& entry : fs::directory_iterator("/proc")) {
      const int pid = std::atoi(entry.path().filename().c_str());
      if (pid <= 0) continue;
      const std::vector<std::string> stat = ProcessStat(pid);
      if (stat.size() > 1 && stat[1] == absl::StrCat(mpirun_)) ranks.push_back(pid);
    }
    return ranks;
  }
  // Whether mpirun is still running.
  bool IsRunning() {
    int status = 0;
    if (exit_code_ < 0 && waitpid(mpirun_, &status, WNOHANG) == mpirun_) {
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    return exit_code_ < 0;
  }
  // Waits for mpirun to end. Its exit code, or -1 if it does not end in time.
  int Wait() {
    const absl::Time end = absl::Now() + kPatience;
    while (IsRunning() && absl::Now() < end) absl::SleepFor(absl::Milliseconds(20));
    return exit_code_;
  }
  std::string Log() const { return ReadAll(log_); }

 private:
  fs::path log_;
  pid_t mpirun_ = 0;
  int exit_code_ = -1;  // -1: still running
};

// Accepts one group and queues its messages.
class FakeServer : public cluster::v1::WorkerGroupService::Service {
 public:
  using Stream = grpc::ServerReaderWriter<ToWorker, FromWorker>;
  FakeServer() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(this);
    server_ = builder.BuildAndStart();
  }
  ~FakeServer() override { Stop(); }
  void Stop() {
    if (server_) server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }
  grpc::Status Connect(grpc::ServerContext*, Stream* stream) override {
    {
      absl::MutexLock lock(&mutex_);
      stream_ = stream;
    }
    FromWorker message;
    while (stream->Read(&message)) messages_.TryPush(std::move(message));
    absl::MutexLock lock(&mutex_);
    stream_ = nullptr;
    closed_ = true;
    return grpc::Status::OK;
  }
  void Send(const ToWorker& message) {
    absl::MutexLock lock(&mutex_);
    if (stream_ == nullptr || !stream_->Write(message)) {
      throw std::runtime_error("the group is not connected");
    }
  }
  // The next message that `wanted` accepts; earlier ones are dropped. Throws, which ends the test,
  // if none can come any more.
  FromWorker Next(Workers& workers, const std::function<bool(const FromWorker&)>& wanted) {
    const absl::Time end = absl::Now() + kPatience;
    bool can_come = true;
    while (can_come && absl::Now() < end) {
      // Asked before the last look into the queue, because the end of the stream comes behind its
      // messages.
      can_come = connected() || (!closed() && workers.IsRunning());
      do {
        const auto message = messages_.Pop(absl::Milliseconds(can_come ? 100 : 0));
        if (message && wanted(*message)) return *message;
      } while (messages_.size() > 0);
    }
    throw std::runtime_error(absl::StrCat("the group did not say what was expected",
                                          workers.IsRunning() ? "" : " and has ended",
                                          "; its log:\n", workers.Log()));
  }
  bool connected() const {
    absl::MutexLock lock(&mutex_);
    return stream_ != nullptr;
  }
  bool closed() const {
    absl::MutexLock lock(&mutex_);
    return closed_;
  }
  int port() const { return port_; }

 private:
  int port_ = 0;
  std::unique_ptr<grpc::Server> server_;
  mutable absl::Mutex mutex_;
  Stream* stream_ ABSL_GUARDED_BY(mutex_) = nullptr;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  base::BoundedQueue<FromWorker> messages_{1 << 16};
};

ToWorker Submit(uint64_t sequence, int document, int query, int max_tokens) {
  ToWorker message;
  cluster::v1::Submit& submit = *message.mutable_submit();
  submit.set_sequence(sequence);
  for (int i = 0; i < document + query; ++i) submit.add_tokens(20 + i * 7919 % 1000);
  submit.set_query_begin(document);
  submit.set_report_progress(true);
  submit.mutable_sampling()->set_max_tokens(max_tokens);
  submit.mutable_sampling()->set_temperature(0);
  return message;
}

bool IsHello(const FromWorker& m) { return m.has_hello(); }
bool IsEnd(const FromWorker& m) { return m.has_end(); }
bool IsProgress(const FromWorker& m) { return m.has_progress(); }

bool AllBlocksAreFree(const FromWorker& m) {
  return m.has_stats() && m.stats().running() == 0 &&
         std::all_of(m.stats().ranks().begin(), m.stats().ranks().end(),
                     [](const auto& rank) { return rank.kv_blocks_used() == 0; });
}

void ExpectGone(const std::vector<int>& processes) {
  ASSERT_EQ(processes.size(), 2u);
  for (const int pid : processes) {
    const absl::Time end = absl::Now() + kPatience;
    while (absl::Now() < end && !ProcessStat(pid).empty()) absl::SleepFor(absl::Milliseconds(20));
    EXPECT_TRUE(ProcessStat(pid).empty()) << "process " << pid << " is left";
  }
}

TEST(WorkerGroup, AnswersCancelsIdlesAndEnds) {
  FakeServer server;
  Workers workers(kDemoModel, server.port());
  const cluster::v1::Hello hello = server.Next(workers, IsHello).hello();
  EXPECT_EQ(hello.ranks(), 2) << workers.Log();
  EXPECT_TRUE(hello.has_retaining_heads());
  EXPECT_GE(hello.max_model_len(), 60000);

  server.Send(Submit(1, 3000, 20, 5));
  int64_t tokens = 0;
  const FromWorker end = server.Next(workers, [&](const FromWorker& m) {
    tokens += m.tokens_size();
    return m.has_end();
  });
  EXPECT_EQ(end.end().reason(), cluster::v1::END_REASON_LENGTH) << end.DebugString();
  EXPECT_EQ(end.end().strategy(), "apb");
  EXPECT_EQ(tokens, 5);

  // Cancels a prefill half-way.
  server.Send(Submit(2, 40000, 20, 5));
  EXPECT_LT(server.Next(workers, IsProgress).progress().processed_tokens(), 40000);
  ToWorker cancel;
  cancel.mutable_cancel()->set_sequence(2);
  server.Send(cancel);
  EXPECT_EQ(server.Next(workers, IsEnd).end().reason(), cluster::v1::END_REASON_CANCELLED);
  EXPECT_EQ(server.Next(workers, AllBlocksAreFree).stats().ranks_size(), 2);

  // A token outside the vocabulary ends only its own request.
  ToWorker wrong = Submit(3, 100, 20, 5);
  wrong.mutable_submit()->set_tokens(50, 1 << 20);
  server.Send(wrong);
  const FromWorker refused = server.Next(workers, IsEnd);
  EXPECT_EQ(refused.end().reason(), cluster::v1::END_REASON_REJECTED);
  EXPECT_THAT(refused.end().message(), HasSubstr("vocabulary"));

  // Measures CPU time, not wall time.
  const std::vector<int> ranks = workers.Ranks();
  absl::SleepFor(absl::Milliseconds(200));
  std::vector<double> before;
  for (const int pid : ranks) before.push_back(CpuSeconds(pid));
  const absl::Time start = absl::Now();
  absl::SleepFor(absl::Seconds(5));
  for (size_t i = 0; i < ranks.size(); ++i) {
    const double share =
        (CpuSeconds(ranks[i]) - before[i]) / absl::ToDoubleSeconds(absl::Now() - start);
    std::printf("idle: %.2f %% of a core\n", 100 * share);
    EXPECT_LT(share, 0.02);
  }

  ToWorker drain;
  drain.mutable_drain();
  server.Send(drain);
  EXPECT_EQ(workers.Wait(), 0) << workers.Log();
  ExpectGone(ranks);
}

TEST(WorkerGroup, ADeadRankEndsTheGroup) {
  for (const bool first : {true, false}) {
    FakeServer server;
    Workers workers(kDemoModel, server.port());
    server.Next(workers, IsHello);
    std::vector<int> ranks = workers.Ranks();
    ASSERT_EQ(ranks.size(), 2u) << workers.Log();
    std::sort(ranks.begin(), ranks.end());
    server.Send(Submit(1, 40000, 20, 5));
    server.Next(workers, IsProgress);
    kill(ranks[first ? 0 : 1], SIGKILL);
    EXPECT_GT(workers.Wait(), 0);
    EXPECT_THAT(workers.Log(), HasSubstr("rank"));
    EXPECT_THAT(workers.Log(), HasSubstr("signal 9"));
    ExpectGone(ranks);
    EXPECT_TRUE(server.closed());
  }
}

TEST(WorkerGroup, EndsWithoutAServer) {
  auto server = std::make_unique<FakeServer>();
  Workers workers(kDemoModel, server->port());
  server->Next(workers, IsHello);
  const std::vector<int> ranks = workers.Ranks();
  server->Stop();
  EXPECT_EQ(workers.Wait(), 1);
  EXPECT_THAT(workers.Log(), HasSubstr("the stream to apb-server has ended"));
  ExpectGone(ranks);
}

TEST(WorkerGroup, ADamagedModelIsTold) {
  const fs::path model = fs::path(testing::TempDir()) / absl::StrCat("damaged-", getpid());
  fs::create_directories(model);
  fs::copy(kDemoModel, model, fs::copy_options::overwrite_existing | fs::copy_options::recursive);
  fs::resize_file(model / "model.safetensors", 1000000);
  FakeServer server;
  Workers workers(model, server.port());
  // A server that waits for such a group learns at once that it failed.
  EXPECT_THAT(
      [&] { server.Next(workers, IsHello); },
      testing::ThrowsMessage<std::runtime_error>(AllOf(
          HasSubstr("has ended"), HasSubstr("cannot start"), HasSubstr("model.safetensors"))));
  EXPECT_EQ(workers.Wait(), 3);
  fs::remove_all(model);
}

}  // namespace
}  // namespace apb::worker
