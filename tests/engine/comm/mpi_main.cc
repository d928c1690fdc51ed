#include "tests/engine/comm/mpi_main.h"

#include <gtest/gtest.h>

#include <cstdio>

namespace apb::comm {
namespace {

MpiRuntime* runtime = nullptr;

// The output of ranks above 0: failures only.
class FailurePrinter : public testing::EmptyTestEventListener {
  void OnTestPartResult(const testing::TestPartResult& result) override {
    if (!result.failed()) return;
    std::fprintf(stderr, "rank %d: %s:%d: %s\n", runtime->rank(), result.file_name(),
                 result.line_number(), result.message());
  }
};

}  // namespace

MpiRuntime& TestRuntime() { return *runtime; }

}  // namespace apb::comm

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  auto started = apb::comm::MpiRuntime::Start(&argc, &argv);
  if (!started.ok()) {
    std::fprintf(stderr, "%s\n", started.status().ToString().c_str());
    return 1;
  }
  apb::comm::runtime = started->get();
  if ((*started)->rank() > 0) {
    auto& listeners = testing::UnitTest::GetInstance()->listeners();
    delete listeners.Release(listeners.default_result_printer());
    listeners.Append(new apb::comm::FailurePrinter);
  }
  const int result = RUN_ALL_TESTS();
  // After a failed assertion, the other ranks may be blocked in a collective.
  if (result != 0) apb::comm::MpiRuntime::AbortGroup(result);
  return 0;
}
