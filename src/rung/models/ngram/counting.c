/* Count the n-grams of a text, each order from the one below, by two passes over the text.
 *
 * A window is an n-gram where it stands in the text. The windows of an order are in the order of
 * their n-grams: by the first token, then by the rest, whose order is that of the windows one token
 * shorter. So each shorter window is dealt to the token before it, in turn, and all are sorted.
 * Then equal windows stand together, and make a row of the order's level of the trie.
 */
#include <stdint.h>
#include <stdlib.h>

typedef struct {
    uint32_t row, place; /* of its n-gram in the level, and of its first token in the text */
} window;

#define OPENS 0x80000000u /* marks the token before a place where a document begins */

/* Sort the windows that are a token longer than `shorter`, or those of one token where that is
 * NULL. `before` has the token before each place, and before the end of the text. Each window keeps
 * the row of what follows its first token, or has its token for a row. `first` (vocabulary + 1) is
 * filled with the first window of each token, `token` (count) is for our use. `parts` of the
 * windows are dealt at once, each to its own share of a token's windows. Returns 0, or 1 where there
 * is no memory. */
int sort_windows(int64_t parts, int64_t count, const window *shorter, const uint32_t *before,
                 int64_t vocabulary, window *sorted, int64_t *first, uint32_t *token) {
    int64_t *next = calloc(parts * vocabulary, sizeof *next);
    if (!next) return 1;
#pragma omp parallel for schedule(static, 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t *counts = next + part * vocabulary;
        for (int64_t i = count * part / parts; i < count * (part + 1) / parts; i++) {
            token[i] = shorter ? before[shorter[i].place] : before[i + 1] & ~OPENS;
            if (!(token[i] & OPENS)) counts[token[i]]++;
        }
    }
    int64_t sum = 0;
    for (int64_t a = 0; a < vocabulary; a++) {
        first[a] = sum;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t own = next[part * vocabulary + a];
            next[part * vocabulary + a] = sum;
            sum += own;
        }
    }
    first[vocabulary] = sum;
#pragma omp parallel for schedule(static, 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t *to = next + part * vocabulary;
        for (int64_t i = count * part / parts; i < count * (part + 1) / parts; i++) {
            if (token[i] & OPENS) continue;
            const window longer = {shorter ? shorter[i].row : token[i],
                                   shorter ? shorter[i].place - 1 : (uint32_t)i};
            sorted[to[token[i]]++] = longer;
        }
    }
    free(next);
    return 0;
}

/* Count the n-grams that begin with each token: `rows` (vocabulary + 1) is filled with the first
 * row of each. */
void count_rows(int64_t vocabulary, const window *sorted, const int64_t *first, int64_t *rows) {
#pragma omp parallel for schedule(dynamic, 64)
    for (int64_t a = 0; a < vocabulary; a++) {
        int64_t distinct = first[a] < first[a + 1];
        for (int64_t i = first[a] + 1; i < first[a + 1]; i++)
            distinct += sorted[i].row != sorted[i - 1].row;
        rows[a + 1] = distinct;
    }
    rows[0] = 0;
    for (int64_t a = 0; a < vocabulary; a++) rows[a + 1] += rows[a];
}

/* Make the level of sorted windows, and give each window its row in it. The level below, whose rows
 * begin at `rows_below` for each first token, has the last token of each n-gram at its suffix. The
 * parent stands at the parent of the row before or behind it, for within a token both it and the
 * parents of the suffixes rise. If the level `is_second`, the level below has single tokens. */
void make_level(int64_t vocabulary, int is_second, window *sorted, const int64_t *first,
                const int64_t *rows, const int64_t *rows_below, const int32_t *tokens_below,
                const int32_t *parents_below, const int32_t *suffixes_below, int32_t *tokens,
                int32_t *parents, int32_t *counts, int32_t *suffixes) {
#pragma omp parallel for schedule(dynamic, 64)
    for (int64_t a = 0; a < vocabulary; a++) {
        int64_t row = rows[a], parent = rows_below[a];
        for (int64_t i = first[a]; i < first[a + 1]; row++) {
            const uint32_t suffix = sorted[i].row;
            const int64_t begin = i;
            while (i < first[a + 1] && sorted[i].row == suffix) sorted[i++].row = row;
            while (!is_second && suffixes_below[parent] != parents_below[suffix]) parent++;
            tokens[row] = tokens_below[suffix];
            parents[row] = parent;
            counts[row] = i - begin;
            suffixes[row] = suffix;
        }
    }
}
