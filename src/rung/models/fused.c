/* Kernels for training: RMSNorm, cross-entropy and causal attention, with few passes over memory.
 *
 * Numbers are float, or bfloat16 where `half` is set; sums are float. The rows are divided among
 * the threads in the same way every time.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

/* One thread is faster for up to this many numbers. */
#define FEW 16384
/* A thread takes so many numbers at a time. */
#define PART 4096

typedef uint16_t bfloat16;

static inline float widen(bfloat16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

/* Round to the nearest, ties to even; NaN stays NaN. */
static inline bfloat16 narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return (bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded;
}

static inline float get(const void *from, int64_t i, int half) {
    return half ? widen(((const bfloat16 *)from)[i]) : ((const float *)from)[i];
}

static inline void put(void *to, int64_t i, float x, int half) {
    if (half) ((bfloat16 *)to)[i] = narrow(x);
    else ((float *)to)[i] = x;
}

static inline const void *row(const void *from, int64_t i, int half) {
    return (const char *)from + i * (half ? 2 : 4);
}

/* Return e^x for x up to 0, to within 2 ulp, and 0 below -88, by Cody and Waite's reduction. */
static inline float exponential(float x) {
    x = x < -88.0f ? -88.0f : x;
    /* Adding 1.5 * 2^23 rounds to a whole number, and leaves it in the last bits; 127 more make an
     * exponent of it. */
    const float rounder = 12583039.0f;
    const float shifted = x * 1.44269504f + rounder, n = shifted - rounder;
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    memcpy(&bits, &shifted, 4);
    bits <<= 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

/* In the functions below that are inlined, `half` is a constant: each is called with 0 and with 1
 * from within a parallel region, which would hand it on as a variable. A loop that asks for it has
 * no vectors on processors without masks. */

static inline void norm(int64_t width, const float *restrict x, const float *restrict weight,
                        float eps, void *restrict out, float *restrict inverse, int half) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += x[j] * x[j];
    const float by = *inverse = 1 / sqrtf(sum / width + eps);
    for (int64_t j = 0; j < width; j++) put(out, j, x[j] * by * weight[j], half);
}

/* Write x / rms(x) * weight to `out`, and 1 / rms(x) of each row to `inverse`. */
void rms_norm(int64_t rows, int64_t width, const float *x, const float *weight, float eps,
              void *out, float *inverse, int half) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (int64_t i = 0; i < rows; i++) {
        const float *from = x + i * width;
        void *to = (void *)row(out, i * width, half);
        if (half) norm(width, from, weight, eps, to, inverse + i, 1);
        else norm(width, from, weight, eps, to, inverse + i, 0);
    }
}

static inline void norm_back(int64_t width, const float *restrict x, const float *restrict weight,
                             float inverse, const void *restrict grad, float *restrict to_x,
                             float *restrict to_weight, int half) {
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < width; j++) dot += get(grad, j, half) * weight[j] * x[j];
    dot *= inverse * inverse / width;
    for (int64_t j = 0; j < width; j++) {
        const float d = get(grad, j, half);
        to_weight[j] += d * x[j] * inverse;
        to_x[j] = inverse * (d * weight[j] - x[j] * dot);
    }
}

/* Write the gradients of x and weight. `to_weight` has `parts` rows of partial sums, which the
 * caller adds up. */
void rms_norm_back(int64_t rows, int64_t width, const float *x, const float *weight,
                   const float *inverse, const void *grad, float *to_x, float *to_weight,
                   int64_t parts, int half) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (int64_t part = 0; part < parts; part++) {
        float *sums = to_weight + part * width;
        memset(sums, 0, width * sizeof(float));
        for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; i++) {
            const float *from = x + i * width;
            const void *g = row(grad, i * width, half);
            float *to = to_x + i * width;
            if (half) norm_back(width, from, weight, inverse[i], g, to, sums, 1);
            else norm_back(width, from, weight, inverse[i], g, to, sums, 0);
        }
    }
}

static inline float cost(int64_t width, void *logits, int64_t target, int half) {
    float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < width; j++) {
        const float x = get(logits, j, half);
        /* Compilers do not vectorise fmaxf. */
        most = x > most ? x : most;
    }
    const float aim = get(logits, target, half) - most;
    if (half) {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += exponential(get(logits, j, 1) - most);
    } else {
        float *kept = logits;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += kept[j] = exponential(kept[j] - most);
    }
    const float by = 1 / sum;
    for (int64_t j = 0; j < width; j++) {
        const float x = get(logits, j, half);
        put(logits, j, (half ? exponential(x - most) : x) * by, half);
    }
    put(logits, target, exponential(aim) * by - 1, half);
    return logf(sum) - aim;
}

