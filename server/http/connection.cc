// Timers, writing and watching.
#include "server/http/connection.h"

#include "boost/asio/co_spawn.hpp"
#include "boost/asio/detached.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/write.hpp"

namespace apb::http_api {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

// Bytes that a client may send ahead while it waits for a response.
constexpr size_t kMaxPipelinedBytes = 64 << 10;

}  // namespace

Connection::Connection(tcp::socket socket, absl::Duration write_timeout)
    : socket_(std::move(socket)),
      write_timeout_(write_timeout),
      timeout_timer_(socket_.get_executor()),
      wake_timer_(socket_.get_executor()) {
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
}

void Connection::SetTimeout(absl::Duration duration) {
  const uint64_t number = ++timeout_number_;
  timed_out_ = false;
  timeout_timer_.expires_after(absl::ToChronoMilliseconds(duration));
  timeout_timer_.async_wait([self = shared_from_this(), number](const error_code& error) {
    if (error || number != self->timeout_number_) return;
    self->timed_out_ = true;
    error_code ignored;
    self->socket_.cancel(ignored);
  });
}

bool Connection::ClearTimeout() {
  ++timeout_number_;
  timeout_timer_.cancel();
  return timed_out_;
}

asio::awaitable<bool> Connection::Write(std::string bytes) {
  SetTimeout(write_timeout_);
  auto [error, size] = co_await asio::async_write(socket_, asio::buffer(bytes), kAwait);
  ClearTimeout();
  co_return !error;
}

asio::awaitable<void> Connection::EndSending() {
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  SetTimeout(absl::Seconds(1));
  char waste[4096];
  for (int i = 0; i < 256; ++i) {
    auto [error, size] = co_await socket_.async_read_some(asio::buffer(waste), kAwait);
    if (error) break;
  }
}

void Connection::Close() {
  ClearTimeout();
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
}

void Connection::StartWatching() {
  watching_ = true;
  client_gone_ = false;
  asio::co_spawn(
      socket_.get_executor(), [self = shared_from_this()] { return self->Watch(); },
      asio::detached);
}

asio::awaitable<void> Connection::Watch() {
  auto self = shared_from_this();
  while (buffer_.size() < kMaxPipelinedBytes) {
    auto [error, size] = co_await socket_.async_read_some(buffer_.prepare(4096), kAwait);
    if (error) {
      if (error != asio::error::operation_aborted) client_gone_ = true;
      break;
    }
    buffer_.commit(size);
  }
  watching_ = false;
  wake_timer_.cancel();
}

asio::awaitable<void> Connection::StopWatching() {
  error_code ignored;
  while (watching_) {
    socket_.cancel(ignored);
    co_await AwaitWake(absl::Milliseconds(50));
  }
}

asio::awaitable<bool> Connection::AwaitWake(absl::Duration duration) {
  wake_timer_.expires_after(absl::ToChronoMilliseconds(duration));
  auto [error] = co_await wake_timer_.async_wait(kAwait);
  co_return bool(error);
}

void Connection::Wake() {
  asio::post(socket_.get_executor(), [weak = weak_from_this()] {
    if (const auto self = weak.lock()) self->wake_timer_.cancel();
  });
}

}  // namespace apb::http_api
