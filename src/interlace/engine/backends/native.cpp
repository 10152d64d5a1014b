// The decode step of native.py: a whole model, and Bridge blocks, in one call; and the draw of tokens.
//
// Axes: R live rows, D hidden size, H query heads, G key-value heads, Q = H/G, C head dim, M queries
// that read the same keys, N keys that are read, K words of an input.
//
// A word is 32 bits: one fp32 number, or two bf16 numbers side by side. Weights lie in blocks of 16
// outputs, [outputs/16][K][16] words, so that one loaded vector of weights serves up to ROWS rows.
// Products and scores go through one kernel, `tile`; `mix` mixes values as they lie. A row's numbers
// are added up in an order that no other row changes. Sums, softmax and the hidden states between
// layers are fp32; keys, values and inputs of products are of the model's type.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

typedef float V __attribute__((vector_size(64)));
typedef int32_t VI __attribute__((vector_size(64)));
struct bf16 {
  uint16_t bits;
};

// Accumulators that the processor has registers for.
#if defined(__AVX512F__)
constexpr int ROWS = 8, COLUMNS = 3, MIXED = 6, WIDE = 4;
#else
constexpr int ROWS = 6, COLUMNS = 1, MIXED = 6, WIDE = 2;
#endif
constexpr int LANES = 16, KEYS = 64;  // keys that are read at a time
constexpr int MOST_DIM = 512;         // of a head, as native.py knows
constexpr float NONE = -std::numeric_limits<float>::infinity();