/* Write the nats of each row's target, or 0 where the target is negative. The gradient replaces the
 * logits. */
void cross_entropy(int64_t rows, int64_t width, void *logits, const int64_t *targets, float *nats,
                   int half) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (int64_t i = 0; i < rows; i++) {
        void *at = (void *)row(logits, i * width, half);
        if (targets[i] < 0) memset(at, 0, width * (half ? 2 : 4)), nats[i] = 0;
        else nats[i] = half ? cost(width, at, targets[i], 1) : cost(width, at, targets[i], 0);
    }
}

/* A processor's vector, and the columns of a panel: matrices are read in panels of so many columns,
 * row after row. */
#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX2__)
#define LANES 8
#else
#define LANES 4
#endif
#define PANEL (2 * LANES)
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

/* Where in memory the numbers of a matrix lie. Of bfloat16, a float holds the bits of a pair: two
 * neighbours in the sums of a product. */
typedef struct { const float *at; int64_t row, column; } matrix;

/* Whether the processor multiplies pairs. */
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define PAIRS 1
#include <immintrin.h>
#else
#define PAIRS 0
#endif
int has_pairs(void) { return PAIRS; }

/* Return sum + x * b, for numbers or for pairs. */
static inline __attribute__((always_inline)) vector add_product(vector sum, float x, vector b,
                                                                int half) {
#if PAIRS
    if (half)
        return (vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(x), (__m512bh)b);
#endif
    return sum + x * b;
}

