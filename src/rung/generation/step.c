/* The forward pass of a decoder-only transformer, as fast as its weights can be read from memory.
 *
 * A row of the batch is one token: the next token of each text, or one of several consecutive
 * tokens of a text. A `layer` describes the parts of a layer; GPT-2 and Llama are two such
 * descriptions. Weights are float, bfloat16, or int8 with a scale for each row. Activations and
 * sums are float, but for products of int8 weights: there a row of activations is rounded to int16,
 * as 32767ths of its largest, and CHUNK columns are summed as whole numbers, without any rounding.
 * All threads run the whole pass, share the rows of each product, and wait for one another between
 * products. The result of a row is the same to the last bit in any batch.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

/* What differs between processors. A block is LANES rows of a matrix, as many as a register of
 * AVX-512 or AVX2 holds, or two of NEON's. Many rows of the batch are multiplied MANY at a time by
 * BLOCKS blocks: BLOCKS * MANY sums, BLOCKS weights and an input fit into the registers, of which
 * AVX-512 has 32 and AVX2 16.
 *
 * A sum waits for its last addition. The sums of one panel of AVX2's narrow blocks would wait for
 * longer than memory takes: one row of the batch is multiplied by PANELS panels together.
 *
 * Sums of whole numbers are added to the totals in a loop that is unrolled UNROLL times. Where it
 * stays a loop, the totals are in memory, and the registers are left to the sums. (A macro is
 * nothing to a pragma.)
 *
 * WIDEN reads LANES pairs of int8 as int16. ADD_PRODUCTS adds to each lane the product of two
 * such pairs, a0 * b0 + a1 * b1. Compilers do not turn the general form into these instructions. */
#ifdef __AVX512BW__
#include <immintrin.h>
#define LANES 16
#define BLOCKS 4
#define MANY 6
#define PANELS 1
enum { UNROLL = 4 };
#define WIDEN(at) (pairs)_mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)(at)))
#ifdef __AVX512VNNI__
#define ADD_PRODUCTS(sum, a, b) \
    (integers)_mm512_dpwssd_epi32((__m512i)(sum), (__m512i)(a), (__m512i)(b))
#else
#define ADD_PRODUCTS(sum, a, b) ((sum) + (integers)_mm512_madd_epi16((__m512i)(a), (__m512i)(b)))
#endif
#elif defined __AVX2__
#include <immintrin.h>
#define LANES 8
#define BLOCKS 2
#define MANY 6
#define PANELS 2
enum { UNROLL = 1 };
#define WIDEN(at) (pairs)_mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(at)))
#define ADD_PRODUCTS(sum, a, b) ((sum) + (integers)_mm256_madd_epi16((__m256i)(a), (__m256i)(b)))
#else
#define LANES 8
#define BLOCKS 2
#define MANY 4
#define PANELS 1
enum { UNROLL = 4 };
#define WIDEN(at) __builtin_convertvector(*(const bytes *)(at), pairs)
#define ADD_PRODUCTS(sum, a, b) \
    ((sum) + ((integers)(a) << 16 >> 16) * ((integers)(b) << 16 >> 16) + \
     ((integers)(a) >> 16) * ((integers)(b) >> 16))
#endif

/* One row of the batch is multiplied by the blocks of PANELS panels together, and two rows by those
 * of one. The blocks of a panel stand side by side, so that memory is read from one end to the
 * other. */
#define PANEL 4
/* Rows of a text whose attention reads keys and values together. */
#define QUERIES 4
/* 512 * 127 * 32767 < 2^31 */
#define CHUNK 512
/* Weights are prefetched this many bytes ahead, line by line. */
#define AHEAD 8192
#define LINE 64

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float quarter_vec __attribute__((vector_size(16)));
typedef int32_t quarter_integers __attribute__((vector_size(16)));
typedef uint32_t words __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int16_t pairs __attribute__((vector_size(4 * LANES), aligned(2), may_alias));
typedef int8_t bytes __attribute__((vector_size(2 * LANES), aligned(1), may_alias));

#ifdef __clang__
#define PICK __builtin_shufflevector
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, (quarter_integers){__VA_ARGS__})
#endif

enum { FLOAT, BFLOAT16, INT8 };

/* A matrix and its bias. `weight` has panels of up to PANEL blocks, one behind the other. Of each
 * column, or pair of columns where weights have 16 or 8 bits, a panel holds the weights of its
 * first block, of the next, and so on; those of a pair stand beside each other. Zeros fill the last
 * block, and the last pair. `scale` has a value for each row of an int8 matrix. `scale` and `bias`
 * may be null, and are filled up like the blocks. */
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
 * QUERIES * (capacity + LANES) numbers of each thread. `rounded` has room for the inputs of any
 * product as int16, filled up to pairs, and `steps` for the size of a step of each row of them.
 * Logits are wanted of the last `wanted` rows. */
