// Writes a tiny model, prompts and the hidden states of our prefill, for apb_reference.py to check:
// `prefill_dump DIR` makes DIR/manifest.json and DIR/data.bin (float32).
#include <fstream>
#include <iostream>
#include <thread>

#include "engine/comm/local_communicator.h"
#include "nlohmann/json.hpp"
#include "tests/engine/context_parallel/tiny_engine.h"

namespace apb::context_parallel {
namespace {

class Dump {
 public:
  explicit Dump(const std::string& folder) : folder_(folder), data_(folder + "/data.bin") {}
  nlohmann::json Add(const float* values, std::vector<int64_t> shape) {
    int64_t count = 1;
    for (const int64_t extent : shape) count *= extent;
    data_.write(reinterpret_cast<const char*>(values), count * 4);
    const int64_t offset = at_;
    at_ += count;
    return {{"offset", offset}, {"shape", shape}};
  }
  nlohmann::json Add(const kernels::TensorView& view) {
    return Add(view.as<float>(), {view.shape.begin(), view.shape.begin() + view.rank});
  }
  void Finish(const nlohmann::json& manifest) {
    std::ofstream(folder_ + "/manifest.json") << manifest.dump(1);
  }

 private:
  std::string folder_;
  std::ofstream data_;
  int64_t at_ = 0;  // floats
};

nlohmann::json DumpModel(Dump& dump) {
  const TinyModel& tiny = TinyModel::Get();
  const model::ModelConfig& c = tiny.config;
  nlohmann::json layers;
  for (int i = 0; i < c.layers; ++i) {
    const model::LayerWeights& l = tiny.weights->layer(i);
    layers.push_back({{"input_norm", dump.Add(l.input_norm)},
                      {"q", dump.Add(l.q_proj)},
                      {"k", dump.Add(l.k_proj)},
                      {"v", dump.Add(l.v_proj)},
                      {"q_bias", dump.Add(l.q_bias)},
                      {"k_bias", dump.Add(l.k_bias)},
                      {"v_bias", dump.Add(l.v_bias)},
                      {"o", dump.Add(l.o_proj)},
                      {"post_norm", dump.Add(l.post_norm)},
                      {"gate", dump.Add(l.gate_proj)},
                      {"up", dump.Add(l.up_proj)},
                      {"down", dump.Add(l.down_proj)},
                      {"fc1", dump.Add(l.retaining_fc1)},
                      {"fc2", dump.Add(l.retaining_fc2)}});
  }
  return {{"query_heads", c.query_heads},
          {"kv_heads", c.kv_heads},
          {"head_dim", c.head_dim},
          {"epsilon", c.rms_norm_epsilon},
          {"theta", c.rope.theta},
          {"embedding", dump.Add(tiny.weights->embedding())},
          {"layers", layers}};
}

std::vector<PrefillCase> Cases() {
  std::vector<PrefillCase> cases = {{.strategy = "full", .document_length = 37}};
  for (const int hosts : {1, 3, 4, 7}) {
    cases.push_back({.strategy = "star", .options = {.hosts = hosts}, .document_length = 45});
    for (const char* compressor : {"retaining_heads", "query_aware", "random"}) {
      PrefillCase c{.strategy = "apb",
                    .compressor = compressor,
                    .options = {.hosts = hosts, .anchor_length = 9, .passing_length = 4},
                    .document_length = 73,
                    .embedded_query = Text(300, 305),
                    .query_insert_position = 2};
      cases.push_back(c);
      c.overlap = true;  // also means one rank for each host
      cases.push_back(c);
      c.options.row_cost_pairs = 40;
      cases.push_back(c);
      c.overlap = false;
      cases.push_back(c);
      c.options.row_cost_pairs = 0;
      c.query_insert_position = 0;
      c.options.anchor_length = 4;  // shorter than the query, of which the anchor keeps the end
      cases.push_back(c);
      c.embedded_query.clear();
      c.options = {.hosts = hosts, .anchor_length = 0, .passing_length = 1000};
      cases.push_back(c);
    }
  }
  return cases;
}

// On one rank. With overlap, which needs an exchange to overlap with, on one rank for each host.
TinyEngine::PrefillResult Run(const PrefillCase& c) {
  const int ranks = c.overlap ? c.options.hosts : 1;
  auto group = comm::CreateLocalGroup(ranks, absl::Minutes(1));
  std::vector<TinyEngine::PrefillResult> results(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      TinyEngine engine(*group[r]);
      results[r] = engine.Prefill(c);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return std::move(results[0]);
}

void DumpAll(const std::string& folder) {
  Dump dump(folder);
  nlohmann::json manifest = {{"model", DumpModel(dump)}, {"cases", nlohmann::json::array()}};
  for (const PrefillCase& c : Cases()) {
    const TinyEngine::PrefillResult result = Run(c);
    const int64_t rows = result.document.rows;
    manifest["cases"].push_back(
        {{"name", c.Name()},
         {"strategy", c.strategy},
         {"compressor", c.compressor},
         {"hosts", c.options.hosts},
         {"anchor_length", c.options.anchor_length},
         {"passing_length", c.options.passing_length},
         {"row_cost", c.options.row_cost_pairs},
         {"insert", c.query_insert_position},
         {"query", c.embedded_query},
         {"document", Text(0, c.document_length)},
         {"hidden", dump.Add(result.document.values.data(),
                             {rows, static_cast<int64_t>(result.document.values.size()) / rows})}});
  }
  dump.Finish(manifest);
}

}  // namespace
}  // namespace apb::context_parallel

int main(int argc, char** argv) {
  if (argc != 2) {
    std::cerr << "usage: prefill_dump DIR\n";
    return 2;
  }
  apb::context_parallel::DumpAll(argv[1]);
  return 0;
}
