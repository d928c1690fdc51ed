// Reading requests, routing them, writing answers and event streams.
#include "server/http/session.h"

#include <deque>
#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "boost/asio/as_tuple.hpp"
#include "boost/asio/async_result.hpp"
#include "boost/asio/co_spawn.hpp"
#include "boost/asio/detached.hpp"
#include "boost/asio/post.hpp"
#include "boost/asio/steady_timer.hpp"
#include "boost/asio/use_awaitable.hpp"
#include "boost/asio/write.hpp"
#include "boost/beast/core/flat_buffer.hpp"
#include "boost/beast/http/parser.hpp"
#include "boost/beast/http/read.hpp"
#include "boost/beast/http/string_body.hpp"
#include "engine/base/json_reader.h"
#include "engine/base/log.h"
#include "engine/base/string_view.h"
#include "server/http/answers.h"
#include "server/http/openai_codec.h"
#include "server/http/openai_response.h"
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

constexpr auto kAwait = asio::as_tuple(asio::use_awaitable);
// Parsing bigger bodies goes to the text pool.
constexpr size_t kInlineBodyBytes = 32 << 10;
// What a client may send ahead while it waits for an answer.
constexpr size_t kMaxPipelinedBytes = 64 << 10;

std::string_view View(boost::beast::string_view text) { return {text.data(), text.size()}; }

class Session : public std::enable_shared_from_this<Session> {
 public:
  Session(std::shared_ptr<HttpShared> shared, tcp::socket socket)
      : shared_(std::move(shared)),
        socket_(std::move(socket)),
        timeout_timer_(socket_.get_executor()),
        wake_timer_(socket_.get_executor()) {
    shared_->frontend.metrics().SetHttpConnections(++shared_->connections);
  }
  ~Session() { shared_->frontend.metrics().SetHttpConnections(--shared_->connections); }

  // Serves requests until the connection ends.
  asio::awaitable<void> Run();

 private:
  asio::awaitable<bool> ReadRequest(Parser& parser);
  asio::awaitable<void> RefuseUnreadable(const Parser& parser, error_code error);
  asio::awaitable<bool> Serve(Parser& parser);
  asio::awaitable<Response> Answer(const RouteEntry& route, Parser& parser);
  asio::awaitable<Response> Tokenize(const std::string& body);
  asio::awaitable<Response> Detokenize(const std::string& body);
  using Parse = absl::StatusOr<Generation> (*)(const nlohmann::json& body);
  asio::awaitable<bool> Generate(Parse parse, const RouteEntry& route, const std::string& body);
  asio::awaitable<bool> Relay(StreamSink& sink, frontend::ActiveRequest& request,
                              const Generation& generation, const RouteEntry& route,
                              OpenAiResponse& response);
  asio::awaitable<bool> Send(const RouteEntry& route, const Response& response);
  asio::awaitable<bool> Write(std::string bytes);

  // Runs `work` on the text pool (here when it is small) and resumes on the strand.
  template <typename T>
  asio::awaitable<absl::StatusOr<T>> OnPool(size_t bytes, std::function<absl::StatusOr<T>()> work);

  // Reads ahead while an answer is made, to notice that the client is gone.
  void StartWatching();
  asio::awaitable<void> Watch();
  asio::awaitable<void> StopWatching();

  void SetTimeout(absl::Duration duration);
  void ClearTimeout();
  Response CheckKey(const Parser& parser);
  const HttpOptions& options() const { return shared_->options; }
  frontend::Frontend& frontend() const { return shared_->frontend; }

  const std::shared_ptr<HttpShared> shared_;
  tcp::socket socket_;
  boost::beast::flat_buffer buffer_;
  asio::steady_timer timeout_timer_;
  uint64_t timeout_number_ = 0;
  bool timed_out_ = false;
  asio::steady_timer wake_timer_;  // cancelled to wake the coroutine that waits for events
  bool watching_ = false;
  bool client_gone_ = false;
  Framing framing_;
  std::string method_;
  std::string owner_;  // of contexts: who has sent the request
};

