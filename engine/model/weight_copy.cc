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
#include "kernels/weight_blocks.h"

namespace apb::model {
namespace {

using kernels::DType;
using kernels::TensorView;

constexpr int64_t kPieceBytes = 16 << 20, kQuantizedPieceBytes = 1 << 20;
constexpr int kReaders = 4;
constexpr int kBuffers = kReaders + 2;  // one for each reader, and two that the device copies from

// Some rows of a copy: as many as fit into a buffer, but at least one.
struct Piece {
  const WeightCopy* copy;
  TensorView source, target;  // source is absent for packed weights
  int64_t begin;              // the first row
  int64_t target_bytes() const { return BytesOf(target.dtype, target.numel()); }
  int64_t source_bytes() const {
    return source.present() ? BytesOf(source.dtype, source.numel()) : target_bytes();
  }
  // Bytes from the first row's begin to the last row's end, gaps between rows included.
  int64_t source_span() const {
    return BytesOf(source.dtype, (source.rows() - 1) * source.stride[0] + source.shape[1]);
  }
};

TensorView AsMatrix(const TensorView& view) {
  return view.rank == 1 ? TensorView::Contiguous(view.data, view.dtype, {1, view.shape[0]}) : view;
}

std::vector<Piece> Divide(const std::vector<WeightCopy>& copies) {
  std::vector<Piece> pieces;
  for (const WeightCopy& copy : copies) {
    const TensorView source = AsMatrix(copy.source), target = AsMatrix(copy.target);
    if (target.numel() == 0) continue;
    const int64_t row_bytes = BytesOf(target.dtype, target.shape[1]);
    // Quantizing takes longer than reading, so small pieces keep all threads busy.
    const int64_t bytes = IsBlockType(target.dtype) ? kQuantizedPieceBytes : kPieceBytes;
    const int64_t step = std::max<int64_t>(1, bytes / row_bytes);
    for (int64_t begin = 0; begin < target.rows(); begin += step) {
      const int64_t end = std::min(begin + step, target.rows());
      pieces.push_back({&copy, copy.packed ? TensorView{} : source.Rows(begin, end),
                        target.Rows(begin, end), begin});
    }
  }
  return pieces;
}

// A reader's memory: `numbers` as read, and `floats` to be quantized.
struct ReaderScratch {
  std::vector<float> numbers, floats;
};

// Converts numbers of one float type to another, or to blocks.
absl::Status Convert(DType source_type, const void* from, DType target_type, std::byte* to,
                     int64_t count, std::vector<float>& floats) {
  if (!IsBlockType(target_type)) {
    if (ConvertFloats(source_type, from, target_type, to, count)) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("has a number that is too large for ",
                                                   std::string(TorchName(target_type)),
                                                   " (choose another type with --dtype)"));
  }
  floats.resize(count);
  ConvertFloats(source_type, from, DType::kF32, floats.data(), count);
  if (kernels::EncodeBlocks(floats.data(), count, target_type, to)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("has a number that is not finite or too large for ", NameOf(target_type),
                   " (leave --quantize out)"));
}

// Reads `count` numbers that are contiguous in source and target.
absl::Status ReadRun(const WeightCopy& copy, const std::byte* from, std::byte* to, int64_t count,
                     ReaderScratch& scratch) {
  const auto fetch = [&](const std::byte* begin, size_t bytes, void* out) {
    if (copy.file != nullptr) return copy.file->Read(begin, bytes, static_cast<std::byte*>(out));
    std::memcpy(out, begin, bytes);
    return absl::OkStatus();
  };
  const DType source_type = copy.source.dtype, target_type = copy.target.dtype;
  if (source_type == target_type) return fetch(from, BytesOf(source_type, count), to);
  constexpr int64_t kRun = 64 << 10;  // numbers; whole blocks, and few enough for a core's cache
  scratch.numbers.resize(kRun);
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t run = std::min(kRun, count - begin);
    APB_RETURN_IF_ERROR(fetch(from + BytesOf(source_type, begin), BytesOf(source_type, run),
                              scratch.numbers.data()));
    APB_RETURN_IF_ERROR(Convert(source_type, scratch.numbers.data(), target_type,
                                to + BytesOf(target_type, begin), run, scratch.floats));
  }
  return absl::OkStatus();
}

