// The threads of the text pool.
#include "server/frontend/text_pool.h"

namespace apb::frontend {

TextPool::TextPool(int thread_count, size_t max_queued_tasks) : tasks_(max_queued_tasks) {
  for (int i = 0; i < thread_count; ++i) {
    threads_.emplace_back([this] {
      while (auto task = tasks_.Pop()) (*task)();
    });
  }
}

TextPool::~TextPool() {
  tasks_.Close();
  for (std::thread& thread : threads_) thread.join();
}

bool TextPool::Schedule(std::function<void()> task) { return tasks_.TryPush(std::move(task)); }

}  // namespace apb::frontend