static inline __attribute__((always_inline)) void tile(const int rows, int64_t depth, matrix a,
                                                       const float *b, float *c, int64_t c_row,
                                                       int add, int half) {
    vector sums[6][2];
    for (int r = 0; r < rows; r++)
        for (int side = 0; side < 2; side++)
            sums[r][side] = add ? *(vector *)(c + r * c_row + side * LANES) : (vector){0};
    for (int64_t k = 0; k < depth; k++) {
        const vector low = *(const vector *)(b + k * PANEL);
        const vector high = *(const vector *)(b + k * PANEL + LANES);
        for (int r = 0; r < rows; r++) {
            const float x = a.at[r * a.row + k * a.column];
            sums[r][0] = add_product(sums[r][0], x, low, half);
            sums[r][1] = add_product(sums[r][1], x, high, half);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int side = 0; side < 2; side++)
            *(vector *)(c + r * c_row + side * LANES) = sums[r][side];
}

static inline __attribute__((always_inline)) void multiply_any(
    int64_t rows, int64_t depth, int64_t panels, matrix a, const float *b, int64_t b_panel,
    float *c, int64_t c_row, int add, int half) {
    for (int64_t i = 0; i < rows; i += 6) {
        const matrix from = {a.at + i * a.row, a.row, a.column};
        for (int64_t p = 0; p < panels; p++) {
            const float *panel = b + p * b_panel;
            float *to = c + i * c_row + p * PANEL;
            switch (rows - i) {
            case 1: tile(1, depth, from, panel, to, c_row, add, half); break;
            case 2: tile(2, depth, from, panel, to, c_row, add, half); break;
            case 3: tile(3, depth, from, panel, to, c_row, add, half); break;
            case 4: tile(4, depth, from, panel, to, c_row, add, half); break;
            case 5: tile(5, depth, from, panel, to, c_row, add, half); break;
            default: tile(6, depth, from, panel, to, c_row, add, half);
            }
        }
    }
}

/* Write a b, or add it to c, for panels of b that lie `b_panel` numbers apart. */
static void multiply(int64_t rows, int64_t depth, int64_t panels, matrix a, const float *b,
                     int64_t b_panel, float *c, int64_t c_row, int add) {
    multiply_any(rows, depth, panels, a, b, b_panel, c, c_row, add, 0);
}

static inline int64_t panels_of(int64_t columns) { return (columns + PANEL - 1) / PANEL; }

/* Write a matrix in panels, with zeros after its last column. */
static void pack(int64_t rows, int64_t columns, matrix from, float *to) {
    for (int64_t p = 0; p < panels_of(columns); p++)
        for (int64_t i = 0; i < rows; i++)
            for (int64_t l = 0; l < PANEL; l++) {
                const int64_t j = p * PANEL + l;
                *to++ = j < columns ? from.at[i * from.row + j * from.column] : 0;
            }
}

/* The sizes of causal attention: `heads` of queries share a head of keys in each of `shared`, and
 * queries go in blocks. */
typedef struct { int64_t batch, steps, shared, heads, size, block; } sizes;

/* Copy the queries of a block, those of a group after one another, or back into place. */
static void move(const sizes *n, int64_t unit, int64_t start, int64_t end, float *all, float *rows,
                 int64_t width, int back) {
    for (int64_t t = start; t < end; t++)
        for (int64_t h = 0; h < n->heads; h++, rows += width) {
            const int64_t place = unit / n->shared * n->steps + t;
            float *at = all + ((place * n->shared + unit % n->shared) * n->heads + h) * n->size;
            if (back) memcpy(at, rows, n->size * sizeof(float));
            else memcpy(rows, at, n->size * sizeof(float));
        }
}

/* Keys or values of a unit, a head of keys in a row of the batch. */
static inline matrix of_unit(const sizes *n, int64_t unit, const float *all) {
    const int64_t first = unit / n->shared * n->steps * n->shared + unit % n->shared;
    return (matrix){all + first * n->size, n->shared * n->size, 1};
}

static inline matrix turned(matrix x) { return (matrix){x.at, x.column, x.row}; }

/* Return the numbers between two rows of scores; rows that lie 2^n apart share lines of a cache. */
static int64_t score_row(const sizes *n) { return panels_of(n->steps) * PANEL + 16; }

/* Return how many numbers a worker needs room for. */
int64_t attention_memory(int64_t steps, int64_t heads, int64_t size, int64_t block) {
    const sizes n = {0, steps, 0, heads, size, block};
    const int64_t wide = panels_of(size) * PANEL, rows = block * heads;
    return 2 * panels_of(steps) * PANEL * size + 4 * steps * wide + 4 * (rows + 1) * score_row(&n)
           + 5 * (rows + 1) * wide;
}

/* Hide the scores after those seen up to the end of a vector, and return that end: what is left
 * over from whole vectors would be computed one by one. */
static inline int64_t hide_rest(float *scores, int64_t seen) {
    const int64_t whole = (seen + LANES - 1) / LANES * LANES;
    for (int64_t j = seen; j < whole; j++) scores[j] = -INFINITY;
    return whole;
}

static inline void softmax_row(float *scores, int64_t seen, int64_t width, float scale,
                               float *total) {
    const int64_t whole = hide_rest(scores, seen);
    float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < whole; j++) most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < whole; j++) sum += scores[j] = exponential((scores[j] - most) * scale);
    const float by = 1 / sum;
    for (int64_t j = 0; j < whole; j++) scores[j] *= by;
    if (width > whole) memset(scores + whole, 0, (width - whole) * sizeof(float));
    total[0] = most;
    total[1] = by;
}

/* Write causal softmax(q k^T / sqrt(size)) v, and of each row the largest score and 1 / its sum.
 * q and out are (batch, steps, shared, heads, size), k and v are without heads. */
void attend(int64_t batch, int64_t steps, int64_t shared, int64_t heads, int64_t size,
            int64_t block, float *q, const float *k, const float *v, float *out, float *totals,
            int64_t workers, float *memory) {
    const sizes n = {batch, steps, shared, heads, size, block};
    const int64_t panels = panels_of(size), wide = panels * PANEL, ld = score_row(&n);
    const float scale = 1 / sqrtf(size);
#pragma omp parallel for schedule(static)
    for (int64_t worker = 0; worker < workers; worker++) {
        float *keys = memory + worker * attention_memory(steps, heads, size, block);
        float *values = keys + panels_of(steps) * PANEL * size, *rows = values + steps * wide;
        float *scores = rows + block * heads * wide, *sums = scores + block * heads * ld;
        for (int64_t unit = worker; unit < batch * shared; unit += workers) {
            pack(size, steps, turned(of_unit(&n, unit, k)), keys);
            pack(steps, size, of_unit(&n, unit, v), values);
            for (int64_t start = 0; start < steps; start += block) {
                const int64_t end = start + block < steps ? start + block : steps;
                const int64_t count = (end - start) * heads;
                move(&n, unit, start, end, q, rows, size, 0);
                multiply(count, size, panels_of(end), (matrix){rows, size, 1}, keys, size * PANEL,
                         scores, ld, 0);
                for (int64_t i = 0; i < count; i++)
                    softmax_row(scores + i * ld, start + 1 + i / heads, end, scale,
                                totals + 2 * ((unit * steps + start) * heads + i));
                multiply(count, end, panels, (matrix){scores, ld, 1}, values, steps * PANEL, sums,
                         wide, 0);
                move(&n, unit, start, end, out, sums, wide, 1);
            }
        }
    }
}

