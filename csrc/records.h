// Where records of tokens (whole_record.h), or rows of packed weights that meet them, lie. Knows nothing about what is in them.
#pragma once

#include "packed.h"

namespace coterie::COTERIE_ISA {

// Where the first lies, and how far it is from one to the next.
struct Records {
  bytes* at;
  int64_t apart;
  bytes* of(int64_t m) const { return at + m * apart; }
};

}  // namespace coterie::COTERIE_ISA