void Session::SetTimeout(absl::Duration duration) {
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

void Session::ClearTimeout() {
  ++timeout_number_;
  timeout_timer_.cancel();
}

asio::awaitable<bool> Session::Write(std::string bytes) {
  SetTimeout(options().write_timeout);
  auto [error, size] = co_await asio::async_write(socket_, asio::buffer(bytes), kAwait);
  ClearTimeout();
  co_return !error;
}

asio::awaitable<bool> Session::Send(const RouteEntry& route, const Response& response) {
  frontend().metrics().HttpRequest(route.path, method_, response.status);
  const bool written = co_await Write(Serialize(response, framing_));
  co_return written&& framing_.keep_alive;
}

template <typename T>
asio::awaitable<absl::StatusOr<T>> Session::OnPool(size_t bytes,
                                                   std::function<absl::StatusOr<T>()> work) {
  if (bytes <= kInlineBodyBytes) co_return work();
  auto result = std::make_shared<absl::StatusOr<T>>(
      absl::ResourceExhaustedError("too many prompts wait for tokenization"));
  auto done = std::make_shared<bool>(false);
  auto timer = std::make_shared<asio::steady_timer>(socket_.get_executor(),
                                                    asio::steady_timer::time_point::max());
  const bool scheduled = frontend().Schedule([result, done, timer, work = std::move(work)] {
    *result = work();
    asio::post(timer->get_executor(), [done, timer] {
      *done = true;
      timer->cancel();
    });
  });
  while (scheduled && !*done) co_await timer->async_wait(kAwait);
  co_return std::move(*result);
}

asio::awaitable<void> Session::Run() {
  auto self = shared_from_this();
  error_code ignored;
  socket_.set_option(tcp::no_delay(true), ignored);
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
  ClearTimeout();
  socket_.shutdown(tcp::socket::shutdown_both, ignored);
  socket_.close(ignored);
}

asio::awaitable<bool> Session::ReadRequest(Parser& parser) {
  framing_ = {.keep_alive = false};
  method_ = "unknown";
  if (buffer_.size() == 0) {
    SetTimeout(options().idle_timeout);
    auto [error] = co_await socket_.async_wait(tcp::socket::wait_read, kAwait);
    if (error) co_return false;
  }
  SetTimeout(options().header_timeout);
  auto [error, size] = co_await http::async_read_header(socket_, buffer_, parser, kAwait);
  if (!error && boost::beast::iequals(parser.get()[http::field::expect], "100-continue")) {
    if (!co_await Write("HTTP/1.1 100 Continue\r\n\r\n")) co_return false;
  }
  while (!error && !parser.is_done()) {
    SetTimeout(options().body_timeout);
    std::tie(error, size) = co_await http::async_read_some(socket_, buffer_, parser, kAwait);
  }
  const bool timed_out = timed_out_;
  ClearTimeout();
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
  co_await Send(kUnknownRoute, response);
  // Bytes that were not read would turn the close into a reset, which may overtake the response.
  error_code ignored;
  socket_.shutdown(tcp::socket::shutdown_send, ignored);
  SetTimeout(absl::Seconds(1));
  char waste[4096];
  for (int i = 0; i < 256; ++i) {
    auto [read_error, size] = co_await socket_.async_read_some(asio::buffer(waste), kAwait);
    if (read_error) break;
  }
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
  const RouteEntry& route = FindRoute(target.substr(0, target.find('?')));
  if (!route.is_open) {
    if (Response refused = CheckKey(parser); refused.status != 200)
      co_return co_await Send(route, refused);
  }
  if (route.route != Route::kUnknown && !Takes(route, method_)) {
    Response response =
        HttpErrorResponse(405, absl::StrCat(base::AbslView(route.path), " takes ",
                                            base::AbslView(route.methods), ", not ", method_));
    response.headers.emplace_back("Allow", route.methods);
    co_return co_await Send(route, response);
  }
  if (request.method() == http::verb::post) {
    if (route.route == Route::kCompletions)
      co_return co_await Generate(ParseCompletion, route, request.body());
    if (route.route == Route::kChatCompletions)
      co_return co_await Generate(ParseChat, route, request.body());
    if (route.route == Route::kContexts)
      co_return co_await Generate(ParseNewContext, route, request.body());
  }
  const Response response = co_await Answer(route, parser);
  co_return co_await Send(route, response);
}

asio::awaitable<Response> Session::Answer(const RouteEntry& route, Parser& parser) {
  if (route.route == Route::kTokenize) co_return co_await Tokenize(parser.get().body());
  if (route.route == Route::kDetokenize) co_return co_await Detokenize(parser.get().body());
  const std::string_view target = View(parser.get().target());
  co_return AnswerNow({.route = route.route,
                       .is_delete = parser.get().method() == http::verb::delete_,
                       .path = target.substr(0, target.find('?')),
                       .owner = owner_,
                       .version = options().version},
                      frontend());
}

asio::awaitable<Response> Session::Tokenize(const std::string& body) {
  using Ids = std::vector<int32_t>;
  const absl::StatusOr<Ids> ids =
      co_await OnPool<Ids>(body.size(), [this, &body]() -> absl::StatusOr<Ids> {
        const auto json = base::ParseJsonObject(body, "the body");
        if (!json.ok()) return json.status();
        const auto request = ParseTokenize(*json);
        if (!request.ok()) return request.status();
        return frontend().Tokenize(*request);
      });
  if (!ids.ok()) co_return ErrorResponse(ids.status());
  co_return Response{.body = nlohmann::json({{"count", ids->size()},
                                             {"max_model_len", frontend().max_model_len()},
                                             {"tokens", *ids},
                                             {"token_strs", nullptr}})
                                 .dump()};
}

asio::awaitable<Response> Session::Detokenize(const std::string& body) {
  const absl::StatusOr<std::string> text =
      co_await OnPool<std::string>(body.size(), [this, &body]() -> absl::StatusOr<std::string> {
        const auto json = base::ParseJsonObject(body, "the body");
        if (!json.ok()) return json.status();
        const auto ids = ParseDetokenize(*json);
        if (!ids.ok()) return ids.status();
        return frontend().Detokenize(*ids);
      });
  if (!text.ok()) co_return ErrorResponse(text.status());
  co_return Response{.body = nlohmann::json({{"prompt", *text}})
                                 .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)};
}