/* Make weights of a row's scores again, and the gradient of its scores of that of its weights. */
static inline void softmax_back(float *weights, float *grad, int64_t seen, int64_t width,
                                float scale, const float *total) {
    const int64_t whole = hide_rest(weights, seen);
    const float most = total[0], by = total[1];
    float dot = 0;
    memset(grad + seen, 0, (whole - seen) * sizeof(float));
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < whole; j++) {
        weights[j] = exponential((weights[j] - most) * scale) * by;
        dot += weights[j] * grad[j];
    }
    for (int64_t j = 0; j < whole; j++) grad[j] = weights[j] * (grad[j] - dot) * scale;
    if (width > whole) {
        memset(weights + whole, 0, (width - whole) * sizeof(float));
        memset(grad + whole, 0, (width - whole) * sizeof(float));
    }
}

/* Write the gradients of q, k and v, which lie as these do. */
void attend_back(int64_t batch, int64_t steps, int64_t shared, int64_t heads, int64_t size,
                 int64_t block, float *q, const float *k, const float *v, float *up,
                 const float *totals, float *to_q, float *to_k, float *to_v, int64_t workers,
                 float *memory) {
    const sizes n = {batch, steps, shared, heads, size, block};
    const int64_t panels = panels_of(size), wide = panels * PANEL, ld = score_row(&n);
    const int64_t most = block * heads;
    const float scale = 1 / sqrtf(size);
#pragma omp parallel for schedule(static)
    for (int64_t worker = 0; worker < workers; worker++) {
        float *keys = memory + worker * attention_memory(steps, heads, size, block);
        float *values = keys + panels_of(steps) * PANEL * size;
        float *flat_keys = values + panels_of(steps) * PANEL * size;
        float *sum_k = flat_keys + steps * wide, *sum_v = sum_k + steps * wide;
        float *rows = sum_v + steps * wide, *ups = rows + most * wide;
        float *packed = ups + most * wide, *sums = packed + most * wide;
        float *weights = sums + most * wide, *grads = weights + most * ld;
        for (int64_t unit = worker; unit < batch * shared; unit += workers) {
            pack(size, steps, turned(of_unit(&n, unit, k)), keys);
            pack(size, steps, turned(of_unit(&n, unit, v)), values);
            pack(steps, size, of_unit(&n, unit, k), flat_keys);
            memset(sum_k, 0, 2 * steps * wide * sizeof(float));
            for (int64_t start = 0; start < steps; start += block) {
                const int64_t end = start + block < steps ? start + block : steps;
                const int64_t count = (end - start) * heads;
                const matrix queries = {rows, size, 1}, above = {ups, size, 1};
                move(&n, unit, start, end, q, rows, size, 0);
                move(&n, unit, start, end, up, ups, size, 0);
                multiply(count, size, panels_of(end), queries, keys, size * PANEL, weights, ld, 0);
                multiply(count, size, panels_of(end), above, values, size * PANEL, grads, ld, 0);
                for (int64_t i = 0; i < count; i++)
                    softmax_back(weights + i * ld, grads + i * ld, start + 1 + i / heads, end,
                                 scale, totals + 2 * ((unit * steps + start) * heads + i));
                pack(count, size, above, packed);
                multiply(end, count, panels, (matrix){weights, 1, ld}, packed, count * PANEL,
                         sum_v, wide, 1);
                pack(count, size, queries, packed);
                multiply(end, count, panels, (matrix){grads, 1, ld}, packed, count * PANEL, sum_k,
                         wide, 1);
                multiply(count, end, panels, (matrix){grads, ld, 1}, flat_keys, steps * PANEL,
                         sums, wide, 0);
                move(&n, unit, start, end, to_q, sums, wide, 1);
            }
            float *all[] = {to_k, to_v}, *own[] = {sum_k, sum_v};
            for (int which = 0; which < 2; which++)
                for (int64_t t = 0; t < steps; t++)
                    memcpy((float *)of_unit(&n, unit, all[which]).at + t * shared * size,
                           own[which] + t * wide, size * sizeof(float));
        }
    }
}

