// Backend::Sample on a CPU: a thread for a row.
#pragma once

#include "kernels/sample_args.h"

namespace apb::kernels {

void SampleOnCpu(const SampleArgs& args, int threads);

}  // namespace apb::kernels
