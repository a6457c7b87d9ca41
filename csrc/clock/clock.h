// A fluid model of time: lanes of work over shared resources, whose rates are recomputed at each start and end. It does
// what devices/modelled/fluid.py does, operation by operation, so that both give bit-identical times;
// read that one first.
// Knows nothing about programs, bytes, tiers, or Python.
#pragma once

#include <algorithm>
#include <deque>

#include "share.h"

namespace coterie::modelled {

// Use of one resource: the amount drawn, and the seconds in which anything drew on it.
struct Usage {
  double drawn = 0, busy_s = 0;
};

struct Lane {
  std::string name;
  std::deque<std::shared_ptr<Work>> works;
  double busy_s = 0;
  bool has_ended = false;  // some work has ended
};

class Clock {
 public:
  // Each resource's units per second, all positive.
  explicit Clock(const std::vector<std::pair<int, double>>& capacity);

  // Appends a work to a lane.
  std::shared_ptr<Work> issue(const std::string& lane, std::vector<std::shared_ptr<Work>> after, std::vector<PhasePtr> phases,
                              std::any failure, std::vector<int> cuts);
  // Advances to the next change, or to `until` if that comes first. False if nothing is active.
  bool advance(double until);
  // Advances until one of the works is finished or the time is `until`.
  // False if nothing is active and `until` is infinite.
  bool wait(const std::vector<std::shared_ptr<Work>>& works, double until);
  void idle_until(double moment) { now = std::max(now, moment); }
  std::shared_ptr<Work> head(const std::string& lane) const;

  const std::vector<int>& resources() const { return resources_; }
  const Usage& usage(int resource) const { return usage_[resource]; }
  const std::deque<Lane>& lanes() const { return lanes_; }

  double now = 0;

 private:
  struct Draining {
    Work* work;
    size_t flow;
  };
  struct Active {
    std::vector<Work*> delayed;
    std::vector<Draining> draining;
    std::vector<int> uses;
  };

  void look_at(const std::vector<Work*>& works);
  bool advance_alone(Work& work, double until);
  bool advance_beside(Work& work, const Parts& parts, const std::vector<Work*>& others, double until);
  double take_parts(Work& work, const Parts& parts, const std::vector<double>& free, double limit, const Shared& beside);
  void draw(const Phase& phase);
  void give(const Drawn& drawn);
  void account(const Shared& shared, double step);
  void settle();
  bool step(Work& work);
  bool start(Work& work);
  bool enter(Work& work);
  void finish(Work& work, std::any failure);

  Shares shares_;
  std::vector<int> resources_;
  std::vector<Usage> usage_;  // by resource
  std::deque<Lane> lanes_;    // in the order of their first work
  int64_t issued_ = 0;
  Active active_;
};

}  // namespace coterie::modelled
