// A context: a prompt that was computed once and whose KV a worker group keeps. It holds everything
// that later requests need to go on from it.
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

// Immutable once it is in the store.
struct Context {
  std::string id;
  // Other owners are told that there is no such context.
  std::string owner;
  absl::Time created;
  absl::Duration ttl;
  common::v1::ApbOptions apb;  // resolved (admission.h)
  std::string strategy;        // the one that was used
  text::PromptSplit prompt;
  std::optional<request::ChatInput> chat;  // for a conversation only
  std::optional<text::ContextText> text;   // absent for a context of token ids
  // Prompt tokens whose KV was already in the cache at its creation.
  int64_t cached_tokens = 0;
  double prefill_seconds = 0;
  // The group that keeps the KV, and the sequence's number there. Shared, because the registry
  // forgets a lost group.
  std::shared_ptr<cluster::WorkerGroup> group;
  uint64_t sequence = 0;
};

}  // namespace apb::contexts
