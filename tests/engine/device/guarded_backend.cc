#include "tests/engine/device/guarded_backend.h"

#include <sys/mman.h>

#include <functional>
#include <map>
#include <stdexcept>
#include <utility>

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
      taken_[at] = size;
      return base_ + at;
    }
    return nullptr;
  }
  void Give(void* pointer) {
    const size_t at = static_cast<std::byte*>(pointer) - base_;
    auto it = free_.emplace(at, taken_.at(at)).first;
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
  bool Contains(const void* pointer) const { return pointer >= base_ && pointer < base_ + bytes_; }
  void Open(bool open) { mprotect(base_, bytes_, open ? PROT_READ | PROT_WRITE : PROT_NONE); }

 private:
  const size_t bytes_;
  std::byte* base_ = nullptr;
  std::map<size_t, size_t> free_, taken_;  // begin -> size
};

class GuardedStream : public Stream {
 public:
  explicit GuardedStream(std::unique_ptr<Stream> inner) : inner_(std::move(inner)) {}
  ~GuardedStream() override { DoPostponed(); }
  absl::Status Synchronize() override {
    DoPostponed();
    return status_.ok() ? inner_->Synchronize() : status_;
  }
  void Postpone(std::function<void()> work) { postponed_.push_back(std::move(work)); }
  void DoPostponed() {
    for (const auto& work : std::exchange(postponed_, {})) work();
  }
  void Fail(std::string what) {
    if (status_.ok()) status_ = absl::InternalError(std::move(what));
  }
  Stream& inner() { return *inner_; }

 private:
  std::unique_ptr<Stream> inner_;
  std::vector<std::function<void()>> postponed_;
  absl::Status status_;
};

