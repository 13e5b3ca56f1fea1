// What torch has no operator for on a CPU, or needs many for. Called by kernels.py, which checks shapes and types.
// Pointers are to contiguous rows unless a stride says otherwise; strides and sizes are counted in elements.
// OpenMP's symbols are those of the library that torch has loaded: one pool of threads for all.

#include <cmath>
#include <cstdint>
#include <omp.h>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, SUMS = 24;  // SUMS: vectors of a tile that are kept in registers
#else
constexpr int LANES = 8, SUMS = 12;
#endif
constexpr int64_t NEAR_BYTES = 1 << 18;  // of a weight, for all rows to read while it is in a core's cache
constexpr int MOST_HEAD = 256, MOST_HEADS = 64, KEYS = 16;  // numbers of a head; heads, and keys, computed together
constexpr int64_t AHEAD_WORDS = 1024;  // that memory takes to answer, in a weight that is read from it
constexpr int MOST_INT8_ROWS = 16;
constexpr int64_t WORTH_THREADS = 1 << 15;  // numbers; waking a thread takes longer than fewer

typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t Words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

struct Bf16 {
    uint16_t bits;
};

inline Floats as_floats(Words words) { return (Floats)words; }
inline Words as_words(Floats floats) { return (Words)floats; }

inline Floats load(const float *from) { return *(const Floats *)from; }
inline Floats load(const Bf16 *from) {
    return as_floats(__builtin_convertvector(*(const Halves *)from, Words) << 16);
}
inline void store(float *to, Floats values) { *(Floats *)to = values; }
inline void store(Bf16 *to, Floats values) {  // to nearest, ties to even; NaN stays NaN
    Words words = as_words(values);
    Words rounded = (words + 0x7fff + ((words >> 16) & 1)) >> 16;
    rounded = values == values ? rounded : 0x7fc0 + (words & 0);
    *(Halves *)to = __builtin_convertvector(rounded & 0xffff, Halves);
}

template <int WIDTH = LANES / 2>
inline float sum_of(Floats values) {
    Words other;
    for (int lane = 0; lane < LANES; lane++) other[lane] = lane ^ WIDTH;
    values += __builtin_shuffle(values, other);
    if constexpr (WIDTH > 1) return sum_of<WIDTH / 2>(values);
    return values[0];
}

inline Floats exponential(Floats x) {  // Cephes' expf, to two units in the last place
    x = x < -87.3f ? Floats{} - 87.3f : x > 88.3f ? Floats{} + 88.3f : x;
    Words power = __builtin_convertvector(x * 1.44269504f + (x < 0 ? Floats{} - 0.5f : Floats{} + 0.5f), Words);
    Floats whole = __builtin_convertvector(power, Floats);
    Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Floats series = 1.9875691500e-4f * rest + 1.3981999507e-3f;
    series = series * rest + 8.3334519073e-3f;
    series = series * rest + 4.1665795894e-2f;
    series = series * rest + 1.6666665459e-1f;
    series = series * rest + 5.0000001201e-1f;
    return (series * rest * rest + rest + 1.0f) * as_floats((power + 127) << 23);
}

// A packed weight is made of panels of VECTORS * LANES outputs: [panels, inputs, LANES] words, each with a part for one
// output of every vector.
struct Short {  // bfloat16
    static constexpr int VECTORS = 2;
    static void unpack(Words words, Floats *columns) {
        columns[0] = as_floats(words << 16);
        columns[1] = as_floats(words & ~0xffff);
    }
};
struct Int8 {
    static constexpr int VECTORS = 4;
    static void unpack(Words words, Floats *columns) {
        for (int v = 0; v < VECTORS; v++)
            columns[v] = __builtin_convertvector((words << (24 - 8 * v)) >> 24, Floats);
    }
};

