// Connecting, choosing and losing worker groups.
#include "server/cluster/group_registry.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/base/log.h"
#include "server/request/api_keys.h"

namespace apb::cluster {
namespace {

observability::GroupCalibration CalibrationOf(const cluster::v1::Hello& hello) {
  const cluster::v1::Calibration& from = hello.calibration();
  return {.product_flops = from.product_flops(),
          .attention_flops = from.attention_flops(),
          .link_bytes_per_second = from.link_bytes_per_second(),
          .link_latency_seconds = from.link_latency_seconds()};
}

}  // namespace

GroupRegistry::GroupRegistry(Options options, observability::Metrics& metrics)
    : options_(std::move(options)), metrics_(metrics) {}

void GroupRegistry::SetReadinessListener(std::function<void(bool)> listener) {
  readiness_listener_ = std::move(listener);
}

absl::StatusOr<std::shared_ptr<WorkerGroup>> GroupRegistry::Connect(
    const cluster::v1::Hello& hello, std::shared_ptr<GroupConnection> connection) {
  if (!options_.token.empty() && !request::IsAllowed({options_.token}, hello.token())) {
    return absl::PermissionDeniedError("the group's token is not the server's");
  }
  if (hello.model_fingerprint() != options_.fingerprint) {
    return absl::FailedPreconditionError(
        absl::StrCat("group ", hello.group_id(), " serves another model: its config.json has ",
                     hello.model_fingerprint(), ", the server's ", options_.fingerprint));
  }
  if (hello.ranks() < 1 || hello.max_model_len() < 1) {
    return absl::InvalidArgumentError("hello without ranks or max_model_len");
  }
  auto group = std::make_shared<WorkerGroup>(hello, std::move(connection));
  std::shared_ptr<WorkerGroup> replaced;
  {
    absl::MutexLock lock(&mutex_);
    for (auto& known : groups_) {
      if (known->hello().group_id() == hello.group_id()) replaced = known;
    }
    std::erase(groups_, replaced);
    groups_.push_back(group);
    ++connections_[hello.group_id()];
    absence_reason_.clear();
  }
  if (replaced != nullptr) {
    replaced->OnLost("the group has connected anew");
    replaced->Close(absl::AbortedError("the group has connected anew"));
  }
  metrics_.GroupConnected(hello.group_id(), hello.ranks(), hello.dtype(), hello.weight_type(),
                          hello.kv_block_size(), hello.kv_blocks_total(), hello.load_seconds());
  metrics_.GroupCalibrated(hello.group_id(), CalibrationOf(hello));
  APB_LOG(Info, "group connected id=", hello.group_id(), " ranks=", hello.ranks(),
          " hosts=", hello.default_hosts(), " max_model_len=", hello.max_model_len(),
          " kv_tokens=", hello.kv_block_size() * hello.kv_blocks_total(),
          " load_seconds=", hello.load_seconds());
  AnnounceReadiness();
  return group;
}

void GroupRegistry::OnMessage(WorkerGroup& group, const cluster::v1::FromWorker& message) {
  if (message.has_stats()) OnStats(group, message.stats());
  group.OnMessage(message);
  if (message.has_leaving()) {
    APB_LOG(Info, "group leaves id=", group.hello().group_id(),
            " in_flight=", group.sequence_count());
    AnnounceReadiness();
  }
}

void GroupRegistry::OnStats(WorkerGroup& group, const cluster::v1::GroupStats& stats) {
  observability::GroupSample sample;
  sample.group = group.hello().group_id();
  sample.prompt_tokens_computed = stats.prompt_tokens_computed();
  for (const auto& rank : stats.ranks()) {
    observability::RankSample& to = sample.ranks.emplace_back();
    to.rank = rank.rank();
    to.host = rank.host();
    to.kv_blocks_used = rank.kv_blocks_used();
    to.kv_blocks_total = rank.kv_blocks_total();
    to.kv_blocks_cached = rank.kv_blocks_cached();
    to.kv_blocks_pinned = rank.kv_blocks_pinned();
    to.phase_seconds.assign(rank.phase_seconds().begin(), rank.phase_seconds().end());
    for (const auto& [operation, bytes] : rank.collective_bytes()) {
      to.collectives.push_back({operation, static_cast<double>(bytes)});
      const auto calls = rank.collective_calls().find(operation);
      if (calls != rank.collective_calls().end())
        to.collectives.back().calls = static_cast<double>(calls->second);
      const auto seconds = rank.collective_seconds().find(operation);
      if (seconds != rank.collective_seconds().end())
        to.collectives.back().seconds = seconds->second;
    }
  }
  group.set_kv_blocks_used(stats.kv_blocks_used());
  metrics_.GroupStats(sample);
}

void GroupRegistry::Disconnect(const std::shared_ptr<WorkerGroup>& group, const std::string& why) {
  bool known = false;
  {
    absl::MutexLock lock(&mutex_);
    known = std::erase(groups_, group) > 0;
  }
  if (known) {
    if (group->leaving() && group->sequence_count() == 0) {  // the group had announced its end
      APB_LOG(Info, "group left id=", group->hello().group_id());
    } else {
      APB_LOG(Warning, "group lost id=", group->hello().group_id(),
              " in_flight=", group->sequence_count(), " why=", why);
    }
    metrics_.GroupLost(group->hello().group_id());
    AnnounceReadiness();
  }
  group->OnLost(why);
}

void GroupRegistry::AnnounceReadiness() {
  absl::MutexLock lock(&announce_mutex_);
  const bool now = ready();
  if (now == announced_) return;
  announced_ = now;
  if (readiness_listener_) readiness_listener_(now);
}

std::shared_ptr<WorkerGroup> GroupRegistry::Pick(int64_t tokens) const {
  std::vector<std::shared_ptr<WorkerGroup>> groups;
  {
    absl::MutexLock lock(&mutex_);
    groups = groups_;
  }
  std::shared_ptr<WorkerGroup> best;
  std::pair<int64_t, int64_t> best_load;
  for (auto& group : groups) {
    if (group->lost() || group->leaving() || group->hello().max_model_len() < tokens) continue;
    const std::pair<int64_t, int64_t> load(group->load_tokens(), group->sequence_count());
    if (best == nullptr || load < best_load) {
      best = group;
      best_load = load;
    }
  }
  return best;
}

bool GroupRegistry::ready() const {
  absl::MutexLock lock(&mutex_);
  return std::ranges::any_of(groups_, [](const auto& group) { return !group->leaving(); });
}

std::string GroupRegistry::absence() const {
  absl::MutexLock lock(&mutex_);
  return absl::StrCat("no worker group is ready", absence_reason_.empty() ? "" : ": ",
                      absence_reason_);
}

void GroupRegistry::SetAbsenceReason(std::string why) {
  absl::MutexLock lock(&mutex_);
  absence_reason_ = std::move(why);
}

int64_t GroupRegistry::connections(const std::string& id) const {
  absl::MutexLock lock(&mutex_);
  const auto found = connections_.find(id);
  return found == connections_.end() ? 0 : found->second;
}

int64_t GroupRegistry::max_model_len() const {
  absl::MutexLock lock(&mutex_);
  int64_t longest = 0;
  for (const auto& group : groups_) longest = std::max(longest, group->hello().max_model_len());
  return longest;
}

std::vector<GroupInfo> GroupRegistry::Describe() const {
  absl::MutexLock lock(&mutex_);
  std::vector<GroupInfo> infos;
  for (const auto& group : groups_) {
    const cluster::v1::Hello& hello = group->hello();
    infos.push_back({.id = hello.group_id(),
                     .ranks = hello.ranks(),
                     .ready = !group->lost() && !group->leaving(),
                     .kv_tokens_total = hello.kv_blocks_total() * hello.kv_block_size(),
                     .kv_tokens_used = group->kv_blocks_used() * hello.kv_block_size(),
                     .has_retaining_heads = hello.has_retaining_heads(),
                     .dtype = hello.dtype(),
                     .weight_type = hello.weight_type(),
                     .calibration = CalibrationOf(hello)});
  }
  return infos;
}

std::vector<request::Strategy> GroupRegistry::Strategies() const {
  absl::MutexLock lock(&mutex_);
  std::vector<request::Strategy> all;
  for (const auto& group : groups_) {
    if (group->lost() || group->leaving()) continue;
    if (all.empty()) all.push_back({.name = "auto", .exact = true, .can_balance = true});
    for (const cluster::v1::StrategyInfo& strategy : group->hello().strategies()) {
      if (std::ranges::find(all, strategy.name(), &request::Strategy::name) == all.end())
        all.push_back({strategy.name(), strategy.exact(), strategy.can_balance()});
    }
  }
  return all;
}

std::vector<std::string> GroupRegistry::StrategyNames() const {
  std::vector<std::string> names;
  for (request::Strategy& strategy : Strategies()) names.push_back(std::move(strategy.name));
  return names;
}

void GroupRegistry::DrainAll() {
  absl::MutexLock lock(&mutex_);
  for (const auto& group : groups_) group->Drain();
}

}  // namespace apb::cluster
