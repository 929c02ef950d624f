// Knows Python, as bind_images.cpp does and nothing else: puna._native.
//
// Checks every contract that a caller could break: sizes, ranges, types. What lies below trusts its arguments.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>

#include "bind_adapters.h"
#include "bind_images.h"
#include "dispatch.h"
#include "limits.h"
#include "pack.h"
#include "plan.h"
#include "threads.h"
#include "tile_scale.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace puna {

void check(bool good, const std::string& message) {
  if (!good) throw std::invalid_argument(message);
}

OutFloats own(int rows, int cols, float* data) {
  nb::capsule owner(data, [](void* p) noexcept { delete[] (float*)p; });
  return OutFloats(data, {(size_t)rows, (size_t)cols}, owner);
}

namespace {

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int MOST_ROWS = 1 << 30, MOST_THREADS = 4096;

Kind kind_of(const std::string& name) {
  const Kind kind = kind_named(name.c_str());
  check(kind != Kind::COUNT, "no kernel for tensor type " + name);
  return kind;
}

std::string input_form(const std::string& kind) {
  switch (format_of(kind_of(kind)).input) {
    case InputKind::F32: return "f32";
    case InputKind::BF16: return "bf16";
    default: return "q8";
  }
}

size_t packed_bytes(const std::string& kind, int rows, int cols) {
  const size_t row = row_bytes(kind_of(kind), cols);
  check(rows > 0 && rows <= MOST_ROWS && row > 0, kind + " matrix [" + std::to_string(rows) + ", " + std::to_string(cols) + "]: rows are no whole number of blocks");
  return row * ((rows + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS);
}

Weight pack_matrix(std::shared_ptr<Arena> arena, const std::string& kind, int rows, int cols, Bytes data) {
  const size_t bytes = packed_bytes(kind, rows, cols);
  const Kind k = kind_of(kind);
  check(data.size() == row_bytes(k, cols) * rows, kind + " matrix [" + std::to_string(rows) + ", " + std::to_string(cols) + "] needs " +
                                                      std::to_string(row_bytes(k, cols) * rows) + " bytes, got " + std::to_string(data.size()));
  const uint8_t* src = data.data();
  nb::gil_scoped_release free;
  uint8_t* dst = arena->take(bytes);
  pack(k, rows, cols, src, dst, 0, (rows + TILE_ROWS - 1) / TILE_ROWS);
  return std::make_shared<PackedMatrix>(PackedMatrix{{k, rows, cols, row_bytes(k, cols) * TILE_ROWS, dst}, std::move(arena)});
}

OutFloats unpack_matrix(const Weight& w, const std::string& target) {
  const Kernels& k = choose_target(target);
  return make_floats(w->m.rows, w->m.cols, [&](float* out) {
    for (int r = 0; r < w->m.rows; r++) k.embed(w->m, r, out + (size_t)r * w->m.cols);
  });
}

// One `linear` outside any plan, for tests and micro-benchmarks: x [rows, cols] -> y [rows, padded rows of w].
OutFloats linear_once(const Weight& w, Matrix2 x, const std::string& target, int repeat) {
  const Kernels& k = choose_target(target);
  const int rows = (int)x.shape(0), cols = (int)x.shape(1), out_cols = w->m.tiles() * TILE_ROWS;
  check(cols == w->m.cols, "linear: x has " + std::to_string(cols) + " columns, the weight " + std::to_string(w->m.cols));
  Pool one(1);
  const InputKind form = input_of(k, one, w->m);
  std::vector<QBlock> q8(form == InputKind::Q8 ? (size_t)rows * cols / GROUP : 0);
  std::vector<uint16_t> bf16(form == InputKind::BF16 ? (size_t)rows * cols : 0);
  for (int r = 0; r < rows; r++) {
    if (form == InputKind::Q8) k.quantize(x.data() + (size_t)r * cols, cols, q8.data() + (size_t)r * cols / GROUP);
    if (form == InputKind::BF16) k.to_bf16(x.data() + (size_t)r * cols, cols, bf16.data() + (size_t)r * cols);
  }
  Pages scratch(LINEAR_SCRATCH);
  return make_floats(rows, out_cols, [&](float* y) {
    nb::gil_scoped_release free;
    for (int i = 0; i < repeat; i++)
      k.linear(w->m, nullptr, {cols, x.data(), bf16.data(), q8.data()}, 0, rows, 0, w->m.tiles(), {y, (size_t)out_cols, nullptr}, scratch.data());
  });
}

// Float rows as a block format: [rows, cols] -> bytes as a GGUF file holds them. importance: [cols], or empty.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> encode_matrix(const std::string& kind, Matrix2 x, Floats importance, int threads, const std::string& target) {
  const Kernels& kernels = choose_target(target);
  const Kind k = kind_of(kind);
  const size_t rows = x.shape(0), cols = x.shape(1), bytes = row_bytes(k, (int)cols) * rows;
  check(bytes > 0 && k >= Kind::Q8_0 && k <= Kind::IQ4_XS, "encode: no rows of whole " + kind + " blocks in a matrix of " + std::to_string(cols) + " columns");
  check(importance.size() == 0 || importance.size() == cols, "encode: " + std::to_string(importance.size()) + " importances for " + std::to_string(cols) + " columns");
  check(threads > 0 && threads <= MOST_THREADS, "encode: threads must be from 1 to " + std::to_string(MOST_THREADS));
  const size_t n_blocks = bytes / (size_t)format_of(k).bytes;
  std::unique_ptr<uint8_t[]> out(new uint8_t[bytes]);
  {
    nb::gil_scoped_release free;
    Pool pool(threads);
    std::atomic<size_t> next{0};
    constexpr size_t STEP = 1024;  // whole groups of lanes
    pool.run([&](int) {
      for (size_t b; (b = next.fetch_add(STEP)) < n_blocks;)
        kernels.encode(k, x.data(), importance.size() ? importance.data() : nullptr, (int)cols, b, std::min(n_blocks, b + STEP), out.get());
    });
  }
  uint8_t* data = out.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] (uint8_t*)p; });
  return {data, {bytes}, owner};
}

