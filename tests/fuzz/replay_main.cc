// Goal: no bytes from outside crash a parser, and accepted inputs have the target's properties;
// runs everywhere, without a fuzzer. Method: runs the target's seeds, which must be accepted, then
// N mutations of them from a fixed random seed, then the named files.
//
//   x_fuzz_replay [--mutations N] [FILE ...]   FILE: for example an input that libFuzzer has found
//   x_fuzz_replay --write FOLDER               writes the seeds as files, for a libFuzzer corpus
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/fuzz_target.h"

namespace {

// Mutates an input up to four times: changes a byte or a bit, cuts or doubles a piece, or inserts a
// piece of another seed.
std::string Mutated(std::mt19937& rng, std::string input, const std::string& other) {
  for (unsigned i = 0; i < 1 + rng() % 4 && !input.empty(); ++i) {
    const size_t at = rng() % input.size();
    const size_t size = std::min<size_t>(1 + rng() % 16, input.size() - at);
    switch (rng() % 5) {
      case 0:
        input[at] = static_cast<char>(rng());
        break;
      case 1:
        input[at] = static_cast<char>(input[at] ^ (1 << rng() % 8));
        break;
      case 2:
        input.erase(at, size);
        break;
      case 3:
        input.insert(at, input.substr(at, size));
        break;
      default:
        if (!other.empty()) input.insert(at, other.substr(rng() % other.size(), size));
    }
  }
  return input;
}

int Replay(int mutations, const std::vector<std::string>& files) {
  const std::vector<std::string> seeds = apb::fuzz::Seeds();
  for (size_t i = 0; i < seeds.size(); ++i) {
    if (apb::fuzz::Accepts(seeds[i])) continue;
    std::fprintf(stderr, "seed %zu is refused: Seeds() and the format have grown apart\n", i);
    return 1;
  }
  std::mt19937 rng(1);
  int accepted = 0;
  for (int i = 0; i < mutations; ++i) {
    const std::string& seed = seeds[rng() % seeds.size()];
    accepted += apb::fuzz::Accepts(Mutated(rng, seed, seeds[rng() % seeds.size()]));
  }
  for (const std::string& path : files) {
    std::ifstream file(path, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot read %s\n", path.c_str());
      return 1;
    }
    accepted += apb::fuzz::Accepts(std::string(std::istreambuf_iterator<char>(file), {}));
  }
  std::printf("%zu seeds, %d mutations, %zu files: %d of the latter two accepted\n", seeds.size(),
              mutations, files.size(), accepted);
  return 0;
}

int Write(const std::string& folder) {
  const std::vector<std::string> seeds = apb::fuzz::Seeds();
  for (size_t i = 0; i < seeds.size(); ++i) {
    std::ofstream file(folder + "/seed" + std::to_string(i), std::ios::binary);
    file << seeds[i];
    if (!file.flush()) {
      std::fprintf(stderr, "cannot write into %s\n", folder.c_str());
      return 1;
    }
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.size() == 2 && arguments[0] == "--write") return Write(arguments[1]);
  int mutations = 0;
  if (arguments.size() >= 2 && arguments[0] == "--mutations") {
    mutations = std::atoi(arguments[1].c_str());
    arguments.erase(arguments.begin(), arguments.begin() + 2);
  }
  return Replay(mutations, arguments);
}