asio::awaitable<bool> Session::Generate(Parse parse, const RouteEntry& route,
                                        const std::string& body) {
  absl::StatusOr<Generation> generation =
      co_await OnPool<Generation>(body.size(), [parse, &body]() -> absl::StatusOr<Generation> {
        const auto json = base::ParseJsonObject(body, "the body");
        return json.ok() ? parse(*json) : json.status();
      });
  if (!generation.ok()) co_return co_await Send(route, ErrorResponse(generation.status()));
  generation->request.id = framing_.request_id;
  generation->request.owner = owner_;
  const request::Api api = generation->request.api;
  OpenAiResponse response(
      {.id = absl::StrCat(api == request::Api::kChat ? "chatcmpl-" : "cmpl-", framing_.request_id),
       .model = frontend().options().model,
       .fingerprint = absl::StrCat("apb-", options().version),
       .created = absl::ToUnixSeconds(absl::Now()),
       .api = api,
       .include_usage = generation->include_usage,
       .logprobs = generation->request.sampling.has_logprobs()});
  auto sink = std::make_shared<StreamSink>(
      options().max_stream_bytes, [self = weak_from_this(), executor = socket_.get_executor()] {
        asio::post(executor, [self] {
          if (auto session = self.lock()) session->wake_timer_.cancel();
        });
      });
  auto request = frontend().Start(std::move(generation->request), sink);
  if (!request.ok()) co_return co_await Send(route, ErrorResponse(request.status()));
  StartWatching();
  const bool keep = co_await Relay(*sink, **request, *generation, route, response);
  (*request)->Cancel();  // no effect on one that is over
  co_await StopWatching();
  co_return keep && !client_gone_;
}

