#include "bindings/executor.h"

#include <pybind11/stl.h>

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bindings/address.h"
#include "bindings/read_program.h"
#include "cpu/executor/plan.h"
#include "cpu/executor/run.h"
#include "cpu/executor/whole_run.h"

namespace py = pybind11;

namespace fastar {
namespace {

using cpu::Plan;
using cpu::Run;

std::shared_ptr<Plan> make_plan(const py::object& program, const py::dict& weights, const std::string& precision,
                                int threads, std::int64_t rows, const std::string& sharing,
                                std::optional<double> ns_to_hear) {
    const std::map<std::string, cpu::Precision> precisions{{"float32", cpu::Precision::kFloat32},
                                                           {"bfloat16", cpu::Precision::kBfloat16},
                                                           {"int8", cpu::Precision::kInt8}};
    cpu::Program read = read_program(program, weights);
    cpu::PlanOptions options{.precision = precisions.at(precision),
                             .threads = threads,
                             .rows = rows,
                             .sharing = {},
                             .ns_to_hear = ns_to_hear};
    if (sharing != "auto") options.sharing = sharing == "rows" ? cpu::Sharing::kRows : cpu::Sharing::kSteps;
    const py::gil_scoped_release release;
    return std::make_shared<Plan>(std::move(read), options);
}

std::unique_ptr<Run> make_run(const std::shared_ptr<Plan>& plan, const py::dict& r) {
    cpu::Request request{.rows = r["rows"].cast<std::int64_t>(),
                         .length = r["length"].cast<std::int64_t>(),
                         .channels = plan->program.channels,
                         .row_numbers = address<const std::int64_t>(r["row_numbers"]),
                         .seeds = address<const std::int64_t>(r["seeds"]),
                         .lengths = address<std::int64_t>(r["lengths"]),
                         .values = address<double>(r["values"]),
                         .log_prob = address<double>(r["log_prob"]),
                         .log_weight = address<double>(r["log_weight"]),
                         .given = address<const double>(r["given"]),
                         .levels = address<const std::uint8_t>(r["levels"]),
                         .levels_per_row = r["levels_per_row"].cast<bool>(),
                         .low = address<const double>(r["low"]),
                         .high = address<const double>(r["high"]),
                         .range_per_row = r["range_per_row"].cast<bool>(),
                         .uniforms = address<const double>(r["uniforms"]),
                         .uniform_draws = r["uniform_draws"].cast<std::int64_t>(),
                         .stop = r["stop"].cast<std::int64_t>(),
                         .position_offset = r["position_offset"].cast<std::int64_t>(),
                         .temperature = r["temperature"].cast<double>(),
                         .top_k = r["top_k"].cast<std::int64_t>(),
                         .top_p = r["top_p"].cast<double>(),
                         .greedy = r["greedy"].cast<bool>(),
                         .inputs = {},
                         .input_entries = r["input_entries"].cast<std::vector<std::int64_t>>()};
    for (const py::handle one : r["inputs"].cast<py::list>()) request.inputs.push_back(address<const float>(one));
    const py::gil_scoped_release release;
    return std::make_unique<Run>(plan, std::move(request));
}

// In pieces, between which Python may act on a signal: Ctrl-C then leaves the run complete up to a position.
std::int64_t advance(Run& run, std::int64_t positions) {
    constexpr double kMilliseconds = 50.0;
    std::int64_t total = 0;
    while (total < positions) {
        std::int64_t done;
        {
            const py::gil_scoped_release release;
            done = run.advance(positions - total, kMilliseconds);
        }
        total += done;
        if (done == 0 || run.finished() || run.failure().kind != cpu::FailureKind::kNone) break;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    return total;
}

// A whole run of `rows` rows, its values as int64 or float32 at `out`; returns the seconds it took, or -1 where a draw
// failed.
double sample(const std::shared_ptr<Plan>& plan, std::int64_t rows, std::int64_t length, std::uint64_t seed,
              std::uint64_t first_row, bool integers, const py::object& layout, std::uintptr_t out) {
    using Clock = std::chrono::steady_clock;
    const auto begin = Clock::now();
    cpu::WholeRun whole(plan, rows, length, seed, first_row);
    advance(whole.run(), length);
    if (whole.run().failure().kind != cpu::FailureKind::kNone) return -1.0;
    const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    if (integers) {
        whole.copy(address<const std::int32_t>(layout), at<std::int64_t>(out));
    } else {
        whole.copy(address<const std::int32_t>(layout), at<float>(out));
    }
    return seconds;
}

// Per block and thread: (code entry, first unit, end, waits) of each task, in order.
py::list tasks(const Plan& plan) {
    py::list blocks;
    for (const cpu::Block& block : plan.blocks) {
        py::list threads;
        for (const auto& own : block.tasks) {
            py::list entries;
            for (const cpu::Task& task : own) {
                entries.append(
                    py::make_tuple(task.step->place, task.unit_begin, task.unit_end, task.wait_end - task.wait_begin));
            }
            threads.append(entries);
        }
        blocks.append(threads);
    }
    return blocks;
}

py::object failure(const Run& run) {
    static const char* const names[] = {"", "not_a_number", "no_support", "not_given", "not_finite"};
    const cpu::Failure& f = run.failure();
    if (f.kind == cpu::FailureKind::kNone) return py::none();
    return py::make_tuple(names[static_cast<int>(f.kind)], f.row, f.position, f.place);
}

}  // namespace

void bind_executor(py::module_& module) {
    py::class_<Plan, std::shared_ptr<Plan>>(module, "Plan", "A step program, packed for the cpu executor.")
        .def(py::init(&make_plan), py::arg("program"), py::arg("weights"), py::arg("precision"), py::arg("threads"),
             py::arg("rows"), py::arg("sharing"), py::arg("ns_to_hear") = py::none())
        .def_readonly("threads", &Plan::threads)
        .def_property_readonly("sharing",
                               [](const Plan& p) { return p.sharing == cpu::Sharing::kRows ? "rows" : "steps"; })
        .def_property_readonly("predicted_ns", &Plan::predicted_ns)
        .def_readonly("ns_to_hear", &Plan::ns_to_hear)
        .def_property_readonly("tasks", &tasks)
        .def("sample", &sample, py::arg("rows"), py::arg("length"), py::arg("seed"), py::arg("first_row"),
             py::arg("integers"), py::arg("layout"), py::arg("out"))
        .def_property_readonly("weight_bytes", [](const Plan& p) { return p.store.bytes(); })
        .def_property_readonly("own_floats", &Plan::own_floats)
        .def_property_readonly("row_bytes", [](const Plan& p) { return p.layout.row_stride * 4; });
    py::class_<Run>(module, "Run", "A run of a Plan; borrows the memory that its request names.")
        .def(py::init(&make_run), py::arg("plan"), py::arg("request"))
        .def("advance", &advance, py::arg("positions"))
        .def_property_readonly("finished", &Run::finished)
        .def_property_readonly("done", &Run::done)
        .def_property_readonly("failure", &failure)
        .def_property_readonly("place", &Run::place)
        .def_property_readonly("variables", &Run::variables)
        .def("stand", &Run::stand, py::arg("place"), py::arg("variables"), py::arg("done"))
        .def(
            "read",
            [](const Run& run, std::size_t buffer, std::uintptr_t to) {
                run.read(buffer, reinterpret_cast<float*>(to));
            },
            py::arg("buffer"), py::arg("to"))
        .def(
            "write",
            [](Run& run, std::size_t buffer, std::uintptr_t from) {
                run.write(buffer, reinterpret_cast<const float*>(from));
            },
            py::arg("buffer"), py::arg("from"))
        .def(
            "read_own", [](const Run& run, std::uintptr_t to) { run.read_own(reinterpret_cast<float*>(to)); },
            py::arg("to"))
        .def(
            "write_own", [](Run& run, std::uintptr_t from) { run.write_own(reinterpret_cast<const float*>(from)); },
            py::arg("from"));
}

}  // namespace fastar
