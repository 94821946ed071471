// fastfood_compare: compares every entry point of the CUDA backend with the CPU's, and the plain
// kernel of plain.cuh too. All bits have to be equal, except where a backend may choose the order
// of its sums: matrices of order K and the adjoint only have to be close, and the adjoint has to
// give the same bits twice. It prints how many cases were compared and how many differ, and returns
// 1 if one does.
//
//   --quick       an eleventh of the cases, of at most 2^18 entries: for tools that slow it down
//   --most N      no case of more than N entries
//   --seconds S   begins no case after S seconds
//   --exact       no guards, so that a tool that checks memory sees where each array ends
//   --spoil WHAT  value or guard: changes one in each result, so that each case must differ
#include "compare.h"

namespace fastfood::compare {
namespace {

constexpr uint64_t kSeed = 0x123456789ABCDEF1;

// --- Transforms ----------------------------------------------------------------------------------

struct Form {
  Type type;
  int64_t rows, n;
  bool diagonals, in_place, aligned;
  int64_t K = 1;
  bool transpose = false;
};

std::string name(const Form& f) {
  return text("%s %lld x %lld (K = %lld%s)%s%s%s", name_of(f.type), static_cast<long long>(f.rows),
              static_cast<long long>(f.n), static_cast<long long>(f.K),
              f.transpose ? ", transposed" : "", f.diagonals ? ", diagonals" : "",
              f.in_place ? ", in place" : "", f.aligned ? "" : ", misaligned");
}

// The arrays of a transform on the device, and the descriptor with their addresses.
struct OnDevice {
  Array x, out, before, after;
  Transform call;

  OnDevice(const Form& f, const Transform& host, const Bytes& values, const Bytes& b,
           const Bytes& a)
      : x(values, f.aligned ? 0 : size_of(f.type)),
        out(f.in_place ? 0 : values.size(), f.aligned ? 0 : 3 * size_of(f.type)),
        before(b, f.aligned ? 0 : size_of(wide(f.type))),
        after(a),
        call(host) {
    call.x = x.data();
    call.out = f.in_place ? x.data() : out.data();
    call.before = f.diagonals ? before.data() : nullptr;
    call.after = f.diagonals ? after.data() : nullptr;
  }

