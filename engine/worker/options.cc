#include "engine/worker/options.h"

#include <CLI/CLI.hpp>
#include <limits>
#include <map>

#include "engine/base/shared_flags.h"

namespace apb::worker {

bool ParseOptions(int argc, char** argv, WorkerOptions* o, int* exit_code) {
  CLI::App app(
      "apb-worker: one rank of a worker group. Start with mpirun; rank 0 connects to apb-server.");
  app.add_option("--model", o->model, "Checkpoint directory (config.json, *.safetensors)")
      ->required();
  app.add_option("--server", o->server, "host:port of apb-server's cluster port")->required();
  app.add_option(
      "--group-id", o->group_id,
      "Name of this group, in logs and metrics; a second group of that name replaces the first");
  app.add_option("--token", o->token, "Secret that apb-server expects")->envname("APB_GROUP_TOKEN");
  app.add_option("--device", o->device, base::kDeviceHelp)
      ->check(CLI::IsMember({"auto", "cuda", "cpu"}));
  app.add_option(
         "--cpu-isa", o->cpu_isa,
         "Code path of ranks on CPUs: portable, avx2, avx512, avx512vnni, avx512bf16, amxbf16, or "
         "auto: what APB_CPU_ISA names, else the best that the CPU has. An error where it lacks it")
      ->check(CLI::IsMember(
          {"auto", "portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amxbf16"}));
  app.add_option("--dtype", o->dtype,
                 "Type of weights and activations, to which the checkpoint's are converted: "
                 "bfloat16, float16 (GPUs only), float32, or auto: what config.json says, but "
                 "bfloat16 for float16 on the CPU")
      ->check(CLI::IsMember({"auto", "bfloat16", "float16", "float32"}));
  app.add_option("--quantize", o->quantize,
                 "On the CPU, quantize the weights of matrix products while they are loaded: int8, "
                 "int4 (the output projection is int8 then too), or none: leave them as they are")
      ->check(CLI::IsMember({"none", "int8", "int4"}));
  app.add_option("--gpu-memory-utilization", o->gpu_memory_utilization,
                 "Share of a GPU's memory that is free behind the weights for the KV cache")
      ->check(CLI::Range(0.05, 0.95));
  app.add_option("--cuda-graphs", o->cuda_graphs,
                 "auto: on GPUs, record decode steps and launch them as a whole; off: do not")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, bool>{{"auto", true}, {"off", false}}));
  app.add_option("--threads", o->threads, "Threads of a rank; 0: cores / ranks of this machine")
      ->check(CLI::Range(0, 1024));
  app.add_option(
         "--tensor-parallel", o->tensor_parallel,
         "Ranks that share the heads and the MLP of every layer; the others share the context")
      ->check(CLI::Range(1, 1024));
  app.add_option("--decode", o->decode,
                 "How ranks share the weights for query and decode rows: replicated (each computes "
                 "all), sliced (each a slice), auto (what a measured step says)")
      ->check(CLI::IsMember({"auto", "replicated", "sliced"}));
  app.add_option("--virtual-hosts", o->virtual_hosts, "APB hosts that a rank plays by default")
      ->check(CLI::Range(1, 1024));
  app.add_option("--kv-cache-tokens", o->kv_cache_tokens, base::kKvCacheTokensHelp)
      ->check(CLI::NonNegativeNumber);
  app.add_option("--kv-block-size", o->kv_block_size, "Tokens of a KV block")
      ->check(CLI::Range(1, 1024));
  app.add_option("--max-model-len", o->max_model_len,
                 "Limit of prompt + completion; 0: the model's")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--max-batch-tokens,--max-batch-rows", o->max_batch_tokens,
                 "Query and decode tokens of a step (--max-batch-rows is its older name)")
      ->check(CLI::Range(1, 65536));
  app.add_option("--max-queued-requests", o->max_queued_requests,
                 "Waiting requests before new ones are refused")
      ->check(CLI::PositiveNumber);
  app.add_option("--max-queued-tokens", o->max_queued_tokens,
                 "Waiting prompt tokens before new requests are refused")
      ->check(CLI::PositiveNumber);
  app.add_option("--full-below", o->full_below,
                 "Strategy auto computes documents shorter than this exactly")
      ->check(CLI::NonNegativeNumber);
  app.add_option(
         "--ring-from", o->ring_from,
         "Where auto is exact: documents from this length on are computed by all ranks, shorter "
         "ones by one; -1: what the calibrated cost model takes to be fastest. As many tokens "
         "behind a "
         "cached prefix are a prefill of all ranks too (-1: 512)")
      ->check(CLI::Range(int64_t{-1}, std::numeric_limits<int64_t>::max()));
  app.add_option(
         "--calibration", o->calibrate,
         "on: measure the group's speed at start-up (under 0.5 s); off: assume fixed numbers")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, bool>{{"on", true}, {"off", false}}));
  app.add_flag("--balanced,!--no-balanced", o->balanced,
               "APB blocks that take equally long instead of blocks of equal length, for requests "
               "that do not say (default on)");
  app.add_flag("--overlap,!--no-overlap", o->overlap,
               "APB: attend to the own block while passing blocks travel (default off)");
  app.add_flag("--prefix-caching,!--no-prefix-caching", o->prefix_cache,
               "Keep the KV of ended requests for prompts that begin like them (default on)");
  app.add_option("--collective-timeout", o->collective_timeout_seconds,
                 "Seconds until a silent peer ends the group")
      ->check(CLI::PositiveNumber);
  app.add_option("--log-level", o->log_level, "debug, info, warning or error");
  app.add_flag("--log-json", o->log_json, "Log JSON lines");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    *exit_code = app.exit(e) == 0 ? 0 : 2;
    return false;
  }
  return true;
}

}  // namespace apb::worker
