/** Surprisal: a text coloured by the bits that each token costs under two runs, and their difference. */

import { ask, latest, settled } from "./api.js";
import { runField, textField } from "./controls.js";
import { decimal, make, rove, spellToken, showToken, whole } from "./dom.js";
import { explainMarks, showBits, showName } from "./marks.js";
import { listen, state } from "./state.js";

const MAX_BITS = 12; // more bits are shaded like so many
const MAX_DIFFERENCE = 6; // the same, for bits of difference

export function mountSurprisal(panel, runs) {
  const find = (slot) => runs.find((run) => run.name === state[slot]);
  const status = make("p", { class: "status", role: "status" });
  const reading = make("p", { class: "reading", role: "group", "aria-label": "The text, token by token", dir: "auto" });
  const detail = make("p", { class: "detail", role: "status" });
  const [totals, legend, choice] = [
    make("div", { class: "totals" }),
    make("p", { class: "legend" }),
    makeChoice(paint),
  ];
  let told = {}; // by slot: the run, and what it says of the text
  let segments = [];

  const refresh = latest(async () => {
    if (!state.text) return void (status.textContent = "Write or paste a text.");
    try {
      const [a, b] = await Promise.all(["a", "b"].map((slot) => measure(find(slot))));
      told = b ? { a, b } : { a };
      segments = align(a.pieces, (b ?? a).pieces);
      status.textContent = "";
      choice.offer(a.run, b?.run);
      paint();
    } catch (error) {
      status.textContent = error.message;
    }
  });

  function paint() {
    if (!told.a) return;
    const kind = choice.value();
    reading.className = `reading by-${kind}`;
    reading.replaceChildren(...segments.map((segment, i) => makePiece(segment, kind, i)));
    totals.replaceChildren(...Object.entries(told).map(([slot, answer]) => describe(answer, slot)));
    legend.replaceChildren(...makeLegend(kind, told, hasOrders(segments, kind)));
    detail.textContent = "Point at a token, or walk through them with the arrow keys.";
  }

  function tell(element) {
    const segment = segments[Number(element.dataset.at)];
    const costs = Object.entries(told).map(([slot, { run }]) => `${run.name} ${describeCost(segment[slot])}`);
    const name = segment.end ? "the end of the text" : `“${segment.text}”`;
    detail.replaceChildren(make("b", {}, name), ` ${costs.join("; ")}`);
  }

  reading.addEventListener("mouseover", (event) => event.target.closest(".t") && tell(event.target.closest(".t")));
  rove(reading, () => [...reading.querySelectorAll(".t")], tell);
  listen("text", settled(refresh, 300));
  for (const slot of ["a", "b"]) listen(slot, refresh);
  panel.append(
    make(
      "div",
      { class: "controls" },
      textField("Text", "text", { rows: 5 }),
      make("div", { class: "sliders" }, runField("First run", "a", runs), runField("Second run", "b", runs, "none")),
    ),
    status,
    totals,
    make("div", { class: "line" }, choice.element, legend),
    make("div", { class: "card" }, reading),
    detail,
  );
  refresh();
}

async function measure(run) {
  return run && { run, ...(await ask("/api/surprisal", { model: run.name, text: state.text })) };
}

/** Cut the text into segments that end at token ends of both tokenizers, with the tokens of either. */
export function align(a, b) {
  const [left, right] = [findStops(a), findStops(b)];
  const segments = [];
  let [i, j, start] = [0, 0, 0];
  while (i < left.length && j < right.length) {
    const from = [i, j];
    while (left[i].stop !== right[j].stop && !(left[i].end || right[j].end))
      left[i].stop < right[j].stop ? (i += 1) : (j += 1);
    const last = left[i].end || right[j].end;
    [i, j] = last ? [left.length, right.length] : [i + 1, j + 1];
    const tokens = left.slice(from[0], i);
    segments.push({
      text: tokens.map((token) => token.text).join(""),
      end: tokens.at(-1).end && tokens.length === 1,
      start,
      a: sumUp(tokens),
      b: sumUp(right.slice(from[1], j)),
    });
    start = tokens.at(-1).stop;
  }
  return segments;
}

/** Find where in the text each piece ends; the last one is the text's end. */
function findStops(pieces) {
  let stop = 0;
  return pieces.map((piece) => ({ ...piece, stop: (stop += piece.text.length) }));
}

/** Count tokens: a piece may be several, which hold bytes of one character. */
function countTokens(pieces) {
  return pieces.reduce((sum, piece) => sum + piece.tokens, 0);
}

/** Add bits; JSON has null for infinitely many. */
function add(x, y) {
  return x === null || y === null ? null : x + y;
}

function sumUp(tokens) {
  const bits = tokens.map((token) => token.bits).reduce(add, 0);
  return { bits, tokens };
}

