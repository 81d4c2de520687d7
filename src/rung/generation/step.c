/* The forward pass of a decoder-only transformer, as fast as its weights can be read from memory.
 *
 * A row of the batch is one token: the next token of each text, or one of several consecutive
 * tokens of a text. A `layer` describes the parts of a layer; GPT-2 and Llama are two such
 * descriptions. Activations and sums are float. Weights are float, bfloat16, or int8 with a scale
 * for each row. All threads run the whole pass, share the rows of each product, and wait for one
 * another between products. The result of a row is the same to the last bit in any batch.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* A block is LANES rows of a matrix, as many as a register of AVX-512 or AVX2 holds, or two of NEON's.
 * BLOCKS blocks are multiplied together, with up to FEW rows of the batch at a time. Their sums,
 * BLOCKS * FEW, and a weight and FEW inputs must fit into the registers: AVX-512 has 32, AVX2 16. */
#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define BLOCKS 4
#define FEW (LANES == 16 ? 4 : 3)
/* Weights are prefetched this many bytes ahead, because processors do not foresee the reads of
 * several blocks at once. */
#define AHEAD 2048
/* The bytes that a prefetch reads. */
#define LINE 64
/* The width of a weight in bytes. */
#define WIDTH(type) ((type) == FLOAT ? 4 : (type) == BFLOAT16 ? 2 : 1)

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float quarter_vec __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

enum { FLOAT, BFLOAT16, INT8 };

/* A matrix and its bias. `weight` is blocks x columns x LANES: the rows of a block stand side by
 * side, and zeros fill the last block. `scale` has a value for each row of an int8 matrix. `scale`
 * and `bias` may be null, and are filled up like the blocks. */
typedef struct {
    const void *weight;
    const float *scale;
    const float *bias;
    int64_t rows, columns, type;
} product;

/* LayerNorm, or RMSNorm where there is no bias. */
typedef struct {
    const float *weight, *bias;
    float eps;
} norm;

/* The MLP multiplies SiLU of `gate` by `up`, or computes GELU of `up` where there is no gate.
 * `keys` and `values` hold groups x room x size numbers for each text; the text's `place` says
 * where they begin. `scale` multiplies q k'. */
typedef struct {
    norm before_attention, before_mlp;
    product q, k, v, o, gate, up, down;
    float *keys, *values;
    float scale;
} layer;

/* The keys of a row's text begin after `start` tokens of other texts, and have room for `room`
 * tokens. The row is token `at` of its text, and sees the tokens from `first` to `at`. */
typedef struct {
    int64_t start, room;
    int64_t first, at;
} place;

/* `x` and `y` are batch x width, `q` and `attended` batch x heads * size. `inside` has room for the
 * outputs of `up` and, behind them, for those of `gate` or of `k` and `v`. `scores` has room for
 * capacity + LANES numbers of each thread. Logits are wanted of the last `wanted` rows. */
typedef struct {
    int64_t layers, batch, width, heads, groups, size, inner, capacity, threads;
    int64_t wanted;
    const place *places;
    const layer *layer;
    norm last;
    product head;
    float *x, *y, *q, *attended, *inside, *scores;
} model;

int64_t lanes(void) { return LANES; }

static inline vec load(const void *weight, int64_t type, int64_t at) {
    if (type == FLOAT) return *(const vec *)((const float *)weight + at);
    if (type == BFLOAT16)
        return (vec)(__builtin_convertvector(
                         *(const halves *)((const uint16_t *)weight + at), words)
                     << 16);
/* Compilers do not turn the general form into these instructions. */
#if LANES == 16 && defined __AVX512F__
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(
        _mm_loadu_si128((const __m128i *)((const int8_t *)weight + at))));
#elif LANES == 8 && defined __AVX2__
    return (vec)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(
        _mm_loadl_epi64((const __m128i *)((const int8_t *)weight + at))));
#else
    const shorts twice =
        __builtin_convertvector(*(const bytes *)((const int8_t *)weight + at), shorts);
    return __builtin_convertvector(__builtin_convertvector(twice, integers), vec);
