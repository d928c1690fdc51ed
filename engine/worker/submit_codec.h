// Converts Submit of the cluster protocol to a request for the scheduler. Only here does the engine
// read the messages of common.v1. Pure functions.
#pragma once

#include "apb/cluster/v1/worker_group_service.pb.h"
#include "engine/schedule/request.h"

namespace apb::worker {

// Absent fields keep the defaults of the struct (so `logprobs` is off). schedule::ResolveRequest
// checks the ranges.
sampling::SamplingParams FromProto(const common::v1::SamplingParams& message);
// An absent `hosts` is 0: the group's default. Only the leader sets row_cost_pairs.
context_parallel::StrategyOptions FromProto(const common::v1::ApbOptions& message);
schedule::Request FromProto(const cluster::v1::Submit& submit);

}  // namespace apb::worker
