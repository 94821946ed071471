// Hadamard matrices of every order K = 4 (2 j + 1) up to 1,020 that is known, by the constructions
// of Paley (1933), Williamson (1944), Goethals and Seidel (1967) and Miyamoto (1991). Rotated
// checkpoints depend on every sign. The matrices of order 12, 20, 28 and 40 are those of the
// Dao-AILab kernels; those of 36, 52, 60, 108, 140, 156 and 172 are those of QuIP# and QuaRot.
#include "orders.h"

#include <cstring>
#include <mutex>
#include <vector>

#include "orders_table.h"

namespace fastfood {

namespace {

int sign_of(char c) { return c == '+' ? 1 : -1; }

// A square matrix of signs, row by row.
struct Signs {
  int64_t K;
  std::vector<int8_t> values;
  explicit Signs(int64_t order) : K(order), values(static_cast<size_t>(order * order)) {}
  int8_t& at(int64_t a, int64_t b) { return values[static_cast<size_t>(a * K + b)]; }
};

// --- Finite fields -------------------------------------------------------------------------------

int64_t least_divisor(int64_t q) {
  int64_t p = 2;
  while (q % p != 0) ++p;
  return p;
}

bool is_prime_power(int64_t q) {
  if (q < 2) return false;
  const int64_t p = least_divisor(q);
  while (q % p == 0) q /= p;
  return q == 1;
}

// The field of q = p^e elements: polynomials in x over the integers modulo p. The base-p digits of
// an element's number are its coefficients. x^e is replaced by the element of the least number c
// for which x is primitive, that is, for which the powers of x are all elements but zero.
class Field {
 public:
  explicit Field(int64_t q) : q_(q), p_(least_divisor(q)) {
    for (int64_t c = 1; !fill(c);) ++c;
  }
  // The quadratic character of j - i: 0 for zero, 1 for squares (the even powers of x), else -1.
  int chi(int64_t i, int64_t j) const { return chi_[static_cast<size_t>(add(j, i, p_ - 1))]; }

 private:
  // a + factor * b, digit by digit modulo p.
  int64_t add(int64_t a, int64_t b, int64_t factor) const {
    int64_t sum = 0;
    for (int64_t place = 1; place < q_; place *= p_)
      sum += (a / place + factor * (b / place)) % p_ * place;
    return sum;
  }
  // Fills chi_ by running through the powers of x, with x^e = c; false if x is not primitive then.
  bool fill(int64_t c) {
    chi_.assign(static_cast<size_t>(q_), 0);
    const int64_t top = q_ / p_;
    int64_t power = 1, count = 0;
    for (int sign = 1; chi_[static_cast<size_t>(power)] == 0 && power != 0; sign = -sign, ++count) {
      chi_[static_cast<size_t>(power)] = sign;
      power = add(power % top * p_, c, power / top);
    }
    return count == q_ - 1;
  }
  int64_t q_, p_;
  std::vector<int> chi_;
};

// --- Constructions -------------------------------------------------------------------------------

// Paley's first construction: row 0 is + - - ... -, column 0 is all +, and the rest is I - Q, where
// Q[i][j] = chi(j - i).
void fill_paley_one(Signs& h) {
  const Field field(h.K - 1);
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b)
      h.at(a, b) = static_cast<int8_t>(b == 0   ? 1
                                       : a == 0 ? -1
                                       : a == b ? 1
                                                : -field.chi(a - 1, b - 1));
}

// Paley's second construction: the blocks S + I, S - I above S - I, -S - I, where S is Q with a row
// and a column of ones before it and a zero diagonal. With `pairs`, row i of the upper and of the
// lower blocks stand side by side, and columns likewise.
void fill_paley_two(Signs& h, bool pairs) {
  const int64_t m = h.K / 2;
  const Field field(m - 1);
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const int64_t i = a % m, j = b % m, row = a / m, column = b / m;
      const int s = i == 0 || j == 0 ? 1 : field.chi(i - 1, j - 1);
      const bool negative = i == j ? row + column > 0 : (row * column == 1) != (s < 0);
      h.at(pairs ? 2 * i + row : a, pairs ? 2 * j + column : b) = negative ? -1 : 1;
    }
}

// The Kronecker product of Sylvester's matrix of order K / half.K with `half`.
void fill_doubled(Signs& h, Signs half) {
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const bool negative = __builtin_parityll(static_cast<uint64_t>((a / half.K) & (b / half.K)));
      h.at(a, b) = static_cast<int8_t>(negative ? -half.at(a % half.K, b % half.K)
                                                : half.at(a % half.K, b % half.K));
    }
}

// Williamson's array: block (row, column) is kBlockSign[row][column] times circulant row ^ column.
constexpr int kBlockSign[4][4] = {{1, 1, 1, 1}, {-1, 1, -1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}};

