// Runs a program on a code path of the CPU backend, for CTest:
// `on_cpu_path ISA [NAME=VALUE ...] PROGRAM ARGUMENT ...`. Exits with 77, which CTest reports as
// skipped, if the CPU lacks the path, or if the path is the best one and no variable is set: then
// the test runs there without this program, too.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "kernels/backend.h"

namespace {

int Skip(const char* isa, const std::string& why) {
  std::printf("skipped: code path %s: %s\n", isa, why.c_str());
  return 77;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: on_cpu_path ISA [NAME=VALUE ...] PROGRAM ARGUMENT ...\n");
    return 2;
  }
  const char* isa = argv[1];
  unsetenv("APB_CPU_ISA");
  const auto wanted = apb::kernels::CreateCpuBackend({.threads = 1, .force_isa = isa});
  if (!wanted.ok()) return Skip(isa, std::string(wanted.status().message()));
  const auto best = apb::kernels::CreateCpuBackend({.threads = 1, .force_isa = ""});
  int program = 2;
  for (; program < argc && std::strchr(argv[program], '=') != nullptr; ++program) {
    putenv(argv[program]);
  }
  if (program == 2 && best.ok() && (*best)->name() == (*wanted)->name()) {
    return Skip(isa, "the best of this CPU");
  }
  setenv("APB_CPU_ISA", isa, 1);
  execvp(argv[program], argv + program);
  std::perror(argv[program]);
  return 2;
}
