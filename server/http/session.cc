// Reads requests, routes them, and writes answers and event streams.
#include "server/http/session.h"

#include <optional>
#include <variant>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "boost/asio/co_spawn.hpp"
#include "boost/asio/detached.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/read.hpp"
#include "boost/beast/http/string_body.hpp"
#include "engine/base/json_reader.h"
#include "engine/base/log.h"
#include "engine/base/string_view.h"
#include "server/http/connection.h"
#include "server/http/errors.h"
#include "server/http/handlers/generate.h"
#include "server/http/response.h"
#include "server/http/route.h"
#include "server/http/stream_sink.h"
#include "server/request/api_keys.h"
#include "server/request/status_map.h"

namespace apb::http_api {
namespace {

namespace asio = boost::asio;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;
using Parser = http::request_parser<http::string_body>;

// Bigger bodies are parsed on the text pool.
constexpr size_t kInlineBodyBytes = 32 << 10;
std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<HttpShared> shared, tcp::socket socket)
      : shared_(std::move(shared)),
        connection_(
            std::make_shared<Connection>(std::move(socket), shared_->options.write_timeout)) {
    shared_->frontend.metrics().SetHttpConnections(++shared_->connections);
  }
  ~Session() { shared_->frontend.metrics().SetHttpConnections(--shared_->connections); }

  // Serves requests until the connection ends.
  asio::awaitable<void> Run();

 private:
  asio::awaitable<bool> ReadRequest(Parser& parser);
  asio::awaitable<void> RefuseUnreadable(const Parser& parser, error_code error);
  asio::awaitable<bool> Serve(Parser& parser);
  // One overload for each kind of handler.
  asio::awaitable<bool> Handle(Answer answer, const RouteMatch& match, const Call& call);
  asio::awaitable<bool> Handle(SlowAnswer slow, const RouteMatch& match, const Call& call);
  asio::awaitable<bool> Handle(Parse parse, const RouteMatch& match, const Call& call);
  // Writes a generation's response as its events arrive.
  asio::awaitable<bool> Relay(StreamSink& sink, frontend::ActiveRequest& request,
                              GenerationResponse& response, const RouteMatch& match);
  asio::awaitable<bool> Send(const RouteMatch& match, const Response& response);

  // Runs `work` on the text pool (here if `bytes` is small) and resumes on the strand.
  template <typename T>
  asio::awaitable<absl::StatusOr<T>> OnPool(size_t bytes, std::function<absl::StatusOr<T>()> work);

  Response CheckKey(const Parser& parser);
  const HttpOptions& options() const { return shared_->options; }
  frontend::Frontend& frontend() const { return shared_->frontend; }

  // Shared with the server and its other sessions.
  const std::shared_ptr<HttpShared> shared_;
  // Shared with the connection's own timers and coroutines.
  const std::shared_ptr<Connection> connection_;
  Framing framing_;
  std::string method_;
  // Whose contexts the sender of the current request may use.
  std::string owner_;
};

asio::awaitable<bool> Session::Send(const RouteMatch& match, const Response& response) {
  frontend().metrics().HttpRequest(match.path, method_, response.status);
  const bool written = co_await connection_->Write(Serialize(response, framing_));
  co_return written&& framing_.keep_alive;
}

template <typename T>
asio::awaitable<absl::StatusOr<T>> Session::OnPool(size_t bytes,
                                                   std::function<absl::StatusOr<T>()> work) {
  if (bytes <= kInlineBodyBytes) co_return work();
  auto result = std::make_shared<absl::StatusOr<T>>(
      absl::ResourceExhaustedError("too many prompts wait for tokenization"));
  auto done = std::make_shared<bool>(false);
  auto timer = std::make_shared<asio::steady_timer>(connection_->socket().get_executor(),
                                                    asio::steady_timer::time_point::max());
  auto task = [shared = shared_, result, done, timer, work = std::move(work)]() mutable {
    *result = work();
    asio::post(timer->get_executor(), [done, timer] {
      *done = true;
      timer->cancel();
    });
    timer.reset();  // the server may end as soon as no task is counted
    --shared->pool_tasks;
  };
  ++shared_->pool_tasks;
  const bool scheduled = frontend().Schedule(std::move(task));
  if (!scheduled) --shared_->pool_tasks;
  while (scheduled && !*done) co_await timer->async_wait(kAwait);
  co_return std::move(*result);
}

