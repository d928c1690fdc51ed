// Listening and accepting.
#include "server/http/http_server.h"

#include <fcntl.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "boost/asio/post.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/strand.hpp"
#include "engine/base/log.h"
#include "server/http/session.h"

namespace apb::http_api {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

HttpServer::HttpServer(HttpOptions options, frontend::Frontend& frontend)
    : shared_(std::make_shared<HttpShared>(std::move(options), frontend)),
      acceptor_(asio::make_strand(context_)) {}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(HttpOptions options,
                                                              frontend::Frontend& frontend) {
  std::unique_ptr<HttpServer> server(new HttpServer(std::move(options), frontend));
  if (absl::Status status = server->Listen(); !status.ok()) return status;
  server->Accept();
  for (int i = 0; i < server->shared_->options.threads; ++i) {
    server->threads_.emplace_back([&context = server->context_] { context.run(); });
  }
  return server;
}

absl::Status HttpServer::Listen() {
  const HttpOptions& options = shared_->options;
  const std::string name = absl::StrCat(options.host, ":", options.port);
  error_code error;
  tcp::resolver resolver(context_);
  const auto found =
      resolver.resolve(options.host, absl::StrCat(options.port), tcp::resolver::passive, error);
  if (error || found.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", name, ": ", error.message()));
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor_.open(endpoint.protocol(), error);
  if (!error) acceptor_.set_option(tcp::acceptor::reuse_address(true), error);
  if (!error) acceptor_.bind(endpoint, error);
  if (!error) acceptor_.listen(asio::socket_base::max_listen_connections, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", name, " for HTTP: ", error.message()));
  }
  fcntl(acceptor_.native_handle(), F_SETFD, FD_CLOEXEC);
  port_ = acceptor_.local_endpoint(error).port();
  return absl::OkStatus();
}

void HttpServer::Accept() {
  acceptor_.async_accept(
      asio::make_strand(context_),
      [this](const error_code& error, tcp::socket socket) { OnAccept(error, std::move(socket)); });
}

void HttpServer::OnAccept(const error_code& error, tcp::socket socket) {
  if (error == asio::error::operation_aborted || !acceptor_.is_open()) return;
  if (error) {
    // Most likely the process is out of file descriptors: give the open connections time to end.
    APB_LOG(Warning, "accept: ", error.message());
    auto timer = std::make_shared<asio::steady_timer>(acceptor_.get_executor(),
                                                      std::chrono::milliseconds(100));
    timer->async_wait([this, timer](const error_code&) { Accept(); });
    return;
  }
  if (shared_->connections >= shared_->options.max_connections) {
    APB_LOG(Warning, "connection refused: ", shared_->options.max_connections, " are open");
  } else {
    fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
    StartSession(shared_, std::move(socket));
  }
  Accept();
}

void HttpServer::Shutdown(absl::Time deadline) {
  asio::post(acceptor_.get_executor(), [this] {
    error_code ignored;
    acceptor_.close(ignored);
  });
  while (shared_->responses > 0 && absl::Now() < deadline) absl::SleepFor(absl::Milliseconds(10));
}

HttpServer::~HttpServer() {
  Shutdown(absl::Now());
  context_.stop();
  for (std::thread& thread : threads_) thread.join();
  // Queued tasks refer to requests that their sessions have read, and the sessions die with the
  // context.
  while (shared_->pool_tasks > 0) absl::SleepFor(absl::Milliseconds(1));
}

}  // namespace apb::http_api