#endif
}

static inline float sum(vec v) {
    quarter_vec part[LANES / 4];
    memcpy(part, &v, sizeof part);
    for (int parts = LANES / 8; parts; parts /= 2)
        for (int i = 0; i < parts; i++) part[i] += part[i + parts];
    return (part[0][0] + part[0][2]) + (part[0][1] + part[0][3]);
}

static inline vec choose(integers mask, vec a, vec b) {
    return (vec)((mask & (integers)a) | (~mask & (integers)b));
}
static inline vec at_least(vec x, vec low) { return choose(x < low, low, x); }
static inline vec at_most(vec x, vec high) { return choose(x > high, high, x); }

/* Compute e^x as 2 to a whole number, times a polynomial in the remainder (Cody & Waite 1980,
 * chapter 6). */
static inline vec exponential(vec x) {
    x = at_most(at_least(x, (vec){0} - 87.0f), (vec){0} + 88.0f);
    /* Adding 1.5 * 2^23 rounds to a whole number. */
    const vec rounder = (vec){0} + 12582912.0f;
    const vec shifted = x * 1.44269504f + rounder, whole = shifted - rounder;
    const vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vec)((integers)p + (__builtin_convertvector(whole, integers) << 23));
}

/* Write x W' + b to y, or add it to y, for up to BLOCKS blocks of W and up to FEW rows of x.
 *
 * The function is inlined for each type and number of blocks and rows, so that these are constants.
 * A sum always runs from the first column to the last: a row of the batch does not depend on the
 * others. */
static inline __attribute__((always_inline)) void
tile(const product *p, const int64_t type, const int blocks, const int count, int64_t block,
     const float *x, float *y, int add) {
    const int64_t size = p->columns * LANES, start = block * size;
    vec total[BLOCKS][FEW] = {{{0}}};
    const int64_t lined = LINE / (LANES * WIDTH(type)); /* columns in a line of the cache */
    int64_t j = 0;
    for (; j + lined <= p->columns; j += lined) {
        for (int k = 0; k < blocks; k++)
            __builtin_prefetch((const char *)p->weight +
                               (start + k * size + j * LANES) * WIDTH(type) + AHEAD);
        for (int64_t i = j; i < j + lined; i++)
            for (int k = 0; k < blocks; k++) {
                const vec weight = load(p->weight, type, start + k * size + i * LANES);
                for (int r = 0; r < count; r++) total[k][r] += weight * x[r * p->columns + i];
            }
    }
    for (; j < p->columns; j++)
        for (int k = 0; k < blocks; k++) {
            const vec weight = load(p->weight, type, start + k * size + j * LANES);
            for (int r = 0; r < count; r++) total[k][r] += weight * x[r * p->columns + j];
        }
    for (int k = 0; k < blocks; k++) {
        const int64_t row = (block + k) * LANES, left = p->rows - row;
        for (int r = 0; r < count; r++) {
            float *to = y + r * p->rows + row;
            vec value = total[k][r], before = {0};
            if (p->scale) value *= *(const vec *)(p->scale + row);
            if (p->bias) value += *(const vec *)(p->bias + row);
            memcpy(&before, to, (left < LANES ? left : LANES) * sizeof(float));
            if (add) value += before;
            memcpy(to, &value, (left < LANES ? left : LANES) * sizeof(float));
        }
    }
}

static inline __attribute__((always_inline)) void
tile_of(const product *p, const int64_t type, const int blocks, int count, int64_t block,
        const float *x, float *y, int add) {
    switch (count) {
        case 1: tile(p, type, blocks, 1, block, x, y, add); break;
        case 2: tile(p, type, blocks, 2, block, x, y, add); break;
#if LANES == 16
        case 3: tile(p, type, blocks, 3, block, x, y, add); break;
#endif
        default: tile(p, type, blocks, FEW, block, x, y, add);
    }
}