typedef struct {
    int64_t layers, batch, width, heads, groups, size, inner, capacity, threads;
    int64_t wanted;
    const place *places;
    const layer *layer;
    norm last;
    product head;
    float *x, *y, *q, *attended, *inside, *scores, *steps;
    int16_t *rounded;
} model;

int64_t lanes(void) { return LANES; }
int64_t panel(void) { return PANEL; }
int64_t queries(void) { return QUERIES; }

/* Add the quarters of a vector of LANES numbers. */
static inline quarter_vec fold(vec v) {
    quarter_vec part[LANES / 4];
    memcpy(part, &v, sizeof part);
    for (int parts = LANES / 8; parts; parts /= 2)
        for (int i = 0; i < parts; i++) part[i] += part[i + parts];
    return part[0];
}

static inline float sum(vec v) {
    const quarter_vec four = fold(v);
    return (four[0] + four[2]) + (four[1] + four[3]);
}

/* Compute `sum` of four vectors. */
static inline quarter_vec sums(const vec *v) {
    const quarter_vec a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
    const quarter_vec ab = PICK(a, b, 0, 4, 1, 5) + PICK(a, b, 2, 6, 3, 7),
                      cd = PICK(c, d, 0, 4, 1, 5) + PICK(c, d, 2, 6, 3, 7);
    return PICK(ab, cd, 0, 1, 4, 5) + PICK(ab, cd, 2, 3, 6, 7);
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

/* Find the largest absolute value, or one that is no number. Its bits, as those of a positive whole
 * number, rise with it. */
static float find_largest(const float *x, int64_t count) {
    integers all = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const integers part = *(const integers *)(x + i) & 0x7fffffff;
        all = ((part > all) & part) | ((part <= all) & all);
    }
    int32_t largest = 0;
    for (int k = 0; k < LANES; k++) largest = all[k] > largest ? all[k] : largest;
    for (; i < count; i++) {
        int32_t part;
        memcpy(&part, x + i, sizeof part);
        part &= 0x7fffffff;
        largest = part > largest ? part : largest;
    }
    float found;
    memcpy(&found, &largest, sizeof found);
    return found;
}

/* Multiply `blocks` blocks of W by `count` rows of x, and write x W' + b to y, or add it to y.
 *
 * The function is inlined for each type and number of blocks and rows, so that these are constants.
 * More blocks than PANEL are those of whole panels. Of each column it prefetches `ahead` bytes of a
 * panel. A sum always runs from the first column to the last: a row of the batch does not depend on
 * the others. */