// Reads a piece into `to`, which has the piece's shape and the target's type.
absl::Status ReadPiece(const Piece& piece, const TensorView& to, ReaderScratch& scratch) {
  const auto named = [&](const absl::Status& read) {
    if (read.ok()) return read;
    return absl::Status(
        read.code(), absl::StrCat("checkpoint: tensor '", piece.copy->name, "' ", read.message()));
  };
  if (piece.copy->packed) return named(piece.copy->packed->Convert(piece.begin, to));
  TensorView source = piece.source, target = to;
  if (source.stride[0] == source.shape[1] && target.stride[0] == target.shape[1]) {
    source = TensorView::Contiguous(source.data, source.dtype, {1, source.numel()});
    target = TensorView::Contiguous(target.data, target.dtype, {1, target.numel()});
  }
  for (int64_t row = 0; row < source.rows(); ++row) {
    APB_RETURN_IF_ERROR(
        named(ReadRun(*piece.copy, source.Rows(row, row + 1).as<std::byte>(),
                      target.Rows(row, row + 1).as<std::byte>(), source.shape[1], scratch)));
  }
  return absl::OkStatus();
}

// Hands the pieces out. Readers take them in order, and are at most `buffers` pieces ahead of those
// that have left their buffers. The thread that feeds the device waits for the pieces in order.
class Turns {
 public:
  Turns(int64_t pieces, int64_t buffers) : buffers_(buffers), read_(pieces, false) {}

  // Waits until the next piece's buffer is free and returns the piece. -1 if there is none left.
  int64_t Take() {
    absl::MutexLock lock(&mutex_);
    const auto can_go = [this] {
      mutex_.AssertHeld();
      return ended_ || taken_ == count() || taken_ < gone_ + buffers_;
    };
    mutex_.Await(absl::Condition(&can_go));
    return ended_ || taken_ == count() ? -1 : taken_++;
  }
  void SetRead(int64_t piece, const absl::Status& status) {
    absl::MutexLock lock(&mutex_);
    read_[piece] = true;
    if (error_.ok()) error_ = status;
  }
  // Waits until the piece has been read, or any piece has failed. Returns the first error.
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
  const int64_t buffers_;
  absl::Mutex mutex_;
  std::vector<bool> read_ ABSL_GUARDED_BY(mutex_);
  int64_t taken_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t gone_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status error_ ABSL_GUARDED_BY(mutex_);
};

// A staging buffer, and the stream that copies from it, which is destroyed first.
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

// Reads pieces until there are none left; without staging, straight into their targets.
void ReadPieces(const std::vector<Piece>& pieces, const std::vector<Staging>& staging,
                Turns& turns) {
  ReaderScratch scratch;
  for (int64_t i = turns.Take(); i >= 0; i = turns.Take()) {
    const Piece& piece = pieces[i];
    // The disk begins to read the piece that this thread is likely to take next.
    if (const size_t next = i + kReaders; next < pieces.size()) {
      const Piece& ahead = pieces[next];
      if (ahead.copy->packed && ahead.begin == 0)
        ahead.copy->file->Prefetch(ahead.copy->packed->data(), ahead.copy->packed->size_bytes());
      if (!ahead.copy->packed && ahead.copy->file != nullptr)
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

// Copies the pieces to the backend in order. A copy starts while the one before is in flight.
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
                         const std::function<void(const LoadProgress&)>& progress, int threads) {
  // In the order of their bytes in the files.
  std::sort(copies.begin(), copies.end(), [](const WeightCopy& a, const WeightCopy& b) {
    return std::less<>()(a.source_data(), b.source_data());
  });
  const std::vector<Piece> pieces = Divide(copies);
  std::vector<Staging> staging;
  if (backend.place() != kernels::Place::kCpu) {
    APB_ASSIGN_OR_RETURN(staging, NewStaging(pieces, backend));
  }
  const bool quantizes = std::any_of(copies.begin(), copies.end(), [](const WeightCopy& copy) {
    return IsBlockType(copy.target.dtype);
  });
  const int64_t most = quantizes && staging.empty() ? std::max(kReaders, threads) : kReaders;
  Turns turns(static_cast<int64_t>(pieces.size()), most + kBuffers - kReaders);
  std::vector<std::thread> readers;
  for (int64_t i = 0; i < std::min<int64_t>(most, pieces.size()); ++i)
    readers.emplace_back([&] { ReadPieces(pieces, staging, turns); });
  absl::Status status = SendPieces(pieces, staging, backend, turns, progress);
  turns.End();
  for (std::thread& reader : readers) reader.join();
  return status;
}

}  // namespace apb::model
