// apb-server: turns options into objects, serves, and stops everything in one fixed order.
#include <signal.h>

#include <atomic>
#include <cstdio>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "server/frontend/frontend.h"
#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"
#include "server/launcher/process_tree.h"
#include "server/launcher/worker_launcher.h"
#include "server/options.h"
#include "server/request/admission.h"

namespace apb::server {
namespace {

constexpr char kLocalGroup[] = "local";

enum ExitCode { kExitOk = 0, kExitUsage = 2, kExitModel = 3, kExitFailure = 4 };

sigset_t StopSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

frontend::FrontendOptions FrontendOptionsOf(const Options& o) {
  return {
      .model = o.served_model_name,
      .max_model_len = o.max_model_len,
      .max_input_bytes = o.max_body_bytes,
      .queue = {.waiting_requests = o.max_queued_requests, .waiting_tokens = o.max_queued_tokens},
      .contexts = {.max_contexts = o.max_contexts, .max_ttl_seconds = o.max_context_ttl_seconds},
      .default_strategy = o.default_strategy,
      .text_threads = o.text_threads};
}

grpc_api::GrpcServer::Options GrpcOptionsOf(const Options& o) {
  return {.host = o.host,
          .port = o.grpc_port,
          .cluster_host = o.cluster_host,
          .cluster_port = o.cluster_port,
          .max_message_bytes = static_cast<int>(o.max_body_bytes),
          .service = {.api_keys = o.api_keys, .version = kVersion}};
}

http_api::HttpOptions HttpOptionsOf(const Options& o) {
  return {.host = o.host,
          .port = o.http_port,
          .threads = o.http_threads,
          .api_keys = o.api_keys,
          .version = kVersion,
          .max_connections = o.max_connections,
          .max_body_bytes = static_cast<uint64_t>(o.max_body_bytes),
          .sse_keepalive = absl::Seconds(o.sse_keepalive_seconds)};
}

launcher::LauncherOptions LauncherOptionsOf(const Options& o, const std::string& token,
                                            int cluster_port,
                                            const cluster::GroupRegistry& groups) {
  launcher::LauncherOptions launcher = {
      .mpirun = o.mpirun,
      .preload = o.loopback_library,
      .worker_binary = o.worker_binary,
      .ranks = o.local_ranks,
      .ready_groups = [&groups] { return groups.connections(kLocalGroup); },
      .token = token};
  auto add = [&](const char* flag, const std::string& value) {
    launcher.worker_arguments.push_back(flag);
    launcher.worker_arguments.push_back(value);
  };
  add("--model", o.model);
  add("--server", absl::StrCat("127.0.0.1:", cluster_port));
  add("--group-id", kLocalGroup);
  add("--log-level", o.log_level);
  if (o.virtual_hosts > 0) add("--virtual-hosts", absl::StrCat(o.virtual_hosts));
  if (o.threads_per_rank > 0) add("--threads", absl::StrCat(o.threads_per_rank));
  if (o.kv_cache_tokens > 0) add("--kv-cache-tokens", absl::StrCat(o.kv_cache_tokens));
  if (o.max_model_len > 0) add("--max-model-len", absl::StrCat(o.max_model_len));
  if (!o.device.empty()) add("--device", o.device);
  launcher.worker_arguments.insert(launcher.worker_arguments.end(), o.worker_arguments.begin(),
                                   o.worker_arguments.end());
  return launcher;
}

// Owns everything that runs. Members are destroyed last to first: listeners before the objects that
// they use.
class Server {
 public:
  Server(const Options& options, std::unique_ptr<frontend::PromptProcessor> prompts)
      : options_(options),
        token_(!options.group_token.empty() ? options.group_token
               : options.local_ranks > 0    ? request::NewRequestId()
                                            : ""),
        prompts_(std::move(prompts)),
        metrics_(options.served_model_name, kVersion),
        groups_({.fingerprint = prompts_->fingerprint(), .token = token_}, metrics_),
        frontend_(FrontendOptionsOf(options), *prompts_, groups_, metrics_) {}

  // Binds the ports and starts the workers. Errors: a wrong address, a taken port.
  absl::Status Start();
  // Blocks until a signal arrives or the workers fail for good; returns the exit code.
  int Run();

 private:
  void OnReadiness(bool ready);
  bool OnWorkersEnded(const launcher::GroupExit& exit);
  void PrintSummary() const;
  int Stop();

