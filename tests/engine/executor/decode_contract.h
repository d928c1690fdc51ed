// What decode steps must do on every device and group: launched as recorded graphs, they draw the
// tokens of steps that are computed operation by operation.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/comm/mesh.h"
#include "kernels/backend.h"

namespace apb::executor {

struct DecodeCase {
  kernels::Backend& device;
  // This rank's mesh; called with a name of its own for each.
  std::function<comm::Mesh(const std::string& name)> make_mesh;
  bool sliced = false;
  std::function<int64_t()> launches;  // graphs that the device has launched; may be absent
};

// Two executors, one that records and one that does not, execute the same plans of the tiny model:
// sequences that grow over the borders of blocks and of buckets, join and leave, prefills, long
// batches of rows and cancelled prefills between (memory moves). All ranks call it alike.
void CheckRecordedDecode(const DecodeCase& c);

}  // namespace apb::executor