// Entry i of the first row of a symmetric circulant of order p; `row` holds its signs up to the
// middle.
int williamson_sign(const char* row, int64_t i, int64_t p) {
  return sign_of(row[i < p - i ? i : p - i]);
}

void fill_williamson(Signs& h, const char* const rows[4]) {
  const int64_t p = h.K / 4;
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b)
      h.at(a, b) =
          static_cast<int8_t>(kBlockSign[a / p][b / p] *
                              williamson_sign(rows[(a / p) ^ (b / p)], (b - a + h.K) % p, p));
}

// The signs of the blocks in the array of Goethals and Seidel, and in Miyamoto's.
constexpr int kArraySign[4][4] = {{1, 1, 1, 1}, {-1, 1, 1, -1}, {-1, -1, 1, 1}, {-1, 1, -1, 1}};

using FirstRows = std::vector<int>[4];  // of four circulants

// The array of Goethals and Seidel. In blocks off the diagonal the columns of a circulant run
// backwards; of these, blocks outside the first row and column hold the transposed circulant.
void fill_goethals_seidel(Signs& h, const FirstRows& rows) {
  const int64_t p = h.K / 4;
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const int64_t row = a / p, column = b / p, i = a % p, j = b % p;
      const int64_t to = row == column ? j : p - 1 - j;
      const bool transposed = row != column && row > 0 && column > 0;
      const int64_t step = (transposed ? i - to + p : to - i + p) % p;
      h.at(a, b) = static_cast<int8_t>(kArraySign[row][column] *
                                       rows[row ^ column][static_cast<size_t>(step)]);
    }
}

// Cooper and Wallis (1972): from T-sequences of length t, of which exactly one is not zero at each
// index, and from Williamson's four rows, of w entries each. Entry i of circulant k is the product
// of three signs: of the T-sequence that is not zero at i % t, there; of that sequence in row k of
// H_4; and entry i % w of the row of Williamson's that belongs to k and that sequence.
void fill_sequences(Signs& h, const char* const rows[5]) {
  const int64_t t = static_cast<int64_t>(std::strlen(rows[0])), w = h.K / 4 / t;
  FirstRows circulants;
  for (int k = 0; k < 4; ++k)
    for (int64_t i = 0; i < t * w; ++i) {
      const char letter = rows[0][i % t];
      const bool negative = letter >= 'a';
      const int sequence = letter - (negative ? 'a' : 'A');
      const bool odd = __builtin_parity(static_cast<unsigned>(k & sequence));
      const char* row = rows[1 + ((-k & 3) ^ sequence)];
      circulants[k].push_back(williamson_sign(row, i % w, w) * (odd != negative ? -1 : 1));
    }
  fill_goethals_seidel(h, circulants);
}

// Four circulants whose first rows are constant on the orbits of i -> i * multiplier modulo p.
// rows[k] has one sign for each orbit, in the order of their least members.
void fill_orbits(Signs& h, const char* const rows[4], int64_t multiplier) {
  const int64_t p = h.K / 4;
  FirstRows circulants;
  for (int k = 0; k < 4; ++k) {
    std::vector<int>& row = circulants[k];
    row.assign(static_cast<size_t>(p), 0);
    const char* sign = rows[k];
    for (int64_t least = 0; least < p; ++least) {
      if (row[static_cast<size_t>(least)] != 0) continue;
      for (int64_t i = least; row[static_cast<size_t>(i)] == 0; i = i * multiplier % p)
        row[static_cast<size_t>(i)] = sign_of(*sign);
      ++sign;
    }
  }
  fill_goethals_seidel(h, circulants);
}

Signs make(const Description& description);
Description describe(int64_t K);

