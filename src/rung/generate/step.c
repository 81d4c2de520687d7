/* Tokens through a decoder-only transformer, at the speed that its weights are read.
 *
 * A row of the batch is a token: the next one of each text, or several in turn of one. What a layer is made of is in
 * its description, not here: GPT-2 and Llama are two descriptions. Activations and sums are float; weights are float,
 * bfloat16, or int8 with a scale a row. All threads go through all of it together and share out the rows of each
 * product; between products they wait for one another.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

#define LANES 16
#define ROWS 8       /* of a matrix that are multiplied together */
#define STRETCH 256  /* columns of them that are widened to float at a time */
#define FEW 4        /* rows of a batch up to which each weight is multiplied with them in turn; of more, each has a lane */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half_vec __attribute__((vector_size(2 * LANES)));
typedef float quarter_vec __attribute__((vector_size(LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef int32_t integers __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));
typedef int16_t shorts __attribute__((vector_size(2 * LANES)));
typedef int8_t bytes __attribute__((vector_size(LANES), aligned(1), may_alias));

enum { FLOAT, BFLOAT16, INT8 };

typedef struct {
    const void *weight; /* rows x columns */
    const float *scale; /* of each row, for int8 */
    const float *bias;  /* or null */
    int64_t rows, columns, type;
} product;

typedef struct {
    const float *weight, *bias; /* no bias: divided by the root mean square; else mean and deviation */
    float eps;
} norm;

typedef struct {
    norm before_attention, before_mlp;
    product q, k, v, o, gate, up, down; /* no gate: GELU of up; else SiLU of gate, times up */
    float *keys, *values;               /* texts x groups x capacity x size */
    float scale;                        /* of q k */
} layer;

typedef struct {
    int64_t text, first, at; /* whose keys a row sees: which text, its first token, and the row's own place */
} place;

typedef struct {
    int64_t layers, batch, width, heads, groups, size, inner, capacity;
    const place *places;
    const layer *layer;
    norm last;
    product head;
    float *x, *y, *q, *attended, *inside, *scores; /* batch rows of width, width, H K, H K, 2 inner, heads x capacity */
    float *across;                                 /* the largest of them, batch in lanes */
} model;

static inline vec load(const void *weight, int64_t type, int64_t at) {
    if (type == FLOAT) return *(const vec *)((const float *)weight + at);
    if (type == BFLOAT16)
        return (vec)(__builtin_convertvector(*(const halves *)((const uint16_t *)weight + at), words) << 16);
#ifdef __AVX512F__ /* what the general form below is not compiled to */
    return (vec)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)((const int8_t *)weight + at))));
#else
    const shorts twice = __builtin_convertvector(*(const bytes *)((const int8_t *)weight + at), shorts);
    return __builtin_convertvector(__builtin_convertvector(twice, integers), vec);
#endif
}

