#include "engine/worker/control_channel.h"

#include <grpcpp/grpcpp.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"

namespace apb::worker {

absl::StatusOr<std::unique_ptr<ControlChannel>> ControlChannel::Connect(
    const std::string& server, const cluster::v1::Hello& hello, absl::Duration deadline) {
  grpc::ChannelArguments arguments;
  constexpr int kMaxMessageBytes = 64 << 20;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  // Notices within half a minute that a server on another machine has vanished.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  auto channel = grpc::CreateCustomChannel(server, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(absl::ToChronoTime(absl::Now() + deadline))) {
    return absl::UnavailableError(absl::StrCat("no apb-server at ", server));
  }
  auto control = std::unique_ptr<ControlChannel>(new ControlChannel());
  control->stub_ = cluster::v1::WorkerGroupService::NewStub(channel);
  control->stream_ = control->stub_->Connect(&control->context_);
  cluster::v1::FromWorker message;
  *message.mutable_hello() = hello;
  if (!control->stream_->Write(message)) {
    const grpc::Status status = control->stream_->Finish();
    control->finished_ = true;
    return absl::UnavailableError(
        absl::StrCat("apb-server at ", server, " refused this group: ", status.error_message()));
  }
  control->reader_ = std::thread([c = control.get()] { c->ReadLoop(); });
  return control;
}

void ControlChannel::ReadLoop() {
  cluster::v1::ToWorker message;
  while (stream_->Read(&message)) {
    if (!commands_.TryPush(std::move(message))) {
      APB_LOG(Error, "the command queue is full; ending the group");
      break;
    }
    message.Clear();
  }
  commands_.Close();
}

absl::Status ControlChannel::Finish() {
  stream_->WritesDone();
  if (reader_.joinable()) reader_.join();
  finished_ = true;
  const grpc::Status status = stream_->Finish();
  if (status.ok()) return absl::OkStatus();
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

ControlChannel::~ControlChannel() {
  if (!finished_) context_.TryCancel();
  if (reader_.joinable()) reader_.join();
}

}  // namespace apb::worker
