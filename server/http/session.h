// One HTTP connection: a coroutine on its own strand that reads requests and writes responses, one
// after the other.
#pragma once

#include <memory>

#include "boost/asio/ip/tcp.hpp"
#include "server/http/http_server.h"

namespace apb::http_api {

// Starts a session, which owns itself and ends with its connection.
void StartSession(std::shared_ptr<HttpShared> shared, boost::asio::ip::tcp::socket socket);

}  // namespace apb::http_api
