"""The Hadamard matrices of order K, written once more in plain float64 torch from their
constructions, with which the signs of csrc/orders.cpp are compared. It shares the rows that are
given with csrc/orders_table.h, and no code."""

import functools
import math

import torch


def hadamard_matrix(n: int, device: torch.device | str | None = None) -> torch.Tensor:
    """The n x n Sylvester Hadamard matrix, n a power of two: H_1 = (1), H_2k = [[H_k, H_k], [H_k,
    -H_k]].
    """
    H = torch.ones(1, 1, dtype=torch.float64, device=device)
    while H.shape[0] < n:
        H = torch.cat([torch.cat([H, H], 1), torch.cat([H, -H], 1)])
    return H


# The first halves of the first rows of the four symmetric circulants of Williamson's array.
_WILLIAMSON = {
    20: "+-- +-- ++- +-+",
    28: "+--- ++-- +-+- +--+",
    52: "+-+--++ +---+++ ++-+--+ +----+-",
    92: "+--+-+-+++++ +--++-+-+-++ +++---++--++ +--+--+++---",
    100: "+-++---++++++ +-+---+---+++ +-+--+-++--++ ++--+--++-+--",
    116: "+--+-++---+++++ +-+-++---+--+++ +++-++-++++---+ +-+-+----++-++-",
    156: "+++--+-+-----+--++-- ++++---+--++----+-+- +++--++-+---+-+--+-- +---++-+-+-----+++-+",
    172: "+---++--++++-+-+++-++- ++-++++++----+-+--++-+ "
    "+++-+-++--+-+-++++-+-- ++---++++-+--+--++----",
}
# K = 4 t w (Cooper and Wallis, 1972): four T-sequences of length t, whose entry i is that of the
# sequence with the i-th letter, -1 in lower case; and rows as above of circulants of order w.
_SEQUENCES = {
    188: "AAAAaaAaAaAaAAaaBBBBbbBBbBbBbbBCCCCDDdcDCccDDDC + + + +",
    236: "AAAAaAaaaaAAaaAaaAAaBBBBbBBBbbbBbBBbBbbCCCCCdcCDCdcDdCdDdDC + + + +",
    428: "AaAAAAAaAaaAAAAaAAAaAAaaAAAaAaaAaaaABBBbBbbbbbBBbbBbBBBbbBbBbBBBbBBBBbB"
    "CDCddddDDdDdDcdccdCDDCdCCcCCCCcccdCc + + + +",
    476: "AAAaAAaABBBbbbBbC +--- ++-- +-+- +--+",
    612: "AAAaAAaABBBbbbBbC +---+ +--+- +-+-- ++---",
    732: "ABC ++--+--++--+-+-++++--+-----+--- ++--+--++--+-+-++++--+-----+--- "
    "+---+-+-++++---++--+-++-+---+++ ++++-+-+----+++--++-+--+-+++---",
    756: "BBBbbBBBbBbbabaAaAAaaAaaaaC +--- ++-- +-+- +--+",
    836: "AAaAbAbbBBC ++--+++-+- ++-++--+-+ +-+---++++ ++--+-++++",
    852: "AAAAAaaAaAaaaAAaaAAAaAaaBBBBBbbBBBbBbBBbBBbbBbBCCCCCdDcCcdCdcDdDccdddDC ++ +- +- +-",
    940: "AAAAaaAaAaAaAAaaBBBBbbBBbBbBbbBCCCCDDdcDCccDDDC +-- +-- ++- +-+",
    980: "AABbC ++++-++-+---++-+++---++-+ ++++-++-+---++-+++---++-+ +----+-++++--+-+++-+-+++- "
    "+++++-+----++-+---+-+---+",
    996: "AAAAAaaAAaaaAAaaAaaAaAaAaaAaBBBBBBbBbBbBbBBbbBbBBbbbBBbCCCCCDDcccCcDCDCdddDDCCDddDC ++ "
    "+- +- +-",
    1012: "AAaAbAbbBBC +--+-+-+++++ +--++-+-+-++ +++---++--++ +--+--+++---",
}
# A multiplier modulo K / 4, and the signs of four rows on the orbits of i under it (supplementary
# difference sets of Djokovic and others).
_ORBITS = {
    260: (
        16,
        "++++-----+-+--+-+-++-+-++ +-+++++--++-+-+----++++++ ++--+---++--+-+-+-+-+-+++ "
        "++++++-++------+----++-+-",
    ),
    268: (
        29,
        "+-++-+-+--+---+--++++-+ +---+++-++-+-++++-++--- ++++-+-+---++-+++--++-- "
        "++----+++-++-+++--++-++",
    ),
    372: (
        4,
        "+-+--+--++-+-++--++-+ ++--++++-+++-++-+---- ++----+++-+-++-+++--+ +++--++--++-+-----+++",
    ),
    412: (
        46,
        "+++---+--+----+++-+-+-+-++-+-++--++ ++-+++----++------+--+-++-+-+++++-+ "
        "+---+++-+--+-+----+-+++-+--+---+-++ +----+++++---+----++++-+-+------+-+",
    ),
    508: (2, "+-+++------+++-+-++ +-++-+----++-+-++-- +-+-+-++-+-+-+-+--- +++--+-++----+++---"),
    532: (4, "++-++-++--+----++ +++-+++-----+++-- +-+++--++++-+---- +--+++-+---+--+--"),
    604: (
        8,
        "+-++--+++--+++-+-+-+-+--+-+--+- ++-+-+++++-++-++-+-----+++---++ "
        "+--------+++++++--++-+---++-+-+ +++-++-+----+++-++---++-+-+----",
    ),
    652: (38, "+--+--+--++-+++-++- +-++++++--++-----++ +-++-+-+++++----+-- +++++--++----++----"),
    764: (
        39,
        "++++++--+++-++++-+++-----++-----+--++-+ +++-++-+--++++---+++-+-+++++--+--+----- "
        "+-+-+-++++-+-++-+-++--+--++++--++-----+ +++-+--++-+---+-+--++++-++--++---+---+-",
    ),
    876: (
        4,
        "++++--+-++++-+-+--+-+-----+ ++-+-----++-+++-+-++-++--++ +-++-+-+--+++--+-++-+-+--+- "
        "+----++--++-+-++-+-+-+++--+",
    ),
    956: (
        10,
        "+----+++-+-++-+-+++++----+--+++-++- +-+++++-++---+++--+-++-----+-+---++ "
        "++--+--+++++-----+-+--++--++++++--- +--+--++++-+---++--+-++---+--+--+-+",
    ),
    988: (
        9,
        "+---++--+-++--+-+-++++++++----- +--+++++---+------+++++-++++-++ "
        "++--+++++--+--+-++++-+--+-+---- +-+-+-+-+--++----++--+++++-+++-",
    ),
    1004: (
        20,
        "++-+----+------+++-+-++++-+++-++-+-+-+-----+++++-+- "
        "++-+++-++++-+++------++-++--++---+-+---++-+-++--++- "
        "+--+-+-++---++-+--+-++++++-+--+++---+++--++-++-++-- "
        "++--+-+--+++++--++--+-+--+++++-++-++-+-----++-+-++-",
    ),
}