static inline __attribute__((always_inline)) void
tile(const model *m, const product *p, const int64_t type, const int blocks, const int count,
     int64_t block, int64_t b, int64_t ahead, const float *x, float *y, int add) {
    const int64_t columns = p->columns, within = block % PANEL, panel = block - within;
    const int64_t behind = (p->rows + LANES - 1) / LANES - panel;
    const int64_t wide = behind < PANEL ? behind : PANEL;
    const int64_t width = type == INT8 ? 2 * LANES : 4 * LANES;
    const int64_t places = type == FLOAT ? columns : (columns + 1) / 2;
    const char *weight = (const char *)p->weight + (panel * places + within) * width;
    vec total[PANELS * PANEL][MANY];
    /* Only those of whole numbers may be in memory, where fewer zeros are sooner written. */
    if (type == INT8)
        for (int k = 0; k < blocks; k++)
            for (int r = 0; r < count; r++) total[k][r] = (vec){0};
    else memset(total, 0, sizeof total);
#define BLOCK(k) (weight + (k) / PANEL * PANEL * places * width + (k) % PANEL * width)
    /* Behind the first of two panels stands the second, which is read by then. The next two follow:
     * the second goes on with the third, which stands behind it, and the first with the fourth. */
    const int64_t size = PANEL * places * width;
    const char *const near = weight + size - AHEAD;
#define READ_AHEAD \
    const int64_t jump = blocks > PANEL && weight >= near ? 2 * size : 0; \
    for (int64_t line = 0; line < ahead; line += LINE) { \
        __builtin_prefetch(weight + jump + line + AHEAD); \
        if (blocks > PANEL) __builtin_prefetch(BLOCK(PANEL) + line + AHEAD); \
    }
    x += b * columns;
    if (type == FLOAT)
        for (int64_t j = 0; j < columns; j++, weight += wide * width) {
            READ_AHEAD;
            for (int r = 0; r < count; r++)
                for (int k = 0; k < blocks; k++)
                    total[k][r] += *(const vec *)BLOCK(k) * x[r * columns + j];
        }
    else if (type == BFLOAT16)
        for (int64_t j = 0; j < columns; j += 2, weight += wide * width) {
            READ_AHEAD;
            /* A block after another: weights of many would not leave the registers to the sums. */
            if (count == 1 && j + 1 < columns) {
                for (int k = 0; k < blocks; k++) {
                    const words both = *(const words *)BLOCK(k);
                    total[k][0] += (vec)(both << 16) * x[j];
                    total[k][0] += (vec)(both & 0xffff0000) * x[j + 1];
                }
                continue;
            }
            for (int r = 0; r < count; r++)
                for (int k = 0; k < blocks; k++)
                    total[k][r] += (vec)(*(const words *)BLOCK(k) << 16) * x[r * columns + j];
            if (j + 1 < columns)
                for (int r = 0; r < count; r++)
                    for (int k = 0; k < blocks; k++)
                        total[k][r] += (vec)(*(const words *)BLOCK(k) & 0xffff0000) *
                                       x[r * columns + j + 1];
        }
    else {
        const int32_t *from = (const int32_t *)m->rounded + b * places;
        for (int64_t begin = 0; begin < places; begin += CHUNK / 2) {
            const int64_t end = places - begin < CHUNK / 2 ? places : begin + CHUNK / 2;
            integers part[PANELS * PANEL][MANY];
            for (int k = 0; k < blocks; k++)
                for (int r = 0; r < count; r++) part[k][r] = (integers){0};
            for (int64_t j = begin; j < end; j++, weight += wide * width) {
                READ_AHEAD;
                for (int r = 0; r < count; r++)
                    for (int k = 0; k < blocks; k++)
                        part[k][r] = ADD_PRODUCTS(part[k][r], WIDEN(BLOCK(k)),
                                                  (integers){0} + from[r * places + j]);
            }
#pragma GCC unroll UNROLL
            for (int k = 0; k < blocks; k++)
                for (int r = 0; r < count; r++)
                    total[k][r] += __builtin_convertvector(part[k][r], vec);
        }
    }
    for (int k = 0; k < blocks; k++) {
        const int64_t row = (block + k) * LANES, left = p->rows - row;
        for (int r = 0; r < count; r++) {
            float *to = y + (b + r) * p->rows + row;
            vec value = total[k][r], before = {0};
            if (type == INT8) value *= *(const vec *)(p->scale + row) * m->steps[b + r];
            if (p->bias) value += *(const vec *)(p->bias + row);
            memcpy(&before, to, (left < LANES ? left : LANES) * sizeof(float));
            if (add) value += before;
            memcpy(to, &value, (left < LANES ? left : LANES) * sizeof(float));
        }
    }
}

/* Multiply some blocks of a panel by all rows, MANY at a time while there are as many. The first
 * rows prefetch the weights. */
static inline __attribute__((always_inline)) void
all_rows(const model *m, const product *p, const int64_t type, const int blocks, int64_t block,
         int64_t batch, int64_t ahead, const float *x, float *y, int add) {
#define TILE(count) tile(m, p, type, blocks, count, block, b, b ? 0 : ahead, x, y, add)
    int64_t b = 0;
    /* Four rows twice are faster than MANY and two. */
    for (; b + MANY <= batch && batch - b != 8; b += MANY) TILE(MANY);
    for (; b + 4 <= batch; b += 4) TILE(4);
    for (; b + 2 <= batch; b += 2) TILE(2);
    for (; b < batch; b++) TILE(1);
}

/* Multiply `some` blocks of a panel, or those of PANELS panels, by all rows. The first of them
 * prefetch the others too, which stand beside them. */
static inline __attribute__((always_inline)) void
tiles(const model *m, const product *p, const int64_t type, int64_t block, int64_t some,
      int64_t batch, const float *x, float *y, int add) {
    const int64_t width = type == INT8 ? 2 * LANES : 4 * LANES;
    int64_t k = 0;
#define WHOLE(blocks, rows) tile(m, p, type, blocks, rows, block, 0, PANEL * width, x, y, add)
    if (some > PANEL) {
        WHOLE(PANELS * PANEL, 1);
        return;
    }
    if (batch <= 2 && some == PANEL) {
        if (batch == 1) WHOLE(PANEL, 1);
        if (batch == 2) WHOLE(PANEL, 2);
        return;
    }
    for (; k + BLOCKS <= some; k += BLOCKS)
        all_rows(m, p, type, BLOCKS, block + k, batch, k ? 0 : some * width, x, y, add);
    for (; k < some; k++)
        all_rows(m, p, type, 1, block + k, batch, k ? 0 : some * width, x, y, add);
}

