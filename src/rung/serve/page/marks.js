/** Footnote marks behind a run's name and figures, and their explanations. */

import { decimal, make } from "./dom.js";

const NO_DISTRIBUTION =
  "no distribution; its scores were divided by their sum over the vocabulary, so this is the cost of another model";

/** Show the name, marked where training was too short for the figures to mean anything. */
export function showName(run) {
  return run.doubt ? `${run.name} ‡` : run.name;
}

/** Show bits, marked where the run's own scores are no distribution. */
export function showBits(run, bits) {
  return `${decimal(bits)}${run.renormalized ? "*" : ""}`;
}

/** Return what runs are ranked by: bits per byte; runs without, and doubtful ones, come last. */
export function rank(run) {
  return run.doubt ? Infinity : (run.bits_per_byte ?? Infinity);
}

/** Explain the marks of these runs, a line each. */
export function explainMarks(runs) {
  return runs.flatMap((run) => [
    ...(run.doubt ? [make("p", { class: "note" }, `‡ ${run.name}: ${run.doubt}.`)] : []),
    ...(run.renormalized ? [make("p", { class: "note" }, `* ${run.name}: ${NO_DISTRIBUTION}.`)] : []),
  ]);
}
