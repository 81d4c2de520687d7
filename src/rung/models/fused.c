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

/* Write x / rms(x) * weight to `out`, and 1 / rms(x) of each row to `inverse`. */
static inline void norm(int64_t rows, int64_t width, const float *x, const float *weight, float eps,
                        void *out, float *inverse, int half) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (int64_t i = 0; i < rows; i++) {
        const float *from = x + i * width;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) sum += from[j] * from[j];
        const float by = inverse[i] = 1 / sqrtf(sum / width + eps);
        for (int64_t j = 0; j < width; j++) put(out, i * width + j, from[j] * by * weight[j], half);
    }
}

void rms_norm(int64_t rows, int64_t width, const float *x, const float *weight, float eps,
              void *out, float *inverse, int half) {
    if (half) norm(rows, width, x, weight, eps, out, inverse, 1);
    else norm(rows, width, x, weight, eps, out, inverse, 0);
}

static inline void norm_back(int64_t rows, int64_t width, const float *restrict x,
                             const float *restrict weight, const float *restrict inverse,
                             const void *restrict grad, float *restrict to_x,
                             float *restrict to_weight, int64_t parts, int half) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (int64_t part = 0; part < parts; part++) {
        float *sums = to_weight + part * width;
        memset(sums, 0, width * sizeof(float));
        for (int64_t i = rows * part / parts; i < rows * (part + 1) / parts; i++) {
            const float *from = x + i * width, by = inverse[i];
            const void *g = row(grad, i * width, half);
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int64_t j = 0; j < width; j++) dot += get(g, j, half) * weight[j] * from[j];
            dot *= by * by / width;
            for (int64_t j = 0; j < width; j++) {
                const float d = get(g, j, half);
                sums[j] += d * from[j] * by;
                to_x[i * width + j] = by * (d * weight[j] - from[j] * dot);
            }
        }
    }
}

/* Write the gradients of x and weight. `to_weight` has `parts` rows of partial sums, which the
 * caller adds up. */
void rms_norm_back(int64_t rows, int64_t width, const float *x, const float *weight,
                   const float *inverse, const void *grad, float *to_x, float *to_weight,
                   int64_t parts, int half) {
    if (half) norm_back(rows, width, x, weight, inverse, grad, to_x, to_weight, parts, 1);
    else norm_back(rows, width, x, weight, inverse, grad, to_x, to_weight, parts, 0);
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

/* Where in memory the numbers of a matrix lie. */
typedef struct { const float *at; int64_t row, column; } matrix;

static inline __attribute__((always_inline)) void tile(const int rows, int64_t depth, matrix a,
                                                       const float *b, float *c, int64_t c_row,
                                                       int add) {
    vector sums[6][2];
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            sums[r][half] = add ? *(vector *)(c + r * c_row + half * LANES) : (vector){0};
    for (int64_t k = 0; k < depth; k++) {
        const vector low = *(const vector *)(b + k * PANEL);
        const vector high = *(const vector *)(b + k * PANEL + LANES);
        for (int r = 0; r < rows; r++) {
            const float x = a.at[r * a.row + k * a.column];
            sums[r][0] += x * low;
            sums[r][1] += x * high;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int half = 0; half < 2; half++)
            *(vector *)(c + r * c_row + half * LANES) = sums[r][half];
}

/* Write a b, or add it to c, for panels of b that lie `b_panel` numbers apart. */
static void multiply(int64_t rows, int64_t depth, int64_t panels, matrix a, const float *b,
                     int64_t b_panel, float *c, int64_t c_row, int add) {
    for (int64_t i = 0; i < rows; i += 6) {
        const matrix from = {a.at + i * a.row, a.row, a.column};
        for (int64_t p = 0; p < panels; p++) {
            const float *panel = b + p * b_panel;
            float *to = c + i * c_row + p * PANEL;
            switch (rows - i) {
            case 1: tile(1, depth, from, panel, to, c_row, add); break;
            case 2: tile(2, depth, from, panel, to, c_row, add); break;
            case 3: tile(3, depth, from, panel, to, c_row, add); break;
            case 4: tile(4, depth, from, panel, to, c_row, add); break;
            case 5: tile(5, depth, from, panel, to, c_row, add); break;
            default: tile(6, depth, from, panel, to, c_row, add);
            }
        }
    }
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
    return 2 * panels_of(steps) * PANEL * size + 4 * steps * wide + 2 * rows * score_row(&n)
           + 5 * rows * wide;
}

static inline void softmax_row(float *scores, int64_t seen, int64_t width, float scale,
                               float *total) {
    float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < seen; j++) most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < seen; j++) sum += scores[j] = exponential((scores[j] - most) * scale);
    const float by = 1 / sum;
    for (int64_t j = 0; j < seen; j++) scores[j] *= by;
    memset(scores + seen, 0, (width - seen) * sizeof(float));
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
    const float most = total[0], by = total[1];
    float dot = 0;
#pragma omp simd reduction(+ : dot)
    for (int64_t j = 0; j < seen; j++) {
        weights[j] = exponential((weights[j] - most) * scale) * by;
        dot += weights[j] * grad[j];
    }
    for (int64_t j = 0; j < seen; j++) grad[j] = weights[j] * (grad[j] - dot) * scale;
    memset(weights + seen, 0, (width - seen) * sizeof(float));
    memset(grad + seen, 0, (width - seen) * sizeof(float));
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

/* Write silu(gate) * up. */
void swiglu(int64_t count, const float *restrict gate, const float *restrict up,
            float *restrict out) {
#pragma omp parallel for simd schedule(static) if (count > FEW)
    for (int64_t i = 0; i < count; i++) {
        const float g = gate[i], e = exponential(-fabsf(g));
        out[i] = g * (g < 0 ? e : 1.0f) / (1.0f + e) * up[i];
    }
}

/* Write the gradients of gate and up. */
void swiglu_back(int64_t count, const float *restrict gate, const float *restrict up,
                 const float *restrict grad, float *restrict to_gate, float *restrict to_up) {
#pragma omp parallel for simd schedule(static) if (count > FEW)
    for (int64_t i = 0; i < count; i++) {
        const float g = gate[i], e = exponential(-fabsf(g)), by = 1.0f / (1.0f + e);
        const float open = (g < 0 ? e : 1.0f) * by, shut = (g < 0 ? 1.0f : e) * by;
        to_gate[i] = grad[i] * up[i] * open * (1.0f + g * shut);
        to_up[i] = grad[i] * g * open;
    }
}

/* Write x turned by its rotation, `cos` and `sin` of `period` rows, of which the first half of the
 * sines is negative; turned back with `back`. Each of the rows has `heads` parts of `size`. */
void rotate(int64_t rows, int64_t heads, int64_t size, int64_t period, const float *restrict x,
            const float *restrict cos, const float *restrict sin, float *restrict out, int back) {
    const int64_t half = size / 2;
#pragma omp parallel for schedule(static) if (rows * heads * size > FEW)
    for (int64_t i = 0; i < rows; i++) {
        const float *c = cos + i % period * size, *s = sin + i % period * size;
        for (int64_t h = 0; h < heads; h++) {
            const float *low = x + (i * heads + h) * size, *high = low + half;
            float *to = out + (i * heads + h) * size;
            for (int64_t j = 0; j < half; j++) {
                const float s_low = back ? s[half + j] : s[j], s_high = back ? s[j] : s[half + j];
                to[j] = low[j] * c[j] + high[j] * s_low;
                to[half + j] = high[j] * c[half + j] + low[j] * s_high;
            }
        }
    }
}
