#include "team.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <system_error>

namespace coterie {

namespace {

constexpr uint32_t kPending = 0, kFailed = 2;

constexpr uint32_t number_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }
constexpr int64_t left_of(uint64_t ticket) { return static_cast<int64_t>(ticket & UINT32_MAX); }

// Waits for a row's gate; false if it failed. Waiters sleep on the gate's own word,
// which costs the signaller a system call: gates are rare.
bool passes(const Row& row) {
  if (row.gate == nullptr) return true;
  auto& word = *reinterpret_cast<uint32_t*>(const_cast<int32_t*>(row.gate));
  const std::atomic_ref gate(word);
  for (int i = 0; i < kSpins && gate.load(std::memory_order_acquire) == kPending; ++i) relax();
  while (gate.load(std::memory_order_acquire) == kPending) sleep_on(word, kPending);
  return gate.load(std::memory_order_acquire) != kFailed;
}

}  // namespace

void signal_gate(int32_t* gate, int32_t value) {
  auto& word = *reinterpret_cast<uint32_t*>(gate);
  std::atomic_ref(word).store(static_cast<uint32_t>(value), std::memory_order_release);
  wake_all(word);
}

Team::Team(int threads, const Isa& isa, int64_t alone_flops)
    : isa_(isa), alone_flops_(alone_flops), shares_(std::make_unique<Share[]>(static_cast<size_t>(threads))) {
  for (int i = 0; i < threads; ++i) scratch_.push_back(std::make_unique<Scratch>());
  workers_.reserve(static_cast<size_t>(threads));
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { work(i); });
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
  bell_.ring();
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
    scratch->share(shared_.base(), threads());
  }
}

Walked Team::run(const Row* rows, int64_t count, const Feed* feed) {
  if (inside_.exchange(true)) throw std::logic_error("a team runs one list at a time");
  try {
    prepare(rows, count);
  } catch (...) {
    inside_.store(false);
    throw;
  }
  job_ = Job{.rows = rows, .count = count, .feed = feed};
  Scratch& scratch = *scratch_[0];
  over_.store(false, std::memory_order_relaxed);
  open_next(scratch);
  for (uint64_t ticket = ticket_.load(std::memory_order_acquire); !over_.load(std::memory_order_acquire); ticket = wait_past(ticket, over_))
    help(ticket, 0);
  calls_ += 1;
  instructions_ += job_.instructions;
  const Walked walked{job_.step, job_.next};
  inside_.store(false);
  return walked;
}

// Called by one thread at a time: first the caller of run(), then the thread
// that finished the open instruction's last unit.
void Team::open_next(Scratch& scratch) {
  while (job_.next < job_.count || open_step()) {
    if (job_.next == job_.count) continue;  // an empty list
    const Row& row = job_.rows[job_.next];
    if (!passes(row)) break;
    const Kernel& kernel = isa_.kernel(row.opcode);
    const int64_t units = kernel.units(row);
    job_.next += 1;
    job_.instructions += 1;
    if (units <= 1 || workers_.empty() || kernel.flops(row) < alone_flops_) {
      run_alone(row, kernel, units, scratch);
      continue;
    }
    job_.row = &row, job_.kernel = &kernel, job_.units = units;
    done_.store(0, std::memory_order_relaxed);
    publish(units);
    return;
  }
  over_.store(true);
  if (&scratch != scratch_[0].get()) bell_.ring();  // nothing else may be touched: the caller may have begun another run
}

// A step is over: begins the next one, or returns false if the run is over.
bool Team::open_step() {
  job_.step += 1;
  if (job_.feed == nullptr) return false;
  const bool ended = keep(*job_.feed, job_.step - 1);
  if (ended || job_.step >= job_.feed->steps || interrupted_.load(std::memory_order_relaxed)) {
    interrupted_.store(false, std::memory_order_relaxed);
    return false;
  }
  feed_back(*job_.feed);
  job_.next = 0;
  return true;
}

void Team::run_alone(const Row& row, const Kernel& kernel, int64_t units, Scratch& scratch) {
  scratch.forget();
  for (int64_t unit = 0; unit < units; ++unit) {
    scratch.rewind();
    kernel.run(row, unit, scratch);
  }
}

// Works on the instruction of `ticket` until no unit is left to claim. job_ may be read only while holding a claimed
// unit: no other instruction is opened before that unit is counted as done.
void Team::help(uint64_t ticket, int me) {
  const uint32_t number = number_of(ticket);
  Scratch& scratch = *scratch_[me];
  bool begun = false;
  for (int i = 0; i < threads(); ++i) {  // its own share, then those of others
    const int of = (me + i) % threads();
    int64_t mine = 0, units = 0;
    std::atomic<uint64_t>& share = shares_[of].left;
    uint64_t seen = share.load(std::memory_order_acquire);
    while (number_of(seen) == number && left_of(seen) > 0) {
      if (!share.compare_exchange_weak(seen, seen - 1, std::memory_order_acq_rel, std::memory_order_acquire)) continue;
      if (!begun) scratch.forget();
      begun = true;
      if (mine++ == 0) units = job_.units;
      scratch.rewind();
      job_.kernel->run(*job_.row, share_begin(units, of + 1) - left_of(seen), scratch);
      seen = share.load(std::memory_order_acquire);
    }
    // Counted before looking at other shares, so that the last thread to finish does not search them all first.
    if (mine > 0 && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == units) return open_next(scratch);
  }
}

// Returns the first ticket seen with another number, or any ticket once `over` is set.
uint64_t Team::wait_past(uint64_t ticket, const std::atomic<bool>& over) {
  uint64_t now;
  const auto changed = [&] { return number_of(now = ticket_.load()) != number_of(ticket) || over.load(); };
  for (int i = 0; i < kSpins; ++i) {
    if (changed()) return now;
    relax();
  }
  bell_.sleep_until(changed);
  return now;
}

void Team::publish(int64_t units) {
  const uint64_t number = number_of(ticket_.load(std::memory_order_relaxed)) + 1;
  for (int i = 0; i < threads(); ++i) {
    const auto left = static_cast<uint64_t>(share_begin(units, i + 1) - share_begin(units, i));
    shares_[i].left.store(number << 32 | left, std::memory_order_release);
  }
  ticket_.store(number << 32 | static_cast<uint64_t>(units));
  bell_.ring();
}

void Team::work(int me) {
  for (uint64_t ticket = 0; !stop_.load(std::memory_order_relaxed); ticket = wait_past(ticket, stop_)) help(ticket, me);
}

int64_t Team::memory_bytes() const {
  int64_t sum = static_cast<int64_t>(shared_.size_bytes());
  for (const auto& scratch : scratch_) sum += static_cast<int64_t>(scratch->size_bytes());
  return sum;
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