  // What the transform wrote; sets `intact` to false if it wrote elsewhere too.
  Bytes result(bool in_place, const Bytes& values, bool& intact) const {
    for (const Array* array : {&before, &after}) array->take(intact);
    const Bytes source = x.take(intact);
    if (in_place) return source;
    if (settings.spoil == Spoil::nothing && source != values) intact = false;
    return out.take(intact);
  }
};

bool transform_is_right(const Form& f, bool plainly) {
  const Type factor_type = wide(f.type);
  const Bytes values = random(f.rows * f.n, f.type, static_cast<uint64_t>(f.n));
  const Bytes before = random(f.n, factor_type, 7), after = random(f.n, factor_type, 8);
  Bytes wanted(values.size());
  Transform t{values.data(), wanted.data(), f.type, f.rows, f.n, 0.3};
  if (f.diagonals) t.before = before.data(), t.after = after.data();
  if (f.K != 1 && !factor(f.K, f.transpose, t.factors)) stop_at("is no order", name(f).c_str());
  on_cpu(t);
  const OnDevice there(f, t, values, before, after);
  bool intact = true;
  if (plainly) {
    const Array work(static_cast<size_t>(f.rows * f.n) * size_of(factor_type));
    plain_on_device(there.call, work.data());
    work.take(intact);
  } else {
    intact = on_device(there.call);
  }
  const Bytes got = there.result(f.in_place, values, intact);
  return intact && (f.K == 1 ? equal(got, wanted) : close(got, wanted, f.type, f.n, 16));
}

void add_transforms(std::vector<Case>& cases) {
  for (int64_t log_n = 0; log_n <= 17; ++log_n)
    for (Type type : kTypes)
      for (int64_t rows : {int64_t{1}, int64_t{3}, std::max<int64_t>(5, (4097 << 5) >> log_n)})
        for (int form = 0; form < 8; ++form) {
          const Form f{type, rows, int64_t{1} << log_n, !!(form & 1), !!(form & 2), !(form & 4)};
          const auto run = [f](bool plainly) { return transform_is_right(f, plainly); };
          cases.push_back({"transform", name(f), rows * f.n, [run] { return run(false); }});
          if (rows == 3 && form < 4)
            cases.push_back({"plain kernel", name(f), rows * f.n, [run] { return run(true); }});
        }
  for (int log_n : {20, 22, 24})
    for (Type type : kTypes)
      for (int form = 0; form < 4; form += log_n > 20 ? 3 : 1) {
        const Form f{type,         1 + (24 - log_n) / 2, int64_t{1} << log_n,
                     !!(form & 1), !!(form & 2),         form != 3};
        cases.push_back({"long transform", name(f), f.rows * f.n,
                         [f] { return transform_is_right(f, false); }});
      }
}

void add_orders(std::vector<Case>& cases) {
  constexpr int64_t kOrders[] = {12,  20,  28,   36,  40,      44,      52,     60,
                                 76,  108, 140,  156, 172,     260,     428,    500,
                                 732, 996, 1020, 144, 12 * 36, 76 * 36, 84 * 44};
  for (int64_t K : kOrders)
    for (int log_m : {0, 1, 3, 5, 6, 7, 9, 12})
      for (Type type : kTypes) {
        const int64_t n = K << log_m, i = static_cast<int64_t>(cases.size());
        if (n > 100000) continue;
        const Form f{type, 1 + i % 5 * 2, n, i % 2 == 0, i % 3 == 0, i % 4 != 0, K, i % 5 < 2};
        cases.push_back(
            {"orders", name(f), f.rows * n, [f] { return transform_is_right(f, false); }});
      }
}

// --- Draws ---------------------------------------------------------------------------------------

template <class Out>
bool draws_are_right(const Draw& draw, int64_t values) {
  const size_t bytes = static_cast<size_t>(draw.count * values) * sizeof(Out);
  Bytes wanted(bytes);
  on_cpu(draw, reinterpret_cast<Out*>(wanted.data()));
  const Array out(bytes);
  on_device(draw, static_cast<Out*>(out.data()));
  bool intact = true;
  const Bytes got = out.take(intact);
  return intact && equal(got, wanted);
}

void add_draws(std::vector<Case>& cases) {
  constexpr uint64_t kFirst[] = {0, 7, (uint64_t{1} << 32) - 5, (uint64_t{1} << 45) + 3};
  for (uint64_t first : kFirst)
    for (int64_t count : {1, 16, 1037, 1 << 18})
      for (uint32_t stream : {0u, 3u}) {
        const Draw draw{kSeed, stream, first, count};
        const std::string name =
            text("stream %u, calls %llu + %lld", stream, static_cast<unsigned long long>(first),
                 static_cast<long long>(count));
        cases.push_back(
            {"words", name, 4 * count, [draw] { return draws_are_right<uint32_t>(draw, 4); }});
        cases.push_back(
            {"normals", name, 8 * count, [draw] { return draws_are_right<float>(draw, 8); }});
      }
}

// --- Projections ---------------------------------------------------------------------------------

struct Rows {
  Type type;
  int64_t L, start, count;
  size_t shift;  // of the arrays from aligned addresses, in entries
};

std::string name(const Rows& r) {
  return text("%s L = %lld, rows %lld + %lld, shift %zu", name_of(r.type),
              static_cast<long long>(r.L), static_cast<long long>(r.start),
              static_cast<long long>(r.count), r.shift);
}

// The bounds of segments, some of which are empty: from 0 to `count` in ascending order.
Bytes segment_offsets(int64_t count, int64_t segments) {
  std::vector<int64_t> cuts(static_cast<size_t>(segments) + 1, 0);
  cuts.back() = count;
  for (size_t i = 2; i + 2 < cuts.size(); ++i)
    cuts[i] =
        static_cast<int64_t>(stream_call(kSeed, 11, i).w[0] % (static_cast<uint64_t>(count) + 1));
  std::sort(cuts.begin(), cuts.end());
  Bytes bytes(cuts.size() * sizeof(int64_t));
  std::memcpy(bytes.data(), cuts.data(), bytes.size());
  return bytes;
}

bool projection_is_right(const Rows& r, bool on_base) {
  constexpr int64_t kSegments = 40;
  const size_t bytes = static_cast<size_t>(r.count) * size_of(r.type);
  const Bytes v = random(r.L, wide(r.type), 1), base = random(on_base ? r.count : 0, r.type, 2);
  const Bytes offsets = segment_offsets(r.count, kSegments);
  const Bytes scales = random(kSegments, wide(r.type), 3);
  Bytes wanted(bytes);
  Projection p{wanted.data(), nullptr, v.data(), nullptr, nullptr, 0,
               r.type,        r.L,     r.start,  r.count, kSeed};
  const auto use_base = [&](const void* b, const void* o, const void* s) {
    if (!on_base) return;
    p.base = b;
    p.offsets = static_cast<const int64_t*>(o);
    p.scales = s;
    p.segments = kSegments;
  };
  use_base(base.data(), offsets.data(), scales.data());
  on_cpu(p);

  const size_t shift = r.shift * size_of(r.type);
  const Array out(bytes, shift), there_v(v, r.shift * size_of(wide(r.type)));
  const Array there_base(base, 2 * shift), there_offsets(offsets), there_scales(scales);
  p.out = out.data();
  p.v = there_v.data();
  use_base(there_base.data(), there_offsets.data(), there_scales.data());
  bool intact = on_device(p);
  for (const Array* array : {&there_v, &there_base, &there_offsets, &there_scales})
    array->take(intact);
  const Bytes got = out.take(intact);
  return intact && equal(got, wanted);
}

// The adjoint agrees with the CPU's but for the rounding of its sums, and has the same bits twice.
bool adjoint_is_right(const Rows& r) {
  const Bytes g = random(r.count, r.type, 5);
  const size_t bytes = static_cast<size_t>(r.L) * size_of(wide(r.type));
  Bytes wanted(bytes);
  with_adjoint(g.data(), wanted.data(), r.type, r.L, r.start, r.count, kSeed,
               [](const Adjoint& a) { on_cpu(a); });
  const Array there_g(g, r.shift * size_of(r.type)), first(bytes), second(bytes);
  bool intact = true;
  for (const Array* z : {&first, &second})
    with_adjoint(there_g.data(), z->data(), r.type, r.L, r.start, r.count, kSeed,
                 [&](const Adjoint& a) { intact = on_device(a) && intact; });
  there_g.take(intact);
  const Bytes got = first.take(intact), again = second.take(intact);
  return intact && close(got, wanted, wide(r.type), r.L, 64) && equal(got, again);
}

void add_projections(std::vector<Case>& cases) {
  for (int log_L : {8, 9, 10, 11, 12, 13, 14, 15, 16, 20})
    for (Type type : kTypes) {
      const int64_t L = int64_t{1} << log_L, far = (int64_t{1} << 36) + 5;
      const Rows forms[] = {
          {type, L, 0, 2 * L, 0},
          {type, L, 0, std::max<int64_t>(3 * L, 1 << 18), 0},
          {type, L, 3 * L + 77, L + 300, 1},
          {type, L, L - 3, L + 5, 3},
          {type, L, far, 200, 3},
          {type, L, far - 5 - L, std::max<int64_t>(2 * L, 40000) + 1, 0},
      };
      for (const Rows& r : forms) {
        const int64_t entries = std::max(r.count, L);
        for (bool on_base : {false, true})
          cases.push_back({on_base ? "projection on a base" : "projection", name(r), entries,
                           [r, on_base] { return projection_is_right(r, on_base); }});
        cases.push_back({"adjoint", name(r), entries, [r] { return adjoint_is_right(r); }});
      }
    }
}

int main(int count, char** arguments) {
  Plan plan;
  for (int i = 1; i < count; ++i) {
    const std::string word = arguments[i];
    const bool more = i + 1 < count;
    if (word == "--quick") {
      plan.rounds = 1;
      plan.most = std::min<int64_t>(plan.most, 1 << 18);
    } else if (word == "--exact") {
      settings.guard = 0;
    } else if (word == "--most" && more) {
      plan.most = std::atoll(arguments[++i]);
    } else if (word == "--seconds" && more) {
      plan.seconds = std::atof(arguments[++i]);
    } else if (word == "--spoil" && more) {
      settings.spoil = arguments[++i] == std::string("guard") ? Spoil::guard : Spoil::value;
    } else {
      std::printf("%s: wanted an option named at the top of compare.cu, got %s\n", arguments[0],
                  arguments[i]);
      return 2;
    }
  }
  std::printf("%s beside the CPU's kernels (%s)\n", device_name().c_str(), cpu::kernels().name);
  std::vector<Case> cases;
  add_draws(cases);
  add_transforms(cases);
  add_orders(cases);
  add_projections(cases);
  return run(cases, plan) ? 1 : 0;
}

}  // namespace
}  // namespace fastfood::compare

int main(int count, char** arguments) { return fastfood::compare::main(count, arguments); }