#if PAIRS
/* The same as `multiply`, of pairs. */
static void multiply_pairs(int64_t rows, int64_t depth, int64_t panels, matrix a, const float *b,
                           int64_t b_panel, float *c, int64_t c_row, int add) {
    multiply_any(rows, depth, panels, a, b, b_panel, c, c_row, add, 1);
}

/* Write rows of bfloat16 in panels of pairs, each of a number and the one below it. */
static void pack_pairs(int64_t rows, int64_t columns, const void *all, int64_t from_row,
                       float *to) {
    const bfloat16 *from = all;
    uint32_t *pair = (uint32_t *)to;
    for (int64_t p = 0; p < panels_of(columns); p++)
        for (int64_t i = 0; i < rows; i += 2, pair += PANEL) {
            const bfloat16 *above = from + i * from_row + p * PANEL, *below = above + from_row;
            const int64_t most = columns - p * PANEL, count = most < PANEL ? most : PANEL;
            for (int64_t l = 0; l < count; l++)
                pair[l] = above[l] | (i + 1 < rows ? (uint32_t)below[l] << 16 : 0);
            memset(pair + count, 0, (PANEL - count) * sizeof(uint32_t));
        }
}

/* Round a row of whole vectors. */
static inline void round_row(int64_t width, const float *from, void *to) {
    for (int64_t j = 0; j < width; j += LANES)
        _mm256_storeu_si256((__m256i *)((bfloat16 *)to + j),
                            (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(from + j)));
}

/* Round two rows of whole vectors to a row of pairs. */
static inline void round_pairs(int64_t width, const float *above, const float *below, float *to) {
    for (int64_t j = 0; j < width; j += LANES) {
        const __m256i low = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(above + j));
        const __m256i high = (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(below + j));
        const __m512i pairs = _mm512_or_si512(
            _mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
        _mm512_storeu_si512(to + j, pairs);
    }
}

/* Copy the sums of a block into place, rounded; `n` counts pairs. */
static void round_back(const sizes *n, int64_t unit, int64_t start, int64_t end, float *all,
                       const float *sums, int64_t width) {
    for (int64_t t = start; t < end; t++)
        for (int64_t h = 0; h < n->heads; h++, sums += width) {
            const int64_t place = unit / n->shared * n->steps + t;
            float *at = all + ((place * n->shared + unit % n->shared) * n->heads + h) * n->size;
            for (int64_t j = 0; j < 2 * n->size; j++) ((bfloat16 *)at)[j] = narrow(sums[j]);
        }
}

/* The same as `attend`, of bfloat16 but for `totals`. `size` is even. */
void attend_half(int64_t batch, int64_t steps, int64_t shared, int64_t heads, int64_t size,
                 int64_t block, float *q, const float *k, const float *v, float *out,
                 float *totals, int64_t workers, float *memory) {
    const sizes n = {batch, steps, shared, heads, size / 2, block};
    const int64_t panels = panels_of(size), wide = panels * PANEL, ld = score_row(&n);
    const int64_t step_pairs = (steps + 1) / 2;
    const float scale = 1 / sqrtf(size);
#pragma omp parallel for schedule(static)
    for (int64_t worker = 0; worker < workers; worker++) {
        float *keys = memory + worker * attention_memory(steps, heads, size, block);
        float *values = keys + panels_of(steps) * PANEL * n.size;
        float *rows = values + step_pairs * wide, *scores = rows + block * heads * n.size;
        float *weights = scores + block * heads * ld, *sums = weights + block * heads * ld / 2;
        for (int64_t unit = worker; unit < batch * shared; unit += workers) {
            const matrix value = of_unit(&n, unit, v);
            pack(n.size, steps, turned(of_unit(&n, unit, k)), keys);
            pack_pairs(steps, size, value.at, 2 * value.row, values);
            for (int64_t start = 0; start < steps; start += block) {
                const int64_t end = start + block < steps ? start + block : steps;
                const int64_t count = (end - start) * heads, width = panels_of(end) * PANEL;
                move(&n, unit, start, end, q, rows, n.size, 0);
                multiply_pairs(count, n.size, panels_of(end), (matrix){rows, n.size, 1}, keys,
                               n.size * PANEL, scores, ld, 0);
                for (int64_t i = 0; i < count; i++) {
                    softmax_row(scores + i * ld, start + 1 + i / heads, width, scale,
                                totals + 2 * ((unit * steps + start) * heads + i));
                    round_row(width, scores + i * ld, weights + i * ld / 2);
                }
                multiply_pairs(count, (end + 1) / 2, panels, (matrix){weights, ld / 2, 1}, values,
                               step_pairs * PANEL, sums, wide, 0);
                round_back(&n, unit, start, end, out, sums, wide);
            }
        }
    }
}

