// Limits: the read loops read every byte, whatever the size and the number of streams.
#include "../../csrc/isa.h"
#include "testing.h"

namespace testing {

void test_limits() {
  for (const Isa& isa : compiled_isas()) {
    if (!isa.supported()) continue;
    for (const int streams : {1, 4})
      for (const int64_t ahead : {0, 64})
        for (const int64_t size : {0, 1, 63, 512, 1100, 2049}) {
          std::vector<uint8_t> memory(static_cast<size_t>(size) + 1);
          for (uint8_t& byte : memory) byte = static_cast<uint8_t>(rng()());
          uint8_t* from = memory.data() + 1;
          const uint64_t whole = isa.limits.read(from, size, ahead, streams);
          bool all = true;
          for (int64_t at = 0; at < size; ++at) {
            from[at] ^= 1;
            all = all && isa.limits.read(from, size, ahead, streams) != whole;
            from[at] ^= 1;
          }
          check(all, std::string(isa.name) + ": a read loop reads all of " + std::to_string(size) + " bytes");
        }
    for (const auto& loop : {isa.limits.multiply_add, isa.limits.multiply_add_bf16}) {
      const bool paired = loop == isa.limits.multiply_add_bf16;
      if (loop == nullptr || (paired && !has_bf16_products())) continue;
      float once = 0, twice = 0;
      const int64_t flops = loop(1, &once);
      check(flops > 0 && loop(2, &twice) == 2 * flops && once != twice && std::isfinite(twice),
            std::string(isa.name) + ": multiply-adds are done and counted" + (paired ? ", of bfloat16" : ""));
    }
  }
}

}  // namespace testing