// y[r, :] of ROWS rows and PANELS panels. What lies `ahead` words further in the weight is asked for meanwhile. Each sum
// runs over the inputs in order, whatever the tile: a row's result does not depend on what else is computed.
template <typename W, int ROWS, int PANELS>
void product_tile(const float *x, const int32_t *weight, int64_t inputs, float *y, int64_t outputs, int64_t ahead) {
    constexpr int V = W::VECTORS;
    Floats sums[ROWS][PANELS][V] = {};
    for (int64_t k = 0; k < inputs; k++) {
        Floats columns[PANELS][V];
        for (int p = 0; p < PANELS; p++) {
            const int32_t *words = weight + (p * inputs + k) * LANES;
            __builtin_prefetch(words + ahead);
            W::unpack(*(const Words *)words, columns[p]);
        }
        for (int r = 0; r < ROWS; r++)
            for (int p = 0; p < PANELS; p++)
                for (int v = 0; v < V; v++) sums[r][p][v] += x[r * inputs + k] * columns[p][v];
    }
    for (int r = 0; r < ROWS; r++)
        for (int p = 0; p < PANELS; p++)
            for (int v = 0; v < V; v++) store(y + r * outputs + (p * V + v) * LANES, sums[r][p][v]);
}

// As product_tile for any number of rows up to ROWS and any number of panels.
template <typename W, int ROWS>
void product_tiles(int rows, int64_t panels, const float *x, const int32_t *weight, int64_t inputs, float *y,
                   int64_t outputs, int64_t ahead) {
    if constexpr (ROWS > 1) {
        if (rows < ROWS) return product_tiles<W, ROWS - 1>(rows, panels, x, weight, inputs, y, outputs, ahead);
    }
    constexpr int FIT = SUMS / (W::VECTORS * ROWS), TOGETHER = FIT >= 8 ? 8 : FIT >= 4 ? 4 : FIT >= 2 ? 2 : 1;
    constexpr int PANEL = W::VECTORS * LANES;
    int64_t p = 0;
    for (; p + TOGETHER <= panels; p += TOGETHER)
        product_tile<W, ROWS, TOGETHER>(x, weight + p * inputs * LANES, inputs, y + p * PANEL, outputs, ahead);
    for (; p < panels; p++)
        product_tile<W, ROWS, 1>(x, weight + p * inputs * LANES, inputs, y + p * PANEL, outputs, ahead);
}

// x [rows, inputs], y [rows, outputs]
template <typename W>
void product(const float *x, const int32_t *weight, float *y, int64_t rows, int64_t inputs, int64_t outputs) {
    constexpr int PANEL = W::VECTORS * LANES, TILE_ROWS = SUMS / W::VECTORS;
    int64_t panels = outputs / PANEL, tiles = (rows + TILE_ROWS - 1) / TILE_ROWS;
    int64_t near = tiles == 1 ? panels : 1 + NEAR_BYTES / (inputs * LANES * int64_t(sizeof *weight));
#pragma omp parallel
    {
        int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        int64_t last = panels * (thread + 1) / threads;
        for (int64_t p = panels * thread / threads; p < last; p += near) {
            int64_t count = last - p < near ? last - p : near;
            for (int64_t tile = 0; tile < tiles; tile++) {
                int64_t row = rows * tile / tiles, end = rows * (tile + 1) / tiles;
                int64_t ahead = tile == 0 ? AHEAD_WORDS : near * inputs * LANES;  // later tiles fetch what comes next
                product_tiles<W, TILE_ROWS>(end - row, count, x + row * inputs, weight + p * inputs * LANES, inputs,
                                            y + row * outputs + p * PANEL, outputs, ahead);
            }
        }
    }
}

// What int8.py's rounded_rows gives, less the level of zero, for one row; returns its scale.
inline float rounded(const float *x, float *levels, int64_t inputs, float most) {
    Floats largest = {};
    for (int64_t i = 0; i < inputs; i += LANES) {
        Floats size = as_floats(as_words(load(x + i)) & 0x7fffffff);
        largest = (size > largest) | (size != size) ? size : largest;  // a NaN stays
    }
    float scale = 1e-30f;
    for (int lane = 0; lane < LANES; lane++) scale = scale >= largest[lane] || scale != scale ? scale : largest[lane];
    scale /= most;
    for (int64_t i = 0; i < inputs; i += LANES) {
        Words shifted = __builtin_convertvector(load(x + i) / scale + (most + 1.5f), Words);
        store(levels + i, __builtin_convertvector(shifted, Floats) - (most + 1));
    }
    return scale;
}