asio::awaitable<bool> Session::Relay(StreamSink& sink, frontend::ActiveRequest& request,
                                     const Generation& generation, const RouteEntry& route,
                                     OpenAiResponse& response) {
  bool head_sent = false;
  while (!client_gone_) {
    std::string frames;
    bool over = false;
    bool wrote = false;  // meanwhile more may have come, whose wake-up found nobody waiting
    std::optional<Response> whole;
    for (const request::Event& event : sink.Take()) {
      if (const auto* chunk = std::get_if<request::TokenChunk>(&event)) {
        if (generation.stream) frames += response.TokenFrame(*chunk);
        if (!generation.stream) response.Add(*chunk);
      } else if (const auto* progress = std::get_if<request::Progress>(&event)) {
        if (generation.stream) frames += response.ProgressFrame(*progress);
      } else if (const auto* completed = std::get_if<request::Completed>(&event)) {
        over = true;
        if (generation.stream) {
          frames += response.EndFrames(*completed);
        } else {
          whole = Response{.body = response.Whole(*completed)};
          whole->headers.emplace_back(
              "Server-Timing",
              absl::StrFormat("queue;dur=%.1f, prefill;dur=%.1f, decode;dur=%.1f",
                              1e3 * completed->queue_seconds, 1e3 * completed->prefill_seconds,
                              1e3 * completed->decode_seconds));
        }
      } else if (const auto* context = std::get_if<request::ContextInfo>(&event)) {
        whole = ContextResponse(*context, frontend().options().model);
      } else if (const auto* failed = std::get_if<request::Failed>(&event)) {
        over = true;
        if (generation.stream && head_sent) frames += OpenAiResponse::ErrorFrames(failed->status);
        if (!generation.stream || !head_sent) whole = ErrorResponse(failed->status);
      } else if (generation.stream && !head_sent) {
        // Queued: the request is sound, so the head goes out before the long prefill.
        head_sent = true;
        if (framing_.http_1_0) framing_.keep_alive = false;
        frontend().metrics().HttpRequest(route.path, method_, 200);
        if (!co_await Write(EventStreamHead(framing_))) co_return false;
        wrote = true;
      }
    }
    if (whole.has_value()) co_return co_await Send(route, *whole);
    if (!frames.empty()) {
      std::string bytes = Chunk(frames, framing_);
      if (over) bytes += LastChunk(framing_);
      if (!co_await Write(std::move(bytes))) co_return false;
      wrote = true;
    }
    if (over) co_return framing_.keep_alive;
    if (wrote) continue;
    wake_timer_.expires_after(absl::ToChronoMilliseconds(options().sse_keepalive));
    auto [error] = co_await wake_timer_.async_wait(kAwait);
    if (!error && head_sent && !co_await Write(Chunk(": keep-alive\n\n", framing_)))
      co_return false;
  }
  request.Cancel();
  co_return false;
}

void Session::StartWatching() {
  watching_ = true;
  client_gone_ = false;
  asio::co_spawn(
      socket_.get_executor(), [self = shared_from_this()] { return self->Watch(); },
      asio::detached);
}

asio::awaitable<void> Session::Watch() {
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

asio::awaitable<void> Session::StopWatching() {
  error_code ignored;
  while (watching_) {
    socket_.cancel(ignored);
    wake_timer_.expires_after(std::chrono::milliseconds(50));
    co_await wake_timer_.async_wait(kAwait);
  }
}

}  // namespace

void StartSession(std::shared_ptr<HttpShared> shared, tcp::socket socket) {
  const auto executor = socket.get_executor();
  auto session = std::make_shared<Session>(std::move(shared), std::move(socket));
  asio::co_spawn(
      executor, [session] { return session->Run(); }, asio::detached);
}

}  // namespace apb::http_api
