// The executor's kernels at one vector level; what each computes: cpu/executor/kernels.h.
#pragma once

#include "cpu/executor/kernels.h"

namespace fastar::cpu::FASTAR_ISA {

void matrix(Storage storage, const MatrixArguments& a);
void unary(Function f, const float* a, float alpha, float beta, float* out, std::int64_t n);
void clamp(const float* a, float low, float high, float* out, std::int64_t n);
void add(const float* a, float alpha, const float* b, float* out, std::int64_t n);
void multiply(const float* a, float alpha, const float* b, float* out, std::int64_t n);
void gate(GateFunction f, const float* a, const float* b, float* out, std::int64_t n);
void norm(const NormArguments& a);
void cell(const CellArguments& a);
void attention(const AttentionArguments& a);
void accumulate(float* a, float x, const float* table, std::int64_t n);
float accumulate_dot(float* a, float x, const float* table, Function f, const float* weights, std::int64_t n);
void toss(OddsRow* rows, std::int64_t count, const TossArguments& a);
void balance_odds(float* odds, float* powers, std::int64_t n);
void coin_bars(std::uint64_t seed, std::uint64_t row, std::uint32_t position, double temperature, float* out,
               std::int64_t n);
void coins(const float* logits, const float* bars, double* values, float* log_probs, std::int64_t n);
float largest(const float* a, std::int64_t n);
void exponentials(const float* z, float shift, float* out, double* sums, std::int64_t n);

}  // namespace fastar::cpu::FASTAR_ISA
