// Keeping contexts and giving them up.
#include "server/contexts/context_store.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/base/string_view.h"
#include "server/request/status_map.h"

namespace apb::contexts {
namespace {

bool IsLost(const Context& context) { return context.group->lost() || context.group->leaving(); }

}  // namespace

ContextStore::ContextStore(Options options, observability::Metrics& metrics)
    : options_(std::move(options)), metrics_(metrics), expiry_([this] { ExpireLoop(); }) {}

ContextStore::~ContextStore() {
  {
    absl::MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.Signal();
  }
  expiry_.join();
}

absl::Status ContextStore::Reserve() {
  absl::MutexLock lock(&mutex_);
  const auto is_full = [&]() ABSL_SHARED_LOCKS_REQUIRED(mutex_) {
    return static_cast<int64_t>(entries_.size()) + reserved_ >= options_.max_contexts;
  };
  // Contexts of a lost group must not take the places of new ones.
  for (auto it = entries_.cbegin(); is_full() && it != entries_.cend();) {
    const auto entry = it++;
    if (IsLost(*entry->second.context)) Erase(entry);
  }
  if (is_full()) {
    return request::WithRetryAfter(absl::ResourceExhaustedError(absl::StrCat(
                                       "this server keeps at most ", options_.max_contexts,
                                       " contexts at a time; delete one, or let one expire")),
                                   2);
  }
  ++reserved_;
  return absl::OkStatus();
}

void ContextStore::Unreserve() {
  absl::MutexLock lock(&mutex_);
  --reserved_;
}

request::ContextInfo ContextStore::Add(Context context) {
  absl::MutexLock lock(&mutex_);
  --reserved_;
  Entry entry{.expires_at = options_.now() + context.ttl};
  entry.context = std::make_shared<const Context>(std::move(context));
  request::ContextInfo info = InfoOf(entry);
  entries_.emplace(entry.context->id, std::move(entry));
  Publish();
  changed_.Signal();
  return info;
}

request::ContextInfo ContextStore::InfoOf(const Entry& entry) {
  const Context& context = *entry.context;
  return {.id = context.id,
          .created = context.created,
          .expires_at = entry.expires_at,
          .ttl = context.ttl,
          .is_lost = IsLost(context),
          .prompt_tokens = static_cast<int64_t>(context.prompt.tokens.size()),
          .cached_tokens = context.cached_tokens,
          .strategy = context.strategy,
          .prefill_seconds = context.prefill_seconds};
}

absl::StatusOr<ContextStore::Entries::const_iterator> ContextStore::Find(
    std::string_view owner, std::string_view id) const {
  const auto found = entries_.find(id);
  if (found != entries_.end() && found->second.context->owner == owner &&
      options_.now() < found->second.expires_at)
    return found;
  return request::WithErrorCode(
      absl::NotFoundError(absl::StrCat("there is no context `", base::AbslView(id.substr(0, 100)),
                                       "`; it may have expired: create it again")),
      "context_not_found");
}

absl::StatusOr<std::shared_ptr<const Context>> ContextStore::Use(std::string_view owner,
                                                                 std::string_view id) {
  absl::MutexLock lock(&mutex_);
  APB_ASSIGN_OR_RETURN(const auto found, Find(owner, id));
  const std::shared_ptr<const Context> context = found->second.context;
  if (IsLost(*context)) {
    return request::WithErrorCode(
        absl::NotFoundError(absl::StrCat("the worker group that kept context `", context->id,
                                         "` was lost or is stopping; create it again")),
        "context_lost");
  }
  entries_.at(context->id).expires_at = options_.now() + context->ttl;
  return context;
}

absl::StatusOr<request::ContextInfo> ContextStore::Describe(std::string_view owner,
                                                            std::string_view id) const {
  absl::ReaderMutexLock lock(&mutex_);
  APB_ASSIGN_OR_RETURN(const auto found, Find(owner, id));
  return InfoOf(found->second);
}

std::vector<request::ContextInfo> ContextStore::List(std::string_view owner) const {
  absl::ReaderMutexLock lock(&mutex_);
  std::vector<request::ContextInfo> infos;
  for (const auto& [id, entry] : entries_) {
    if (entry.context->owner == owner && options_.now() < entry.expires_at)
      infos.push_back(InfoOf(entry));
  }
  std::ranges::sort(infos, {}, &request::ContextInfo::created);
  return infos;
}

absl::Status ContextStore::Delete(std::string_view owner, std::string_view id) {
  absl::MutexLock lock(&mutex_);
  APB_ASSIGN_OR_RETURN(const auto found, Find(owner, id));
  Erase(found);
  return absl::OkStatus();
}

void ContextStore::Erase(Entries::const_iterator entry) {
  const Context& context = *entry->second.context;
  context.group->Release(context.sequence);
  entries_.erase(entry);
  Publish();
}

void ContextStore::Publish() {
  int64_t tokens = 0;
  for (const auto& [id, entry] : entries_) {
    tokens += static_cast<int64_t>(entry.context->prompt.tokens.size());
  }
  metrics_.SetContexts(static_cast<int64_t>(entries_.size()), tokens);
}

absl::Time ContextStore::Expire() {
  absl::MutexLock lock(&mutex_);
  return ExpireLocked();
}

absl::Time ContextStore::ExpireLocked() {
  const absl::Time now = options_.now();
  absl::Time next = absl::InfiniteFuture();
  for (auto it = entries_.cbegin(); it != entries_.cend();) {
    const auto entry = it++;
    if (entry->second.expires_at > now) {
      next = std::min(next, entry->second.expires_at);
      continue;
    }
    APB_LOG(Info, "context expired id=", entry->first);
    Erase(entry);
  }
  return next;
}

void ContextStore::ExpireLoop() {
  absl::MutexLock lock(&mutex_);
  while (!stopping_) {
    const absl::Time next = ExpireLocked();
    changed_.WaitWithTimeout(&mutex_, next - options_.now());
  }
}

}  // namespace apb::contexts
