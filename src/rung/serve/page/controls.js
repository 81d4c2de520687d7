/** Controls bound to the view's state: the same control on another tab follows. */

import { make } from "./dom.js";
import { showBits, showName } from "./marks.js";
import { change, listen, state } from "./state.js";

const TOP_K = [0, 1, 2, 3, 5, 10, 20, 40, 80, 160];
const MAX_TOKENS = [20, 40, 80, 120, 200, 400, 800];

let made = 0;

/** Make a labelled control, with a note below it. */
export function field(label, control, note = null) {
  control.id ||= `control-${(made += 1)}`;
  const notes = note === null ? null : make("p", { class: "note", id: `${control.id}-note` }, note);
  if (notes) control.setAttribute("aria-describedby", notes.id);
  return make("div", { class: "field" }, make("label", { for: control.id }, label), control, notes);
}

/** Make a text area bound to a value of the state. */
export function textField(label, name, { rows = 4, limit = 8000, note = null } = {}) {
  const area = make("textarea", { rows, maxlength: limit, spellcheck: "false" });
  area.value = state[name];
  area.addEventListener("input", () => change(name, area.value));
  listen(name, (value) => value !== area.value && (area.value = value));
  return field(label, area, note);
}

/** Make a choice among runs; `none` is the label of the empty choice. */
export function runField(label, name, runs, none = null) {
  const options = runs.map((run) => make("option", { value: run.name }, runLabel(run)));
  if (none !== null) options.push(make("option", { value: "none" }, none));
  const select = make("select", { onchange: () => change(name, select.value) }, options);
  select.value = state[name];
  listen(name, (value) => (select.value = value));
  return field(label, select);
}

/** Format a run's name with its bits per byte. */
export function runLabel(run) {
  const name = showName(run);
  return run.bits_per_byte === null ? name : `${name} · ${showBits(run, run.bits_per_byte)} bits/byte`;
}

/** Make the sliders of temperature, top-k and top-p. */
export function samplingFields() {
  return [
    slider("Temperature", "temperature", steps(0, 2, 0.05), (value) =>
      value === 0 ? "0: the likeliest" : value.toFixed(2),
    ),
    slider("Top-k", "top_k", TOP_K, (value) => (value === 0 ? "all" : String(value))),
    slider("Top-p", "top_p", steps(0.05, 1, 0.05), (value) => (value === 1 ? "all" : value.toFixed(2))),
  ];
}

/** Make the slider of the number of new tokens. */
export function lengthField() {
  return slider("Tokens", "max_tokens", MAX_TOKENS, String);
}

/** Make the box of the random seed. */
export function seedField() {
  const input = make("input", { type: "number", min: 0, max: 2 ** 31 - 1, step: 1, inputmode: "numeric" });
  input.value = state.seed;
  input.addEventListener("input", () => input.checkValidity() && input.value !== "" && change("seed", input.value));
  return field("Seed", input);
}

function steps(from, to, by) {
  return Array.from({ length: Math.round((to - from) / by) + 1 }, (_, i) => Number((from + i * by).toFixed(4)));
}

/** Make a slider over `values`, which need not be evenly spaced. */
function slider(label, name, values, show) {
  const input = make("input", { type: "range", min: 0, max: values.length - 1, step: 1 });
  const shown = make("output");
  const update = () => {
    const value = values[input.value];
    shown.textContent = show(value);
    input.setAttribute("aria-valuetext", show(value));
  };
  const place = () => {
    const wanted = Number(state[name]);
    const distances = values.map((value) => Math.abs(value - wanted));
    input.value = Math.max(0, distances.indexOf(Math.min(...distances)));
    update();
  };
  input.addEventListener("input", () => {
    update();
    change(name, values[input.value]);
  });
  listen(name, place);
  place();
  const made = field(label, input);
  made.classList.add("slider");
  made.querySelector("label").append(" ", shown);
  return made;
}
