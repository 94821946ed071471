// Hadamard matrices by the constructions of Paley (1933), Williamson (1944) and Goethals and Seidel
// (1967), from the table below. Rotated checkpoints depend on every sign. The matrices of order 12,
// 20, 28 and 40 are those of the Dao-AILab kernels; those of 36, 52, 60, 108, 140, 156 and 172 are
// those of QuIP# and QuaRot.
#include "orders.h"

#include <mutex>
#include <vector>

namespace fastfood {

namespace {

enum class Construction {
  PaleyOne,       // q = K - 1, a prime
  PaleyTwo,       // q = K / 2 - 1, a prime; four blocks
  PaleyTwoPairs,  // the same with rows i and K / 2 + i of the blocks side by side, columns too
  Doubled,        // H_2 (x) the matrix of order K / 2
  Williamson,     // four symmetric circulants, whose rows are given up to the middle
  Turyn,          // four sequences of lengths t, t, t and t - 1, K = 4 (3 t - 1)
};

struct Description {
  int64_t K;
  Construction construction;
  const char* rows[4];
};

// Paley where it is a prime that is asked for. The rows of orders 92, 100 and 116 are the first
// that a search over all symmetric ones met; Turyn-type sequences of length 36 are due to
// Kharaghani and Tayfeh-Rezaie (2005).
const Description kDescriptions[] = {
    {12, Construction::PaleyTwoPairs, {}},
    {20, Construction::Williamson, {"+--", "+--", "++-", "+-+"}},
    {28, Construction::Williamson, {"+---", "++--", "+-+-", "+--+"}},
    {36, Construction::PaleyTwo, {}},
    {40, Construction::Doubled, {}},
    {44, Construction::PaleyOne, {}},
    {52, Construction::Williamson, {"+-+--++", "+---+++", "++-+--+", "+----+-"}},
    {60, Construction::PaleyOne, {}},
    {68, Construction::PaleyOne, {}},
    {76, Construction::PaleyTwo, {}},
    {84, Construction::PaleyOne, {}},
    {92,
     Construction::Williamson,
     {"+--+-+-+++++", "+--++-+-+-++", "+++---++--++", "+--+--+++---"}},
    {100,
     Construction::Williamson,
     {"+-++---++++++", "+-+---+---+++", "+-+--+-++--++", "++--+--++-+--"}},
    {108, Construction::PaleyOne, {}},
    {116,
     Construction::Williamson,
     {"+--+-++---+++++", "+-+-++---+--+++", "+++-++-++++---+", "+-+-+----++-++-"}},
    {124, Construction::PaleyTwo, {}},
    {132, Construction::PaleyOne, {}},
    {140, Construction::PaleyOne, {}},
    {148, Construction::PaleyTwo, {}},
    {156,
     Construction::Williamson,
     {"+++--+-+-----+--++--", "++++---+--++----+-+-", "+++--++-+---+-+--+--",
      "+---++-+-+-----+++-+"}},
    {164, Construction::PaleyOne, {}},
    {172,
     Construction::Williamson,
     {"+---++--++++-+-+++-++-", "++-++++++----+-+--++-+", "+++-+-++--+-+-++++-+--",
      "++---++++-+--+--++----"}},
    {428,
     Construction::Turyn,
     {"+++----++-+-+-----++++-++-++++----+-", "+-+++++--+-+--+--++--++++-++++---++-",
      "+-+++++-+--++++-+++-++--+++-+--+---+", "+++-+-----++--+-+++--+-+-+++-++++-+"}},
};

int sign_of(char c) { return c == '+' ? 1 : -1; }

// A square matrix of signs, row by row.
struct Signs {
  int64_t K;
  std::vector<float> values;
  explicit Signs(int64_t order) : K(order), values(static_cast<size_t>(order * order)) {}
  float& at(int64_t a, int64_t b) { return values[static_cast<size_t>(a * K + b)]; }
};

// chi[i]: 0 for i = 0, 1 for the squares modulo the prime q, else -1.
std::vector<int> quadratic_character(int64_t q) {
  std::vector<int> chi(static_cast<size_t>(q), -1);
  chi[0] = 0;
  for (int64_t i = 1; i < q; ++i) chi[static_cast<size_t>(i * i % q)] = 1;
  return chi;
}

// The first row is +--...-, the first column +, and behind them lies I - Q, Q[i][j] = chi(j - i).
void fill_paley_one(Signs& h) {
  const int64_t q = h.K - 1;
  const std::vector<int> chi = quadratic_character(q);
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const int inner = a == b ? 1 : -chi[static_cast<size_t>((b - a + q) % q)];
      h.at(a, b) = static_cast<float>(b == 0 ? 1 : a == 0 ? -1 : inner);
    }
}

// S + I, S - I over S - I, -S - I, where S is Q with a row and a column of ones before it and a
// zero diagonal.
void fill_paley_two(Signs& h, bool pairs) {
  const int64_t m = h.K / 2, q = m - 1;
  const std::vector<int> chi = quadratic_character(q);
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const int64_t i = a % m, j = b % m, row = a / m, column = b / m;
      const int s = i == 0 || j == 0 ? 1 : chi[static_cast<size_t>((j - i + q) % q)];
      const bool negative = i == j ? row + column > 0 : (row * column == 1) != (s < 0);
      h.at(pairs ? 2 * i + row : a, pairs ? 2 * j + column : b) = negative ? -1.0f : 1.0f;
    }
}