function makePiece(segment, kind, i) {
  const [a, b] = [segment.a.bits ?? Infinity, segment.b.bits ?? Infinity];
  const bits = { a, b, difference: a === b ? 0 : b - a }[kind];
  const most = kind === "difference" ? MAX_DIFFERENCE : MAX_BITS;
  const strength = Math.min(Math.abs(bits), most) / most;
  const side = kind === "difference" ? (bits > 0 ? "a" : "b") : kind;
  const orders =
    kind === "difference" ? [] : segment[kind].tokens.map((token) => token.order).filter((n) => n !== null);
  const name = segment.end ? "end of text" : spellToken(segment.text);
  const attributes = {
    class: `t heat-${side}${segment.end ? " end" : ""}`,
    "--s": strength.toFixed(3),
    tabindex: i === 0 ? 0 : -1,
    role: "img",
    "aria-label": `${name}: ${decimal(Number.isFinite(bits) ? bits : null, 1)} bits`,
    "data-at": i,
  };
  const order = orders.length ? make("sub", { class: "order" }, orders.join(" ")) : null;
  const shown = showLines(segment);
  shown.splice(shown.at(-1) === "\n" ? -1 : shown.length, 0, order); // a line break stays the last thing of its line
  return make("span", attributes, ...shown);
}

/** Show line breaks and break at them; other white space stands as it is. */
function showLines({ text, end }) {
  if (end) return [];
  return text
    .split(/(\n)/)
    .filter(Boolean)
    .flatMap((part) => (part === "\n" ? [...showToken(part), part] : [part]));
}

function describeCost({ bits, tokens }) {
  const [first] = tokens;
  const found = [`${decimal(bits)} bits`];
  if (countTokens(tokens) > 1) found.push(`in ${countTokens(tokens)} tokens`);
  else if (first.order !== null) {
    found.push(`found at order ${first.order}`);
    if (first.count !== null) found.push(`seen ${showCount(first.count)}`);
    if (first.discount) found.push(`${decimal(first.discount)} taken off`);
  }
  return found.join(", ");
}

/** Format a count; counts are stored in a byte. */
function showCount(count) {
  if (count >= 255) return "255 times or more";
  return count === 1 ? "once" : `${count} times`;
}

function describe(told, slot) {
  const tokens = `${whole(countTokens(told.pieces))} tokens, ${whole(told.bytes)} bytes`;
  return make(
    "div",
    { class: `total of-${slot}` },
    make("h2", {}, showName(told.run)),
    make("p", {}, make("b", {}, showBits(told.run, told.bits_per_byte)), " bits per byte of this text"),
    make("p", { class: "note" }, `${told.bits === null ? "∞" : whole(told.bits)} bits in all · ${tokens}`),
    ...explainMarks([told.run]),
  );
}

/** Make the choice of what the colours show. */
function makeChoice(onChange) {
  const kinds = ["a", "b", "difference"];
  const boxes = Object.fromEntries(
    kinds.map((kind) => [kind, make("input", { type: "radio", name: "kind", value: kind })]),
  );
  const labels = Object.fromEntries(kinds.map((kind) => [kind, make("span", {}, kind)]));
  for (const kind of kinds) boxes[kind].addEventListener("change", onChange);
  const chips = kinds.map((kind) => make("label", { class: "chip" }, boxes[kind], labels[kind]));
  boxes.a.checked = true;
  let offered = "";
  return {
    element: make("fieldset", { class: "chips" }, make("legend", {}, "Colours"), ...chips),
    value: () => kinds.find((kind) => boxes[kind].checked),
    offer(a, b) {
      labels.a.textContent = a.name;
      labels.b.textContent = b?.name ?? "";
      chips[1].hidden = chips[2].hidden = !b;
      if (offered !== `${a.name} ${b?.name}`) boxes[b ? "difference" : "a"].checked = true;
      offered = `${a.name} ${b?.name}`;
    },
  };
}

function hasOrders(segments, kind) {
  return kind !== "difference" && segments[0][kind].tokens[0].order !== null;
}

function makeLegend(kind, told, ordered) {
  const steps = (side, strengths) => strengths.map((s) => make("span", { class: `t heat-${side}`, "--s": s }));
  const scale = [0, 0.2, 0.4, 0.6, 0.8, 1];
  if (kind !== "difference") {
    const orders = ordered ? "; a small figure is the order of n-gram that a token was found at" : "";
    return ["0 bits", make("span", { class: "steps" }, ...steps(kind, scale)), `${MAX_BITS} or more${orders}`];
  }
  const both = [...steps("a", scale.toReversed()), ...steps("b", scale.slice(1))];
  return [
    `${told.a.run.name} needs ${MAX_DIFFERENCE} bits less`,
    make("span", { class: "steps" }, ...both),
    `${told.b.run.name} does`,
  ];
}
