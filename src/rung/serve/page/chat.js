/** Chat: a conversation with a run that was tuned for it, its answers streaming. */

import { stream } from "./api.js";
import { field, lengthField, runField, samplingFields, seedField } from "./controls.js";
import { make } from "./dom.js";
import { rank } from "./marks.js";
import { number, sampling, state } from "./state.js";

export function mountChat(panel, runs) {
  const able = runs.filter((run) => run.chat);
  if (!able.length) {
    panel.append(explain(runs));
    return;
  }
  const log = make("div", {
    class: "log",
    role: "log",
    "aria-live": "polite",
    "aria-label": "Conversation",
    tabindex: 0,
  });
  const status = make("p", { class: "status", role: "status" });
  const system = make("textarea", { rows: 2, maxlength: 4000, placeholder: "None" });
  const input = make("textarea", { rows: 2, maxlength: 4000, required: true });
  const [send, stop, reset] = [
    make("button", { type: "submit", class: "main" }, "Send"),
    make("button", { type: "button", disabled: true }, "Stop"),
    make("button", { type: "button" }, "Reset"),
  ];
  let messages = [];
  let running = null;

  async function say() {
    const text = input.value.trim();
    if (!text || running) return;
    input.value = "";
    messages.push({ role: "user", content: text });
    log.append(makeTurn("user", "You", text).element);
    await answer();
  }

  async function answer() {
    const turn = makeTurn("assistant", state.chat, "");
    log.append(turn.element);
    const mine = (running = new AbortController());
    setBusy(true);
    let text = "";
    try {
      for await (const event of stream("/v1/chat/completions", question(system.value.trim(), messages), mine.signal)) {
        text += event.choices[0]?.delta?.content ?? "";
        turn.show(text);
        log.scrollTop = log.scrollHeight;
      }
      status.textContent = text ? "" : `${state.chat} ended its answer before the first word.`;
    } catch (error) {
      status.textContent = mine.signal.aborted ? "Stopped." : error.message;
    }
    if (running !== mine) return; // reset meanwhile
    running = null;
    setBusy(false);
    if (text) messages.push({ role: "assistant", content: text });
    else takeBack(turn);
  }

  /** Put a question without an answer back into the box, so that the roles still alternate. */
  function takeBack(turn) {
    turn.element.previousElementSibling?.remove();
    turn.element.remove();
    const question = messages.pop();
    input.value ||= question.content; // unless the next one is being written
  }

  function clear() {
    running?.abort();
    running = null;
    messages = [];
    log.replaceChildren();
    setBusy(false);
    status.textContent = "";
    input.focus();
  }

  function setBusy(busy) {
    send.disabled = busy;
    stop.disabled = !busy;
  }

  const form = make(
    "form",
    { onsubmit: (event) => (event.preventDefault(), say()) },
    field("Message", input, "Enter sends, Shift and Enter breaks the line, Escape stops."),
    make("div", { class: "line" }, send, stop, reset, status),
  );
  input.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    say();
  });
  panel.addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  stop.addEventListener("click", () => running?.abort());
  reset.addEventListener("click", clear);
  panel.append(
    make(
      "div",
      { class: "controls" },
      field("System prompt", system),
      make("div", { class: "sliders" }, runField("Run", "chat", able)),
      make("div", { class: "sliders" }, ...samplingFields(), lengthField(), seedField()),
    ),
    make("div", { class: "card" }, log),
    form,
  );
}

function question(system, messages) {
  const first = system ? [{ role: "system", content: system }] : [];
  return {
    model: state.chat,
    messages: [...first, ...messages],
    ...sampling(),
    max_tokens: number("max_tokens"),
    seed: number("seed"),
  };
}

function makeTurn(role, name, text) {
  const content = make("p", { dir: "auto" }, text);
  const element = make("article", { class: `turn ${role}`, "aria-label": name }, make("h2", {}, name), content);
  return { element, show: (now) => (content.textContent = now) };
}

/** Say which run to tune for chat: the best trained one, never one whose training came to nothing. */
function explain(runs) {
  const able = runs.filter((run) => !run.counts && !run.doubt);
  const best = able.find((run) => rank(run) === Math.min(...able.map(rank)));
  const how = best
    ? ["Make a chat model of one, and serve that too:", `rung tune runs/…/${best.name}`]
    : [
        "None can be made one: counting rungs learn no answers, and what is marked ‡ was trained for too short a time. " +
          "Train one for longer, tune it, and serve that too:",
        "rung train llama3 --minutes 10 --out runs/llama3\nrung tune runs/llama3",
      ];
  return make(
    "div",
    { class: "empty" },
    make("p", {}, "None of the served runs has learned to talk: they go on with a text, as the first tab shows."),
    make("p", {}, how[0]),
    make("pre", { tabindex: 0 }, how[1]),
  );
}
