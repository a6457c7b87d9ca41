// The only file of the kernels that knows Python: exports the opcodes with their operands,
// the instruction sets, and the team.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <string>
#include <type_traits>

#include "kv8.h"
#include "reads.h"
#include "sources.h"
#include "team.h"

namespace nb = nanobind;
using namespace coterie;

namespace {

using Rows = nb::ndarray<const int64_t, nb::shape<-1, kRowWords>, nb::c_contig, nb::device::cpu>;
using FeedWords = nb::ndarray<const int64_t, nb::shape<kFeedWords>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::c_contig, nb::device::cpu>;

// "p" an address, "i" an integer, "d" a double (its bits are stored).
template <class T>
constexpr const char* kind_of() {
  return std::is_pointer_v<T> ? "p" : std::is_same_v<T, double> ? "d" : "i";
}

#define COTERIE_FIELD(type, field) operands.append(nb::make_tuple(#field, kind_of<type>()));

nb::dict opcodes() {
  nb::dict all;
  int64_t number = 0;
#define COTERIE_OPCODE(op, Struct, FIELDS)                      \
  {                                                             \
    nb::list operands;                                          \
    FIELDS(COTERIE_FIELD)                                       \
    all[#op] = nb::make_tuple(number++, nb::tuple(operands));   \
  }
  COTERIE_OPS(COTERIE_OPCODE)
#undef COTERIE_OPCODE
  return all;
}

nb::tuple feed_words() {
  nb::list operands;
  COTERIE_FEED(COTERIE_FIELD)
  return nb::tuple(operands);
}
#undef COTERIE_FIELD

nb::list supported_isas() {
  nb::list names;
  for (const Isa& isa : compiled_isas())
    if (isa.supported()) names.append(isa.name);
  return names;
}

const Isa& find_isa(const std::string& name) {
  for (const Isa& isa : compiled_isas())
    if (isa.name == name && isa.supported()) return isa;
  throw nb::value_error(("instruction set '" + name + "' is not supported by this machine or build").c_str());
}

double read_seconds_of(int64_t from, int64_t size, int threads, int64_t ahead, int streams, const std::string& isa) {
  const Isa& found = find_isa(isa);
  const nb::gil_scoped_release unlocked;
  uint64_t sink = 0;
  const auto* first = reinterpret_cast<const uint8_t*>(from);
  const double seconds = read_seconds(found.limits, first, size, threads, ahead, streams, &sink);
  return seconds + (sink == 1 ? 1e-300 : 0);  // uses the sum, so that compilers cannot drop the reads
}

double multiply_add_rate_of(int64_t rounds, int threads, const std::string& isa, bool bf16) {
  const Limits& limits = find_isa(isa).limits;
  const bool paired = bf16 && limits.multiply_add_bf16 != nullptr && has_bf16_products();
  const nb::gil_scoped_release unlocked;
  float sink = 0;
  const double rate = multiply_add_rate(paired ? limits.multiply_add_bf16 : limits.multiply_add, rounds, threads, &sink);
  return rate + (sink == 1 ? 1e-300 : 0);
}

void check_rows(const Rows& rows) {
  const auto* first = reinterpret_cast<const Row*>(rows.data());
  for (size_t i = 0; i < rows.shape(0); ++i)
    if (first[i].opcode < 0 || first[i].opcode >= kOpcodes) throw nb::value_error("a row has an unknown opcode");
}

int64_t run_rows(Team& team, const Rows& rows) {
  check_rows(rows);
  const nb::gil_scoped_release unlocked;
  return team.run(reinterpret_cast<const Row*>(rows.data()), static_cast<int64_t>(rows.shape(0))).rows;
}

nb::tuple run_steps(Team& team, const Rows& rows, const FeedWords& words) {
  check_rows(rows);
  Walked walked{};
  {
    const nb::gil_scoped_release unlocked;
    const auto* feed = reinterpret_cast<const Feed*>(words.data());
    walked = team.run(reinterpret_cast<const Row*>(rows.data()), static_cast<int64_t>(rows.shape(0)), feed);
  }
  return nb::make_tuple(walked.steps, walked.rows);
}

bool within(const Ints& values, int64_t bound) {
  for (size_t i = 0; i < values.size(); ++i)
    if (values.data()[i] < 0 || values.data()[i] >= bound) return false;
  return true;
}

using Parts = nb::ndarray<const int64_t, nb::shape<-1, 2>, nb::c_contig, nb::device::cpu>;

void add_reads(Reads& reads, int64_t tag, int file, int64_t to, int64_t offset, int64_t there, const Parts& parts, bool scattered) {
  const Range range{file, reinterpret_cast<uint8_t*>(to), offset, there};
  const nb::gil_scoped_release unlocked;
  reads.add(tag, range, reinterpret_cast<const Part*>(parts.data()), parts.shape(0), scattered);
}

// (tag, whether all of it was read), or None.
nb::object next_read(Reads& reads) {
  Reads::Ended ended{};
  bool any = false;
  {
    const nb::gil_scoped_release unlocked;
    any = reads.next(ended);
  }
  return any ? nb::object(nb::make_tuple(ended.tag, ended.whole)) : nb::none();
}

nb::dict counters(const Team& team) {
  const Counters c = team.counters();
  nb::dict out;
  out["stored_bytes"] = c.stored_bytes;
  out["scratch_bytes"] = c.scratch_bytes;
  out["calls"] = c.calls;
  out["instructions"] = c.instructions;
  return out;
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.attr("SOURCES") = COTERIE_SOURCES_CPU;
  m.attr("ROW_WORDS") = kRowWords;
  m.attr("HEADER_WORDS") = kHeaderWords;
  m.attr("SETTING_WORDS") = kSettingWords;
  m.attr("OPCODES") = opcodes();
  m.attr("FEED_WORDS") = feed_words();
  m.attr("ISAS") = nb::tuple(supported_isas());
  m.attr("BF16_PRODUCTS") = has_bf16_products();
  nb::dict dtypes;
  dtypes["F32"] = static_cast<int64_t>(DType::f32);
  dtypes["F16"] = static_cast<int64_t>(DType::f16);
  dtypes["BF16"] = static_cast<int64_t>(DType::bf16);
  dtypes["BF16, bf16"] = static_cast<int64_t>(DType::bf16_bf16);
  dtypes["Q8"] = static_cast<int64_t>(DType::q8);
  dtypes["Q4"] = static_cast<int64_t>(DType::q4);
  dtypes["Q4Z"] = static_cast<int64_t>(DType::q4z);
  dtypes["Q2"] = static_cast<int64_t>(DType::q2);
  dtypes["Q8, int8"] = static_cast<int64_t>(DType::q8_int8);
  dtypes["Q4, int8"] = static_cast<int64_t>(DType::q4_int8);
  dtypes["Q4Z, int8"] = static_cast<int64_t>(DType::q4z_int8);
  dtypes["Q2, int8"] = static_cast<int64_t>(DType::q2_int8);
  dtypes["Q6"] = dtypes["Q6, int8"] = static_cast<int64_t>(DType::q6);
  dtypes["MX4"] = static_cast<int64_t>(DType::mx4);
  dtypes["MX4, int8"] = static_cast<int64_t>(DType::mx4_int8);
  dtypes["KV8"] = static_cast<int64_t>(kKv8);
  m.attr("DTYPES") = dtypes;
  nb::class_<Team>(m, "Team")
      .def("__init__",
           [](Team* self, int threads, const std::string& isa) {
             if (threads < 1) throw nb::value_error("a team has at least one thread");
             new (self) Team(threads, find_isa(isa));
           },
           nb::arg("threads"), nb::arg("isa"))
      .def("run", &run_rows, nb::arg("rows").noconvert())
      .def("run_steps", &run_steps, nb::arg("rows").noconvert(), nb::arg("feed").noconvert())
      .def("interrupt", &Team::interrupt)
      .def("counters", &counters)
      .def("reset_counters", &Team::reset_counters)
      .def_prop_ro("threads", &Team::threads)
      .def_prop_ro("memory_bytes", &Team::memory_bytes)
      .def_prop_ro("isa", &Team::isa);
  nb::class_<Reads>(m, "Reads")
      .def("__init__",
           [](Reads* self, int64_t piece_bytes, int64_t first_bytes, int64_t long_bytes) {
             if (piece_bytes < 1 || first_bytes < 1 || long_bytes < first_bytes)
               throw nb::value_error("a piece, and what is under way, has at least one byte, and no more is under way at first");
             new (self) Reads(piece_bytes, first_bytes, long_bytes);
           },
           nb::arg("piece_bytes") = kPieceBytes, nb::arg("first_bytes") = kFirstBytes, nb::arg("long_bytes") = kLongBytes)
      .def("add", &add_reads, nb::arg("tag"), nb::arg("file"), nb::arg("to"), nb::arg("offset"), nb::arg("there"),
           nb::arg("parts").noconvert(), nb::arg("scattered"))
      .def("next", &next_read)
      .def_prop_ro("scattered", &Reads::scattered)
      .def_prop_ro("long_bytes", &Reads::long_bytes);
  m.attr("READ_PIECE_BYTES") = kPieceBytes;
  m.attr("READ_FIRST_BYTES") = kFirstBytes;
  m.attr("READ_LONG_BYTES") = kLongBytes;
  m.attr("READS_AT_ONCE") = kReadsAtOnce;
  m.def("within", &within, nb::arg("values").noconvert(), nb::arg("bound"));
  m.def("read_seconds", &read_seconds_of, nb::arg("address"), nb::arg("size_bytes"), nb::arg("threads"), nb::arg("ahead_bytes"),
        nb::arg("streams"), nb::arg("isa"));
  m.def("multiply_add_rate", &multiply_add_rate_of, nb::arg("rounds"), nb::arg("threads"), nb::arg("isa"), nb::arg("bf16"));
  m.def("signal_gate", [](int64_t gate, int32_t value) { signal_gate(reinterpret_cast<int32_t*>(gate), value); },
        nb::arg("gate"), nb::arg("value"));
}
