#include "engine/comm/mpi_runtime.h"

#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/status_macros.h"
#include "engine/comm/mpi_communicator.h"
#include "engine/comm/mpi_wait.h"

namespace apb::comm {
namespace {

constexpr size_t kMaxMessageBytes = 1 << 30;  // MPI's counts are ints

absl::Status CheckMessage(const std::string& message, const char* what) {
  if (message.size() <= kMaxMessageBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(what, " of ", message.size(), " bytes, at most ", kMaxMessageBytes));
}

// The pause between two polls of the network: none for a millisecond, then longer and longer, up to
// 2 ms.
class Backoff {
 public:
  void Pause() {
    if (absl::Now() - start_ < absl::Milliseconds(1)) {
      sched_yield();
      return;
    }
    absl::SleepFor(nap_);
    nap_ = std::min(nap_ * 2, absl::Milliseconds(2));
  }
  absl::Duration waited() const { return absl::Now() - start_; }

 private:
  const absl::Time start_ = absl::Now();
  absl::Duration nap_ = absl::Microseconds(50);
};
}  // namespace

absl::Status MpiError(int code, absl::string_view what) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int length = 0;
  MPI_Error_string(code, text, &length);
  return absl::UnavailableError(absl::StrCat("MPI ", what, ": ", std::string(text, length)));
}

absl::Status WaitAll(MPI_Request* requests, int count, absl::Duration deadline,
                     const std::atomic<bool>* aborted, const std::string& what) {
  absl::Time start;
  for (int64_t round = 0;; ++round) {
    int done = 0;
    const int code = MPI_Testall(count, requests, &done, MPI_STATUSES_IGNORE);
    if (code != MPI_SUCCESS) return MpiError(code, what);
    if (done) return absl::OkStatus();
    if (round < 200) continue;
    if (aborted != nullptr && aborted->load())
      return absl::UnavailableError(absl::StrCat(what, ": the group was aborted"));
    // Ranks may share a core: let the peer run.
    sched_yield();
    if (round == 200) start = absl::Now();
    if (round % 1024 == 0 && absl::Now() - start > deadline) {
      return absl::UnavailableError(
          absl::StrCat(what, ": a peer did not answer within ", absl::FormatDuration(deadline)));
    }
    if (round > 20000) {
      const timespec nap = {0, 50'000};
      nanosleep(&nap, nullptr);
    }
  }
}

struct MpiRuntime::Context {
  MPI_Comm messages = MPI_COMM_NULL;
};

absl::StatusOr<std::unique_ptr<MpiRuntime>> MpiRuntime::Start(int* argc, char*** argv) {
  int provided = 0;
  if (MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided) != MPI_SUCCESS) {
    return absl::UnavailableError("MPI_Init_thread failed");
  }
  if (provided < MPI_THREAD_SERIALIZED)
    return absl::FailedPreconditionError("this MPI does not support MPI_THREAD_SERIALIZED");
  auto runtime = std::unique_ptr<MpiRuntime>(new MpiRuntime());
  runtime->context_ = std::make_unique<Context>();
  MPI_Comm_rank(MPI_COMM_WORLD, &runtime->rank_);
  MPI_Comm_size(MPI_COMM_WORLD, &runtime->size_);
  MPI_Comm machine;
  MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &runtime->local_rank_);
  MPI_Comm_size(machine, &runtime->local_size_);
  MPI_Comm_free(&machine);
  MPI_Comm_dup(MPI_COMM_WORLD, &runtime->context_->messages);
  MPI_Comm_set_errhandler(runtime->context_->messages, MPI_ERRORS_RETURN);
  return runtime;
}

MpiRuntime::~MpiRuntime() {
  MPI_Comm_free(&context_->messages);
  MPI_Finalize();
}

std::string MpiRuntime::host() const {
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return name;
}

absl::StatusOr<std::unique_ptr<Communicator>> MpiRuntime::NewCommunicator(absl::Duration deadline,
                                                                          int color) {
  return MpiCommunicator::Create(deadline, color);
}