/* Write x W' + b to y, or add it to y. The threads share the blocks, a panel at a time where there
 * are enough for all threads, and PANELS where the batch has one row. */
static void multiply(const model *m, const product *p, int64_t batch, const float *x, float *y,
                     int add) {
    const int64_t blocks = (p->rows + LANES - 1) / LANES,
                  most = batch == 1 ? PANELS * PANEL : PANEL,
                  together = blocks >= m->threads * most    ? most
                             : blocks >= m->threads * PANEL ? PANEL
                                                            : 1;
#pragma omp for schedule(static) nowait
    for (int64_t begin = 0; begin < blocks; begin += together) {
        const int64_t end = blocks - begin < together ? blocks : begin + together;
        const int64_t stride = end - begin == together ? together : PANEL;
        for (int64_t block = begin; block < end; block += stride) {
            const int64_t some = end - block < stride ? end - block : stride;
            if (p->type == FLOAT) tiles(m, p, FLOAT, block, some, batch, x, y, add);
            else if (p->type == BFLOAT16) tiles(m, p, BFLOAT16, block, some, batch, x, y, add);
            else tiles(m, p, INT8, block, some, batch, x, y, add);
        }
    }
}

/* Round the inputs of an int8 product to whole numbers of steps, 32767 of them to the largest. A
 * row with a number that is none, or infinite, makes outputs that are none. */
