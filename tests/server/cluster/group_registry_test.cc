// Goal: what the server says of strategies is what its ready groups say. Method: groups that connect,
// leave and are lost, behind a connection that goes nowhere.
#include "server/cluster/group_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

namespace apb::cluster {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class NoConnection : public GroupConnection {
 public:
  void Send(cluster::v1::ToWorker) override {}
  void Close(const absl::Status&) override {}
};

cluster::v1::Hello Hello(const std::string& id, const std::vector<std::string>& strategies) {
  cluster::v1::Hello hello;
  hello.set_group_id(id);
  hello.set_ranks(1);
  hello.set_max_model_len(100);
  for (const std::string& name : strategies) hello.add_strategies()->set_name(name);
  return hello;
}

TEST(GroupRegistry, StrategiesAreThoseOfReadyGroups) {
  observability::Metrics metrics("demo", "1");
  GroupRegistry registry({}, metrics);
  EXPECT_THAT(registry.Strategies(), IsEmpty());
  const auto connection = std::make_shared<NoConnection>();
  const auto old_group = registry.Connect(Hello("a", {"full", "apb"}), connection);
  const auto new_group = registry.Connect(Hello("b", {"full", "gather_kv"}), connection);
  ASSERT_TRUE(old_group.ok() && new_group.ok());
  EXPECT_THAT(registry.Strategies(), ElementsAre("auto", "full", "apb", "gather_kv"));
  registry.Disconnect(*old_group, "gone");
  EXPECT_THAT(registry.Strategies(), ElementsAre("auto", "full", "gather_kv"));
  cluster::v1::FromWorker leaving;
  leaving.mutable_leaving();
  registry.OnMessage(**new_group, leaving);
  EXPECT_THAT(registry.Strategies(), IsEmpty());
}

}  // namespace
}  // namespace apb::cluster
