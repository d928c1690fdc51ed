#include "engine/worker/leader.h"

#include <atomic>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/base/log.h"
#include "engine/base/status_macros.h"
#include "engine/context_parallel/strategies.h"
#include "engine/schedule/scheduler.h"
#include "engine/worker/calibration.h"
#include "engine/worker/control_channel.h"
#include "engine/worker/follower.h"
#include "engine/worker/submit_codec.h"

namespace apb::worker {
namespace {

using schedule::EndReason;
using schedule::SequenceId;

constexpr absl::Duration kStatsWhileBusy = absl::Seconds(1);

cluster::v1::EndReason ToProto(EndReason reason) {
  switch (reason) {
    case EndReason::kStopToken:
      return cluster::v1::END_REASON_STOP_TOKEN;
    case EndReason::kLength:
      return cluster::v1::END_REASON_LENGTH;
    case EndReason::kCancelled:
      return cluster::v1::END_REASON_CANCELLED;
    case EndReason::kRejected:
      return cluster::v1::END_REASON_REJECTED;
    case EndReason::kFailed:
      return cluster::v1::END_REASON_FAILED;
  }
  return cluster::v1::END_REASON_UNSPECIFIED;
}

// Sorts the events of one step into messages to the server.
struct Outbox {
  cluster::v1::FromWorker tokens;
  std::vector<cluster::v1::FromWorker> progresses, ends;

  void operator()(const schedule::TokenEvent& event) {
    cluster::v1::TokenEvent* out = tokens.add_tokens();
    out->set_sequence(static_cast<uint64_t>(event.id));
    out->set_token(event.sampled.token);
    out->set_logprob(event.sampled.logprob);
    for (const auto& [id, logprob] : event.sampled.top) {
      cluster::v1::TopLogprob* top = out->add_top();
      top->set_id(id);
      top->set_logprob(logprob);
    }
  }

  void operator()(const schedule::ProgressEvent& event) {
    cluster::v1::SequenceProgress* out = progresses.emplace_back().mutable_progress();
    out->set_sequence(static_cast<uint64_t>(event.id));
    out->set_processed_tokens(event.processed_tokens);
    out->set_total_tokens(event.total_tokens);
    out->set_elapsed_seconds(event.elapsed_seconds);
    out->set_eta_seconds(event.eta_seconds);
    out->set_cached_tokens(event.cached_tokens);
    out->set_strategy(event.strategy);
    out->set_queue_seconds(event.queue_seconds);
  }

  void operator()(const schedule::EndEvent& event) {
    cluster::v1::SequenceEnd* out = ends.emplace_back().mutable_end();
    out->set_sequence(static_cast<uint64_t>(event.id));
    out->set_reason(ToProto(event.reason));
    out->set_status_code(static_cast<int>(event.status.code()));
    out->set_message(std::string(event.status.message()));
    out->set_queue_seconds(event.queue_seconds);
    out->set_prefill_seconds(event.prefill_seconds);
    out->set_decode_seconds(event.decode_seconds);
    out->set_strategy(event.strategy);
    out->set_cached_tokens(event.cached_tokens);
  }
};

class Leader {
 public:
  Leader(const WorkerOptions& options, comm::MpiRuntime& mpi, Engine& engine,
         const std::atomic<bool>& stop)
      : options_(options),
        mpi_(mpi),
        engine_(engine),
        stop_(stop),
        deadline_(absl::Seconds(options.collective_timeout_seconds)),
        scheduler_({.ranks = engine.device.mesh->cp_group().size(),
                    .default_hosts = engine.device.mesh->cp_group().size() * options.virtual_hosts,
                    .block_size = engine.shape.block_size,
                    .blocks_per_rank = engine.shape.block_count,
                    .layers = engine.weights->config().layers,
                    .max_model_len = engine.max_model_len,
                    .vocab_size = engine.weights->config().vocab_size,
                    .has_retaining_heads = engine.weights->has_retaining_heads(),
                    .model = ShapeOf(*engine.weights),
                    .speed = engine.speed,
                    .prefill_bytes = engine.prefill_bytes,
                    .overlap = options.overlap,
                    .full_below = options.full_below,
                    .ring_from = options.ring_from,
                    .balanced = options.balanced,
                    .prefix_cache = options.prefix_cache,
                    .max_batch_tokens = options.max_batch_tokens,
                    .max_waiting = options.max_queued_requests,
                    .max_waiting_tokens = options.max_queued_tokens}) {}

