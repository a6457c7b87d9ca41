// The records of tokens (integer_record.h), or the packed rows that they are multiplied by, in memory.
// Knows nothing about their contents.
#pragma once

#include "packed.h"

namespace coterie::COTERIE_ISA {

// The address of the first, and the bytes from one to the next.
struct Records {
  bytes* at;
  int64_t apart;
  bytes* of(int64_t m) const { return at + m * apart; }
};

}  // namespace coterie::COTERIE_ISA