@functools.cache
def order_matrix(K: int) -> torch.Tensor:
    """The Hadamard matrix of order K = 1, one of `fastfood.orders.ORDERS`, or a product of two.

    Source: the constructions named at the top of csrc/orders.cpp.
    """
    if K == 1:
        return hadamard_matrix(1)
    if K in _WILLIAMSON:
        return _williamson(_WILLIAMSON[K].split())
    if K in _SEQUENCES:
        return _goethals_seidel(*_cooper_wallis(*_SEQUENCES[K].split()))
    if K in _ORBITS:
        return _goethals_seidel(*_orbits(K // 4, *_ORBITS[K]))
    if K == 12:
        pairs = torch.arange(K).reshape(2, -1).T.reshape(-1)
        return _paley_two(K)[pairs][:, pairs]
    if K == 40:
        return torch.kron(hadamard_matrix(2), _paley_one(20))
    construction = _construction(K)
    if construction:
        return construction(K)
    small = max(a for a in range(12, 1021, 4) if a * a <= K and K % a == 0 and _is(K // a, a))
    return torch.kron(order_matrix(small), order_matrix(K // small))


def _construction(K: int):
    """The one that a prime power decides, or None."""
    if K % 8 == 4 and 12 <= K <= 1020:
        for q, construction in ((K - 1, _paley_one), (K // 2 - 1, _paley_two), (K // 4, _miyamoto)):
            if _prime(q) and (construction is not _miyamoto or q % 4 == 1):
                return construction
    return None


def _is(*orders: int) -> bool:
    given = {12, 40, *_WILLIAMSON, *_SEQUENCES, *_ORBITS}
    return all(K in given or _construction(K) is not None for K in orders)


def _prime(q: int) -> int:
    """The prime that q is a power of, or 0."""
    p = next(p for p in range(2, q + 1) if q % p == 0)
    return p if p ** round(math.log(q, p)) == q else 0


# --- Constructions -------------------------------------------------------------------------------


def _signs(text: str) -> torch.Tensor:
    return torch.tensor([1.0 if c == "+" else -1.0 for c in text], dtype=torch.float64)


def _circulant(row: torch.Tensor) -> torch.Tensor:
    return torch.stack([row.roll(i) for i in range(len(row))])


def _character(q: int) -> torch.Tensor:
    """Q[i, j] is the quadratic character of j - i in the field of q = p^e elements: polynomials in
    x, numbered by their coefficients as digits to base p, with x^e the first one for which x is
    primitive. The squares are the even powers of x.
    """
    p = _prime(q)
    e = round(math.log(q, p))
    places = p ** torch.arange(e)
    digits = torch.arange(q).unsqueeze(1) // places % p
    for c in range(1, q):
        times_x = torch.zeros(e, e, dtype=torch.int64)  # of a row of coefficients
        times_x[:-1, 1:] = torch.eye(e - 1, dtype=torch.int64)
        times_x[-1] = digits[c]
        powers = [digits[1]]
        while len(powers) < q and not (len(powers) > 1 and torch.equal(powers[-1], digits[1])):
            powers.append(powers[-1] @ times_x % p)
        if len(powers) == q and torch.equal(powers[-1], digits[1]):
            break
    chi = torch.zeros(q, dtype=torch.float64)
    for k, power in enumerate(powers[:-1]):
        chi[int(power @ places)] = (-1) ** k
    return chi[(digits.unsqueeze(0) - digits.unsqueeze(1)) % p @ places]


def _bordered(core: torch.Tensor, row: float, column: float, corner: float) -> torch.Tensor:
    H = torch.nn.functional.pad(core, (1, 0, 1, 0))
    H[0], H[:, 0] = row, column
    H[0, 0] = corner
    return H


def _blocks(rows) -> torch.Tensor:
    return torch.cat([torch.cat(row, 1) for row in rows])


def _paley_one(K: int) -> torch.Tensor:
    return _bordered(torch.eye(K - 1) - _character(K - 1), -1.0, 1.0, 1.0)


def _paley_two(K: int) -> torch.Tensor:
    S, eye = _bordered(_character(K // 2 - 1), 1.0, 1.0, 0.0), torch.eye(K // 2)
    return _blocks([[S + eye, S - eye], [S - eye, -S - eye]])


def _williamson(rows) -> torch.Tensor:
    A, B, C, D = (_circulant(torch.cat([row, row[1:].flip(0)])) for row in map(_signs, rows))
    return _blocks([[A, B, C, D], [-B, A, -D, C], [-C, D, A, -B], [-D, -C, B, A]])


def _goethals_seidel(*rows) -> torch.Tensor:
    A, B, C, D = map(_circulant, rows)
    B, C, D, Bt, Ct, Dt = (M.flip(1) for M in (B, C, D, B.T, C.T, D.T))
    return _blocks([[A, B, C, D], [-B, A, Dt, -Ct], [-C, -Dt, A, Bt], [-D, Ct, -Bt, A]])


def _cooper_wallis(letters, *halves):
    """Four rows of t w signs: entry i is the entry of the T-sequences at i modulo t, times the one
    of Williamson's rows at i modulo w.
    """
    W = torch.stack([torch.cat([row, row[1:].flip(0)]) for row in map(_signs, halves)])
    t, w = len(letters), W.shape[1]
    i = torch.arange(t * w)
    which = torch.tensor(["abcd".index(letter.lower()) for letter in letters])[i % t]
    sign = torch.tensor([1.0 if letter.isupper() else -1.0 for letter in letters])[i % t]
    H = hadamard_matrix(4)
    return [H[k, which] * sign * W[which ^ (4 - k) % 4, i % w] for k in range(4)]


def _orbits(p, multiplier, rows):
    where = {}
    for i in range(p):
        orbit = len(set(where.values()))
        while i not in where:
            where[i] = orbit
            i = i * multiplier % p
    return [_signs(row)[[where[i] for i in range(p)]] for row in rows.split()]


def _miyamoto(K: int) -> torch.Tensor:
    q = K // 4
    m, Q = q // 2, _character(q)
    squares, others = (torch.nonzero(Q[0] == sign).squeeze(1) for sign in (1, -1))
    order = torch.cat([squares, others])
    U = Q[order][:, order]
    U[:m, :m] *= -1
    odd = q - 1
    while odd % 8 == 0:
        odd //= 2
    V = torch.kron(hadamard_matrix((q - 1) // odd), order_matrix(odd)).clone()
    V[m:, :m] *= -1
    zero = torch.zeros(2 * m, 2 * m, dtype=torch.float64)
    U = _blocks([[U, zero], [zero, U]])
    V = _blocks([[torch.eye(2 * m), V], [V.T, torch.eye(2 * m)]])
    signs = torch.tensor([[1, 1, 1, 1], [-1, 1, 1, -1], [-1, -1, 1, 1], [-1, 1, -1, 1]])
    ones, twins = torch.ones(2, 2), 2 * torch.eye(2) - 1

    def block(i, j):
        rows, columns = slice(i * m, i * m + m), slice(j * m, j * m + m)
        core = torch.kron(ones, U[rows, columns]) + torch.kron(twins, V[rows, columns])
        border = -1.0 if i == j else 1.0
        return signs[i, j] * _bordered(core, border, border, 1.0)

    return _blocks([[block(i, j) for j in range(4)] for i in range(4)])
