// A "device" for tests on machines that have none: the CPU backend with memory of its own that
// nobody but its operations can touch. Host code that reads or writes device memory dies of
// SIGSEGV; an operation that is given host memory fails its stream. So the engine is shown to keep
// the two apart, as it must with a GPU. Copies from and to memory of AllocateHost happen as late as
// they may: with the next operation of their stream, or when it is synchronized. What it cannot
// show: other work that is still under way when an operation returns.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#include "kernels/backend.h"

namespace apb::kernels {

// `arena_bytes`: all of its memory.
std::unique_ptr<Backend> CreateGuardedBackend(size_t arena_bytes);

// Recorded work (Backend::Record) is kept as closures with copies of all that was given by value. A
// launch fails where an operand's memory has been given back since. For work that the host does
// with device memory (staged collectives): keeps it and returns true if the stream records.
bool RecordHostWork(Stream& stream, std::function<absl::Status()> work);

// Graphs launched so far on a guarded backend.
int64_t GraphLaunches(const Backend& guarded);

// Of a guarded backend: the most bytes that were taken at a time since the last call; buffers count
// as multiples of 256 bytes.
int64_t TakeGuardedPeak(Backend& guarded);

}  // namespace apb::kernels
