/* Kernels for training: RMSNorm, causal softmax and cross-entropy, with few passes over memory.
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

static inline void softmax_row(float *scores, int64_t seen, int64_t width, float scale) {
    float most = -INFINITY, sum = 0;
#pragma omp simd reduction(max : most)
    for (int64_t j = 0; j < seen; j++) most = scores[j] > most ? scores[j] : most;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < seen; j++) sum += scores[j] = exponential((scores[j] - most) * scale);
    const float by = 1 / sum;
    for (int64_t j = 0; j < seen; j++) scores[j] *= by;
    memset(scores + seen, 0, (width - seen) * sizeof(float));
}

/* Replace scores by softmax(scale * scores). Each of the `count` matrices has `rows` rows, of which
 * `group` after one another belong to the same query; that of the first row sees `first` keys, and
 * each next one sees one more. */
void causal_softmax(int64_t count, int64_t rows, int64_t width, int64_t group, int64_t first,
                    float scale, float *scores) {
#pragma omp parallel for schedule(static) if (count * rows * width > FEW)
    for (int64_t i = 0; i < count * rows; i++)
        softmax_row(scores + i * width, first + i % rows / group, width, scale);
}

/* Replace the gradients of the weights by those of the scores. */
void softmax_back(int64_t rows, int64_t width, float scale, const float *weights, float *grad) {
#pragma omp parallel for schedule(static) if (rows * width > FEW)
    for (int64_t i = 0; i < rows; i++) {
        const float *p = weights + i * width;
        float *g = grad + i * width, dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < width; j++) dot += p[j] * g[j];
        for (int64_t j = 0; j < width; j++) g[j] = p[j] * (g[j] - dot) * scale;
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