class GuardedBackend : public Backend {
 public:
  explicit GuardedBackend(size_t arena_bytes)
      : arena_(arena_bytes), cpu_(*CreateCpuBackend({.threads = 1, .force_isa = ""})) {}

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
    const auto copy = [=, this, &stream] {
      Run("Copy", {}, stream, [&](Stream& s) { cpu_->Copy(source, target, s); });
    };
    if (!IsPageLocked(source.data) && !IsPageLocked(target.data)) return copy();
    static_cast<GuardedStream&>(stream).Postpone(copy);
  }
  void Embedding(const TensorView& table, const TensorView& ids, const TensorView& out,
                 Stream& stream) override {
    Run("Embedding", {table, ids, out}, stream,
        [&](Stream& s) { cpu_->Embedding(table, ids, out, s); });
  }
  void RmsNorm(const TensorView& x, const TensorView& weight, float epsilon, const TensorView& out,
               Stream& stream) override {
    Run("RmsNorm", {x, weight, out}, stream,
        [&](Stream& s) { cpu_->RmsNorm(x, weight, epsilon, out, s); });
  }
  void Linear(const LinearArgs& a, Stream& stream) override {
    Run("Linear", {a.x, a.weight, a.bias, a.out}, stream, [&](Stream& s) { cpu_->Linear(a, s); });
  }
  void Rope(const RopeArgs& a, Stream& stream) override {
    Run("Rope",
        {a.x, a.positions, a.inv_freq, a.v, a.store.slots, a.store.k_cache, a.store.v_cache},
        stream, [&](Stream& s) { cpu_->Rope(a, s); });
  }
  void SiluMul(const TensorView& gate, const TensorView& up, const TensorView& out,
               Stream& stream) override {
    Run("SiluMul", {gate, up, out}, stream, [&](Stream& s) { cpu_->SiluMul(gate, up, out, s); });
  }
  void Accumulate(const TensorView& x, const TensorView& out, Stream& stream) override {
    Run("Accumulate", {x, out}, stream, [&](Stream& s) { cpu_->Accumulate(x, out, s); });
  }
  void AccumulateRmsNorm(const TensorView& x, const TensorView& residual, const TensorView& weight,
                         float epsilon, const TensorView& out, Stream& stream) override {
    Run("AccumulateRmsNorm", {x, residual, weight, out}, stream,
        [&](Stream& s) { cpu_->AccumulateRmsNorm(x, residual, weight, epsilon, out, s); });
  }
  void Attention(const AttentionArgs& a, Stream& stream) override {
    std::vector<TensorView> views = {a.q, a.q_positions, a.out, a.lse};
    for (const KeySegment& key : a.keys) views.insert(views.end(), {key.k, key.v, key.positions});
    Run("Attention", views, stream, [&](Stream& s) { cpu_->Attention(a, s); });
  }
  void PagedAttention(const PagedAttentionArgs& a, Stream& stream) override {
    std::vector<TensorView> views = {a.q, a.q_positions, a.k_cache, a.v_cache, a.out, a.lse};
    for (const PagedSequence& sequence : a.sequences) {
      if (sequence.slot_count == 0) continue;
      TensorView table, positions;
      table.data = const_cast<int32_t*>(sequence.block_table);
      positions.data = const_cast<int32_t*>(sequence.slot_positions);
      table.shape[0] = 1;
      positions.shape[0] = sequence.slot_count > sequence.causal_begin ? 1 : 0;
      table.rank = positions.rank = 1;
      views.insert(views.end(), {table, positions});
    }
    Run("PagedAttention", views, stream, [&](Stream& s) { cpu_->PagedAttention(a, s); });
  }
  void MergePartials(const TensorView& outs, const TensorView& lses, const TensorView& out,
                     const TensorView& lse, Stream& stream) override {
    Run("MergePartials", {outs, lses, out, lse}, stream,
        [&](Stream& s) { cpu_->MergePartials(outs, lses, out, lse, s); });
  }
  void ReadFromCache(const TensorView& slots, const TensorView& k_cache, const TensorView& v_cache,
                     const TensorView& k, const TensorView& v, Stream& stream) override {
    Run("ReadFromCache", {slots, k_cache, v_cache, k, v}, stream,
        [&](Stream& s) { cpu_->ReadFromCache(slots, k_cache, v_cache, k, v, s); });
  }
  void MaxPoolRows(const TensorView& scores, int window, const TensorView& out,
                   Stream& stream) override {
    Run("MaxPoolRows", {scores, out}, stream,
        [&](Stream& s) { cpu_->MaxPoolRows(scores, window, out, s); });
  }
  void KeyScores(const KeyScoreArgs& a, Stream& stream) override {
    Run("KeyScores", {a.k, a.query, a.scores}, stream, [&](Stream& s) { cpu_->KeyScores(a, s); });
  }
  void TopKPerHead(const TopKPerHeadArgs& a, Stream& stream) override {
    Run("TopKPerHead", {a.scores, a.indices}, stream, [&](Stream& s) { cpu_->TopKPerHead(a, s); });
  }
  void GatherRowsPerHead(const TensorView& x, const TensorView& indices, const TensorView& out,
                         Stream& stream) override {
    Run("GatherRowsPerHead", {x, indices, out}, stream,
        [&](Stream& s) { cpu_->GatherRowsPerHead(x, indices, out, s); });
  }
  void Sample(const SampleArgs& a, Stream& stream) override {
    const auto words = [](const void* data, int64_t bytes) {
      return TensorView::Contiguous(const_cast<void*>(data), DType::kI32, {bytes / 4});
    };
    Run("Sample",
        {a.logits, words(a.rows, a.logits.rows() * sizeof(SampleRow)),
         words(a.edits, a.edit_count * sizeof(LogitEdit)), a.tokens},
        stream, [&](Stream& s) { cpu_->Sample(a, s); });
  }

 private:
  template <typename Operation>
  void Run(const char* name, const std::vector<TensorView>& views, Stream& stream,
           const Operation& operation) {
    auto& guarded = static_cast<GuardedStream&>(stream);
    guarded.DoPostponed();
    for (const TensorView& view : views) {
      if (view.present() && view.numel() > 0 && !arena_.Contains(view.data))
        return guarded.Fail(absl::StrCat(name, ": an operand is in host memory"));
    }
    arena_.Open(true);
    operation(guarded.inner());
    arena_.Open(false);
  }

  bool IsPageLocked(const void* pointer) const {
    const auto* address = static_cast<const std::byte*>(pointer);
    const auto behind = page_locked_.upper_bound(address);
    return behind != page_locked_.begin() && address < std::prev(behind)->second;
  }

  Arena arena_;
  std::unique_ptr<Backend> cpu_;
  std::map<const std::byte*, const std::byte*> page_locked_;  // begin -> end
};

}  // namespace

std::unique_ptr<Backend> CreateGuardedBackend(size_t arena_bytes) {
  return std::make_unique<GuardedBackend>(arena_bytes);
}

}  // namespace apb::kernels
