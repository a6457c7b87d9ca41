// The modelled clock for Python: the classes of devices/modelled/fluid.py and devices/modelled/work.py, with their
// names and interfaces, and the tokens of devices/modelled/tokens.py.
// The only file of the clock that knows Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "clock.h"
#include "sources.h"
#include "tokens.h"

namespace nb = nanobind;
using namespace coterie::modelled;

namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
using Maybe = std::optional<double>;

Maybe maybe(double value) { return known(value) ? Maybe(value) : std::nullopt; }

// Lets the garbage collector find cycles through a failure (an exception refers to the frames that it passed through,
// and these to events). Visits the failure only if nothing else owns the work:
// otherwise another work may still have to fail with it.
int traverse(PyObject* self, visitproc visit, void* arg) {
  Py_VISIT(Py_TYPE(self));
  if (!nb::inst_ready(self)) return 0;
  const Work* work = nb::inst_ptr<Work>(self);
  if (work->weak_from_this().use_count() != 1) return 0;
  if (const auto* failure = std::any_cast<nb::object>(&work->failure)) Py_VISIT(failure->ptr());
  return 0;
}

PyType_Slot work_slots[] = {{Py_tp_traverse, reinterpret_cast<void*>(traverse)}, {0, nullptr}};

std::vector<std::pair<int, double>> named(const nb::mapping& items) {
  std::vector<std::pair<int, double>> found;
  for (nb::handle name : items) found.emplace_back(resource_of(nb::cast<std::string>(name)), nb::cast<double>(items[name]));
  return found;
}

// Programs pass the same tuple at every step: its contents are converted once.
// Keeps the tuples alive, so that no other gets their address.
Parts::Places places_of(const nb::tuple& places) {
  constexpr size_t kMaxKept = 64;
  static auto& kept = *new std::vector<std::pair<nb::tuple, Parts::Places>>;  // never destroyed: it outlives the interpreter
  for (const auto& [known, found] : kept)
    if (known.is(places)) return found;
  if (kept.size() >= kMaxKept) kept.clear();
  kept.emplace_back(places, std::make_shared<const std::vector<int>>(nb::cast<std::vector<int>>(places)));
  return kept.back().second;
}

std::shared_ptr<Work> issue(Clock& self, const std::string& lane, std::vector<std::shared_ptr<Work>> after,
                            std::vector<PhasePtr> phases, const nb::object& failure, std::vector<int> cuts) {
  std::any how = failure.is_none() ? std::any() : std::any(failure);
  return self.issue(lane, std::move(after), std::move(phases), std::move(how), std::move(cuts));
}

// A chain of works on one lane, of one phase each: each waits for the one before, the first for `after`.
nb::list issue_chain(Clock& self, const std::string& lane, std::vector<std::shared_ptr<Work>> after,
                     const std::vector<PhasePtr>& phases) {
  nb::list works;
  for (const PhasePtr& phase : phases) {
    std::shared_ptr<Work> work = self.issue(lane, std::move(after), {phase}, std::any(), {});
    works.append(nb::cast(work));
    after = {std::move(work)};
  }
  return works;
}

// Tokens [steps, rows] of rows with these seeds; a row's first token follows the one at its position.
nb::ndarray<nb::numpy, int32_t, nb::ndim<2>> draw(const std::vector<uint64_t>& seeds, const std::vector<uint64_t>& positions,
                                                  int64_t vocab_size, size_t steps) {
  if (seeds.size() != positions.size()) throw std::invalid_argument("as many seeds as positions are needed");
  const size_t rows = seeds.size();
  auto* tokens = new int32_t[steps * rows];
  nb::capsule owner(tokens, [](void* memory) noexcept { delete[] static_cast<int32_t*>(memory); });
  for (size_t step = 0; step < steps; ++step)
    for (size_t row = 0; row < rows; ++row)
      tokens[step * rows + row] = token_at(seeds[row], positions[row] + step, static_cast<double>(vocab_size));
  return {tokens, {steps, rows}, owner};
}

nb::dict usage(const Clock& self) {
  nb::dict found;
  for (const int resource : self.resources()) {
    found[name_of(resource).c_str()] = self.usage(resource);
  }
  return found;
}

nb::dict lane_busy_s(const Clock& self) {
  nb::dict found;
  for (const Lane& lane : self.lanes())
    if (lane.has_ended) found[lane.name.c_str()] = lane.busy_s;
  return found;
}

std::shared_ptr<Phase> changed(const Phase& phase, double more_s, std::shared_ptr<Work> gate) {
  auto made = std::make_shared<Phase>(phase);
  made->delay_s += more_s;
  if (gate) made->gate = std::move(gate);
  return made;
}

}  // namespace

