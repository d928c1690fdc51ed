#include "engine/model/weight_copy.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "engine/base/status_macros.h"
#include "engine/model/float_convert.h"
#include "engine/model/model_config.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kPieceBytes = 16 << 20;
constexpr int64_t kReaders = 4;
constexpr int64_t kBuffers = 6;  // one for each reader, and two that the device takes from

// Rows of a copy, as many as fit into a buffer (at least one).
struct Piece {
  const WeightCopy* copy;
  TensorView source, target;
  int64_t target_bytes() const {
    return target.numel() * static_cast<int64_t>(SizeOf(target.dtype));
  }
  int64_t source_bytes() const {
    return source.numel() * static_cast<int64_t>(SizeOf(source.dtype));
  }
  // From the first byte to the last, what lies between rows included.
  int64_t source_span() const {
    return ((source.rows() - 1) * source.stride[0] + source.shape[1]) *
           static_cast<int64_t>(SizeOf(source.dtype));
  }
};

TensorView AsMatrix(const TensorView& view) {
  return view.rank == 1 ? TensorView::Contiguous(view.data, view.dtype, {1, view.shape[0]}) : view;
}

std::vector<Piece> Divide(const std::vector<WeightCopy>& copies) {
  std::vector<Piece> pieces;
  for (const WeightCopy& copy : copies) {
    const TensorView source = AsMatrix(copy.source), target = AsMatrix(copy.target);
    if (source.numel() == 0) continue;
    const int64_t row_bytes = target.shape[1] * static_cast<int64_t>(SizeOf(target.dtype));
    const int64_t step = std::max<int64_t>(1, kPieceBytes / row_bytes);
    for (int64_t begin = 0; begin < source.rows(); begin += step) {
      const int64_t end = std::min(begin + step, source.rows());
      pieces.push_back({&copy, source.Rows(begin, end), target.Rows(begin, end)});
    }
  }
  return pieces;
}

// Numbers that lie dense on both sides. `scratch` is the reader's.
absl::Status ReadRun(const WeightCopy& copy, const std::byte* from, std::byte* to, int64_t count,
                     std::vector<float>& scratch) {
  const auto fetch = [&](const std::byte* begin, size_t bytes, void* out) {
    if (copy.file != nullptr) return copy.file->Read(begin, bytes, static_cast<std::byte*>(out));
    std::memcpy(out, begin, bytes);
    return absl::OkStatus();
  };
  const DType source_type = copy.source.dtype, target_type = copy.target.dtype;
  const auto source_size = static_cast<int64_t>(SizeOf(source_type)),
             target_size = static_cast<int64_t>(SizeOf(target_type));
  if (source_type == target_type) return fetch(from, count * source_size, to);
  constexpr int64_t kBlock = 64 << 10;  // numbers; stays in the cache of a core
  scratch.resize(kBlock);
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t block = std::min(kBlock, count - begin);
    APB_RETURN_IF_ERROR(fetch(from + begin * source_size, block * source_size, scratch.data()));
    if (!ConvertFloats(source_type, scratch.data(), target_type, to + begin * target_size, block)) {
      return absl::InvalidArgumentError(absl::StrCat("has a number that is too large for ",
                                                     std::string(TorchName(target_type)),
                                                     " (choose another type with --dtype)"));
    }
  }
  return absl::OkStatus();
}

// `to` has the shape of the piece and the target's type.
absl::Status ReadPiece(const Piece& piece, const TensorView& to, std::vector<float>& scratch) {
  TensorView source = piece.source, target = to;
  if (source.stride[0] == source.shape[1] && target.stride[0] == target.shape[1]) {
    source = TensorView::Contiguous(source.data, source.dtype, {1, source.numel()});
    target = TensorView::Contiguous(target.data, target.dtype, {1, target.numel()});
  }
  for (int64_t row = 0; row < source.rows(); ++row) {
    const absl::Status read =
        ReadRun(*piece.copy, source.Rows(row, row + 1).as<std::byte>(),
                target.Rows(row, row + 1).as<std::byte>(), source.shape[1], scratch);
    if (!read.ok()) {
      return absl::Status(read.code(), absl::StrCat("checkpoint: tensor '", piece.copy->name, "' ",
                                                    read.message()));
    }
  }
  return absl::OkStatus();
}

// Who may do what with which piece: readers take pieces in order, at most kBuffers before the
// last one that has gone to the device; the thread that feeds the device waits for them in order.
class Turns {
 public:
  explicit Turns(int64_t pieces) : read_(pieces, false) {}