static inline __attribute__((always_inline)) void
tiles(const product *p, const int64_t type, int64_t block, int64_t blocks, int count,
      const float *x, float *y, int add) {
    if (blocks == BLOCKS) tile_of(p, type, BLOCKS, count, block, x, y, add);
    else
        for (int64_t k = 0; k < blocks; k++) tile_of(p, type, 1, count, block + k, x, y, add);
}

/* Write x W' + b to y, or add it to y. The threads share the blocks, BLOCKS at a time where there
 * are enough for all threads. */
static void multiply(const model *m, const product *p, int64_t batch, const float *x, float *y,
                     int add) {
    const int64_t blocks = (p->rows + LANES - 1) / LANES,
                  together = blocks < m->threads * BLOCKS ? 1 : BLOCKS;
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < blocks; block += together)
        for (int64_t b = 0; b < batch; b += FEW) {
            const int64_t some = blocks - block < together ? blocks - block : together;
            const int count = batch - b < FEW ? batch - b : FEW;
            const float *from = x + b * p->columns;
            float *to = y + b * p->rows;
            if (p->type == FLOAT) tiles(p, FLOAT, block, some, count, from, to, add);
            else if (p->type == BFLOAT16) tiles(p, BFLOAT16, block, some, count, from, to, add);
            else tiles(p, INT8, block, some, count, from, to, add);
        }
}

/* Return the sum of x - mean, or of its squares. */
static inline __attribute__((always_inline)) float
add_up(const float *x, int64_t width, float mean, const int squares) {
    vec all = {0};
    int64_t i = 0;
    for (; i + LANES <= width; i += LANES) {
        const vec part = *(const vec *)(x + i) - mean;
        if (squares) all += part * part;
        else all += part;
    }
    float total = sum(all);
    for (; i < width; i++) total += squares ? (x[i] - mean) * (x[i] - mean) : x[i] - mean;
    return total;
}

static void normalize(const norm *n, int64_t batch, int64_t width, const float *x, float *y) {
#pragma omp for schedule(static)
    for (int64_t b = 0; b < batch; b++) {
        const float *from = x + b * width;
        float *to = y + b * width;
        const float mean = n->bias ? add_up(from, width, 0, 0) / width : 0;
        const float by = 1 / sqrtf(add_up(from, width, mean, 1) / width + n->eps);
        for (int64_t i = 0; i < width; i++)
            to[i] = (from[i] - mean) * by * n->weight[i] + (n->bias ? n->bias[i] : 0);
    }
}

/* Rotate the pairs (i, i + K/2) of one head; the sines of the first half are negative. */
static void rotate(float *x, const float *cosines, const float *sines, int64_t size) {
    for (int64_t i = 0; i < size / 2; i++) {
        const float a = x[i], b = x[i + size / 2];
        x[i] = a * cosines[i] + b * sines[i];
        x[i + size / 2] = b * cosines[i + size / 2] + a * sines[i + size / 2];
    }
}

static inline float dot(const float *a, const float *b, int64_t size) {
    vec even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
        even += *(const vec *)(a + i) * *(const vec *)(b + i);
        odd += *(const vec *)(a + i + LANES) * *(const vec *)(b + i + LANES);
    }
    float total = sum(even + odd);
    for (; i < size; i++) total += a[i] * b[i];
    return total;
}