// Block (row, column) of Williamson's array is kSign times circulant number row ^ column.
constexpr int kBlockSign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};

void fill_williamson(Signs& h, const char* const rows[4]) {
  const int64_t p = h.K / 4;
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const int64_t step = (b - a + h.K) % p, from_start = step < p - step ? step : p - step;
      h.at(a, b) = static_cast<float>(kBlockSign[a / p][b / p] *
                                      sign_of(rows[(a / p) ^ (b / p)][from_start]));
    }
}

// The array of Goethals and Seidel over four circulants of sums and differences of T-sequences,
// which are Z, W behind it, and behind both half the sum and half the difference of X and Y.
void fill_turyn(Signs& h, const char* const rows[4]) {
  const int64_t p = h.K / 4, t = (p + 1) / 3;
  std::vector<int> circulant[4];
  for (int k = 0; k < 4; ++k)
    for (int64_t i = 0; i < p; ++i) {
      const bool z = i < t, w = !z && i < 2 * t - 1;
      const int64_t j = i - (2 * t - 1);
      const bool equal = z || w || rows[0][j] == rows[1][j];
      const int sequence = z ? 0 : w ? 1 : equal ? 2 : 3;
      const int value = sign_of(z ? rows[2][i] : w ? rows[3][i - t] : rows[0][j]);
      circulant[k].push_back(__builtin_popcount(static_cast<unsigned>(k & sequence)) % 2 ? -value
                                                                                         : value);
    }
  // Off the diagonal the columns of a block run backwards, and off the first row and column the
  // circulant is transposed.
  constexpr int sign[4][4] = {{1, 1, 1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}, {-1, 1, -1, 1}};
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const int64_t row = a / p, column = b / p, i = a % p, j = b % p;
      const int64_t to = row == column ? j : p - 1 - j;
      const bool transposed = row != column && row > 0 && column > 0;
      const int64_t step = (transposed ? i - to + p : to - i + p) % p;
      h.at(a, b) = static_cast<float>(sign[row][column] *
                                      circulant[row ^ column][static_cast<size_t>(step)]);
    }
}

Signs make(const Description& description) {
  Signs h(description.K);
  switch (description.construction) {
    case Construction::PaleyOne: fill_paley_one(h); break;
    case Construction::PaleyTwo: fill_paley_two(h, false); break;
    case Construction::PaleyTwoPairs: fill_paley_two(h, true); break;
    case Construction::Williamson: fill_williamson(h, description.rows); break;
    case Construction::Turyn: fill_turyn(h, description.rows); break;
    case Construction::Doubled: {
      Signs half(description.K / 2);
      fill_paley_one(half);
      for (int64_t a = 0; a < h.K; ++a)
        for (int64_t b = 0; b < h.K; ++b)
          h.at(a, b) = half.at(a % half.K, b % half.K) * (a >= half.K && b >= half.K ? -1 : 1);
    }
  }
  return h;
}

// A matrix with the memory that it points to.
struct Made {
  std::once_flag once;
  std::vector<uint32_t> bits;
  SignMatrix matrix;
};

void fill(const Description& description, bool transpose, Made& made) {
  Signs h = make(description);
  const int64_t K = h.K, words = (K + 31) / 32;
  made.bits.resize(static_cast<size_t>(K * words));
  for (int64_t a = 0; a < K; ++a)
    for (int64_t b = 0; b < K; ++b) {
      const float sign = transpose ? h.at(b, a) : h.at(a, b);
      if (sign < 0) made.bits[static_cast<size_t>(a * words + b / 32)] |= uint32_t{1} << b % 32;
    }
  made.matrix = {K, words, made.bits.data()};
}

constexpr int kOrders = sizeof(kDescriptions) / sizeof(kDescriptions[0]);

}  // namespace

const SignMatrix* sign_matrix(int64_t K, bool transpose) {
  static Made* const all = new Made[2 * kOrders];  // kept, for threads that outlive the library
  for (int i = 0; i < kOrders; ++i) {
    if (kDescriptions[i].K != K) continue;
    Made& made = all[2 * i + (transpose ? 1 : 0)];
    std::call_once(made.once, [&] { fill(kDescriptions[i], transpose, made); });
    return &made.matrix;
  }
  return nullptr;
}

bool factor(int64_t K, bool transpose, const SignMatrix* factors[2]) {
  factors[0] = sign_matrix(K, transpose);
  factors[1] = nullptr;
  if (factors[0]) return true;
  for (int i = kOrders - 1; i >= 0; --i) {  // the nearer to the square root, the smaller the sum
    const int64_t small = kDescriptions[i].K;
    if (K % small != 0 || K / small < small) continue;
    factors[0] = sign_matrix(K / small, transpose);
    factors[1] = sign_matrix(small, transpose);
    if (factors[0]) return true;
  }
  return false;
}

}  // namespace fastfood
