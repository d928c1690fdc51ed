#include "engine/model/column_gather.h"

#include <numeric>
#include <utility>

#include "engine/base/status_macros.h"

namespace apb::model {

using kernels::TensorView;

ColumnGather::ColumnGather(kernels::Backend& backend, comm::Communicator& communicator,
                           std::vector<std::vector<Range>> columns)
    : backend_(backend),
      communicator_(communicator),
      columns_(std::move(columns)),
      send_(backend),
      received_(backend) {
  for (const std::vector<Range>& ranges : columns_) {
    int64_t width = 0;
    for (const Range& range : ranges) width += range.length();
    widths_.push_back(width);
  }
}

absl::StatusOr<TensorView> ColumnGather::Mine(kernels::DType dtype, int64_t rows) {
  APB_ASSIGN_OR_RETURN(mine_, send_.Get(dtype, {rows, widths_[communicator_.rank()]}));
  return mine_;
}

absl::Status ColumnGather::Gather(const TensorView& whole, kernels::Stream& stream) {
  const int64_t rows = mine_.rows();
  std::vector<int64_t> counts;
  for (const int64_t width : widths_) counts.push_back(rows * width);
  const int64_t all = std::accumulate(counts.begin(), counts.end(), int64_t{0});
  APB_ASSIGN_OR_RETURN(const TensorView received, received_.Get(mine_.dtype, {all}));
  APB_RETURN_IF_ERROR(communicator_.AllGatherV(
      TensorView::Contiguous(mine_.data, mine_.dtype, {mine_.numel()}), received, counts, stream));
  int64_t begin = 0;
  for (size_t r = 0; r < columns_.size(); ++r) {
    const TensorView part = TensorView::Contiguous(received.Rows(begin, begin + counts[r]).data,
                                                   mine_.dtype, {rows, widths_[r]});
    begin += counts[r];
    int64_t at = 0;
    for (const Range& range : columns_[r]) {
      if (range.length() > 0) {
        backend_.Copy(part.Columns(at, at + range.length()), whole.Columns(range.begin, range.end),
                      stream);
      }
      at += range.length();
    }
  }
  return absl::OkStatus();
}

}  // namespace apb::model
