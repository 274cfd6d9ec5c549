#include "bindings/cuda_program.h"

#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/address.h"
#include "bindings/read_program.h"
#include "cuda/assemble.h"
#include "cuda/library.h"
#include "cuda/run.h"

namespace py = pybind11;

namespace fastar {
namespace {

using cuda::Assembly;
using cuda::SharedLayout;

cuda::Schedule schedule_of(const std::string& name) {
    const std::map<std::string, cuda::Schedule> schedules{
        {"row", cuda::Schedule::kRow}, {"cluster", cuda::Schedule::kCluster}, {"grid", cuda::Schedule::kGrid}};
    return schedules.at(name);
}

std::shared_ptr<Assembly> assemble(const py::object& program, const py::dict& weights, const std::string& precision,
                                   const std::string& schedule, std::int64_t fast_numbers, bool caches_far,
                                   std::int64_t resident_bytes, std::int64_t local_bytes, std::int64_t stages,
                                   std::int64_t blocks, bool contents) {
    const std::map<std::string, cuda::Precision> precisions{{"float32", cuda::Precision::kFloat32},
                                                            {"bfloat16", cuda::Precision::kBfloat16},
                                                            {"float16", cuda::Precision::kFloat16},
                                                            {"int8", cuda::Precision::kInt8}};
    cpu::Program read = read_program(program, weights);
    const cuda::AssemblyOptions options{.precision = precisions.at(precision),
                                        .schedule = schedule_of(schedule),
                                        .fast_numbers = fast_numbers,
                                        .resident_bytes = resident_bytes,
                                        .local_bytes = local_bytes,
                                        .stages = stages,
                                        .caches_far = caches_far,
                                        .blocks = blocks,
                                        .contents = contents};
    const py::gil_scoped_release release;
    return std::make_shared<Assembly>(std::move(read), options);
}

SharedLayout layout(const Assembly& a, std::int32_t rows, std::int32_t threads) {
    return {a.stretch, rows, threads, cuda::stride_of(a.fast)};
}

// Bytes of global memory for attention's scores; 0 where they fit beside the rest.
std::int64_t score_bytes(const Assembly& a, std::int32_t rows, std::int32_t threads, std::int64_t blocks) {
    return layout(a, rows, threads).scores >= 0 ? 0 : blocks * threads / 32 * a.stretch.most_slots * 4;
}

// Words of global memory behind the arena, for the counters of a grid's edges.
std::int64_t flag_words(const Assembly& a, std::int64_t teams) {
    return teams * a.stretch.edges * cuda::kFlagStride;
}

cuda::Run read_run(const Assembly& a, const py::dict& r) {
    const auto whole = [&](const char* name) { return r[name].cast<std::int32_t>(); };
    cuda::Run run{};
    run.stretch = address<const std::byte>(r["stretch"]);
    run.where = a.stretch;
    run.progress = address<cuda::Progress>(r["progress"]);
    run.arena = address<float>(r["arena"]);
    run.arena_stride = a.fast + a.slow;
    std::size_t input = 0;
    for (const py::handle one : r["inputs"]) {
        const auto [at, stride] = one.cast<std::pair<std::uintptr_t, std::int64_t>>();
        run.inputs[input] = reinterpret_cast<const float*>(at);
        run.input_strides[input++] = stride;
    }
    run.flags = address<unsigned>(r["flags"]);
    run.scores = address<float>(r["scores"]);
    run.rows = r["rows"].cast<std::int64_t>();
    run.schedule = schedule_of(r["schedule"].cast<std::string>());
    run.turn = whole("turn");
    run.rows_per_team = whole("rows_per_team");
    run.blocks_per_team = whole("blocks_per_team");
    run.threads = whole("threads");
    run.fast = static_cast<std::int32_t>(a.fast);
    run.fast_stride = static_cast<std::int32_t>(cuda::stride_of(a.fast));
    run.length = whole("length");
    run.target = whole("target");
    run.channels = whole("channels");
    run.levels = whole("levels");
    run.levels_per_row = r["levels_per_row"].cast<bool>();
    run.range_per_row = r["range_per_row"].cast<bool>();
    run.greedy = r["greedy"].cast<bool>();
    run.top_k = r["top_k"].cast<std::int64_t>();
    run.stop = r["stop"].cast<std::int64_t>();
    run.position_offset = r["position_offset"].cast<std::int64_t>();
    run.uniform_draws = r["uniform_draws"].cast<std::int64_t>();
    run.temperature = r["temperature"].cast<double>();
    run.top_p = r["top_p"].cast<double>();
    run.row_numbers = address<const std::int64_t>(r["row_numbers"]);
    run.seeds = address<const std::int64_t>(r["seeds"]);
    run.lengths = address<std::int64_t>(r["lengths"]);
    run.values = address<double>(r["values"]);
    run.log_prob = address<double>(r["log_prob"]);
    run.log_weight = address<double>(r["log_weight"]);
    run.given = address<const double>(r["given"]);
    run.support = address<const std::uint8_t>(r["support"]);
    run.low = address<const double>(r["low"]);
    run.high = address<const double>(r["high"]);
    run.uniforms = address<const double>(r["uniforms"]);
    run.report_every = whole("report_every");
    run.reached = address<std::int32_t>(r["reached"]);
    run.cancel = address<const std::int32_t>(r["cancel"]);
    run.handed = address<double>(r["handed"]);
    return run;
}

// Of each team: (entry of the code, positions complete, variables, failure or None).
py::list progress(const Assembly& a, std::uintptr_t at, std::size_t teams) {
    static const char* const names[] = {"",           "not_a_number", "no_support", "not_given",
                                        "not_finite", "stuck",        "cancelled"};
    const auto* all = reinterpret_cast<const cuda::Progress*>(at);
    const auto* entries = reinterpret_cast<const cuda::Entry*>(a.bytes.data() + a.stretch.entries);
    py::list result;
    for (std::size_t t = 0; t < teams; ++t) {
        const cuda::Progress& p = all[t];
        py::object failure = py::none();
        if (p.failure != cuda::FailureKind::kNone) {
            failure =
                py::make_tuple(names[static_cast<int>(p.failure)], p.failed_row, p.failed_position, p.failed_place);
        }
        const int place = p.entry < a.stretch.entry_count ? entries[p.entry].place : -1;
        result.append(
            py::make_tuple(place, p.done, std::vector<int>(p.variables, p.variables + cuda::kMaxVariables), failure));
    }
    return result;
}

// The record from which every team goes on at a place of the code; -1 is its end.
void stand(const Assembly& a, std::uintptr_t at, std::size_t teams, int place, int done,
           const std::vector<int>& variables) {
    const auto* entries = reinterpret_cast<const cuda::Entry*>(a.bytes.data() + a.stretch.entries);
    std::int32_t entry = 0;
    while (entry < a.stretch.entry_count && entries[entry].place != place) ++entry;
    if (entry == a.stretch.entry_count && place >= 0) {
        throw std::invalid_argument("state: place " + std::to_string(place) + " is within a block of instructions");
    }
    auto* all = reinterpret_cast<cuda::Progress*>(at);
    for (std::size_t t = 0; t < teams; ++t) {
        all[t] = {};
        all[t].earliest_failure = ~0ull;
        all[t].entry = entry;
        all[t].done = done;
        for (std::size_t i = 0; i < variables.size() && i < cuda::kMaxVariables; ++i)
            all[t].variables[i] = variables[i];
    }
}

}  // namespace

void bind_cuda_program(py::module_& module) {
    module.attr("CUDA_PROGRESS_BYTES") = sizeof(cuda::Progress);
    module.attr("CUDA_MOST_STAGES") = cuda::kMostStages;
    module.attr("CUDA_MOST_ROWS") = cuda::kMaxRows;
    module.attr("CUDA_MOST_THREADS") = cuda::kMostThreads;
    module.attr("CUDA_ALL_REACHED") = cuda::kAllReached;
    py::class_<Assembly, std::shared_ptr<Assembly>>(module, "CudaProgram", "A step program, packed for csrc/cuda.")
        .def(py::init(&assemble), py::arg("program"), py::arg("weights"), py::arg("precision"), py::arg("schedule"),
             py::arg("fast_numbers"), py::arg("caches_far"), py::arg("resident_bytes"), py::arg("local_bytes"),
             py::arg("stages"), py::arg("blocks"), py::arg("contents"))
        .def_readonly("bytes", &Assembly::size)
        .def(
            "copy_to",
            [](const Assembly& a, std::uintptr_t to) {
                std::memcpy(reinterpret_cast<void*>(to), a.bytes.data(), a.bytes.size());
            },
            py::arg("to"))
        .def_property_readonly("resident_bytes", [](const Assembly& a) { return a.stretch.resident_bytes; })
        .def_property_readonly("stages", [](const Assembly& a) { return a.stretch.stages; })
        .def_property_readonly("stage_bytes", [](const Assembly& a) { return a.stretch.stage_bytes; })
        .def_property_readonly("shares",
                               [](const Assembly& a) {
                                   std::vector<std::array<std::int64_t, 5>> all;
                                   for (const auto& s : a.tally.shares) {
                                       all.push_back({s.tile_bytes, s.tiles, s.parts, s.blocks, s.waits});
                                   }
                                   return all;
                               })
        .def_readonly("fast", &Assembly::fast)
        .def_readonly("slow", &Assembly::slow)
        .def_property_readonly("buffers",
                               [](const Assembly& a) {
                                   // (where it begins in a row's arena, or -1 for an input; its size)
                                   std::vector<std::pair<std::int64_t, std::int64_t>> all;
                                   for (const auto& b : a.buffers) {
                                       const bool input = b.space >= cuda::kFirstInputSpace;
                                       const std::int64_t begin = b.space == cuda::kSlowSpace ? a.fast : 0;
                                       all.emplace_back(input ? -1 : begin + b.base, b.size);
                                   }
                                   return all;
                               })
        .def_property_readonly("tally",
                               [](const Assembly& a) {
                                   return std::map<std::string, std::int64_t>{
                                       {"commands", a.tally.commands},
                                       {"block_meetings", a.tally.block_meetings},
                                       {"team_meetings", a.tally.team_meetings},
                                       {"edges", a.tally.edges},
                                       {"fetches", a.tally.fetches},
                                       {"streams", a.tally.streams},
                                       {"weight_bytes", a.tally.weight_bytes},
                                       {"resident_bytes", a.tally.resident_bytes}};
                               })
        .def(
            "shared_bytes",
            [](const Assembly& a, std::int32_t rows, std::int32_t threads) { return layout(a, rows, threads).bytes; },
            py::arg("rows"), py::arg("threads"))
        .def("score_bytes", &score_bytes, py::arg("rows"), py::arg("threads"), py::arg("blocks"))
        .def("flag_words", &flag_words, py::arg("teams"))
        .def("progress", &progress, py::arg("progress"), py::arg("teams"))
        .def("stand", &stand, py::arg("progress"), py::arg("teams"), py::arg("place"), py::arg("done"),
             py::arg("variables"))
        .def(
            "run",
            [](const Assembly& a, cuda::Library& library, int device, const py::dict& record, std::uintptr_t stream) {
                const cuda::Run run = read_run(a, record);
                const py::gil_scoped_release release;
                library.run(device, run, reinterpret_cast<void*>(stream));
            },
            py::arg("library"), py::arg("device"), py::arg("record"), py::arg("stream"));
}

}  // namespace fastar
