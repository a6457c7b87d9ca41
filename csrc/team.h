// A persistent team of threads that walks an instruction list together, once or for several steps.
// Knows nothing about what the instructions do, nor about Python.
//
//   ticket | instruction number | units |        one word for the team: a new number tells threads to go on to that instruction
//   share  | instruction number | units left |   one word per thread: decrementing `units left` claims a unit. A thread drains its own
//                                                share first, in order, so that it reads weights as one stream, then steals from others
//   list   i: units 0 1 2 3 4 5                  the thread that finishes an instruction's last unit opens the next one: it runs small
//             A A A B B B                        instructions alone, waits at gates, and after the last row feeds the drawn tokens back
//          i + 1: ...                            and starts over. A thread that wakes late joins the open instruction: nobody waits for
//                                                a thread that holds no unit
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "feed.h"
#include "isa.h"
#include "wait.h"

namespace coterie {

struct Counters {
  int64_t stored_bytes = 0;       // stored outside scratch: outputs and pages
  int64_t scratch_bytes = 0;      // peak of any one thread
  int64_t calls = 0;              // run() calls: launches by the host
  int64_t instructions = 0;       // rows executed
};

// Completed steps, and rows executed in the last step begun: fewer than the list has if a gate failed.
struct Walked {
  int64_t steps, rows;
};

constexpr int64_t kAloneFlops = 40'000;  // a microsecond or two: anything smaller is done before another thread has woken

class Team {
 public:
  // `threads` includes the caller of run().
  // An instruction of fewer than `alone_flops` runs on one thread, which wakes no others.
  // Throws std::runtime_error if the system cannot start that many threads.
  Team(int threads, const Isa& isa, int64_t alone_flops = kAloneFlops);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Executes the rows in order; with a feed repeatedly, one decode step each time, up to feed->steps times, until a
  // sequence ends or interrupt() is called.
  // Throws std::logic_error while another call is in progress.
  Walked run(const Row* rows, int64_t count, const Feed* feed = nullptr);

  // Ends the run in progress after its current step, or else the next run after its first one. Any thread may call it.
  void interrupt() { interrupted_.store(true, std::memory_order_relaxed); }

  int threads() const { return static_cast<int>(scratch_.size()); }
  const char* isa() const { return isa_.name; }
  int64_t memory_bytes() const;  // scratch of all threads, and their shared memory
  Counters counters() const;
  void reset_counters();

 private:
  // The current run. Written only by the thread that opens an instruction, while no unit is left or in progress.
  struct Job {
    const Row* rows = nullptr;
    int64_t count = 0, next = 0, step = 0;
    const Feed* feed = nullptr;
    const Kernel* kernel = nullptr;
    const Row* row = nullptr;
    int64_t units = 0;
    int64_t instructions = 0;
  };

  struct alignas(kLine) Share {
    std::atomic<uint64_t> left{0};
  };

  void prepare(const Row* rows, int64_t count);
  void open_next(Scratch& scratch);
  bool open_step();
  void run_alone(const Row& row, const Kernel& kernel, int64_t units, Scratch& scratch);
  int64_t share_begin(int64_t units, int thread) const { return units * thread / threads(); }
  void help(uint64_t ticket, int me);
  uint64_t wait_past(uint64_t ticket, const std::atomic<bool>& over);
  void publish(int64_t units);
  void work(int me);
  void stop();

  const Isa& isa_;
  const int64_t alone_flops_;
  std::unique_ptr<Share[]> shares_;                // one per thread
  std::vector<std::unique_ptr<Scratch>> scratch_;  // one per thread, the caller's first
  Shared shared_;
  std::vector<std::thread> workers_;
  Job job_;

  alignas(kLine) std::atomic<uint64_t> ticket_{0};
  alignas(kLine) std::atomic<int64_t> done_{0};  // finished units of the open instruction; a thread adds them share by share
  alignas(kLine) Bell bell_;
  std::atomic<bool> over_{true};  // no run is in progress
  std::atomic<bool> inside_{false}, stop_{false}, interrupted_{false};

  int64_t calls_ = 0, instructions_ = 0;
};

// Sets a gate to 1 (passed) or 2 (failed) and wakes the threads that wait for it.
void signal_gate(int32_t* gate, int32_t value);

}  // namespace coterie
