// Flags, their environment variables, and their checks.
#include "server/options.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "CLI/CLI.hpp"
#include "absl/strings/str_split.h"
#include "engine/base/shared_flags.h"
#include "server/request/canonical_request.h"

namespace apb::server {
namespace {

constexpr char kFooter[] = R"(
Exit codes: 0 stopped as asked; 2 wrong command line, or a port is taken; 3 the model cannot be
loaded; 4 the workers could not be stopped in time or the server failed otherwise.
Signals: SIGTERM or SIGINT finish what is in flight (--drain-timeout) and stop; a second one stops at once.
Without --local-ranks the server waits for groups that are started elsewhere with
`mpirun -n N apb-worker --server HOST:CLUSTER_PORT`.)";

void AddListeners(CLI::App& app, Options& o) {
  app.add_option("--host", o.host, "Address of HTTP and gRPC")
      ->capture_default_str()
      ->group("Listeners");
  app.add_option("--http-port", o.http_port, "Port of the OpenAI-style API; 0: any free one")
      ->envname("HTTP_PORT")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group("Listeners");
  app.add_option("--grpc-port", o.grpc_port, "Port of the gRPC API; 0: any free one")
      ->envname("GRPC_PORT")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group("Listeners");
  app.add_option("--cluster-host", o.cluster_host, "Address that worker groups dial")
      ->capture_default_str()
      ->group("Listeners");
  app.add_option("--cluster-port", o.cluster_port, "Port that worker groups dial; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group("Listeners");
  app.add_option("--api-key", o.api_keys, "Key that clients must send as bearer token; repeatable")
      ->envname("APB_API_KEY")
      ->allow_extra_args(false)
      ->group("Listeners");
  app.add_option("--http-threads", o.http_threads, "Event loop threads of HTTP")
      ->check(CLI::Range(1, 256))
      ->capture_default_str()
      ->group("Listeners");
  app.add_option("--text-threads", o.text_threads, "Threads for templates and tokenization")
      ->check(CLI::Range(1, 256))
      ->capture_default_str()
      ->group("Listeners");
  app.add_option("--max-connections", o.max_connections, "Open HTTP connections")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group("Listeners");
}

void AddModel(CLI::App& app, Options& o) {
  app.add_option("--model", o.model, "Checkpoint directory (Hugging Face layout)")
      ->envname("MODEL")
      ->required()
      ->check(CLI::ExistingDirectory)
      ->group("Model");
  app.add_option("--served-model-name", o.served_model_name,
                 "Name in the API; default: the directory's name")
      ->group("Model");
  app.add_option("--max-model-len", o.max_model_len,
                 "Tokens of prompt + completion; 0: what model and cache allow")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group("Model");
  app.add_option("--default-strategy", o.default_strategy,
                 "Strategy of requests that name none: auto, or one that the worker groups run")
      ->capture_default_str()
      ->group("Model");
}

void AddWorkers(CLI::App& app, Options& o) {
  app.add_option("--local-ranks", o.local_ranks,
                 "Start and supervise a group of so many ranks; 0: none")
      ->envname("RANKS")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str()
      ->group("Workers");
  app.add_option("--virtual-hosts", o.virtual_hosts, "APB hosts per rank; 0: the worker's default")
      ->envname("VIRTUAL_HOSTS")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str()
      ->group("Workers");
  app.add_option("--threads-per-rank", o.threads_per_rank, "0: cores / ranks")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str()
      ->group("Workers");
  app.add_option("--kv-cache-tokens", o.kv_cache_tokens, base::kKvCacheTokensHelp)
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group("Workers");
  app.add_option("--device", o.device, base::kDeviceHelp)->group("Workers");
  app.add_option("--worker-binary", o.worker_binary,
                 "Default: apb-worker beside this program or in PATH")
      ->group("Workers");
  app.add_option("--worker-args", o.worker_arguments,
                 "More arguments of apb-worker, in one string; repeatable")
      ->allow_extra_args(false)
      ->group("Workers");
  app.add_option("--mpirun", o.mpirun, "The program that starts the ranks")
      ->capture_default_str()
      ->group("Workers");
  app.add_option("--group-token", o.group_token,
                 "Secret that groups must know; default: random with --local-ranks, else none")
      ->envname("APB_GROUP_TOKEN")
      ->group("Workers");
}

void AddLimits(CLI::App& app, Options& o) {
  app.add_option("--max-queued-requests", o.max_queued_requests, "Requests that may wait")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str()
      ->group("Limits");
  app.add_option("--max-queued-tokens", o.max_queued_tokens, "Prompt tokens that may wait")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group("Limits");
  app.add_option("--max-contexts", o.max_contexts, "Contexts that may be kept at a time; 0: none")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str()
      ->group("Limits");
  app.add_option("--max-context-ttl", o.max_context_ttl_seconds,
                 "Longest ttl_seconds of a context; also the default where that is below an hour")
      ->check(CLI::Range(1, 1 << 30))
      ->capture_default_str()
      ->group("Limits");
  app.add_option("--max-body-bytes", o.max_body_bytes, "HTTP body and gRPC message")
      ->check(CLI::Range(1024, 1 << 30))
      ->capture_default_str()
      ->group("Limits");
  app.add_option("--sse-keepalive-seconds", o.sse_keepalive_seconds,
                 "Comment lines in silent streams")
      ->check(CLI::Range(0.05, 86400.0))
      ->capture_default_str()
      ->group("Limits");
  app.add_option("--drain-timeout", o.drain_timeout_seconds,
                 "Seconds that requests may take after SIGTERM")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str()
      ->group("Limits");
}

// The first of these paths that exists, relative to this program's folder; empty if none does.
std::string FindBeside(std::initializer_list<const char*> candidates) {
  std::error_code error;
  const auto here = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  for (const char* candidate : candidates) {
    if (std::filesystem::exists(here / candidate, error))
      return (here / candidate).lexically_normal();
  }
  return "";
}

// apb-worker beside this program (installed), else where the build tree has it, else the one in
// PATH.
std::string FindWorker() {
  const std::string found = FindBeside({"apb-worker", "../engine/worker/apb-worker"});
  return found.empty() ? "apb-worker" : found;
}

// "/models/llama/" -> "llama"
std::string NameOf(const std::string& directory) {
  std::filesystem::path path = std::filesystem::path(directory).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  const std::string name = path.filename().string();
  return name.empty() || name == "." ? "model" : name;
}

std::vector<std::string> SplitWords(const std::vector<std::string>& texts) {
  std::vector<std::string> words;
  for (const std::string& text : texts) {
    for (absl::string_view word : absl::StrSplit(text, ' ', absl::SkipEmpty()))
      words.emplace_back(word);
  }
  return words;
}

}  // namespace

ParsedOptions ParseOptions(int argc, char** argv) {
  ParsedOptions parsed;
  Options& o = parsed.options;
  CLI::App app("Serves a long-context language model over HTTP (OpenAI's API) and gRPC.",
               "apb-server");
  app.footer(kFooter);
  app.set_version_flag("--version", std::string("apb-server ") + kVersion);
  AddListeners(app, o);
  AddModel(app, o);
  AddWorkers(app, o);
  AddLimits(app, o);
  app.add_option("--log-level", o.log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str()
      ->group("Log");
  app.add_flag("--log-json", o.log_json, "JSON lines instead of text")->group("Log");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    parsed.exit_code = app.exit(error) == 0 ? 0 : 2;
    return parsed;
  }
  if (o.served_model_name.empty()) o.served_model_name = NameOf(o.model);
  if (o.worker_binary.empty()) o.worker_binary = FindWorker();
  o.loopback_library = FindBeside({"apb-loopback.so"});
  o.worker_arguments = SplitWords(o.worker_arguments);
  // mpirun itself looks up a name without a slash.
  if (o.local_ranks > 0 && o.worker_binary.find('/') != std::string::npos &&
      access(o.worker_binary.c_str(), X_OK) != 0) {
    std::fprintf(stderr, "--worker-binary %s: cannot be run: %s\n", o.worker_binary.c_str(),
                 std::strerror(errno));
    parsed.exit_code = 2;
    return parsed;
  }
  parsed.run = true;
  return parsed;
}

}  // namespace apb::server
