// Which cached positions an attention sees: stretches of equal length, evenly apart.
//
// constexpr for the same reason as common/philox.h: device code may call it.
#pragma once

namespace fastar {

// Pixels of an image `width` wide: the own row and `rows` above, at most `columns` to either side. width 0: no image.
template <typename Integer>
struct Neighbourhood {
    Integer rows = 0;
    Integer columns = 0;
    Integer width = 0;
};

template <typename Integer>
struct Seen {
    Integer first;  // the earliest position
    Integer span;   // positions side by side
    Integer apart;  // from the beginning of a stretch to that of the next
    Integer count;  // in all; the last stretch ends with the newest position

    // The j-th position seen, 0 <= j < count.
    constexpr Integer at(Integer j) const { return first + (span == count ? j : j / span * apart + j % span); }
};

// window 0: all. Of an image, the rows above lend as many pixels each, and the own row those up to the newest.
template <typename Integer>
constexpr Seen<Integer> seen(Integer newest, Integer window, const Neighbourhood<Integer>& local) {
    if (local.width == 0) {
        const Integer first = window > 0 && newest >= window ? newest - window + 1 : 0;
        const Integer count = newest - first + 1;
        return {first, count, count, count};
    }
    const Integer row = newest / local.width;
    const Integer column = newest % local.width;
    const Integer room = local.width - 1 - column;
    const Integer above = local.rows < row ? local.rows : row;
    const Integer left = local.columns < column ? local.columns : column;
    const Integer right = local.columns < room ? local.columns : room;
    const Integer span = left + 1 + right;
    return {newest - above * local.width - left, span, local.width, above * span + left + 1};
}

}  // namespace fastar
