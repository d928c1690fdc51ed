// Bytes and time of one HTTP connection: deadlines, writing, and noticing that the client is gone.
// Everything but Wake belongs to the connection's strand.
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

// Awaited operations give their error as a value.
inline constexpr auto kAwait = boost::asio::as_tuple(boost::asio::use_awaitable);

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(boost::asio::ip::tcp::socket socket, absl::Duration write_timeout);

  boost::asio::ip::tcp::socket& socket() { return socket_; }
  // What was read and not used yet.
  boost::beast::flat_buffer& buffer() { return buffer_; }

  // From then on operations of the socket are cancelled; replaces an earlier one.
  void SetTimeout(absl::Duration duration);
  // Whether the timeout had passed.
  bool ClearTimeout();

  // False: the client is gone, or took nothing for too long.
  boost::asio::awaitable<bool> Write(std::string bytes);
  // Ends the sending half and reads what is still under way: bytes that were not read would turn
  // the close into a reset, which may overtake the response.
  boost::asio::awaitable<void> EndSending();
  void Close();

  // Between the two, reads ahead while an answer is made, to notice that the client is gone.
  void StartWatching();
  boost::asio::awaitable<void> StopWatching();
  bool client_gone() const { return client_gone_; }

  // Returns at the next Wake (true), or after that time.
  boost::asio::awaitable<bool> AwaitWake(absl::Duration duration);
  // From any thread.
  void Wake();

 private:
  boost::asio::awaitable<void> Watch();

  boost::asio::ip::tcp::socket socket_;
  const absl::Duration write_timeout_;
  boost::beast::flat_buffer buffer_;
  boost::asio::steady_timer timeout_timer_;
  uint64_t timeout_number_ = 0;
  bool timed_out_ = false;
  boost::asio::steady_timer wake_timer_;  // cancelled to wake who waits
  bool watching_ = false;
  bool client_gone_ = false;
};

}  // namespace apb::http_api
