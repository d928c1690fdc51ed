// The queue between a request and its connection.
#include "server/http/stream_sink.h"

namespace apb::http_api {
namespace {

// About the number of bytes that an event becomes on the wire.
size_t BytesOf(const request::Event& event) {
  constexpr size_t kEnvelope = 256;
  const auto* chunk = std::get_if<request::TokenChunk>(&event);
  if (chunk == nullptr) return kEnvelope;
  size_t bytes = kEnvelope + chunk->text.size();
  for (const auto& logprob : chunk->logprobs) bytes += 100 * (1 + logprob.top.size());
  return bytes;
}

}  // namespace

StreamSink::StreamSink(size_t max_bytes, std::function<void()> wake)
    : max_bytes_(max_bytes), wake_(std::move(wake)) {}

bool StreamSink::OnEvent(request::Event event) {
  bool first = false;
  bool too_slow = false;
  {
    absl::MutexLock lock(&mutex_);
    first = events_.empty();
    bytes_ += BytesOf(event);
    too_slow = bytes_ > max_bytes_;
    if (too_slow)
      event = request::Failed{absl::ResourceExhaustedError("the client reads too slowly")};
    events_.push_back(std::move(event));
  }
  if (first) wake_();
  return !too_slow;
}

std::vector<request::Event> StreamSink::Take() {
  absl::MutexLock lock(&mutex_);
  bytes_ = 0;
  return std::exchange(events_, {});
}

}  // namespace apb::http_api
