/** Statistics of attention heads: where one looks on average, and which one copies. */

import { percent } from "./dom.js";

/** Describe where a head looks on average. */
export function describeHead(tokens, weights) {
  const mean = (share) => meanOf(weights, share);
  const parts = [
    `${percent(mean((row, i) => row[i]))} at the token itself`,
    `${percent(mean((row, i) => row[i - 1]))} at the one before`,
    `${percent(mean((row) => row[0]))} at the beginning`,
    `${percent(inductionScore(tokens, weights))} at what followed the same token earlier`,
  ];
  return `On average it looks ${parts.join(", ")}.`;
}

/** Mean weight on what followed an earlier occurrence of the token: an induction head (Olsson et al. 2022). */
function inductionScore(tokens, weights) {
  const followed = (i, j) => j > 0 && j <= i && tokens[j - 1] === tokens[i];
  return meanOf(weights, (row, i) => row.reduce((sum, weight, j) => (followed(i, j) ? sum + weight : sum), 0));
}

/** Average over all tokens but the first, which sees nothing but itself. */
function meanOf(weights, share) {
  return weights.slice(1).reduce((sum, row, i) => sum + share(row, i + 1), 0) / (weights.length - 1);
}

/** Find layer and head, counted from 1, of the head that copies most. */
export function findInductionHead({ tokens, weights }) {
  const all = weights.flatMap((layer, l) => layer.map((one, h) => [inductionScore(tokens, one), l + 1, h + 1]));
  return all.reduce((best, next) => (next[0] > best[0] ? next : best)).slice(1);
}
