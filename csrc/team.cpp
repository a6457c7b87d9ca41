#include "team.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace coterie {

namespace {

constexpr int kSpins = 2000;               // some tens of microseconds; longer waits sleep, so that a busy neighbour may run
constexpr int64_t kWakeFlops = 400'000;    // below this, one thread is done before another would be awake
constexpr int32_t kPending = 0, kFailed = 2;

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Returns when `value` is no longer `old`.
template <class Atomic, class T>
void wait_while(Atomic& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

// Call after the store. The fence keeps the store ahead of notify_all's look at the number of sleepers; without it, that look may
// come first and miss a thread that still saw the old value and falls asleep: nobody would wake it again.
template <class Atomic>
void wake(Atomic& value) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  value.notify_all();
}

bool passes(const Row& row) {
  if (row.gate == nullptr) return true;
  std::atomic_ref<int32_t> gate(*const_cast<int32_t*>(row.gate));
  wait_while(gate, kPending);
  return gate.load(std::memory_order_acquire) != kFailed;
}

}  // namespace

void signal_gate(int32_t* gate, int32_t value) {
  std::atomic_ref<int32_t> flag(*gate);
  flag.store(value, std::memory_order_release);
  wake(flag);
}

Team::Team(int threads, const Isa& isa) : isa_(isa) {
  for (int i = 0; i < threads; ++i) scratch_.push_back(std::make_unique<Scratch>());
  workers_.reserve(static_cast<size_t>(threads));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(*scratch_[i]); });
  } catch (const std::system_error&) {
    const auto started = std::to_string(workers_.size() + 1);
    stop();
    throw std::runtime_error("only " + started + " of " + std::to_string(threads) + " threads could be started");
  } catch (...) {
    stop();
    throw;
  }
}

Team::~Team() { stop(); }

void Team::stop() {
  stop_.store(true);
  state_.fetch_add(2);
  wake(state_);
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

void Team::prepare(const Row* rows, int64_t count) {
  int64_t scratch_bytes = 0, shared_bytes = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Kernel& kernel = isa_.kernel(rows[i].opcode);
    scratch_bytes = std::max(scratch_bytes, kernel.scratch_bytes(rows[i]));
    shared_bytes = std::max(shared_bytes, kernel.shared_bytes(rows[i]));
  }
  shared_.grow(static_cast<size_t>(shared_bytes));
  for (auto& scratch : scratch_) {
    scratch->grow(static_cast<size_t>(scratch_bytes));
    scratch->share(shared_.base());
  }
  if (count > capacity_) {
    progress_ = std::make_unique<Progress[]>(static_cast<size_t>(count));
    capacity_ = count;
  }
  for (int64_t i = 0; i < count; ++i) {
    progress_[i].next.store(0, std::memory_order_relaxed);
    progress_[i].done.store(0, std::memory_order_relaxed);
    progress_[i].finished.store(0, std::memory_order_relaxed);
  }
  rows_ = rows;
  count_ = count;
}

bool Team::worth_waking(const Row* rows, int64_t count) const {
  int64_t flops = 0;
  for (int64_t i = 0; i < count; ++i) flops += isa_.kernel(rows[i].opcode).flops(rows[i]);
  return !workers_.empty() && flops >= kWakeFlops;
}

int64_t Team::run(const Row* rows, int64_t count) {
  const std::lock_guard lock(one_caller_);
  prepare(rows, count);
  int64_t executed = 0;
  if (!worth_waking(rows, count)) {
    executed = walk_alone(*scratch_[0]);
  } else {
    state_.fetch_add(1);  // open; sequentially consistent, as is `inside_`: a worker sees the job closed or is seen inside
    wake(state_);
    executed = walk(*scratch_[0]);
    state_.fetch_add(1);  // closed
    for (int32_t n = inside_.load(); n != 0; n = inside_.load()) wait_while(inside_, n);
  }
  calls_ += 1;
  instructions_ += executed;
  return executed;
}

int64_t Team::walk_alone(Scratch& scratch) {
  for (int64_t i = 0; i < count_; ++i) {
    const Row& row = rows_[i];
    if (!passes(row)) return i;
    const Kernel& kernel = isa_.kernel(row.opcode);
    const int64_t units = kernel.units(row);
    scratch.forget();
    for (int64_t unit = 0; unit < units; ++unit) {
      scratch.rewind();
      kernel.run(row, unit, scratch);
    }
  }
  return count_;
}

int64_t Team::walk(Scratch& scratch) {
  for (int64_t i = 0; i < count_; ++i) {
    const Row& row = rows_[i];
    if (!passes(row)) return i;
    const Kernel& kernel = isa_.kernel(row.opcode);
    const int64_t units = kernel.units(row);
    if (units == 0) continue;
    Progress& progress = progress_[i];
    int64_t mine = 0;
    scratch.forget();
    for (int64_t unit; (unit = progress.next.fetch_add(1, std::memory_order_relaxed)) < units; ++mine) {
      scratch.rewind();
      kernel.run(row, unit, scratch);
    }
    if (mine > 0 && progress.done.fetch_add(mine, std::memory_order_acq_rel) + mine == units) {
      progress.finished.store(1, std::memory_order_release);
      wake(progress.finished);
    }
    wait_while(progress.finished, 0);
  }
  return count_;
}

void Team::work(Scratch& scratch) {
  uint32_t last = 0;
  while (true) {
    const uint32_t state = state_.load();
    if (stop_.load()) return;
    if ((state & 1) == 0 || state == last) {
      wait_while(state_, state);
      continue;
    }
    inside_.fetch_add(1);
    if (state_.load() == state) walk(scratch);
    inside_.fetch_sub(1);
    wake(inside_);
    last = state;
  }
}

Counters Team::counters() const {
  Counters sum;
  for (const auto& scratch : scratch_) {
    sum.stored_bytes += scratch->stored_bytes();
    const auto high = static_cast<int64_t>(scratch->high_water_bytes());
    if (high > sum.scratch_bytes) sum.scratch_bytes = high;
  }
  sum.calls = calls_;
  sum.instructions = instructions_;
  return sum;
}

void Team::reset_counters() {
  for (auto& scratch : scratch_) scratch->reset_counters();
  calls_ = instructions_ = 0;
}

}  // namespace coterie
