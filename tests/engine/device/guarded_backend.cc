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
    if (recording.has_value()) Fail("a recorded stream is synchronized");
    DoPostponed();
    return status_.ok() ? inner_->Synchronize() : status_;
  }
  void Postpone(std::function<void()> work) { postponed_.push_back(std::move(work)); }
  void DoPostponed() {
    for (const auto& work : std::exchange(postponed_, {})) work();
  }
  void Fail(std::string what) { Fail(absl::InternalError(std::move(what))); }
  Stream& inner() { return *inner_; }
  const absl::Status& status() const { return status_; }

  using Work = std::vector<std::function<absl::Status()>>;
  // While the stream records, work is kept and not done; its failures are the recording's.
  std::optional<Work> recording;
  absl::Status TakeStatus() { return std::exchange(status_, absl::OkStatus()); }
  void Fail(absl::Status status) {
    if (status_.ok()) status_ = std::move(status);
  }

 private:
  std::unique_ptr<Stream> inner_;
  std::vector<std::function<void()>> postponed_;
  absl::Status status_;
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

  void Copy(const TensorView& source, const TensorView& target, Stream& stream) override {
    auto& guarded = static_cast<GuardedStream&>(stream);
    // What a recorded copy would find in host memory later, nobody knows.
    const bool recorded = guarded.recording.has_value();
    const std::vector<TensorView> views =
        recorded ? std::vector<TensorView>{source, target} : std::vector<TensorView>();
    const auto copy = [=, this, &guarded] {
      Run("Copy", views, guarded, [=, this](Stream& s) { cpu_->Copy(source, target, s); });
    };
    if (recorded || (!IsPageLocked(source.data) && !IsPageLocked(target.data))) return copy();
    guarded.Postpone(copy);
  }
  void Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                 Stream& stream) override {
    Run("Embedding", {table, ids, out}, stream,
        [=, this](Stream& s) { cpu_->Embedding(table, ids, out, s); });
  }
  void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon, const TensorView& out,
               Stream& stream) override {
    Run("RmsNorm", {x, weight, out}, stream,
        [=, this](Stream& s) { cpu_->RmsNorm(x, weight, epsilon, out, s); });
  }
  void Linear(const LinearArgs& a, Stream& stream) override {
    Run("Linear", {a.x, a.weight, a.bias, a.out}, stream,
        [=, this](Stream& s) { cpu_->Linear(a, s); });
  }
  void Rope(const RopeArgs& a, Stream& stream) override {
    Run("Rope",
        {a.x, a.positions, a.inv_freq, a.v, a.store.slots, a.store.k_cache, a.store.v_cache},
        stream, [=, this](Stream& s) { cpu_->Rope(a, s); });
  }
  void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
               Stream& stream) override {
    Run("SiluMul", {gate, up, out}, stream,
        [=, this](Stream& s) { cpu_->SiluMul(gate, up, out, s); });
  }
  void Accumulate(const TensorView& x, const TensorView& out, Stream& stream) override {
    Run("Accumulate", {x, out}, stream, [=, this](Stream& s) { cpu_->Accumulate(x, out, s); });
  }
  void AccumulateRmsNorm(const TensorView& x, const TensorView& residual, const TensorView& weight,
                         float epsilon, const TensorView& out, Stream& stream) override {
    Run("AccumulateRmsNorm", {x, residual, weight, out}, stream,
        [=, this](Stream& s) { cpu_->AccumulateRmsNorm(x, residual, weight, epsilon, out, s); });
  }
  void Attention(const AttentionArgs& a, Stream& stream) override {
    std::vector<TensorView> views = {a.q, a.q_positions, a.out, a.lse};
    for (const KeySegment& key : a.keys) views.insert(views.end(), {key.k, key.v, key.positions});
    const std::vector<KeySegment> keys(a.keys.begin(), a.keys.end());
    Run("Attention", views, stream, [=, this](Stream& s) {
      AttentionArgs copied = a;
      copied.keys = keys;
      cpu_->Attention(copied, s);
    });
  }
  void PagedAttention(const PagedAttentionArgs& a, Stream& stream) override {
    std::vector<TensorView> views = {a.q, a.q_positions, a.k_cache, a.v_cache, a.out, a.lse};
    const int64_t count = static_cast<int64_t>(a.rows.size());
    views.push_back(Words(a.sequences, count * sizeof(PagedSequence) / sizeof(int32_t)));
    const std::vector<PagedRows> rows(a.rows.begin(), a.rows.end());
    Run("PagedAttention", views, stream, [=, this](Stream& s) {
      PagedAttentionArgs copied = a;
      copied.rows = rows;
      CheckSequences(copied);
      cpu_->PagedAttention(copied, s);
    });
  }
  void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                     const TensorView& lse, Stream& stream) override {
    Run("MergePartials", {outs, lses, out, lse}, stream,
        [=, this](Stream& s) { cpu_->MergePartials(outs, lses, out, lse, s); });
  }
  void ReadFromCache(const TensorView& slots, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& k, const TensorView& v, Stream& stream) override {
    Run("ReadFromCache", {slots, k_cache, v_cache, k, v}, stream,
        [=, this](Stream& s) { cpu_->ReadFromCache(slots, k_cache, v_cache, k, v, s); });
  }
  void MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                   Stream& stream) override {
    Run("MaxPoolRows", {scores, out}, stream,
        [=, this](Stream& s) { cpu_->MaxPoolRows(scores, window, out, s); });
  }
  void KeyScores(const KeyScoreArgs& a, Stream& stream) override {
    Run("KeyScores", {a.k, a.query, a.scores}, stream,
        [=, this](Stream& s) { cpu_->KeyScores(a, s); });
  }
  void TopKPerHead(const TopKPerHeadArgs& a, Stream& stream) override {
    Run("TopKPerHead", {a.scores, a.indices}, stream,
        [=, this](Stream& s) { cpu_->TopKPerHead(a, s); });
  }
  void GatherRowsPerHead(const TensorView& x, const TensorView& indices, const TensorView& out,
                         Stream& stream) override {
    Run("GatherRowsPerHead", {x, indices, out}, stream,
        [=, this](Stream& s) { cpu_->GatherRowsPerHead(x, indices, out, s); });
  }
  void Sample(const SampleArgs& a, Stream& stream) override {
    const auto words = [](const void* data, int64_t bytes) {
      return TensorView::Contiguous(const_cast<void*>(data), DType::kI32, {bytes / 4});
    };
    Run("Sample",
        {a.logits, words(a.rows, a.logits.rows() * sizeof(SampleRow)),
         words(a.edits, a.edit_count * sizeof(LogitEdit)), a.tokens},
        stream, [=, this](Stream& s) { cpu_->Sample(a, s); });
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
  static TensorView Words(const void* data, int64_t count) {
    return TensorView::Contiguous(const_cast<void*>(data), DType::kI32, {count});
  }
  absl::Status CheckOperands(const char* name, const std::vector<TensorView>& views) const {
    for (const TensorView& view : views) {
      if (view.present() && view.numel() > 0 && !arena_.Contains(view.data))
        return absl::InternalError(absl::StrCat(name, ": an operand is in host memory"));
    }
    return absl::OkStatus();
  }
  // What is known when the operation is done only. The arena is open.
  void CheckSequences(const PagedAttentionArgs& a) {
    int64_t slots = 0;
    for (size_t i = 0; i < a.rows.size(); ++i) {
      const PagedSequence& sequence = a.sequences[i];
      if (sequence.slot_count == 0) continue;
      slots += sequence.slot_count;
      const int64_t masked = sequence.slot_count - sequence.causal_begin;
      found_ = found_.ok() ? CheckOperands("PagedAttention",
                                           {Words(sequence.block_table, 1),
                                            Words(sequence.slot_positions, masked > 0 ? 1 : 0)})
                           : found_;
    }
    if (slots > a.total_slots)
      found_ = absl::InternalError("PagedAttention: more slots than the bound");
  }
  template <typename Operation>
  absl::Status Do(const char* name, const std::vector<TensorView>& views, Stream& inner,
                  const Operation& operation) {
    absl::Status status = CheckOperands(name, views);
    if (!status.ok()) return status;
    arena_.Open(true);
    operation(inner);
    arena_.Open(false);
    return std::exchange(found_, absl::OkStatus());
  }
  template <typename Operation>
  void Run(const char* name, const std::vector<TensorView>& views, Stream& stream,
           const Operation& operation) {
    auto& guarded = static_cast<GuardedStream&>(stream);
    guarded.DoPostponed();
    if (!guarded.recording.has_value())
      return guarded.Fail(Do(name, views, guarded.inner(), operation));
    guarded.Fail(CheckOperands(name, views));
    std::vector<int64_t> allocations;
    for (const TensorView& view : views) allocations.push_back(arena_.AllocationOf(view.data));
    guarded.recording->push_back([=, this, &guarded]() -> absl::Status {
      for (size_t i = 0; i < views.size(); ++i) {
        if (views[i].present() && arena_.AllocationOf(views[i].data) != allocations[i])
          return absl::InternalError(absl::StrCat(name, ": recorded memory was given back"));
      }
      return Do(name, views, guarded.inner(), operation);
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
  absl::Status found_;                                        // by an operation under way
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
