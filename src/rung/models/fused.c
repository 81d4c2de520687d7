/* Kernels for training: RMSNorm and cross-entropy, each in one pass over memory.
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

/* Return e^x to within 2 ulp, and 0 below -87, by Cody and Waite's reduction. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.5f : x > 88.0f ? 88.0f : x;
    /* Adding 1.5 * 2^23 rounds to a whole number, and leaves it in the last bits. */
    const float rounder = 12582912.0f;
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
    bits = (bits + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return x < -87.2f ? 0.0f : p * power;
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

static inline void norm_back(int64_t rows, int64_t width, const float *x, const float *weight,
                             const float *inverse, const void *grad, float *to_x, float *to_weight,
                             int64_t parts, int half) {
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
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < width; j++) sum += exponential(get(logits, j, half) - most);
    const float nats = most + logf(sum) - get(logits, target, half), by = 1 / sum;
    const float at = exponential(get(logits, target, half) - most) * by - 1;
    for (int64_t j = 0; j < width; j++)
        put(logits, j, exponential(get(logits, j, half) - most) * by, half);
    put(logits, target, at, half);
    return nats;
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
