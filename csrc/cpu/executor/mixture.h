// Laws with a mean and a scale, alone or mixed, in float64: docs/step-programs.md, "Draws".
#pragma once

#include <cstdint>

#include "cpu/executor/program.h"

namespace fastar::cpu {

// Parameters of one draw, as the program left them.
struct MixtureParameters {
    const float* params;
    double* logits;  // scratch of 2 * components
};

// Bounds of a draw's channels, null where there are none.
struct Bounds {
    const double* low;
    const double* high;
};

// Values of head.channels into `value`, from 1 + channels (a normal: 1) uniforms. False: no component can be chosen.
bool draw_mixture(const Head& head, const MixtureParameters& p, const double* u, double temperature, bool greedy,
                  Bounds support, bool integer, double* value);

double mixture_log_prob(const Head& head, const MixtureParameters& p, const double* value, bool integer);

}  // namespace fastar::cpu