static inline float load_one(const void *weight, int64_t type, int64_t at) {
    if (type == FLOAT) return ((const float *)weight)[at];
    if (type == INT8) return ((const int8_t *)weight)[at];
    uint32_t wide = (uint32_t)((const uint16_t *)weight)[at] << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

static inline float sum(vec v) {
    half_vec half[2];
    quarter_vec quarter[2];
    memcpy(half, &v, sizeof half);
    half[0] += half[1];
    memcpy(quarter, &half[0], sizeof quarter);
    quarter[0] += quarter[1];
    return (quarter[0][0] + quarter[0][2]) + (quarter[0][1] + quarter[0][3]);
}

static inline vec choose(integers mask, vec a, vec b) { return (vec)((mask & (integers)a) | (~mask & (integers)b)); }
static inline vec at_least(vec x, vec low) { return choose(x < low, low, x); }
static inline vec at_most(vec x, vec high) { return choose(x > high, high, x); }

/* e to the x: 2 to a whole number, times a polynomial in what is left (Cody & Waite 1980, chapter 6). */
static inline vec exponential(vec x) {
    x = at_most(at_least(x, (vec){0} - 87.0f), (vec){0} + 88.0f);
    const vec rounder = (vec){0} + 12582912.0f; /* adding 1.5 * 2^23 rounds to a whole number */
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

/* Row `row` of the weights times `count` rows of x; inlined for each type and count, so that both are constants. */
static inline __attribute__((always_inline)) void
dots(const void *weight, const int64_t type, int64_t columns, int64_t row, const float *x, const int count, float *out) {
    const int64_t start = row * columns;
    vec even[FEW] = {{0}}, odd[FEW] = {{0}};
    int64_t j = 0;
    for (; j + 2 * LANES <= columns; j += 2 * LANES) {
        const vec a = load(weight, type, start + j), b = load(weight, type, start + j + LANES);
        for (int r = 0; r < count; r++) {
            even[r] += a * *(const vec *)(x + r * columns + j);
            odd[r] += b * *(const vec *)(x + r * columns + j + LANES);
        }
    }
    for (int r = 0; r < count; r++) out[r] = sum(even[r] + odd[r]);
    for (; j < columns; j++)
        for (int r = 0; r < count; r++) out[r] += load_one(weight, type, start + j) * x[r * columns + j];
}

static inline __attribute__((always_inline)) void
dots_of(const product *p, const int64_t type, int64_t row, const float *x, int64_t count, float *out) {
    switch (count) {
        case 1: dots(p->weight, type, p->columns, row, x, 1, out); break;
        case 2: dots(p->weight, type, p->columns, row, x, 2, out); break;
        case 3: dots(p->weight, type, p->columns, row, x, 3, out); break;
        default: dots(p->weight, type, p->columns, row, x, FEW, out);
    }
}

static inline float finish(const product *p, int64_t row, float value) {
    if (p->scale) value *= p->scale[row];
    return p->bias ? value + p->bias[row] : value;
}

/* y = x W' + b, or y += it, for a batch of FEW at the most. */
static void multiply_few(const product *p, int64_t batch, const float *x, float *y, int add) {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < p->rows; row++) {
        float out[FEW];
        if (p->type == FLOAT) dots_of(p, FLOAT, row, x, batch, out);
        else if (p->type == BFLOAT16) dots_of(p, BFLOAT16, row, x, batch, out);
        else dots_of(p, INT8, row, x, batch, out);
        for (int64_t b = 0; b < batch; b++) {
            float *to = y + b * p->rows + row;
            *to = finish(p, row, out[b]) + (add ? *to : 0);
        }
    }
}

/* Up to ROWS rows of the weights from column `from` on, as floats: where they stand, or widened into `wide`. */
static inline void widen(const product *p, int64_t row, int64_t from, int64_t size, float *wide, const float **rows) {
    for (int r = 0; r < ROWS; r++) {
        const int64_t start = (row + r < p->rows ? row + r : p->rows - 1) * p->columns + from;
        rows[r] = p->type == FLOAT ? (const float *)p->weight + start : wide + r * STRETCH;
        if (p->type == FLOAT) continue;
        int64_t j = 0;
        for (; j + LANES <= size; j += LANES) *(vec *)(wide + r * STRETCH + j) = load(p->weight, p->type, start + j);
        for (; j < size; j++) wide[r * STRETCH + j] = load_one(p->weight, p->type, start + j);
    }
}

/* The same with a row of the batch in every lane: `x` is blocks of columns x LANES. */
static void multiply_many(const product *p, int64_t batch, const float *x, float *y, int add) {
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < p->rows; row += ROWS)
        for (int64_t first = 0; first < batch; first += LANES) {
            vec total[ROWS] = {{0}};
            for (int64_t from = 0; from < p->columns; from += STRETCH) {
                const int64_t size = p->columns - from < STRETCH ? p->columns - from : STRETCH;
                const float *block = x + first * p->columns + from * LANES, *rows[ROWS];
                float wide[ROWS * STRETCH];
                widen(p, row, from, size, wide, rows);
                for (int64_t j = 0; j < size; j++) {
                    const vec column = *(const vec *)(block + j * LANES);
                    for (int r = 0; r < ROWS; r++) total[r] += rows[r][j] * column;
                }
            }
            for (int r = 0; r < ROWS && row + r < p->rows; r++)
                for (int64_t b = first; b < batch && b < first + LANES; b++) {
                    float *to = y + b * p->rows + row + r;
                    *to = finish(p, row + r, total[r][b - first]) + (add ? *to : 0);
                }
        }
}

static void multiply(const product *p, int64_t batch, const float *x, float *y, int add) {
    if (batch <= FEW) multiply_few(p, batch, x, y, add);
    else multiply_many(p, batch, x, y, add);
}

/* x (batch x columns) as the products want it. */
static const float *spread(const model *m, const float *x, int64_t columns) {
    if (m->batch <= FEW) return x;
#pragma omp for schedule(static)
    for (int64_t j = 0; j < columns; j++)
        for (int64_t b = 0; b < m->batch; b++)
            m->across[(b / LANES * columns + j) * LANES + b % LANES] = x[b * columns + j];
    return m->across;
}