template <typename T>
void rms_norm(const T *x, const T *weight, T *y, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for if (rows * width > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const T *from = x + r * width;
        Floats squares = {};
        for (int64_t i = 0; i < width; i += LANES) squares += load(from + i) * load(from + i);
        float scale = 1.0f / std::sqrt(sum_of(squares) / width + eps);
        for (int64_t i = 0; i < width; i += LANES) store(y + r * width + i, load(from + i) * scale * load(weight + i));
    }
}

template <typename T>
void gate(const T *gate_up, T *y, int64_t rows, int64_t width) {
#pragma omp parallel for if (rows * width > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const T *gates = gate_up + 2 * r * width;
        for (int64_t i = 0; i < width; i += LANES) {
            Floats value = load(gates + i);
            store(y + r * width + i, value / (1.0f + exponential(-value)) * load(gates + width + i));
        }
    }
}

struct Shape {
    int64_t heads, kv_heads, head_dim, block_tokens, block_stride, layer_offset;  // strides in elements of the pool
};

// heads [rows, all, head_dim]: the first `turned` of each row are turned in place; cos and sin [rows, head_dim], the
// sine of the first half with its minus sign.
template <typename T>
void rotate(T *heads, const float *cos, const float *sin, int64_t rows, int64_t all, int64_t turned, int64_t head_dim) {
    int64_t half = head_dim / 2;
#pragma omp parallel for if (rows * turned * head_dim > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const float *c = cos + r * head_dim, *s = sin + r * head_dim;
        for (T *head = heads + r * all * head_dim, *end = head + turned * head_dim; head < end; head += head_dim) {
            for (int64_t i = 0; i < half; i += LANES) {
                Floats first = load(head + i), second = load(head + half + i);
                store(head + i, first * load(c + i) + second * load(s + i));
                store(head + half + i, second * load(c + half + i) + first * load(s + half + i));
            }
        }
    }
}

// Keys and values of heads [rows, heads + 2 * kv_heads, head_dim] into the pool.
template <typename T, typename C>
void store_kv(const T *heads, C *pool, const int64_t *blocks, const int64_t *offsets, int64_t rows, const Shape &shape) {
    int64_t all = shape.heads + 2 * shape.kv_heads, kept = shape.kv_heads * shape.head_dim;
#pragma omp parallel for if (rows * kept > WORTH_THREADS)
    for (int64_t r = 0; r < rows; r++) {
        const T *keys = heads + (r * all + shape.heads) * shape.head_dim;
        C *to = pool + blocks[r] * shape.block_stride + shape.layer_offset + offsets[r] * kept;
        for (int64_t i = 0; i < kept; i += LANES) {
            store(to + i, load(keys + i));
            store(to + shape.block_tokens * kept + i, load(keys + kept + i));
        }
    }
}

// Lane i of the result is the sum of the lanes of rows[i]. Halves of two rows are added side by side, then quarters.
template <int WIDTH = LANES / 2>
inline Floats sums_of(Floats *rows) {
    Words lower, upper;  // lanes of one row, or, LANES further, of the other
    for (int lane = 0; lane < LANES; lane++) {
        int other = lane % (2 * WIDTH) < WIDTH ? 0 : LANES - WIDTH;
        lower[lane] = lane + other;
        upper[lane] = lane + other + WIDTH;
    }
    for (int i = 0; i < WIDTH; i++)
        rows[i] = __builtin_shuffle(rows[i], rows[i + WIDTH], lower) + __builtin_shuffle(rows[i], rows[i + WIDTH], upper);
    if constexpr (WIDTH > 1) return sums_of<WIDTH / 2>(rows);
    return rows[0];
}

// One query head over the keys that it has seen so far.
struct Softmax {
    Floats context[MOST_HEAD / LANES], total;
    float peak;

    void begin(int64_t head_dim) {
        for (int64_t v = 0; v < head_dim / LANES; v++) context[v] = Floats{};
        total = Floats{};
        peak = -INFINITY;
    }

    // KEYS scores become weights, and what was seen before them is weighed anew.
    void weigh(float *scores, int64_t head_dim) {
        float highest = peak;
        for (int k = 0; k < KEYS; k++) highest = scores[k] > highest ? scores[k] : highest;
        if (highest > peak) {
            float kept = std::exp(peak - highest);
            for (int64_t v = 0; v < head_dim / LANES; v++) context[v] *= kept;
            total *= kept;
            peak = highest;
        }
        for (int k = 0; k < KEYS; k += LANES) {
            Floats weights = exponential(load(scores + k) - peak);
            total += weights;
            store(scores + k, weights);
        }
    }
};

