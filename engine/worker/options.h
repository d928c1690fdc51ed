// Command line of apb-worker.
#pragma once

#include <cstdint>
#include <string>

namespace apb::worker {

struct WorkerOptions {
  std::string model;   // checkpoint directory
  std::string server;  // host:port of apb-server's cluster port
  std::string group_id = "group-0";
  std::string token;                    // shared secret of this start; APB_GROUP_TOKEN
  std::string device = "auto";          // cuda, cpu, or auto: GPUs where every rank has one
  std::string cpu_isa = "auto";         // code path of the CPU backend; auto: the best of the CPU
  std::string dtype = "auto";           // of weights and activations; auto: the checkpoint's
  std::string quantize = "none";        // weights of products: int8 or int4, on the CPU
  double gpu_memory_utilization = 0.8;  // share of a GPU's free memory that the KV cache takes
  bool cuda_graphs = true;              // on GPUs: decode steps as recorded graphs
  int threads = 0;                      // per rank; 0 = cores / ranks of this machine
  int tensor_parallel = 1;              // ranks that share the heads of a layer
  std::string decode = "auto";  // query and decode rows: replicated, sliced, or what is faster
  int virtual_hosts = 4;        // hosts that a rank plays
  int64_t kv_cache_tokens = 0;  // of the whole group; 0 = from free memory
  int64_t kv_block_size = 32;
  int64_t max_model_len = 0;  // 0 = the model's, as far as the KV cache goes
  int64_t max_batch_tokens = 512;
  int64_t max_queued_requests = 256;
  int64_t max_queued_tokens = 4 << 20;
  int64_t full_below = 8192;  // `auto` computes shorter documents exactly
  bool prefix_cache = true;   // KV of ended requests serves prompts that begin like them
  int64_t ring_from = -1;     // where it is exact, longer ones on all ranks; -1: by the cost model
  bool calibrate = true;      // measure speeds at start-up, else take those of MachineSpeed
  bool balanced = true;       // APB blocks that take equally long, for requests that do not say
  bool overlap = false;       // attend while passing blocks travel
  int collective_timeout_seconds = 300;
  std::string log_level = "info";
  bool log_json = false;
};

// False when the program should exit with `exit_code` (help, or a wrong option; the message has
// been printed).
bool ParseOptions(int argc, char** argv, WorkerOptions* options, int* exit_code);

}  // namespace apb::worker