  absl::Status Run() {
    APB_ASSIGN_OR_RETURN(channel_, ControlChannel::Connect(options_.server, MakeHello(),
                                                           std::min(deadline_, absl::Seconds(30))));
    while (!channel_->closed()) {
      TakeCommands();
      if ((draining_ || stop_.load()) && scheduler_.idle()) break;
      if (stop_.load() && !draining_) {
        APB_LOG(Info, "stopping when the running requests have ended");
        cluster::v1::FromWorker message;
        message.mutable_leaving();
        channel_->Send(message);
      }
      draining_ |= stop_.load();
      APB_RETURN_IF_ERROR(Step());
    }
    if (channel_->closed() && !draining_) {
      const absl::Status why = channel_->Finish();
      return absl::UnavailableError(
          absl::StrCat("the stream to apb-server has ended", why.ok() ? "" : ": ", why.message()));
    }
    schedule::StepPlan last;
    last.shutdown = true;
    APB_RETURN_IF_ERROR(mpi_.SendPlan(schedule::EncodeStepPlan(last), deadline_));
    return channel_->closed() ? absl::OkStatus() : channel_->Finish();
  }

 private:
  cluster::v1::Hello MakeHello() const {
    const model::ModelConfig& config = engine_.weights->config();
    cluster::v1::Hello hello;
    hello.set_group_id(options_.group_id);
    hello.set_ranks(mpi_.size());
    hello.set_model_fingerprint(config.fingerprint);
    hello.set_max_model_len(engine_.max_model_len);
    hello.set_kv_block_size(engine_.shape.block_size);
    hello.set_kv_blocks_total(engine_.shape.block_count * engine_.device.mesh->cp_group().size());
    hello.set_has_retaining_heads(engine_.weights->has_retaining_heads());
    hello.set_default_hosts(engine_.device.mesh->cp_group().size() * options_.virtual_hosts);
    hello.set_dtype(std::string(model::TorchName(config.dtype)));
    hello.set_weight_type(std::string(engine_.weights->weight_type()));
    hello.set_token(options_.token);
    hello.set_load_seconds(engine_.load_seconds);
    for (const context_parallel::StrategyInfo* info : context_parallel::Strategies()) {
      cluster::v1::StrategyInfo* strategy = hello.add_strategies();
      strategy->set_name(std::string(info->name));
      strategy->set_exact(info->exact);
      strategy->set_can_balance(info->can_balance);
    }
    cluster::v1::Calibration* calibration = hello.mutable_calibration();
    calibration->set_product_flops(engine_.speed.product_flops);
    calibration->set_attention_flops(engine_.speed.attention_flops);
    calibration->set_link_bytes_per_second(engine_.speed.link_bytes_per_second);
    calibration->set_link_latency_seconds(engine_.speed.link_latency_seconds);
    return hello;
  }

  // Sleeps on the queue when there is nothing to compute; a command wakes it at once.
  void TakeCommands() {
    if (scheduler_.idle()) {
      const absl::Duration until_stats = last_stats_ + kStatsWhileIdle - absl::Now();
      // Signals do not wake the queue, so `stop` is looked at now and then.
      const absl::Duration wait =
          std::clamp(until_stats, absl::ZeroDuration(), absl::Milliseconds(200));
      if (auto command = channel_->Next(wait)) Apply(*command);
    }
    for (const cluster::v1::ToWorker& command : channel_->DrainNow()) Apply(command);
  }

  void Apply(const cluster::v1::ToWorker& command) {
    const absl::Time now = absl::Now();
    if (command.has_submit()) {
      scheduler_.Submit(FromProto(command.submit()), now);
    } else if (command.has_cancel()) {
      scheduler_.Cancel(SequenceId{command.cancel().sequence()}, now);
    } else if (command.has_drain()) {
      draining_ = true;
    }
  }

