// Matrix products by oneDNN: primitives are made once for each shape.
#include "kernels/cpu/library_products.h"

#include <omp.h>

#include <array>
#include <map>

#include "oneapi/dnnl/dnnl.hpp"

namespace apb::kernels {
namespace {

dnnl::memory::data_type TypeOf(DType dtype) {
  return dtype == DType::kBF16 ? dnnl::memory::data_type::bf16 : dnnl::memory::data_type::f32;
}

// rows, in, out, strides of x, weight and out, then types and flags.
using Key = std::array<int64_t, 10>;

struct Product {
  dnnl::matmul primitive;
  dnnl::memory::desc x, weight, bias, out;
};

}  // namespace

struct LibraryProducts::Impl {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  std::map<Key, Product> products;

  const Product& Find(const LinearArgs& a) {
    const Key key = {a.x.shape[0],       a.x.shape[1],    a.weight.shape[0],  a.x.stride[0],
                     a.weight.stride[0], a.out.stride[0], int64_t(a.x.dtype), int64_t(a.out.dtype),
                     a.bias.present(),   a.accumulate};
    auto found = products.find(key);
    if (found != products.end()) return found->second;
    // Row counts vary with the prompts. A bounded cache holds the shapes of the current ones.
    if (products.size() > 512) products.clear();
    using Desc = dnnl::memory::desc;
    const int64_t rows = a.x.shape[0], in = a.x.shape[1], out = a.weight.shape[0];
    Product p;
    p.x = Desc({rows, in}, TypeOf(a.x.dtype), {a.x.stride[0], 1});
    p.weight = Desc({in, out}, TypeOf(a.weight.dtype), {1, a.weight.stride[0]});
    p.out = Desc({rows, out}, TypeOf(a.out.dtype), {a.out.stride[0], 1});
    dnnl::primitive_attr attributes;
    if (a.accumulate) {
      dnnl::post_ops ops;
      ops.append_sum(1.0f);
      attributes.set_post_ops(ops);
    }
    if (a.bias.present()) {
      p.bias = Desc({1, out}, TypeOf(a.bias.dtype), {out, 1});
      p.primitive = dnnl::matmul({{p.x, p.weight, p.bias, p.out}, attributes, engine});
    } else {
      p.primitive = dnnl::matmul({{p.x, p.weight, p.out}, attributes, engine});
    }
    return products.emplace(key, std::move(p)).first->second;
  }
};

LibraryProducts::LibraryProducts() : impl_(std::make_unique<Impl>()) {}
LibraryProducts::~LibraryProducts() = default;

bool LibraryProducts::Run(const LinearArgs& args, int threads) {
  // oneDNN takes its number of threads from OpenMP, whose setting is restored afterwards.
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  bool done = false;
  try {
    const Product& p = impl_->Find(args);
    std::unordered_map<int, dnnl::memory> operands = {
        {DNNL_ARG_SRC, {p.x, impl_->engine, args.x.data}},
        {DNNL_ARG_WEIGHTS, {p.weight, impl_->engine, args.weight.data}},
        {DNNL_ARG_DST, {p.out, impl_->engine, args.out.data}}};
    if (args.bias.present()) operands[DNNL_ARG_BIAS] = {p.bias, impl_->engine, args.bias.data};
    p.primitive.execute(impl_->stream, operands);
    impl_->stream.wait();
    done = true;
  } catch (const dnnl::error&) {
    // Thrown when the primitive is made, before anything is computed.
  }
  omp_set_num_threads(before);
  return done;
}

}  // namespace apb::kernels
