// The command line of apb-server.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace apb::server {

inline constexpr char kVersion[] = APB_VERSION;  // version of the CMake project

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
  // apb-loopback.so, which launcher::LauncherOptions preloads. Empty when it was not found.
  std::string loopback_library;
  std::string mpirun = "mpirun";
  int virtual_hosts = 0;  // 0: the worker's default
  // 0: cores / ranks.
  int threads_per_rank = 0;
  // KV cache of the whole group, in tokens. 0: sized from free memory.
  int64_t kv_cache_tokens = 0;
  std::string device;
  std::vector<std::string> worker_arguments;
  std::string group_token;

  // Tokens of prompt + completion. 0: as many as model and KV cache allow.
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

// With run == false the process returns `exit_code`: 0 after --help and --version, 2 after a wrong
// command line. ParseOptions has then printed the text or the error.
struct ParsedOptions {
  Options options;
  bool run = false;
  int exit_code = 0;
};
ParsedOptions ParseOptions(int argc, char** argv);

}  // namespace apb::server
