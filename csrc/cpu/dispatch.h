// Which of the vector levels compiled into this library fits the CPU that runs it.
#pragma once

#include <string>
#include <vector>

#include "cpu/kernel_table.h"

namespace fastar::cpu {

// Names of the levels compiled in, lowest first.
std::vector<std::string> levels_built();

// Names of those that this CPU can run, lowest first; never empty.
std::vector<std::string> levels_usable();

// "intel", "amd" or "other".
std::string vendor();

// The level in use: the highest usable one, unless select_level chose another.
const std::string& level();

// Throws std::invalid_argument for a level that is not usable here.
void select_level(const std::string& name);

// The kernels of the level in use.
const KernelTable& kernels();

}  // namespace fastar::cpu
