// Goal: turns of a conversation that find the KV of earlier turns are answered as from scratch;
// after approximate prefills, alike on every group. Method: conversations in random order on a
// group of ranks (executor_group.h), with and without room for all of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "tests/engine/comm/mpi_main.h"
#include "tests/engine/context_parallel/tiny_engine.h"
#include "tests/engine/executor/executor_group.h"

namespace apb::executor {
namespace {

using context_parallel::Text;
using schedule::Request;
using schedule::SequenceId;

struct Turn {
  std::vector<int32_t> prompt, answer;
  int64_t known = 0;   // tokens of the conversation before this turn
  int64_t cached = 0;  // tokens of the prompt whose KV was found
  bool is_long = false;
};

// Runs conversations whose turns come in random order, up to three at a time.
std::vector<std::vector<Turn>> Converse(Group& group, bool exact, uint32_t seed) {
  constexpr int kConversations = 8, kTurns = 5;
  std::mt19937 rng(seed);
  std::vector<int> order;
  for (int c = 0; c < kConversations; ++c) order.insert(order.end(), kTurns, c);
  std::shuffle(order.begin(), order.end(), rng);
  std::vector<std::vector<Turn>> all(kConversations);
  std::vector<std::vector<int32_t>> history(kConversations);
  std::map<int, uint64_t> open;  // conversation -> request
  uint64_t next = 1;
  const auto finish = [&] {
    group.Run();
    for (const auto& [c, id] : open) {
      Turn& turn = all[c].back();
      turn.answer = group.tokens.at(SequenceId{id});
      turn.cached = group.ends.at(SequenceId{id}).cached_tokens;
      history[c] = turn.prompt;
      history[c].insert(history[c].end(), turn.answer.begin(), turn.answer.end());
    }
    open.clear();
  };
  for (const int c : order) {
    if (open.contains(c) || open.size() == 3) finish();
    Turn& turn = all[c].emplace_back();
    turn.known = static_cast<int64_t>(history[c].size());
    turn.prompt = history[c].empty() ? Text(1000 * c, 1000 * c + 70 + 9 * c) : history[c];
    const int64_t query = 3 + static_cast<int64_t>(rng() % 7), at = 500 * next;
    // About every second turn brings a document, of any length.
    const int64_t document = turn.known > 0 && rng() % 2 == 0 ? 24 + rng() % 60 : 0;
    turn.is_long = document > 0;
    const std::vector<int32_t> more = Text(at + 100, at + 100 + document),
                               question = Text(at, at + query);
    turn.prompt.insert(turn.prompt.end(), more.begin(), more.end());
    turn.prompt.insert(turn.prompt.end(), question.begin(), question.end());
    Request request = MakeRequest(next, static_cast<int64_t>(turn.prompt.size()) - query, query, 4);
    request.spec.tokens = turn.prompt;
    request.spec.embedded_query = question;
    constexpr const char* kExact[] = {"full", "ring_kv", "ring_q", "token_ring", "auto"};
    request.spec.strategy = exact ? kExact[c % 5] : "apb";
    request.exact = exact;
    request.spec.strategy_options.compressor = exact ? "" : "query_aware";
    request.spec.strategy_options.hosts = exact ? 0 : kHosts;
    open[c] = next++;
    group.Submit(std::move(request));
  }
  finish();
  return all;
}

TEST(StepExecutor, FollowUpTurnsAreLikeFromScratch) {
  struct Case {
    int64_t blocks;  // enough for all conversations, or so few that prefixes are evicted
    bool device;
  };
  std::set<std::string> prefix_strategies;
  for (const auto& [blocks, device] : {Case{2000, false}, Case{150, false}, Case{2000, true}}) {
    RunGroup(blocks,
             [&, blocks = blocks](Group& group) {
               const auto turns = Converse(group, /*exact=*/true, 3);
               int64_t found = 0, found_long = 0;
               for (const auto& conversation : turns) {
                 for (const Turn& turn : conversation) {
                   found += turn.cached > 0;
                   found_long += turn.cached > 0 && turn.is_long;
                   if (blocks == 2000 && turn.known > 0) {
                     EXPECT_GE(turn.cached, turn.known - 1);
                   }
                   // The same prompt alone, on one rank, with nothing cached.
                   const comm::Mesh alone = OneRank();
                   Group single(alone, 500);
                   Request request =
                       MakeRequest(3, static_cast<int64_t>(turn.prompt.size()) - 1, 1, 4);
                   request.spec.tokens = turn.prompt;
                   single.Submit(std::move(request));
                   single.RunUntilIdle();
                   EXPECT_EQ(turn.answer, single.tokens.at(SequenceId{3}));
                 }
               }
               EXPECT_GT(found, found_long);
               EXPECT_GT(found_long, 2);
               if (blocks == 2000) {
                 EXPECT_GT(group.most_together, 1u);
               }
               prefix_strategies.merge(group.prefix_strategies);
               group.RunUntilIdle();
             },
             /*prefix_cache=*/true, {.device = device});
  }
  if (comm::TestRuntime().rank() != 0) return;
  EXPECT_EQ(prefix_strategies, comm::TestRuntime().size() == 1
                                   ? std::set<std::string>{"full"}
                                   : std::set<std::string>({"ring_kv", "ring_q", "token_ring"}));
}

TEST(StepExecutor, FollowUpTurnsAfterApbDoNotDependOnRanks) {
  RunGroup(
      2000,
      [&](Group& group) {
        const comm::Mesh alone = OneRank();
        Group single(alone, 2000, /*prefix_cache=*/true);
        const auto turns = Converse(group, /*exact=*/false, 4),
                   wanted = Converse(single, /*exact=*/false, 4);
        for (size_t c = 0; c < turns.size(); ++c) {
          for (size_t t = 0; t < turns[c].size(); ++t)
            EXPECT_EQ(turns[c][t].answer, wanted[c][t].answer) << c << " " << t;
          EXPECT_GT(turns[c].back().cached, 64);
        }
        group.RunUntilIdle();
      },
      /*prefix_cache=*/true);
}

}  // namespace
}  // namespace apb::executor
