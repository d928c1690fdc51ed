#include "tests/engine/device/guarded_backend.h"

#include <sys/mman.h>

#include <functional>
#include <map>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace apb::kernels {
namespace {

// One mapping, closed but within a Scope. First fit; frees join neighbours.
class Arena {
 public:
  explicit Arena(size_t bytes) : bytes_(bytes) {
    void* base = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("no memory for the guarded arena");
    base_ = static_cast<std::byte*>(base);
    free_[0] = bytes;
  }
  ~Arena() { munmap(base_, bytes_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void* Take(size_t wanted) {
    const size_t size = (std::max<size_t>(wanted, 1) + 255) / 256 * 256;
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->second < size) continue;
      const size_t at = it->first, rest = it->second - size;
      free_.erase(it);
      if (rest > 0) free_[at + size] = rest;
      taken_[at] = {size, ++allocations_};
      used_ += size;
      peak_ = std::max(peak_, used_);
      return base_ + at;
    }
    return nullptr;
  }
  void Give(void* pointer) {
    const size_t at = static_cast<std::byte*>(pointer) - base_;
    used_ -= taken_.at(at).size;
    auto it = free_.emplace(at, taken_.at(at).size).first;
    taken_.erase(at);
    const auto next = std::next(it);
    if (next != free_.end() && it->first + it->second == next->first) {
      it->second += next->second;
      free_.erase(next);
    }
    if (it != free_.begin() && std::prev(it)->first + std::prev(it)->second == it->first) {
      std::prev(it)->second += it->second;
      free_.erase(it);
    }
  }
  size_t TakePeak() { return std::exchange(peak_, used_); }
  bool Contains(const void* pointer) const { return pointer >= base_ && pointer < base_ + bytes_; }
  // Number of the allocation that the pointer is in; 0: none.
  int64_t AllocationOf(const void* pointer) const {
    const size_t at = static_cast<const std::byte*>(pointer) - base_;
    auto it = taken_.upper_bound(at);
    if (it == taken_.begin()) return 0;
    --it;
    return at < it->first + it->second.size ? it->second.number : 0;
  }
  void Open(bool open) { mprotect(base_, bytes_, open ? PROT_READ | PROT_WRITE : PROT_NONE); }

 private:
  const size_t bytes_;
  std::byte* base_ = nullptr;
  struct Taken {
    size_t size;
    int64_t number;
  };
  int64_t allocations_ = 0;
  size_t used_ = 0, peak_ = 0;
  std::map<size_t, size_t> free_;  // begin -> size
  std::map<size_t, Taken> taken_;  // by begin
};

class GuardedStream : public Stream {
 public:
  explicit GuardedStream(std::unique_ptr<Stream> inner) : inner_(std::move(inner)) {}
  ~GuardedStream() override { DoPostponed(); }
  absl::Status Synchronize() override {
    if (recording.has_value()) Fail(absl::InternalError("a recorded stream is synchronized"));
    DoPostponed();
    return status_.ok() ? inner_->Synchronize() : status_;
  }
  void Postpone(std::function<void()> work) { postponed_.push_back(std::move(work)); }
  void DoPostponed() {
    for (const auto& work : std::exchange(postponed_, {})) work();
  }
  Stream& inner() { return *inner_; }
  const absl::Status& status() const { return status_; }

  using Work = std::vector<std::function<absl::Status()>>;
  // While the stream records, work is kept and not done; its failures are the recording's.
  std::optional<Work> recording;
  absl::Status TakeStatus() { return std::exchange(status_, absl::OkStatus()); }

 private:
  std::unique_ptr<Stream> inner_;
  std::vector<std::function<void()>> postponed_;
};

class GuardedGraph : public Graph {
 public:
  GuardedGraph(GuardedStream::Work work, int64_t& launches)
      : work_(std::move(work)), launches_(launches) {}
  void Launch(Stream& stream) override {
    auto& guarded = static_cast<GuardedStream&>(stream);
    ++launches_;
    for (const auto& work : work_) {
      if (guarded.status().ok()) guarded.Fail(work());
    }
  }

 private:
  const GuardedStream::Work work_;
  int64_t& launches_;
};

class GuardedBackend : public Backend {
 public:
  explicit GuardedBackend(size_t arena_bytes)
      : arena_(arena_bytes), cpu_(*CreateCpuBackend({.threads = 1, .force_isa = ""})) {}

  Arena& arena() { return arena_; }
  std::string_view name() const override { return "guarded"; }
  Place place() const override { return Place::kDevice; }
  absl::StatusOr<Buffer> Allocate(size_t size) override {
    void* data = arena_.Take(size);
    if (data == nullptr)
      return absl::ResourceExhaustedError(absl::StrCat("guarded arena: no ", size, " bytes"));
    return Buffer(data, size, [this](void* p) { arena_.Give(p); });
  }
  absl::StatusOr<Buffer> AllocateHost(size_t size) override {
    auto memory = cpu_->Allocate(size);
    if (!memory.ok()) return memory.status();
    auto owner = std::make_shared<Buffer>(*std::move(memory));
    std::byte* data = static_cast<std::byte*>(owner->data());
    page_locked_[data] = data + size;
    return Buffer(data, size,
                  [this, owner](void* p) { page_locked_.erase(static_cast<std::byte*>(p)); });
  }
  absl::StatusOr<std::unique_ptr<Stream>> NewStream() override {
    auto inner = cpu_->NewStream();
    if (!inner.ok()) return inner.status();
    return std::make_unique<GuardedStream>(*std::move(inner));
  }

