// Goal: the executor's decode steps, prefill to sampling, on the CUDA backend: as graphs they draw
// the same tokens. Method: decode_contract.h on the emulator, one rank. What nccl_decode_test does
// with GPUs.
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
