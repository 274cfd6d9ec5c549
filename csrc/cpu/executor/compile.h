// Instructions into steps.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "cpu/executor/odds.h"
#include "cpu/executor/places.h"
#include "cpu/executor/steps.h"

namespace fastar::cpu {

// The plan's own copies of weights: packed matrices, and tables as they are. Each is kept once, however often it is
// used.
class WeightStore {
  public:
    WeightStore(const Program& program, Precision precision);

    // [.., outputs, inputs]: the last two dimensions after `banks` are flattened into inputs where taps are a third.
    std::shared_ptr<const Matrix> matrix(int weight, std::int64_t banks, std::int64_t outputs, std::int64_t inputs,
                                         bool by_rows);
    const float* floats(int weight);
    const std::int32_t* integers(int weight);
    // Rows of `width` numbers, each changed, in rows of `to`. Not shared between uses.
    const float* padded(int weight, std::int64_t width, std::int64_t to, float rest,
                        const std::function<float(float)>& change);
    std::size_t bytes() const;

  private:
    const Weight& weight(int number) const { return program_.weights[static_cast<std::size_t>(number)]; }

    const Program& program_;
    Precision precision_;
    WeightArena arena_;
    std::map<std::pair<int, bool>, std::shared_ptr<const Matrix>> matrices_;
    std::map<int, const void*> tables_;
};

class Compiler {
  public:
    Compiler(const Program& program, const Layout& layout, WeightStore& store)
        : program_(program), layout_(layout), store_(store) {}

    std::unique_ptr<Step> step(const Instruction& instruction);

    // The two instructions as one step, or null where they do not fit together.
    std::unique_ptr<Step> fused(const Instruction& first, const Instruction& second);

    // The three instructions of a loop whose state is kept as odds.
    std::unique_ptr<Step> odds(const OddsLoop& loop);

  private:
    Place place(const Ref& ref) const { return layout_.resolve(program_, ref); }
    std::optional<Place> place(const std::optional<Ref>& ref) const;
    Place whole(int buffer) const;
    std::int64_t elements(int weight) const;

    std::unique_ptr<Step> matrix(const Instruction& i);
    void fill(MatrixStep& s, const Instruction& i);
    std::unique_ptr<Step> gated_matrix(const Instruction& matrix, const Instruction& gate);
    std::unique_ptr<Step> accumulate_readout(const Instruction& first, const Instruction& second);
    std::unique_ptr<Step> gather(const Instruction& i);
    std::unique_ptr<AccumulateStep> accumulate(const Instruction& i);
    std::unique_ptr<Step> gate(const Instruction& i);
    std::unique_ptr<Step> elementwise(const Instruction& i);
    std::unique_ptr<Step> norm(const Instruction& i);
    std::unique_ptr<Step> attention(const Instruction& i);
    std::unique_ptr<Step> cell(const Instruction& i);
    std::unique_ptr<DrawStep> draw(const Instruction& i);
    std::unique_ptr<Step> store(const Instruction& i);
    std::unique_ptr<Step> emit(const Instruction& i);

    const Program& program_;
    const Layout& layout_;
    WeightStore& store_;
};

}  // namespace fastar::cpu