asio::awaitable<void> Session::Run() {
  auto self = shared_from_this();
  while (true) {
    Parser parser;
    parser.header_limit(options().max_header_bytes);
    parser.body_limit(options().max_body_bytes);
    if (!co_await ReadRequest(parser)) break;
    ++shared_->responses;
    const bool keep = co_await Serve(parser);
    --shared_->responses;
    if (!keep) break;
  }
  connection_->Close();
}

asio::awaitable<bool> Session::ReadRequest(Parser& parser) {
  framing_ = {.keep_alive = false};
  method_ = "unknown";
  tcp::socket& socket = connection_->socket();
  boost::beast::flat_buffer& buffer = connection_->buffer();
  if (buffer.size() == 0) {
    connection_->SetTimeout(options().idle_timeout);
    auto [error] = co_await socket.async_wait(tcp::socket::wait_read, kAwait);
    if (error) co_return false;
  }
  connection_->SetTimeout(options().header_timeout);
  auto [error, size] = co_await http::async_read_header(socket, buffer, parser, kAwait);
  if (!error && boost::beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    if (!co_await connection_->Write("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
  }
  while (!error && !parser.is_done()) {
    connection_->SetTimeout(options().body_timeout);
    std::tie(error, size) = co_await http::async_read_some(socket, buffer, parser, kAwait);
  }
  const bool timed_out = connection_->ClearTimeout();
  if (!error) co_return true;
  if (timed_out) error = boost::asio::error::timed_out;
  co_await RefuseUnreadable(parser, error);
  co_return false;
}

asio::awaitable<void> Session::RefuseUnreadable(const Parser& parser, error_code error) {
  Response response;
  if (error == http::error::body_limit) {
    response = HttpErrorResponse(
        413, absl::StrCat("the body is larger than ", options().max_body_bytes, " bytes"),
        "request_too_large");
  } else if (error == http::error::header_limit || error == http::error::buffer_overflow) {
    response = HttpErrorResponse(
        431, absl::StrCat("the headers are larger than ", options().max_header_bytes, " bytes"));
  } else if (error == asio::error::timed_out) {
    if (!parser.got_some()) co_return;
    response = HttpErrorResponse(408, "the request came too slowly");
  } else if (error.category() == make_error_code(http::error::bad_method).category() &&
             error != http::error::end_of_stream && error != http::error::partial_message) {
    response =
        HttpErrorResponse(400, absl::StrCat("not a valid HTTP/1.1 request: ", error.message()));
  } else {
    co_return;  // the client has gone
  }
  co_await Send(RouteMatch(), response);
  co_await connection_->EndSending();
}

Response Session::CheckKey(const Parser& parser) {
  const std::string_view header = View(parser.get()[http::field::authorization]);
  const bool bearer = absl::StartsWithIgnoreCase(base::AbslView(header), "bearer ");
  const std::string_view key = bearer ? header.substr(7) : "";
  owner_ = request::OwnerOf(options().api_keys, key);
  if (request::IsAllowed(options().api_keys, key)) return {};
  Response response = ErrorResponse(request::WithErrorCode(
      absl::UnauthenticatedError("a valid API key is needed: Authorization: Bearer KEY"),
      "invalid_api_key"));
  response.headers.emplace_back("WWW-Authenticate", "Bearer");
  return response;
}

asio::awaitable<bool> Session::Serve(Parser& parser) {
  const auto& request = parser.get();
  method_ = std::string(View(request.method_string()));
  if (request.method() == http::verb::unknown) method_ = "other";
  const std::string_view given_id = View(request["x-request-id"]);
  framing_ = {.keep_alive = request.keep_alive() && !frontend().draining(),
              .http_1_0 = request.version() < 11,
              .head = request.method() == http::verb::head,
              .request_id = request::IsValidRequestId(given_id) ? std::string(given_id)
                                                                : request::NewRequestId()};
  const std::string_view target = View(request.target());
  const RouteMatch match = FindRoute(target.substr(0, target.find('?')), method_);
  if (match.needs_key) {
    if (Response refused = CheckKey(parser); refused.status != 200)
      co_return co_await Send(match, refused);
  }
  if (match.route == nullptr) co_return co_await Send(match, NoRouteResponse(match, method_));
  const Call call{.frontend = frontend(),
                  .body = request.body(),
                  .id = match.id,
                  .owner = owner_,
                  .version = options().version};
  co_return co_await std::visit([&](auto handler) { return Handle(handler, match, call); },
                                match.route->handler);
}

asio::awaitable<bool> Session::Handle(Answer answer, const RouteMatch& match, const Call& call) {
  co_return co_await Send(match, answer(call));
}

asio::awaitable<bool> Session::Handle(SlowAnswer slow, const RouteMatch& match, const Call& call) {
  const absl::StatusOr<Response> response = co_await OnPool<Response>(
      call.body.size(), [slow, &call]() -> absl::StatusOr<Response> { return slow.answer(call); });
  if (!response.ok()) co_return co_await Send(match, ErrorResponse(response.status()));
  co_return co_await Send(match, *response);
}

asio::awaitable<bool> Session::Handle(Parse parse, const RouteMatch& match, const Call& call) {
  absl::StatusOr<Generation> generation =
      co_await OnPool<Generation>(call.body.size(), [parse, &call]() -> absl::StatusOr<Generation> {
        const auto json = base::ParseJsonObject(call.body, "the body");
        return json.ok() ? parse(*json) : json.status();
      });
  if (!generation.ok()) co_return co_await Send(match, ErrorResponse(generation.status()));
  GenerationResponse response(*generation, framing_.request_id, frontend().options().model,
                              options().version, absl::ToUnixSeconds(absl::Now()));
  generation->request.id = framing_.request_id;
  generation->request.owner = owner_;
  // The request may outlive the connection and the server.
  const auto wake = [weak = std::weak_ptr<Connection>(connection_)] {
    if (const auto connection = weak.lock()) connection->Wake();
  };
  auto sink = std::make_shared<StreamSink>(options().max_stream_bytes, wake);
  auto request = frontend().Start(std::move(generation->request), sink);
  if (!request.ok()) co_return co_await Send(match, ErrorResponse(request.status()));
  connection_->StartWatching();
  const bool keep = co_await Relay(*sink, **request, response, match);
  (*request)->Cancel();  // no effect on a request that has ended
  co_await connection_->StopWatching();
  co_return keep && !connection_->client_gone();
}

asio::awaitable<bool> Session::Relay(StreamSink& sink, frontend::ActiveRequest& request,
                                     GenerationResponse& response, const RouteMatch& match) {
  bool streams = false;
  while (!connection_->client_gone()) {
    const GenerationResponse::Output out = response.Take(sink.Take());
    // After a write more events may be waiting: their wake-up found nobody waiting.
    bool wrote = false;
    if (out.begins_stream) {
      streams = wrote = true;
      if (framing_.http_1_0) framing_.keep_alive = false;
      frontend().metrics().HttpRequest(match.path, method_, 200);
      if (!co_await connection_->Write(EventStreamHead(framing_))) co_return false;
    }
    if (out.whole.has_value()) co_return co_await Send(match, *out.whole);
    if (!out.frames.empty()) {
      std::string bytes = Chunk(out.frames, framing_);
      if (out.over) bytes += LastChunk(framing_);
      if (!co_await connection_->Write(std::move(bytes))) co_return false;
      wrote = true;
    }
    if (out.over) co_return framing_.keep_alive;
    if (wrote) continue;
    const bool woken = co_await connection_->AwaitWake(options().sse_keepalive);
    if (!woken && streams && !co_await connection_->Write(Chunk(": keep-alive\n\n", framing_)))
      co_return false;
  }
  request.Cancel();
  co_return false;
}

}  // namespace

void StartSession(std::shared_ptr<HttpShared> shared, tcp::socket socket) {
  const auto executor = socket.get_executor();
  auto session = std::make_shared<Session>(std::move(shared), std::move(socket));
  asio::co_spawn(
      executor, [session] { return session->Run(); }, asio::detached);
}

}  // namespace apb::http_api
