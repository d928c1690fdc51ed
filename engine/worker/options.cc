#include "engine/worker/options.h"

#include <CLI/CLI.hpp>
#include <limits>
#include <map>

#include "engine/base/shared_flags.h"

namespace apb::worker {

bool ParseOptions(int argc, char** argv, WorkerOptions* o, int* exit_code) {
  CLI::App app(
      "apb-worker: one rank of a worker group. Start with mpirun; rank 0 connects to apb-server.");
  app.add_option("--model", o->model, "Directory of the checkpoint (config.json, *.safetensors)")
      ->required();
  app.add_option("--server", o->server, "Address of apb-server's cluster port, as host:port")
      ->required();
  app.add_option(
      "--group-id", o->group_id,
      "Name of this group in logs and metrics (default group-0); a second group of the same name "
      "replaces the first");
  app.add_option("--token", o->token, "Secret that apb-server expects from its groups")
      ->envname("APB_GROUP_TOKEN");
  app.add_option("--device", o->device, base::kDeviceHelp)
      ->check(CLI::IsMember({"auto", "cuda", "cpu"}));
  app.add_option("--cpu-isa", o->cpu_isa,
                 "Instruction set of ranks on CPUs: portable, avx2, avx512, avx512vnni, "
                 "avx512bf16, amxbf16, "
                 "or auto (default): the one that APB_CPU_ISA names, else the best that the CPU "
                 "has; naming "
                 "one that the CPU lacks is an error")
      ->check(CLI::IsMember(
          {"auto", "portable", "avx2", "avx512", "avx512vnni", "avx512bf16", "amxbf16"}));
  app.add_option(
         "--dtype", o->dtype,
         "Type of weights and activations, to which the checkpoint's weights are converted: "
         "bfloat16, float16 (GPUs only), float32, or auto (default): the type in "
         "config.json, but bfloat16 for float16 on CPUs")
      ->check(CLI::IsMember({"auto", "bfloat16", "float16", "float32"}));
  app.add_option("--quantize", o->quantize,
                 "Quantize the weights of matrix products while loading them, on CPUs only: int8, "
                 "int4 (the output projection still becomes int8), or none (default)")
      ->check(CLI::IsMember({"none", "int8", "int4"}));
  app.add_option("--gpu-memory-utilization", o->gpu_memory_utilization,
                 "Fraction of the GPU memory left after loading the weights that the KV cache "
                 "takes (default 0.8)")
      ->check(CLI::Range(0.05, 0.95));
  app.add_option(
         "--cuda-graphs", o->cuda_graphs,
         "Whether GPUs record decode steps and launch each as one graph: auto (default: they do) "
         "or off")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, bool>{{"auto", true}, {"off", false}}));
  app.add_option("--threads", o->threads,
                 "Threads of each rank; 0 (default): cores of this machine / its ranks")
      ->check(CLI::Range(0, 1024));
  app.add_option(
         "--tensor-parallel", o->tensor_parallel,
         "Number of ranks that divide the heads and the MLP of every layer (default 1); a document "
         "is divided among the groups of so many ranks")
      ->check(CLI::Range(1, 1024));
  app.add_option("--decode", o->decode,
                 "How ranks compute query and decode tokens: replicated (each rank multiplies with "
                 "all weights), sliced (each with a slice of them), or auto (default): the way "
                 "that is faster in a measured step")
      ->check(CLI::IsMember({"auto", "replicated", "sliced"}));
  app.add_option(
         "--virtual-hosts", o->virtual_hosts,
         "Number of APB hosts that each rank plays, for requests that do not say (default 4)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--kv-cache-tokens", o->kv_cache_tokens, base::kKvCacheTokensHelp)
      ->check(CLI::NonNegativeNumber);
  app.add_option("--kv-block-size", o->kv_block_size, "Size of a KV block in tokens (default 32)")
      ->check(CLI::Range(1, 1024));
  app.add_option("--max-model-len", o->max_model_len,
                 "Limit of prompt + completion in tokens; 0 (default): the model's limit")
      ->check(CLI::NonNegativeNumber);
  app.add_option(
         "--max-batch-tokens,--max-batch-rows", o->max_batch_tokens,
         "Most query and decode tokens of one step (default 512); --max-batch-rows is the older "
         "name")
      ->check(CLI::Range(1, 65536));
  app.add_option("--max-queued-requests", o->max_queued_requests,
                 "Most waiting requests; further ones are refused (default 256)")
      ->check(CLI::PositiveNumber);
  app.add_option(
         "--max-queued-tokens", o->max_queued_tokens,
         "Most prompt tokens of waiting requests; further requests are refused (default 4194304)")
      ->check(CLI::PositiveNumber);
  app.add_option(
         "--full-below", o->full_below,
         "Strategy auto computes documents of fewer tokens than this exactly (default 8192)")
      ->check(CLI::NonNegativeNumber);
  app.add_option(
         "--ring-from", o->ring_from,
         "If strategy auto is exact, all ranks compute documents of at least this many tokens, and "
         "one rank computes shorter ones; -1 (default): the calibrated cost model decides. All "
         "ranks also share the prefill of as many tokens behind a cached prefix (-1: 512)")
      ->check(CLI::Range(int64_t{-1}, std::numeric_limits<int64_t>::max()));
  app.add_option(
         "--calibration", o->calibrate,
         "Whether the group measures its speed at start-up: on (default; under 0.5 s) or off: it "
         "assumes fixed numbers")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, bool>{{"on", true}, {"off", false}}));
  app.add_flag(
      "--balanced,!--no-balanced", o->balanced,
      "Give APB hosts shards that take equally long instead of shards of equal length, for "
      "requests that do not say (default on)");
  app.add_flag("--overlap,!--no-overlap", o->overlap,
               "Let APB hosts attend to their own shard while passing blocks travel (default off)");
  app.add_flag("--prefix-caching,!--no-prefix-caching", o->prefix_cache,
               "Keep the KV of ended requests for later prompts that begin like them (default on)");
  app.add_option("--collective-timeout", o->collective_timeout_seconds,
                 "Time in seconds after which a silent rank ends the group (default 300)")
      ->check(CLI::PositiveNumber);
  app.add_option("--log-level", o->log_level,
                 "Lowest level of log lines: debug, info (default), warning or error");
  app.add_flag("--log-json", o->log_json, "Write log lines as JSON objects");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    *exit_code = app.exit(e) == 0 ? 0 : 2;
    return false;
  }
  return true;
}

}  // namespace apb::worker