  const Options& options_;
  const std::string token_;
  const std::unique_ptr<frontend::PromptProcessor> prompts_;
  observability::Metrics metrics_;
  cluster::GroupRegistry groups_;
  frontend::Frontend frontend_;
  std::unique_ptr<http_api::HttpServer> http_;
  std::unique_ptr<grpc_api::GrpcServer> grpc_;
  std::unique_ptr<launcher::WorkerLauncher> launcher_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> was_ready_{false};
  std::atomic<int> fatal_exit_{kExitOk};
};

absl::Status Server::Start() {
  auto grpc = grpc_api::GrpcServer::Start(GrpcOptionsOf(options_), frontend_, groups_);
  if (!grpc.ok()) return grpc.status();
  grpc_ = *std::move(grpc);
  auto http = http_api::HttpServer::Start(HttpOptionsOf(options_), frontend_);
  if (!http.ok()) return http.status();
  http_ = *std::move(http);
  groups_.SetReadinessListener([this](bool ready) { OnReadiness(ready); });
  PrintSummary();
  if (options_.local_ranks > 0) {
    if (options_.loopback_library.empty()) {
      APB_LOG(Warning, "apb-loopback.so is not beside apb-server: mpirun listens on all addresses");
    }
    launcher_ = std::make_unique<launcher::WorkerLauncher>(
        LauncherOptionsOf(options_, token_, grpc_->cluster_port(), groups_),
        [this](const launcher::GroupExit& exit) { return OnWorkersEnded(exit); }, metrics_);
  }
  return absl::OkStatus();
}

void Server::PrintSummary() const {
  APB_LOG(Info, "apb-server ", kVersion, " model=", options_.served_model_name,
          " directory=", options_.model, " dtype=", prompts_->dtype(),
          " vocab=", prompts_->vocab_size(),
          " chat_template=", prompts_->has_chat_template() ? "yes" : "no",
          " max_model_len=", frontend_.max_model_len());
  APB_LOG(Info, "http=", options_.host, ":", http_->port(), " grpc=", options_.host, ":",
          grpc_->port(), " workers dial ", options_.cluster_host, ":", grpc_->cluster_port(),
          " local_ranks=", options_.local_ranks, " virtual_hosts=", options_.virtual_hosts,
          " default_strategy=", options_.default_strategy, " api_keys=", options_.api_keys.size());
  if (options_.api_keys.empty() && options_.host != "127.0.0.1" && options_.host != "localhost") {
    APB_LOG(Warning, "everybody who can reach ", options_.host,
            " may use this server: --api-key guards it");
  }
}

void Server::OnReadiness(bool ready) {
  if (draining_) return;
  metrics_.SetServerState(ready ? "ready" : "not_ready");
  grpc_->SetServing(ready);
  APB_LOG(Info, ready ? "ready" : "not ready: no worker group is connected");
  if (ready && !was_ready_.exchange(true)) {
    std::printf("ready http://%s:%d\n", options_.host.c_str(), http_->port());
    std::fflush(stdout);
  }
}

bool Server::OnWorkersEnded(const launcher::GroupExit& exit) {
  // A caller without access to the server learns nothing about its disks either.
  const bool tell = options_.api_keys.empty() && !exit.reason.empty();
  groups_.SetAbsenceReason(
      exit.failed_starts == 0
          ? absl::StrCat("the local group ended with status ", exit.status, " and is started again")
          : absl::StrCat("the local group could not start, ", exit.failed_starts,
                         " times, last with status ", exit.status, "; it tries again in ",
                         absl::FormatDuration(exit.next_start), tell ? ": " : "; see the log",
                         tell ? exit.reason : ""));
  if (was_ready_ || exit.status != kExitModel) return true;
  APB_LOG(Error, "the workers cannot start: ", exit.reason);
  fatal_exit_ = kExitModel;
  kill(getpid(), SIGTERM);
  return false;
}

int Server::Run() {
  const sigset_t signals = StopSignals();
  int signal_number = 0;
  sigwait(&signals, &signal_number);
  APB_LOG(Info, "signal ", signal_number, ": draining, in_flight=", frontend_.in_flight());
  return Stop();
}

int Server::Stop() {
  draining_ = true;
  metrics_.SetServerState("draining");
  grpc_->SetServing(false);
  frontend_.BeginDrain();
  const absl::Time deadline = absl::Now() + absl::Seconds(options_.drain_timeout_seconds);
  const sigset_t signals = StopSignals();
  bool hurry = false;
  while (!hurry && absl::Now() < deadline &&
         !frontend_.AwaitIdle(absl::Now() + absl::Milliseconds(50))) {
    const timespec now{0, 0};
    hurry = sigtimedwait(&signals, nullptr, &now) > 0;
  }
  if (frontend_.in_flight() > 0) {
    APB_LOG(Warning, "giving up ", frontend_.in_flight(), " requests");
    frontend_.FailAll(absl::AbortedError("the server is shutting down"));
  }
  const absl::Duration flush = absl::Seconds(hurry ? 0.5 : 5);
  http_->Shutdown(absl::Now() + flush);
  groups_.DrainAll();
  if (launcher_ != nullptr) {
    if (hurry) launcher_->Hurry();
    launcher_->Stop();
  }
  grpc_->Shutdown(absl::Now() + flush);
  if (!launcher::KillDescendants(absl::Now() + absl::Seconds(5))) {
    APB_LOG(Error, "a process of the workers is still there");
    return kExitFailure;
  }
  APB_LOG(Info, "stopped");
  return fatal_exit_;
}

int Main(int argc, char** argv) {
  const ParsedOptions parsed = ParseOptions(argc, argv);
  if (!parsed.run) return parsed.exit_code;
  base::LogLevel level = base::LogLevel::kInfo;
  base::ParseLogLevel(parsed.options.log_level, &level);
  base::SetLogLevel(level);
  base::SetLogJson(parsed.options.log_json);

  signal(SIGPIPE, SIG_IGN);
  const sigset_t signals = StopSignals();
  // Every thread inherits the blocked signals; Run waits for them.
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  launcher::AdoptOrphans();

  auto prompts = frontend::PromptProcessor::Load(parsed.options.model);
  if (!prompts.ok()) {
    APB_LOG(Error, "model ", parsed.options.model, ": ", prompts.status().message());
    return kExitModel;
  }
  Server server(parsed.options, *std::move(prompts));
  if (absl::Status status = server.Start(); !status.ok()) {
    APB_LOG(Error, status.message());
    return kExitUsage;
  }
  return server.Run();
}

}  // namespace
}  // namespace apb::server

int main(int argc, char** argv) { return apb::server::Main(argc, argv); }
