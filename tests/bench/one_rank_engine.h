// The engine in one process whose one rank plays all hosts, for measuring what strategies answer:
// weights, step executor and scheduler, without server, MPI or sockets.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "engine/comm/local_communicator.h"
#include "engine/comm/mesh.h"
#include "engine/executor/step_executor.h"
#include "engine/schedule/scheduler.h"

namespace apb::bench {

struct OneRankOptions {
  std::string model, quantize = "none";
  bool float32 = false;
  int threads = 0;  // 0 = all cores
};

// --model, --float32, --quantize, --threads.
void AddOptions(CLI::App& app, OneRankOptions& options);

struct OneRankEngine {
  std::unique_ptr<kernels::Backend> backend;
  std::unique_ptr<comm::Mesh> mesh;
  std::unique_ptr<model::Weights> weights;
  std::unique_ptr<executor::StepExecutor> executor;
  std::unique_ptr<schedule::Scheduler> scheduler;
};

// A KV cache for two sequences of `longest` tokens, with prefix caching.
absl::StatusOr<OneRankEngine> MakeOneRankEngine(const OneRankOptions& options, int64_t longest);

// How a prompt is computed.
struct Configuration {
  std::string strategy, compressor;
  int hosts = 1;
  bool again = false;
  int64_t anchor = -1, passing = -1;  // lengths; -1: default for the length
};

// From "strategy[:compressor[:hosts[:again][:anchor=N][:passing=N]]]".
absl::StatusOr<Configuration> ParseConfiguration(const std::string& text);
void Apply(const Configuration& configuration, schedule::SequenceSpec& spec);

}  // namespace apb::bench
