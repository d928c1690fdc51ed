// Threads for text work (JSON of big bodies, templates, tokenization), which would hold up the
// event loops.
#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "engine/base/bounded_queue.h"

namespace apb::frontend {

// Starts tasks in their order of arrival, on any of the threads. The destructor runs all queued
// tasks, then joins.
class TextPool {
 public:
  TextPool(int thread_count, size_t max_queued_tasks);
  ~TextPool();
  TextPool(const TextPool&) = delete;
  TextPool& operator=(const TextPool&) = delete;

  // False when too many tasks wait; the task is then dropped.
  bool Schedule(std::function<void()> task);

 private:
  base::BoundedQueue<std::function<void()>> tasks_;
  std::vector<std::thread> threads_;
};

}  // namespace apb::frontend
