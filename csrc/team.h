// A persistent team of threads that walks an instruction list together.
// Knows nothing about what the instructions do, nor about Python.
//
//   list   i: units 0 1 2 3 4 5        each thread takes the next unit of instruction i from a shared counter; who finds none
//             A B A A B A               left waits until all are finished, spinning briefly and then asleep, and goes on to i + 1.
//          i + 1: ...                   A thread that wakes late finds no units and catches up; nobody waits for a sleeper.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "isa.h"

namespace coterie {

struct Counters {
  int64_t stored_bytes = 0;       // stored outside scratch: outputs and pages
  int64_t scratch_bytes = 0;      // most scratch that one thread used
  int64_t calls = 0;              // run() calls: launches by the host
  int64_t instructions = 0;       // rows walked
};

class Team {
 public:
  // `threads` includes the caller of run(). Throws std::runtime_error when the system gives fewer.
  Team(int threads, const Isa& isa);
  ~Team();
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  // Executes rows in order; returns how many were executed. Fewer than `count` means that the gate of the next one failed.
  int64_t run(const Row* rows, int64_t count);

  int threads() const { return static_cast<int>(scratch_.size()); }
  const char* isa() const { return isa_.name; }
  Counters counters() const;
  void reset_counters();

 private:
  struct alignas(kLine) Progress {
    std::atomic<int64_t> next, done;
    std::atomic<int32_t> finished;
  };

  void prepare(const Row* rows, int64_t count);
  bool worth_waking(const Row* rows, int64_t count) const;
  int64_t walk(Scratch& scratch);
  int64_t walk_alone(Scratch& scratch);
  void work(Scratch& scratch);
  void stop();

  const Isa& isa_;
  std::mutex one_caller_;
  std::vector<std::unique_ptr<Scratch>> scratch_;  // one per thread, the caller's first
  Shared shared_;
  std::vector<std::thread> workers_;

  // The job. Written only while it is closed and nobody is inside.
  const Row* rows_ = nullptr;
  int64_t count_ = 0;
  std::unique_ptr<Progress[]> progress_;
  int64_t capacity_ = 0;
  alignas(kLine) std::atomic<uint32_t> state_{0};  // odd: a job is open; each job has a new number
  alignas(kLine) std::atomic<int32_t> inside_{0};  // workers that may touch the job
  std::atomic<bool> stop_{false};

  int64_t calls_ = 0, instructions_ = 0;
};

// Sets a gate to 1 (passed) or 2 (failed) and wakes whoever waits for it.
void signal_gate(int32_t* gate, int32_t value);

}  // namespace coterie