// Up to HEADS query heads of one key-value head over up to KEYS of its keys, which are `stride` apart: each key and
// value is loaded once for all. queries [heads, head_dim], already scaled.
template <int HEADS, typename C>
void attend_to(int64_t heads, Softmax *states, const float *queries, const C *keys, const C *values, int64_t stride,
               int count, int64_t head_dim) {
    if constexpr (HEADS > 1) {
        if (heads < HEADS)
            return attend_to<HEADS - 1>(heads, states, queries, keys, values, stride, count, head_dim);
    }
    Floats products[HEADS][KEYS] = {};
    float scores[HEADS][KEYS];
    for (int k = 0; k < count; k++) {
        Floats sums[HEADS] = {};
        for (int64_t i = 0; i < head_dim; i += LANES) {
            Floats key = load(keys + k * stride + i);
            for (int h = 0; h < HEADS; h++) sums[h] += load(queries + h * head_dim + i) * key;
        }
        for (int h = 0; h < HEADS; h++) products[h][k] = sums[h];
    }
    for (int h = 0; h < HEADS; h++) {
        for (int k = 0; k < KEYS; k += LANES) store(scores[h] + k, sums_of(products[h] + k));
        for (int k = count; k < KEYS; k++) scores[h][k] = -INFINITY;
        states[h].weigh(scores[h], head_dim);
    }
    for (int64_t v = 0; v < head_dim / LANES; v++) {
        Floats mixed[HEADS];
        for (int h = 0; h < HEADS; h++) mixed[h] = states[h].context[v];
        for (int k = 0; k < count; k++) {
            Floats value = load(values + k * stride + v * LANES);
            for (int h = 0; h < HEADS; h++) mixed[h] += scores[h][k] * value;
        }
        for (int h = 0; h < HEADS; h++) states[h].context[v] = mixed[h];
    }
}

// Asks for KEYS keys and values of one head, which are read soon.
template <typename C>
inline void fetch(const C *keys, const C *values, int64_t stride, int64_t head_dim) {
    for (int k = 0; k < KEYS; k++) {
        for (int64_t i = 0; i < head_dim; i += 64 / sizeof(C)) {
            __builtin_prefetch(keys + k * stride + i);
            __builtin_prefetch(values + k * stride + i);
        }
    }
}

// One sequence and some of its key-value heads: queries and y [heads, head_dim] from the first head that they serve.
// Pages are read from front to back, and the next one is fetched meanwhile.
template <typename T, typename C>
void attend(const T *queries, T *y, const C *layer, int64_t kv_heads, const int64_t *table, int64_t tokens,
            const Shape &shape) {
    constexpr int HEADS = 4;  // that share a load
    int64_t group = shape.heads / shape.kv_heads, stride = shape.kv_heads * shape.head_dim;
    int64_t heads = kv_heads * group, to_values = shape.block_tokens * stride;
    float scale = 1.0f / std::sqrt(float(shape.head_dim));
    alignas(64) float scaled[MOST_HEADS * MOST_HEAD];
    Softmax states[MOST_HEADS];
    for (int64_t i = 0; i < heads * shape.head_dim; i += LANES) store(scaled + i, load(queries + i) * scale);
    for (int64_t head = 0; head < heads; head++) states[head].begin(shape.head_dim);
    auto page = [&](int64_t token) {
        return layer + table[token / shape.block_tokens] * shape.block_stride + token % shape.block_tokens * stride;
    };
    for (int64_t first = 0; first < tokens; first += KEYS) {
        const C *keys = page(first), *next = first + KEYS < tokens ? page(first + KEYS) : keys;
        int here = tokens - first < KEYS ? tokens - first : KEYS;
        for (int64_t head = 0; head < heads;) {
            int64_t of_head = head / group * shape.head_dim, left = group - head % group;
            if (left == group) fetch(next + of_head, next + of_head + to_values, stride, shape.head_dim);
            int64_t count = left < HEADS ? left : HEADS;
            attend_to<HEADS>(count, states + head, scaled + head * shape.head_dim, keys + of_head,
                             keys + of_head + to_values, stride, here, shape.head_dim);
            head += count;
        }
    }
    for (int64_t head = 0; head < heads; head++) {
        float total = sum_of(states[head].total);
        for (int64_t v = 0; v < shape.head_dim / LANES; v++)
            store(y + head * shape.head_dim + v * LANES, states[head].context[v] / total);
    }
}

