// Help texts of the flags that apb-server passes on to its workers. Both programs print them, so
// that their --help cannot differ.
#pragma once

namespace apb::base {

inline constexpr char kDeviceHelp[] =
    "Device of the ranks: cuda, cpu, or auto (default): GPUs if every rank has one of its own, "
    "else CPUs";
inline constexpr char kKvCacheTokensHelp[] =
    "Size of the whole group's KV cache in tokens; 0 (default): from free memory";

}  // namespace apb::base
