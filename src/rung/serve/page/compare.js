/** Side by side: every run continues the same prompt at once. */

import { stream } from "./api.js";
import { lengthField, samplingFields, seedField, textField } from "./controls.js";
import { decimal, make, whole } from "./dom.js";
import { explainMarks, showBits, showName } from "./marks.js";
import { change, number, sampling, state } from "./state.js";

export function mountCompare(panel, runs) {
  const cards = runs.map((run) => makeCard(run, runs));
  const status = make("p", { class: "status", role: "status" });
  const write = make("button", { type: "submit", class: "main" }, "Write");
  const stop = make("button", { type: "button", disabled: true }, "Stop");
  let running = null;

  async function start() {
    running?.abort();
    const mine = (running = new AbortController());
    stop.disabled = false;
    const chosen = cards.filter((card) => card.chosen());
    status.textContent = chosen.length ? "Writing…" : "Choose at least one run.";
    await Promise.all(chosen.map((card) => card.write(mine.signal)));
    if (running !== mine) return;
    stop.disabled = true;
    running = null;
    if (chosen.length) status.textContent = mine.signal.aborted ? "Stopped." : "All have finished.";
  }

  const form = make(
    "form",
    { class: "controls", onsubmit: (event) => (event.preventDefault(), start()) },
    textField("Prompt", "prompt", { rows: 3 }),
    make("div", { class: "sliders" }, ...samplingFields(), lengthField(), seedField()),
    pickRuns(cards),
    make("div", { class: "line" }, write, stop, status),
  );
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
  });
  panel.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  stop.addEventListener("click", () => running?.abort());
  panel.append(form, make("div", { class: "cards" }, ...cards.map((card) => card.element)), ...marksOf(runs));
  panel.append(...explainMarks(runs));
}

/** Make the boxes that choose which runs write. */
function pickRuns(cards) {
  const chosen = state.rungs ? state.rungs.split(",") : cards.map((card) => card.name);
  const boxes = cards.map((card) => {
    const box = make("input", { type: "checkbox", value: card.name });
    box.checked = chosen.includes(card.name);
    card.choose(box.checked);
    return box;
  });
  const tell = () => {
    boxes.forEach((box, i) => cards[i].choose(box.checked));
    const named = boxes.filter((box) => box.checked).map((box) => box.value);
    change("rungs", named.length === boxes.length ? "" : named.join(",")); // none named: all
  };
  const labels = boxes.map((box) => {
    box.addEventListener("change", tell);
    return make("label", { class: "chip" }, box, box.value);
  });
  return make("fieldset", { class: "chips" }, make("legend", {}, "Runs"), ...labels);
}

/** Make a run's card: what it is, what it writes, how fast. */
function makeCard(run, runs) {
  const output = make(
    "div",
    { class: "writing", role: "group", dir: "auto", tabindex: 0, "aria-label": `What ${run.name} writes` },
    make("span", { class: "note" }, "Nothing written yet."),
  );
  const rate = make("p", { class: "note" });
  const element = make("article", { class: "card", "aria-label": run.name }, makeHeading(run, runs), output, rate);

  async function write(signal) {
    const written = document.createTextNode("");
    output.replaceChildren(make("b", {}, state.prompt), written);
    element.classList.add("busy");
    const started = performance.now();
    let tokens = 0;
    let ending = "";
    try {
      for await (const event of stream("/v1/completions", question(run), signal)) {
        const [choice] = event.choices;
        if (choice?.text) tokens += 1;
        written.data += choice?.text ?? "";
        output.scrollTop = output.scrollHeight;
        tokens = event.usage?.completion_tokens ?? tokens;
        ending = ENDINGS[choice?.finish_reason] ?? ending;
        rate.textContent = describeRate(tokens, performance.now() - started, ending);
      }
    } catch (error) {
      rate.textContent = signal.aborted ? `${rate.textContent} · stopped` : error.message;
      rate.classList.toggle("wrong", !signal.aborted);
    } finally {
      element.classList.remove("busy");
    }
  }

  return {
    name: run.name,
    element,
    write: (signal) => (rate.classList.remove("wrong"), (rate.textContent = ""), write(signal)),
    choose: (yes) => (element.hidden = !yes),
    chosen: () => !element.hidden,
  };
}

const ENDINGS = { stop: "ended its text", length: "" };

function question(run) {
  const length = { max_tokens: number("max_tokens"), seed: number("seed") };
  return { model: run.name, prompt: state.prompt, ...sampling(), ...length, stream_options: { include_usage: true } };
}

function describeRate(tokens, milliseconds, ending) {
  const rate = (1000 * tokens) / Math.max(milliseconds, 1);
  const parts = [`${whole(tokens)} tokens`, `${whole(rate)} tokens/s`, ending];
  return parts.filter(Boolean).join(" · ");
}

/** Make the heading: the rung's name, its idea, and its bits per byte on the scale of all runs. */
function makeHeading(run, runs) {
  const most = Math.max(...runs.map((other) => other.high ?? other.bits_per_byte ?? 0));
  const name = make(
    "h2",
    {},
    showName(run),
    " ",
    make("span", {}, run.name === run.rung ? run.idea : `${run.rung}: ${run.idea}`),
  );
  if (run.bits_per_byte === null) return make("header", {}, name, make("p", { class: "note" }, "no score on record"));
  const share = (value) => `${(100 * value) / most}%`;
  const interval = run.low === null ? "" : ` (${decimal(run.low)}–${decimal(run.high)})`;
  return make(
    "header",
    {},
    name,
    make(
      "p",
      { class: "figures" },
      make("b", {}, showBits(run, run.bits_per_byte)),
      ` bits per byte${interval}`,
      make("span", {}, ` · ${whole(run.parameters)} ${run.counts ? "counts" : "parameters"}`),
    ),
    make("div", {
      class: "gauge",
      "aria-hidden": "true",
      "--at": share(run.bits_per_byte),
      "--low": share(run.low ?? run.bits_per_byte),
      "--high": share(run.high ?? run.bits_per_byte),
    }),
  );
}

/** Show the marks of the same text, where they are known: what compressors need for it. */
function marksOf(runs) {
  const marks = Object.entries(runs.find((run) => Object.keys(run.marks).length)?.marks ?? {});
  if (!marks.length) return [];
  const told = marks.map(([name, bits]) => `${name} ${decimal(bits)}`).join(", ");
  return [make("p", { class: "note" }, `Bits per byte: fewer is better. The same text by its marks: ${told}.`)];
}