static void normalize(const norm *n, int64_t batch, int64_t width, const float *x, float *y) {
#pragma omp for schedule(static)
    for (int64_t b = 0; b < batch; b++) {
        const float *from = x + b * width;
        float *to = y + b * width, mean = 0, square = 0;
        if (n->bias) {
            for (int64_t i = 0; i < width; i++) mean += from[i];
            mean /= width;
        }
        for (int64_t i = 0; i < width; i++) square += (from[i] - mean) * (from[i] - mean);
        const float by = 1 / sqrtf(square / width + n->eps);
        for (int64_t i = 0; i < width; i++)
            to[i] = (from[i] - mean) * by * n->weight[i] + (n->bias ? n->bias[i] : 0);
    }
}

/* Turn the pairs (i, i + K/2) of one head; the sines of the first half are negative. */
static void rotate(float *x, const float *cosines, const float *sines, int64_t size) {
    for (int64_t i = 0; i < size / 2; i++) {
        const float a = x[i], b = x[i + size / 2];
        x[i] = a * cosines[i] + b * sines[i];
        x[i + size / 2] = b * cosines[i + size / 2] + a * sines[i + size / 2];
    }
}

/* softmax(q k') v for head `h` of row `b`, over the keys that it may see. */
static void attend(const model *m, const layer *l, int64_t b, int64_t h) {
    const int64_t size = m->size, group = h / (m->heads / m->groups);
    const int64_t first = m->places[b].first, last = m->places[b].at, stored = m->places[b].text * m->groups + group;
    const float *q = m->q + (b * m->heads + h) * size;
    const float *keys = l->keys + stored * m->capacity * size, *values = l->values + stored * m->capacity * size;
    float *scores = m->scores + (b * m->heads + h) * (m->capacity + LANES), *out = m->attended + (b * m->heads + h) * size;
    float largest = -INFINITY, total = 0;
    for (int64_t s = first; s <= last; s++) {
        dots(keys, FLOAT, size, s, q, 1, scores + s);
        scores[s] *= l->scale;
        if (scores[s] > largest) largest = scores[s];
    }
    for (int64_t s = first; s <= last; s += LANES) { /* behind the last one there is room, and it is not read */
        const vec e = exponential(*(vec *)(scores + s) - largest);
        *(vec *)(scores + s) = e;
        for (int64_t i = 0; i < LANES && s + i <= last; i++) total += e[i];
    }
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
    return up * (1 - 1 / (1 + exponential(2 * 0.7978845608028654f * (up + 0.044715f * up * up * up))));
}

static void activate(int64_t count, float *inside, const float *gate) {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) /* behind the last one there is room */
        *(vec *)(inside + i) = activated(*(vec *)(inside + i), gate ? gate + i : 0);
}

static void pass_layer(const model *m, const layer *l, const float *turns) {
    const int64_t batch = m->batch, size = m->size, kv = m->groups * size;
    float *gate = m->inside + (batch * m->inner + LANES - 1) / LANES * LANES, *k = gate, *v = gate + batch * kv; /* free while attention runs */
    normalize(&l->before_attention, batch, m->width, m->x, m->y);
    const float *x = spread(m, m->y, m->width);
    multiply(&l->q, batch, x, m->q, 0);
    multiply(&l->k, batch, x, k, 0);
    multiply(&l->v, batch, x, v, 0);
#pragma omp barrier
#pragma omp for schedule(static)
    for (int64_t i = 0; i < batch * m->groups; i++) {
        const int64_t b = i / m->groups, stored = m->places[b].text * m->groups + i % m->groups;
        const int64_t to = (stored * m->capacity + m->places[b].at) * size;
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
    multiply(&l->o, batch, spread(m, m->attended, m->heads * size), m->x, 1);
#pragma omp barrier
    normalize(&l->before_mlp, batch, m->width, m->x, m->y);
    x = spread(m, m->y, m->width);
    if (l->gate.weight) multiply(&l->gate, batch, x, gate, 0);
    multiply(&l->up, batch, x, m->inside, 0);
#pragma omp barrier
    activate(batch * m->inner, m->inside, l->gate.weight ? gate : 0);
    multiply(&l->down, batch, spread(m, m->inside, m->inner), m->x, 1);
#pragma omp barrier
}

/* m->x holds the embedded tokens, `turns` cosines and sines of each row, or null. Logits are batch x vocabulary. */
void step(const model *m, const float *turns, float *logits) {
#pragma omp parallel
    {
        for (int64_t i = 0; i < m->layers; i++) pass_layer(m, m->layer + i, turns);
        normalize(&m->last, m->batch, m->width, m->x, m->y);
        multiply(&m->head, m->batch, spread(m, m->y, m->width), logits, 0);
    }
}