  absl::Status Step() {
    schedule::StepPlan plan = scheduler_.NextStep(absl::Now());
    const bool busy = !plan.prefill.empty() || !plan.spans.empty();
    // One more report after the last request shows the KV cache empty again.
    const bool due = absl::Now() - last_stats_ >= (busy ? kStatsWhileBusy : kStatsWhileIdle);
    plan.collect_stats = due || (!busy && was_busy_);
    was_busy_ = busy || (!plan.empty() && !plan.collect_stats);
    if (!plan.empty()) {
      if (mpi_.size() > 1)
        APB_RETURN_IF_ERROR(mpi_.SendPlan(schedule::EncodeStepPlan(plan), deadline_));
      APB_ASSIGN_OR_RETURN(const schedule::StepResult result, engine_.executor->Execute(plan));
      scheduler_.Complete(plan, result, absl::Now());
    }
    SendEvents();
    if (plan.collect_stats) APB_RETURN_IF_ERROR(SendStats());
    return absl::OkStatus();
  }

  // The tokens of one step travel in one message, behind the step's progress and before its ends.
  void SendEvents() {
    Outbox out;
    for (const schedule::Event& event : scheduler_.TakeEvents()) std::visit(out, event);
    for (const cluster::v1::FromWorker& message : out.progresses) channel_->Send(message);
    if (out.tokens.tokens_size() > 0) channel_->Send(out.tokens);
    for (const cluster::v1::FromWorker& message : out.ends) channel_->Send(message);
  }

  absl::Status SendStats() {
    last_stats_ = absl::Now();
    APB_ASSIGN_OR_RETURN(
        const std::vector<std::string> all,
        mpi_.GatherToLeader(SerializedRankStats(mpi_, *engine_.executor), deadline_));
    cluster::v1::FromWorker message;
    cluster::v1::GroupStats* stats = message.mutable_stats();
    stats->set_running(static_cast<int>(scheduler_.running()));
    stats->set_waiting(static_cast<int>(scheduler_.waiting()));
    stats->set_prompt_tokens_computed(scheduler_.prompt_tokens_computed());
    for (size_t r = 0; r < all.size(); ++r) {
      cluster::v1::RankStats* rank = stats->add_ranks();
      if (!rank->ParseFromString(all[r]))
        return absl::DataLossError("statistics of a rank are damaged");
      // The counts are the ledger's: a block pool does not know whether a sequence or a cached
      // prefix holds a block.
      const schedule::KvLedger& ledger = scheduler_.ledger();
      const int context_rank = static_cast<int>(r) / options_.tensor_parallel;
      rank->set_kv_blocks_used(ledger.used(context_rank));
      rank->set_kv_blocks_pinned(ledger.kept(context_rank));
      rank->set_kv_blocks_cached(ledger.cached(context_rank) - ledger.kept(context_rank));
      // The ranks of a tensor-parallel group hold heads of the same tokens, so one of them counts.
      if (r % options_.tensor_parallel == 0)
        stats->set_kv_blocks_used(stats->kv_blocks_used() + rank->kv_blocks_used() +
                                  rank->kv_blocks_pinned());
    }
    channel_->Send(message);
    return absl::OkStatus();
  }

  const WorkerOptions& options_;
  comm::MpiRuntime& mpi_;
  Engine& engine_;
  const std::atomic<bool>& stop_;
  const absl::Duration deadline_;
  schedule::Scheduler scheduler_;
  std::unique_ptr<ControlChannel> channel_;
  bool draining_ = false, was_busy_ = false;
  absl::Time last_stats_ = absl::InfinitePast();
};

}  // namespace

absl::Status RunLeader(const WorkerOptions& options, comm::MpiRuntime& mpi, Engine& engine,
                       const std::atomic<bool>& stop) {
  return Leader(options, mpi, engine, stop).Run();
}

}  // namespace apb::worker