// Miyamoto's construction: four times four blocks of order q = 2 m + 1, each with a border of ones
// around the core U + V, U - V above U - V, U + V, of m x m matrices. Let a block have row (g, x)
// and column (g', y) of two bits each. If g = g', U is a quarter of Q, whose rows are the squares
// (x = 0) or the other elements (x = 1), and whose columns follow y alike; V is the identity if x =
// y, else zero. If g and g' differ, U is zero and V a quarter of a Hadamard matrix of order q - 1.
// Signs and transposes are in the code.
void fill_miyamoto(Signs& h) {
  const int64_t q = h.K / 4, m = (q - 1) / 2;
  const Field field(q);
  std::vector<int64_t> parts[2];
  for (int64_t i = 1; i < q; ++i) parts[field.chi(0, i) < 0].push_back(i);
  int64_t odd = q - 1;
  while (odd % 8 == 0) odd /= 2;
  Signs inner(q - 1);
  fill_doubled(inner, make(describe(odd)));
  const auto quarter = [&](int64_t x, int64_t u, int64_t y, int64_t v) {
    return inner.at(x * m + u, y * m + v) * (x > y ? -1 : 1);
  };
  const auto core = [&](int64_t row, int64_t column, int64_t i, int64_t j) {
    const int64_t x = row % 2, u = i % m, y = column % 2, v = j % m;
    const int equal = i / m == j / m ? 1 : -1;
    if (row / 2 < column / 2) return equal * quarter(x, u, y, v);
    if (row / 2 > column / 2) return equal * quarter(y, v, x, u);
    if (x == y && u == v) return equal;
    const auto at = [&](int64_t part, int64_t k) { return parts[part][static_cast<size_t>(k)]; };
    return field.chi(at(x, u), at(y, v)) * (x + y == 0 ? -1 : 1);
  };
  for (int64_t a = 0; a < h.K; ++a)
    for (int64_t b = 0; b < h.K; ++b) {
      const int64_t row = a / q, column = b / q, i = a % q, j = b % q;
      const int border = row == column && i + j > 0 ? -1 : 1;
      h.at(a, b) = static_cast<int8_t>(
          kArraySign[row][column] * (i == 0 || j == 0 ? border : core(row, column, i - 1, j - 1)));
    }
}

// How the matrix of order K is constructed; the result's K is 0 if there is no construction.
Description describe(int64_t K) {
  for (const Description& description : kDescriptions)
    if (description.K == K) return description;
  Description found{K};
  if (K % 8 != 4 || K < 12 || K > kLargestOrder) return {};
  if (is_prime_power(K - 1)) return found;
  found.construction = Construction::PaleyTwo;
  if (is_prime_power(K / 2 - 1)) return found;
  found.construction = Construction::Miyamoto;
  if (K / 4 % 4 == 1 && is_prime_power(K / 4)) return found;
  return {};
}

Signs make(const Description& description) {
  Signs h(description.K);
  switch (description.construction) {
    case Construction::PaleyOne: fill_paley_one(h); break;
    case Construction::PaleyTwo: fill_paley_two(h, false); break;
    case Construction::PaleyTwoPairs: fill_paley_two(h, true); break;
    case Construction::Miyamoto: fill_miyamoto(h); break;
    case Construction::Williamson: fill_williamson(h, description.rows); break;
    case Construction::Sequences: fill_sequences(h, description.rows); break;
    case Construction::Orbits: fill_orbits(h, description.rows, description.step); break;
    case Construction::Doubled: {
      Signs half(description.K / 2);
      fill_paley_one(half);
      fill_doubled(h, half);
    }
  }
  return h;
}

// A matrix, the memory that it points to, and whether it has been made.
struct Made {
  std::once_flag once;
  std::vector<uint32_t> bits;
  SignMatrix matrix{0, 0, nullptr};
};

void fill(const Description& description, bool transpose, Made& made) {
  Signs h = make(description);
  const int64_t K = h.K, words = (K + 31) / 32;
  made.bits.resize(static_cast<size_t>(K * words));
  for (int64_t a = 0; a < K; ++a)
    for (int64_t b = 0; b < K; ++b) {
      const int8_t sign = transpose ? h.at(b, a) : h.at(a, b);
      if (sign < 0) made.bits[static_cast<size_t>(a * words + b / 32)] |= uint32_t{1} << b % 32;
    }
  made.matrix = {K, words, made.bits.data()};
}

}  // namespace

const SignMatrix* sign_matrix(int64_t K, bool transpose) {
  constexpr int64_t kPlaces = kLargestOrder / 4 + 1;
  static Made* const all = new Made[2 * kPlaces];  // never freed: threads may outlive the library
  if (K <= 0 || K % 4 != 0 || K > kLargestOrder) return nullptr;
  Made& made = all[K / 4 + (transpose ? kPlaces : 0)];
  std::call_once(made.once, [&] {
    const Description description = describe(K);
    if (description.K != 0) fill(description, transpose, made);
  });
  return made.matrix.K != 0 ? &made.matrix : nullptr;
}

bool factor(int64_t K, bool transpose, const SignMatrix* factors[2]) {
  factors[0] = sign_matrix(K, transpose);
  factors[1] = nullptr;
  if (factors[0]) return true;
  int64_t small = 4;
  while (small < kLargestOrder && (small + 4) * (small + 4) <= K) small += 4;
  for (; small > 4; small -= 4) {  // the nearer to the square root, the smaller the sum
    if (K % small != 0) continue;
    factors[1] = sign_matrix(small, transpose);
    factors[0] = factors[1] ? sign_matrix(K / small, transpose) : nullptr;
    if (factors[0]) return true;
  }
  return false;
}

}  // namespace fastfood
