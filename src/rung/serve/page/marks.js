/** Marks: what a run's name and its figures have behind them, and what they say. */

import { decimal, make } from "./elements.js";

const NO_DISTRIBUTION =
  "no distribution; its scores were divided by their sum over the vocabulary, so this is the cost of another model";

/** The name, marked where training came to too little for the figures to say anything. */
export function showName(run) {
  return run.doubt ? `${run.name} ‡` : run.name;
}

/** A run's bits, marked where its own scores are no distribution. */
export function showBits(run, bits) {
  return `${decimal(bits)}${run.renormalized ? "*" : ""}`;
}

/** What runs are ranked by: their bits per byte, those without and those in doubt last. */
export function rank(run) {
  return run.doubt ? Infinity : (run.bits_per_byte ?? Infinity);
}

/** What the marks of these runs say, a line each. */
export function explainMarks(runs) {
  return runs.flatMap((run) => [
    ...(run.doubt ? [make("p", { class: "note" }, `‡ ${run.name}: ${run.doubt}.`)] : []),
    ...(run.renormalized ? [make("p", { class: "note" }, `* ${run.name}: ${NO_DISTRIBUTION}.`)] : []),
  ]);
}
