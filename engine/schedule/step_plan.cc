#include "engine/schedule/step_plan.h"

#include <cstring>
#include <type_traits>

#include "absl/strings/str_cat.h"

namespace apb::schedule {
namespace {

// Visit describes the layout once, for Writer and Reader. Little-endian machines only, as in MPI
// groups.
struct Writer {
  std::string bytes;
  template <typename T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T>
  void operator()(T& value) { bytes.append(reinterpret_cast<const char*>(&value), sizeof value); }
  void operator()(std::string& value) {
    Size(value.size());
    bytes += value;
  }
  template <typename T>
  void operator()(std::vector<T>& values) {
    Size(values.size());
    if constexpr (std::is_trivially_copyable_v<T>) {
      bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
    } else {
      for (T& value : values) Visit(*this, value);
    }
  }
  void Size(uint64_t size) { (*this)(size); }
};

struct Reader {
  std::string_view bytes;
  bool good = true;
  template <typename T>
  requires std::is_arithmetic_v<T> || std::is_enum_v<T>
  void operator()(T& value) {
    if (!good || bytes.size() < sizeof value) {
      good = false;
      return;
    }
    if constexpr (std::is_same_v<T, bool>) {
      value = bytes[0] != 0;
    } else {
      std::memcpy(&value, bytes.data(), sizeof value);
    }
    bytes.remove_prefix(sizeof value);
  }
  void operator()(std::string& value) {
    const uint64_t size = Size(1);
    value.assign(bytes.substr(0, size));
    bytes.remove_prefix(size);
  }
  template <typename T>
  void operator()(std::vector<T>& values) {
    if constexpr (std::is_trivially_copyable_v<T>) {
      const uint64_t size = Size(sizeof(T));
      values.resize(size);
      if (size > 0) std::memcpy(values.data(), bytes.data(), size * sizeof(T));
      bytes.remove_prefix(size * sizeof(T));
    } else {
      const uint64_t size = Size(1);  // an element has at least one byte
      for (uint64_t i = 0; i < size && good; ++i) {
        values.emplace_back();
        Visit(*this, values.back());
      }
    }
  }
  // Reads a count of elements of at least `least` bytes each. Returns 0 and sets `good` to false if
  // so many cannot follow.
  uint64_t Size(uint64_t least) {
    uint64_t size = 0;
    (*this)(size);
    if (size > bytes.size() / least) good = false;
    return good ? size : 0;
  }
};

template <typename A>
void Visit(A& a, sampling::SamplingParams& p) {
  sampling::ForEachField(p, [&a](const char*, auto& field) { a(field); });
}
template <typename A>
void Visit(A& a, context_parallel::StrategyOptions& o) {
  context_parallel::ForEachField(o, [&a](const char*, auto& field) { a(field); });
}
template <typename A>
void Visit(A& a, SequenceSpec& s) {
  a(s.id), a(s.tokens), a(s.query_begin), a(s.query_insert_position), a(s.embedded_query),
      a(s.strategy);
  Visit(a, s.strategy_options);
  a(s.generated_before), a(s.parent), a(s.cached_tokens), a(s.prefill_end), a(s.prefix_strategy);
  Visit(a, s.sampling);
}
template <typename A>
void Visit(A& a, PrefillSlice& s) {
  a(s.ids), a(s.layer_begin), a(s.layer_end);
}
template <typename A>
void Visit(A& a, TokenSpan& s) {
  a(s.id), a(s.position), a(s.tokens), a(s.sample);
}
template <typename A>
void Visit(A& a, StepPlan& p) {
  a(p.step), a(p.releases), a(p.admissions), a(p.prefill), a(p.spans), a(p.collect_stats),
      a(p.shutdown);
}

}  // namespace

std::string EncodeStepPlan(const StepPlan& plan) {
  Writer writer;
  Visit(writer, const_cast<StepPlan&>(plan));  // a Writer does not change what it visits
  return std::move(writer.bytes);
}

absl::StatusOr<StepPlan> DecodeStepPlan(std::string_view bytes) {
  Reader reader{bytes};
  StepPlan plan;
  Visit(reader, plan);
  if (!reader.good || !reader.bytes.empty()) {
    return absl::DataLossError(absl::StrCat("step plan of ", bytes.size(), " bytes is damaged"));
  }
  return plan;
}

}  // namespace apb::schedule
