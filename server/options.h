// The command line of apb-server.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace apb::server {

inline constexpr char kVersion[] = APB_VERSION;  // of the CMake project

struct Options {
  std::string model;
  std::string served_model_name;
  std::string host = "127.0.0.1";
  int http_port = 8000;
  int grpc_port = 50051;
  std::string cluster_host = "127.0.0.1";
  int cluster_port = 0;
  int http_threads = 2;
  int text_threads = 2;
  std::vector<std::string> api_keys;

  int local_ranks = 0;
  std::string worker_binary;
  std::string loopback_library;  // what frontend::LauncherOptions preloads; empty: not found
  std::string mpirun = "mpirun";
  int virtual_hosts = 0;  // 0: the worker's default
  int threads_per_rank = 0;
  int64_t kv_cache_tokens = 0;
  std::string device;
  std::vector<std::string> worker_arguments;
  std::string group_token;

  int64_t max_model_len = 0;
  std::string default_strategy = "auto";
  int64_t max_queued_requests = 128;
  int64_t max_queued_tokens = 4 << 20;
  int64_t max_contexts = 64;
  int64_t max_context_ttl_seconds = 86'400;  // a day
  int64_t max_body_bytes = 64 << 20;
  int64_t max_connections = 4096;
  double sse_keepalive_seconds = 15;
  double drain_timeout_seconds = 30;
  std::string log_level = "info";
  bool log_json = false;
};

// `exit_code` is what the process should return when there are no options to run with: 0 after
// --help and --version, 2 when the command line is wrong; what there was to say has then been
// printed.
struct ParsedOptions {
  Options options;
  bool run = false;
  int exit_code = 0;
};
ParsedOptions ParseOptions(int argc, char** argv);

}  // namespace apb::server
