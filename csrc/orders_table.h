// The Hadamard matrices that are stored as strings of signs: the first rows of four symmetric
// circulants, T-sequences, or signs for the orbits of a multiplication.
#pragma once

#include <cstdint>

namespace fastfood {

enum class Construction {
  PaleyOne,       // Paley's first, with q = K - 1 the power of a prime
  PaleyTwo,       // Paley's second, with q = K / 2 - 1 the power of a prime; four blocks
  PaleyTwoPairs,  // the same, rows i of the upper and lower blocks side by side, columns too
  Doubled,        // H_2 (x) Paley's first of order K / 2
  Miyamoto,       // from q = K / 4, the power of a prime, and a matrix of order q - 1
  Williamson,     // four symmetric circulants; rows[0 ... 3]: first rows up to the middle
  Sequences,      // rows[0]: four T-sequences; rows[1 ... 4]: four of Williamson's rows
  Orbits,         // four circulants whose rows are constant on the orbits of i -> step i
};

struct Description {
  int64_t K = 0;
  Construction construction = Construction::PaleyOne;
  const char* rows[5] = {};  // in T-sequences A ... D is + of one of the four, a ... d is -
  int64_t step = 0;  // of Orbits; rows have a sign for each orbit, in the order of least members
};

// The orders whose construction describe() of orders.cpp does not derive from K. The rows of orders
// 92, 100 and 116 are the first that a search over all symmetric ones found. T-sequences of lengths
// 47, 59, 71, 83 and 107 come from the Turyn-type sequences of Kharaghani and Tayfeh-Rezaie (2005)
// and of Best et al. (2013), shorter ones from Golay's pairs. The orbits are supplementary
// difference sets of Djokovic (1992 to 2008) and, for 251, Djokovic, Golubitsky and Kotsireas
// (2014).
const Description kDescriptions[] = {
    {12, Construction::PaleyTwoPairs, {}},
    {20, Construction::Williamson, {"+--", "+--", "++-", "+-+"}},
    {28, Construction::Williamson, {"+---", "++--", "+-+-", "+--+"}},
    {40, Construction::Doubled, {}},
    {52, Construction::Williamson, {"+-+--++", "+---+++", "++-+--+", "+----+-"}},
    {92,
     Construction::Williamson,
     {"+--+-+-+++++", "+--++-+-+-++", "+++---++--++", "+--+--+++---"}},
    {100,
     Construction::Williamson,
     {"+-++---++++++", "+-+---+---+++", "+-+--+-++--++", "++--+--++-+--"}},
    {116,
     Construction::Williamson,
     {"+--+-++---+++++", "+-+-++---+--+++", "+++-++-++++---+", "+-+-+----++-++-"}},
    {156,
     Construction::Williamson,
     {"+++--+-+-----+--++--", "++++---+--++----+-+-", "+++--++-+---+-+--+--",
      "+---++-+-+-----+++-+"}},
    {172,
     Construction::Williamson,
     {"+---++--++++-+-+++-++-", "++-++++++----+-+--++-+", "+++-+-++--+-+-++++-+--",
      "++---++++-+--+--++----"}},
    {188,
     Construction::Sequences,
     {"AAAAaaAaAaAaAAaaBBBBbbBBbBbBbbBCCCCDDdcDCccDDDC", "+", "+", "+", "+"}},
    {236,
     Construction::Sequences,
     {"AAAAaAaaaaAAaaAaaAAaBBBBbBBBbbbBbBBbBbbCCCCCdcCDCdcDdCdDdDC", "+", "+", "+", "+"}},
    {260,
     Construction::Orbits,
     {"++++-----+-+--+-+-++-+-++", "+-+++++--++-+-+----++++++", "++--+---++--+-+-+-+-+-+++",
      "++++++-++------+----++-+-"},
     16},
    {268,
     Construction::Orbits,
     {"+-++-+-+--+---+--++++-+", "+---+++-++-+-++++-++---", "++++-+-+---++-+++--++--",
      "++----+++-++-+++--++-++"},
     29},
    {372,
     Construction::Orbits,
     {"+-+--+--++-+-++--++-+", "++--++++-+++-++-+----", "++----+++-+-++-+++--+",
      "+++--++--++-+-----+++"},
     4},
    {412,
     Construction::Orbits,
     {"+++---+--+----+++-+-+-+-++-+-++--++", "++-+++----++------+--+-++-+-+++++-+",
      "+---+++-+--+-+----+-+++-+--+---+-++", "+----+++++---+----++++-+-+------+-+"},
     46},
    {428,
     Construction::Sequences,
     {"AaAAAAAaAaaAAAAaAAAaAAaaAAAaAaaAaaaABBBbBbbbbbBBbbBbBBBbbBbBbBBBbBBBBbBCDCddddDDdDdDcdccdCDD"
      "CdCCcCCCCcccdCc",
      "+", "+", "+", "+"}},
    {476, Construction::Sequences, {"AAAaAAaABBBbbbBbC", "+---", "++--", "+-+-", "+--+"}},
    {508,
     Construction::Orbits,
     {"+-+++------+++-+-++", "+-++-+----++-+-++--", "+-+-+-++-+-+-+-+---", "+++--+-++----+++---"},
     2},
    {532,
     Construction::Orbits,
     {"++-++-++--+----++", "+++-+++-----+++--", "+-+++--++++-+----", "+--+++-+---+--+--"},
     4},
    {604,
     Construction::Orbits,
     {"+-++--+++--+++-+-+-+-+--+-+--+-", "++-+-+++++-++-++-+-----+++---++",
      "+--------+++++++--++-+---++-+-+", "+++-++-+----+++-++---++-+-+----"},
     8},
    {612, Construction::Sequences, {"AAAaAAaABBBbbbBbC", "+---+", "+--+-", "+-+--", "++---"}},
    {652,
     Construction::Orbits,
     {"+--+--+--++-+++-++-", "+-++++++--++-----++", "+-++-+-+++++----+--", "+++++--++----++----"},
     38},
    {732,
     Construction::Sequences,
     {"ABC", "++--+--++--+-+-++++--+-----+---", "++--+--++--+-+-++++--+-----+---",
      "+---+-+-++++---++--+-++-+---+++", "++++-+-+----+++--++-+--+-+++---"}},
    {756, Construction::Sequences, {"BBBbbBBBbBbbabaAaAAaaAaaaaC", "+---", "++--", "+-+-", "+--+"}},
    {764,
     Construction::Orbits,
     {"++++++--+++-++++-+++-----++-----+--++-+", "+++-++-+--++++---+++-+-+++++--+--+-----",
      "+-+-+-++++-+-++-+-++--+--++++--++-----+", "+++-+--++-+---+-+--++++-++--++---+---+-"},
     39},
    {836,
     Construction::Sequences,
     {"AAaAbAbbBBC", "++--+++-+-", "++-++--+-+", "+-+---++++", "++--+-++++"}},
    {852,
     Construction::Sequences,
     {"AAAAAaaAaAaaaAAaaAAAaAaaBBBBBbbBBBbBbBBbBBbbBbBCCCCCdDcCcdCdcDdDccdddDC", "++", "+-", "+-",
      "+-"}},
    {876,
     Construction::Orbits,
     {"++++--+-++++-+-+--+-+-----+", "++-+-----++-+++-+-++-++--++", "+-++-+-+--+++--+-++-+-+--+-",
      "+----++--++-+-++-+-+-+++--+"},
     4},
    {940,
     Construction::Sequences,
     {"AAAAaaAaAaAaAAaaBBBBbbBBbBbBbbBCCCCDDdcDCccDDDC", "+--", "+--", "++-", "+-+"}},
    {956,
     Construction::Orbits,
     {"+----+++-+-++-+-+++++----+--+++-++-", "+-+++++-++---+++--+-++-----+-+---++",
      "++--+--+++++-----+-+--++--++++++---", "+--+--++++-+---++--+-++---+--+--+-+"},
     10},
    {980,
     Construction::Sequences,
     {"AABbC", "++++-++-+---++-+++---++-+", "++++-++-+---++-+++---++-+",
      "+----+-++++--+-+++-+-+++-", "+++++-+----++-+---+-+---+"}},
    {988,
     Construction::Orbits,
     {"+---++--+-++--+-+-++++++++-----", "+--+++++---+------+++++-++++-++",
      "++--+++++--+--+-++++-+--+-+----", "+-+-+-+-+--++----++--+++++-+++-"},
     9},
    {996,
     Construction::Sequences,
     {"AAAAAaaAAaaaAAaaAaaAaAaAaaAaBBBBBBbBbBbBbBBbbBbBBbbbBBbCCCCCDDcccCcDCDCdddDDCCDddDC", "++",
      "+-", "+-", "+-"}},
    {1004,
     Construction::Orbits,
     {"++-+----+------+++-+-++++-+++-++-+-+-+-----+++++-+-",
      "++-+++-++++-+++------++-++--++---+-+---++-+-++--++-",
      "+--+-+-++---++-+--+-++++++-+--+++---+++--++-++-++--",
      "++--+-+--+++++--++--+-+--+++++-++-++-+-----++-+-++-"},
     20},
    {1012,
     Construction::Sequences,
     {"AAaAbAbbBBC", "+--+-+-+++++", "+--++-+-+-++", "+++---++--++", "+--+--+++---"}},
};

}  // namespace fastfood
