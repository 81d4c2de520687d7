/* Probabilities as whole numbers, summed.
 *
 * `unit` is a power of two, so that each product is exact, and is cut to a whole number: what it
 * gives is the same on every machine. */
#include <stdint.h>

/* Write the sums (rows x (size + 1)) of the numbers of the tokens before each one: that of a token
 * is its probability times `unit`, and 1 more. */
void quantize(const float *probabilities, int64_t rows, int64_t size, float unit, int64_t *sums) {
    for (int64_t row = 0; row < rows; row++) {
        const float *from = probabilities + row * size;
        int64_t *to = sums + row * (size + 1);
        *to = 0;
        for (int64_t i = 0; i < size; i++) to[i + 1] = (int64_t)(from[i] * unit) + 1;
        for (int64_t i = 0; i < size; i++) to[i + 1] += to[i];
    }
}
