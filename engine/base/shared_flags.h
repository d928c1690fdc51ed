// What flags mean that apb-server has only to hand them on to its workers unchanged. Both programs' --help prints
// these words, so that they cannot say different things.
#pragma once

namespace apb::base {

inline constexpr char kDeviceHelp[] =
    "cuda, cpu, or auto: GPUs where every rank has one of its own, else CPUs";
inline constexpr char kKvCacheTokensHelp[] =
    "KV cache of the whole group, in tokens; 0: from free memory";

}  // namespace apb::base
