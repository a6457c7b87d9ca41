// Tests of kernels and teams without Python, also for sanitizers:
// every opcode on odd shapes, every instruction set, 1 to 64 threads.
#include "testing.h"

int main() {
  testing::test_ops();
  testing::test_fused();
  testing::test_branches();
  testing::test_gated_delta();
  testing::test_division();
  testing::test_bf16_products();
  testing::test_latent();
  testing::test_parts();
  testing::test_scan();
  testing::test_packed();
  testing::test_reads();
  testing::test_limits();
  testing::test_teams();
  testing::crews().clear();
  for (size_t opcode = 0; opcode < testing::seen.size(); ++opcode)
    testing::check(testing::seen[opcode], "opcode " + std::to_string(opcode) + " has a test here");
  std::printf("%d checks, %d failures\n", testing::checks, testing::failures);
  return testing::failures == 0 ? 0 : 1;
}