/* The same as `attend_back`, of bfloat16 but for `totals`. */
void attend_half_back(int64_t batch, int64_t steps, int64_t shared, int64_t heads, int64_t size,
                      int64_t block, float *q, const float *k, const float *v, float *up,
                      const float *totals, float *to_q, float *to_k, float *to_v,
                      int64_t workers, float *memory) {
    const sizes n = {batch, steps, shared, heads, size / 2, block};
    const int64_t panels = panels_of(size), wide = panels * PANEL, ld = score_row(&n);
    const int64_t most = block * heads, step_pairs = (steps + 1) / 2;
    const float scale = 1 / sqrtf(size);
#pragma omp parallel for schedule(static)
    for (int64_t worker = 0; worker < workers; worker++) {
        float *keys = memory + worker * attention_memory(steps, heads, size, block);
        float *values = keys + panels_of(steps) * PANEL * n.size;
        float *flat_keys = values + panels_of(steps) * PANEL * n.size;
        float *sum_k = flat_keys + step_pairs * wide, *sum_v = sum_k + steps * wide;
        float *rows = sum_v + steps * wide, *ups = rows + most * n.size;
        float *packed = ups + most * n.size, *sums = packed + (most + 1) / 2 * wide;
        float *weights = sums + most * wide, *grads = weights + (most + 1) * ld;
        float *rounded = grads + (most + 1) * ld, *pairs = rounded + most * ld / 2;
        for (int64_t unit = worker; unit < batch * shared; unit += workers) {
            const matrix key = of_unit(&n, unit, k);
            pack(n.size, steps, turned(key), keys);
            pack(n.size, steps, turned(of_unit(&n, unit, v)), values);
            pack_pairs(steps, size, key.at, 2 * key.row, flat_keys);
            memset(sum_k, 0, 2 * steps * wide * sizeof(float));
            for (int64_t start = 0; start < steps; start += block) {
                const int64_t end = start + block < steps ? start + block : steps;
                const int64_t count = (end - start) * heads, width = panels_of(end) * PANEL;
                move(&n, unit, start, end, q, rows, n.size, 0);
                move(&n, unit, start, end, up, ups, n.size, 0);
                multiply_pairs(count, n.size, panels_of(end), (matrix){rows, n.size, 1}, keys,
                               n.size * PANEL, weights, ld, 0);
                multiply_pairs(count, n.size, panels_of(end), (matrix){ups, n.size, 1}, values,
                               n.size * PANEL, grads, ld, 0);
                for (int64_t i = 0; i < count; i++) {
                    softmax_back(weights + i * ld, grads + i * ld, start + 1 + i / heads, width,
                                 scale, totals + 2 * ((unit * steps + start) * heads + i));
                    round_row(width, grads + i * ld, rounded + i * ld / 2);
                }
                /* The row that the last one of an odd number is paired with. */
                memset(weights + count * ld, 0, width * sizeof(float));
                memset(grads + count * ld, 0, width * sizeof(float));
                float *scores[] = {weights, grads}, *own[] = {sum_v, sum_k};
                const float *others[] = {ups, rows};
                for (int which = 0; which < 2; which++) {
                    for (int64_t i = 0; i < count; i += 2)
                        round_pairs(width, scores[which] + i * ld, scores[which] + (i + 1) * ld,
                                    pairs + i / 2 * ld);
                    pack_pairs(count, size, others[which], size, packed);
                    multiply_pairs(end, (count + 1) / 2, panels, (matrix){pairs, 1, ld}, packed,
                                   (count + 1) / 2 * PANEL, own[which], wide, 1);
                }
                multiply_pairs(count, (end + 1) / 2, panels, (matrix){rounded, ld / 2, 1},
                               flat_keys, step_pairs * PANEL, sums, wide, 0);
                round_back(&n, unit, start, end, to_q, sums, wide);
            }
            float *all[] = {to_k, to_v}, *own[] = {sum_k, sum_v};
            for (int which = 0; which < 2; which++)
                for (int64_t t = 0; t < steps; t++) {
                    float *to = (float *)of_unit(&n, unit, all[which]).at + t * shared * n.size;
                    for (int64_t j = 0; j < size; j++)
                        ((bfloat16 *)to)[j] = narrow(own[which][t * wide + j]);
                }
        }
    }
}
#endif

