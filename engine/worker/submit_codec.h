// Submit of the cluster protocol to what the scheduler takes: the one place where the engine reads
// the messages of common.v1. Pure functions.
#pragma once

#include "apb/cluster/v1/worker_group_service.pb.h"
#include "engine/schedule/request.h"

namespace apb::worker {

// Fields that a message lacks keep the defaults of the struct (`logprobs` is off then). Ranges are
// checked by schedule::ResolveRequest.
sampling::SamplingParams FromProto(const common::v1::SamplingParams& message);
// An absent `hosts` is 0: the group's default. Only the leader sets row_cost_pairs.
context_parallel::StrategyOptions FromProto(const common::v1::ApbOptions& message);
schedule::Request FromProto(const cluster::v1::Submit& submit);

}  // namespace apb::worker