absl::StatusOr<Mesh> MpiRuntime::NewMesh(int tensor_size, absl::Duration deadline) {
  if (tensor_size < 1 || size_ % tensor_size != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--tensor-parallel ", tensor_size, ": does not divide the ", size_, " ranks"));
  }
  APB_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> all, NewCommunicator(deadline));
  if (tensor_size == 1) return Mesh(std::move(all));
  APB_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> context,
                       NewCommunicator(deadline, rank_ % tensor_size));
  APB_ASSIGN_OR_RETURN(std::unique_ptr<Communicator> tensor,
                       NewCommunicator(deadline, rank_ / tensor_size));
  return Mesh(std::move(all), std::move(context), std::move(tensor));
}

absl::Status MpiRuntime::SendPlan(const std::string& message, absl::Duration deadline) {
  APB_RETURN_IF_ERROR(CheckMessage(message, "a step plan"));
  std::vector<MPI_Request> requests(size_ - 1);
  for (int r = 1; r < size_; ++r) {
    const int code = MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE, r,
                               kPlanTag, context_->messages, &requests[r - 1]);
    if (code != MPI_SUCCESS) return MpiError(code, "sending a step plan");
  }
  return WaitAll(requests.data(), size_ - 1, deadline, nullptr, "sending a step plan");
}

absl::StatusOr<std::string> MpiRuntime::ReceivePlan(absl::Duration deadline) {
  Backoff backoff;
  MPI_Status status;
  for (int found = 0; !found;) {
    const int code = MPI_Iprobe(0, kPlanTag, context_->messages, &found, &status);
    if (code != MPI_SUCCESS) return MpiError(code, "waiting for a step plan");
    if (!found && backoff.waited() > deadline)
      return absl::UnavailableError(
          absl::StrCat("the leader sent no step plan within ", absl::FormatDuration(deadline)));
    if (!found) backoff.Pause();
  }
  int bytes = 0;
  MPI_Get_count(&status, MPI_BYTE, &bytes);
  std::string message(bytes, '\0');
  const int code =
      MPI_Recv(message.data(), bytes, MPI_BYTE, 0, kPlanTag, context_->messages, MPI_STATUS_IGNORE);
  if (code != MPI_SUCCESS) return MpiError(code, "receiving a step plan");
  return message;
}

absl::StatusOr<std::vector<std::string>> MpiRuntime::GatherToLeader(const std::string& message,
                                                                    absl::Duration deadline) {
  APB_RETURN_IF_ERROR(CheckMessage(message, "statistics"));
  if (rank_ != 0) {
    MPI_Request request = MPI_REQUEST_NULL;
    MPI_Isend(message.data(), static_cast<int>(message.size()), MPI_BYTE, 0, kGatherTag,
              context_->messages, &request);
    APB_RETURN_IF_ERROR(WaitAll(&request, 1, deadline, nullptr, "sending statistics"));
    return std::vector<std::string>();
  }
  std::vector<std::string> all(size_);
  all[0] = message;
  for (int r = 1; r < size_; ++r) {
    Backoff backoff;
    MPI_Status status;
    for (int found = 0; !found;) {
      const int code = MPI_Iprobe(r, kGatherTag, context_->messages, &found, &status);
      if (code != MPI_SUCCESS) return MpiError(code, "gathering statistics");
      if (!found && backoff.waited() > deadline)
        return absl::UnavailableError(absl::StrCat("rank ", r, " sent no statistics within ",
                                                   absl::FormatDuration(deadline)));
      if (!found) backoff.Pause();
    }
    int bytes = 0;
    MPI_Get_count(&status, MPI_BYTE, &bytes);
    all[r].resize(bytes);
    MPI_Recv(all[r].data(), bytes, MPI_BYTE, r, kGatherTag, context_->messages, MPI_STATUS_IGNORE);
  }
  return all;
}

void MpiRuntime::AbortGroup(int exit_code) {
  int initialized = 0;
  MPI_Initialized(&initialized);
  if (initialized) MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

}  // namespace apb::comm