static inline void silu_product(int64_t count, const void *restrict gate, const void *restrict up,
                                void *restrict out, int half) {
    for (int64_t i = 0; i < count; i++) {
        const float g = get(gate, i, half), e = exponential(-fabsf(g));
        put(out, i, g * (g < 0 ? e : 1.0f) / (1.0f + e) * get(up, i, half), half);
    }
}

/* Write silu(gate) * up. */
void swiglu(int64_t count, const void *gate, const void *up, void *out, int half) {
#pragma omp parallel for schedule(static) if (count > FEW)
    for (int64_t i = 0; i < count; i += PART) {
        const int64_t size = count - i < PART ? count - i : PART;
        const void *g = row(gate, i, half), *u = row(up, i, half);
        void *to = (void *)row(out, i, half);
        if (half) silu_product(size, g, u, to, 1);
        else silu_product(size, g, u, to, 0);
    }
}

static inline void silu_product_back(int64_t count, const void *restrict gate,
                                     const void *restrict up, const void *restrict grad,
                                     void *restrict to_gate, void *restrict to_up, int half) {
    for (int64_t i = 0; i < count; i++) {
        const float g = get(gate, i, half), d = get(grad, i, half);
        const float e = exponential(-fabsf(g)), by = 1.0f / (1.0f + e);
        const float open = (g < 0 ? e : 1.0f) * by, shut = (g < 0 ? 1.0f : e) * by;
        put(to_gate, i, d * get(up, i, half) * open * (1.0f + g * shut), half);
        put(to_up, i, d * g * open, half);
    }
}

/* Write the gradients of gate and up. */
void swiglu_back(int64_t count, const void *gate, const void *up, const void *grad, void *to_gate,
                 void *to_up, int half) {
#pragma omp parallel for schedule(static) if (count > FEW)
    for (int64_t i = 0; i < count; i += PART) {
        const int64_t size = count - i < PART ? count - i : PART;
        const void *g = row(gate, i, half), *u = row(up, i, half), *d = row(grad, i, half);
        void *to_g = (void *)row(to_gate, i, half), *to_u = (void *)row(to_up, i, half);
        if (half) silu_product_back(size, g, u, d, to_g, to_u, 1);
        else silu_product_back(size, g, u, d, to_g, to_u, 0);
    }
}

/* Turn the halves of a vector, each by angles of its own. */
static inline void turn(int64_t pairs, const void *restrict x, const float *restrict cos,
                        const float *restrict sin_low, const float *restrict sin_high,
                        void *restrict out, int half) {
    const void *low = x, *high = row(x, pairs, half);
    void *to_low = out, *to_high = (void *)row(out, pairs, half);
#pragma omp simd simdlen(16)
    for (int64_t j = 0; j < pairs; j++) {
        const float a = get(low, j, half), b = get(high, j, half);
        put(to_low, j, a * cos[j] + b * sin_low[j], half);
        put(to_high, j, b * cos[pairs + j] + a * sin_high[j], half);
    }
}

/* Write x turned by its rotation, `cos` and `sin` of `period` rows, of which the first half of the
 * sines is negative; turned back with `back`. Each of the rows has `heads` parts of `size`. */
void rotate(int64_t rows, int64_t heads, int64_t size, int64_t period, const void *x,
            const float *cos, const float *sin, void *out, int back, int half) {
    const int64_t pairs = size / 2;
#pragma omp parallel for schedule(static) if (rows * heads * size > FEW)
    for (int64_t i = 0; i < rows; i++) {
        const float *c = cos + i % period * size, *s = sin + i % period * size;
        const float *s_low = back ? s + pairs : s, *s_high = back ? s : s + pairs;
        for (int64_t h = 0; h < heads; h++) {
            const void *from = row(x, (i * heads + h) * size, half);
            void *to = (void *)row(out, (i * heads + h) * size, half);
            if (half) turn(pairs, from, c, s_low, s_high, to, 1);
            else turn(pairs, from, c, s_low, s_high, to, 0);
        }
    }
}