V load(const float* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
void save(float* to, V v) { std::memcpy(to, &v, sizeof v); }
V all(float x) { return V{} + x; }

float number(float x) { return x; }
float number(bf16 x) {
  uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
void put(float& to, float x) { to = x; }
void put(bf16& to, float x) {  // to the nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  to.bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The first n of 16 numbers, then zeros.
V load_some(const float* from, int n) {
  if (n == LANES) return load(from);
  V v{};
  std::memcpy(&v, from, n * sizeof(float));
  return v;
}
V load_some(const bf16* from, int n) {
  typedef uint16_t Half __attribute__((vector_size(32)));
  Half half{};
  if (n == LANES)
    std::memcpy(&half, from, sizeof half);
  else
    std::memcpy(&half, from, n * sizeof(bf16));
  return (V)(__builtin_convertvector(half, VI) << 16);
}

// e^x, for what a softmax or a sigmoid needs of it: relative error below 2e-7 between -87 and 88.
V exponential(V x) {
  x = x < all(-87.f) ? all(-87.f) : x;
  x = x > all(88.f) ? all(88.f) : x;
  const V shift = all(12582912.f);  // 1.5 * 2^23: adding it rounds to a whole number
  V whole = x * 1.44269504f + shift - shift;
  V rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
  V sum = all(1.9875691e-4f);
  for (float c : {1.3981999e-3f, 8.3334519e-3f, 4.1665796e-2f, 1.6666665e-1f, 5.0000001e-1f})
    sum = sum * rest + c;
  sum = sum * rest * rest + rest + 1.f;
  return sum * (V)((__builtin_convertvector(whole, VI) + 127) << 23);
}

float sum_of(V v) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int i = 0; i < LANES; i++) sum += v[i];
  return sum;
}
float largest_of(V v) {
  float most = NONE;
#pragma omp simd reduction(max : most)
  for (int i = 0; i < LANES; i++) most = v[i] > most ? v[i] : most;
  return most;
}

void transpose(V (&t)[LANES]) {  // rows n and n + 8 interleaved, four times
  for (int round = 0; round < 4; round++) {
    V next[LANES];
    for (int n = 0; n < 8; n++) {
      next[2 * n] = __builtin_shufflevector(t[n], t[n + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                            22, 7, 23);
      next[2 * n + 1] = __builtin_shufflevector(t[n], t[n + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13,
                                                29, 14, 30, 15, 31);
    }
    std::memcpy(t, next, sizeof next);
  }
}

// out[r][16c..] = x[r] . w[c], for R rows and C blocks of outputs. Meanwhile what is needed `later`
// comes from memory.
template <class T, int R, int C>
void tile(const float* x, int64_t x_next, const float* w, int64_t w_next, int64_t words, float* out,
          int64_t out_next, const float* later) {
  V sum[R][C];
  for (auto& row : sum)
    for (V& one : row) one = V{};
  for (int64_t k = 0; k < words; k++) {
    __builtin_prefetch(later + k * LANES, 0, 2);
    V b[C];
    for (int c = 0; c < C; c++) {
      b[c] = load(w + c * w_next + k * LANES);
      __builtin_prefetch(w + c * w_next + k * LANES + 512);
    }
    for (int r = 0; r < R; r++) {
      const float* word = x + r * x_next + k;
      if constexpr (sizeof(T) == 4) {
        for (int c = 0; c < C; c++) sum[r][c] += *word * b[c];
      } else {
        int32_t pair;
        std::memcpy(&pair, word, 4);
#if defined(__AVX512BF16__)
        for (int c = 0; c < C; c++)
          sum[r][c] = (V)_mm512_dpbf16_ps((__m512)sum[r][c], (__m512bh)_mm512_set1_epi32(pair),
                                          (__m512bh)b[c]);
#else
        const V low = (V)((VI{} + pair) << 16), high = (V)((VI{} + pair) & int32_t(0xffff0000));
        for (int c = 0; c < C; c++)
          sum[r][c] += low * (V)((VI)b[c] << 16) + high * (V)((VI)b[c] & int32_t(0xffff0000));
#endif
      }
    }
  }
  for (int r = 0; r < R; r++)
    for (int c = 0; c < C; c++) save(out + r * out_next + c * LANES, sum[r][c]);
}

// The tile of so many rows and blocks, at most R and C.
template <class T, int R, int C, class... A>
void sized_tile(int rows, int blocks, A... args) {
  if (rows < R) {
    if constexpr (R > 1) sized_tile<T, R - 1, C>(rows, blocks, args...);
  } else if (blocks < C) {
    if constexpr (C > 1) sized_tile<T, R, C - 1>(rows, blocks, args...);
  } else {
    tile<T, R, C>(args...);
  }
}

template <class T>
void multiply(const float* x, int64_t x_next, const float* w, int64_t w_next, int64_t words, float* out,
              int64_t out_next, int rows, int blocks, const float* later) {
  for (int c = 0; c < blocks; c += COLUMNS)
    for (int r = 0; r < rows; r += ROWS)
      sized_tile<T, ROWS, COLUMNS>(std::min(ROWS, rows - r), std::min(COLUMNS, blocks - c),
                                   x + r * x_next, x_next, w + c * w_next, w_next, words,
                                   out + r * out_next + c * LANES, out_next, later);
}

}  // namespace

extern "C" {

struct Product {       // linears side by side, and the norm before them
  const float* weight;  // blocks of each linear in turn
  const float* bias;    // none, or one number an output
  const float* norm;    // none, or one number an input
  float eps;
  int32_t inputs, parts, outputs[3];
};

struct Block {
  Product qkv, output;
  int32_t heads, kv_heads, dim;
};

struct Layer {
  Product qkv, output, gate_up, down;
  const float *head_norms, *head_eps;  // none, or of each of the H + G heads
  float scale;
  int32_t heads, kv_heads, dim, window;
  const Block* block;
};

struct Model {
  const Layer* layers;
  Product head;
  int32_t count, is_bf16;
};

struct Store {  // keys of a layer before its values; numbers from one to the next
  char* data;
  int64_t next_half, next_place, next_head;
};

struct Step {
  int32_t rows, threads, has_blocks;
  float* x;                              // embeddings
  const float *cos, *sin;                // sines with the sign of a half; rows' places there: turns
  Store own, shared;
  const int32_t *lengths, *prompts, *prompt_lengths, *turns;  // of each row
  const int32_t *chunks, *order;         // parts of `order` whose rows answer one prompt
  int32_t chunk_count, set_count;
  const int32_t *readers, *read;         // a set of rows, and those that they see: parts of
  const int32_t *reader_rows, *read_rows;
  const uint8_t* skips;                  // none, or whether a row goes by the blocks
  float* logits;
};

struct Draws {
  const float* logits;
  int64_t next;  // from one row to those of the next
  int32_t rows, vocabulary, forbidden_count, threads;
  const int64_t* forbidden;
  const double* uniform;  // of each row
  float temperature;
  int64_t* tokens;
  float *logprobs, *sampled_logprobs;
};

}  // extern "C"

namespace {

template <class T>
int64_t words_of(int64_t numbers) {
  return (numbers * sizeof(T) + 3) / 4;
}

// One of `of` threads in a parallel region.
struct Share {
  int me, of;
  bool has(int64_t task, int64_t tasks) const { return task * of / tasks == me; }
  void wait() const {
#pragma omp barrier
  }
};

// `done(row, rows, output, outputs, sums)` for each tile of a product; with PAIR, its second linear's
// sums of the same outputs come behind.
template <class T, bool PAIR, class F>
void product(const Product& p, const float* x, int rows, Share share, F done) {
  const int64_t words = words_of<T>(p.inputs), next = words * LANES;
  int64_t tasks = 0, task = 0, first = 0;
  const int parts = PAIR ? 1 : p.parts;
  auto blocks_of = [&](int part) { return (p.outputs[part] + LANES - 1) / LANES; };
  for (int part = 0; part < parts; part++) tasks += (blocks_of(part) + COLUMNS - 1) / COLUMNS;
  const float* weight = p.weight;
  for (int part = 0; part < parts; part++) {
    const int blocks = blocks_of(part);
    for (int b = 0; b < blocks; b += COLUMNS) {
      if (!share.has(task++, tasks)) continue;
      const int some = std::min(COLUMNS, blocks - b);
      for (int r = 0; r < rows; r += ROWS) {
        alignas(64) float sums[2][ROWS * COLUMNS * LANES];
        const int here = std::min(ROWS, rows - r);
        for (int half = 0; half <= PAIR; half++) {
          const float* w = weight + (b + half * blocks) * next;
          multiply<T>(x + r * words, words, w, next, words, sums[half], COLUMNS * LANES, here, some,
                      rows < ROWS ? w : w + (some + r / ROWS) * next);
        }
        const int valid = std::min(some * LANES, p.outputs[part] - b * LANES);
        for (int n = 0; n < here; n++)
          done(r + n, first + b * LANES, valid, sums[0] + n * COLUMNS * LANES,
               sums[1] + n * COLUMNS * LANES);
      }
    }
    weight += blocks * next;
    first += p.outputs[part];
  }
}

int64_t outputs_of(const Product& p) {
  int64_t sum = 0;
  for (int part = 0; part < p.parts; part++) sum += p.outputs[part];
  return sum;
}
float bias_of(const Product& p, int64_t output) { return p.bias ? p.bias[output] : 0.f; }

// What to do with a product's sums: write them, or add them to the hidden states of most rows.
auto written(const Product& p, float* to) {
  return [&p, to, next = outputs_of(p)](int row, int64_t first, int n, const float* sums, const float*) {
    for (int i = 0; i < n; i++) to[row * next + first + i] = sums[i] + bias_of(p, first + i);
  };
}
auto added(const Product& p, float* x, const uint8_t* skips) {
  return [&p, x, skips, next = outputs_of(p)](int row, int64_t first, int n, const float* sums, const float*) {
    if (skips && skips[row]) return;
    for (int i = 0; i < n; i++) x[row * next + first + i] += sums[i] + bias_of(p, first + i);
  };
}

// A row as the input of a product, normalised if it asks for that.
template <class T, class S>
void prepare(const Product& p, const S* x, float* out) {
  float scale = 1.f;
  if (p.norm) {
    float squares = 0.f;
#pragma omp simd reduction(+ : squares)
    for (int i = 0; i < p.inputs; i++) squares += number(x[i]) * number(x[i]);
    scale = 1.f / std::sqrt(squares / p.inputs + p.eps);
  }
  T* to = reinterpret_cast<T*>(out);
  for (int i = 0; i < p.inputs; i++) put(to[i], number(x[i]) * scale * (p.norm ? p.norm[i] : 1.f));
  if (p.inputs * sizeof(T) % 4) put(to[p.inputs], 0.f);
}

template <class T, class S>
void prepare_rows(const Product& p, const S* x, float* out, int rows, Share share) {
  for (int r = 0; r < rows; r++)
    if (share.has(r, rows)) prepare<T>(p, x + int64_t(r) * p.inputs, out + r * words_of<T>(p.inputs));
}

// Softmax over keys in parts: M queries `[M, C]`, already scaled, and what they have read so far.
struct Reading {
  int queries, dim, padded;
  std::vector<float> q, out, top, sum, scores, keys;
  std::vector<int> first;  // the first key of a part that a query sees

  Reading(int queries, int dim)
      : queries(queries), dim(dim), padded((dim + LANES - 1) / LANES * LANES),
        q(queries * dim), out(queries * padded), top(queries, NONE), sum(queries), scores(queries * KEYS),
        keys(KEYS * dim), first(queries) {}

  // Queries from `from` on, `count` of them, read N keys and values `[N, C]`.
  template <class T>
  void read(int from, int count, const T* k, const T* v, int n) {
    int start = n;
    for (int m = from; m < from + count; m++) start = std::min(start, first[m]);
    start = start / KEYS * KEYS;  // so that a query's parts do not depend on its neighbours
    for (int u = start; u < n; u += KEYS) {
      const int here = std::min(KEYS, n - u), blocks = (here + LANES - 1) / LANES;
      turn_keys(k + int64_t(u) * dim, here);
      multiply<float>(&q[from * dim], dim, keys.data(), dim * LANES, dim, &scores[from * KEYS], KEYS,
                      count, blocks, keys.data());
      for (int m = from; m < from + count; m++) weigh(m, first[m] - u, here, blocks);
      for (int m = from; m < from + count; m += MIXED)
        mix<MIXED>(std::min(MIXED, from + count - m), &scores[m * KEYS], v + int64_t(u) * dim, here,
                   &out[m * padded]);
    }
  }

  float mixed(int m, int c) const { return out[m * padded + c] / sum[m]; }

 private:
  template <class T>
  void turn_keys(const T* k, int here) {
    constexpr int IN_WORD = 4 / sizeof(T);  // heads are of even size where it is two
    for (int b = 0; b * LANES < here; b++)
      for (int c = 0; c < dim; c += LANES * IN_WORD) {
        V t[LANES];
        const int some = std::min(LANES, (dim - c) / IN_WORD);
        for (int i = 0; i < LANES; i++) {
          const T* from = k + int64_t(b * LANES + i) * dim + c;
          t[i] = b * LANES + i < here ? load_some(reinterpret_cast<const float*>(from), some) : V{};
        }
        transpose(t);
        float* to = &keys[(b * dim + c) * LANES];
        for (int i = 0; i < some; i++) {
          if (IN_WORD == 1) save(to + i * LANES, t[i]);
          else {
            save(to + 2 * i * LANES, (V)((VI)t[i] << 16));
            save(to + (2 * i + 1) * LANES, (V)((VI)t[i] & int32_t(0xffff0000)));
          }
        }
      }
  }

  // Adds to what so many queries, at most R, have read: values `[N, C]` by their weights.
  template <int R, class T>
  void mix(int count, const float* weights, const T* v, int here, float* to) const {
    if constexpr (R > 1)
      if (count < R) return mix<R - 1>(count, weights, v, here, to);
    int c = 0;
    for (; c + WIDE * LANES <= dim; c += WIDE * LANES) mix<R, WIDE>(weights, v + c, LANES, here, to + c);
    for (; c < dim; c += LANES) mix<R, 1>(weights, v + c, std::min(LANES, dim - c), here, to + c);
  }
  template <int R, int C, class T>
  void mix(const float* weights, const T* v, int lanes, int here, float* to) const {
    V sum[R][C];
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) sum[r][c] = load(to + r * padded + c * LANES);
    for (int i = 0; i < here; i++) {
      V b[C];
      for (int c = 0; c < C; c++) b[c] = load_some(v + i * dim + c * LANES, C > 1 ? LANES : lanes);
      for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) sum[r][c] += weights[r * KEYS + i] * b[c];
    }
    for (int r = 0; r < R; r++)
      for (int c = 0; c < C; c++) save(to + r * padded + c * LANES, sum[r][c]);
  }

  // A query's scores of some keys become weights; what it has read before is scaled to them.
  void weigh(int m, int low, int here, int blocks) {
    const VI lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    float* row = &scores[m * KEYS];
    V most = all(NONE);
    for (int b = 0; b < blocks; b++) {
      V s = load(row + b * LANES);
      if (b * LANES < low || (b + 1) * LANES > here) {
        const VI key = lane + b * LANES;
        s = (key >= low) & (key < here) ? s : all(NONE);
        save(row + b * LANES, s);
      }
      most = s > most ? s : most;
    }
    const float before = top[m], now = std::max(before, largest_of(most));
    top[m] = now;
    V total{};
    for (int b = 0; b < blocks; b++) {
      const V s = load(row + b * LANES);
      // What is not seen has weight zero exactly, also where nothing has been seen yet.
      const V weight = s == all(NONE) ? V{} : exponential(s - now);
      total += weight;
      save(row + b * LANES, weight);
    }
    const float kept = before == NONE ? 0.f : std::exp(before - now);
    sum[m] = sum[m] * kept + sum_of(total);
    for (int c = 0; c < padded; c++) out[m * padded + c] *= kept;
  }
};

// A head, normalised if the model does that, and turned to its row's position.
void turn(const Layer& layer, int head, const float* x, const float* cos, const float* sin, float* out) {
  const int dim = layer.dim, half = dim / 2;
  float normed[MOST_DIM];
  std::copy(x, x + dim, normed);
  if (layer.head_norms) {
    float squares = 0.f;
    for (int c = 0; c < dim; c++) squares += x[c] * x[c];
    const float scale = 1.f / std::sqrt(squares / dim + layer.head_eps[head]);
    for (int c = 0; c < dim; c++) normed[c] *= scale * layer.head_norms[head * dim + c];
  }
  for (int c = 0; c < dim; c++) {
    const int other = c < half ? c + dim - half : c - half;
    out[c] = normed[c] * cos[c] + normed[other] * sin[c];
  }
}

// Rows of one prompt, key-value head g: stores their new keys and values, and attends.
template <class T>
void attend(const Layer& layer, const Step& step, int index, const int32_t* rows, int count, int g,
            const float* qkv, float* mixed) {
  const int dim = layer.dim, per = layer.heads / layer.kv_heads;
  const int64_t outputs = outputs_of(layer.qkv);
  const int64_t words = words_of<T>(layer.heads * dim);
  auto part = [&](const Store& store, int half, int place) {
    return reinterpret_cast<T*>(store.data) + (2 * index + half) * store.next_half +
           place * store.next_place + g * store.next_head;
  };
  Reading reading(count * per, dim);
  std::vector<float> turned(dim);
  for (int n = 0; n < count; n++) {
    const int row = rows[n], length = step.lengths[row];
    const int64_t turns = int64_t(step.turns[row]) * dim;
    const float *cos = step.cos + turns, *sin = step.sin + turns, *from = qkv + row * outputs;
    for (int j = 0; j < per; j++) {
      const int head = g * per + j;
      float* q = &reading.q[(n * per + j) * dim];
      turn(layer, head, from + head * dim, cos, sin, q);
      for (int c = 0; c < dim; c++) q[c] *= layer.scale;
    }
    turn(layer, layer.heads + g, from + (layer.heads + g) * dim, cos, sin, turned.data());
    T* key = part(step.own, 0, row) + int64_t(length) * dim;
    T* value = part(step.own, 1, row) + int64_t(length) * dim;
    const float* v = from + (layer.heads + layer.kv_heads + g) * dim;
    for (int c = 0; c < dim; c++) put(key[c], turned[c]), put(value[c], v[c]);
    const int low = layer.window ? step.prompt_lengths[row] + length - layer.window + 1 : 0;
    for (int j = 0; j < per; j++) reading.first[n * per + j] = std::max(low, 0);
  }
  const int place = step.prompts[rows[0]];
  reading.read(0, count * per, part(step.shared, 0, place), part(step.shared, 1, place),
               step.prompt_lengths[rows[0]]);
  for (int n = 0; n < count; n++) {
    const int row = rows[n], length = step.lengths[row];
    for (int j = 0; j < per; j++)
      reading.first[n * per + j] = layer.window ? std::max(length - layer.window + 1, 0) : 0;
    reading.read(n * per, per, part(step.own, 0, row), part(step.own, 1, row), length + 1);
    T* to = reinterpret_cast<T*>(mixed + row * words) + g * per * dim;
    for (int i = 0; i < per * dim; i++) put(to[i], reading.mixed(n * per + i / dim, i % dim));
  }
}

// Rows that see the same rows, key-value head g of a Bridge block.
template <class T>
void read_siblings(const Block& block, const int32_t* readers, int count, const int32_t* seen, int n, int g,
                   const float* qkv, float* mixed) {
  const int dim = block.dim, per = block.heads / block.kv_heads;
  const int64_t outputs = outputs_of(block.qkv);
  const int64_t words = words_of<T>(block.heads * dim);
  Reading reading(count * per, dim);
  std::vector<float> keys(n * dim), values(n * dim);
  const float scale = 1.f / std::sqrt(float(dim));
  for (int i = 0; i < n; i++) {
    const float* from = qkv + seen[i] * outputs + (block.heads + g) * dim;
    std::copy(from, from + dim, &keys[i * dim]);
    std::copy(from + block.kv_heads * dim, from + (block.kv_heads + 1) * dim, &values[i * dim]);
  }
  for (int m = 0; m < count * per; m++)
    for (int c = 0; c < dim; c++)
      reading.q[m * dim + c] = qkv[readers[m / per] * outputs + (g * per + m % per) * dim + c] * scale;
  reading.read(0, count * per, keys.data(), values.data(), n);
  for (int m = 0; m < count * per; m++) {
    T* to = reinterpret_cast<T*>(mixed + readers[m / per] * words) + (g * per + m % per) * dim;
    for (int c = 0; c < dim; c++) put(to[c], reading.mixed(m, c));
    if (g + 1 == block.kv_heads && block.output.inputs * sizeof(T) % 4)  // the second half of a word
      put(reinterpret_cast<T*>(mixed + readers[m / per] * words)[block.output.inputs], 0.f);
  }
}

struct Memory {
  std::vector<float> input, wide, mixed;
};

template <class T>
void couple(const Block& block, const Step& step, Memory& memory, Share share) {
  float* wide = memory.wide.data();
  prepare_rows<T>(block.qkv, step.x, memory.input.data(), step.rows, share);
  share.wait();
  product<T, false>(block.qkv, memory.input.data(), step.rows, share, written(block.qkv, wide));
  share.wait();
  const int tasks = step.set_count * block.kv_heads;
  for (int task = 0; task < tasks; task++) {
    if (!share.has(task, tasks)) continue;
    const int set = task / block.kv_heads, *readers = step.readers + set, *read = step.read + set;
    read_siblings<T>(block, step.reader_rows + readers[0], readers[1] - readers[0],
                     step.read_rows + read[0], read[1] - read[0], task % block.kv_heads, wide,
                     memory.mixed.data());
  }
  share.wait();
  product<T, false>(block.output, memory.mixed.data(), step.rows, share,
                    added(block.output, step.x, step.skips));
  share.wait();
}

template <class T>
void decode_layer(const Layer& layer, const Step& step, int index, Memory& memory, Share share) {
  float *input = memory.input.data(), *wide = memory.wide.data(), *mixed = memory.mixed.data();
  prepare_rows<T>(layer.qkv, step.x, input, step.rows, share);
  share.wait();
  product<T, false>(layer.qkv, input, step.rows, share, written(layer.qkv, wide));
  share.wait();
  const int tasks = step.chunk_count * layer.kv_heads;
  for (int task = 0; task < tasks; task++) {
    if (!share.has(task, tasks)) continue;
    const int32_t* chunk = step.chunks + task / layer.kv_heads;
    attend<T>(layer, step, index, step.order + chunk[0], chunk[1] - chunk[0], task % layer.kv_heads, wide,
              mixed);
  }
  share.wait();
  product<T, false>(layer.output, mixed, step.rows, share, added(layer.output, step.x, nullptr));
  share.wait();
  prepare_rows<T>(layer.gate_up, step.x, input, step.rows, share);
  share.wait();
  const int64_t inner = layer.gate_up.outputs[0], words = words_of<T>(inner);
  product<T, true>(layer.gate_up, input, step.rows, share,
                   [&](int row, int64_t first, int n, const float* gates, const float* ups) {
                     T* to = reinterpret_cast<T*>(mixed + row * words) + first;
                     for (int i = 0; i < n; i += LANES) {
                       alignas(64) float some[LANES];
                       V gate = load(gates + i), up = load(ups + i);
                       const int here = std::min(LANES, n - i);
                       if (const float* bias = layer.gate_up.bias) {
                         gate += load_some(bias + first + i, here);
                         up += load_some(bias + inner + first + i, here);
                       }
                       save(some, gate / (1.f + exponential(-gate)) * up);
                       for (int j = 0; j < here; j++) put(to[i + j], some[j]);
                     }
                     if (first + n == inner && inner * sizeof(T) % 4) put(to[n], 0.f);
                   });
  share.wait();
  product<T, false>(layer.down, mixed, step.rows, share, added(layer.down, step.x, nullptr));
  share.wait();
  if (layer.block && step.has_blocks) couple<T>(*layer.block, step, memory, share);
}

template <class T>
void decode(const Model& model, const Step& step) {
  int64_t most = 0;  // numbers of a row, before a product or after it
  auto count = [&](const Product& p) { most = std::max({most, int64_t(p.inputs), outputs_of(p)}); };
  for (int n = 0; n < model.count; n++) {
    const Layer& layer = model.layers[n];
    for (const Product* p : {&layer.qkv, &layer.output, &layer.down}) count(*p);
    if (layer.block) count(layer.block->qkv), count(layer.block->output);
  }
  Memory memory;
  for (auto* one : {&memory.input, &memory.wide, &memory.mixed}) one->resize(step.rows * most);
#pragma omp parallel num_threads(step.threads) if (step.threads > 1)
  {
    const Share share{omp_get_thread_num(), omp_get_num_threads()};
    for (int n = 0; n < model.count; n++) decode_layer<T>(model.layers[n], step, n, memory, share);
    prepare_rows<T>(model.head, step.x, memory.input.data(), step.rows, share);
    share.wait();
    product<T, false>(model.head, memory.input.data(), step.rows, share, written(model.head, step.logits));
  }
}

// residual + Norm(x) W^T + bias, for any number of rows.
template <class T>
void apply(const Product& p, const T* x, const T* residual, T* out, int64_t rows, int threads) {
  const int64_t outputs = outputs_of(p);
  std::vector<float> input(rows * words_of<T>(p.inputs));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const Share share{omp_get_thread_num(), omp_get_num_threads()};
    prepare_rows<T>(p, x, input.data(), rows, share);
    share.wait();
    product<T, false>(p, input.data(), rows, share,
                      [&](int row, int64_t first, int n, const float* sums, const float*) {
                        const int64_t at = row * outputs + first;
                        for (int i = 0; i < n; i++)
                          put(out[at + i], sums[i] + bias_of(p, first + i) +
                                               (residual ? number(residual[at + i]) : 0.f));
                      });
  }
}