// heads [rows, heads + 2 * kv_heads, head_dim], one new token of each sequence, its key stored already; tables
// [rows, table_width]; y [rows, heads, head_dim]. A sequence's pages are read in one go, unless there are so few
// sequences that its heads are needed to keep all threads busy.
template <typename T, typename C>
void decode_attention(const T *heads, T *y, const C *pool, const int64_t *tables, int64_t table_width,
                      const int64_t *tokens, int64_t rows, const Shape &shape) {
    int64_t all = shape.heads + 2 * shape.kv_heads, group = shape.heads / shape.kv_heads;
    int64_t together = rows < 2 * omp_get_max_threads() || shape.heads > MOST_HEADS ? 1 : shape.kv_heads;
    int64_t parts = shape.kv_heads / together;
#pragma omp parallel for schedule(dynamic)
    for (int64_t task = 0; task < rows * parts; task++) {
        int64_t row = task / parts, kv_head = task % parts * together, head = kv_head * group;
        attend(heads + (row * all + head) * shape.head_dim, y + (row * shape.heads + head) * shape.head_dim,
               pool + shape.layer_offset + kv_head * shape.head_dim, together, tables + row * table_width, tokens[row],
               shape);
    }
}

}  // namespace

extern "C" {

int64_t lanes() { return LANES; }

void product_short(const float *x, const int32_t *weight, float *y, int64_t rows, int64_t inputs, int64_t outputs) {
    product<Short>(x, weight, y, rows, inputs, outputs);
}

// levels [rows, inputs]: room for the rounded rows; scales [outputs]. Sums are whole numbers, exact below 2^24.
void product_int8(const float *x, const int32_t *weight, const float *scales, float *levels, float *y, int64_t rows,
                  int64_t inputs, int64_t outputs, int64_t most) {
    float of_rows[MOST_INT8_ROWS];
    for (int64_t r = 0; r < rows; r++) of_rows[r] = rounded(x + r * inputs, levels + r * inputs, inputs, most);
    product<Int8>(levels, weight, y, rows, inputs, outputs);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < outputs; i += LANES)
            store(y + r * outputs + i, load(y + r * outputs + i) * load(scales + i) * of_rows[r]);
}

#define FOR_TYPE(name, T)                                                                                              \
    void rms_norm_##name(const T *x, const T *weight, T *y, int64_t rows, int64_t width, float eps) {                  \
        rms_norm(x, weight, y, rows, width, eps);                                                                      \
    }                                                                                                                  \
    void gate_##name(const T *gate_up, T *y, int64_t rows, int64_t width) { gate(gate_up, y, rows, width); }           \
    void rotate_##name(T *heads, const float *cos, const float *sin, int64_t rows, int64_t all, int64_t turned,        \
                       int64_t head_dim) {                                                                             \
        rotate(heads, cos, sin, rows, all, turned, head_dim);                                                          \
    }
FOR_TYPE(f32, float)
FOR_TYPE(bf16, Bf16)

#define FOR_TYPES(name, T, C)                                                                                          \
    void store_kv_##name(const T *heads, C *pool, const int64_t *blocks, const int64_t *offsets, int64_t rows,         \
                         const Shape *shape) {                                                                         \
        store_kv(heads, pool, blocks, offsets, rows, *shape);                                                          \
    }                                                                                                                  \
    void decode_attention_##name(const T *heads, T *y, const C *pool, const int64_t *tables, int64_t table_width,      \
                                 const int64_t *tokens, int64_t rows, const Shape *shape) {                            \
        decode_attention(heads, y, pool, tables, table_width, tokens, rows, *shape);                                   \
    }
FOR_TYPES(f32_f32, float, float)
FOR_TYPES(f32_bf16, float, Bf16)
FOR_TYPES(bf16_bf16, Bf16, Bf16)
}
