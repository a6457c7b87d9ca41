// A machine's limits: loops that do nothing but read memory, and loops that do nothing but multiply and add.
// Knows nothing about kernels, weights or teams.
#pragma once

#include <cstdint>

namespace coterie {

struct Limits {
  // Reads every byte of [from, from + size) and returns a value that depends on each;
  // prefetches `ahead` bytes ahead, 0 for none.
  // `streams`: 1, sequential; or 4, a quarter each, concurrently, as decode reads weights.
  uint64_t (*read)(const uint8_t* from, int64_t size, int64_t ahead, int streams);
  // Runs `rounds` rounds of independent multiply-adds and returns how many flops those were; `sink` takes the result.
  int64_t (*multiply_add)(int64_t rounds, float* sink);
  // The same with pairs of bfloat16 (VDPBF16PS); null where the instruction set has none.
  int64_t (*multiply_add_bf16)(int64_t rounds, float* sink);
};

// Seconds that `threads` threads take to read it all, in blocks handed out by a shared counter.
// `sink` receives a value that depends on it.
double read_seconds(const Limits& limits, const uint8_t* from, int64_t size, int threads, int64_t ahead, int streams,
                    uint64_t* sink);

// Flops per second of `threads` threads that each run `rounds` rounds; `multiply_add`: one of Limits.
double multiply_add_rate(int64_t (*multiply_add)(int64_t, float*), int64_t rounds, int threads, float* sink);

}  // namespace coterie