/* Compute softmax(q k') v for head `h` of row `b`, over the keys that the row may see. */
static void attend(const model *m, const layer *l, int64_t b, int64_t h) {
    const int64_t size = m->size, group = h / (m->heads / m->groups);
    const place *p = m->places + b;
    const int64_t first = p->first, last = p->at,
                  stored = p->start * m->groups + group * p->room;
    const float *q = m->q + (b * m->heads + h) * size;
    const float *keys = l->keys + stored * size, *values = l->values + stored * size;
    float *scores = m->scores + omp_get_thread_num() * (m->capacity + LANES),
          *out = m->attended + (b * m->heads + h) * size;
    float largest = -INFINITY;
    vec all = {0};
    for (int64_t s = first; s <= last; s++) {
        scores[s] = dot(keys + s * size, q, size) * l->scale;
        if (scores[s] > largest) largest = scores[s];
    }
    /* A vector may reach past the last score: there is room for it, and it must add nothing. */
    for (int64_t s = last + 1; s < last + LANES; s++) scores[s] = -INFINITY;
    for (int64_t s = first; s <= last; s += LANES) {
        const vec e = exponential(*(vec *)(scores + s) - largest);
        *(vec *)(scores + s) = e;
        all += e;
    }
    const float total = sum(all);
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) {
        vec even = {0}, odd = {0};
        int64_t s = first;
        for (; s < last; s += 2) {
            even += scores[s] * *(const vec *)(values + s * size + i);
            odd += scores[s + 1] * *(const vec *)(values + (s + 1) * size + i);
        }
        if (s == last) even += scores[s] * *(const vec *)(values + s * size + i);
        *(vec *)(out + i) = (even + odd) / total;
    }
    for (; i < size; i++) {
        float value = 0;
        for (int64_t s = first; s <= last; s++) value += scores[s] * values[s * size + i];
        out[i] = value / total;
    }
}

static inline vec activated(vec up, const float *gate) {
    if (gate) return up * *(const vec *)gate / (1 + exponential(-*(const vec *)gate));
    return up *
           (1 - 1 / (1 + exponential(2 * 0.7978845608028654f * (up + 0.044715f * up * up * up))));
}

static void activate(int64_t count, float *inside, const float *gate) {
/* The last vector may reach past `count`, where there is room. */
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i += LANES)
        *(vec *)(inside + i) = activated(*(vec *)(inside + i), gate ? gate + i : 0);
}

static void pass_layer(const model *m, const layer *l, const float *turns) {
    const int64_t batch = m->batch, size = m->size, kv = m->groups * size;
    /* `k` and `v` use the memory of `gate`, which is free during attention. */
    float *gate = m->inside + (batch * m->inner + LANES - 1) / LANES * LANES, *k = gate,
          *v = gate + batch * kv;
    normalize(&l->before_attention, batch, m->width, m->x, m->y);
    const float *x = m->y;
    multiply(m, &l->q, batch, x, m->q, 0);
    multiply(m, &l->k, batch, x, k, 0);
    multiply(m, &l->v, batch, x, v, 0);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * m->groups; i++) {
        const int64_t b = i / m->groups;
        const place *p = m->places + b;
        const int64_t to = (p->start * m->groups + i % m->groups * p->room + p->at) * size;
        if (turns) rotate(k + i * size, turns + 2 * b * size, turns + (2 * b + 1) * size, size);
        memcpy(l->keys + to, k + i * size, size * sizeof(float));
        memcpy(l->values + to, v + i * size, size * sizeof(float));
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * m->heads; i++) {
        const int64_t b = i / m->heads;
        if (turns) rotate(m->q + i * size, turns + 2 * b * size, turns + (2 * b + 1) * size, size);
        attend(m, l, b, i % m->heads);
    }
    multiply(m, &l->o, batch, m->attended, m->x, 1);
#pragma omp barrier
    normalize(&l->before_mlp, batch, m->width, m->x, m->y);
    x = m->y;
    if (l->gate.weight) multiply(m, &l->gate, batch, x, gate, 0);
    multiply(m, &l->up, batch, x, m->inside, 0);
#pragma omp barrier
    activate(batch * m->inner, m->inside, l->gate.weight ? gate : 0);
    multiply(m, &l->down, batch, m->inside, m->x, 1);
#pragma omp barrier
}

/* Write the logits, wanted x vocabulary, of the last of the embedded tokens in m->x. `turns` holds
 * the cosines and sines of each row, or is null where the model does not rotate. */
void step(const model *m, const float *turns, float *logits) {
#pragma omp parallel num_threads(m->threads)
    {
        for (int64_t i = 0; i < m->layers; i++) pass_layer(m, m->layer + i, turns);
        const int64_t before = (m->batch - m->wanted) * m->width;
        normalize(&m->last, m->wanted, m->width, m->x + before, m->y + before);
        multiply(m, &m->head, m->wanted, m->y + before, logits, 0);
    }
}
