// The HTTP listener: accepts connections and runs their sessions on a few threads.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "boost/asio/io_context.hpp"
#include "boost/asio/ip/tcp.hpp"
#include "server/frontend/frontend.h"

namespace apb::http_api {

struct HttpOptions {
  std::string host = "127.0.0.1";
  int port = 8000;  // 0: any free port
  int threads = 2;
  // Empty: everybody may call.
  std::vector<std::string> api_keys;
  std::string version;
  int64_t max_connections = 4096;
  uint64_t max_body_bytes = 64 << 20;
  uint32_t max_header_bytes = 64 << 10;
  size_t max_stream_bytes = 1 << 20;  // a client that falls further behind is cut off
  absl::Duration sse_keepalive = absl::Seconds(15);
  absl::Duration idle_timeout = absl::Seconds(75);
  absl::Duration header_timeout = absl::Seconds(10);
  absl::Duration body_timeout = absl::Seconds(30);   // for each read of the body
  absl::Duration write_timeout = absl::Seconds(60);  // for each write
};

// The state that all sessions of a server share. Thread-safe.
struct HttpShared {
  HttpOptions options;
  frontend::Frontend& frontend;
  std::atomic<int64_t> connections{0};
  std::atomic<int64_t> responses{0};   // being made or written
  std::atomic<int64_t> pool_tasks{0};  // tasks of sessions on the text pool
};

class HttpServer {
 public:
  // The port is bound when this returns. kUnavailable: it is taken; kInvalidArgument: the host is
  // wrong. `frontend` must outlive the server.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(HttpOptions options,
                                                           frontend::Frontend& frontend);
  // Closes all connections.
  ~HttpServer();

  // Accepts no new connections. Running responses go on until the deadline.
  void Shutdown(absl::Time deadline);
  int port() const { return port_; }

 private:
  HttpServer(HttpOptions options, frontend::Frontend& frontend);
  absl::Status Listen();
  void Accept();
  void OnAccept(const boost::system::error_code& error, boost::asio::ip::tcp::socket socket);

  // Shared with the sessions.
  const std::shared_ptr<HttpShared> shared_;
  boost::asio::io_context context_;
  boost::asio::ip::tcp::acceptor acceptor_;
  std::vector<std::thread> threads_;
  int port_ = 0;
};

}  // namespace apb::http_api
