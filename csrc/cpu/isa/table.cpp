// The table of this vector level. Only dispatch.cpp refers to it.
#include "cpu/isa/gather.h"
#include "cpu/isa/heads.h"
#include "cpu/isa/nade.h"
#include "cpu/kernel_table.h"

namespace fastar::cpu::FASTAR_ISA {

extern const KernelTable table;

const KernelTable table{
    .gather_16 = gather<std::uint16_t>,
    .gather_32 = gather<std::uint32_t>,
    .masked_copy_16 = masked_copy<std::uint16_t>,
    .masked_copy_32 = masked_copy<std::uint32_t>,
    .nade_forward = nade_forward,
    .nade_logit_gradient = nade_logit_gradient,
    .nade_backward = nade_backward,
    .heads_forward = heads_forward,
    .heads_backward = heads_backward,
    .hash = hash,
};

}  // namespace fastar::cpu::FASTAR_ISA
