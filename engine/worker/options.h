// The command line of apb-worker.
#pragma once

#include <cstdint>
#include <string>

namespace apb::worker {

struct WorkerOptions {
  std::string model;   // checkpoint directory
  std::string server;  // host:port of apb-server's cluster port
  std::string group_id = "group-0";
  std::string token;                    // the server's secret of this start (APB_GROUP_TOKEN)
  std::string device = "auto";          // cuda, cpu, or auto: GPUs if every rank has its own
  std::string cpu_isa = "auto";         // instruction set of the CPU backend; auto: the best one
  std::string dtype = "auto";           // of weights and activations; auto: the checkpoint's
  std::string quantize = "none";        // weights of matrix products: int8 or int4, CPUs only
  double gpu_memory_utilization = 0.8;  // fraction of a GPU's free memory for the KV cache
  bool cuda_graphs = true;              // on GPUs: launch decode steps as recorded graphs
  int threads = 0;                      // of each rank; 0: cores / ranks of this machine
  int tensor_parallel = 1;              // ranks that divide the heads of every layer
  std::string decode = "auto";          // query and decode tokens: replicated, sliced, or auto
  int virtual_hosts = 4;                // APB hosts of each rank
  int64_t kv_cache_tokens = 0;          // of the whole group; 0: from free memory
  int64_t kv_block_size = 32;           // tokens
  int64_t max_model_len = 0;            // prompt + completion tokens; 0: the model's limit
  int64_t max_batch_tokens = 512;       // query and decode tokens of a step
  int64_t max_queued_requests = 256;
  int64_t max_queued_tokens = 4 << 20;
  int64_t full_below = 8192;  // `auto` computes documents shorter than this exactly
  bool prefix_cache = true;   // KV of ended requests serves prompts that begin like them
  int64_t ring_from = -1;     // exact `auto`: all ranks from so many tokens on; -1: cost model
  bool calibrate = true;      // measure speeds at start-up; false: the values of MachineSpeed
  bool balanced = true;       // default of requests: shards that take equally long
  bool overlap = false;       // attend to the own shard while passing blocks travel
  int collective_timeout_seconds = 300;
  std::string log_level = "info";
  bool log_json = false;
};

// Parses the command line. False: the program should exit with `exit_code` (after --help, or
// because of a wrong option, whose message has been printed).
bool ParseOptions(int argc, char** argv, WorkerOptions* options, int* exit_code);

}  // namespace apb::worker
