/* Smooth counts, as `smoothing.py` does in numpy, to the same last bit: sums are taken in the same
 * order, and products are rounded before they are added. */
#include <stdint.h>

#pragma STDC FP_CONTRACT OFF
#ifndef __clang__
#pragma GCC optimize("fp-contract=off")
#endif

/* Count in `total` (6) how many of the counts are 0, 1, 2, 3, 4, and more. */
void count_counts(int64_t size, const int32_t *counts, int64_t *total) {
    for (int64_t i = 0; i < size; i++) total[counts[i] < 5 ? counts[i] : 5]++;
}

/* Count how often each row occurs, on top of `total`. */
void count_rows(int64_t size, const int32_t *rows, int32_t *total) {
    for (int64_t i = 0; i < size; i++) total[rows[i]]++;
}

/* Share what was counted after each history, and write the history's weight.
 *
 * The children of history h are the rows whose parent is `start` + h; they follow one another. A
 * count of 1, 2, 3 or more gives up `discounts[1 .. 3]` of itself, one that is not `kept` (NULL: all
 * are) all of itself to the weight. `extra` is added for what was not seen, and where
 * `by_continuation` as much again for each token that was. Where `backoff` is not 0, nothing is
 * added to a share, and every weight is `backoff`. `probability` has the lower order's at first. */
void smooth(int64_t size, int64_t histories, int32_t start, const int32_t *parents,
            const int32_t *counts, const uint8_t *kept, const double *discounts, double extra,
            int by_continuation, double backoff, double *probability, double *weight) {
    for (int64_t h = 0, begin = 0, end; h < histories; h++, begin = end) {
        double total = 0, given = 0, added = extra;
        for (end = begin; end < size && parents[end] == start + h; end++) {
            const int32_t count = counts[end];
            total += count;
            given += kept && !kept[end] ? count : discounts[count < 3 ? count : 3];
            added += by_continuation && count > 0;
        }
        const double divisor = total > 0 ? total + added : 1;
        weight[h] = total > 0 ? (added + given) / divisor : 1;
        for (int64_t i = begin; i < end; i++) {
            const double share = (counts[i] - discounts[counts[i] < 3 ? counts[i] : 3]) / divisor;
            if (!backoff) probability[i] = share + weight[h] * probability[i];
            else probability[i] = counts[i] > 0 ? share : backoff * probability[i];
        }
        if (backoff) weight[h] = backoff;
    }
}
