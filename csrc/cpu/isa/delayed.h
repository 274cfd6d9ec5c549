// Delayed sums at one vector level.
#pragma once

#include "cpu/delayed.h"

namespace fastar::cpu::FASTAR_ISA {

DelayedExtent delayed_extent(const DelayedSum& sum);
void pack_delayed(const DelayedSum& sum, std::int64_t begin, std::int64_t end, void* packed);
void delayed_sum(const DelayedSum& sum, const void* packed, std::int64_t begin, std::int64_t end);
ProductsExtent products_extent(const DelayedProducts& products);
void delayed_products(const DelayedProducts& products, const ProductsExtent& extent, float* partial, std::int64_t begin,
                      std::int64_t end);
void sum_products(const DelayedProducts& products, const ProductsExtent& extent, const float* partial,
                  std::int64_t begin, std::int64_t end);
void depthwise_sum(const DepthwiseSum& sum, std::int64_t begin, std::int64_t end);
void depthwise_gradients(const DepthwiseGradients& gradients, std::int64_t begin, std::int64_t end);

}  // namespace fastar::cpu::FASTAR_ISA
