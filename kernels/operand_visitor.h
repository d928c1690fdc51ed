// Whoever wants to know, or to replace, the operands of an operation, whatever operation it is.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/tensor_view.h"

namespace apb::kernels {

struct KeySegment;
struct PagedAttentionArgs;
struct PagedRows;

// An operation's VisitOperands calls these for all operands, absent ones too, in an order that is
// right for replacing them one by one: what lies in the place of another comes after it.
class OperandVisitor {
 public:
  virtual ~OperandVisitor() = default;
  virtual void Reads(TensorView& view) = 0;
  // Writes, or reads and writes.
  virtual void Writes(TensorView& view) = 0;
  // `count` values in backend memory.
  template <typename T>
  void Reads(const T*& values, int64_t count) {
    static_assert(sizeof(T) % 4 == 0);
    if (values == nullptr || count <= 0) return;
    TensorView view = TensorView::Contiguous(const_cast<T*>(values), DType::kI32,
                                             {count * static_cast<int64_t>(sizeof(T)) / 4});
    Reads(view);
    values = view.as<const T>();
  }
  // args.sequences and what they point to, all in backend memory. Here: the sequences alone, as
  // what they hold may be known only when the operation is done.
  virtual void Sequences(PagedAttentionArgs& args);

  // Lists in host memory are copied into the visitor, which must outlive the operation's use of
  // them.
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
