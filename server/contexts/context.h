// A prompt that was computed once and whose KV a worker group keeps: what requests that go on from
// it need to know.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "server/cluster/worker_group.h"
#include "server/request/canonical_request.h"
#include "server/text/document_splitter.h"

namespace apb::contexts {

// Does not change once it is in the store.
struct Context {
  std::string id;
  std::string owner;  // others are told that there is no such context
  absl::Time created;
  absl::Duration ttl;
  common::v1::ApbOptions apb;  // resolved
  std::string strategy;        // what was used
  text::PromptSplit prompt;
  std::optional<request::ChatInput> chat;  // of a conversation
  std::optional<text::ContextText> text;   // absent: it was made of token ids
  int64_t cached_tokens = 0;
  double prefill_seconds = 0;
  // Who keeps the KV (shared: a lost group is forgotten by the registry), and under which number.
  std::shared_ptr<cluster::WorkerGroup> group;
  uint64_t sequence = 0;
};

}  // namespace apb::contexts
