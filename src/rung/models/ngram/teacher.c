/* Subtract a trigram's probabilities from gradients for logits, in one pass over memory.
 *
 * Row i follows the token `last[i]` and the bigram `found[i]`, or -1 where that was never seen. Its
 * probabilities, weight(found) * bigram(last) and the shares of the trigrams that it begins, are
 * taken `trained[i]` times. The rows are divided among the threads in the same way every time.
 */
#include <stdint.h>

void subtract_trigrams(int64_t rows, int64_t width, const int64_t *last, const int64_t *found,
                       const float *trained, const float *bigram, const float *weights,
                       const int32_t *first, const int32_t *tokens, const float *shares,
                       float *gradient) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        if (trained[i] == 0) continue;
        const float *from = bigram + last[i] * width;
        const float by = found[i] < 0 ? trained[i] : trained[i] * weights[found[i]];
        float *to = gradient + i * width;
        for (int64_t j = 0; j < width; j++) to[j] -= by * from[j];
        if (found[i] < 0) continue;
        for (int64_t k = first[found[i]]; k < first[found[i] + 1]; k++)
            to[tokens[k]] -= trained[i] * shares[k];
    }
}
