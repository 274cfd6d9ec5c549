#include "bindings/read_program.h"

#include <pybind11/stl.h>

#include <array>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace fastar {
namespace {

using namespace cpu;

template <typename T>
T named(const std::map<std::string, T>& names, const std::string& what, const std::string& name) {
    const auto found = names.find(name);
    if (found == names.end()) throw std::invalid_argument(what + ": the cpu executor has no " + name);
    return found->second;
}

const std::map<std::string, Function> kFunctions{
    {"none", Function::kNone},       {"relu", Function::kRelu},          {"elu", Function::kElu},
    {"gelu", Function::kGelu},       {"gelu_tanh", Function::kGeluTanh}, {"tanh", Function::kTanh},
    {"sigmoid", Function::kSigmoid}, {"silu", Function::kSilu},          {"exp", Function::kExp},
    {"log", Function::kLog},         {"softplus", Function::kSoftplus}};
const std::map<std::string, GateFunction> kGates{
    {"tanh", GateFunction::kTanh}, {"linear", GateFunction::kLinear}, {"silu", GateFunction::kSilu}};
const std::map<std::string, Elementwise> kElementwise{{"clamp", Elementwise::kClamp},
                                                      {"concat_elu", Elementwise::kConcatElu},
                                                      {"add", Elementwise::kAdd},
                                                      {"mul", Elementwise::kMultiply}};
const std::map<std::string, NormKind> kNorms{{"layer", NormKind::kLayer}, {"rms", NormKind::kRms}};
const std::map<std::string, CellKind> kCells{
    {"tanh", CellKind::kTanh}, {"lstm", CellKind::kLstm}, {"gru", CellKind::kGru}};
const std::map<std::string, HeadKind> kHeads{
    {"bernoulli", HeadKind::kBernoulli}, {"categorical", HeadKind::kCategorical}, {"normal", HeadKind::kNormal},
    {"gaussian", HeadKind::kGaussian},   {"laplace", HeadKind::kLaplace},         {"logistic", HeadKind::kLogistic},
    {"given", HeadKind::kGiven}};
const std::map<std::string, BufferKind> kBuffers{
    {"state", BufferKind::kState}, {"scratch", BufferKind::kScratch}, {"input", BufferKind::kInput}};
const std::map<std::string, Op> kOps{{"loop", Op::kLoop},
                                     {"when", Op::kWhen},
                                     {"end", Op::kEnd},
                                     {"linear", Op::kLinear},
                                     {"tapped_linear", Op::kTappedLinear},
                                     {"span_linear", Op::kSpanLinear},
                                     {"gather", Op::kGather},
                                     {"accumulate", Op::kAccumulate},
                                     {"readout", Op::kReadout},
                                     {"gate", Op::kGate},
                                     {"elementwise", Op::kElementwise},
                                     {"norm", Op::kNorm},
                                     {"attention", Op::kAttention},
                                     {"cell", Op::kCell},
                                     {"draw", Op::kDraw},
                                     {"store", Op::kStore},
                                     {"emit", Op::kEmit}};

class Reader {
  public:
    Program program(const py::object& source, const py::dict& weights) {
        Program result;
        const py::object value = source.attr("value");
        result.channels = value.attr("channels").cast<std::int64_t>();
        result.levels = number(value.attr("levels")).value_or(0);
        for (const auto& [name, record] : weights) {
            const auto fields = record.cast<py::tuple>();
            const auto address = fields[0].cast<std::uintptr_t>();
            const bool whole = fields[2].cast<bool>();
            weights_[name.cast<std::string>()] = static_cast<int>(result.weights.size());
            result.weights.push_back({.shape = fields[1].cast<std::vector<std::int64_t>>(),
                                      .floats = whole ? nullptr : reinterpret_cast<const float*>(address),
                                      .integers = whole ? reinterpret_cast<const std::int32_t*>(address) : nullptr});
        }
        for (const py::handle one : source.attr("buffers")) {
            const auto name = one.attr("name").cast<std::string>();
            buffers_[name] = static_cast<int>(result.buffers.size());
            result.buffers.push_back({.name = name,
                                      .kind = named(kBuffers, "buffer " + name, one.attr("kind").cast<std::string>()),
                                      .shape = one.attr("shape").cast<std::vector<std::int64_t>>(),
                                      .ring = one.attr("ring").cast<bool>(),
                                      .init = weight(one.attr("init"))});
        }
        int place = 0;
        for (const py::handle one : source.attr("code")) {
            result.code.push_back(instruction(one));
            result.code.back().place = place++;
        }
        result.variables = static_cast<int>(variables_.size());
        return result;
    }

  private:
    static std::optional<std::int64_t> number(const py::object& value) {
        return value.is_none() ? std::nullopt : std::optional(value.cast<std::int64_t>());
    }

    static std::optional<double> real(const py::object& value) {
        return value.is_none() ? std::nullopt : std::optional(value.cast<double>());
    }

    int weight(const py::object& name) const { return name.is_none() ? -1 : weights_.at(name.cast<std::string>()); }

    int variable(const std::string& name) {
        return variables_.try_emplace(name, static_cast<int>(variables_.size())).first->second;
    }

    Index index(const py::handle& value) {
        Index result;
        result.constant = value.attr("const").cast<std::int64_t>();
        result.divisor = value.attr("divisor").cast<std::int64_t>();
        for (const py::handle term : value.attr("terms")) {
            const auto [name, coefficient] = term.cast<std::pair<std::string, std::int64_t>>();
            result.terms.emplace_back(variable(name), coefficient);
        }
        return result;
    }

