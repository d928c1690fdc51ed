// What decode steps must do on every device and group: steps launched as recorded graphs draw the
// same tokens as steps launched operation by operation.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "engine/comm/mesh.h"
#include "kernels/backend.h"

namespace apb::executor {

struct DecodeCase {
  kernels::Backend& device;
  // Makes this rank's mesh; called with a different name for each mesh.
  std::function<comm::Mesh(const std::string& name)> make_mesh;
  bool sliced = false;
  std::function<int64_t()> launches;  // number of graphs that the device has launched; may be empty
};

// Two executors, of which one records, execute the same plans of the tiny model. Sequences grow
// over the borders of blocks and buckets, join and leave; prefills, long batches of tokens and
// cancelled prefills come in between, so that memory moves. All ranks call it alike.
void CheckRecordedDecode(const DecodeCase& c);

}  // namespace apb::executor
