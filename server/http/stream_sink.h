// Carries the events of one request, from whichever thread they come, to the strand of its
// connection.
#pragma once

#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "server/request/events.h"

namespace apb::http_api {

class StreamSink final : public request::EventSink {
 public:
  // `wake` is called from any thread when the empty queue gets an event.
  StreamSink(size_t max_bytes, std::function<void()> wake);

  // Queues an event. False when more than `max_bytes` would wait for the client.
  bool OnEvent(request::Event event) override;
  // Returns all queued events, oldest first.
  std::vector<request::Event> Take();

 private:
  const size_t max_bytes_;
  const std::function<void()> wake_;
  absl::Mutex mutex_;
  std::vector<request::Event> events_ ABSL_GUARDED_BY(mutex_);
  size_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace apb::http_api