static void round_inputs(const model *m, const product *p, int64_t batch, const float *x) {
    if (p->type != INT8) return;
    const int64_t columns = p->columns, stride = (columns + 1) / 2 * 2;
#pragma omp for schedule(static)
    for (int64_t b = 0; b < batch; b++) {
        const float *from = x + b * columns;
        int16_t *to = m->rounded + b * stride;
        const float largest = find_largest(from, columns);
        const int tiny = !(largest > 1e-30f), endless = !(largest < INFINITY);
        const float by = tiny || endless ? 0 : 32767 / largest;
        m->steps[b] = endless ? NAN : tiny ? 0 : largest / 32767;
        for (int64_t i = 0; i < columns; i++) {
            const float value = by ? from[i] * by : 0;
            to[i] = (int16_t)(value + (value < 0 ? -0.5f : 0.5f));
        }
        if (columns < stride) to[columns] = 0;
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

/* Load up to LANES numbers. Sums that some builds of a loop would round otherwise, such as those of
 * scalars, must not depend on how many rows or keys are computed together. */
static inline vec load(const float *from, int64_t count) {
    vec v = {0};
    if (count >= LANES) return *(const vec *)from;
    memcpy(&v, from, count * sizeof(float));
    return v;
}

/* Compute the products of q with four keys, or with one. */
static inline __attribute__((always_inline)) quarter_vec
dots(const float *q, const float *keys, int64_t size, const int count) {
    vec all[4] = {{0}};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES)
        for (int k = 0; k < count; k++)
            all[k] += *(const vec *)(q + i) * *(const vec *)(keys + k * size + i);
    if (i < size)
        for (int k = 0; k < count; k++)
            all[k] += load(q + i, size - i) * load(keys + k * size + i, size - i);
    return count == 4 ? sums(all) : (quarter_vec){sum(all[0])};
}

/* Turn the scores of tokens `first` to `at` into powers of e, and those after them, up to `last`,
 * into zeros; return their sum. A vector may reach past the last score: there is room for it. */
static float weigh(float *scores, int64_t first, int64_t at, int64_t last) {
    for (int64_t s = at + 1; s < last + LANES; s++) scores[s] = -INFINITY;
    vec most = {0}, all = {0};
    most -= INFINITY;
    for (int64_t s = first; s <= at; s += LANES) most = at_least(*(vec *)(scores + s), most);
    float largest = -INFINITY;
    for (int k = 0; k < LANES; k++) largest = most[k] > largest ? most[k] : largest;
    for (int64_t s = first; s <= at; s += LANES) {
        const vec x = *(vec *)(scores + s) - largest;
        const vec e = (vec)((integers)exponential(x) & ~(x < -87.0f));
        *(vec *)(scores + s) = e;
        all += e;
    }
    for (int64_t s = at + 1; s <= last; s++) scores[s] = 0;
    return sum(all);
}

/* Compute softmax(q k') v for head `h` of `count` consecutive tokens of a text, of which row `b` is
 * the first, over the keys that each may see. */
static inline __attribute__((always_inline)) void
attend(const model *m, const layer *l, int64_t b, int64_t h, const int count) {
    const int64_t size = m->size, group = h / (m->heads / m->groups), row = m->heads * size;
    const place *p = m->places + b;
    const int64_t first = p->first, last = p->at + count - 1, room = m->capacity + LANES,
                  stored = (p->start * m->groups + group * p->room) * size;
    const float *q = m->q + b * row + h * size;
    const float *keys = l->keys + stored, *values = l->values + stored;
    float *scores = m->scores + omp_get_thread_num() * QUERIES * room,
          *out = m->attended + b * row + h * size, totals[QUERIES];
    int64_t s = first, i = 0;
    for (; s + 3 <= last; s += 4)
        for (int r = 0; r < count; r++) {
            const quarter_vec four = dots(q + r * row, keys + s * size, size, 4) * l->scale;
            memcpy(scores + r * room + s, &four, sizeof four);
        }
    for (; s <= last; s++)
        for (int r = 0; r < count; r++)
            scores[r * room + s] = dots(q + r * row, keys + s * size, size, 1)[0] * l->scale;
    for (int r = 0; r < count; r++) totals[r] = weigh(scores + r * room, first, p->at + r, last);
    for (; i + 2 * LANES <= size; i += 2 * LANES) {
        vec all[QUERIES][2] = {{{0}}};
        for (s = first; s <= last; s++)
            for (int r = 0; r < count; r++)
                for (int k = 0; k < 2; k++)
                    all[r][k] += scores[r * room + s] *
                                 *(const vec *)(values + s * size + i + k * LANES);
        for (int r = 0; r < count; r++)
            for (int k = 0; k < 2; k++)
                *(vec *)(out + r * row + i + k * LANES) = all[r][k] / totals[r];
    }
    for (; i < size; i += LANES) {
        const int64_t left = size - i < LANES ? size - i : LANES;
        vec all[QUERIES] = {{0}};
        for (s = first; s <= last; s++)
            for (int r = 0; r < count; r++)
                all[r] += scores[r * room + s] * load(values + s * size + i, left);
        for (int r = 0; r < count; r++) {
            all[r] /= totals[r];
            memcpy(out + r * row + i, &all[r], left * sizeof(float));
        }
    }
}

/* Attend for head `h` of the rows from `b` on, QUERIES of them where they follow one another. */
static void attend_rows(const model *m, const layer *l, int64_t b, int64_t h) {
    const int64_t rows = m->batch - b < QUERIES ? m->batch - b : QUERIES;
    const place *p = m->places + b;
    int follow = rows == QUERIES;
    for (int64_t r = 1; r < rows; r++)
        follow &= p[r].start == p->start && p[r].first == p->first && p[r].at == p->at + r;
    if (follow) attend(m, l, b, h, QUERIES);
    else
        for (int64_t r = 0; r < rows; r++) attend(m, l, b + r, h, 1);
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
    round_inputs(m, &l->q, batch, x);
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
    if (turns)
#pragma omp for schedule(static)
        for (int64_t i = 0; i < batch * m->heads; i++) {
            const float *turn = turns + i / m->heads * 2 * size;
            rotate(m->q + i * size, turn, turn + size, size);
        }
    /* Threads share the heads first: the later tokens of a prompt see more. */
    const int64_t parts = (batch + QUERIES - 1) / QUERIES;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < m->heads * parts; i++)
        attend_rows(m, l, i % parts * QUERIES, i / parts);
    round_inputs(m, &l->o, batch, m->attended);
    multiply(m, &l->o, batch, m->attended, m->x, 1);
#pragma omp barrier
    normalize(&l->before_mlp, batch, m->width, m->x, m->y);
    round_inputs(m, &l->up, batch, x);
    if (l->gate.weight) multiply(m, &l->gate, batch, x, gate, 0);
    multiply(m, &l->up, batch, x, m->inside, 0);
#pragma omp barrier
    activate(batch * m->inner, m->inside, l->gate.weight ? gate : 0);
    round_inputs(m, &l->down, batch, m->inside);
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
        round_inputs(m, &m->head, m->wanted, m->y + before);
        multiply(m, &m->head, m->wanted, m->y + before, logits, 0);
    }
}
