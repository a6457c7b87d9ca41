// Runs the loops of Limits on several threads and times them.
#include "limits.h"

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace coterie {

namespace {

constexpr int64_t kBlockBytes = 1 << 18;  // the others wait for a slow thread by at most one block

// Seconds from when all threads are ready until the last one is done; starting them is not counted.
template <class Body>
double timed(int threads, Body body) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int> ready{0};
  std::atomic<bool> go{false};
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) {
    others.emplace_back([&, i] {
      ready.fetch_add(1);
      while (!go.load()) std::this_thread::yield();
      body(i);
    });
  }
  while (ready.load() < threads - 1) std::this_thread::yield();
  const auto start = Clock::now();
  go.store(true);
  body(0);
  for (auto& other : others) other.join();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

double read_seconds(const Limits& limits, const uint8_t* from, int64_t size, int threads, int64_t ahead, int streams,
                    uint64_t* sink) {
  std::atomic<int64_t> next{0};
  std::vector<uint64_t> totals(static_cast<size_t>(threads));
  const double seconds = timed(threads, [&](int i) {
    for (int64_t at; (at = next.fetch_add(kBlockBytes)) < size;)
      totals[static_cast<size_t>(i)] ^= limits.read(from + at, at + kBlockBytes < size ? kBlockBytes : size - at, ahead, streams);
  });
  for (const uint64_t total : totals) *sink ^= total;
  return seconds;
}

double multiply_add_rate(int64_t (*multiply_add)(int64_t, float*), int64_t rounds, int threads, float* sink) {
  std::vector<float> sinks(static_cast<size_t>(threads));
  std::vector<int64_t> flops(static_cast<size_t>(threads));
  const double seconds = timed(threads, [&](int i) {
    const auto at = static_cast<size_t>(i);
    flops[at] = multiply_add(rounds, &sinks[at]);
  });
  int64_t total = 0;
  for (const int64_t count : flops) total += count;
  for (const float value : sinks) *sink += value;
  return static_cast<double>(total) / seconds;
}

}  // namespace coterie
