#include "tests/gpu/nccl_meeting.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/time/clock.h"
#include "engine/comm/nccl_communicator.h"
#include "kernels/cuda/cuda_backend.h"

namespace apb::comm {
namespace {

int rank = 0, size = 1;
std::string meeting_file;

// Shares NCCL's id through the file `path`. Rank 0 writes it under another name and renames the
// file, so that no rank reads half of it.
absl::StatusOr<std::string> ShareId(const std::string& path) {
  if (rank == 0) {
    absl::StatusOr<std::string> id = NewNcclId();
    if (!id.ok()) return id;
    std::ofstream(path + ".new", std::ios::binary) << *id;
    if (std::rename((path + ".new").c_str(), path.c_str()) != 0)
      return absl::InternalError("cannot write " + path);
    return id;
  }
  for (int i = 0; i < 3000; ++i) {
    std::ifstream in(path, std::ios::binary);
    std::string id{std::istreambuf_iterator<char>(in), {}};
    if (!id.empty()) return id;
    absl::SleepFor(absl::Milliseconds(10));
  }
  return absl::UnavailableError("rank 0 wrote no id to " + path);
}

}  // namespace

int NcclRank() { return rank; }
int NcclRanks() { return size; }

kernels::Backend& NcclTestBackend() {
  static auto backend = *kernels::CreateCudaBackend(rank % *kernels::UsableCudaDevices());
  return *backend;
}

absl::StatusOr<std::unique_ptr<Communicator>> Meet(const char* name, absl::Duration deadline) {
  NcclTestBackend();  // makes its GPU the thread's current device
  absl::StatusOr<std::string> id = ShareId(meeting_file + "." + name);
  if (!id.ok()) return id.status();
  return CreateNcclCommunicator({.id = *id, .rank = rank, .size = size, .deadline = deadline});
}

int RunNcclRank(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  if (argc != 4) {
    std::fprintf(stderr, "usage: %s RANK SIZE FILE\n", argv[0]);
    return 2;
  }
  rank = std::atoi(argv[1]);
  size = std::atoi(argv[2]);
  meeting_file = argv[3];
  return RUN_ALL_TESTS();
}

}  // namespace apb::comm