    Ref ref(const py::handle& value) {
        Ref result;
        result.buffer = buffers_.at(value.attr("buffer").cast<std::string>());
        for (const py::handle one : value.attr("at")) result.at.push_back(index(one));
        result.offset = index(value.attr("offset"));
        result.width = value.attr("width").cast<std::int64_t>();
        return result;
    }

    static Head head(const py::object& value) {
        return {.kind = named(kHeads, "head", value.attr("kind").cast<std::string>()),
                .levels = number(value.attr("levels")).value_or(0),
                .components = value.attr("components").cast<std::int64_t>(),
                .channels = value.attr("channels").cast<std::int64_t>(),
                .low = real(value.attr("low")),
                .high = real(value.attr("high")),
                .min_log_scale = real(value.attr("min_log_scale")),
                .branch = value.attr("branch").cast<double>()};
    }

    // A field that the op does not have reads as absent.
    static py::object field(const py::handle& from, const char* name) { return py::getattr(from, name, py::none()); }

    void operand(std::optional<Ref>& to, const py::handle& from, std::initializer_list<const char*> names) {
        for (const char* name : names) {
            const py::object value = field(from, name);
            if (!value.is_none() && py::hasattr(value, "buffer")) to = ref(value);
        }
    }

    void operands(Instruction& i, const py::handle& from) {
        operand(i.out, from, {"out"});
        operand(i.source, from, {"source", "a", "query", "input_gates", "params"});
        operand(i.add, from, {"add"});
        operand(i.other, from, {"b", "hidden_gates"});
        operand(i.hidden, from, {"hidden"});
        operand(i.cell, from, {"cell"});
        operand(i.cell_out, from, {"cell_out"});
        operand(i.log_prob, from, {"log_prob"});
        for (const char* name : {"weight", "table"}) {
            if (const py::object value = field(from, name); !value.is_none()) i.weight = weight(value);
        }
        i.bias = weight(field(from, "bias"));
        i.spans = weight(field(from, "spans"));
        i.reach = weight(field(from, "reach"));
        for (const char* name : {"index", "bank", "row", "base", "newest"}) {
            if (const py::object value = field(from, name); !value.is_none()) i.index = index(value);
        }
        if (const py::object value = field(from, "position"); !value.is_none()) i.position = index(value);
        for (const char* name : {"scale", "alpha"}) i.scale = real(field(from, name)).value_or(i.scale);
        for (const char* name : {"shift", "beta"}) i.shift = real(field(from, name)).value_or(i.shift);
        i.channel = number(field(from, "channel")).value_or(0);
        i.eps = real(field(from, "eps")).value_or(0.0);
    }

    Instruction instruction(const py::handle& from) {
        const auto op = from.attr("op").cast<std::string>();
        Instruction i;
        i.op = named(kOps, "op", op);
        if (i.op == Op::kLoop) {
            i.variable = variable(from.attr("var").cast<std::string>());
            i.count = number(from.attr("count"));
            return i;
        }
        if (i.op == Op::kWhen) {
            i.index = index(from.attr("index"));
            i.start = from.attr("start").cast<std::int64_t>();
            i.stop = number(from.attr("stop"));
            i.step = from.attr("step").cast<std::int64_t>();
            return i;
        }
        operands(i, from);
        if (const py::object name = field(from, "activation"); !name.is_none()) {
            i.function = named(kFunctions, op, name.cast<std::string>());
        }
        if (i.op == Op::kTappedLinear) i.taps = from.attr("taps").cast<std::vector<std::vector<std::int64_t>>>();
        if (i.op == Op::kGather) i.first_symbol = number(from.attr("first"));
        if (i.op == Op::kStore) i.first = from.attr("first").cast<double>();
        if (i.op == Op::kGate) i.gate = named(kGates, op, from.attr("function").cast<std::string>());
        if (i.op == Op::kNorm) i.norm = named(kNorms, op, from.attr("kind").cast<std::string>());
        if (i.op == Op::kCell) i.cell_kind = named(kCells, op, from.attr("kind").cast<std::string>());
        if (i.op == Op::kDraw) i.head = head(from.attr("head"));
        if (i.op == Op::kElementwise) {
            const auto name = from.attr("function").cast<std::string>();
            const auto special = kElementwise.find(name);
            if (special != kElementwise.end()) {
                i.elementwise = special->second;
            } else {
                i.function = named(kFunctions, op, name);
            }
        }
        if (i.op == Op::kAttention) {
            i.keys = buffers_.at(from.attr("keys").cast<std::string>());
            i.values = buffers_.at(from.attr("values").cast<std::string>());
            i.heads = from.attr("heads").cast<std::int64_t>();
            i.kv_heads = from.attr("kv_heads").cast<std::int64_t>();
            i.window = number(from.attr("window"));
            if (const py::object local = from.attr("local"); !local.is_none()) {
                const auto sizes = local.cast<std::array<std::int64_t, 3>>();
                i.local = {sizes[0], sizes[1], sizes[2]};
            }
        }
        return i;
    }

    std::map<std::string, int> weights_;
    std::map<std::string, int> buffers_;
    std::map<std::string, int> variables_;
};

}  // namespace

Program read_program(const py::object& program, const py::dict& weights) {
    return Reader().program(program, weights);
}

}  // namespace fastar