  absl::StatusOr<std::unique_ptr<Graph>> Record(Stream& stream,
                                                absl::FunctionRef<absl::Status()> work) override {
    auto& guarded = static_cast<GuardedStream&>(stream);
    if (!guarded.status().ok()) return guarded.status();
    guarded.recording.emplace();
    absl::Status status = work();
    GuardedStream::Work recorded = *std::exchange(guarded.recording, std::nullopt);
    const absl::Status failure = guarded.TakeStatus();
    if (status.ok()) status = failure;
    if (!status.ok()) return status;
    return std::make_unique<GuardedGraph>(std::move(recorded), launches_);
  }
  int64_t launches() const { return launches_; }

 private:
  // The operands of an operation, and what it was given in host memory, for as long as that is
  // needed.
  template <typename Args>
  struct Operands : OperandVisitor {
    explicit Operands(const Args& given) : args(given) { args.VisitOperands(*this); }
    using OperandVisitor::Reads;
    void Reads(TensorView& view) override { views.push_back(view); }
    void Writes(TensorView& view) override { views.push_back(view); }
    Args args;
    std::vector<TensorView> views;
  };

  void Do(Operation operation, Stream& stream) override {
    std::visit([&](const auto* args) { Do(*args, static_cast<GuardedStream&>(stream)); },
               operation);
  }
  template <typename Args>
  void Do(const Args& args, GuardedStream& stream) {
    Give(std::make_shared<Operands<Args>>(args), stream);
  }
  void Do(const CopyArgs& args, GuardedStream& stream) {
    const auto operands = std::make_shared<Operands<CopyArgs>>(args);
    // What a recorded copy would find in host memory later, nobody knows.
    if (stream.recording.has_value()) return Give(operands, stream);
    operands->views.clear();
    if (!IsPageLocked(args.source.data) && !IsPageLocked(args.target.data))
      return Give(operands, stream);
    stream.Postpone([=, this, &stream] { Give(operands, stream); });
  }

  absl::Status CheckOperands(const char* name, const std::vector<TensorView>& views) const {
    for (const TensorView& view : views) {
      if (view.present() && view.numel() > 0 && !arena_.Contains(view.data))
        return absl::InternalError(absl::StrCat(name, ": an operand is in host memory"));
    }
    return absl::OkStatus();
  }
  // What is known when the operation is done only. The arena is open.
  template <typename Args>
  absl::Status CheckWhatIsThere(const Args&) const {
    return absl::OkStatus();
  }
  absl::Status CheckWhatIsThere(const PagedAttentionArgs& a) const {
    const auto words = [](const void* data, int64_t count) {
      return TensorView::Contiguous(const_cast<void*>(data), DType::kI32, {count});
    };
    int64_t slots = 0;
    for (size_t i = 0; i < a.rows.size(); ++i) {
      const PagedSequence& sequence = a.sequences[i];
      if (sequence.slot_count == 0) continue;
      slots += sequence.slot_count;
      const int64_t masked = sequence.slot_count - sequence.causal_begin;
      const absl::Status status = CheckOperands(
          "PagedAttention",
          {words(sequence.block_table, 1), words(sequence.slot_positions, masked > 0 ? 1 : 0)});
      if (!status.ok()) return status;
    }
    return slots <= a.total_slots
               ? absl::OkStatus()
               : absl::InternalError("PagedAttention: more slots than the bound");
  }
  template <typename Args>
  absl::Status Compute(const Operands<Args>& operands, Stream& inner) {
    absl::Status status = CheckOperands(Args::kName, operands.views);
    if (!status.ok()) return status;
    arena_.Open(true);
    status = CheckWhatIsThere(operands.args);
    if (status.ok()) cpu_->Run(operands.args, inner);
    arena_.Open(false);
    return status;
  }
  template <typename Args>
  void Give(const std::shared_ptr<Operands<Args>>& operands, GuardedStream& stream) {
    stream.DoPostponed();
    if (!stream.recording.has_value()) return stream.Fail(Compute(*operands, stream.inner()));
    stream.Fail(CheckOperands(Args::kName, operands->views));
    std::vector<int64_t> allocations;
    for (const TensorView& view : operands->views)
      allocations.push_back(arena_.AllocationOf(view.data));
    stream.recording->push_back([=, this, &stream]() -> absl::Status {
      for (size_t i = 0; i < operands->views.size(); ++i) {
        const TensorView& view = operands->views[i];
        if (view.present() && arena_.AllocationOf(view.data) != allocations[i])
          return absl::InternalError(absl::StrCat(Args::kName, ": recorded memory was given back"));
      }
      return Compute(*operands, stream.inner());
    });
  }

  bool IsPageLocked(const void* pointer) const {
    const auto* address = static_cast<const std::byte*>(pointer);
    const auto behind = page_locked_.upper_bound(address);
    return behind != page_locked_.begin() && address < std::prev(behind)->second;
  }

  Arena arena_;
  std::unique_ptr<Backend> cpu_;
  std::map<const std::byte*, const std::byte*> page_locked_;  // begin -> end
  int64_t launches_ = 0;
};

}  // namespace

int64_t TakeGuardedPeak(Backend& guarded) {
  return static_cast<int64_t>(static_cast<GuardedBackend&>(guarded).arena().TakePeak());
}

std::unique_ptr<Backend> CreateGuardedBackend(size_t arena_bytes) {
  return std::make_unique<GuardedBackend>(arena_bytes);
}

bool RecordHostWork(Stream& stream, std::function<absl::Status()> work) {
  auto& guarded = static_cast<GuardedStream&>(stream);
  if (!guarded.recording.has_value()) return false;
  guarded.recording->push_back(std::move(work));
  return true;
}

int64_t GraphLaunches(const Backend& guarded) {
  return static_cast<const GuardedBackend&>(guarded).launches();
}

}  // namespace apb::kernels