  // The next piece to read, when its buffer is free; -1: there is nothing left to do.
  int64_t Take() {
    absl::MutexLock lock(&mutex_);
    const auto can_go = [this] {
      mutex_.AssertHeld();
      return ended_ || taken_ == count() || taken_ < gone_ + kBuffers;
    };
    mutex_.Await(absl::Condition(&can_go));
    return ended_ || taken_ == count() ? -1 : taken_++;
  }
  void SetRead(int64_t piece, const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    read_[piece] = true;
    if (error_.ok()) error_ = status;
  }
  // Waits until the piece has been read; the error of any piece.
  absl::Status AwaitRead(int64_t piece) {
    absl::MutexLock lock(&mutex_);
    const auto is_read = [this, piece] {
      mutex_.AssertHeld();
      return read_[piece] || !error_.ok();
    };
    mutex_.Await(absl::Condition(&is_read));
    return error_;
  }
  // One piece more has left its buffer.
  void SetGone() {
    absl::MutexLock lock(&mutex_);
    ++gone_;
  }
  void End() {
    absl::MutexLock lock(&mutex_);
    ended_ = true;
  }

 private:
  int64_t count() const { return static_cast<int64_t>(read_.size()); }
  absl::Mutex mutex_;
  std::vector<bool> read_ ABSL_GUARDED_BY(mutex_);
  int64_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t gone_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
};

// Page-locked memory and the stream that empties it, which ends first.
struct Staging {
  kernels::Buffer memory;
  std::unique_ptr<kernels::Stream> stream;
};

absl::StatusOr<std::vector<Staging>> NewStaging(const std::vector<Piece>& pieces,
                                                kernels::Backend& backend) {
  int64_t bytes = 0;
  for (const Piece& piece : pieces) bytes = std::max(bytes, piece.target_bytes());
  std::vector<Staging> all(std::min<size_t>(kBuffers, pieces.size()));
  for (Staging& staging : all) {
    APB_ASSIGN_OR_RETURN(staging.memory, backend.AllocateHost(bytes));
    APB_ASSIGN_OR_RETURN(staging.stream, backend.NewStream());
  }
  return all;
}

// Reads pieces until there are none left. Without staging, straight into the target.
void ReadPieces(const std::vector<Piece>& pieces, const std::vector<Staging>& staging,
                Turns& turns) {
  std::vector<float> scratch;
  for (int64_t i = turns.Take(); i >= 0; i = turns.Take()) {
    const Piece& piece = pieces[i];
    // The disk begins with what this thread is likely to read next.
    if (const size_t next = i + kReaders; next < pieces.size()) {
      const Piece& ahead = pieces[next];
      if (ahead.copy->file != nullptr)
        ahead.copy->file->Prefetch(ahead.source.as<std::byte>(), ahead.source_span());
    }
    TensorView to = piece.target;
    if (!staging.empty()) {
      to = TensorView::Contiguous(staging[i % kBuffers].memory.data(), to.dtype,
                                  {to.shape[0], to.shape[1]});
    }
    turns.SetRead(i, ReadPiece(piece, to, scratch));
  }
}

// Takes the pieces to the backend in order. While one is on its way the next may follow.
absl::Status SendPieces(const std::vector<Piece>& pieces, const std::vector<Staging>& staging,
                        kernels::Backend& backend, Turns& turns,
                        const std::function<void(const LoadProgress&)>& progress) {
  LoadProgress so_far;
  for (const Piece& piece : pieces) so_far.total_bytes += piece.source_bytes();
  const auto arrived = [&](size_t i) -> absl::Status {
    if (!staging.empty()) APB_RETURN_IF_ERROR(staging[i % kBuffers].stream->Synchronize());
    turns.SetGone();
    so_far.done_bytes += pieces[i].source_bytes();
    if (progress) progress(so_far);
    return absl::OkStatus();
  };
  for (size_t i = 0; i < pieces.size(); ++i) {
    APB_RETURN_IF_ERROR(turns.AwaitRead(i));
    if (!staging.empty()) {
      const Staging& from = staging[i % kBuffers];
      const TensorView& target = pieces[i].target;
      backend.Copy(TensorView::Contiguous(from.memory.data(), target.dtype,
                                          {target.shape[0], target.shape[1]}),
                   target, *from.stream);
    }
    if (i > 0) APB_RETURN_IF_ERROR(arrived(i - 1));
  }
  return pieces.empty() ? absl::OkStatus() : arrived(pieces.size() - 1);
}

}  // namespace

absl::Status CopyWeights(std::vector<WeightCopy> copies, kernels::Backend& backend,
                         const std::function<void(const LoadProgress&)>& progress) {
  // In the order in which the files have them.
  std::sort(copies.begin(), copies.end(), [](const WeightCopy& a, const WeightCopy& b) {
    return std::less<>()(a.source.data, b.source.data);
  });
  const std::vector<Piece> pieces = Divide(copies);
  std::vector<Staging> staging;
  if (backend.place() != kernels::Place::kHost) {
    APB_ASSIGN_OR_RETURN(staging, NewStaging(pieces, backend));
  }
  Turns turns(static_cast<int64_t>(pieces.size()));
  std::vector<std::thread> readers;
  for (int64_t i = 0; i < std::min<int64_t>(kReaders, pieces.size()); ++i)
    readers.emplace_back([&] { ReadPieces(pieces, staging, turns); });
  absl::Status status = SendPieces(pieces, staging, backend, turns, progress);
  turns.End();
  for (std::thread& reader : readers) reader.join();
  return status;
}

}  // namespace apb::model
