// One HTTP connection: its deadlines, its writing, and noticing that the client is gone. All calls
// but Wake are made on the connection's strand.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "boost/asio/as_tuple.hpp"
#include "boost/asio/awaitable.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/use_awaitable.hpp"
#include "boost/beast/core/flat_buffer.hpp"

namespace apb::http_api {

// Makes an awaited operation return its error as a value.
inline constexpr auto kAwait = boost::asio::as_tuple(boost::asio::use_awaitable);

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  // `write_timeout`: how long one Write may take.
  Connection(boost::asio::ip::tcp::socket socket, absl::Duration write_timeout);

  boost::asio::ip::tcp::socket& socket() { return socket_; }
  // Bytes that were read and not used yet.
  boost::beast::flat_buffer& buffer() { return buffer_; }

  // Cancels the socket's operations after this time; replaces an earlier timeout.
  void SetTimeout(absl::Duration duration);
  // Stops the timeout; true if it had already passed.
  bool ClearTimeout();

  // Writes all bytes. False: the client is gone, or did not take them within write_timeout.
  boost::asio::awaitable<bool> Write(std::string bytes);
  // Ends the sending half and reads what the client still sends. Unread bytes would turn the close
  // into a reset, which may overtake the response.
  boost::asio::awaitable<void> EndSending();
  void Close();

  // Between StartWatching and StopWatching the connection reads ahead, to notice while a response
  // is computed that the client is gone. StopWatching must be awaited before the next read.
  void StartWatching();
  boost::asio::awaitable<void> StopWatching();
  bool client_gone() const { return client_gone_; }

  // Waits for the next Wake (true), or for that time (false).
  boost::asio::awaitable<bool> AwaitWake(absl::Duration duration);
  // May be called from any thread.
  void Wake();

 private:
  boost::asio::awaitable<void> Watch();

  boost::asio::ip::tcp::socket socket_;
  const absl::Duration write_timeout_;
  boost::beast::flat_buffer buffer_;
  boost::asio::steady_timer timeout_timer_;
  uint64_t timeout_number_ = 0;
  bool timed_out_ = false;
  boost::asio::steady_timer wake_timer_;  // cancelled to wake AwaitWake
  bool watching_ = false;
  bool client_gone_ = false;
};

}  // namespace apb::http_api