Rows rows_named(const std::string& name) { return name == "wanted" ? Rows::WANTED : Rows::ALL; }

CacheKind cache_named(const std::string& name) {
  if (name == "bf16") return CacheKind::BF16;
  if (name == "f16") return CacheKind::F16;
  if (name == "f32") return CacheKind::F32;
  check(name == "q8_0", "no cache type " + name + "; there are bf16, f16, f32, q8_0");
  return CacheKind::Q8_0;
}

// The table at `begin` of `blocks`, of positions origin..end-1.
BlockTable table_at(Ints blocks, int begin, int origin, int64_t end, int n_blocks) {
  const int64_t n = (end - origin + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
  check(begin >= 0 && begin + n <= (int64_t)blocks.size(), "step: malformed chunk");
  for (int b = 0; b < n; b++) check(blocks.data()[begin + b] >= 0 && blocks.data()[begin + b] < n_blocks, "step: no such cache block");
  return {blocks.data() + begin, origin};
}

// tokens [T]; chunks [n, 4] rows of (tokens, start, logits wanted, block table begin); blocks: all tables, concatenated;
// locals [n, 2] rows of (begin of the table of local layers, its first position), empty where there is one pool.
// adapters [n]: the slot of each chunk's adapter or -1, or absent.
Step make_step(const Plan& plan, int vocab, Ints tokens, Ints chunks, Ints blocks, const std::optional<Ints>& locals, const std::optional<Ints>& adapters) {
  Step s;
  const int n_chunks = (int)chunks.size() / 4;
  check(!adapters || (int)adapters->size() == n_chunks, "step: an adapter for each chunk, or -1, is needed where there are any");
  const bool has_pool = !plan.cache().local_layers.empty();
  check((locals ? (int)locals->size() : 0) == (has_pool ? 2 * n_chunks : 0), "step: a table of local layers for each chunk is needed where they have a pool");
  int row = 0;
  for (int i = 0; i < n_chunks; i++) {
    const int32_t* c = chunks.data() + 4 * i;
    const int n = c[0], start = c[1], wanted = c[2], table = c[3];
    check(n > 0 && start >= 0 && wanted >= 0 && wanted <= n, "step: malformed chunk");
    check(n <= plan.max_tokens() - row && wanted <= plan.max_wanted() - (int)s.wanted.size(), "step: more tokens than the plan was made for");
    const BlockTable global = table_at(blocks, table, 0, (int64_t)start + n, plan.cache().n_blocks);
    BlockTable local = global;
    if (has_pool) {
      const int begin = locals->data()[2 * i], origin = locals->data()[2 * i + 1];
      check(origin >= 0 && origin <= start && origin % std::max(BLOCK_TOKENS, plan.local_reach()) == 0, "step: malformed chunk");
      local = table_at(blocks, begin, origin, (int64_t)start + n, plan.cache().n_local_blocks);
    }
    s.chunks.push_back({row, n, start, wanted, (int)s.wanted.size(), global, local});
    if (adapters && adapters->data()[i] >= 0) place_adapter(s, row, n, wanted, adapters->data()[i]);
    for (int j = 0; j < n; j++) {
      s.positions.push_back(start + j);
      s.chunk_of.push_back(i);
      if (j >= n - wanted) s.wanted.push_back(row + j);
    }
    row += n;
  }
  check(row == (int)tokens.size() && row > 0, "step: token count differs from the chunks'");
  s.tokens.assign(tokens.data(), tokens.data() + row);
  const int token_ids = plan.token_ids() ? plan.token_ids() : vocab;
  for (int t : s.tokens) check(t >= 0 && t < token_ids, "step: token " + std::to_string(t) + " is outside the vocabulary");
  return s;
}

// vocab: columns of the result. given, seen: the images of the step.
nb::object run_step(nb::handle self, int result, int vocab, Ints tokens, Ints chunks, Ints blocks, const std::optional<Ints>& locals, int list,
                    std::vector<Given> given, std::vector<Seen> seen, const std::optional<Ints>& adapters) {
  Plan& plan = nb::cast<Plan&>(self);
  check(list >= 0 && list < plan.n_lists(), "step: no such list of ops");
  check(vocab > 0 && vocab <= plan.at(result).cols, "step: a result of " + std::to_string(vocab) + " columns from a buffer of " + std::to_string(plan.at(result).cols));
  Step step = make_step(plan, vocab, tokens, chunks, blocks, locals, adapters);
  place_images(plan, step, given, seen);
  const float* logits;
  {
    nb::gil_scoped_release free;
    logits = plan.step(step, result, list);
  }
  const size_t stride = plan.at(result).cols;
  return nb::cast(nb::ndarray<nb::numpy, const float, nb::ndim<2>>(logits, {step.wanted.size(), (size_t)vocab}, self, {(int64_t)stride, 1}));
}

using OutBytes2 = nb::ndarray<nb::numpy, uint8_t, nb::ndim<2>>;
using Bytes2 = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void check_blocks(const Plan& p, const char* op, Ints blocks, bool local) {
  const CacheShape& c = p.cache();
  check(!local || !c.local_layers.empty(), std::string(op) + ": no layer has blocks of its own");
  const int n_blocks = local ? c.n_local_blocks : c.n_blocks;
  for (size_t i = 0; i < blocks.size(); i++)
    check(blocks.data()[i] >= 0 && blocks.data()[i] < n_blocks, std::string(op) + ": no such cache block");
}

// [blocks, bytes of a block]; no step may be running.
OutBytes2 read_blocks(const Plan& plan, Ints blocks, bool local) {
  check_blocks(plan, "read_blocks", blocks, local);
  const size_t n = blocks.size(), bytes = plan.block_bytes(local);
  std::unique_ptr<uint8_t[]> out(new uint8_t[n * bytes]);
  {
    nb::gil_scoped_release free;
    for (size_t i = 0; i < n; i++) plan.read_block(blocks.data()[i], local, out.get() + i * bytes);
  }
  uint8_t* data = out.release();
  nb::capsule owner(data, [](void* p) noexcept { delete[] (uint8_t*)p; });
  return OutBytes2(data, {n, bytes}, owner);
}

void write_blocks(Plan& plan, Ints blocks, Bytes2 data, bool local) {
  check_blocks(plan, "write_blocks", blocks, local);
  const size_t n = blocks.size(), bytes = plan.block_bytes(local);
  check(data.shape(0) == n && data.shape(1) == bytes, "write_blocks: " + std::to_string(n) + " blocks of " + std::to_string(bytes) + " bytes are needed, got " +
                                                          std::to_string(data.shape(0)) + " of " + std::to_string(data.shape(1)));
  nb::gil_scoped_release free;
  for (size_t i = 0; i < n; i++) plan.write_block(blocks.data()[i], local, data.data() + i * bytes);
}

// A weight that multiplies buffer x into buffer out, whose columns are padded to whole tiles.
void check_linear(const Plan& p, const char* op, int x, const Weight& w, int out) {
  check(w != nullptr, std::string(op) + ": a weight is missing");
  const Buffer &from = p.at(x), &to = p.at(out);
  check(from.cols >= w->m.cols && to.cols >= w->m.tiles() * TILE_ROWS, std::string(op) + ": a weight [" + std::to_string(w->m.rows) + ", " + std::to_string(w->m.cols) +
            "] from a buffer of " + std::to_string(from.cols) + " columns to one of " + std::to_string(to.cols));
}

// Buffers that an op reads and writes side by side.
void check_widths(const Plan& p, const char* op, std::initializer_list<int> buffers) {
  for (int b : buffers) check(p.at(b).cols == p.at(*buffers.begin()).cols, std::string(op) + ": buffers differ in columns");
}

// Queries of n_heads heads, of as many for each head of keys, and what becomes of them.
void check_heads(const Plan& p, const char* op, int q, int n_heads, int out) {
  const CacheShape& c = p.cache();
  check(n_heads > 0 && n_heads % c.n_kv_heads == 0 && p.at(q).cols >= n_heads * c.head_dim && p.at(out).cols >= n_heads * c.head_dim,
        std::string(op) + ": " + std::to_string(n_heads) + " heads do not fit the buffers, or the " + std::to_string(c.n_kv_heads) + " heads of keys");
}

void check_layer(const Plan& p, const char* op, int layer) {
  check(layer >= 0 && layer < p.cache().n_layers, std::string(op) + ": no such layer");
}

void check_experts(const Plan& p, int x, int scores, const std::vector<Weight>& w1, const std::vector<Weight>& w2, const std::vector<Weight>& w3,
                   int n_active, int out) {
  const size_t n = w1.size();
  check(n > 0 && w2.size() == n && w3.size() == n, "experts: as many of w1, w2 and w3 are needed");
  for (size_t e = 0; e < n; e++) check(w1[e] && w2[e] && w3[e], "experts: a weight is missing");
  check(n_active > 0 && (size_t)n_active <= n && p.at(scores).cols >= (int)n, "experts: n_active of " + std::to_string(n) + " experts with a score each are needed");
  const Matrix &gate = w1[0]->m, &down = w2[0]->m;
  for (size_t e = 0; e < n; e++) {
    const Matrix &a = w1[e]->m, &b = w2[e]->m, &c = w3[e]->m;
    check(a.rows == gate.rows && c.rows == gate.rows && a.cols == gate.cols && c.cols == gate.cols && b.rows == gate.cols && b.cols == gate.rows &&
              a.kind == gate.kind && b.kind == down.kind && c.kind == w3[0]->m.kind, "experts: matrices differ in shape or kind");
  }
  check(p.at(x).cols >= gate.cols && p.at(out).cols == p.at(x).cols && p.at(out).rows == p.at(x).rows && p.at(scores).rows == p.at(x).rows,
        "experts: buffers do not fit the matrices");
}

void set_values(Plan& plan, int buffer, Matrix2 x) {
  const Buffer& b = plan.at(buffer);
  check(x.shape(0) * b.cols * sizeof(float) <= b.f32.size() && x.shape(1) <= (size_t)b.cols, "set_values: more than the buffer holds");
  for (size_t r = 0; r < x.shape(0); r++) std::copy_n(x.data() + r * x.shape(1), x.shape(1), b.row((int)r));
}

OutFloats values(const Plan& plan, int buffer, int rows) {
  const Buffer& b = plan.at(buffer);
  check(rows >= 0 && (size_t)rows * b.cols * sizeof(float) <= b.f32.size(), "values: more than the buffer holds");
  return make_floats(rows, b.cols, [&](float* out) { std::copy_n(b.row(0), (size_t)rows * b.cols, out); });
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "Puna's kernels and plan executor.";
  m.attr("BLOCK_TOKENS") = BLOCK_TOKENS;
  m.attr("SPAN") = SPAN;
  m.def("available_targets", &available_targets, "CPU targets this machine can run, best last.");
  m.def("chosen_target", [](const std::string& name) { return std::string(choose_target(name).name); }, "name"_a);
  m.def("input_form", &input_form, "kind"_a, "Form of activations that a weight kind is multiplied with: f32, bf16 or q8.");
  m.def("packed_bytes", &packed_bytes, "kind"_a, "rows"_a, "cols"_a);
  m.def("pack_matrix", &pack_matrix, "arena"_a, "kind"_a, "rows"_a, "cols"_a, "data"_a);
  m.def("unpack_matrix", &unpack_matrix, "matrix"_a, "target"_a = "", "Back to float32, for tests.");
  m.def("linear", &linear_once, "matrix"_a, "x"_a, "target"_a = "", "repeat"_a = 1);
  m.def("encode", &encode_matrix, "kind"_a, "x"_a, "importance"_a, "threads"_a, "target"_a = "");
  m.def("cache_bytes_per_token", [](const std::string& kind, int layers, int kv_heads, int head_dim) {
    return cache_layer(cache_named(kind), head_dim, kv_heads, 1, nullptr).head_bytes() / BLOCK_TOKENS * layers * kv_heads;
  }, "kind"_a, "layers"_a, "kv_heads"_a, "head_dim"_a);
  m.def("read_gb_s", &read_gb_s, "threads"_a, "bytes"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("int8_tops", &int8_tops, "target"_a, "threads"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def("bf16_tflops", &bf16_tflops, "target"_a, "threads"_a, "seconds"_a, nb::call_guard<nb::gil_scoped_release>());

  nb::class_<Arena>(m, "Arena").def(nb::init<size_t>(), "bytes"_a).def_prop_ro("used", &Arena::used);
  nb::class_<PackedMatrix>(m, "Matrix")
      .def_prop_ro("rows", [](const PackedMatrix& w) { return w.m.rows; })
      .def_prop_ro("cols", [](const PackedMatrix& w) { return w.m.cols; })
      .def_prop_ro("kind", [](const PackedMatrix& w) { return std::string(format_of(w.m.kind).name); });

  bind_images(m);
  nb::class_<Plan> plan(m, "Plan");
  bind_adapters(plan);
  plan.def("__init__", [](Plan* self, const std::string& target, int threads, int max_tokens, int max_wanted, const std::string& cache,
                          int layers, int n_blocks, int kv_heads, int head_dim, int n_local_blocks, const std::vector<int>& local_layers) {
        check(threads > 0 && max_tokens > 0 && max_wanted > 0 && layers > 0 && n_blocks > 0, "Plan: sizes must be positive");
        check(kv_heads > 0, "Plan: sizes must be positive");
        check(head_dim > 0 && head_dim % 32 == 0 && head_dim <= 256, "Plan: head_dim must be a multiple of 32, at most 256; got " + std::to_string(head_dim));
        for (int l : local_layers) check(l >= 0 && l < layers, "Plan: no such local layer");
        check(local_layers.empty() || n_local_blocks > 0, "Plan: local layers need blocks");
        new (self) Plan(choose_target(target), threads, max_tokens, max_wanted,
                        {cache_named(cache), layers, n_blocks, kv_heads, head_dim, n_local_blocks, local_layers});
      }, "target"_a, "threads"_a, "max_tokens"_a, "max_wanted"_a, "cache"_a, "layers"_a, "n_blocks"_a, "kv_heads"_a, "head_dim"_a,
           "n_local_blocks"_a = 0, "local_layers"_a = std::vector<int>())
      .def("buffer", [](Plan& p, int cols, const std::string& rows) { return p.buffer(cols, rows_named(rows)); }, "cols"_a, "rows"_a)
      .def("set_rotation", &Plan::set_rotation, "frequencies"_a, "factor"_a)
      .def("begin_list", &Plan::begin_list)
      .def("embed", [](Plan& p, const Weight& table, const Weight& more, int out) {
        check(table && (!more || more->m.cols == table->m.cols), "embed: tables differ in columns");
        check(p.at(out).cols >= table->m.cols, "embed: the buffer has fewer columns than the table");
        p.embed(table, more, out);
      }, "table"_a, "more"_a.none(), "out"_a)
      .def("rms_norm", [](Plan& p, int x, Floats w, float eps, int out, int forms) {
        check((int)w.size() == p.at(x).cols, "rms_norm: " + std::to_string(w.size()) + " weights for " + std::to_string(p.at(x).cols) + " columns");
        check_widths(p, "rms_norm", {x, out});
        p.rms_norm(x, std::vector<float>(w.data(), w.data() + w.size()), eps, out, forms);
      })
      .def("convert", &Plan::convert)
      .def("forms_of", [](Plan& p, const std::vector<Weight>& w) {
        for (const Weight& matrix : w) check((bool)matrix, "forms_of: a weight is missing");
        return p.forms_of(w);
      }, "w"_a, "Flags of the forms in which matrices that are multiplied together want activations.")
      .def("linear", [](Plan& p, int x, std::vector<Weight> w, std::vector<int> out, int residual, std::vector<int> sites) {
        check_sites(p, w, sites);
        check(!w.empty() && w.size() == out.size(), "linear: a buffer for each weight is needed");
        for (size_t i = 0; i < w.size(); i++) check_linear(p, "linear", x, w[i], out[i]);
        for (int o : out) check(residual < 0 || p.at(residual).cols == p.at(o).cols, "linear: the residual differs in columns");
        p.linear(x, std::move(w), std::move(out), residual, std::move(sites));
      }, "x"_a, "w"_a, "out"_a, "residual"_a, "sites"_a = std::vector<int>())
      .def("gated", [](Plan& p, int x, Weight gate, Weight up, int out) {
        check_linear(p, "gated", x, gate, out);
        check_linear(p, "gated", x, up, out);
        check(gate->m.kind == up->m.kind && gate->m.rows == up->m.rows, "gated: both weights must have one kind and shape");
        p.gated(x, std::move(gate), std::move(up), out);
      })
      .def("store", [](Plan& p, int q, int k, int v, int layer, bool rotate, float norm_eps, double floor_scale, double attn_scale) {
        check(attn_scale == 0 || floor_scale > 0, "store: floor_scale must be above 0");
        check_layer(p, "store", layer);
        const int keys = p.cache().n_kv_heads * p.cache().head_dim;
        check(p.at(k).cols >= keys && p.at(v).cols >= keys, "store: keys and values do not fit the cache");
        p.store(q, k, v, layer, {rotate, norm_eps, floor_scale, attn_scale});
      }, "q"_a, "k"_a, "v"_a, "layer"_a, "rotate"_a = false, "norm_eps"_a = 0.0f, "floor_scale"_a = 0.0, "attn_scale"_a = 0.0)
      .def("attend", [](Plan& p, int q, int layer, int n_heads, float scale, int reach, int out, int forms) {
        check(reach >= 0, "attend: reach must be 0 or more positions");
        check_layer(p, "attend", layer);
        check_heads(p, "attend", q, n_heads, out);
        p.attend(q, layer, n_heads, scale, reach, out, forms);
      })
      .def("experts", [](Plan& p, int x, int scores, std::vector<Weight> w1, std::vector<Weight> w2, std::vector<Weight> w3, int n_active, int out) {
        check_experts(p, x, scores, w1, w2, w3, n_active, out);
        p.experts(x, scores, std::move(w1), std::move(w2), std::move(w3), n_active, out);
      })
      .def("cross_attend", [](Plan& p, int q, int layer, int n_heads, float scale, int out, int forms) {
        check(layer >= 0, "cross_attend: no such layer");
        check_heads(p, "cross_attend", q, n_heads, out);
        p.cross_attend(q, layer, n_heads, scale, out, forms);
      })
      .def("mask_rows", [](Plan& p, int x, int out) {
        check_widths(p, "mask_rows", {x, out});
        p.mask_rows(x, out);
      })
      .def("head_norm", [](Plan& p, int x, Floats w, float eps, int out) {
        check(w.size() > 0 && w.size() % 16 == 0 && p.at(x).cols % (int)w.size() == 0, "head_norm: columns are no whole number of heads");
        check_widths(p, "head_norm", {x, out});
        p.head_norm(x, std::vector<float>(w.data(), w.data() + w.size()), eps, out);
      })
      .def("add", [](Plan& p, int a, int b, int out) {
        check_widths(p, "add", {a, b, out});
        p.add(a, b, out);
      })
      .def("add_scaled", [](Plan& p, int a, int b, float factor, int out) {
        check_widths(p, "add_scaled", {a, b, out});
        p.add_scaled(a, b, factor, out);
      })
      .def("swiglu", [](Plan& p, int gate, int up, int out) {
        check_widths(p, "swiglu", {gate, up, out});
        p.swiglu(gate, up, out);
      })
      .def("hadamard", [](Plan& p, int x, int out) {
        const int n = p.at(x).cols;
        check(n >= TILE_ROWS && (n & (n - 1)) == 0 && p.at(out).cols == n, "hadamard: " + std::to_string(n) + " columns are no power of two");
        p.hadamard(x, out);
      })
      .def("select", [](Plan& p, int x, int out) {
        check_widths(p, "select", {x, out});
        p.select(x, out);
      })
      .def("set_values", &set_values, "buffer"_a, "values"_a, "Fill the first rows of a buffer, to run ops on their own.")
      .def("values", &values, "buffer"_a, "rows"_a, "A copy of the first rows of a buffer.")
      .def("step", &run_step, "result"_a, "vocab"_a, "tokens"_a, "chunks"_a, "blocks"_a, "locals"_a = nb::none(), "list"_a = 0,
           "given"_a = std::vector<Given>(), "seen"_a = std::vector<Seen>(), "adapters"_a = nb::none())
      .def("block_bytes", &Plan::block_bytes, "local"_a = false)
      .def("read_blocks", &read_blocks, "blocks"_a, "local"_a = false, "Blocks of the cache as bytes.")
      .def("write_blocks", &write_blocks, "blocks"_a, "data"_a, "local"_a = false, "Put such bytes into blocks.")
      .def_rw("profile", &Plan::profile)
      .def_prop_ro("op_seconds", [](Plan& p) { return p.op_seconds(); });
}

}  // namespace puna
