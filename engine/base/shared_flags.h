// The help texts of flags that apb-server only hands on to its workers. Both programs print them,
// so that their --help cannot say two different things.
#pragma once

namespace apb::base {

inline constexpr char kDeviceHelp[] =
    "cuda, cpu, or auto: GPUs where every rank has one of its own, else CPUs";
inline constexpr char kKvCacheTokensHelp[] =
    "KV cache of the whole group, in tokens; 0: from free memory";

}  // namespace apb::base
