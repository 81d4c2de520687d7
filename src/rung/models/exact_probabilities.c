/* The cumulative probabilities of a trie of n-grams, as whole numbers.
 *
 * Every operation is one of whole numbers, or a single product of two doubles that is cut to a
 * whole number: what it gives is the same on every machine. `exact_probabilities.py` says what is
 * computed. */
#include <stdint.h>

/* The children of row h are the rows first[h] to first[h + 1] of the next order, sorted by their
 * tokens. `own` sums the numbers of all rows before each one, and may wrap around. */
typedef struct {
    const int64_t *first;
    const int32_t *tokens;
    const uint64_t *own;
    const double *weight;
} level;

typedef struct {
    int64_t levels, vocabulary, slack;
    const int64_t *unigrams;
    const level *level;
} trie;

/* Return the first row from `low` to `high` whose token is not below `token`, else `high`. */
static inline int64_t lower_bound(const int32_t *tokens, int64_t low, int64_t high, int64_t token) {
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (tokens[middle] < token) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Append a token to the text of each slot. `rows` has for each slot the rows of the n-grams of
 * 1, 2, ... tokens that end there, or -1. */
void advance(const trie *t, int64_t count, const int64_t *slots, const int64_t *tokens,
             int64_t *rows) {
    for (int64_t i = 0; i < count; i++) {
        int64_t *row = rows + slots[i] * t->levels;
        for (int64_t k = t->levels - 1; k > 0; k--) {
            const level *l = t->level + k - 1;
            const int64_t parent = row[k - 1], end = parent < 0 ? 0 : l->first[parent + 1];
            const int64_t found =
                parent < 0 ? 0 : lower_bound(l->tokens, l->first[parent], end, tokens[i]);
            row[k] = found < end && l->tokens[found] == tokens[i] ? found : -1;
        }
        if (t->levels) row[0] = tokens[i];
    }
}

/* Write the numbers of all tokens below each of `width` rising places of each slot. */
void cumulate(const trie *t, int64_t count, int64_t width, const int64_t *slots,
              const int64_t *places, const int64_t *rows, int64_t *out) {
    for (int64_t i = 0; i < count; i++) {
        const int64_t *row = rows + slots[i] * t->levels, *place = places + i * width;
        int64_t *to = out + i * width;
        for (int64_t j = 0; j < width; j++)
            to[j] = t->unigrams[place[j] < t->vocabulary ? place[j] : t->vocabulary];
        for (int64_t k = 0; k < t->levels; k++) {
            if (row[k] < 0) continue;
            const level *l = t->level + k;
            const int64_t begin = l->first[row[k]], end = l->first[row[k] + 1];
            const double weight = l->weight[row[k]];
            for (int64_t j = 0, at = begin; j < width; j++) {
                at = lower_bound(l->tokens, at, end, place[j]);
                to[j] = (int64_t)((uint64_t)(int64_t)(weight * (double)to[j]) + l->own[at] -
                                  l->own[begin]);
            }
        }
        for (int64_t j = 0; j < width; j++)
            to[j] += t->slack * (place[j] < t->vocabulary ? place[j] : t->vocabulary);
    }
}
