/** Next token: the distribution after a text, and the text as it grows by the tokens that are picked. */

import { ask, latest, settled } from "./api.js";
import { makeBars } from "./bars.js";
import { runField, samplingFields, textField } from "./controls.js";
import { make, showToken } from "./dom.js";
import { explainMarks } from "./marks.js";
import { change, listen, sampling, state } from "./state.js";

const COUNT = 20;
const SHOWN = 60; // tokens of the text, its last

export function mountNextToken(panel, runs) {
  const status = make("p", { class: "status", role: "status" });
  const trail = make("p", { class: "trail", role: "group", "aria-label": "The text as tokens" });
  const back = make("button", { type: "button", disabled: true }, "Step back");
  const columns = ["a", "b"].map((slot) => makeColumn(slot, runs, pick));
  // The current text. Where tokens were picked it has ids: encoding the text again could give other ones.
  let here = { text: state.prompt, ids: null, tokenizer: null, picked: 0 };
  let past = [];
  let fresh = true;

  const refresh = latest(async () => {
    const mine = here;
    for (const column of inOrder(columns, mine)) {
      try {
        const answer = await ask("/api/next", question(column.run(), mine));
        if (here !== mine) return;
        if (column.run().tokenizer === mine.tokenizer) takeText(answer.text);
        column.show(answer, fresh);
      } catch (error) {
        column.fail(error.message);
      }
    }
    fresh = false;
    showTrail(trail, inOrder(columns, here)[0]?.answer(), here.picked);
    back.disabled = past.length === 0;
  });

  /** Take the text that the picked ids decode to, for other tokenizers and the box above. */
  function takeText(text) {
    here.text = text;
    change("prompt", text);
  }

  function pick(column, token) {
    if (token.end) {
      status.textContent = "This token ends the text: nothing follows it.";
      return;
    }
    status.textContent = "";
    past.push(here);
    const tokenizer = column.run().tokenizer;
    const picked = here.tokenizer === tokenizer || here.ids === null ? here.picked + 1 : 1;
    move({ text: here.text, ids: [...column.answer().ids, token.id], tokenizer, picked });
  }

  function move(to) {
    here = to;
    fresh = true;
    refresh();
  }

  function stepBack() {
    if (!past.length) return;
    const to = past.pop();
    here = to; // before the box hears of it, which would take it for a new text
    change("prompt", to.text);
    move(to);
    status.textContent = "";
  }

  listen(
    "prompt",
    settled(() => {
      if (state.prompt === here.text) return;
      past = [];
      move({ text: state.prompt, ids: null, tokenizer: null, picked: 0 });
    }, 200),
  );
  for (const name of ["temperature", "top_k", "top_p"]) listen(name, refresh);
  for (const name of ["a", "b"]) listen(name, () => ((fresh = true), refresh()));
  back.addEventListener("click", stepBack);
  panel.addEventListener("keydown", (event) => {
    if (event.key === "Backspace" && event.target.role === "listbox") stepBack();
  });
  panel.append(
    make(
      "div",
      { class: "controls" },
      textField("Text so far", "prompt", { rows: 3 }),
      make("div", { class: "sliders" }, ...samplingFields()),
    ),
    make(
      "div",
      { class: "line" },
      back,
      make(
        "p",
        { class: "note" },
        "Pick a token to go on with it: click, or arrow keys and Enter; Backspace steps back.",
      ),
      status,
    ),
    trail,
    make("div", { class: "pair" }, ...columns.map((column) => column.element)),
  );
  refresh();
}

/** Put the run whose tokens were picked first: it knows the text. */
function inOrder(columns, here) {
  const asked = columns.filter((column) => column.run());
  return asked.sort((x, y) => (y.run().tokenizer === here.tokenizer) - (x.run().tokenizer === here.tokenizer));
}

function question(run, here) {
  const from = here.ids && run.tokenizer === here.tokenizer ? { ids: here.ids } : { text: here.text };
  return { model: run.name, ...from, ...sampling(), count: COUNT };
}

/** Make one run's bars. */
function makeColumn(slot, runs, pick) {
  const run = () => runs.find((one) => one.name === state[slot]);
  const label = { a: "First run", b: "Second run" }[slot];
  let answer = null;
  const bars = makeBars(`Next token of the ${label.toLowerCase()}`, (token) => pick(column, token));
  const trouble = make("p", { class: "status wrong", role: "alert" });
  const marks = make("div");
  const body = make("div", {}, bars.element, marks);
  const column = {
    run,
    answer: () => (run() ? answer : null),
    show(found, fresh) {
      answer = found;
      trouble.textContent = "";
      body.hidden = false;
      bars.show(found, fresh);
      marks.replaceChildren(...explainMarks([run()]));
    },
    fail(message) {
      trouble.textContent = message;
      body.hidden = true;
    },
  };
  const hide = () => (body.hidden = !run());
  listen(slot, hide);
  hide();
  column.element = make(
    "div",
    { class: `card of-${slot}` },
    runField(label, slot, runs, slot === "b" ? "none" : null),
    trouble,
    body,
  );
  return column;
}

/** Show the text as tokens, with the picked ones marked. */
function showTrail(trail, answer, picked) {
  if (!answer) return;
  const { pieces } = answer;
  const from = Math.max(0, pieces.length - SHOWN);
  const shown = pieces.slice(from).map((piece, i) => {
    const isPicked = from + i >= pieces.length - picked;
    return make("span", { class: isPicked ? "tok picked" : "tok" }, ...showToken(piece));
  });
  trail.replaceChildren(...(from ? ["… "] : []), ...shown, make("span", { class: "caret", "aria-hidden": "true" }));
}