// A part of a row's vocabulary: its largest logit, and the sum of its weights e^((x - top) / temperature).
// With a top of its own nothing is lost beside large logits elsewhere, and one pass over the row is enough.
constexpr int PART = 256;
struct Part {
  float top;
  double sum;
};

Part weigh(const float* x, float temperature, float* weights = nullptr) {
  V most = load(x), sum{};
  for (int i = LANES; i < PART; i += LANES) most = load(x + i) > most ? load(x + i) : most;
  const float top = largest_of(most), least = top == NONE ? 0.f : top;
  for (int i = 0; i < PART; i += LANES) {
    V below = load(x + i) - least;
    if (temperature != 1.f) below /= temperature;
    const V weight = below < all(-87.f) ? V{} : exponential(below);  // what is no number stays that
    sum += weight;
    if (weights) save(weights + i, weight);
  }
  return {top, sum_of(sum)};
}

// Brings parts to the largest top, which `top` becomes; their sum.
double bring_together(std::vector<Part>& parts, float temperature, double& top) {
  top = NONE;
  for (const Part& part : parts) top = std::max(top, double(part.top));
  double total = 0.;
  for (Part& part : parts) total += part.sum *= std::exp((part.top - top) / temperature);
  return total;
}

// A row's token, by inverse CDF, and its log-probabilities. False if it has none: its logits are not
// numbers, or nothing is left.
bool draw(const Draws& d, int row) {
  const float* logits = d.logits + row * d.next;
  alignas(64) float own[PART], weights[PART];
  auto forbids = [&](int p) {
    return std::any_of(d.forbidden, d.forbidden + d.forbidden_count,
                       [p](int64_t token) { return token / PART == p; });
  };
  auto part_of = [&](int p, bool forbidding) -> const float* {
    const float* from = logits + p * PART;
    const int here = std::min(PART, d.vocabulary - p * PART);
    if (here == PART && !forbidding) return from;
    std::fill(std::copy(from, from + here, own), own + PART, NONE);
    for (int i = 0; forbidding && i < d.forbidden_count; i++)
      if (d.forbidden[i] / PART == p) own[d.forbidden[i] % PART] = NONE;
    return own;
  };
  std::vector<Part> parts((d.vocabulary + PART - 1) / PART);
  for (int p = 0; p < int(parts.size()); p++) parts[p] = weigh(part_of(p, false), 1.f);
  std::vector<Part> left = parts;
  for (int p = 0; p < int(left.size()); p++)
    if (const bool forbidding = forbids(p); forbidding || d.temperature != 1.f)
      left[p] = weigh(part_of(p, forbidding), d.temperature);
  double top, top_left;
  const double total = bring_together(parts, 1.f, top);
  const double total_left = bring_together(left, d.temperature, top_left);
  if (!(total > 0. && total_left > 0.)) return false;
  // Rounding may carry the target past the last weight; that token is meant.
  const double target = d.uniform[row] * total_left;
  double before = 0., passed = 0.;
  int chosen = 0, token = 0;
  for (int p = 0; p < int(left.size()) && passed <= target; p++)
    if (left[p].sum > 0.) chosen = p, before = passed, passed += left[p].sum;
  const Part part = weigh(part_of(chosen, forbids(chosen)), d.temperature, weights);
  const double rest = (target - before) * (part.sum / left[chosen].sum);
  passed = 0.;
  for (int i = 0; i < PART && passed <= rest; i++)
    if (weights[i] > 0.f) token = chosen * PART + i, passed += weights[i];
  const double logit = logits[token];
  d.tokens[row] = token;
  d.logprobs[row] = float(logit - top - std::log(total));
  d.sampled_logprobs[row] = float((logit - top_left) / d.temperature - std::log(total_left));
  return true;
}

}  // namespace

extern "C" {

// The number of rows that it leaves to others.
int32_t interlace_draw(const Draws* d) {
  int32_t left = 0;
#pragma omp parallel for num_threads(d->threads) if (d->threads > 1) reduction(+ : left)
  for (int row = 0; row < d->rows; row++) left += !draw(*d, row);
  return left;
}

void interlace_decode(const Model* model, const Step* step) {
  model->is_bf16 ? decode<bf16>(*model, *step) : decode<float>(*model, *step);
}

void interlace_apply(const Product* p, const void* x, const void* residual, void* out, int64_t rows,
                     int32_t is_bf16, int32_t threads) {
  if (is_bf16)
    apply(*p, static_cast<const bf16*>(x), static_cast<const bf16*>(residual), static_cast<bf16*>(out), rows,
          threads);
  else
    apply(*p, static_cast<const float*>(x), static_cast<const float*>(residual), static_cast<float*>(out),
          rows, threads);
}

const char* interlace_features() {
#if defined(__AVX512BF16__)
  return "AVX-512 bf16";
#elif defined(__AVX512F__)
  return "AVX-512";
#elif defined(__AVX2__)
  return "AVX2";
#else
  return "no vectors that it knows";
#endif
}

}  // extern "C"