NB_MODULE(_clock, m) {
  m.attr("SOURCES") = COTERIE_SOURCES_CLOCK;
  nb::class_<Flow>(m, "Flow")
      .def("__init__",
           [](Flow* self, double amount, const nb::mapping& uses) { new (self) Flow{amount, uses_of(named(uses))}; },
           nb::arg("amount"), nb::arg("uses"))
      .def_ro("amount", &Flow::amount);
  nb::class_<Usage>(m, "Usage")
      .def_ro("drawn", &Usage::drawn)
      .def_ro("busy_s", &Usage::busy_s)
      .def("__eq__", [](const Usage& a, const Usage& b) { return a.drawn == b.drawn && a.busy_s == b.busy_s; });
  nb::class_<Work>(m, "Work", nb::type_slots(work_slots))
      .def_ro("number", &Work::number)
      .def_prop_ro("finished", &Work::finished)
      .def_prop_ro("failure",
                   [](const Work& work) {
                     const auto* failure = std::any_cast<nb::object>(&work.failure);
                     return failure ? *failure : nb::object(nb::none());
                   })
      .def_prop_ro("start_s", [](const Work& work) { return maybe(work.start_s); })
      .def_prop_ro("end_s", [](const Work& work) { return maybe(work.end_s); })
      .def_prop_ro("took_s", [](const Work& work) { return work.finished() ? work.end_s - work.start_s : 0.0; })
      .def_prop_ro("pieces",
                   [](const Work& work) { return work.pieces < 0 ? std::optional<int>() : std::optional<int>(work.pieces); })
      .def("cut_short", &Work::cut_short);
  nb::class_<Phase>(m, "Phase")
      .def("__init__",
           [](Phase* self, double delay_s, const std::vector<Flow>& flows, std::shared_ptr<Work> gate, const Maybe& alone_s) {
             new (self) Phase{delay_s, flows, std::move(gate), alone_s.value_or(kUnknown), nullptr, {}};
           },
           nb::arg("delay_s") = 0.0, nb::arg("flows") = nb::tuple(), nb::arg("gate") = nb::none(), nb::arg("alone_s") = nb::none())
      .def_ro("delay_s", &Phase::delay_s)
      .def_ro("gate", &Phase::gate)
      .def_prop_ro("alone_s", [](const Phase& phase) { return maybe(phase.alone_s); })
      .def("delayed", [](const Phase& phase, double seconds) { return changed(phase, seconds, nullptr); }, nb::arg("seconds"))
      .def("gated", [](const Phase& phase, std::shared_ptr<Work> gate) { return changed(phase, 0.0, std::move(gate)); },
           nb::arg("gate"));
  nb::class_<Parts>(m, "Parts")
      .def("__init__",
           [](Parts* self, std::vector<PhasePtr> unique, const nb::tuple& places) {
             new (self) Parts(std::move(unique), places_of(places));
           },
           nb::arg("unique"), nb::arg("places"))
      .def("__len__", &Parts::size)
      .def("__getitem__",
           [](const Parts& parts, size_t part) {
             if (part >= parts.size()) throw nb::index_error();
             return std::const_pointer_cast<Phase>(parts.unique[(*parts.places)[part]]);
           })
      .def("merged",
           [](const Parts& parts, size_t begin, const std::optional<size_t>& end, const std::shared_ptr<Phase>& head) {
             return std::const_pointer_cast<Phase>(merged(parts, begin, end.value_or(parts.size()), head));
           },
           nb::arg("begin") = 0, nb::arg("end") = nb::none(), nb::arg("head") = nb::none());
  m.def("draw", &draw, nb::arg("seeds"), nb::arg("positions"), nb::arg("vocab_size"), nb::arg("steps"));
  nb::class_<Clock>(m, "FluidClock")
      .def("__init__", [](Clock* self, const nb::mapping& capacity) { new (self) Clock(named(capacity)); },
           nb::arg("capacity"))
      .def("issue", &issue, nb::arg("lane"), nb::arg("after"), nb::arg("phases"), nb::arg("failure") = nb::none(),
           nb::arg("cuts") = nb::tuple())
      .def("issue_chain", &issue_chain, nb::arg("lane"), nb::arg("after"), nb::arg("phases"))
      .def("advance", [](Clock& self, const Maybe& until) { return self.advance(until.value_or(kNever)); },
           nb::arg("until") = nb::none())
      .def("wait",
           [](Clock& self, const std::vector<std::shared_ptr<Work>>& works, const Maybe& until) {
             return self.wait(works, until.value_or(kNever));
           },
           nb::arg("works"), nb::arg("until") = nb::none())
      .def("idle_until", [](Clock& self, double moment) { self.idle_until(moment); }, nb::arg("moment"))
      .def("head", [](const Clock& self, const std::string& lane) { return self.head(lane); }, nb::arg("lane"))
      .def_prop_ro("usage", &usage)
      .def_prop_ro("lane_busy_s", &lane_busy_s)
      .def_prop_ro("now", [](const Clock& self) { return self.now; });
}
