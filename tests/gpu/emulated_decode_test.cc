// Goal: on the CUDA backend, the executor's decode steps draw the same tokens as recorded graphs
// and operation by operation. Method: decode_contract.h on the emulator, with one rank.
// nccl_decode_test does the same with GPUs.
#include <gtest/gtest.h>

#include "engine/comm/local_communicator.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/engine/executor/decode_contract.h"

namespace apb::worker {
namespace {

TEST(EmulatedDecode, RecordedStepsDrawTheSameTokens) {
  const auto device = *kernels::CreateCudaBackend(0);
  executor::CheckRecordedDecode(
      {.device = *device,
       .make_mesh =
           [](const std::string&) {
             return comm::Mesh(std::move(comm::CreateLocalGroup(1, absl::Minutes(5))[0]));
           },
       .sliced = false,
       .launches = {}});
}

}  // namespace
}  // namespace apb::worker
