// A visitor sees, and may replace, the operands of any operation.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor_view.h"

namespace apb::kernels {

struct KeySegment;
struct PagedAttentionArgs;
struct PagedRows;

// An operation's VisitOperands calls these for all operands, absent ones too. The order is right
// for replacing them one by one: an operand that may share memory with another one comes after it.
class OperandVisitor {
 public:
  virtual ~OperandVisitor() = default;
  virtual void Reads(TensorView& view) = 0;
  // An operand that is written, or read and written.
  virtual void Writes(TensorView& view) = 0;
  // `count` values in memory of the backend's place.
  template <typename T>
  void Reads(const T*& values, int64_t count) {
    static_assert(sizeof(T) % 4 == 0);
    if (values == nullptr || count <= 0) return;
    TensorView view = TensorView::Contiguous(const_cast<T*>(values), DType::kI32,
                                             {count * static_cast<int64_t>(sizeof(T)) / 4});
    Reads(view);
    values = view.as<const T>();
  }
  // args.sequences and the arrays that they point to, all in memory of the backend's place. This
  // version visits the sequences alone, because their contents may be known only when the operation
  // runs.
  virtual void Sequences(PagedAttentionArgs& args);

  // Copies a list in CPU memory into the visitor, which must outlive the operation.
  std::span<KeySegment> Own(std::span<const KeySegment>& keys);
  void Own(std::span<const PagedRows>& rows);

  OperandVisitor();
  OperandVisitor(const OperandVisitor&) = delete;
  OperandVisitor& operator=(const OperandVisitor&) = delete;

 private:
  std::vector<KeySegment> keys_;
  std::vector<PagedRows> rows_;
};

}  // namespace apb::kernels
