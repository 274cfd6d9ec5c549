// Applies a function of vector_math.h, named by the first argument, to the floats on standard input.
#include "cpu/isa/vector_math.h"

#include <cstdio>
#include <string>
#include <vector>

namespace isa = fastar::cpu::FASTAR_ISA;

namespace {

template <typename Function>
void apply(std::vector<float>& values, Function function) {
    const auto count = static_cast<std::int64_t>(values.size());
    for (std::int64_t i = 0; i < count; i += isa::kLanes) {
        isa::store_upto(&values[i], function(isa::load_upto(&values[i], count - i)), count - i);
    }
}

}  // namespace

int main(int, char** arguments) {
    std::vector<float> values;
    for (float value; std::fread(&value, sizeof value, 1, stdin) == 1;) values.push_back(value);
    const std::string name = arguments[1];
    if (name == "exp") {
        apply(values, [](isa::Floats x) { return isa::exp(x); });
    } else if (name == "sigmoid") {
        apply(values, [](isa::Floats x) { return isa::sigmoid(x); });
    } else if (name == "tanh") {
        apply(values, [](isa::Floats x) { return isa::tanh(x); });
    } else if (name == "log") {
        apply(values, [](isa::Floats x) { return isa::log(x); });
    } else if (name == "log1p") {
        apply(values, [](isa::Floats x) { return isa::log1p(x); });
    } else if (name == "softplus") {
        apply(values, [](isa::Floats x) { return isa::softplus(x); });
    } else if (name == "sum") {
        apply(values, [](isa::Floats x) { return isa::splat(isa::sum(x)); });
    } else {
        return 1;
    }
    return std::fwrite(values.data(), sizeof(float), values.size(), stdout) == values.size() ? 0 : 1;
}
